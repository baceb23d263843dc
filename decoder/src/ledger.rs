//! The loss ledger: bytes in = bytes decoded + bytes lost by reason, and where a window was asked for + bytes skipped.
//!
//! Both sides are summed where packets are consumed, never computed from each other.

use crate::units::AuxOffset;

/// Why trace bytes or flow were lost.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum LossReason {
    /// Before the first PSB of a stream, or of the stretch behind a break: nothing can be decoded there.
    BeforeFirstPsb,
    /// A snapshot repeats what another one has: nothing is lost.
    Overlap,
    /// Code that no image holds.
    NoImage,
    /// Bytes that are no packet.
    BadPacket,
    /// A packet cut off by the end of the stream or by a break.
    TornPacket,
    /// Trace and code do not fit together.
    Desync,
    /// Direct jumps went round without end.
    EndlessLoop,
    /// The CPU lost packets (OVF); no bytes of the stream.
    Overflow,
    /// The AUX buffer was full; no bytes of the stream.
    AuxTruncated,
    /// The kernel says that there are gaps before here, not where; no bytes of the stream.
    AuxPartial,
    /// The kernel says that trace collided with other trace before here; no bytes of the stream.
    AuxCollision,
    /// The stream's offsets leave a hole; no bytes of the stream.
    Missing,
}

impl LossReason {
    /// The reason's name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::BeforeFirstPsb => "before_first_psb",
            Self::Overlap => "overlap",
            Self::NoImage => "no_image",
            Self::BadPacket => "bad_packet",
            Self::TornPacket => "torn_packet",
            Self::Desync => "desync",
            Self::EndlessLoop => "endless_loop",
            Self::Overflow => "overflow",
            Self::AuxTruncated => "aux_truncated",
            Self::AuxPartial => "aux_partial",
            Self::AuxCollision => "aux_collision",
            Self::Missing => "missing",
        }
    }
}

/// One loss: a stretch of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Loss {
    /// Why.
    pub reason: LossReason,
    /// Where it begins.
    pub from: AuxOffset,
    /// Where flow was found again.
    pub to: AuxOffset,
    /// Bytes that were not decoded.
    pub bytes: u64,
    /// The address at which flow was lost, where it was known.
    pub at: Option<crate::units::Ip>,
}

/// What became of the bytes of a unit, a stream or a capture.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ledger {
    /// Bytes of packets that were understood and used.
    pub decoded: u64,
    /// Everything else, in stream order.
    pub losses: Vec<Loss>,
    /// Bytes that nobody asked for: outside of the [windows](crate::plan::Window) of the run.
    pub skipped: u64,
}

impl Ledger {
    /// Bytes lost.
    pub fn lost(&self) -> u64 {
        self.losses.iter().map(|loss| loss.bytes).sum()
    }

    /// Adds what another part of the capture came to.
    pub fn append(&mut self, mut other: Self) {
        self.decoded += other.decoded;
        self.skipped += other.skipped;
        self.losses.append(&mut other.losses);
    }
}
