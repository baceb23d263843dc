//! `perf_event_attr`: how an event was recorded (linux `include/uapi/linux/perf_event.h`).

use crate::bytes::{Fields, Put};

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
    pub const REGS_USER: u64 = 1 << 12;
    pub const STACK_USER: u64 = 1 << 13;
    pub const WEIGHT: u64 = 1 << 14;
    pub const DATA_SRC: u64 = 1 << 15;
    pub const IDENTIFIER: u64 = 1 << 16;
    pub const TRANSACTION: u64 = 1 << 17;
    pub const REGS_INTR: u64 = 1 << 18;
    pub const PHYS_ADDR: u64 = 1 << 19;
    pub const AUX: u64 = 1 << 20;
    pub const CGROUP: u64 = 1 << 21;
    pub const DATA_PAGE_SIZE: u64 = 1 << 22;
    pub const CODE_PAGE_SIZE: u64 = 1 << 23;
    pub const WEIGHT_STRUCT: u64 = 1 << 24;
}

/// What a counter's value comes with.
pub mod read_format {
    #![allow(missing_docs, reason = "the kernel's names: PERF_FORMAT_*")]
    pub const TOTAL_TIME_ENABLED: u64 = 1 << 0;
    pub const TOTAL_TIME_RUNNING: u64 = 1 << 1;
    pub const ID: u64 = 1 << 2;
    pub const GROUP: u64 = 1 << 3;
    pub const LOST: u64 = 1 << 4;
}

/// The flag word's bits that matter here.
pub mod flag {
    #![allow(missing_docs, reason = "the kernel's names")]
    pub const INHERIT: u64 = 1 << 1;
    pub const EXCLUDE_USER: u64 = 1 << 4;
    pub const EXCLUDE_KERNEL: u64 = 1 << 5;
    pub const MMAP: u64 = 1 << 8;
    pub const COMM: u64 = 1 << 9;
    pub const TASK: u64 = 1 << 13;
    pub const SAMPLE_ID_ALL: u64 = 1 << 18;
    pub const MMAP2: u64 = 1 << 23;
    pub const COMM_EXEC: u64 = 1 << 24;
    pub const CONTEXT_SWITCH: u64 = 1 << 26;
}

/// `PERF_TYPE_SOFTWARE`.
pub const SOFTWARE: u32 = 1;
/// `PERF_TYPE_TRACEPOINT`.
pub const TRACEPOINT: u32 = 2;
/// `PERF_COUNT_SW_DUMMY`: an event that counts nothing and carries the sideband.
pub const SOFTWARE_DUMMY: u64 = 9;

/// An event's attributes; fields that an old file lacks are 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Attr {
    /// PMU type.
    pub kind: u32,
    /// Event, in the PMU's own terms.
    pub config: u64,
    /// Period, or frequency.
    pub sample_period: u64,
    /// What a sample carries.
    pub sample_type: u64,
    /// Layout of counter values in samples.
    pub read_format: u64,
    /// The flag word.
    pub flags: u64,
    /// Wake up after so many events or bytes.
    pub wakeup: u32,
    /// Breakpoint type.
    pub bp_type: u32,
    /// More of the event, or a breakpoint's address.
    pub config1: u64,
    /// More of the event, or a breakpoint's length.
    pub config2: u64,
    /// What a branch stack holds.
    pub branch_sample_type: u64,
    /// Registers in samples.
    pub sample_regs_user: u64,
    /// Bytes of stack in samples.
    pub sample_stack_user: u32,
    /// The clock, where it is not perf's own.
    pub clockid: i32,
    /// Registers at the sample in samples.
    pub sample_regs_intr: u64,
    /// Wake up after so many AUX bytes.
    pub aux_watermark: u32,
    /// Deepest call chain.
    pub sample_max_stack: u16,
    /// Bytes of AUX data in samples.
    pub aux_sample_size: u32,
    /// Start paused, pause, resume an AUX area event.
    pub aux_action: u32,
    /// Data of SIGTRAP.
    pub sig_data: u64,
    /// More of the event.
    pub config3: u64,
}

impl Attr {
    /// Size as it is written: up to and with `sig_data`, `PERF_ATTR_SIZE_VER7`, which perf 6.1 knows.
    pub const SIZE: usize = 128;

    /// Reads an attr of whatever size it says, within `bytes`.
    pub fn read(bytes: &[u8]) -> Self {
        let size = bytes.get(4..).and_then(|rest| Fields(rest).u32()).unwrap_or(0) as usize;
        // perf_event_open takes 0 for the first published size.
        let bytes = &bytes[..if size == 0 { 64 } else { size }.min(bytes.len())];
        let mut f = Fields(bytes);
        let mut this = Self::default();
        // Stops where the bytes end; what was not reached stays 0.
        let _ = this.read_fields(&mut f);
        this
    }

    fn read_fields(&mut self, f: &mut Fields<'_>) -> Option<()> {
        self.kind = f.u32()?;
        f.u32()?;
        self.config = f.u64()?;
        self.sample_period = f.u64()?;
        self.sample_type = f.u64()?;
        self.read_format = f.u64()?;
        self.flags = f.u64()?;
        self.wakeup = f.u32()?;
        self.bp_type = f.u32()?;
        self.config1 = f.u64()?;
        self.config2 = f.u64()?;
        self.branch_sample_type = f.u64()?;
        self.sample_regs_user = f.u64()?;
        self.sample_stack_user = f.u32()?;
        self.clockid = f.u32()?.cast_signed();
        self.sample_regs_intr = f.u64()?;
        self.aux_watermark = f.u32()?;
        self.sample_max_stack = f.u16()?;
        f.u16()?;
        self.aux_sample_size = f.u32()?;
        self.aux_action = f.u32()?;
        self.sig_data = f.u64()?;
        self.config3 = f.u64()?;
        Some(())
    }

    /// Appends [`Attr::SIZE`] bytes; `config3` lies behind them.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.u32(self.kind);
        out.u32(Self::SIZE as u32);
        out.u64(self.config);
        out.u64(self.sample_period);
        out.u64(self.sample_type);
        out.u64(self.read_format);
        out.u64(self.flags);
        out.u32(self.wakeup);
        out.u32(self.bp_type);
        out.u64(self.config1);
        out.u64(self.config2);
        out.u64(self.branch_sample_type);
        out.u64(self.sample_regs_user);
        out.u32(self.sample_stack_user);
        out.u32(self.clockid.cast_unsigned());
        out.u64(self.sample_regs_intr);
        out.u32(self.aux_watermark);
        out.u16(self.sample_max_stack);
        out.u16(0);
        out.u32(self.aux_sample_size);
        out.u32(self.aux_action);
        out.u64(self.sig_data);
    }

    /// True where every kernel record carries a trailer with time and ids.
    pub fn sample_id_all(&self) -> bool {
        self.flags & flag::SAMPLE_ID_ALL != 0
    }

    /// True where a sample or trailer has that part.
    pub fn has(&self, sample_type: u64) -> bool {
        self.sample_type & sample_type != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_in_every_published_size() {
        let attr = Attr {
            kind: 1,
            config: 2,
            sample_period: 3,
            sample_type: 4,
            read_format: 5,
            flags: 6,
            wakeup: 7,
            bp_type: 8,
            config1: 9,
            config2: 10,
            branch_sample_type: 11,
            sample_regs_user: 12,
            sample_stack_user: 13,
            clockid: -1,
            sample_regs_intr: 15,
            aux_watermark: 16,
            sample_max_stack: 17,
            aux_sample_size: 18,
            aux_action: 19,
            sig_data: 20,
            config3: 0,
        };
        let mut bytes = Vec::new();
        attr.write(&mut bytes);
        assert_eq!(bytes.len(), Attr::SIZE);
        assert_eq!(Attr::read(&bytes), attr);
        for size in [0u32, 64, 72, 80, 96, 104, 112, 120] {
            bytes[4..8].copy_from_slice(&size.to_le_bytes());
            let read = Attr::read(&bytes);
            assert_eq!((read.kind, read.flags), (1, 6));
            assert_eq!(read.branch_sample_type, if size >= 80 { 11 } else { 0 });
            assert_eq!(read.aux_sample_size, if size >= 120 { 18 } else { 0 });
        }
        for len in 0..bytes.len() {
            Attr::read(&bytes[..len]);
        }
    }
}
