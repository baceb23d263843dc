//! From what perf notes of a recording to the decoder's settings.

use crate::process::{Processes, SpaceEvent};
use crate::record::{PtInfo, TimeConv, conversion};
use ptflow_decoder::config::{CpuModel, Filter, PtConfig, TscConversion};
use ptflow_decoder::units::Ip;

/// The decoder's settings: AUXTRACE_INFO, TIME_CONV, and the event's config word, which has the layout of
/// IA32_RTIT_CTL (SDM Vol. 3, "IA32_RTIT_CTL MSR"; linux `arch/x86/events/intel/pt.c` names the same bits).
pub(crate) fn config(
    info: &PtInfo,
    time_conv: Option<&TimeConv>,
    event_config: u64,
    cpuid: Option<&str>,
) -> PtConfig {
    let bit = |mask: u64| event_config & mask != 0;
    // The masks of a file that does not tell them.
    let or = |mask: u64, default: u64| if mask == 0 { default } else { mask };
    let mtc_freq = or(info.mtc_freq_bits, 0x3c000);
    let ratio = info.tsc_ctc_ratio;
    let of_info =
        conversion(info.time_shift, info.time_mult, info.time_zero).filter(|_| info.cap_user_time_zero);
    let time = of_info.or(time_conv.and_then(TimeConv::conversion));
    let max_nonturbo_ratio = match u8::try_from(info.max_nonturbo_ratio).unwrap_or(0) {
        0 => time.map_or(0, bus_clocks),
        ratio => ratio,
    };
    PtConfig {
        tsc: bit(or(info.tsc_bit, 0x400)),
        mtc: bit(or(info.mtc_bit, 0x200)),
        mtc_period: ((event_config & mtc_freq) >> mtc_freq.trailing_zeros()) as u8,
        cyc: bit(or(info.cyc_bit, 0x2)),
        ret_compression: !bit(or(info.noretcomp_bit, 0x800)),
        // Without the pass-through bit the kernel forces branches on.
        branches: !bit(1) || bit(1 << 13),
        tsc_ctc_ratio: (ratio.0 != 0 && ratio.1 != 0).then_some(ratio),
        max_nonturbo_ratio,
        cpu: cpuid.and_then(cpu_model),
        time,
        event_trace: bit(1 << 31),
        filters: Vec::new(),
    }
}

/// The max non-turbo ratio by the TSC's own frequency, in units of the 100 MHz bus clock.
fn bus_clocks(time: TscConversion) -> u8 {
    let ticks = (1_000_000_000u128 << time.shift) / u128::from(time.mult.max(1));
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

/// The address filters at runtime addresses. perf notes them as `filter START/SIZE@FILE` or `stop START@FILE`, with
/// offsets in the file, or with addresses of the kernel where no file follows (linux `tools/perf/util/auxtrace.c`,
/// `addr_filter__to_str`). A file that is mapped at several places gives a filter for each.
pub(crate) fn filters(text: &str, processes: &Processes) -> Vec<Filter> {
    let mut words = text.split([' ', ',', '\n']).filter(|word| !word.is_empty());
    /// The hardware has at most four ranges (SDM Vol. 3, "Filtering by IP"); a damaged text may name any number.
    const MOST: usize = 16;
    let mut filters = Vec::new();
    for _ in 0..MOST {
        let (Some(action), Some(range)) = (words.next(), words.next()) else { break };
        // `start` switches tracing on and hides nothing by itself.
        let stop = match action {
            "filter" => false,
            "stop" | "tracestop" => true,
            _ => continue,
        };
        let (range, path) = range.split_once('@').map_or((range, None), |(range, path)| (range, Some(path)));
        let (start, size) = range.split_once('/').unwrap_or((range, "0x1"));
        let (Some(start), Some(size)) = (hex(start), hex(size)) else { continue };
        let Some(end) = start.checked_add(size) else { continue };
        match path {
            None => filters.push(Filter { start: Ip(start), end: Ip(end), stop }),
            Some(path) => mapped(processes, path, start, end, |start, end| {
                filters.push(Filter { start: Ip(start), end: Ip(end), stop });
            }),
        }
    }
    filters.sort_by_key(|filter| (filter.start, filter.end, filter.stop));
    filters.dedup();
    filters
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// Where the offsets from `start` to `end` of a file were mapped.
fn mapped(processes: &Processes, path: &str, start: u64, end: u64, mut found: impl FnMut(u64, u64)) {
    for (_, process) in processes.iter() {
        for event in &process.space {
            let SpaceEvent::Map(range) = event else { continue };
            if processes.files().get(range.file.0 as usize).is_none_or(|file| file.path != path) {
                continue;
            }
            let (from, to) = (start.max(range.pgoff), end.min(range.pgoff.saturating_add(range.len)));
            if from < to {
                let runtime = |offset: u64| range.addr.wrapping_add(offset - range.pgoff);
                found(runtime(from), runtime(to));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Mmap;
    use crate::{Pid, Tid};
    use ptflow_decoder::units::Ns;

    #[test]
    fn settings_of_a_real_recording() {
        // The numbers of a recording on a Core m7-6Y75 with perf's defaults, all packets but CYC.
        let info = PtInfo {
            pmu_type: 6,
            time_shift: 31,
            time_mult: 1_789_569_706,
            time_zero: 18_446_744_041_015_200_657,
            cap_user_time_zero: true,
            tsc_bit: 1024,
            noretcomp_bit: 2048,
            mtc_bit: 512,
            mtc_freq_bits: 245_760,
            tsc_ctc_ratio: (100, 2),
            cyc_bit: 2,
            max_nonturbo_ratio: 12,
            ..PtInfo::default()
        };
        let config = config(&info, None, 0x300e601, Some("GenuineIntel,6,78,3"));
        assert!(config.tsc && config.mtc && !config.cyc && config.ret_compression && config.branches);
        assert_eq!(
            (config.mtc_period, config.tsc_ctc_ratio, config.max_nonturbo_ratio),
            (3, Some((100, 2)), 12)
        );
        assert_eq!(config.cpu, Some(CpuModel { family: 6, model: 78, stepping: 3 }));
        assert_eq!(config.time.map(|time| time.mult), Some(1_789_569_706));
    }

    #[test]
    fn time_comes_from_either_record_and_gives_the_ratio() {
        let short = Some((0, 0, true, false));
        let time = TimeConv { shift: 31, mult: 1_789_569_706, zero: 7, short };
        let config = config(&PtInfo::default(), Some(&time), 0, None);
        assert_eq!(config.time.map(|time| time.zero), Some(7));
        // 2^31 / 1789569706 = 1.2 ticks a nanosecond.
        assert_eq!(config.max_nonturbo_ratio, 12);
        assert!(config.branches, "the kernel forces branches where the pass-through bit is clear");
    }

    #[test]
    fn filters_come_at_runtime_addresses() {
        let mut processes = Processes::default();
        for (pid, addr) in [(1, 0x7000_0000), (2, 0x9000_0000)] {
            let mmap = Mmap {
                pid: Pid(pid),
                tid: Tid(pid),
                addr,
                len: 0x3000,
                pgoff: 0x1000,
                build_id: None,
                prot: Some((5, 2)),
                misc: 2,
                filename: b"/bin/x",
            };
            processes.mmap(mmap, Ns(0), None);
        }
        let filter = |start, end, stop| Filter { start: Ip(start), end: Ip(end), stop };
        let text = "filter 0x2000/0x100@/bin/x,stop 0xffffffff81000000/0x10 filter 0x1/0x2@/bin/y";
        let expected = [
            filter(0x7000_1000, 0x7000_1100, false),
            filter(0x9000_1000, 0x9000_1100, false),
            filter(0xffff_ffff_8100_0000, 0xffff_ffff_8100_0010, true),
        ];
        assert_eq!(filters(text, &processes), expected);
        for text in ["filter", "filter x/y", "filter 0xffffffffffffffff/0x2", "stop 0x/0x"] {
            assert_eq!(filters(text, &processes), []);
        }
    }
}
