//! `perf_event_attr`: how an event was recorded (linux `include/uapi/linux/perf_event.h`).

use crate::bytes::Fields;

/// What a sample, or a record's trailer, carries.
pub mod sample_type {
    #![allow(missing_docs, reason = "the kernel's names: PERF_SAMPLE_*")]
    pub const IP: u64 = 1 << 0;
    pub const TID: u64 = 1 << 1;
    pub const TIME: u64 = 1 << 2;
    pub const ADDR: u64 = 1 << 3;
    pub const READ: u64 = 1 << 4;
    pub const CALLCHAIN: u64 = 1 << 5;
    pub const ID: u64 = 1 << 6;
    pub const CPU: u64 = 1 << 7;
    pub const PERIOD: u64 = 1 << 8;
    pub const STREAM_ID: u64 = 1 << 9;
    pub const RAW: u64 = 1 << 10;
    pub const BRANCH_STACK: u64 = 1 << 11;
    pub const IDENTIFIER: u64 = 1 << 16;
}

/// The flag word's bits that matter here.
pub mod flag {
    #![allow(missing_docs, reason = "the kernel's names")]
    pub const EXCLUDE_USER: u64 = 1 << 4;
    pub const EXCLUDE_KERNEL: u64 = 1 << 5;
    pub const SAMPLE_ID_ALL: u64 = 1 << 18;
}

/// An event's attributes, as far as they are used; fields that an old file lacks are 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Attr {
    /// PMU type.
    pub kind: u32,
    /// Event, in the PMU's own terms.
    pub config: u64,
    /// What a sample carries.
    pub sample_type: u64,
    /// Layout of counter values in samples.
    pub read_format: u64,
    /// The flag word.
    pub flags: u64,
    /// What a branch stack holds.
    pub branch_sample_type: u64,
    /// Registers in samples.
    pub sample_regs_user: u64,
    /// Registers in samples.
    pub sample_regs_intr: u64,
    /// Bytes of AUX data in samples.
    pub aux_sample_size: u32,
}

impl Attr {
    /// Reads an attr of whatever size it says, within `bytes`.
    pub fn read(bytes: &[u8]) -> Self {
        let at32 = |offset: usize| bytes.get(offset..).and_then(|rest| Fields(rest).u32()).unwrap_or(0);
        let size = match at32(4) as usize {
            // Files of the first kernels leave it 0: the first published size.
            0 => 64,
            size => size.min(bytes.len()),
        };
        let bytes = bytes.get(..size).unwrap_or(bytes);
        let at64 = |offset: usize| bytes.get(offset..).and_then(|rest| Fields(rest).u64()).unwrap_or(0);
        let at32 = |offset: usize| bytes.get(offset..).and_then(|rest| Fields(rest).u32()).unwrap_or(0);
        Self {
            kind: at32(0),
            config: at64(8),
            sample_type: at64(24),
            read_format: at64(32),
            flags: at64(40),
            branch_sample_type: at64(72),
            sample_regs_user: at64(80),
            sample_regs_intr: at64(96),
            aux_sample_size: at32(112),
        }
    }

    /// True where every kernel record carries a trailer with time and ids.
    pub fn sample_id_all(&self) -> bool {
        self.flags & flag::SAMPLE_ID_ALL != 0
    }
}
