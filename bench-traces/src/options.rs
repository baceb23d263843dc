//! Options of a recording, on the command line and as words handed to the plugin.

use clap::{Args, ValueEnum};
use ptflow_decoder::config::TscConversion;

/// Which TNT packets are sent.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TntForm {
    /// Six outcomes a packet, as most CPUs.
    #[default]
    Short,
    /// 47 outcomes a packet.
    Long,
    /// Now short, now long, now half full.
    Mixed,
}

/// Which forms of compression IP packets have.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum IpForm {
    /// The shortest.
    #[default]
    Shortest,
    /// One form after another, every legal one.
    Mixed,
    /// Never compressed: 8 bytes.
    Full,
}

/// Options of the recorded trace; the defaults are those of perf's `intel_pt//u`.
#[derive(Args, Clone, Copy, PartialEq, Eq, Debug)]
pub struct PtOptions {
    /// CYC packets: cycle-accurate time
    #[arg(long)]
    pub cyc: bool,
    /// At least 2^(N-1) cycles between CYC packets; 0: no limit
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=12))]
    pub cyc_thresh: u8,
    /// No MTC packets
    #[arg(long)]
    pub no_mtc: bool,
    /// One MTC packet every 2^N crystal ticks
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=12))]
    pub mtc_period: u8,
    /// No TSC packets: no time at all
    #[arg(long)]
    pub no_tsc: bool,
    /// A PSB every 2^(N+11) bytes
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=10))]
    pub psb_period: u8,
    /// No RET compression
    #[arg(long)]
    pub noretcomp: bool,
    /// TNT packets
    #[arg(long, value_enum, default_value_t = TntForm::Short)]
    pub tnt: TntForm,
    /// IP packets
    #[arg(long, value_enum, default_value_t = IpForm::Shortest)]
    pub ip: IpForm,
    /// Indirect targets behind the outcomes of later branches, where the manual allows it
    #[arg(long)]
    pub defer_tips: bool,
    /// An interrupt at some instruction, about every N blocks
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub interrupts: u32,
    /// An end of an AUX record, where tracing stops and starts again without a PSB, about every N blocks
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub restarts: u32,
    /// A stretch of kernel code that no image holds, about every N blocks
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub kernel: u32,
    /// An overflow inside the CPU, about every N blocks
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub overflows: u32,
    /// A full AUX buffer, which cuts the trace in mid-packet, about every N blocks
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub truncations: u32,
    /// A stream for each of N CPUs, which the threads share, as `perf record` without `--per-thread`; 0: one a thread
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub per_cpu: u32,
    /// The recording begins at this many core cycles of the machine's clock: after another one
    #[arg(long, default_value_t = 0, value_name = "CYCLES")]
    pub start: u64,
}

impl PtOptions {
    /// Something is done to the flow besides recording it.
    pub fn disturbs(&self) -> bool {
        self.interrupts > 0 || self.restarts > 0 || self.loses()
    }

    /// Part of the flow is not in the trace.
    pub fn loses(&self) -> bool {
        self.kernel > 0 || self.overflows > 0 || self.truncations > 0
    }
}

impl Default for PtOptions {
    fn default() -> Self {
        Self {
            cyc: false,
            cyc_thresh: 0,
            no_mtc: false,
            mtc_period: 3,
            no_tsc: false,
            psb_period: 3,
            noretcomp: false,
            tnt: TntForm::Short,
            ip: IpForm::Shortest,
            defer_tips: false,
            interrupts: 0,
            restarts: 0,
            kernel: 0,
            overflows: 0,
            truncations: 0,
            per_cpu: 0,
            start: 0,
        }
    }
}

/// The machine that the recorder plays: a Kaby Lake at a constant clock.
pub mod machine {
    use super::TscConversion;

    /// CPUID as perf notes it.
    pub const CPUID: &str = "GenuineIntel,6,142,10";
    /// Core clock over bus clock: 3.0 GHz.
    pub const CORE_RATIO: u8 = 30;
    /// TSC over bus clock: 2.4 GHz.
    pub const TSC_RATIO: u8 = 24;
    /// TSC ticks per crystal tick (24 MHz).
    pub const TSC_CTC_RATIO: (u32, u32) = (100, 1);
    /// TSC when the recording begins.
    pub const TSC_START: u64 = 2_400_000_000_000;
    /// TSC to perf time: ns = tsc / 2.4, and the clock began when the machine did.
    pub const TIME: TscConversion = TscConversion { shift: 31, mult: 894_784_853, zero: 0 };

    /// The TSC at so many core cycles after the start.
    pub fn tsc(cycles: u64) -> u64 {
        TSC_START + cycles * u64::from(TSC_RATIO) / u64::from(CORE_RATIO)
    }

    /// Core cycles after the start at a time of the TSC.
    pub fn cycles(tsc: u64) -> u64 {
        tsc.saturating_sub(TSC_START) * u64::from(CORE_RATIO) / u64::from(TSC_RATIO)
    }
}

impl PtOptions {
    /// The event's config word, in the layout of IA32_RTIT_CTL.
    pub fn event_config(&self) -> u64 {
        let bit = |on: bool, bit: u32| u64::from(on) << bit;
        bit(true, 0)
            | bit(self.cyc, 1)
            | bit(!self.no_mtc && !self.no_tsc, 9)
            | bit(!self.no_tsc, 10)
            | bit(self.noretcomp, 11)
            | bit(true, 13)
            | u64::from(self.mtc_period) << 14
            | u64::from(self.cyc_thresh) << 19
            | u64::from(self.psb_period) << 24
    }

    /// The options as `name=value` words.
    pub fn to_words(self) -> Vec<String> {
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map(|value| value.get_name().to_owned()).unwrap_or_default()
        };
        vec![
            format!("cyc={}", u8::from(self.cyc)),
            format!("cyc_thresh={}", self.cyc_thresh),
            format!("no_mtc={}", u8::from(self.no_mtc)),
            format!("mtc_period={}", self.mtc_period),
            format!("no_tsc={}", u8::from(self.no_tsc)),
            format!("psb_period={}", self.psb_period),
            format!("noretcomp={}", u8::from(self.noretcomp)),
            format!("tnt={}", name(self.tnt.to_possible_value())),
            format!("ip={}", name(self.ip.to_possible_value())),
            format!("defer_tips={}", u8::from(self.defer_tips)),
            format!("interrupts={}", self.interrupts),
            format!("restarts={}", self.restarts),
            format!("kernel={}", self.kernel),
            format!("overflows={}", self.overflows),
            format!("truncations={}", self.truncations),
            format!("per_cpu={}", self.per_cpu),
            format!("start={}", self.start),
        ]
    }

    /// Takes one word in; false where it is none of these options.
    pub fn take_word(&mut self, name: &str, value: &str) -> bool {
        let number = value.parse::<u8>().unwrap_or(0);
        let on = number != 0;
        match name {
            "cyc" => self.cyc = on,
            "cyc_thresh" => self.cyc_thresh = number,
            "no_mtc" => self.no_mtc = on,
            "mtc_period" => self.mtc_period = number,
            "no_tsc" => self.no_tsc = on,
            "psb_period" => self.psb_period = number,
            "noretcomp" => self.noretcomp = on,
            "tnt" => self.tnt = TntForm::from_str(value, false).unwrap_or_default(),
            "ip" => self.ip = IpForm::from_str(value, false).unwrap_or_default(),
            "defer_tips" => self.defer_tips = on,
            "interrupts" => self.interrupts = value.parse().unwrap_or(0),
            "restarts" => self.restarts = value.parse().unwrap_or(0),
            "kernel" => self.kernel = value.parse().unwrap_or(0),
            "overflows" => self.overflows = value.parse().unwrap_or(0),
            "truncations" => self.truncations = value.parse().unwrap_or(0),
            "per_cpu" => self.per_cpu = value.parse().unwrap_or(0),
            "start" => self.start = value.parse().unwrap_or(0),
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_carry_every_option() {
        let options = PtOptions {
            cyc: true,
            cyc_thresh: 5,
            no_mtc: true,
            mtc_period: 9,
            no_tsc: true,
            psb_period: 0,
            noretcomp: true,
            tnt: TntForm::Mixed,
            ip: IpForm::Full,
            defer_tips: true,
            interrupts: 1000,
            restarts: 77,
            kernel: 1,
            overflows: 2,
            truncations: 300,
            per_cpu: 4,
            start: 1 << 40,
        };
        let mut back = PtOptions::default();
        for word in options.to_words() {
            let (name, value) = word.split_once('=').expect("a pair");
            assert!(back.take_word(name, value), "{word}");
        }
        assert_eq!(back, options);
    }

    #[test]
    fn perfs_default_config() {
        assert_eq!(PtOptions::default().event_config(), 0x300_e601);
    }
}
