//! Stacks that a thread has left for another and may come back to: fibers, coroutines, goroutines.
//!
//! They are told by the mismatch alone: control returns to a frame that is not the youngest, and between the two lies one
//! that was entered by a return ([`Kind::Base`]). What is above that one was not left for good.

use super::{Frame, Kind};
use crate::profile::CodeAddr;
use std::collections::VecDeque;

/// So many frames are put aside; the longest ago is forgotten first. A fiber that never ends is no reason to grow.
const MAX_FRAMES: usize = 1 << 16;

#[derive(Clone, Debug, Default)]
pub(super) struct Aside {
    /// The longest ago first.
    stacks: VecDeque<Waiting>,
    frames: usize,
}

#[derive(Clone, Debug)]
struct Waiting {
    returns_to: CodeAddr,
    frames: Vec<Frame>,
}

impl Aside {
    /// Frames that are about to end though control did not return from the youngest.
    pub fn put(&mut self, frames: &[Frame]) {
        // Each stack waits for where the one on top of it would return to: that took the place of the function that switched.
        let mut end = frames.len();
        let mut on_top: Option<Option<CodeAddr>> = None;
        for base in (0..frames.len()).rev().filter(|index| frames[*index].kind == Kind::Base) {
            let stack = &frames[base..end];
            let (returns_to, stack) = match (on_top, stack.split_last()) {
                (Some(returns_to), _) => (returns_to, stack),
                (None, Some((youngest, stack))) => (youngest.returns_to, stack),
                (None, None) => (None, stack),
            };
            if let Some(returns_to) = returns_to
                && !stack.is_empty()
            {
                self.frames += stack.len();
                self.stacks.push_back(Waiting { returns_to, frames: stack.to_vec() });
            }
            on_top = Some(frames[base].returns_to);
            end = base;
        }
        while self.frames > MAX_FRAMES
            && let Some(oldest) = self.stacks.pop_front()
        {
            self.frames -= oldest.frames.len();
        }
    }

    /// The stack that has waited longest for control to return to that address. Several may, and nothing tells which it is:
    /// most schedulers take turns.
    pub fn take(&mut self, to: CodeAddr) -> Option<Vec<Frame>> {
        let index = self.stacks.iter().position(|waiting| waiting.returns_to == to)?;
        let found = self.stacks.remove(index)?;
        self.frames -= found.frames.len();
        Some(found.frames)
    }
}
