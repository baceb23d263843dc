//! A unit's steps, folded into its stream's stack.
//!
//! Nearly all calls return in the unit that they were made in, and in order. Then the return's number is the call's, and no
//! address is looked up: where the frames that the unit at hand called return to is a number of its steps until somebody must
//! know more. Half of all calls call nothing themselves; those are told in one.

use super::steps::{CallSteps, Numbered, Step};
use super::{CallStacks, Cut, Fold, FrameSink, Leaf, MOST_FRAMES, name, name_of_entered};
use crate::clock::TimeReader;
use crate::config::TscConversion;
use crate::plan::Unit;
use crate::sink::Mark;
use crate::units::Ns;
use crate::walk::UnitResult;

/// Numbers of the youngest frames' return addresses, the oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Young(Vec<u32>);

impl Young {
    /// Tells the frames where they return to.
    fn settle<F>(&mut self, fold: &mut Fold<'_, F>, steps: &CallSteps) {
        let frames = &mut fold.stack.frames;
        let first = frames.len().saturating_sub(self.0.len());
        for (frame, number) in frames[first..].iter_mut().zip(self.0.drain(..)) {
            frame.returns_to = Some(steps.site(number).addr);
        }
    }
}

/// When a unit's steps were, and what was executed up to them.
struct Passing<'t> {
    time: Option<TscConversion>,
    times: TimeReader<'t>,
    cycles: TimeReader<'t>,
    /// Before the unit.
    instructions_before: u64,
    cycles_before: u64,
}

impl Passing<'_> {
    #[inline]
    fn ns(&mut self, mark: Mark) -> Ns {
        match self.times.at(mark.ordinal) {
            Some(moment) => self.time.map_or(Ns(moment.tsc.0), |time| time.to_ns(moment.tsc)),
            None => Ns(self.instructions(mark)),
        }
    }

    #[inline]
    fn instructions(&self, mark: Mark) -> u64 {
        self.instructions_before + mark.instructions()
    }

    fn cycles(&mut self, mark: Mark) -> Option<u64> {
        Some(self.cycles_before.saturating_add(self.cycles.cycles_at(mark.ordinal)?))
    }

    /// Time goes on to a mark.
    #[inline]
    fn pass<F: FrameSink>(&mut self, fold: &mut Fold<'_, F>, mark: Mark) {
        fold.stack.now = self.ns(mark).max(fold.stack.now);
        fold.sink.executed(fold.stream, self.instructions(mark));
        if F::CYCLES
            && fold.sink.needs_cycles(fold.stream, fold.stack.now)
            && let Some(cycles) = self.cycles(mark)
        {
            fold.sink.cycles(fold.stream, cycles);
        }
    }
}

impl<F: FrameSink> CallStacks<F> {
    /// Takes the next unit of its stream.
    pub fn take(&mut self, unit: &Unit, steps: &CallSteps, result: &UnitResult) -> Result<(), F::Error> {
        let mut fold = Fold {
            stack: &mut self.stacks[unit.stream],
            sink: &mut self.sink,
            stream: unit.stream,
            inlined: self.inlined.as_deref(),
        };
        let mut passing = Passing {
            time: self.time,
            times: result.timeline.reader(),
            cycles: result.timeline.reader(),
            instructions_before: fold.stack.instructions,
            cycles_before: fold.stack.cycles,
        };
        if unit.after_break && !fold.stack.frames.is_empty() {
            fold.cut_all(Cut::Gap)?;
        }
        fold.sink.unit(unit.stream, unit);
        let mut ratios = result.timeline.ratios();
        let mut numbered = steps.numbered();
        while let Some((mark, step)) = numbered.next() {
            let next_ratio = ratios.first().map_or(u64::MAX, |ratio| ratio.0);
            if next_ratio >= mark.ordinal && !matches!(step, Numbered::Rare(_)) {
                passing.pass(&mut fold, mark);
                match step {
                    Numbered::Call { to, returns_to } if fold.stack.frames.len() < MOST_FRAMES => {
                        let is_called = !fold.stack.frames.is_empty();
                        if is_called && let Some(behind) = numbered.next_return(returns_to, next_ratio) {
                            fold.leaf(steps, to, returns_to, &mut passing, behind)?;
                            continue;
                        }
                        let told = F::RETURNS.then(|| steps.site(returns_to).addr);
                        fold.open(steps.site(to), told, false)?;
                        self.young.0.push(returns_to);
                        continue;
                    }
                    Numbered::Return { to } if self.young.0.last() == Some(&to) => {
                        self.young.0.pop();
                        fold.pop()?;
                        if fold.stack.frames.is_empty() {
                            fold.settle(steps.site(to))?;
                        }
                        continue;
                    }
                    Numbered::Jump { to, indirect } => {
                        let to = steps.site(to);
                        let top = fold.stack.frames.last();
                        let is_known = if to.function.entry || to.function.stub {
                            // The new frame returns where the old one does.
                            !self.young.0.is_empty()
                        } else {
                            !indirect || top.is_none_or(|top| top.name == name(to))
                        };
                        if is_known {
                            fold.jump(to, indirect)?;
                            continue;
                        }
                    }
                    Numbered::Inlined(to) => {
                        fold.enter_inlined(to)?;
                        continue;
                    }
                    _ => {}
                }
                self.young.settle(&mut fold, steps);
                if let Some(step) = steps.step(step) {
                    fold.step(step, None)?;
                }
                continue;
            }
            self.young.settle(&mut fold, steps);
            let Some(step) = steps.step(step) else { continue };
            let reached = if let Step::Gap { begin, .. } = step { begin.ordinal } else { mark.ordinal };
            while let Some((&(ordinal, ratio), behind)) = ratios.split_first()
                && ordinal < reached
            {
                ratios = behind;
                fold.stack.now = passing.ns(Mark { ordinal, ..mark }).max(fold.stack.now);
                fold.step(Step::Ratio(ratio), None)?;
            }
            let mut gap_from = None;
            if let Step::Gap { begin, .. } = step {
                // Frames were open up to there; what was executed is known up to the mark.
                let begin = passing.ns(begin).max(fold.stack.now);
                fold.sink.executed(unit.stream, passing.instructions(mark));
                if F::CYCLES
                    && let Some(cycles) = passing.cycles(mark)
                {
                    fold.sink.cycles(unit.stream, cycles);
                }
                fold.stack.now = begin;
                fold.cut_all(Cut::Gap)?;
                gap_from = Some(begin);
            }
            passing.pass(&mut fold, mark);
            fold.step(step, gap_from)?;
        }
        self.young.settle(&mut fold, steps);
        for &(ordinal, ratio) in ratios {
            fold.stack.now = passing.ns(Mark { ordinal, ..result.end }).max(fold.stack.now);
            fold.step(Step::Ratio(ratio), None)?;
        }
        fold.stack.now = passing.ns(result.end).max(fold.stack.now);
        fold.stack.instructions = passing.instructions(result.end);
        fold.sink.executed(unit.stream, fold.stack.instructions);
        if let Some(cycles) = result.timeline.cycles() {
            fold.stack.cycles = passing.cycles_before.saturating_add(cycles);
            if F::CYCLES {
                fold.sink.cycles(unit.stream, fold.stack.cycles);
            }
        }
        Ok(())
    }
}

impl<F: FrameSink> Fold<'_, F> {
    /// A call that calls nothing: it returns at `behind`.
    #[inline]
    fn leaf(
        &mut self,
        steps: &CallSteps,
        to: u32,
        returns_to: u32,
        passing: &mut Passing<'_>,
        behind: Mark,
    ) -> Result<(), F::Error> {
        let at = steps.site(to);
        if at.function.stub {
            passing.pass(self, behind);
            return Ok(());
        }
        if F::RETURNS {
            self.sink.returns_to(self.stream, steps.site(returns_to).addr);
        }
        let from = self.stack.now;
        let to = passing.ns(behind).max(from);
        self.stack.now = to;
        let executed = passing.instructions(behind);
        let needs_cycles = F::CYCLES && self.sink.needs_cycles(self.stream, to);
        let cycles = if needs_cycles { passing.cycles(behind) } else { None };
        self.sink.leaf(self.stream, Leaf { from, to, name: name_of_entered(at), executed, cycles })
    }
}
