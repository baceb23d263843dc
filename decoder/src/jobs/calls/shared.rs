//! Units of CPUs, to the stacks of the threads that ran there.
//!
//! A thread's stretches on several CPUs come in any order of CPUs; they wait until no earlier one can come any more.

use super::{CallStacks, CallSteps, Cut, Fold, FrameSink, Step};
use crate::owners::ThreadId;
use crate::plan::Unit;
use crate::run::Reach;
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
    /// Core cycles, likewise; none where none are told.
    cycles_before: Option<u64>,
    cycles: Option<u64>,
}

impl Stretch {
    fn new(stack: usize, unit: &Unit, before: u64, cycles_before: Option<u64>) -> Self {
        Self {
            stack,
            unit: *unit,
            broken: false,
            steps: Vec::new(),
            end: Ns(0),
            before,
            executed: 0,
            cycles_before,
            cycles: None,
        }
    }

    /// The step is the last one so far.
    fn push(&mut self, at: Ns, step: Step, gap_from: Option<Ns>, instructions: u64, cycles: Option<u64>) {
        let executed = instructions.saturating_sub(self.before);
        let cycles = self.cycles_since(cycles);
        self.steps.push(TimedStep { at, step, gap_from, executed, cycles });
        self.end = at;
    }

    /// It is over.
    fn end(&mut self, instructions: u64, cycles: Option<u64>) {
        self.executed = instructions.saturating_sub(self.before);
        self.cycles = self.cycles_since(cycles);
    }

    fn cycles_since(&self, cycles: Option<u64>) -> Option<u64> {
        Some(cycles?.saturating_sub(self.cycles_before?))
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
    /// Core cycles of the stretch before it, where they are told.
    cycles: Option<u64>,
}

/// What waits, and where each CPU stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Shared {
    /// What is in none of these stretches is not there for every CPU. Empty: all is.
    complete: Vec<(Ns, Ns)>,
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
    /// The core:bus ratio that was told last.
    ratio: Option<u8>,
}

impl Shared {
    /// The stretch in which all is there, by its index.
    fn complete_at(&self, at: Ns) -> Option<usize> {
        let index = self.complete.partition_point(|(_, to)| *to < at);
        self.complete.get(index).filter(|(from, _)| *from <= at).map(|_| index)
    }
}

impl<F: FrameSink> CallStacks<F> {
    /// Takes the next unit of a CPU's stream. `stack` gives the stack of a thread, `None` for one that is not wanted.
    pub fn take_shared(
        &mut self,
        unit: &Unit,
        steps: &CallSteps,
        result: &UnitResult,
        stack: impl Fn(Option<ThreadId>) -> Option<usize>,
        reach: Reach<'_>,
    ) -> Result<(), F::Error> {
        let time = self.time;
        let to_ns = |tsc: Tsc| time.map_or(Ns(tsc.0), |time| time.to_ns(tsc));
        if self.shared.complete.len() != reach.complete.len() {
            let stretch = |(from, to): &(Tsc, Tsc)| {
                // An end that is none: times beyond what the counter's conversion can tell would be early ones.
                (to_ns(*from), if to.0 == u64::MAX { Ns(u64::MAX) } else { to_ns(*to) })
            };
            self.shared.complete = reach.complete.iter().map(stretch).collect();
        }
        let stream = self.shared.streams.entry(unit.stream).or_default();
        let mut times = result.timeline.reader();
        let mut now = stream.now;
        let mut ns = |mark: Mark| {
            let at = match times.at(mark.ordinal) {
                Some(moment) => to_ns(moment.tsc),
                None => Ns(stream.instructions + mark.instructions()),
            };
            now = now.max(at);
            now
        };
        let mut cycles = result.timeline.reader();
        let mut cycles_at = |mark: Mark| if F::CYCLES { cycles.cycles_at(mark.ordinal) } else { None };
        let mut ratios = result.timeline.ratios().iter().copied().peekable();
        let mut ratio = stream.ratio;
        let mut done = Vec::new();
        let start = Mark::default();
        let mut current = stream.last.map(|stack| Stretch::new(stack, unit, 0, cycles_at(start)));
        if let Some(current) = current.as_mut().filter(|_| unit.after_break) {
            current.broken = true;
            current.end = ns(start);
        }
        for (mark, step) in steps.iter() {
            let reached = if let Step::Gap { begin, .. } = step { begin.ordinal } else { mark.ordinal };
            while let Some((ordinal, told)) = ratios.next_if(|(ordinal, _)| *ordinal < reached) {
                ratio = Some(told);
                if let Some(current) = &mut current {
                    let mark = Mark { ordinal, ..mark };
                    current.push(ns(mark), Step::Ratio(told), None, mark.instructions(), cycles_at(mark));
                }
            }
            if let Step::Owner(thread) = step {
                let next = stack(thread);
                if next != current.as_ref().map(|current| current.stack) {
                    let (before, cycles_before) = (mark.instructions(), cycles_at(mark));
                    if let Some(current) = &mut current {
                        current.end(before, cycles_before);
                    }
                    done.extend(current.take());
                    current = next.map(|stack| Stretch::new(stack, unit, before, cycles_before));
                    if let (Some(current), Some(ratio)) = (&mut current, ratio) {
                        current.push(ns(mark), Step::Ratio(ratio), None, before, cycles_before);
                    }
                }
                continue;
            }
            let gap_from = match step {
                Step::Gap { begin, .. } => Some(ns(begin)),
                _ => None,
            };
            let at = ns(mark);
            if let Some(current) = &mut current {
                current.push(at, step, gap_from, mark.instructions(), cycles_at(mark));
            }
        }
        stream.ratio = result.timeline.ratios().last().map(|last| last.1).or(stream.ratio);
        let end = ns(result.end);
        stream.last = current.as_ref().map(|current| current.stack);
        if let Some(mut current) = current {
            current.end = end;
            current.end(result.end.instructions(), result.timeline.cycles().filter(|_| F::CYCLES));
            done.push(current);
        }
        stream.now = end;
        stream.instructions += result.end.instructions();
        for stretch in done {
            let first = stretch.steps.iter().find(|step| !matches!(step.step, Step::Ratio(_)));
            let start = first.map_or(stretch.end, |step| step.at);
            self.shared.sequence += 1;
            self.shared.waiting.insert((start, unit.stream, self.shared.sequence), stretch);
        }
        match reach.horizon.map(to_ns) {
            Some(horizon) => self.hand_out(Some(horizon)),
            None => Ok(()),
        }
    }

    /// Hands out what began before a time, or everything.
    pub(super) fn hand_out(&mut self, before: Option<Ns>) -> Result<(), F::Error> {
        while let Some(first) = self.shared.waiting.first_entry()
            && before.is_none_or(|before| first.key().0 < before)
        {
            let Stretch {
                stack: index,
                unit,
                broken,
                steps,
                end,
                executed: in_all,
                cycles: cycles_in_all,
                ..
            } = first.remove();
            let Some(stack) = self.stacks.get_mut(index) else { continue };
            let inlined = self.inlined.as_deref();
            let mut fold = Fold { stack, sink: &mut self.sink, stream: index, inlined };
            let (base, cycles_before) = (fold.stack.instructions, fold.stack.cycles);
            if broken {
                fold.cut_all(Cut::Gap)?;
            }
            fold.sink.unit(index, &unit);
            for TimedStep { at, step, gap_from, executed, cycles } in steps {
                if !self.shared.complete.is_empty() {
                    let Some(stretch) = self.shared.complete_at(at) else { continue };
                    // What happened in between, nobody knows.
                    if fold.stack.complete.replace(stretch).is_some_and(|before| before != stretch) {
                        fold.cut_all(Cut::Gap)?;
                    }
                }
                fold.sink.executed(index, base + executed);
                if let Some(cycles) = cycles {
                    fold.sink.cycles(index, cycles_before.saturating_add(cycles));
                }
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
            if let Some(cycles) = cycles_in_all {
                fold.stack.cycles = cycles_before.saturating_add(cycles);
                fold.sink.cycles(index, fold.stack.cycles);
            }
        }
        Ok(())
    }
}
