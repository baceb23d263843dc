//! Invocations of chosen functions: when each began, how long it took, how many instructions it ran.
//!
//! Built on the frames of [`CallStacks`](super::calls::CallStacks), whose rules say when a function is entered and left.

use super::calls::{Cut, FrameName, FrameSink};
use crate::image::FunctionId;
use crate::ledger::LossReason;
use crate::plan::Unit;
use crate::reader::Position;
use crate::units::Ns;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};

/// How an invocation came into view.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Begin {
    /// Control entered the function.
    Seen,
    /// Control was in it when the thread's trace began.
    BeforeTrace,
    /// Control was in it behind a gap.
    InGap,
}

/// How it went out of view.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Its frame was left.
    Seen,
    /// It was going on when the thread's trace ended.
    AfterTrace,
    /// It was going on when flow was lost.
    InGap,
}

/// One invocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Invocation {
    /// The stack it was on.
    pub stack: usize,
    /// The function.
    pub function: FunctionId,
    /// When it began, or was first seen.
    pub start: Ns,
    /// When it ended, or was last seen.
    pub end: Ns,
    /// Instructions in between, those of what it called included.
    pub instructions: u64,
    /// Core cycles in between while tracing was on; `None` where no CYC packets tell them.
    pub cycles: Option<u64>,
    /// Time in between in which nothing was traced: system calls, other threads' turns.
    pub untraced: Ns,
    /// How it came into view.
    pub began: Begin,
    /// How it went out of view.
    pub ended: End,
    /// The unit of work in which it began, as its stream and where that unit starts.
    pub unit: Option<(usize, Position)>,
    /// The value that began it, where a PTWRITE did.
    pub value: Option<u64>,
}

impl Invocation {
    /// Beginning and end were seen.
    pub fn is_complete(&self) -> bool {
        self.began == Begin::Seen && self.ended == End::Seen
    }

    /// From beginning to end.
    pub fn duration(&self) -> Ns {
        Ns(self.end.0.saturating_sub(self.start.0))
    }
}

/// Which invocations count where a function calls itself, directly or through others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recursion {
    /// The outermost.
    Outermost,
    /// Each one.
    All,
}

/// Finds the invocations among the frames, and hands each on when it ends: those of one stack in order of their ends.
pub struct Invocations<T> {
    wanted: Vec<bool>,
    recursion: Recursion,
    stacks: Vec<Stack>,
    take: T,
}

#[derive(Clone, Debug, Default)]
struct Stack {
    /// All open frames; `None` for other functions'.
    frames: Vec<Option<Open>>,
    /// Open frames by function.
    open: HashMap<FunctionId, usize>,
    executed: u64,
    cycles: Option<u64>,
    untraced: Untraced,
    /// Flow was lost before now.
    lost: bool,
    unit: Option<(usize, Position)>,
}

/// Sums the time without trace. Its frames are always the youngest.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Untraced {
    pub total: u64,
    since: Option<Ns>,
}

impl Untraced {
    /// A frame opens.
    pub fn begin(&mut self, at: Ns, name: FrameName) {
        if matches!(name, FrameName::Syscall | FrameName::Untraced) {
            self.since = Some(at);
        }
    }

    /// The youngest frame ends.
    pub fn end(&mut self, at: Ns) {
        if let Some(since) = self.since.take() {
            self.total = self.total.saturating_add(at.0.saturating_sub(since.0));
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Open {
    function: FunctionId,
    start: Ns,
    executed: u64,
    cycles: Option<u64>,
    untraced: u64,
    began: Begin,
    counts: bool,
    unit: Option<(usize, Position)>,
}

impl<T, E> Invocations<T>
where
    T: FnMut(Invocation) -> Result<(), E>,
{
    /// Of these functions, on so many stacks.
    pub fn new(wanted: &[FunctionId], recursion: Recursion, stacks: usize, take: T) -> Self {
        Self { wanted: flags(wanted), recursion, stacks: vec![Stack::default(); stacks], take }
    }

    fn end(&mut self, index: usize, at: Ns, ended: End) -> Result<(), E> {
        let Some(stack) = self.stacks.get_mut(index) else { return Ok(()) };
        stack.untraced.end(at);
        let Some(frame) = stack.frames.pop().flatten() else { return Ok(()) };
        if let Some(open) = stack.open.get_mut(&frame.function) {
            *open = open.saturating_sub(1);
        }
        if !frame.counts {
            return Ok(());
        }
        (self.take)(Invocation {
            stack: index,
            function: frame.function,
            start: frame.start,
            end: at,
            instructions: stack.executed.saturating_sub(frame.executed),
            cycles: passed(frame.cycles, stack.cycles),
            untraced: Ns(stack.untraced.total.saturating_sub(frame.untraced)),
            began: frame.began,
            ended,
            unit: frame.unit,
            value: None,
        })
    }
}

impl<T, E> FrameSink for Invocations<T>
where
    T: FnMut(Invocation) -> Result<(), E>,
{
    type Error = E;
    const CYCLES: bool = true;

    fn open(&mut self, index: usize, at: Ns, name: FrameName, inferred: bool) -> Result<(), E> {
        let Some(stack) = self.stacks.get_mut(index) else { return Ok(()) };
        stack.untraced.begin(at, name);
        let frame = match name {
            FrameName::Function(function) if self.wanted.get(function.0 as usize) == Some(&true) => {
                let open = stack.open.entry(function).or_default();
                *open += 1;
                let counts = *open == 1 || self.recursion == Recursion::All;
                let began = match (inferred, stack.lost) {
                    (false, _) => Begin::Seen,
                    (true, false) => Begin::BeforeTrace,
                    (true, true) => Begin::InGap,
                };
                let Stack { executed, cycles, unit, untraced: Untraced { total: untraced, .. }, .. } = *stack;
                Some(Open { function, start: at, executed, cycles, untraced, began, counts, unit })
            }
            _ => None,
        };
        stack.frames.push(frame);
        Ok(())
    }

    fn close(&mut self, index: usize, at: Ns) -> Result<(), E> {
        self.end(index, at, End::Seen)
    }

    fn cut(&mut self, index: usize, at: Ns, why: Cut) -> Result<(), E> {
        if let (Cut::Gap, Some(stack)) = (why, self.stacks.get_mut(index)) {
            stack.lost = true;
        }
        self.end(index, at, if why == Cut::Gap { End::InGap } else { End::AfterTrace })
    }

    fn executed(&mut self, index: usize, instructions: u64) {
        if let Some(stack) = self.stacks.get_mut(index) {
            stack.executed = instructions;
        }
    }

    fn cycles(&mut self, index: usize, cycles: u64) {
        if let Some(stack) = self.stacks.get_mut(index) {
            stack.cycles = Some(cycles);
        }
    }

    fn unit(&mut self, index: usize, unit: &Unit) {
        if let Some(stack) = self.stacks.get_mut(index) {
            stack.unit = Some((unit.stream, unit.from));
        }
    }

    fn gap(&mut self, index: usize, _: Ns, _: Ns, _: LossReason) -> Result<(), E> {
        if let Some(stack) = self.stacks.get_mut(index) {
            stack.lost = true;
        }
        Ok(())
    }
}

/// Cycles from one moment to another, where both are told.
pub(super) fn passed(from: Option<u64>, to: Option<u64>) -> Option<u64> {
    Some(to?.saturating_sub(from?))
}

/// A flag for each function up to the last one that is set.
pub fn flags(functions: &[FunctionId]) -> Vec<bool> {
    let ids = functions.iter().map(|id| id.0 as usize);
    let mut flags = vec![false; ids.clone().max().map_or(0, |last| last + 1)];
    for id in ids {
        flags[id] = true;
    }
    flags
}

/// How often each duration came: every rank is exact. Its size is that of the durations that differ. A thread's outermost
/// invocations of a function do not overlap, so in a trace of T ns no more than √(2T) differ: 141,421 in 10 seconds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Durations {
    counts: BTreeMap<Ns, u64>,
    total: u64,
}

impl Durations {
    /// One more.
    pub fn add(&mut self, duration: Ns) {
        *self.counts.entry(duration).or_default() += 1;
        self.total += 1;
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The duration at rank ⌈n × p / 1000⌉, the shortest where that is 0; `None` where there is none at all.
    pub fn permille(&self, p: u32) -> Option<Ns> {
        // u128: no product of a count and a permille overflows it.
        let rank = (u128::from(self.total) * u128::from(p)).div_ceil(1000).clamp(1, u128::MAX);
        let mut passed = 0;
        self.counts.iter().find_map(|(duration, count)| {
            passed += u128::from(*count);
            (passed >= rank).then_some(*duration)
        })
    }

    /// How many are in `from..to`.
    pub fn between(&self, from: Ns, to: Ns) -> u64 {
        if from >= to {
            return 0;
        }
        self.counts.range(from..to).map(|(_, count)| count).sum()
    }
}

/// The longest complete invocations, so many at most.
#[derive(Debug)]
pub struct Slowest {
    limit: usize,
    /// The least of them on top.
    kept: BinaryHeap<Reverse<Ranked>>,
}

/// Ordered by duration; of equal ones the earlier is slower, so that an order of arrival never matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ranked(Invocation);

impl Ranked {
    fn key(&self) -> impl Ord {
        let Invocation { stack, function, start, instructions, .. } = self.0;
        (self.0.duration(), Reverse((start, stack, function)), instructions)
    }
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Slowest {
    /// Keeps `limit`.
    pub fn new(limit: usize) -> Self {
        Self { limit, kept: BinaryHeap::new() }
    }

    /// One more.
    pub fn add(&mut self, invocation: Invocation) {
        self.kept.push(Reverse(Ranked(invocation)));
        if self.kept.len() > self.limit {
            self.kept.pop();
        }
    }

    /// The slowest first.
    pub fn into_sorted(self) -> Vec<Invocation> {
        self.kept.into_sorted_vec().into_iter().map(|Reverse(Ranked(invocation))| invocation).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const F: FrameName = FrameName::Function(FunctionId(1));
    const G: FrameName = FrameName::Function(FunctionId(2));

    /// What a script of frames gives: `open` and `close` at a time with so many instructions before.
    fn run(recursion: Recursion, script: impl Fn(&mut dyn FnMut(Do))) -> Vec<Invocation> {
        let mut found = Vec::new();
        let mut job = Invocations::new(&[FunctionId(1)], recursion, 1, |invocation| {
            found.push(invocation);
            Ok::<(), ()>(())
        });
        script(&mut |step| {
            match step {
                Do::Open(at, executed, name, inferred) => {
                    job.executed(0, executed);
                    job.open(0, Ns(at), name, inferred)
                }
                Do::Close(at, executed) => {
                    job.executed(0, executed);
                    job.close(0, Ns(at))
                }
                Do::Cut(at, why) => job.cut(0, Ns(at), why),
                Do::Gap => job.gap(0, Ns(0), Ns(0), LossReason::Overflow),
            }
            .expect("nothing fails");
        });
        found
    }

    enum Do {
        Open(u64, u64, FrameName, bool),
        Close(u64, u64),
        Cut(u64, Cut),
        Gap,
    }

    #[test]
    fn of_a_recursion_the_outermost_counts() {
        let script = |step: &mut dyn FnMut(Do)| {
            step(Do::Open(10, 100, F, false));
            step(Do::Open(20, 200, G, false));
            step(Do::Open(30, 300, F, false));
            step(Do::Close(40, 400));
            step(Do::Close(50, 500));
            step(Do::Close(60, 600));
            step(Do::Open(70, 700, F, false));
            step(Do::Close(75, 710));
        };
        let brief = |found: Vec<Invocation>| -> Vec<(u64, u64, u64)> {
            found.iter().map(|i| (i.start.0, i.duration().0, i.instructions)).collect()
        };
        assert_eq!(brief(run(Recursion::Outermost, script)), [(10, 50, 500), (70, 5, 10)]);
        assert_eq!(brief(run(Recursion::All, script)), [(30, 10, 100), (10, 50, 500), (70, 5, 10)]);
    }

    #[test]
    fn cut_off_is_not_complete() {
        let found = run(Recursion::Outermost, |step| {
            step(Do::Open(0, 0, F, true));
            step(Do::Close(5, 5));
            step(Do::Open(6, 6, F, false));
            step(Do::Cut(7, Cut::Gap));
            step(Do::Gap);
            step(Do::Open(8, 8, F, true));
            step(Do::Close(9, 9));
            step(Do::Open(10, 10, F, false));
            step(Do::Cut(11, Cut::End));
        });
        let ends: Vec<_> = found.iter().map(|i| (i.began, i.ended)).collect();
        let expected = [
            (Begin::BeforeTrace, End::Seen),
            (Begin::Seen, End::InGap),
            (Begin::InGap, End::Seen),
            (Begin::Seen, End::AfterTrace),
        ];
        assert_eq!(ends, expected);
        assert!(found.iter().all(|invocation| !invocation.is_complete()));
    }

    #[test]
    fn time_without_trace_is_told() {
        let found = run(Recursion::Outermost, |step| {
            step(Do::Open(0, 0, FrameName::Untraced, false));
            step(Do::Close(7, 0));
            step(Do::Open(10, 0, F, false));
            step(Do::Open(20, 0, FrameName::Syscall, false));
            step(Do::Close(26, 0));
            step(Do::Open(30, 0, G, false));
            step(Do::Open(31, 0, FrameName::Untraced, false));
            step(Do::Close(35, 0));
            step(Do::Close(40, 0));
            step(Do::Close(50, 0));
        });
        assert_eq!(found.iter().map(|i| i.untraced).collect::<Vec<_>>(), [Ns(10)]);
    }

    #[test]
    fn ranks_are_the_nearest() {
        let mut durations = Durations::default();
        assert_eq!(durations.permille(500), None);
        for duration in (1..=100).rev() {
            durations.add(Ns(duration));
        }
        let found = [0, 500, 501, 900, 990, 999, 1000].map(|p| durations.permille(p).map_or(0, |ns| ns.0));
        assert_eq!(found, [1, 50, 51, 90, 99, 100, 100]);
        assert_eq!(durations.between(Ns(10), Ns(20)), 10);
    }

    #[test]
    fn the_slowest_do_not_depend_on_the_order_of_arrival() {
        let new = |start, duration| Invocation {
            stack: 0,
            function: FunctionId(1),
            start: Ns(start),
            end: Ns(start + duration),
            instructions: 0,
            cycles: None,
            untraced: Ns(0),
            began: Begin::Seen,
            ended: End::Seen,
            unit: None,
            value: None,
        };
        let all = [new(10, 5), new(20, 9), new(30, 5), new(40, 1)];
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
            let mut slowest = Slowest::new(2);
            order.iter().for_each(|index| slowest.add(all[*index]));
            assert_eq!(slowest.into_sorted(), [all[1], all[0]]);
        }
    }
}
