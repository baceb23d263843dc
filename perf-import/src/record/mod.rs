//! Records: a header each, then a body that its type explains. Nothing is copied.
//!
//! One file for each family; reader and writer of a record stand side by side. Types below 64 are the kernel's (linux
//! `include/uapi/linux/perf_event.h`), the others perf's own (`tools/lib/perf/include/perf/event.h`).

mod aux;
mod auxtrace;
mod branch_stack;
mod container;
mod kernel_code;
mod lost;
mod mmap;
mod sample;
mod switch;
mod tables;
mod task;
mod walk;

pub use aux::{Aux, AuxOutputHwId, ItraceStart};
pub use auxtrace::{AuxTrace, AuxTraceError, PtInfo};
pub use branch_stack::{BranchEntry, BranchStack, branch_sample_type};
pub(crate) use container::conversion;
pub use container::{Compressed, Feature, HeaderAttr, TimeConv};
pub use kernel_code::{BpfEvent, Ksymbol, TextPoke};
pub use lost::{Lost, LostSamples, Throttle};
pub use mmap::Mmap;
pub use sample::{Registers, Sample, StackDump};
pub use switch::Switch;
pub use tables::{CpuMap, IdIndex, IdIndexEntry, ThreadMap};
pub use task::{Cgroup, Comm, Namespaces, Task};
pub use walk::Records;
pub(crate) use walk::Stretch;

use crate::FileOffset;

/// Record types, by the names that the kernel and perf use.
pub mod kind {
    #![allow(missing_docs, reason = "the kernel's names: PERF_RECORD_*")]
    pub const MMAP: u32 = 1;
    pub const LOST: u32 = 2;
    pub const COMM: u32 = 3;
    pub const EXIT: u32 = 4;
    pub const THROTTLE: u32 = 5;
    pub const UNTHROTTLE: u32 = 6;
    pub const FORK: u32 = 7;
    pub const READ: u32 = 8;
    pub const SAMPLE: u32 = 9;
    pub const MMAP2: u32 = 10;
    pub const AUX: u32 = 11;
    pub const ITRACE_START: u32 = 12;
    pub const LOST_SAMPLES: u32 = 13;
    pub const SWITCH: u32 = 14;
    pub const SWITCH_CPU_WIDE: u32 = 15;
    pub const NAMESPACES: u32 = 16;
    pub const KSYMBOL: u32 = 17;
    pub const BPF_EVENT: u32 = 18;
    pub const CGROUP: u32 = 19;
    pub const TEXT_POKE: u32 = 20;
    pub const AUX_OUTPUT_HW_ID: u32 = 21;
    pub const CALLCHAIN_DEFERRED: u32 = 22;
    /// perf's own records begin here; they carry no trailer.
    pub const USER_TYPE_START: u32 = 64;
    pub const HEADER_ATTR: u32 = 64;
    pub const HEADER_EVENT_TYPE: u32 = 65;
    pub const HEADER_TRACING_DATA: u32 = 66;
    pub const HEADER_BUILD_ID: u32 = 67;
    pub const FINISHED_ROUND: u32 = 68;
    pub const ID_INDEX: u32 = 69;
    pub const AUXTRACE_INFO: u32 = 70;
    pub const AUXTRACE: u32 = 71;
    pub const AUXTRACE_ERROR: u32 = 72;
    pub const THREAD_MAP: u32 = 73;
    pub const CPU_MAP: u32 = 74;
    pub const STAT_CONFIG: u32 = 75;
    pub const STAT: u32 = 76;
    pub const STAT_ROUND: u32 = 77;
    pub const EVENT_UPDATE: u32 = 78;
    pub const TIME_CONV: u32 = 79;
    pub const HEADER_FEATURE: u32 = 80;
    pub const COMPRESSED: u32 = 81;
    pub const FINISHED_INIT: u32 = 82;
    pub const COMPRESSED2: u32 = 83;

    /// The name of a type, without `PERF_RECORD_`; `None` for one that is not known here.
    pub fn name(kind: u32) -> Option<&'static str> {
        const KERNEL: [&str; 22] = [
            "MMAP",
            "LOST",
            "COMM",
            "EXIT",
            "THROTTLE",
            "UNTHROTTLE",
            "FORK",
            "READ",
            "SAMPLE",
            "MMAP2",
            "AUX",
            "ITRACE_START",
            "LOST_SAMPLES",
            "SWITCH",
            "SWITCH_CPU_WIDE",
            "NAMESPACES",
            "KSYMBOL",
            "BPF_EVENT",
            "CGROUP",
            "TEXT_POKE",
            "AUX_OUTPUT_HW_ID",
            "CALLCHAIN_DEFERRED",
        ];
        const PERF: [&str; 20] = [
            "HEADER_ATTR",
            "HEADER_EVENT_TYPE",
            "HEADER_TRACING_DATA",
            "HEADER_BUILD_ID",
            "FINISHED_ROUND",
            "ID_INDEX",
            "AUXTRACE_INFO",
            "AUXTRACE",
            "AUXTRACE_ERROR",
            "THREAD_MAP",
            "CPU_MAP",
            "STAT_CONFIG",
            "STAT",
            "STAT_ROUND",
            "EVENT_UPDATE",
            "TIME_CONV",
            "HEADER_FEATURE",
            "COMPRESSED",
            "FINISHED_INIT",
            "COMPRESSED2",
        ];
        match kind.checked_sub(USER_TYPE_START) {
            Some(index) => PERF.get(index as usize).copied(),
            None => KERNEL.get((kind as usize).wrapping_sub(1)).copied(),
        }
    }
}

/// Bits of a header's misc field.
pub mod misc {
    #![allow(missing_docs, reason = "the kernel's names: PERF_RECORD_MISC_*")]
    pub const CPUMODE_MASK: u16 = 7;
    pub const KERNEL: u16 = 1;
    pub const USER: u16 = 2;
    pub const COMM_EXEC: u16 = 1 << 13;
    pub const FORK_EXEC: u16 = 1 << 13;
    pub const SWITCH_OUT: u16 = 1 << 13;
    pub const SWITCH_OUT_PREEMPT: u16 = 1 << 14;
    pub const MMAP_DATA: u16 = 1 << 13;
    pub const MMAP_BUILD_ID: u16 = 1 << 14;
    pub const BUILD_ID_SIZE: u16 = 1 << 15;
}

/// A record: its header, its body, and for AUXTRACE the trace bytes that follow it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
    pub offset: FileOffset,
}

/// A record that can be written: its type, its misc bits, its body without the trailer.
pub trait WriteRecord {
    /// The type.
    fn kind(&self) -> u32;

    /// The misc field.
    fn misc(&self) -> u16 {
        0
    }

    /// Appends the body.
    fn body(&self, out: &mut Vec<u8>);
}

/// Writes a record's body and reads it again.
#[cfg(test)]
pub(crate) fn through_bytes<R>(record: &impl WriteRecord, read: impl for<'m> FnOnce(&Record<'m>) -> R) -> R {
    let mut body = Vec::new();
    record.body(&mut body);
    let whole =
        Record { kind: record.kind(), misc: record.misc(), body: &body, payload: &[], offset: FileOffset(0) };
    read(&whole)
}

/// Reads a record from all beginnings of its body; only that nothing goes out of bounds is of interest.
#[cfg(test)]
pub(crate) fn cut_everywhere(record: &impl WriteRecord, read: impl for<'m> Fn(&Record<'m>)) {
    let mut body = Vec::new();
    record.body(&mut body);
    for len in 0..body.len() {
        let cut = Record {
            kind: record.kind(),
            misc: record.misc(),
            body: &body[..len],
            payload: &[],
            offset: FileOffset(0),
        };
        read(&cut);
    }
}
