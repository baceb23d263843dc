//! AUX, ITRACE_START, AUX_OUTPUT_HW_ID: the kernel's side of a hardware trace.

use super::{Record, WriteRecord, kind};
use crate::bytes::{Fields, Put};
use crate::{Pid, Tid};
use ptflow_decoder::stream::Break;

/// AUX: trace bytes were written to the buffer, or could not be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Aux {
    /// Where in the AUX stream.
    pub offset: u64,
    /// How many bytes.
    pub size: u64,
    /// [`Aux::TRUNCATED`] and others.
    pub flags: u64,
}

impl Aux {
    /// The buffer was full; tracing stopped behind these bytes (`PERF_AUX_FLAG_TRUNCATED`).
    pub const TRUNCATED: u64 = 1;
    /// Snapshot mode: sizes and offsets mean the whole buffer (`PERF_AUX_FLAG_OVERWRITE`).
    pub const OVERWRITE: u64 = 2;
    /// There are gaps in the bytes, as while a guest ran (`PERF_AUX_FLAG_PARTIAL`).
    pub const PARTIAL: u64 = 4;
    /// A sample collided with another (`PERF_AUX_FLAG_COLLISION`).
    pub const COLLISION: u64 = 8;

    /// Reads the body.
    pub fn read(record: &Record<'_>) -> Option<Self> {
        let mut f = Fields(record.body);
        Some(Self { offset: f.u64()?, size: f.u64()?, flags: f.u64()? })
    }

    /// Why flow does not go on behind these bytes, where it does not. Of an overwritten ring nothing can be said: its
    /// records mean the whole buffer.
    pub fn breaks(&self) -> Option<Break> {
        let has = |flag| self.flags & flag != 0;
        match () {
            () if has(Self::OVERWRITE) => None,
            () if has(Self::TRUNCATED) => Some(Break::AuxTruncated),
            () if has(Self::COLLISION) => Some(Break::AuxCollision),
            () if has(Self::PARTIAL) => Some(Break::AuxPartial),
            () => None,
        }
    }

    /// One past the last byte.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.size)
    }
}

impl WriteRecord for Aux {
    fn kind(&self) -> u32 {
        kind::AUX
    }

    fn body(&self, out: &mut Vec<u8>) {
        out.u64(self.offset);
        out.u64(self.size);
        out.u64(self.flags);
    }
}

/// ITRACE_START: tracing began while this thread ran; on which CPU stands in the trailer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ItraceStart {
    /// Process.
    pub pid: Pid,
    /// Thread.
    pub tid: Tid,
}

impl ItraceStart {
    /// Reads the body.
    pub fn read(record: &Record<'_>) -> Option<Self> {
        let mut f = Fields(record.body);
        Some(Self { pid: Pid(f.u32()?), tid: Tid(f.u32()?) })
    }
}

impl WriteRecord for ItraceStart {
    fn kind(&self) -> u32 {
        kind::ITRACE_START
    }

    fn body(&self, out: &mut Vec<u8>) {
        out.u32(self.pid.0);
        out.u32(self.tid.0);
    }
}

/// AUX_OUTPUT_HW_ID: by which number the hardware names an event in the trace (PEBS via PT).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AuxOutputHwId {
    /// The number; the event stands in the trailer.
    pub hw_id: u64,
}

impl AuxOutputHwId {
    /// Reads the body.
    pub fn read(record: &Record<'_>) -> Option<Self> {
        Some(Self { hw_id: Fields(record.body).u64()? })
    }
}

impl WriteRecord for AuxOutputHwId {
    fn kind(&self) -> u32 {
        kind::AUX_OUTPUT_HW_ID
    }

    fn body(&self, out: &mut Vec<u8>) {
        out.u64(self.hw_id);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{cut_everywhere, through_bytes};
    use super::*;

    #[test]
    fn round_trips() {
        let aux = Aux { offset: 1 << 40, size: 4096, flags: Aux::TRUNCATED };
        through_bytes(&aux, |record| assert_eq!(Aux::read(record), Some(aux)));
        cut_everywhere(&aux, |record| assert_eq!(Aux::read(record), None));
        let start = ItraceStart { pid: Pid(1), tid: Tid(2) };
        through_bytes(&start, |record| assert_eq!(ItraceStart::read(record), Some(start)));
        cut_everywhere(&start, |record| assert_eq!(ItraceStart::read(record), None));
        let id = AuxOutputHwId { hw_id: 3 };
        through_bytes(&id, |record| assert_eq!(AuxOutputHwId::read(record), Some(id)));
        cut_everywhere(&id, |record| assert_eq!(AuxOutputHwId::read(record), None));
    }
}
