//! AUXTRACE_INFO and TIME_CONV: how Intel PT was set up (linux `tools/perf/util/intel-pt.c`, enum in `intel-pt.h`).

use crate::bytes::{Fields, until_nul};
use ptflow_decoder::config::{CpuModel, PtConfig, TscConversion};

/// AUXTRACE_INFO for Intel PT.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PtInfo {
    /// The PMU's type: which event is Intel PT.
    pub pmu_type: u32,
    /// The trace is split by CPU, not by thread.
    pub per_cpu: bool,
    /// Snapshots of a ring, not a full trace.
    pub snapshot: bool,
    /// The address filters as perf notes them.
    pub filter: String,
    /// The words as they are.
    words: Vec<u64>,
}

/// Intel PT in AUXTRACE_INFO's type field.
const INTEL_PT: u32 = 1;

impl PtInfo {
    /// Reads the record's body; `None` for other kinds of trace, or a record too short to say anything.
    pub fn read(body: &[u8]) -> Option<Self> {
        let mut f = Fields(body);
        if f.u32()? != INTEL_PT {
            return None;
        }
        f.u32()?;
        let words: Vec<u64> = f.0.chunks_exact(8).filter_map(|word| Fields(word).u64()).collect();
        let word = |index: usize| words.get(index).copied().unwrap_or(0);
        let filter_len = usize::try_from(word(16)).unwrap_or(0);
        let filter = f.0.get(17 * 8..).and_then(|rest| rest.get(..filter_len)).unwrap_or(&[]);
        Some(Self {
            pmu_type: u32::try_from(*words.first()?).ok()?,
            snapshot: word(8) != 0,
            per_cpu: word(9) != 0,
            filter: String::from_utf8_lossy(until_nul(filter)).into_owned(),
            words,
        })
    }

    fn word(&self, index: usize) -> u64 {
        self.words.get(index).copied().unwrap_or(0)
    }

    /// The decoder's settings: this and the event's config word, which is the layout of IA32_RTIT_CTL.
    pub fn config(&self, event_config: u64, cpuid: Option<&str>) -> PtConfig {
        let bit = |mask: u64| event_config & mask != 0;
        let mask_or = |index: usize, default: u64| match self.word(index) {
            0 => default,
            mask => mask,
        };
        let mtc_freq = mask_or(11, 0x3c000);
        let ratio = (self.word(12) as u32, self.word(13) as u32);
        let time = self.conversion();
        let max_nonturbo = match self.word(15) as u8 {
            0 => time.map_or(0, bus_clocks),
            ratio => ratio,
        };
        PtConfig {
            tsc: bit(mask_or(5, 0x400)),
            mtc: bit(mask_or(10, 0x200)),
            mtc_period: ((event_config & mtc_freq) >> mtc_freq.trailing_zeros()) as u8,
            cyc: bit(mask_or(14, 0x2)),
            ret_compression: !bit(mask_or(6, 0x800)),
            // Without the pass-through bit the kernel forces branches on.
            branches: !bit(1) || bit(1 << 13),
            tsc_ctc_ratio: (ratio.0 != 0 && ratio.1 != 0).then_some(ratio),
            max_nonturbo_ratio: max_nonturbo,
            cpu: cpuid.and_then(cpu_model),
            time,
            event_trace: bit(1 << 31),
            filters: Vec::new(),
        }
    }

    /// TSC to perf time; `None` where the kernel could not tell.
    pub fn conversion(&self) -> Option<TscConversion> {
        let mult = u32::try_from(self.word(2)).ok().filter(|mult| *mult != 0)?;
        let shift = u16::try_from(self.word(1)).ok().filter(|shift| *shift < 64)?;
        (self.word(4) != 0).then_some(TscConversion { shift, mult, zero: self.word(3) })
    }
}

/// The max non-turbo ratio by the TSC's own frequency, in units of the 100 MHz bus clock.
fn bus_clocks(time: TscConversion) -> u8 {
    let ticks = (1_000_000_000u128 << time.shift) / u128::from(time.mult);
    u8::try_from((ticks + 50_000_000) / 100_000_000).unwrap_or(0)
}

/// "GenuineIntel,6,142,10".
fn cpu_model(cpuid: &str) -> Option<CpuModel> {
    let mut parts = cpuid.split(',');
    if parts.next()? != "GenuineIntel" {
        return None;
    }
    Some(CpuModel {
        family: parts.next()?.parse().ok()?,
        model: parts.next()?.parse().ok()?,
        stepping: parts.next()?.parse().ok()?,
    })
}
