//! AUXTRACE_INFO, AUXTRACE, AUXTRACE_ERROR: perf's side of a hardware trace.

use super::{Record, WriteRecord, kind};
use crate::bytes::{Fields, Put, Words, until_nul};
use crate::{Cpu, Pid, Tid};
use ptflow_decoder::units::{Ip, Ns, Tsc};

/// AUXTRACE_INFO of Intel PT: how it was set up (linux `tools/perf/util/intel-pt.h`, enum of the private words).
///
/// Older perf versions write fewer words; what they lack is 0 or false here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PtInfo {
    /// The PMU's type: which event is Intel PT.
    pub pmu_type: u32,
    /// TSC to perf time: right shift after the multiplication.
    pub time_shift: u64,
    /// TSC to perf time: multiplier.
    pub time_mult: u64,
    /// TSC to perf time: nanoseconds at TSC 0.
    pub time_zero: u64,
    /// The kernel knew the three above.
    pub cap_user_time_zero: bool,
    /// Mask of the event config's bit for TSC packets.
    pub tsc_bit: u64,
    /// Mask of the event config's bit that switches RET compression off.
    pub noretcomp_bit: u64,
    /// 0: no switch records, 1: sched_switch tracepoints, 2: SWITCH, 3: SWITCH_CPU_WIDE.
    pub have_sched_switch: u64,
    /// Snapshots of a ring, not a full trace.
    pub snapshot: bool,
    /// The trace is split by CPU, not by thread.
    pub per_cpu: bool,
    /// Mask of the event config's bit for MTC packets.
    pub mtc_bit: u64,
    /// Mask of the event config's MTC period.
    pub mtc_freq_bits: u64,
    /// TSC ticks per crystal tick: CPUID.15H EBX and EAX; zeros where not enumerated.
    pub tsc_ctc_ratio: (u32, u32),
    /// Mask of the event config's bit for CYC packets.
    pub cyc_bit: u64,
    /// Max non-turbo ratio; 0 where not known.
    pub max_nonturbo_ratio: u64,
    /// The address filters as perf notes them.
    pub filter: String,
    /// The CPU has Event Trace.
    pub cap_event_trace: bool,
}

/// Intel PT in AUXTRACE_INFO's type field (`enum auxtrace_type`).
const INTEL_PT: u32 = 1;
/// Words before the filter string.
const FIXED_WORDS: usize = 17;

impl PtInfo {
    /// Reads the body; `None` for other kinds of trace, or a record too short to name the PMU.
    pub fn read(record: &Record<'_>) -> Option<Self> {
        let mut f = Fields(record.body);
        if f.u32()? != INTEL_PT {
            return None;
        }
        f.u32()?;
        let words = Words::new(f.0);
        let word = |index: usize| words.get(index).unwrap_or(0);
        let filter_len = usize::try_from(word(16)).unwrap_or(0);
        let behind = f.0.get(8 * FIXED_WORDS..).unwrap_or(&[]);
        let filter = behind.get(..filter_len).unwrap_or(&[]);
        let cap_event_trace = match filter_len {
            0 => word(FIXED_WORDS),
            len => len
                .checked_add(1)
                .and_then(|len| behind.get(len.checked_next_multiple_of(8)?..))
                .and_then(|rest| Fields(rest).u64())
                .unwrap_or(0),
        };
        Some(Self {
            pmu_type: u32::try_from(words.get(0)?).ok()?,
            time_shift: word(1),
            time_mult: word(2),
            time_zero: word(3),
            cap_user_time_zero: word(4) != 0,
            tsc_bit: word(5),
            noretcomp_bit: word(6),
            have_sched_switch: word(7),
            snapshot: word(8) != 0,
            per_cpu: word(9) != 0,
            mtc_bit: word(10),
            mtc_freq_bits: word(11),
            tsc_ctc_ratio: (word(12) as u32, word(13) as u32),
            cyc_bit: word(14),
            max_nonturbo_ratio: word(15),
            filter: String::from_utf8_lossy(until_nul(filter)).into_owned(),
            cap_event_trace: cap_event_trace != 0,
        })
    }
}

impl WriteRecord for PtInfo {
    fn kind(&self) -> u32 {
        kind::AUXTRACE_INFO
    }

    fn body(&self, out: &mut Vec<u8>) {
        out.u32(INTEL_PT);
        out.u32(0);
        let words: [u64; FIXED_WORDS] = [
            u64::from(self.pmu_type),
            self.time_shift,
            self.time_mult,
            self.time_zero,
            u64::from(self.cap_user_time_zero),
            self.tsc_bit,
            self.noretcomp_bit,
            self.have_sched_switch,
            u64::from(self.snapshot),
            u64::from(self.per_cpu),
            self.mtc_bit,
            self.mtc_freq_bits,
            u64::from(self.tsc_ctc_ratio.0),
            u64::from(self.tsc_ctc_ratio.1),
            self.cyc_bit,
            self.max_nonturbo_ratio,
            self.filter.len() as u64,
        ];
        words.iter().for_each(|word| out.u64(*word));
        if !self.filter.is_empty() {
            let start = out.len();
            out.c_string(self.filter.as_bytes());
            out.resize(start + (out.len() - start).next_multiple_of(8), 0);
        }
        out.u64(u64::from(self.cap_event_trace));
    }
}

/// The fixed part of AUXTRACE; the trace bytes are the record's payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AuxTrace {
    /// Bytes that follow, with up to seven of padding.
    pub size: u64,
    /// Where in the AUX stream they belong.
    pub offset: u64,
    /// TSC when perf read them; 0 where not known.
    pub reference: Tsc,
    /// Queue.
    pub idx: u32,
    /// Thread, where the buffer belongs to one.
    pub tid: Option<Tid>,
    /// CPU, where the buffer belongs to one.
    pub cpu: Option<Cpu>,
}

impl AuxTrace {
    /// Reads the body.
    pub fn read(record: &Record<'_>) -> Option<Self> {
        let mut f = Fields(record.body);
        let (size, offset, reference) = (f.u64()?, f.u64()?, Tsc(f.u64()?));
        let (idx, tid, cpu) = (f.u32()?, f.u32()?, f.u32()?);
        let known = |id: u32| (id != u32::MAX).then_some(id);
        Some(Self { size, offset, reference, idx, tid: known(tid).map(Tid), cpu: known(cpu).map(Cpu) })
    }
}

impl WriteRecord for AuxTrace {
    fn kind(&self) -> u32 {
        kind::AUXTRACE
    }

    fn body(&self, out: &mut Vec<u8>) {
        out.u64(self.size);
        out.u64(self.offset);
        out.u64(self.reference.0);
        out.u32(self.idx);
        out.u32(self.tid.map_or(u32::MAX, |tid| tid.0));
        out.u32(self.cpu.map_or(u32::MAX, |cpu| cpu.0));
        out.u32(0);
    }
}

/// AUXTRACE_ERROR: what an earlier decoding (`perf inject`) could not make out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AuxTraceError<'m> {
    /// 1: of instruction trace.
    pub kind: u32,
    /// The decoder's error code.
    pub code: u32,
    /// CPU.
    pub cpu: u32,
    /// Process.
    pub pid: Pid,
    /// Thread.
    pub tid: Tid,
    /// The last known address.
    pub ip: Ip,
    /// When; only newer files tell.
    pub time: Option<Ns>,
    /// In words.
    pub message: &'m [u8],
}

impl<'m> AuxTraceError<'m> {
    /// Reads the body.
    pub fn read(record: &Record<'m>) -> Option<Self> {
        let mut f = Fields(record.body);
        let (kind, code, cpu) = (f.u32()?, f.u32()?, f.u32()?);
        let (pid, tid, format) = (Pid(f.u32()?), Tid(f.u32()?), f.u32()?);
        let ip = Ip(f.u64()?);
        let time = if format >= 1 { Some(Ns(f.u64()?)) } else { None };
        let message = until_nul(&f.0[..f.0.len().min(MESSAGE)]);
        Some(Self { kind, code, cpu, pid, tid, ip, time, message })
    }
}

/// `MAX_AUXTRACE_ERROR_MSG`.
const MESSAGE: usize = 64;

impl WriteRecord for AuxTraceError<'_> {
    fn kind(&self) -> u32 {
        kind::AUXTRACE_ERROR
    }

    fn body(&self, out: &mut Vec<u8>) {
        for field in [self.kind, self.code, self.cpu, self.pid.0, self.tid.0, u32::from(self.time.is_some())]
        {
            out.u32(field);
        }
        out.u64(self.ip.0);
        if let Some(time) = self.time {
            out.u64(time.0);
        }
        let mut message = [0; MESSAGE];
        let len = self.message.len().min(MESSAGE - 1);
        message[..len].copy_from_slice(&self.message[..len]);
        out.bytes(&message);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{cut_everywhere, through_bytes};
    use super::*;

    fn info() -> PtInfo {
        PtInfo {
            pmu_type: 8,
            time_shift: 31,
            time_mult: 1_789_569_706,
            time_zero: u64::MAX - 5,
            cap_user_time_zero: true,
            tsc_bit: 0x400,
            noretcomp_bit: 0x800,
            have_sched_switch: 3,
            snapshot: true,
            per_cpu: true,
            mtc_bit: 0x200,
            mtc_freq_bits: 0x3c000,
            tsc_ctc_ratio: (250, 2),
            cyc_bit: 2,
            max_nonturbo_ratio: 30,
            filter: String::new(),
            cap_event_trace: true,
        }
    }

    #[test]
    fn info_round_trips_with_and_without_filter() {
        for filter in ["", "filter 0x10/0x20@/bin/x", "seven..", "eight..."] {
            let info = PtInfo { filter: filter.to_owned(), ..info() };
            through_bytes(&info, |record| assert_eq!(PtInfo::read(record), Some(info.clone())));
            cut_everywhere(&info, |record| _ = PtInfo::read(record));
        }
    }

    #[test]
    fn info_of_old_files_is_short() {
        let mut body = Vec::new();
        info().body(&mut body);
        let read = |body: &[u8]| {
            PtInfo::read(&Record { kind: 70, misc: 0, body, payload: &[], offset: crate::FileOffset(0) })
        };
        // The first perf with Intel PT wrote ten words.
        let old = read(&body[..88]).unwrap();
        assert!(old.per_cpu && old.mtc_bit == 0 && old.filter.is_empty() && !old.cap_event_trace);
        // Another kind of trace.
        body[0] = 2;
        assert_eq!(read(&body), None);
    }

    #[test]
    fn a_filter_length_beyond_the_record_is_no_filter() {
        let mut body = Vec::new();
        info().body(&mut body);
        for len in [u64::MAX, u64::MAX - 7, 100] {
            body[8 + 16 * 8..][..8].copy_from_slice(&len.to_le_bytes());
            let record =
                Record { kind: 70, misc: 0, body: &body, payload: &[], offset: crate::FileOffset(0) };
            assert_eq!(PtInfo::read(&record).unwrap().filter, "");
        }
    }

    #[test]
    fn others_round_trip() {
        for (tid, cpu) in [(Some(Tid(5)), None), (None, Some(Cpu(0))), (Some(Tid(5)), Some(Cpu(3)))] {
            let trace = AuxTrace { size: 8, offset: 1 << 33, reference: Tsc(77), idx: 2, tid, cpu };
            through_bytes(&trace, |record| assert_eq!(AuxTrace::read(record), Some(trace)));
            cut_everywhere(&trace, |record| _ = AuxTrace::read(record));
        }
        for time in [None, Some(Ns(9))] {
            let error = AuxTraceError {
                kind: 1,
                code: 8,
                cpu: 0,
                pid: Pid(1),
                tid: Tid(2),
                ip: Ip(3),
                time,
                message: b"Lost trace data",
            };
            through_bytes(&error, |record| assert_eq!(AuxTraceError::read(record), Some(error)));
            cut_everywhere(&error, |record| _ = AuxTraceError::read(record));
        }
    }
}
