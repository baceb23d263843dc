//! Frames that were open before the decoding began.
//!
//! Where a run begins in the middle of a trace, what is open shows only when control returns to it, much later. So a window
//! is decoded twice: the first time tells what it returned to, the second knows that from its beginning.

use super::Frame;
use crate::profile::CodeAddr;

/// The deepest that is remembered.
const MAX_FRAMES: usize = 1 << 16;

/// What must have been open before a run began, by stack: the oldest first, and whether it was entered before.
#[derive(Clone, Debug, Default)]
pub struct OuterFrames(pub(super) Vec<Vec<(Frame, bool)>>);

#[derive(Clone, Debug, Default)]
pub(super) struct Outer {
    /// The youngest first.
    frames: Vec<(Frame, bool)>,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Stage {
    /// What is returned to was open from the start.
    #[default]
    Learning,
    /// All is known that can be.
    Known,
    /// What is returned to from now on was open no earlier than that.
    Over,
}

impl Outer {
    /// Of an earlier run.
    pub fn known(mut frames: Vec<(Frame, bool)>) -> Self {
        frames.reverse();
        Self { frames, stage: Stage::Known }
    }

    /// A frame that opened on the empty stack: control came there from one that no call is known of.
    pub fn learn(&mut self, frame: Frame, inferred: bool, at: CodeAddr) {
        if self.stage != Stage::Learning || self.frames.len() >= MAX_FRAMES {
            return;
        }
        if let Some((above, _)) = self.frames.last_mut() {
            above.returns_to = Some(at);
        }
        self.frames.push((frame, inferred));
    }

    /// What is known, once: the oldest first.
    pub fn take(&mut self) -> Vec<(Frame, bool)> {
        if self.stage != Stage::Known {
            return Vec::new();
        }
        self.stage = Stage::Over;
        let mut frames = std::mem::take(&mut self.frames);
        frames.reverse();
        frames
    }

    /// All frames were cut off.
    pub fn end(&mut self) {
        self.stage = Stage::Over;
    }

    pub fn into_frames(self) -> Vec<(Frame, bool)> {
        let mut frames = self.frames;
        frames.reverse();
        frames
    }
}
