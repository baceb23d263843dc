//! Events in ptxed's words.

use super::packets::c_state;
use ptflow_decoder::ledger::LossReason;
use ptflow_decoder::packet::Packet;
use ptflow_decoder::sink::{Event, Off, Site};

/// An event: its words, and the addresses that it says.
#[derive(Clone, PartialEq, Debug)]
pub struct Words {
    pub text: String,
    /// `ip`, `at`, `from`, `to`.
    pub places: Vec<(String, u64)>,
}

impl Words {
    fn new(text: impl Into<String>, places: &[(&str, Option<u64>)]) -> Self {
        let places = places.iter().filter_map(|(name, place)| Some(((*name).to_owned(), (*place)?)));
        Self { text: text.into(), places: places.collect() }
    }

    /// Reads what stands between the brackets of a line.
    pub fn parse(text: &str) -> Self {
        let mut words = Self { text: String::new(), places: Vec::new() };
        for part in text.split(", ") {
            let place = part.split_once(": ").filter(|(name, _)| ["ip", "at", "from", "to"].contains(name));
            match place.and_then(|(name, value)| Some((name, u64::from_str_radix(value, 16).ok()?))) {
                Some((name, value)) => words.places.push((name.to_owned(), value)),
                None if words.text.is_empty() => words.text = part.to_owned(),
                None => words.text = format!("{}, {part}", words.text),
            }
        }
        words
    }

    /// Whether these are the expected words: no place that they name is another one here.
    pub fn fits(&self, expected: &Self) -> bool {
        self.text == expected.text && expected.places.iter().all(|place| self.places.contains(place))
    }
}

fn addr(site: &Site) -> Option<u64> {
    Some(site.addr.addr)
}

/// Events that change the flow; `None` for the others.
pub fn of_flow(event: &Event) -> Option<Words> {
    Some(match event {
        Event::Enabled { at, .. } => Words::new("enabled", &[("ip", addr(at))]),
        Event::Disabled { from, to, why } => {
            let at = if *why == Off::Async { addr(from) } else { None };
            Words::new("disabled", &[("at", at), ("ip", to.as_ref().and_then(addr))])
        }
        Event::Async { from, to } => Words::new("interrupt", &[("from", addr(from)), ("to", addr(to))]),
        Event::Gap { reason: LossReason::Overflow, .. } => Words::new("overflow", &[]),
        Event::Gap { .. } => Words::new("error", &[]),
        Event::Sync { .. } | Event::Told { .. } | Event::Owner { .. } => return None,
    })
}

/// What a packet tells of something else.
pub fn of_packet(packet: &Packet, at: Option<&Site>) -> Words {
    let text = match *packet {
        Packet::Ptw { payload, .. } => format!("ptwrite: {payload:x}"),
        Packet::ExStop { .. } => "exstop".to_owned(),
        Packet::Mwait { hints, ext } => format!("mwait {hints:x} {ext:x}"),
        Packet::Pwre { state, sub_state, .. } => format!("pwre c{}.{}", c_state(state), c_state(sub_state)),
        Packet::Pwrx { last, deepest, wake } => {
            let wake = match wake {
                1 => "int: ",
                4 => "st: ",
                8 => "hw: ",
                _ => "",
            };
            format!("pwrx {wake}c{} (c{})", c_state(last), c_state(deepest))
        }
        Packet::ModeTsx { abort: true, .. } => "aborted".to_owned(),
        Packet::ModeTsx { in_tx: true, .. } => "begin transaction".to_owned(),
        Packet::ModeTsx { .. } => "committed".to_owned(),
        Packet::Pip { cr3, non_root } => {
            format!("paging, cr3: {cr3:016x}{}", if non_root { ", nr" } else { "" })
        }
        Packet::Vmcs { base } => format!("vmcs, base: {base:016x}"),
        Packet::Cbr { ratio } => format!("cbr: {ratio:x}"),
        Packet::TraceStop => "stopped".to_owned(),
        Packet::Cfe { kind, vector, .. } => match kind {
            1 => format!("interrupt {vector}"),
            2 => "iret".to_owned(),
            3 => "smi".to_owned(),
            4 => "rsm".to_owned(),
            5 => format!("sipi: {vector:x}"),
            6 => "init".to_owned(),
            7 => "vmentry".to_owned(),
            8 => "vmexit".to_owned(),
            9 => format!("vmexit, intr: {vector}"),
            10 => "shutdown".to_owned(),
            12 => format!("uintr {vector}"),
            13 => "uiret".to_owned(),
            14 => format!("swintr {vector}"),
            15 => "syscall".to_owned(),
            kind => format!("cfe {kind}"),
        },
        // libipt turns the count of instructions into an address.
        Packet::Trig { mult, bits, .. } => format!("trig {bits:02x}{}", if mult { ", mult" } else { "" }),
        _ => packet.to_string(),
    };
    Words::new(text, &[("ip", at.and_then(addr))])
}
