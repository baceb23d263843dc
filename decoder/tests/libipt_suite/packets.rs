//! Packets in ptdump's words.

use super::case::Case;
use ptflow_decoder::packet::lexer::{BlockContext, LexError, lex};
use ptflow_decoder::packet::{ExecMode, Packet};
use ptflow_decoder::psb::next_psb;

/// Offset, where the tool prints it, and text.
type Line = (Option<u64>, String);

pub fn check(case: &Case) -> Option<String> {
    let has = |option: &str| case.ptdump_options.iter().any(|word| word == option);
    let expected: Vec<Line> =
        case.ptdump.as_ref()?.lines().filter_map(|line| expected(line, has("--raw"))).collect();
    // ptdump begins at the first PSB, unless told to take every byte.
    let from = if has("--no-sync") { 0 } else { next_psb(&case.trace, 0).unwrap_or(case.trace.len()) };
    let mut found = found(&case.trace, from);
    found.retain(|line| !(has("--no-cyc") && line.1.starts_with("cyc")));
    let same = expected.len() == found.len()
        && expected.iter().zip(&found).all(|(expected, found)| {
            expected.1 == found.1 && (expected.0.is_none() || expected.0 == found.0)
        });
    Some(if same { String::new() } else { format!("expected {expected:x?}\nfound    {found:x?}\n") })
}

/// A line of ptdump without the packet's bytes, and without the columns that say what it made of the packet.
fn expected(line: &str, bytes: bool) -> Option<Line> {
    const COLUMNS: [&str; 8] = ["tsc", "fcr", "cr3", "vmcs", "type", "ip", "em", "tick"];
    let mut words: Vec<&str> = line.split_whitespace().collect();
    let is_offset = |word: &str| word.len() == 16 && u64::from_str_radix(word, 16).is_ok();
    let mut offset = None;
    if words.first().is_some_and(|word| is_offset(word)) {
        offset = u64::from_str_radix(words.remove(0), 16).ok();
    }
    if bytes && !words.is_empty() {
        words.remove(0);
    }
    // Comments on what it could not work out, in brackets.
    let name = *words.first().filter(|word| !word.starts_with('['))?;
    // The column "ip" has a value behind it; the flag of that name stands last, or behind a comma.
    let is_flag = |at: usize| words[at] == "ip" && (at + 1 == words.len() || words[at - 1].ends_with(','));
    let column = (1..words.len()).find(|at| COLUMNS.contains(&words[*at]) && !is_flag(*at));
    words.truncate(column.unwrap_or(words.len()));
    // Its HW bit is libipt's own affair (docs/LIBIPT.md).
    let text = if name == "pwre" { words.join(" ").replace(", hw", "") } else { words.join(" ") };
    Some((offset, text))
}

/// As ptdump goes on behind bytes that are none: at the next PSB, which may have begun before them.
fn found(trace: &[u8], from: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    let (mut at, mut context) = (from, BlockContext::None);
    while at < trace.len() {
        match lex(&trace[at..], &mut context) {
            Ok((packet, len)) => {
                lines.push((Some(at as u64), text(&packet)));
                at += len;
            }
            Err(LexError::Truncated | LexError::BadPacket) => match next_psb(trace, at.saturating_sub(15)) {
                Some(psb) => at = psb,
                None => break,
            },
        }
    }
    lines
}

fn text(packet: &Packet) -> String {
    let fields = match *packet {
        Packet::ModeExec { mode, interrupt_flag } => {
            let mode = match mode {
                ExecMode::Bits16 => "",
                ExecMode::Bits32 => "cs.d",
                ExecMode::Bits64 => "cs.l",
            };
            join(&[mode, if interrupt_flag { "if" } else { "" }])
        }
        Packet::ModeTsx { in_tx, abort } => {
            join(&[if in_tx { "intx" } else { "" }, if abort { "abrt" } else { "" }])
        }
        Packet::Pip { cr3, non_root } => join(&[&format!("{cr3:x}"), if non_root { "nr" } else { "" }]),
        Packet::Vmcs { base } => format!("{base:x}"),
        Packet::Mnt { payload } => format!("{payload:x}"),
        Packet::Ptw { payload, wide, ip } => {
            format!("{}: {payload:x}{}", u8::from(wide), if ip { ", ip" } else { "" })
        }
        Packet::Mwait { hints, ext } => format!("{hints:08x}, {ext:08x}"),
        Packet::Pwre { state, sub_state, .. } => format!("c{}.{}", c_state(state), c_state(sub_state)),
        Packet::Pwrx { last, deepest, wake } => {
            let wake = match wake {
                1 => "int: ",
                4 => "st: ",
                8 => "hw: ",
                _ => "",
            };
            format!("{wake}c{}, c{}", c_state(last), c_state(deepest))
        }
        Packet::Cfe { kind, vector, ip } => {
            let vector = match kind {
                1 | 9 | 12 | 14 => format!(": {vector}"),
                5 => format!(": {vector:x}"),
                _ => String::new(),
            };
            format!("{kind}{vector}{}", if ip { ", ip" } else { "" })
        }
        Packet::Evd { kind, payload } => format!("{kind}: {payload:x}"),
        Packet::Trig { ip, mult, bits, count } => join(&[
            &format!("{bits:02x}"),
            if ip { "ip" } else { "" },
            if mult { "mult" } else { "" },
            &count.map(|count| format!("icnt: {count}")).unwrap_or_default(),
        ]),
        // The others we print as ptdump does.
        _ => return packet.to_string().split_whitespace().collect::<Vec<_>>().join(" "),
    };
    format!("{} {fields}", packet.name()).trim_end().to_owned()
}

/// C-states count from MWAIT's hint: 0 is C1, 15 is C0.
pub fn c_state(state: u8) -> u8 {
    (state + 1) & 15
}

fn join(parts: &[&str]) -> String {
    let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    parts.join(", ")
}
