//! The time at every TSC and MTC packet.

use super::case::{Case, number_behind};
use ptflow_decoder::clock::Clock;
use ptflow_decoder::packet::Packet;
use ptflow_decoder::packet::lexer::{BlockContext, lex};
use std::fmt::Write as _;

pub fn check(case: &Case) -> Option<String> {
    let options = &case.ptdump_options;
    let has = |option: &str| options.iter().any(|word| word == option);
    // Without wall clock there is no TSC packet, and to us no time.
    if !has("--time") || has("--no-wall-clock") {
        return None;
    }
    let number = |key| number_behind(options, key).unwrap_or(0);
    let mut config = case.config.clone();
    (config.tsc, config.mtc, config.cyc) = (true, true, true);
    config.mtc_period = number("--mtc-freq") as u8;
    config.max_nonturbo_ratio = number("--nom-freq") as u8;
    config.tsc_ctc_ratio = Some((number("--cpuid-0x15.ebx") as u32, number("--cpuid-0x15.eax") as u32));
    let mut clock = Clock::new(&config);
    let (mut at, mut context) = (0, BlockContext::None);
    let mut complaint = String::new();
    let expected = expected(case.ptdump.as_ref()?);
    while let Ok((packet, len)) = lex(&case.trace[at..], &mut context) {
        match packet {
            Packet::Tsc { tsc } => clock.tsc(tsc, 0),
            Packet::Tma { ctc, fast } => clock.tma(ctc, fast),
            Packet::Mtc { ctc } => clock.mtc(ctc, 0),
            _ => {}
        }
        if matches!(packet, Packet::Tsc { .. } | Packet::Mtc { .. })
            && let Some((_, tsc)) = expected.iter().find(|(offset, _)| *offset == at as u64)
            && clock.now().map(|now| now.0) != Some(*tsc)
        {
            let _ = writeln!(complaint, "at {at:#x}: {:x?}, expected {tsc:x}", clock.now());
        }
        at += len;
    }
    Some(complaint)
}

/// Offset and time; a sign is for a difference to the time before.
fn expected(text: &str) -> Vec<(u64, u64)> {
    let mut now = 0u64;
    let mut times = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [offset, .., "tsc", time] = words[..] else { continue };
        let digits = time.trim_start_matches(['+', '-']);
        let (Ok(offset), Ok(value)) = (u64::from_str_radix(offset, 16), u64::from_str_radix(digits, 16))
        else {
            continue;
        };
        now = match time.as_bytes()[0] {
            b'+' => now + value,
            b'-' => now - value,
            _ => value,
        };
        times.push((offset, now));
    }
    times
}
