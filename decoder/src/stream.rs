//! Trace streams: the AUX bytes of one thread or CPU, where they lie in the mapped file.

use crate::units::{AuxOffset, Tsc};

/// A run of trace bytes that lie together in memory.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'m> {
    /// Position of the first byte in the AUX stream.
    pub offset: AuxOffset,
    /// The bytes, without the padding that perf adds.
    pub bytes: &'m [u8],
    /// `None`: the bytes go on exactly where the piece before ended (a packet may straddle the two).
    /// Else why they do not; nothing decoded before is valid here and decoding starts at the next PSB.
    pub break_before: Option<Break>,
    /// A TSC value not far from the time of these bytes: the upper byte of TSC packets comes from here.
    pub reference: Option<Tsc>,
}

/// Why a piece does not continue the one before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Break {
    /// The first piece of the stream.
    Start,
    /// The AUX buffer was full (PERF_RECORD_AUX with TRUNCATED): the bytes before end in mid-packet.
    AuxTruncated,
    /// The kernel says that the bytes before have gaps (PERF_RECORD_AUX with PARTIAL, as while a guest ran), not where.
    AuxPartial,
    /// The bytes before collided with others (PERF_RECORD_AUX with COLLISION).
    AuxCollision,
    /// The offsets leave a hole, or run backwards.
    Missing,
    /// A snapshot of a ring: it may repeat what the piece before has, or leave a hole.
    Snapshot,
}

impl Break {
    /// An AUX record ended here: the driver stopped the tracer and started it anew, so the bytes behind begin with a whole
    /// packet, though not with a PSB.
    pub fn restarts(self) -> bool {
        matches!(self, Self::AuxTruncated | Self::AuxPartial | Self::AuxCollision)
    }
}

/// The trace of one thread or one CPU: pieces in stream order.
#[derive(Clone, Debug, Default)]
pub struct TraceStream<'m> {
    /// The pieces; offsets rise.
    pub pieces: Vec<Piece<'m>>,
}

impl TraceStream<'_> {
    /// Bytes of trace in the stream.
    pub fn len(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.bytes.len() as u64).sum()
    }

    /// True where there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
