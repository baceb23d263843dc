//! Inlined functions: slices within a frame, for as long as control is in their code.
//!
//! Only debug information knows them, so whoever has it says which inlined function each instruction is of
//! ([`InlinedCode`]). A frame is in one of them, and in those that it lies in: what control leaves is closed, what it
//! enters is opened. A call leaves nothing: the caller's frame stays where it is.

use super::{Fold, FrameName, FrameSink, Kind};
use crate::profile::CodeAddr;
use crate::units::ImageId;

/// A function that was inlined at one place, by a number of the image's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct InlinedId {
    /// The image.
    pub image: ImageId,
    /// Which of those in it.
    pub number: u32,
}

/// Knows which instructions are of inlined functions.
pub trait InlinedCode: Send + Sync {
    /// The innermost inlined function that an instruction is of.
    fn at(&self, code: CodeAddr) -> Option<InlinedId>;

    /// The inlined function that another lies in.
    fn around(&self, inner: InlinedId) -> Option<InlinedId>;
}

/// Deeper ones are not told apart: debug information is input as any other.
const DEEPEST: usize = 256;

/// An inlined function and those that it lies in, the outermost first.
fn path(code: &dyn InlinedCode, innermost: Option<InlinedId>) -> Vec<InlinedId> {
    let outwards = std::iter::successors(innermost, |inner| code.around(*inner));
    let mut path: Vec<InlinedId> = outwards.take(DEEPEST).collect();
    path.reverse();
    path
}

impl<F: FrameSink> Fold<'_, F> {
    /// The youngest frame goes on in that inlined function, or in none.
    pub(super) fn enter_inlined(&mut self, to: Option<InlinedId>) -> Result<(), F::Error> {
        let (Some(code), Some(top)) = (self.inlined, self.stack.frames.last_mut()) else { return Ok(()) };
        if !top.shown || matches!(top.kind, Kind::Off(_)) || top.inlined == to {
            return Ok(());
        }
        let left = path(code, std::mem::replace(&mut top.inlined, to));
        let entered = path(code, to);
        let same = left.iter().zip(&entered).take_while(|(left, entered)| left == entered).count();
        for _ in same..left.len() {
            self.sink.close(self.stream, self.stack.now)?;
        }
        for inlined in entered.into_iter().skip(same) {
            self.sink.open(self.stream, self.stack.now, FrameName::Inlined(inlined), false)?;
        }
        Ok(())
    }

    /// A frame opens that is in an inlined function already.
    #[cold]
    pub(super) fn open_inlined(&mut self, innermost: Option<InlinedId>) -> Result<(), F::Error> {
        let (Some(code), Some(_)) = (self.inlined, innermost) else { return Ok(()) };
        path(code, innermost).into_iter().try_for_each(|inlined| {
            self.sink.open(self.stream, self.stack.now, FrameName::Inlined(inlined), true)
        })
    }

    /// A frame ends that is in an inlined function.
    #[cold]
    pub(super) fn close_inlined(&mut self, innermost: Option<InlinedId>) -> Result<(), F::Error> {
        (0..self.open_in(innermost)).try_for_each(|_| self.sink.close(self.stream, self.stack.now))
    }

    /// How many inlined functions are open in a frame.
    pub(super) fn open_in(&self, innermost: Option<InlinedId>) -> usize {
        match (self.inlined, innermost) {
            (Some(code), Some(_)) => path(code, innermost).len(),
            _ => 0,
        }
    }

    /// The inlined function that makes the call which returns to an address.
    pub(super) fn inlined_before(&self, returns_to: Option<CodeAddr>) -> Option<InlinedId> {
        let CodeAddr { image, addr } = returns_to?;
        self.inlined?.at(CodeAddr { image, addr: addr.checked_sub(1)? })
    }
}
