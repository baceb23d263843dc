//! A bound on how many slices a timeline has: calls too short to be seen are folded into their callers.
//!
//! A caller lasts at least as long as what it calls, so with a threshold of duration the callers of every kept call are
//! kept too. The threshold need not be known before the last call has come: what is kept under a lower threshold holds all
//! that is kept under a higher one. So calls are stored as they come; when too many are, the threshold rises to where the
//! durations so far, in a histogram, meet the budget, and what is now too short is folded away. Memory holds some two
//! budgets of calls, whatever the trace, and the result is the one that two passes would have had.
//!
//! Where the number of slices is not limited, calls are handed on as they end, and memory holds what is open.

use crate::depth::MAX_DEPTH;
use crate::durations::Durations;
use crate::timeline::{Args, Category, Folded, Name, Timeline, Track, Work};
use std::collections::BTreeMap;
use std::io;

/// What a timeline may have at most.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Limits {
    /// Slices in all; holes in the trace count, but are never folded.
    pub slices: Option<u64>,
    /// Calls that are shorter, in nanoseconds, are folded.
    pub min_ns: u64,
    /// Levels of a stack.
    pub depth: Option<usize>,
}

/// How often a function was called, and for how long; what it called included.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Calls {
    /// Calls with a slice of their own.
    pub kept: u64,
    /// Their time.
    pub kept_ns: u64,
    /// Calls without.
    pub folded: u64,
    /// Their time.
    pub folded_ns: u64,
}

/// What became of all calls.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Folding {
    /// Calls that are shorter were folded.
    pub min_ns: u64,
    /// So were calls at this level of a stack and deeper, ...
    pub depth: usize,
    /// ... which were so many.
    pub deep: u64,
    /// Slices that were written, holes in the trace included.
    pub slices: u64,
    /// Slices that were not: calls, and inlined functions.
    pub folded: u64,
    /// Of those calls, what was folded into no slice because nothing that is shown called it.
    pub outside: Folded,
    /// By category and name of the slice.
    pub functions: BTreeMap<(Category, String), Calls>,
}

/// Stands before a timeline and hands on what is kept.
pub struct Budget {
    inner: Box<dyn Timeline>,
    limits: Limits,
    /// The threshold for now.
    min_ns: u64,
    /// Slices that may be stored before the threshold is looked at.
    room: u64,
    stored: u64,
    /// Slices on tracks of notes.
    notes: u64,
    tracks: Vec<Calling>,
    /// By number; the depth guard behind makes names of its own.
    names: Vec<Option<Named>>,
    outside: Folded,
    /// Calls that were folded for their depth.
    deep: u64,
    /// Slices tell what was executed in them.
    with_work: bool,
}

#[derive(Debug)]
struct Named {
    text: String,
    category: Category,
    calls: Calls,
}

/// A track's calls.
#[derive(Default, Debug)]
struct Calling {
    notes: bool,
    /// In the order in which they began.
    slices: Vec<Slice>,
    /// What is open: places in `slices`.
    open: Vec<usize>,
    last: u64,
    /// So many of the open slices were handed on: where the threshold is settled, no others are stored.
    begun: usize,
    /// What was executed, if that is wanted: so far, and of each of `slices` its sum when it began or, once it has ended, its
    /// own.
    executed: Work,
    work: Vec<Packed>,
}

/// [`Work`] in half the room: there is one for each slice that is stored.
#[derive(Clone, Copy, Debug)]
struct Packed {
    instructions: u64,
    cycles: u64,
}

const UNKNOWN: u64 = u64::MAX;

impl From<Work> for Packed {
    fn from(Work { instructions, cycles }: Work) -> Self {
        Self { instructions: instructions.unwrap_or(UNKNOWN), cycles: cycles.unwrap_or(UNKNOWN) }
    }
}

impl From<Packed> for Work {
    fn from(packed: Packed) -> Self {
        let known = |count: u64| (count != UNKNOWN).then_some(count);
        Self { instructions: known(packed.instructions), cycles: known(packed.cycles) }
    }
}

impl Calling {
    fn work(&self, place: usize) -> Work {
        self.work.get(place).copied().map(Work::from).unwrap_or_default()
    }

    /// The cycles of no open slice are known any more.
    fn forget_cycles(&mut self) {
        for place in self.open.iter().rev() {
            match self.work.get_mut(*place) {
                Some(work) if work.cycles != UNKNOWN => work.cycles = UNKNOWN,
                // It was forgotten before, and so was what lies around it.
                _ => break,
            }
        }
    }

    fn truncate(&mut self, len: usize) {
        self.slices.truncate(len);
        self.work.truncate(len);
    }
}

#[derive(Clone, Copy, Debug)]
struct Slice {
    begin: u64,
    /// [`OPEN`] until it ends.
    end: u64,
    name: Name,
    /// How many slices it lies in.
    level: u32,
    folded: Folded,
}

const OPEN: u64 = u64::MAX;
/// A look at the threshold goes over all that is stored: so many new slices are worth one.
const LEAST_ROOM: u64 = 1 << 16;

impl Slice {
    fn duration(&self) -> u64 {
        self.end.saturating_sub(self.begin)
    }
}

/// Folds a slice into another.
fn take(folded: &mut Folded, slice: &Slice, direct: bool, is_inlined: bool) {
    if is_inlined {
        folded.take_over(&slice.folded, direct);
    } else {
        folded.take(&slice.folded, slice.duration(), direct);
    }
}

impl Budget {
    /// A budget for what `inner` gets.
    pub fn new(inner: Box<dyn Timeline>, limits: Limits) -> Self {
        let room = limits.slices.map_or(u64::MAX, |slices| slices.saturating_add(slices.max(LEAST_ROOM)));
        Self {
            inner,
            limits,
            min_ns: limits.min_ns,
            room,
            stored: 0,
            notes: 0,
            tracks: Vec::new(),
            names: Vec::new(),
            outside: Folded::default(),
            deep: 0,
            with_work: false,
        }
    }

    /// Slices tell what was executed in them, as [`Self::executed`] says.
    pub fn with_work(mut self) -> Self {
        self.with_work = true;
        self
    }

    /// The threshold will not rise: what is kept is handed on as soon as that is known.
    fn is_settled(&self) -> bool {
        self.limits.slices.is_none()
    }

    /// Levels of a stack that may be shown. Those that viewers do not show either are folded here, where they take no room
    /// from others: the guard behind would draw them as one slice each time.
    fn levels(&self) -> usize {
        self.limits.depth.map_or(MAX_DEPTH, |depth| depth.min(MAX_DEPTH))
    }

    /// Begins the open slices of a settled track: the youngest is kept, and so are those around it.
    fn begin_open(&mut self, track: Track) -> io::Result<()> {
        let Some(calling) = self.tracks.get_mut(track.0 as usize) else { return Ok(()) };
        for slice in &calling.slices[calling.begun..] {
            self.inner.begin(track, slice.begin, slice.name)?;
        }
        calling.begun = calling.slices.len();
        Ok(())
    }

    fn calling(&mut self, track: Track) -> &mut Calling {
        let index = track.0 as usize;
        if index >= self.tracks.len() {
            self.tracks.resize_with(index + 1, Calling::default);
        }
        &mut self.tracks[index]
    }

    fn is_inlined(&self, name: Name) -> bool {
        let named = self.names.get(name.0 as usize).and_then(Option::as_ref);
        named.is_some_and(|named| named.category == Category::Inlined)
    }

    fn count(&mut self, name: Name, ns_of_call: u64, kept: bool) {
        let Some(Some(named)) = self.names.get_mut(name.0 as usize) else { return };
        let calls = &mut named.calls;
        let (count, ns) = if kept {
            (&mut calls.kept, &mut calls.kept_ns)
        } else {
            (&mut calls.folded, &mut calls.folded_ns)
        };
        *count += 1;
        *ns = ns.saturating_add(ns_of_call);
    }

    /// The least threshold under which no more than the budget is kept.
    fn raise(&mut self) {
        let Some(budget) = self.limits.slices else { return };
        let mut durations = Durations::default();
        let calls = self.tracks.iter().filter(|calling| !calling.notes);
        // What is open may yet turn out short: it does not count for now, so that the threshold never rises too far.
        for slice in calls.flat_map(|calling| &calling.slices).filter(|slice| slice.end != OPEN) {
            durations.add(slice.duration());
        }
        let threshold = budget.checked_sub(self.notes).map_or(u64::MAX, |most| durations.threshold(most));
        if threshold > self.min_ns {
            self.min_ns = threshold;
            self.fold();
        }
        self.room = self.stored.saturating_add(budget.max(LEAST_ROOM));
    }

    /// Folds what is too short into the youngest slice around it that is not.
    fn fold(&mut self) {
        for index in 0..self.tracks.len() {
            let mut calling = std::mem::take(&mut self.tracks[index]);
            if !calling.notes {
                self.fold_track(&mut calling);
            }
            self.tracks[index] = calling;
        }
    }

    fn fold_track(&mut self, calling: &mut Calling) {
        // Places of the kept slices around the one that is looked at.
        let mut around: Vec<usize> = Vec::new();
        // The level of the outermost folded call around it.
        let mut folded_call: Option<u32> = None;
        let mut kept = 0;
        for place in 0..calling.slices.len() {
            let slice = calling.slices[place];
            while around.last().is_some_and(|outer| calling.slices[*outer].level >= slice.level) {
                around.pop();
            }
            folded_call = folded_call.filter(|level| *level < slice.level);
            if slice.end == OPEN || slice.duration() >= self.min_ns {
                around.push(kept);
                calling.slices[kept] = slice;
                if self.with_work {
                    calling.work[kept] = calling.work[place];
                }
                kept += 1;
                continue;
            }
            let is_inlined = self.is_inlined(slice.name);
            let folded = around.last().map_or(&mut self.outside, |outer| &mut calling.slices[*outer].folded);
            take(folded, &slice, folded_call.is_none(), is_inlined);
            if !is_inlined {
                folded_call = folded_call.or(Some(slice.level));
            }
            self.count(slice.name, slice.duration(), false);
        }
        self.stored -= (calling.slices.len() - kept) as u64;
        calling.truncate(kept);
        // Open slices lie in each other and all of them are kept: they are at the end of nothing but their own calls.
        calling.open.clear();
        let open = calling.slices.iter().enumerate().filter(|(_, slice)| slice.end == OPEN);
        calling.open.extend(open.map(|(place, _)| place));
    }

    fn write(&mut self, track: Track, calling: &Calling) -> io::Result<()> {
        let mut open: Vec<(&Slice, Args)> = Vec::new();
        for (place, slice) in calling.slices.iter().enumerate() {
            while let Some((outer, args)) = open.pop_if(|(outer, _)| outer.level >= slice.level) {
                self.inner.end(track, outer.end, args)?;
            }
            self.inner.begin(track, slice.begin, slice.name)?;
            self.count(slice.name, slice.duration(), true);
            open.push((slice, Args { folded: slice.folded, work: calling.work(place) }));
        }
        while let Some((outer, args)) = open.pop() {
            self.inner.end(track, outer.end, args)?;
        }
        Ok(())
    }

    /// A process.
    pub fn process(&mut self, pid: u32, name: &str) -> io::Result<()> {
        self.inner.process(pid, name)
    }

    /// A thread's track.
    pub fn thread(&mut self, pid: u32, tid: u32, name: &str) -> io::Result<Track> {
        self.inner.thread(pid, tid, name)
    }

    /// A track of notes on another: nothing on it is folded.
    pub fn notes(&mut self, of: Track, name: &str) -> io::Result<Track> {
        let track = self.inner.notes(of, name)?;
        self.calling(track).notes = true;
        Ok(track)
    }

    /// A track below another, whose slices are folded like calls.
    pub fn below(&mut self, of: Track, name: &str) -> io::Result<Track> {
        self.inner.notes(of, name)
    }

    /// A curve below a track.
    pub fn counter(&mut self, of: Track, name: &str) -> io::Result<Track> {
        self.inner.counter(of, name)
    }

    /// A curve's value. Curves count for nothing.
    pub fn value(&mut self, counter: Track, ns: u64, value: f64) -> io::Result<()> {
        self.inner.value(counter, ns, value)
    }

    /// A name for slices.
    pub fn name(&mut self, text: &str, category: Category) -> Name {
        let name = self.inner.name(text, category);
        let index = name.0 as usize;
        if index >= self.names.len() {
            self.names.resize_with(index + 1, || None);
        }
        self.names[index] = Some(Named { text: text.to_owned(), category, calls: Calls::default() });
        name
    }

    /// So much was executed on a track before its next slice begins or ends; sums since some beginning. What is not known
    /// is told of no slice that it would count for. Nothing is told unless [`Self::with_work`] asked for it.
    pub fn executed(&mut self, track: Track, sums: Work) {
        if self.with_work {
            let calling = self.calling(track);
            calling.executed = sums;
            if sums.cycles.is_none() {
                calling.forget_cycles();
            }
        }
    }

    /// Some of a track's cycles were not counted: those of the slices that are open are not known.
    pub fn forget_cycles(&mut self, track: Track) {
        self.calling(track).forget_cycles();
    }

    /// A slice begins.
    pub fn begin(&mut self, track: Track, ns: u64, name: Name) -> io::Result<()> {
        let (min_ns, levels) = (self.limits.min_ns, self.levels());
        let (is_settled, with_work) = (self.is_settled(), self.with_work);
        let calling = self.calling(track);
        calling.last = ns;
        if with_work {
            calling.work.push(calling.executed.into());
        }
        let slice =
            Slice { begin: ns, end: OPEN, name, level: calling.open.len() as u32, folded: Folded::default() };
        calling.open.push(calling.slices.len());
        calling.slices.push(slice);
        let notes = calling.notes;
        let is_kept = notes || min_ns == 0 && (slice.level as usize) < levels;
        self.notes += u64::from(notes);
        self.stored += 1;
        if is_settled && is_kept { self.begin_open(track) } else { Ok(()) }
    }

    /// The youngest open slice ends.
    pub fn end(&mut self, track: Track, ns: u64) -> io::Result<()> {
        let (is_settled, min_ns, levels) = (self.is_settled(), self.min_ns, self.levels());
        let with_work = self.with_work;
        let calling = self.calling(track);
        let Some(place) = calling.open.pop() else { return Ok(()) };
        calling.last = ns;
        if with_work {
            calling.work[place] = calling.executed.since(calling.work(place)).into();
        }
        calling.slices[place].end = ns.min(OPEN - 1);
        let slice = calling.slices[place];
        let level = slice.level as usize;
        let is_kept = calling.notes || place < calling.begun || slice.duration() >= min_ns && level < levels;
        if is_kept && is_settled {
            self.begin_open(track)?;
            let calling = self.calling(track);
            let args = Args { folded: slice.folded, work: calling.work(place) };
            calling.truncate(place);
            calling.begun = place;
            self.stored -= 1;
            self.count(slice.name, slice.duration(), true);
            return self.inner.end(track, ns, args);
        }
        if !is_kept {
            // What it called is shorter and deeper, thus folded already: it is the last one stored.
            calling.truncate(place);
            let outer = calling.open.last().copied();
            let is_inlined = self.is_inlined(slice.name);
            let folded = match outer {
                Some(outer) => &mut self.calling(track).slices[outer].folded,
                None => &mut self.outside,
            };
            take(folded, &slice, true, is_inlined);
            self.stored -= 1;
            self.deep += u64::from(level >= levels);
            self.count(slice.name, slice.duration(), false);
        }
        if self.stored > self.room {
            self.raise();
        }
        Ok(())
    }

    /// A slice in which no other begins: as [`Self::begin`] and [`Self::end`].
    #[inline]
    pub fn leaf(&mut self, track: Track, from: u64, to: u64, name: Name) -> io::Result<()> {
        let (min_ns, levels, with_work) = (self.min_ns, self.levels(), self.with_work);
        let calling = self.calling(track);
        let (level, duration) = (calling.open.len(), to.saturating_sub(from));
        if calling.notes || duration >= min_ns && level < levels || with_work || self.is_inlined(name) {
            self.begin(track, from, name)?;
            return self.end(track, to);
        }
        // It is folded before it is stored: most are.
        let calling = &mut self.tracks[track.0 as usize];
        calling.last = to;
        let folded = match calling.open.last() {
            Some(outer) => &mut calling.slices[*outer].folded,
            None => &mut self.outside,
        };
        folded.take(&Folded::default(), duration, true);
        self.deep += u64::from(level >= levels);
        self.count(name, duration, false);
        Ok(())
    }

    /// Writes what is kept, and says what became of all.
    pub fn finish(mut self) -> io::Result<Folding> {
        for track in 0..self.tracks.len() {
            let last = self.tracks[track].last;
            for _ in 0..self.tracks[track].open.len() {
                self.end(Track(track as u32), last)?;
            }
        }
        if self.limits.slices.is_some_and(|budget| self.stored > budget) {
            self.raise();
        }
        for index in 0..self.tracks.len() {
            let calling = std::mem::take(&mut self.tracks[index]);
            self.write(Track(index as u32), &calling)?;
        }
        let (min_ns, depth, deep) = (self.min_ns, self.levels(), self.deep);
        let mut folding = Folding { min_ns, depth, deep, outside: self.outside, ..Folding::default() };
        for Named { text, category, calls } in std::mem::take(&mut self.names).into_iter().flatten() {
            folding.slices += calls.kept;
            folding.folded += calls.folded;
            let sum = folding.functions.entry((category, text)).or_default();
            sum.kept += calls.kept;
            sum.kept_ns = sum.kept_ns.saturating_add(calls.kept_ns);
            sum.folded += calls.folded;
            sum.folded_ns = sum.folded_ns.saturating_add(calls.folded_ns);
        }
        if let Some(said) = folding.in_words() {
            self.inner.metadata("folded", &said)?;
        }
        self.inner.finish()?;
        Ok(folding)
    }
}

impl Folding {
    /// What was folded, if anything was.
    pub fn in_words(&self) -> Option<String> {
        let Self { min_ns, depth, deep, slices, folded, outside, .. } = self;
        (*folded > 0).then(|| {
            let all = slices.saturating_add(*folded);
            let too_deep = format!("those deeper than {depth} levels");
            let short = match *min_ns {
                u64::MAX => "all calls".to_owned(),
                ns => format!("those shorter than {}.{:03} us", ns / 1000, ns % 1000),
            };
            let which = match (*min_ns, *deep) {
                (0, _) => too_deep,
                (_, 0) => short,
                _ => format!("{short}, and {too_deep}"),
            };
            let alone = match outside.calls {
                0 => String::new(),
                calls => format!("; {calls} of them ({} ns) have no caller that is shown", outside.ns),
            };
            format!("{folded} of {all} slices are folded into their callers: {which}{alone}")
        })
    }
}
