//! Packets as text: one line each, in the words and the layout of libipt's ptdump.

use std::fmt;

use super::{ExecMode, IpBytes, IpPayload, Packet, TntBits};

/// Width of the name column.
const NAME: usize = 11;

/// The packet's name and its fields, without offset or line end. TNT outcomes stand oldest first, `!` taken and `.` not
/// taken; digits of an IP that come from the last IP are `?`.
impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match *self {
            Packet::Pad | Packet::Psb | Packet::PsbEnd | Packet::Ovf | Packet::TraceStop => f.write_str(name),
            Packet::ShortTnt(outcomes) | Packet::LongTnt(outcomes) => write!(f, "{name:NAME$}{outcomes}"),
            Packet::Tip(ip) | Packet::TipPge(ip) | Packet::TipPgd(ip) | Packet::Fup(ip) => {
                write!(f, "{name:NAME$}{ip}")
            }
            Packet::ModeExec { mode, interrupt_flag } => {
                let mode = match mode {
                    ExecMode::Bits16 => "16-bit",
                    ExecMode::Bits32 => "32-bit",
                    ExecMode::Bits64 => "64-bit",
                };
                write!(f, "{name:NAME$}{mode}{}", mark(interrupt_flag, ", if"))
            }
            Packet::ModeTsx { in_tx, abort } => {
                let state = match (in_tx, abort) {
                    (false, false) => "none",
                    (true, false) => "intx",
                    (false, true) => "abrt",
                    (true, true) => "intx, abrt",
                };
                write!(f, "{name:NAME$}{state}")
            }
            Packet::Pip { cr3, non_root } => write!(f, "{name:NAME$}{cr3:016x}{}", mark(non_root, ", nr")),
            Packet::Vmcs { base } => write!(f, "{name:NAME$}{base:016x}"),
            Packet::Tsc { tsc } => write!(f, "{name:NAME$}{tsc:x}"),
            Packet::Tma { ctc, fast } => write!(f, "{name:NAME$}{ctc:x}, {fast:x}"),
            Packet::Mtc { ctc } => write!(f, "{name:NAME$}{ctc:x}"),
            Packet::Cyc { cycles } => write!(f, "{name:NAME$}{cycles:x}"),
            Packet::Cbr { ratio } => write!(f, "{name:NAME$}{ratio:x}"),
            Packet::Mnt { payload } => write!(f, "{name:NAME$}{payload:x}"),
            Packet::Ptw { payload, wide, ip } => {
                let digits = if wide { 16 } else { 8 };
                write!(f, "{name:NAME$}{payload:0digits$x}{}", mark(ip, ", ip"))
            }
            Packet::ExStop { ip } | Packet::Bep { ip } => match ip {
                true => write!(f, "{name:NAME$}ip"),
                false => f.write_str(name),
            },
            Packet::Mwait { hints, ext } => write!(f, "{name:NAME$}{hints:02x}, {ext:x}"),
            Packet::Pwre { hw, state, sub_state } => {
                write!(f, "{name:NAME$}c{state}.{sub_state}{}", mark(hw, ", hw"))
            }
            Packet::Pwrx { last, deepest, wake } => {
                write!(f, "{name:NAME$}last c{last}, deepest c{deepest}, wake {wake:x}")
            }
            Packet::Bbp { short, kind } => {
                write!(f, "{name:NAME$}type {kind}, {}-byte items", if short { 4 } else { 8 })
            }
            Packet::Bip { id, value, short } => {
                let digits = if short { 8 } else { 16 };
                write!(f, "{name:NAME$}id {id}: {value:0digits$x}")
            }
            Packet::Cfe { kind, vector, ip } => {
                write!(f, "{name:NAME$}{}, vector {vector}{}", Event(kind), mark(ip, ", ip"))
            }
            Packet::Evd { kind, payload } => write!(f, "{name:NAME$}{}: {payload:016x}", EventData(kind)),
            Packet::Trig { ip, mult, bits, count } => {
                write!(f, "{name:NAME$}{bits:02x}")?;
                if let Some(count) = count {
                    write!(f, ", icnt {count}")?;
                }
                write!(f, "{}{}", mark(mult, ", mult"), mark(ip, ", ip"))
            }
        }
    }
}

fn mark(set: bool, text: &'static str) -> &'static str {
    if set { text } else { "" }
}

impl Packet {
    /// The packet's name in lower case, as `dump packets` prints it.
    pub fn name(&self) -> &'static str {
        match self {
            Packet::Pad => "pad",
            Packet::Psb => "psb",
            Packet::PsbEnd => "psbend",
            Packet::ShortTnt(_) => "tnt.8",
            Packet::LongTnt(_) => "tnt.64",
            Packet::Tip(_) => "tip",
            Packet::TipPge(_) => "tip.pge",
            Packet::TipPgd(_) => "tip.pgd",
            Packet::Fup(_) => "fup",
            Packet::ModeExec { .. } => "mode.exec",
            Packet::ModeTsx { .. } => "mode.tsx",
            Packet::Pip { .. } => "pip",
            Packet::Vmcs { .. } => "vmcs",
            Packet::Tsc { .. } => "tsc",
            Packet::Tma { .. } => "tma",
            Packet::Mtc { .. } => "mtc",
            Packet::Cyc { .. } => "cyc",
            Packet::Cbr { .. } => "cbr",
            Packet::Ovf => "ovf",
            Packet::TraceStop => "stop",
            Packet::Mnt { .. } => "mnt",
            Packet::Ptw { .. } => "ptw",
            Packet::ExStop { .. } => "exstop",
            Packet::Mwait { .. } => "mwait",
            Packet::Pwre { .. } => "pwre",
            Packet::Pwrx { .. } => "pwrx",
            Packet::Bbp { .. } => "bbp",
            Packet::Bip { .. } => "bip",
            Packet::Bep { .. } => "bep",
            Packet::Cfe { .. } => "cfe",
            Packet::Evd { .. } => "evd",
            Packet::Trig { .. } => "trig",
        }
    }
}

/// The outcomes, oldest first: `!` taken, `.` not taken.
impl fmt::Display for TntBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for bit in (0..u32::from(self.count)).rev() {
            let taken = self.bits.checked_shr(bit).is_some_and(|bits| bits & 1 != 0);
            f.write_str(if taken { "!" } else { "." })?;
        }
        Ok(())
    }
}

/// IPBytes and the address in 16 digits; those that come from the last IP are `?`. The sign-extended form says its
/// whole address.
impl fmt::Display for IpPayload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (code, raw) = (self.form.code(), self.raw);
        match self.form {
            IpBytes::Suppressed => write!(f, "{code}: ????????????????"),
            IpBytes::Update16 => write!(f, "{code}: ????????????{raw:04x}"),
            IpBytes::Update32 => write!(f, "{code}: ????????{raw:08x}"),
            IpBytes::Update48 => write!(f, "{code}: ????{raw:012x}"),
            IpBytes::Sext48 => write!(f, "{code}: {:016x}", super::LastIp(0).update(*self).unwrap_or(raw)),
            IpBytes::Full => write!(f, "{code}: {raw:016x}"),
        }
    }
}

/// The event type of a CFE packet (SDM, "Control Flow Event (CFE) Packet").
struct Event(u8);

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0x01 => "intr",
            0x02 => "iret",
            0x03 => "smi",
            0x04 => "rsm",
            0x05 => "sipi",
            0x06 => "init",
            0x07 => "vmentry",
            0x08 => "vmexit",
            0x09 => "vmexit_intr",
            0x0a => "shutdown",
            0x0c => "uintr",
            0x0d => "uiret",
            0x0e => "swintr",
            0x0f => "syscall",
            other => return write!(f, "type {other}"),
        })
    }
}

/// The type of an EVD packet's payload (SDM, "Event Data (EVD) Packet").
struct EventData(u8);

impl fmt::Display for EventData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0 => "cr2",
            1 => "vmxq",
            2 => "vmxr",
            other => return write!(f, "type {other}"),
        })
    }
}
