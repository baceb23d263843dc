//! Intel's own decoder, libipt 2.1.2, as a second opinion: a judge of this crate's results, and the measure of its speed.
//!
//! Nothing here uses this crate's walkers, and nothing in them uses this. What libipt finds is put in the words of
//! [`crate::profile`]; the instruction that ends a block is classified by [`crate::insn`], checked against libipt's
//! own class.
//!
//! Where libipt and the manual part ways, libipt is no judge:
//! - its last IP becomes 0 at OVF (SDM, "Overflow Packet": compression refers to before it);
//! - an uncompressed RET does not pop its return stack, so it accepts stale compressed RETs;
//! - BBP, BIP, BEP and TRIG are unknown to it, PWRE's HW bit is read at the wrong place;
//! - after code without an image it waits for the next PSB, where a TIP would do: on such traces its edges are a subset.
//!
//! Building needs cmake and libclang (Debian: `cmake libclang-dev`; bindgen finds it by itself, or by `LIBCLANG_PATH`).

mod blocks;
#[cfg(test)]
mod captures;
mod flow;
mod packets;
mod sections;
mod session;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use flow::{Block, Edges, Flow, Transfer};
pub use packets::{OraclePacket, Packets};
pub use sections::{FileSection, SectionCache};
pub use session::{Failure, Session, Walk};

use std::borrow::Cow;
use std::ffi::{CStr, c_int};
use std::fmt;

use crate::stream::TraceStream;

/// An error code of libipt (`enum pt_error_code`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PtError(u32);

impl PtError {
    /// The trace ends here.
    pub const EOS: Self = Self(libipt_sys::pt_error_code_pte_eos);
    /// No image holds the code.
    pub const NOMAP: Self = Self(libipt_sys::pt_error_code_pte_nomap);
    /// The code is a loop that needs no trace and does not lead where the trace says. Not a code of libipt, which
    /// would go on for ever.
    pub const ENDLESS_LOOP: Self = Self(u32::MAX);
    const NOMEM: Self = Self(libipt_sys::pt_error_code_pte_nomem);
    const INVALID: Self = Self(libipt_sys::pt_error_code_pte_invalid);

    /// What a libipt function returned: the value, or the error that a negative one means.
    fn check(returned: c_int) -> Result<c_int, Self> {
        if returned < 0 { Err(Self(returned.unsigned_abs())) } else { Ok(returned) }
    }
}

impl fmt::Display for PtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ENDLESS_LOOP {
            return f.write_str("endless loop");
        }
        // SAFETY: takes any number and returns a string constant.
        let text = unsafe { libipt_sys::pt_errstr(self.0) };
        if text.is_null() {
            return write!(f, "libipt error {}", self.0);
        }
        // SAFETY: not null, and such a constant.
        let text = unsafe { CStr::from_ptr(text) };
        write!(f, "libipt: {}", text.to_string_lossy())
    }
}

impl fmt::Debug for PtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for PtError {}

/// The stretches of a stream that each hold together, as libipt needs them: one buffer each. Bytes are copied only
/// where a stretch has several pieces.
pub fn stretches<'m>(stream: &TraceStream<'m>) -> Vec<Cow<'m, [u8]>> {
    let mut stretches: Vec<Cow<'m, [u8]>> = Vec::new();
    for piece in &stream.pieces {
        match stretches.last_mut() {
            Some(stretch) if piece.break_before.is_none() => stretch.to_mut().extend_from_slice(piece.bytes),
            _ => stretches.push(Cow::Borrowed(piece.bytes)),
        }
    }
    stretches
}
