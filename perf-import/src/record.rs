//! Records: a header each, then a body that its type explains. Nothing is copied.
//!
//! Types below 64 are the kernel's (linux `include/uapi/linux/perf_event.h`), the others perf's own
//! (`tools/lib/perf/include/perf/event.h`).

use crate::bytes::{Fields, until_nul};
use crate::{Cpu, Pid, Tid};

/// Record types, by the names that the kernel and perf use.
pub mod kind {
    #![allow(missing_docs, reason = "the kernel's names: PERF_RECORD_*")]
    pub const MMAP: u32 = 1;
    pub const LOST: u32 = 2;
    pub const COMM: u32 = 3;
    pub const EXIT: u32 = 4;
    pub const FORK: u32 = 7;
    pub const SAMPLE: u32 = 9;
    pub const MMAP2: u32 = 10;
    pub const AUX: u32 = 11;
    pub const ITRACE_START: u32 = 12;
    pub const LOST_SAMPLES: u32 = 13;
    pub const SWITCH: u32 = 14;
    pub const SWITCH_CPU_WIDE: u32 = 15;
    pub const HEADER_TRACING_DATA: u32 = 66;
    pub const HEADER_BUILD_ID: u32 = 67;
    pub const FINISHED_ROUND: u32 = 68;
    pub const AUXTRACE_INFO: u32 = 70;
    pub const AUXTRACE: u32 = 71;
    pub const AUXTRACE_ERROR: u32 = 72;
    pub const TIME_CONV: u32 = 79;
    pub const COMPRESSED: u32 = 81;
    pub const COMPRESSED2: u32 = 83;
}

/// Bits of a header's misc field.
pub mod misc {
    #![allow(missing_docs, reason = "the kernel's names: PERF_RECORD_MISC_*")]
    pub const CPUMODE_MASK: u16 = 7;
    pub const KERNEL: u16 = 1;
    pub const USER: u16 = 2;
    pub const COMM_EXEC: u16 = 1 << 13;
    pub const SWITCH_OUT: u16 = 1 << 13;
    pub const MMAP_DATA: u16 = 1 << 13;
    pub const MMAP_BUILD_ID: u16 = 1 << 14;
    pub const BUILD_ID_SIZE: u16 = 1 << 15;
}

/// A record: its header, its body, and for AUXTRACE the trace bytes that follow it.
#[derive(Clone, Copy, Debug)]
pub struct Record<'m> {
    /// The type.
    pub kind: u32,
    /// Bits whose meaning depends on the type.
    pub misc: u16,
    /// What follows the header.
    pub body: &'m [u8],
    /// The bytes that follow the record and are not counted in its size.
    pub payload: &'m [u8],
    /// Where the header lies in the file.
    pub offset: u64,
}

/// Walks the records of a file.
#[derive(Clone, Debug)]
pub struct Records<'m> {
    data: &'m [u8],
    at: usize,
    base: u64,
    damaged: bool,
}

impl<'m> Records<'m> {
    pub(crate) fn new(data: &'m [u8], base: u64) -> Self {
        Self { data, at: 0, base, damaged: false }
    }

    /// True once the walk ended at bytes that are no record, instead of at the end.
    pub fn damaged(&self) -> bool {
        self.damaged
    }
}

impl<'m> Iterator for Records<'m> {
    type Item = Record<'m>;

    fn next(&mut self) -> Option<Record<'m>> {
        let rest = self.data.get(self.at..).filter(|rest| !rest.is_empty())?;
        let mut fields = Fields(rest);
        let (Some(kind), Some(misc), Some(size)) = (fields.u32(), fields.u16(), fields.u16()) else {
            self.damaged = true;
            self.at = self.data.len();
            return None;
        };
        let size = usize::from(size);
        let Some(body) = rest.get(8..size) else {
            self.damaged = true;
            self.at = self.data.len();
            return None;
        };
        let follows = match kind {
            kind::AUXTRACE => Fields(body).u64().unwrap_or(0),
            kind::HEADER_TRACING_DATA => u64::from(Fields(body).u32().unwrap_or(0)).next_multiple_of(8),
            _ => 0,
        };
        let behind = &rest[size..];
        let len = usize::try_from(follows).unwrap_or(usize::MAX);
        if len > behind.len() {
            self.damaged = true;
        }
        let payload = &behind[..len.min(behind.len())];
        let offset = self.base + self.at as u64;
        self.at += size + payload.len();
        Some(Record { kind, misc, body, payload, offset })
    }
}

/// MMAP and MMAP2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mmap<'m> {
    /// Process; -1 (as u32) for the kernel.
    pub pid: Pid,
    /// Thread.
    pub tid: Tid,
    /// First address.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
    /// Offset in the file of the first byte.
    pub pgoff: u64,
    /// The build id, where the record carries one.
    pub build_id: Option<&'m [u8]>,
    /// Protection bits; MMAP has none and means executable unless it says data.
    pub prot: Option<u32>,
    /// The file, as the traced process saw it.
    pub filename: &'m [u8],
}

/// COMM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Comm<'m> {
    /// Process.
    pub pid: Pid,
    /// Thread.
    pub tid: Tid,
    /// The new name.
    pub comm: &'m [u8],
    /// The name came by exec: all mappings are gone.
    pub exec: bool,
}

/// FORK and EXIT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Task {
    /// Process.
    pub pid: Pid,
    /// Parent process.
    pub ppid: Pid,
    /// Thread.
    pub tid: Tid,
    /// Parent thread.
    pub ptid: Tid,
    /// perf time.
    pub time: u64,
}

/// AUX: trace bytes were written.
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
    /// The buffer was full; tracing stopped behind these bytes.
    pub const TRUNCATED: u64 = 1;
    /// Snapshot mode: sizes and offsets mean the whole buffer.
    pub const OVERWRITE: u64 = 2;
}

/// The fixed part of AUXTRACE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AuxTrace {
    /// Bytes that follow, with padding.
    pub size: u64,
    /// Where in the AUX stream they belong.
    pub offset: u64,
    /// TSC when perf read them.
    pub reference: u64,
    /// Queue.
    pub idx: u32,
    /// Thread, where the buffer belongs to one.
    pub tid: Option<Tid>,
    /// CPU, where the buffer belongs to one.
    pub cpu: Option<Cpu>,
}

impl<'m> Record<'m> {
    /// MMAP or MMAP2.
    pub fn mmap(&self) -> Option<Mmap<'m>> {
        let mut f = Fields(self.body);
        let (pid, tid) = (Pid(f.u32()?), Tid(f.u32()?));
        let (addr, len, pgoff) = (f.u64()?, f.u64()?, f.u64()?);
        let (mut build_id, mut prot) = (None, None);
        if self.kind == kind::MMAP2 {
            let mut id = Fields(f.take(24)?);
            if self.misc & misc::MMAP_BUILD_ID != 0 {
                let size = usize::from(id.u8()?).min(20);
                id.take(3)?;
                build_id = Some(id.take(size)?);
            }
            prot = Some(f.u32()?);
            f.u32()?;
        }
        Some(Mmap { pid, tid, addr, len, pgoff, build_id, prot, filename: until_nul(f.0) })
    }

    /// COMM.
    pub fn comm(&self) -> Option<Comm<'m>> {
        let mut f = Fields(self.body);
        let (pid, tid) = (Pid(f.u32()?), Tid(f.u32()?));
        Some(Comm { pid, tid, comm: until_nul(f.0), exec: self.misc & misc::COMM_EXEC != 0 })
    }

    /// FORK or EXIT.
    pub fn task(&self) -> Option<Task> {
        let mut f = Fields(self.body);
        Some(Task {
            pid: Pid(f.u32()?),
            ppid: Pid(f.u32()?),
            tid: Tid(f.u32()?),
            ptid: Tid(f.u32()?),
            time: f.u64()?,
        })
    }

    /// AUX.
    pub fn aux(&self) -> Option<Aux> {
        let mut f = Fields(self.body);
        Some(Aux { offset: f.u64()?, size: f.u64()?, flags: f.u64()? })
    }

    /// AUXTRACE.
    pub fn auxtrace(&self) -> Option<AuxTrace> {
        let mut f = Fields(self.body);
        let (size, offset, reference) = (f.u64()?, f.u64()?, f.u64()?);
        let (idx, tid, cpu) = (f.u32()?, f.u32()?, f.u32()?);
        let known = |id: u32| (id != u32::MAX).then_some(id);
        Some(AuxTrace { size, offset, reference, idx, tid: known(tid).map(Tid), cpu: known(cpu).map(Cpu) })
    }

    /// ITRACE_START: process and thread.
    pub fn itrace_start(&self) -> Option<(Pid, Tid)> {
        let mut f = Fields(self.body);
        Some((Pid(f.u32()?), Tid(f.u32()?)))
    }
}
