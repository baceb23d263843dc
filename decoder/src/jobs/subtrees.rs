//! Frames of some functions, and what they called: nothing else.

use super::calls::{Cut, FrameName, FrameSink};
use crate::image::FunctionId;
use crate::ledger::LossReason;
use crate::plan::Unit;
use crate::profile::CodeAddr;
use crate::units::Ns;
use std::sync::Arc;

/// Hands on the frames of these functions with all above them.
#[derive(Clone, Debug)]
pub struct Subtrees<S> {
    sink: S,
    wanted: Arc<[bool]>,
    stacks: Vec<Stack>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Stack {
    /// Open frames below any that is wanted.
    below: usize,
    /// Open frames that were handed on.
    shown: usize,
}

impl<S: FrameSink> Subtrees<S> {
    /// `wanted` has a flag for each function.
    pub fn new(wanted: Arc<[bool]>, sink: S) -> Self {
        Self { sink, wanted, stacks: Vec::new() }
    }

    /// Gives the sink back.
    pub fn into_inner(self) -> S {
        self.sink
    }

    fn stack(&mut self, stack: usize) -> &mut Stack {
        if stack >= self.stacks.len() {
            self.stacks.resize(stack + 1, Stack::default());
        }
        &mut self.stacks[stack]
    }

    /// The youngest frame ends. True if it is to be handed on.
    fn leave(&mut self, stack: usize) -> bool {
        let stack = self.stack(stack);
        if stack.shown == 0 {
            stack.below = stack.below.saturating_sub(1);
            return false;
        }
        stack.shown -= 1;
        true
    }
}

impl<S: FrameSink> FrameSink for Subtrees<S> {
    type Error = S::Error;
    const CYCLES: bool = S::CYCLES;
    const RETURNS: bool = S::RETURNS;

    fn open(&mut self, stack: usize, at: Ns, name: FrameName, inferred: bool) -> Result<(), S::Error> {
        let wanted = match name {
            FrameName::Function(FunctionId(id)) => self.wanted.get(id as usize) == Some(&true),
            _ => false,
        };
        let state = self.stack(stack);
        if state.shown == 0 && !wanted {
            state.below += 1;
            return Ok(());
        }
        state.shown += 1;
        self.sink.open(stack, at, name, inferred)
    }

    fn close(&mut self, stack: usize, at: Ns) -> Result<(), S::Error> {
        if self.leave(stack) { self.sink.close(stack, at) } else { Ok(()) }
    }

    fn cut(&mut self, stack: usize, at: Ns, why: Cut) -> Result<(), S::Error> {
        if self.leave(stack) { self.sink.cut(stack, at, why) } else { Ok(()) }
    }

    fn executed(&mut self, stack: usize, instructions: u64) {
        self.sink.executed(stack, instructions);
    }

    fn cycles(&mut self, stack: usize, cycles: u64) {
        self.sink.cycles(stack, cycles);
    }

    fn needs_cycles(&self, stack: usize, at: Ns) -> bool {
        self.sink.needs_cycles(stack, at)
    }

    fn uncounted(&mut self, stack: usize) {
        self.sink.uncounted(stack);
    }

    fn ratio(&mut self, stack: usize, at: Ns, ratio: u8) -> Result<(), S::Error> {
        self.sink.ratio(stack, at, ratio)
    }

    fn unit(&mut self, stack: usize, unit: &Unit) {
        self.sink.unit(stack, unit);
    }

    fn returns_to(&mut self, stack: usize, to: CodeAddr) {
        self.sink.returns_to(stack, to);
    }

    fn value(&mut self, stack: usize, at: Ns, value: u64) -> Result<(), S::Error> {
        self.sink.value(stack, at, value)
    }

    fn gap(&mut self, stack: usize, from: Ns, to: Ns, reason: LossReason) -> Result<(), S::Error> {
        self.sink.gap(stack, from, to, reason)
    }
}
