//! Which invocation: by its rank among all, in duration or in time, or by a moment in it.

use super::{Decoded, Session};
use crate::find_invocations::{What, find_invocations};
use crate::index;
use anyhow::bail;
use ptflow_decoder::jobs::calls::{FrameName, FrameSink};
use ptflow_decoder::jobs::invocations::{Durations, Invocation, Recursion};
use ptflow_decoder::jobs::replay::Which;
use ptflow_decoder::ledger::LossReason;
use ptflow_decoder::units::{Ns, Svma};
use ptflow_exporters::call_tree::duration;
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::path::Path;

/// An invocation as it was found, enough to find it again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    pub stack: usize,
    pub tid: u32,
    pub start: Ns,
    pub end: Ns,
    pub instructions: u64,
}

impl Choice {
    /// From its beginning to its end.
    pub fn duration(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// How to find it again.
    pub fn which(&self) -> Which {
        Which::Known { start: self.start, end: self.end, instructions: self.instructions }
    }
}

/// A rank among the complete invocations, from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rank {
    /// By duration, the slowest first; of equal ones the earlier.
    Slowest(usize),
    /// By start, then thread.
    Nth(usize),
    /// The one at ⌈n/2⌉ by (duration, start, thread).
    Median,
}

/// Where invocations are known from.
#[derive(Clone, Copy)]
pub struct Source<'s> {
    /// An index, or else the capture itself.
    pub index: Option<&'s Path>,
    /// Inner invocations of recursive functions are some, too.
    pub recursion: Recursion,
    /// Told bytes that are done, in a pass over the capture.
    pub progress: &'s (dyn Fn(u64) + Sync),
}

impl Source<'_> {
    /// Every complete invocation; the others are counted, and the one of them that was seen longest is kept.
    fn each(&self, session: &Session<'_>, mut take: impl FnMut(Choice)) -> anyhow::Result<Counts> {
        let mut counts = Counts::default();
        let Some(path) = self.index else {
            let what = What::Functions(session.wanted.clone(), self.recursion);
            let found = |invocation: Invocation| {
                let choice = choice(session, &invocation);
                counts.add(invocation.is_complete(), choice);
                if invocation.is_complete() {
                    take(choice);
                }
                Ok::<(), Infallible>(())
            };
            let Session { loaded, images, pool, .. } = *session;
            let Ok(_) = find_invocations(loaded, images, pool, self.progress, &what, found);
            return Ok(counts);
        };
        let stacks: HashMap<u32, usize> =
            session.owners.iter().enumerate().map(|(stack, owner)| (owner.tid, stack)).collect();
        let names: BTreeSet<&str> = session.wanted.iter().map(|id| session.functions.raw(*id)).collect();
        index::read(path, &session.loaded.told_by(), |entry| {
            if !names.contains(entry.function.as_str()) {
                return Ok(());
            }
            let index::Entry { tid, start, end, instructions, complete, .. } = entry;
            let Some(&stack) = stacks.get(&tid) else { return Ok(()) };
            let choice = Choice { stack, tid, start, end, instructions };
            counts.add(complete, choice);
            if complete {
                take(choice);
            }
            Ok(())
        })?;
        Ok(counts)
    }
}

/// How an invocation is found again.
fn choice(session: &Session<'_>, invocation: &Invocation) -> Choice {
    let Invocation { stack, start, end, instructions, .. } = *invocation;
    let tid = session.owners.get(stack).map_or(0, |owner| owner.tid);
    Choice { stack, tid, start, end, instructions }
}

/// How many invocations there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Beginning and end were seen.
    pub complete: usize,
    /// Cut off by a gap or the trace's ends.
    pub cut: usize,
    /// Of these, the one that was seen longest; of equal ones the first that ended.
    pub longest_cut: Option<Choice>,
}

impl Counts {
    fn add(&mut self, complete: bool, choice: Choice) {
        self.complete += usize::from(complete);
        self.cut += usize::from(!complete);
        if !complete && self.longest_cut.is_none_or(|longest| choice.duration() > longest.duration()) {
            self.longest_cut = Some(choice);
        }
    }
}

/// Keeps the first so many by an order.
struct Best<K> {
    limit: usize,
    kept: BTreeSet<(K, Found)>,
}

type Found = (u64, u32, u64, u64, usize);

impl<K: Ord> Best<K> {
    fn new(limit: usize) -> Self {
        Self { limit, kept: BTreeSet::new() }
    }

    fn add(&mut self, key: K, choice: Choice) {
        let Choice { stack, tid, start, end, instructions } = choice;
        self.kept.insert((key, (start.0, tid, end.0, instructions, stack)));
        if self.kept.len() > self.limit {
            self.kept.pop_last();
        }
    }

    /// The last one kept, where there are as many as asked for.
    fn last(self) -> Option<Choice> {
        let (_, (start, tid, end, instructions, stack)) =
            self.kept.last().filter(|_| self.kept.len() == self.limit)?;
        Some(Choice {
            stack: *stack,
            tid: *tid,
            start: Ns(*start),
            end: Ns(*end),
            instructions: *instructions,
        })
    }
}

/// The invocations at some ranks, in one pass over all; the median takes another one.
pub fn by_rank(
    session: &Session<'_>,
    source: &Source<'_>,
    ranks: &[Rank],
) -> anyhow::Result<(Vec<Choice>, Counts)> {
    let mut durations = Durations::default();
    let mut best: Vec<Best<Reverse<u64>>> = Vec::new();
    let mut nth: Vec<Best<()>> = Vec::new();
    for rank in ranks {
        match rank {
            Rank::Slowest(k) => best.push(Best::new(*k)),
            Rank::Nth(k) => nth.push(Best::new(*k)),
            Rank::Median => {}
        }
    }
    let counts = source.each(session, |choice| {
        durations.add(Ns(choice.duration()));
        best.iter_mut().for_each(|best| best.add(Reverse(choice.duration()), choice));
        nth.iter_mut().for_each(|best| best.add((), choice));
    })?;
    if counts.complete == 0 {
        bail!("{}", nothing(session, counts));
    }
    let (mut best, mut nth) = (best.into_iter(), nth.into_iter());
    let mut choices = Vec::new();
    for rank in ranks {
        let choice = match rank {
            Rank::Slowest(_) => best.next().and_then(Best::last),
            Rank::Nth(_) => nth.next().and_then(Best::last),
            Rank::Median => median(session, source, &durations)?,
        };
        let Some(choice) = choice else {
            bail!("there are only {} complete invocations{}", counts.complete, also_cut(session, counts));
        };
        choices.push(choice);
    }
    Ok((choices, counts))
}

/// Those as long as the median stand in order of start: the rank says which of them it is.
fn median(
    session: &Session<'_>,
    source: &Source<'_>,
    durations: &Durations,
) -> anyhow::Result<Option<Choice>> {
    let Some(median) = durations.permille(500) else { return Ok(None) };
    let rank = durations.count().div_ceil(2) - durations.between(Ns(0), median);
    let mut best = Best::new(usize::try_from(rank)?);
    source.each(session, |choice| {
        if choice.duration() == median.0 {
            best.add((), choice);
        }
    })?;
    Ok(best.last())
}

fn nothing(session: &Session<'_>, counts: Counts) -> String {
    let names: Vec<&str> = session.wanted.iter().take(3).map(|id| session.functions.get(*id)).collect();
    let more = if session.wanted.len() > 3 { ", …" } else { "" };
    let names = names.join(", ") + more;
    if counts.longest_cut.is_some() {
        return format!("{names}: no invocation is complete{}", also_cut(session, counts));
    }
    let near = session.known().near(&session.wanted);
    let near = if near.is_empty() { String::new() } else { format!("; names like it: {}", near.join(", ")) };
    format!(
        "{names}: never entered in this trace (inlined copies cannot be told from their callers){near}; \
         which functions are entered: ptflow calls --function '*'"
    )
}

/// Behind what was said of the complete ones: how many more there are, and how to see the longest of those.
fn also_cut(session: &Session<'_>, counts: Counts) -> String {
    counts
        .longest_cut
        .map_or(String::new(), |longest| format!(" ({})", cut_off(session, counts.cut, longest)))
}

/// What is said of those that have no rank.
pub fn cut_off(session: &Session<'_>, cut: usize, longest: Choice) -> String {
    let ticks = session.loaded.capture.config.time.is_none();
    let seen = if ticks { longest.duration().to_string() } else { duration(longest.duration()) };
    // Without a clock no time can be asked for.
    let how = if ticks { String::new() } else { format!(": --at {}", clock(longest.start)) };
    let thread = if ticks { String::new() } else { format!(" --thread {}", longest.tid) };
    match cut {
        1 => format!(
            "1 is cut off by a gap or an end of the trace and has no rank; it was seen for {seen}{how}{thread}"
        ),
        _ => format!(
            "{cut} are cut off by gaps or the ends of the trace and have no rank; the longest was seen for {seen}{how}{thread}"
        ),
    }
}

/// As `--at` reads it.
fn clock(at: Ns) -> String {
    format!("{}.{:09}", at.0 / 1_000_000_000, at.0 % 1_000_000_000)
}

/// So far before the moment decoding begins, in nanoseconds; what began earlier is looked for by a pass over all.
const STEPS: [u64; 2] = [1_000_000, 30_000_000];

/// What was going on at a moment.
pub enum Ongoing {
    /// Known by its ends.
    Known(Choice),
    /// Decoded already.
    Decoded(Decoded),
}

/// The invocation that was going on at a moment, on any thread.
pub fn at(session: &Session<'_>, source: &Source<'_>, moment: Ns) -> anyhow::Result<Ongoing> {
    if source.index.is_some()
        && let Some(choice) = in_index(session, source, moment)?
    {
        return Ok(Ongoing::Known(choice));
    }
    for from in STEPS.iter().filter_map(|step| moment.0.checked_sub(*step).map(Ns)) {
        let mut found = at_from(session, moment, Some(from));
        found.retain(|decoded| !is_inner(session, decoded));
        if let Some(found) = only(session, found, |found| found.stack)? {
            return Ok(Ongoing::Decoded(found));
        }
    }
    // To keep the functions asked for only is several times as fast as to keep everything.
    let mut found: Vec<Invocation> = Vec::new();
    let what = What::Functions(session.wanted.clone(), Recursion::Outermost);
    let Session { loaded, images, pool, .. } = *session;
    let Ok(_) = find_invocations(loaded, images, pool, source.progress, &what, |invocation| {
        if invocation.start <= moment && moment <= invocation.end {
            // At a moment one may end and the next begin: the last one it is, as for those decoded at once.
            found.retain(|other| other.stack != invocation.stack);
            found.push(invocation);
        }
        Ok::<(), Infallible>(())
    });
    let found = match only(session, found, |found| found.stack)? {
        Some(found) if found.is_complete() => Some(Ongoing::Known(choice(session, &found))),
        Some(_) => only(session, at_from(session, moment, None), |found| found.stack)?.map(Ongoing::Decoded),
        None => None,
    };
    let Some(found) = found else {
        bail!("no thread is in it at that time, as far as the trace tells; when it is: ptflow calls --csv");
    };
    Ok(found)
}

/// The complete invocation that an index has for a moment, where there is just one.
fn in_index(session: &Session<'_>, source: &Source<'_>, moment: Ns) -> anyhow::Result<Option<Choice>> {
    let mut found = Vec::new();
    source.each(session, |choice| {
        if choice.start <= moment && moment <= choice.end && found.len() < 2 {
            found.push(choice);
        }
    })?;
    Ok(if found.len() == 1 { found.pop() } else { None })
}

/// On each stack what was going on at a moment, if decoding from `from` on tells.
fn at_from(session: &Session<'_>, moment: Ns, from: Option<Ns>) -> Vec<Decoded> {
    let which = Which::At(moment);
    let on = |stack| {
        let window = session.window(stack, from, None);
        let Ok((detail, _)) = session.replay(stack, which, window, Nowhere);
        detail.map(|detail| Decoded { stack, detail, window, which })
    };
    (0..session.owners.len()).filter_map(on).collect()
}

/// The one that was found, if any was.
fn only<T>(
    session: &Session<'_>,
    mut found: Vec<T>,
    stack: impl Fn(&T) -> usize,
) -> anyhow::Result<Option<T>> {
    if found.len() > 1 {
        let tids: Vec<String> =
            found.iter().filter_map(|one| Some(session.owners.get(stack(one))?.tid.to_string())).collect();
        bail!("several threads are in it at that time; choose one: --thread {}", tids.join(" | "));
    }
    Ok(found.pop())
}

/// The function called itself: the outermost invocation began before.
fn is_inner(session: &Session<'_>, decoded: &Decoded) -> bool {
    let root = decoded.detail.nodes.first();
    let caller = root.and_then(|root| root.returns_to).and_then(|addr| {
        // The call stands before where it returns to.
        let range = session.images.get(addr.image?)?.function_range(Svma(addr.addr.checked_sub(1)?))?;
        Some(range.function)
    });
    caller.is_some_and(|caller| session.wanted.contains(&caller))
}

/// Takes frames that nobody wants.
pub struct Nowhere;

impl FrameSink for Nowhere {
    type Error = Infallible;

    fn open(&mut self, _: usize, _: Ns, _: FrameName, _: bool) -> Result<(), Infallible> {
        Ok(())
    }

    fn close(&mut self, _: usize, _: Ns) -> Result<(), Infallible> {
        Ok(())
    }

    fn gap(&mut self, _: usize, _: Ns, _: Ns, _: LossReason) -> Result<(), Infallible> {
        Ok(())
    }
}
