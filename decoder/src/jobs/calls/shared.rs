//! Units of CPUs, to the stacks of the threads that ran there.
//!
//! A thread's stretches on several CPUs come in any order of CPUs; they wait until no earlier one can come any more.

use super::{CallStacks, CallSteps, Cut, Fold, FrameSink, Step};
use crate::owners::ThreadId;
use crate::plan::Unit;
use crate::sink::Mark;
use crate::units::{Ns, Tsc};
use crate::walk::UnitResult;
use std::collections::BTreeMap;

/// What one thread did on one CPU without a break.
#[derive(Clone, Debug)]
struct Stretch {
    stack: usize,
    unit: Unit,
    /// The trace before it is missing.
    broken: bool,
    steps: Vec<TimedStep>,
    end: Ns,
    /// Instructions of the unit before this stretch, and in it.
    before: u64,
    executed: u64,
}

impl Stretch {
    fn new(stack: usize, unit: &Unit, before: u64) -> Self {
        Self { stack, unit: *unit, broken: false, steps: Vec::new(), end: Ns(0), before, executed: 0 }
    }
}

#[derive(Clone, Copy, Debug)]
struct TimedStep {
    at: Ns,
    step: Step,
    /// When a gap begins.
    gap_from: Option<Ns>,
    /// Instructions of the stretch before it.
    executed: u64,
}

/// What waits, and where each CPU stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Shared {
    /// By time, stream and order in the stream.
    waiting: BTreeMap<(Ns, usize, u64), Stretch>,
    sequence: u64,
    streams: BTreeMap<usize, Stream>,
}

#[derive(Clone, Debug, Default)]
struct Stream {
    /// The stack of the thread that ran last.
    last: Option<usize>,
    /// The latest time.
    now: Ns,
    instructions: u64,
}

impl<F: FrameSink> CallStacks<F> {
    /// Takes the next unit of a CPU's stream. `stack` gives the stack of a thread, `None` for one that is not wanted. No
    /// unit that comes later holds anything from before `horizon`.
    pub fn take_shared(
        &mut self,
        unit: &Unit,
        steps: &CallSteps,
        result: &UnitResult,
        stack: impl Fn(Option<ThreadId>) -> Option<usize>,
        horizon: Option<Tsc>,
    ) -> Result<(), F::Error> {
        let time = self.time;
        let stream = self.shared.streams.entry(unit.stream).or_default();
        let mut times = result.timeline.reader();
        let mut now = stream.now;
        let mut ns = |mark: Mark| {
            let at = match times.at(mark.ordinal) {
                Some(moment) => time.map_or(Ns(moment.tsc.0), |time| time.to_ns(moment.tsc)),
                None => Ns(stream.instructions + mark.instructions()),
            };
            now = now.max(at);
            now
        };
        let mut done = Vec::new();
        let mut current = stream.last.map(|stack| Stretch::new(stack, unit, 0));
        if let Some(current) = current.as_mut().filter(|_| unit.after_break) {
            current.broken = true;
            current.end = ns(Mark::default());
        }
        for (mark, step) in &steps.steps {
            if let Step::Owner(thread) = step {
                let next = stack(*thread);
                if next != current.as_ref().map(|current| current.stack) {
                    let before = mark.instructions();
                    if let Some(current) = &mut current {
                        current.executed = before.saturating_sub(current.before);
                    }
                    done.extend(current.take());
                    current = next.map(|stack| Stretch::new(stack, unit, before));
                }
                continue;
            }
            let gap_from = match step {
                Step::Gap { begin, .. } => Some(ns(Mark { ordinal: *begin, ..*mark })),
                _ => None,
            };
            let at = ns(*mark);
            if let Some(current) = &mut current {
                let executed = mark.instructions().saturating_sub(current.before);
                current.steps.push(TimedStep { at, step: *step, gap_from, executed });
                current.end = at;
            }
        }
        let end = ns(result.end);
        stream.last = current.as_ref().map(|current| current.stack);
        if let Some(mut current) = current {
            current.end = end;
            current.executed = result.end.instructions().saturating_sub(current.before);
            done.push(current);
        }
        stream.now = end;
        stream.instructions += result.end.instructions();
        for stretch in done {
            let start = stretch.steps.first().map_or(stretch.end, |step| step.at);
            self.shared.sequence += 1;
            self.shared.waiting.insert((start, unit.stream, self.shared.sequence), stretch);
        }
        let horizon = horizon.map(|tsc| time.map_or(Ns(tsc.0), |time| time.to_ns(tsc)));
        match horizon {
            Some(horizon) => self.hand_out(Some(horizon)),
            None => Ok(()),
        }
    }

    /// Hands out what began before a time, or everything.
    pub(super) fn hand_out(&mut self, before: Option<Ns>) -> Result<(), F::Error> {
        while let Some(first) = self.shared.waiting.first_entry()
            && before.is_none_or(|before| first.key().0 < before)
        {
            let Stretch { stack: index, unit, broken, steps, end, executed: in_all, .. } = first.remove();
            let Some(stack) = self.stacks.get_mut(index) else { continue };
            let mut fold = Fold { stack, sink: &mut self.sink, stream: index };
            let base = fold.stack.instructions;
            if broken {
                fold.cut_all(Cut::Gap)?;
            }
            fold.sink.unit(index, &unit);
            for TimedStep { at, step, gap_from, executed } in steps {
                fold.sink.executed(index, base + executed);
                if let Some(from) = gap_from {
                    fold.stack.now = from.max(fold.stack.now);
                    fold.cut_all(Cut::Gap)?;
                }
                let from = fold.stack.now;
                fold.stack.now = at.max(from);
                fold.step(step, gap_from.map(|_| from))?;
            }
            fold.stack.now = end.max(fold.stack.now);
            fold.stack.instructions = base.saturating_add(in_all);
            fold.sink.executed(index, fold.stack.instructions);
        }
        Ok(())
    }
}
