//! Frames that the unit at hand called: where they return to is a number of its steps until somebody must know more.
//!
//! Nearly all calls return in the unit that they were made in, and in order. Then the return's number is the call's, and
//! no address is looked up.

use super::steps::{CallSteps, Numbered};
use super::{Fold, FrameSink, MOST_FRAMES, Stack, name};

/// Numbers of the youngest frames' return addresses, the oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Young(Vec<u32>);

impl Young {
    /// Whether numbers tell all that a step does.
    #[inline]
    pub fn suffice(&self, stack: &Stack, steps: &CallSteps, step: Numbered) -> bool {
        match step {
            Numbered::Call { .. } => stack.frames.len() < MOST_FRAMES,
            Numbered::Return { to } => self.0.last() == Some(&to),
            Numbered::Jump { to, indirect } => {
                let to = steps.site(to);
                if to.function.entry || to.function.stub {
                    !self.0.is_empty()
                } else {
                    !indirect || stack.frames.last().is_none_or(|top| top.name == name(to))
                }
            }
            Numbered::Inlined(_) => true,
            Numbered::Rare(_) | Numbered::Rounds { .. } => false,
        }
    }

    /// Takes such a step.
    #[inline]
    pub fn take<F: FrameSink>(
        &mut self,
        fold: &mut Fold<'_, F>,
        steps: &CallSteps,
        step: Numbered,
    ) -> Result<(), F::Error> {
        match step {
            Numbered::Call { to, returns_to } => {
                let told = F::RETURNS.then(|| steps.site(returns_to).addr);
                fold.open(steps.site(to), told, false)?;
                self.0.push(returns_to);
            }
            Numbered::Return { to } => {
                self.0.pop();
                fold.pop()?;
                if fold.stack.frames.is_empty() {
                    fold.settle(steps.site(to))?;
                }
            }
            // The new frame returns where the old one does.
            Numbered::Jump { to, indirect } => fold.jump(steps.site(to), indirect)?,
            Numbered::Inlined(to) => fold.enter_inlined(to)?,
            Numbered::Rare(_) | Numbered::Rounds { .. } => {}
        }
        Ok(())
    }

    /// Tells the frames where they return to.
    pub fn settle<F>(&mut self, fold: &mut Fold<'_, F>, steps: &CallSteps) {
        let frames = &mut fold.stack.frames;
        let first = frames.len().saturating_sub(self.0.len());
        for (frame, number) in frames[first..].iter_mut().zip(self.0.drain(..)) {
            frame.returns_to = Some(steps.site(number).addr);
        }
    }
}
