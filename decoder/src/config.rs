//! How a trace was recorded: what the decoder must know besides the bytes.

use crate::units::{Ip, Ns, Tsc};

/// CPUID identification; chooses errata.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuModel {
    /// Display family (6 for all Intel PT CPUs so far, but 0x12 and 0x13 exist).
    pub family: u16,
    /// Display model.
    pub model: u16,
    /// Stepping.
    pub stepping: u8,
}

/// The settings of one Intel PT recording.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PtConfig {
    /// TSC packets are on.
    pub tsc: bool,
    /// MTC packets are on.
    pub mtc: bool,
    /// MTC period: one packet every 2^v crystal ticks.
    pub mtc_period: u8,
    /// CYC packets are on.
    pub cyc: bool,
    /// RET compression is on (the `noretcomp` bit is clear).
    pub ret_compression: bool,
    /// Branch packets are on.
    pub branches: bool,
    /// TSC ticks per crystal tick, as CPUID.15H (EBX, EAX); `None` where not enumerated: MTCs cannot be used.
    pub tsc_ctc_ratio: Option<(u32, u32)>,
    /// Max non-turbo ratio (bus clocks per TSC tick); 0 where not known.
    pub max_nonturbo_ratio: u8,
    /// The recording CPU, where known.
    pub cpu: Option<CpuModel>,
    /// TSC to perf's clock, where the file tells.
    pub time: Option<TscConversion>,
    /// Event Trace is on: MODE.Exec and a FUP tell of a change of the interrupt flag.
    pub event_trace: bool,
    /// Address filters, in runtime addresses; none: everything is traced.
    pub filters: Vec<Filter>,
}

/// An address filter of the recording.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Filter {
    /// First address.
    pub start: Ip,
    /// One past the last address.
    pub end: Ip,
    /// Tracing stops when control comes here; else: only what is in here is traced.
    pub stop: bool,
}

impl PtConfig {
    /// True where a branch to `ip` ends tracing: it lies in a stop region, or in none of the traced regions.
    pub fn is_filtered_out(&self, ip: Ip) -> bool {
        let mut traced = None;
        for filter in &self.filters {
            let inside = filter.start <= ip && ip < filter.end;
            if filter.stop && inside {
                return true;
            }
            if !filter.stop {
                traced = Some(traced.unwrap_or(false) || inside);
            }
        }
        traced == Some(false)
    }
}

impl Default for PtConfig {
    fn default() -> Self {
        Self {
            tsc: true,
            mtc: false,
            mtc_period: 0,
            cyc: false,
            ret_compression: true,
            branches: true,
            tsc_ctc_ratio: None,
            max_nonturbo_ratio: 0,
            cpu: None,
            time: None,
            event_trace: false,
            filters: Vec::new(),
        }
    }
}

/// The kernel's linear relation between TSC and perf's clock (`perf_event_mmap_page`, `cap_user_time_zero`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TscConversion {
    /// Right shift after the multiplication.
    pub shift: u16,
    /// Multiplier; never 0 in a usable conversion.
    pub mult: u32,
    /// Nanoseconds at TSC 0, modulo 2^64.
    pub zero: u64,
}

impl TscConversion {
    /// The perf time of a TSC value. Arithmetic as in the kernel's `tsc_to_perf_time`, modulo 2^64.
    pub fn to_ns(self, tsc: Tsc) -> Ns {
        let shift = u32::from(self.shift.min(63));
        let quot = tsc.0 >> shift;
        let rem = tsc.0 & ((1u64 << shift) - 1);
        let mult = u64::from(self.mult);
        Ns(self.zero.wrapping_add(quot.wrapping_mul(mult)).wrapping_add(rem.wrapping_mul(mult) >> shift))
    }

    /// A TSC value at that perf time; a time before TSC 0 gives a wrapped value as in the kernel's
    /// `perf_time_to_tsc`. `None` where `mult` is 0.
    pub fn to_tsc(self, ns: Ns) -> Option<Tsc> {
        let shift = u32::from(self.shift.min(63));
        let mult = u64::from(self.mult);
        let time = ns.0.wrapping_sub(self.zero);
        let quot = time.checked_div(mult)?;
        let rem = time.checked_rem(mult)?;
        Some(Tsc((quot << shift).wrapping_add((rem << shift) / mult)))
    }
}
