//! Frames as slices on threads' tracks, with what is drawn below them: curves, turns off CPU, holes in the trace.

use crate::call_stacks::{self, StackOwner};
use crate::counters::Counters;
use crate::frame_names::frame_name;
use crate::load::Loaded;
use crate::off_cpu::{Away, OffCpu};
use ptflow_decoder::jobs::calls::{FrameName, FrameSink, Leaf};
use ptflow_decoder::ledger::LossReason;
use ptflow_decoder::units::Ns;
use ptflow_exporters::budget::{Budget, Folding};
use ptflow_exporters::timeline::{Category, Name, Track, Work};
use ptflow_perf_import::images::ImageStore;
use ptflow_perf_import::inlined::InlinedImages;
use ptflow_perf_import::symbols::FunctionNames;
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

/// Frames as slices on the threads' tracks.
pub struct Frames<'n> {
    timeline: Budget,
    functions: &'n FunctionNames,
    store: &'n ImageStore,
    names: FxHashMap<(FrameName, bool), Name>,
    /// The same of functions, by number: they are looked up at every call. That of a function that was entered before comes
    /// second.
    function_names: Vec<[Option<Name>; 2]>,
    gap_names: FxHashMap<LossReason, Name>,
    /// One for each stack, made when its first frame comes.
    tracks: Vec<Option<Track>>,
    stacks: Vec<StackOwner>,
    /// The tracks of holes, made when the first one comes.
    gaps: Vec<Option<Track>>,
    /// What is drawn as curves, by stack; `None` where nothing is.
    counters: Option<Vec<Counters>>,
    /// What inlined functions are called, where they are shown.
    inlined: Option<Arc<InlinedImages>>,
    inlined_names: FxHashMap<String, Name>,
    /// The first and last time of each stack.
    seen: Vec<Option<(Ns, Ns)>>,
    /// What each stack's thread executed so far; `None` where nobody wants to know.
    work: Option<Vec<Executed>>,
}

/// What a stack's thread executed up to what comes next.
#[derive(Clone, Copy, Default)]
struct Executed {
    sums: Work,
    /// Since the last frame that opened or ended there was a moment up to which cycles were not told: some are missing from
    /// the sum.
    is_missing_cycles: bool,
}

impl<'n> Frames<'n> {
    /// `all` = every stream has a track, even if nothing is in it.
    pub fn new(
        loaded: &'n Loaded<'_>,
        functions: &'n FunctionNames,
        mut timeline: Budget,
        all: bool,
    ) -> io::Result<Self> {
        let capture = &loaded.capture;
        let threads = &capture.schedules.threads;
        let of_threads = threads.iter().map(|(pid, _)| *pid);
        let pids: BTreeSet<_> = loaded.streams().filter_map(|stream| stream.pid).chain(of_threads).collect();
        for pid in &pids {
            let name = capture.processes.get(*pid).map_or("", |process| process.comm.as_str());
            timeline.process(pid.0, name)?;
        }
        let stacks = call_stacks::owners(loaded);
        let streams = loaded.streams().count();
        let mut tracks = vec![None; stacks.len()];
        // A thread's stream is a thread, even if nothing is in it; of CPUs only those tracks are made that are needed.
        if all {
            for (track, owner) in tracks.iter_mut().zip(&stacks).take(streams) {
                *track = Some(timeline.thread(owner.pid, owner.tid, &owner.name)?);
            }
        }
        Ok(Self {
            functions,
            store: &loaded.store,
            names: FxHashMap::default(),
            function_names: vec![[None; 2]; functions.len()],
            counters: None,
            work: None,
            inlined: None,
            inlined_names: FxHashMap::default(),
            seen: vec![None; tracks.len()],
            gap_names: FxHashMap::default(),
            gaps: vec![None; tracks.len()],
            tracks,
            stacks,
            timeline,
        })
    }

    /// Draws curves, too.
    pub fn with_counters(mut self) -> Self {
        self.counters = Some(self.tracks.iter().map(|_| Counters::default()).collect());
        self
    }

    /// Slices tell what was executed in them.
    pub fn with_work(mut self) -> Self {
        self.timeline = self.timeline.with_work();
        self.work = Some(vec![Executed::default(); self.tracks.len()]);
        self
    }

    /// A frame opens or ends: what was executed up to here counts for those that were open.
    fn tell_work(&mut self, stack: usize, track: Track) {
        let Some(executed) = self.work.as_mut().and_then(|work| work.get_mut(stack)) else { return };
        if std::mem::take(&mut executed.is_missing_cycles) {
            self.timeline.forget_cycles(track);
        }
        self.timeline.executed(track, executed.sums);
    }

    /// Knows the names of inlined functions.
    pub fn with_inlined(mut self, inlined: Option<Arc<InlinedImages>>) -> Self {
        self.inlined = inlined;
        self
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.tracks.iter().flatten().count()
    }

    #[inline]
    fn track(&mut self, stack: usize) -> io::Result<Track> {
        match self.tracks[stack] {
            Some(track) => Ok(track),
            None => self.new_track(stack),
        }
    }

    #[cold]
    fn new_track(&mut self, stack: usize) -> io::Result<Track> {
        let owner = &self.stacks[stack];
        let track = self.timeline.thread(owner.pid, owner.tid, &owner.name)?;
        self.tracks[stack] = Some(track);
        Ok(track)
    }

    /// Something is seen of a stack.
    #[inline]
    fn see(&mut self, stack: usize, at: Ns, is_call: bool) {
        let seen = &mut self.seen[stack];
        *seen = Some((seen.map_or(at, |seen| seen.0), at));
        if is_call && let Some(counters) = self.counters(stack) {
            counters.call(at.0);
        }
    }

    #[inline]
    fn counters(&mut self, stack: usize) -> Option<&mut Counters> {
        self.counters.as_mut()?.get_mut(stack)
    }

    /// Writes what is known at the end only, and all that is left.
    pub fn finish(mut self, loaded: &Loaded<'_>) -> io::Result<Folding> {
        if let Some(mut counters) = self.counters.take() {
            let off_cpu = OffCpu::of(&loaded.capture);
            for stack in 0..self.tracks.len() {
                let Some(track) = self.tracks[stack] else { continue };
                self.turns_off_cpu(stack, track, &off_cpu)?;
                if let Some(counters) = counters.get_mut(stack) {
                    std::mem::take(counters).write(&mut self.timeline, track, &loaded.capture.config)?;
                }
            }
        }
        self.timeline.finish()
    }

    /// When the thread was not on a CPU, as far as its trace reaches.
    fn turns_off_cpu(&mut self, stack: usize, of: Track, off_cpu: &OffCpu) -> io::Result<()> {
        let Some((first, last)) = self.seen[stack] else { return Ok(()) };
        let mut track = None;
        let mut names = [None; 2];
        for Away { from, to, preempted } in off_cpu.turns(self.stacks[stack].tid) {
            let (from, to) = (from.max(first.0), to.min(last.0));
            if from >= to {
                continue;
            }
            let track = match track {
                Some(track) => track,
                None => *track.insert(self.timeline.below(of, "off CPU")?),
            };
            let what = if preempted { "preempted" } else { "waiting" };
            let new = || self.timeline.name(what, Category::OffCpu);
            let name = *names[usize::from(preempted)].get_or_insert_with(new);
            self.timeline.begin(track, from, name)?;
            self.timeline.end(track, to)?;
        }
        Ok(())
    }

    #[inline]
    fn name(&mut self, frame: FrameName, inferred: bool) -> Name {
        let known = match frame {
            FrameName::Function(id) => self.function_names.get(id.0 as usize),
            _ => None,
        };
        match known.and_then(|names| names[usize::from(inferred)]) {
            Some(name) => name,
            None => self.new_name(frame, inferred),
        }
    }

    fn new_name(&mut self, frame: FrameName, inferred: bool) -> Name {
        if let Some(name) = self.names.get(&(frame, inferred)) {
            return *name;
        }
        let (text, category) = match frame {
            FrameName::Inlined(id) => {
                let name = self.inlined.as_ref().map_or("?", |inlined| inlined.name(id));
                (name.to_owned(), Category::Inlined)
            }
            FrameName::Function(_) | FrameName::Unnamed(_) | FrameName::Image(_) => {
                (frame_name(self.store, self.functions, frame), Category::Function)
            }
            FrameName::NoImage | FrameName::Syscall | FrameName::Untraced => {
                (frame_name(self.store, self.functions, frame), Category::Untraced)
            }
        };
        let category = if inferred && category == Category::Function { Category::Inferred } else { category };
        let name = match frame {
            // Inlined at many places, it has one name.
            FrameName::Inlined(_) => match self.inlined_names.get(&text) {
                Some(name) => *name,
                None => {
                    let name = self.timeline.name(&text, category);
                    self.inlined_names.insert(text, name);
                    name
                }
            },
            _ => self.timeline.name(&text, category),
        };
        self.names.insert((frame, inferred), name);
        if let FrameName::Function(id) = frame
            && let Some(names) = self.function_names.get_mut(id.0 as usize)
        {
            names[usize::from(inferred)] = Some(name);
        }
        name
    }
}

impl FrameSink for Frames<'_> {
    type Error = io::Error;
    const CYCLES: bool = true;

    fn open(&mut self, stream: usize, at: Ns, name: FrameName, inferred: bool) -> io::Result<()> {
        let is_call =
            !inferred && !matches!(name, FrameName::Syscall | FrameName::Untraced | FrameName::Inlined(_));
        self.see(stream, at, is_call);
        let name = self.name(name, inferred);
        let track = self.track(stream)?;
        self.tell_work(stream, track);
        self.timeline.begin(track, at.0, name)
    }

    #[inline]
    fn leaf(&mut self, stream: usize, leaf: Leaf) -> io::Result<()> {
        if self.work.is_some() {
            return leaf.open_and_close(self, stream);
        }
        self.see(stream, leaf.from, true);
        self.executed(stream, leaf.executed);
        if let Some(cycles) = leaf.cycles {
            self.cycles(stream, cycles);
        }
        self.see(stream, leaf.to, false);
        let name = self.name(leaf.name, false);
        let track = self.track(stream)?;
        self.timeline.leaf(track, leaf.from.0, leaf.to.0, name)
    }

    fn close(&mut self, stream: usize, at: Ns) -> io::Result<()> {
        self.see(stream, at, false);
        let track = self.track(stream)?;
        self.tell_work(stream, track);
        self.timeline.end(track, at.0)
    }

    #[inline]
    fn executed(&mut self, stack: usize, instructions: u64) {
        if let Some(counters) = self.counters(stack) {
            counters.executed(instructions);
        }
        if let Some(executed) = self.work.as_mut().and_then(|work| work.get_mut(stack)) {
            // Cycles are told next, if they are.
            executed.is_missing_cycles |= executed.sums.cycles.is_none();
            executed.sums = Work { instructions: Some(instructions), cycles: None };
        }
    }

    fn uncounted(&mut self, stack: usize) {
        if let Some(executed) = self.work.as_mut().and_then(|work| work.get_mut(stack)) {
            executed.sums = Work::default();
        }
    }

    #[inline]
    fn cycles(&mut self, stack: usize, cycles: u64) {
        if let Some(counters) = self.counters(stack) {
            counters.cycles(cycles);
        }
        if let Some(executed) = self.work.as_mut().and_then(|work| work.get_mut(stack)) {
            executed.sums.cycles = Some(cycles);
        }
    }

    #[inline]
    fn needs_cycles(&self, stack: usize, at: Ns) -> bool {
        let counters = self.counters.as_ref().and_then(|counters| counters.get(stack));
        self.work.is_some() || counters.is_some_and(|counters| counters.is_due(at.0))
    }

    fn ratio(&mut self, stack: usize, at: Ns, ratio: u8) -> io::Result<()> {
        if let Some(counters) = self.counters(stack) {
            counters.ratio(at.0, ratio);
        }
        Ok(())
    }

    fn gap(&mut self, stream: usize, from: Ns, to: Ns, reason: LossReason) -> io::Result<()> {
        let track = match self.gaps[stream] {
            Some(track) => track,
            None => {
                let of = self.track(stream)?;
                let track = self.timeline.notes(of, "trace state")?;
                self.gaps[stream] = Some(track);
                track
            }
        };
        let name = match self.gap_names.get(&reason) {
            Some(name) => *name,
            None => {
                let name = self.timeline.name(&format!("gap: {}", reason.name()), Category::Gap);
                self.gap_names.insert(reason, name);
                name
            }
        };
        self.timeline.begin(track, from.0, name)?;
        self.timeline.end(track, to.0.max(from.0))
    }
}
