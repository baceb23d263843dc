//! Intel PT packets: one enum, read by the [`lexer`] and written by the [`encoder`], mirror images of each other.
//!
//! Byte layouts: Intel SDM vol. 3C, "Intel Processor Trace", section "Trace Packets and Data Types".

#[cfg(test)]
pub(crate) mod arbitrary;
mod display;
pub mod encoder;
mod ip;
pub mod lexer;
pub(crate) mod peek;
#[cfg(test)]
mod tests;

pub use ip::{IpBytes, IpPayload, LastIp};

/// Up to 47 branch outcomes, as a TNT packet carries them.
///
/// Bit `count - 1` is the oldest outcome, bit 0 the youngest; 1 = taken (or a compressed near RET).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TntBits {
    /// The outcomes, right-aligned.
    pub bits: u64,
    /// How many outcomes there are: 1..=6 in a short TNT, 1..=47 in a long one.
    pub count: u8,
}

/// The execution mode that MODE.Exec announces.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum ExecMode {
    /// CS.L = 0, CS.D = 0.
    Bits16,
    /// CS.L = 0, CS.D = 1.
    Bits32,
    /// CS.L = 1.
    #[default]
    Bits64,
}

/// One Intel PT packet. Fields are named as in the Intel manual.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the fields are the manual's own")]
pub enum Packet {
    /// Padding, one byte of zero.
    Pad,
    /// Synchronisation point: 16 bytes; clears last IP and the return stack.
    Psb,
    /// End of the status packets that follow a PSB.
    PsbEnd,
    /// 1..=6 branch outcomes.
    ShortTnt(TntBits),
    /// 1..=47 branch outcomes.
    LongTnt(TntBits),
    /// Target of an indirect branch, far branch or event.
    Tip(IpPayload),
    /// Tracing enabled, at this address.
    TipPge(IpPayload),
    /// Tracing disabled, having gone to this address.
    TipPgd(IpPayload),
    /// Source address of an event, or the address that a bound packet refers to.
    Fup(IpPayload),
    /// Execution mode at the next TIP or TIP.PGE (in PSB+: now).
    ModeExec { mode: ExecMode, interrupt_flag: bool },
    /// Transactional state.
    ModeTsx { in_tx: bool, abort: bool },
    /// Page-table base (CR3 with its low five bits zero) and VMX non-root bit.
    Pip { cr3: u64, non_root: bool },
    /// VMCS pointer (bits 51:12).
    Vmcs { base: u64 },
    /// Time-stamp counter, low 56 bits.
    Tsc { tsc: u64 },
    /// TSC to crystal-clock relation.
    Tma { ctc: u16, fast: u16 },
    /// Eight bits of the crystal clock.
    Mtc { ctc: u8 },
    /// Core cycles since the last CYC.
    Cyc { cycles: u64 },
    /// Core to bus ratio.
    Cbr { ratio: u8 },
    /// Packets were lost inside the CPU.
    Ovf,
    /// Tracing hit a stop region.
    TraceStop,
    /// Maintenance: opaque.
    Mnt { payload: u64 },
    /// PTWRITE operand; `wide` = 8 bytes; `ip` = a FUP with the instruction's address follows.
    Ptw { payload: u64, wide: bool, ip: bool },
    /// Execution stopped.
    ExStop { ip: bool },
    /// MWAIT operands.
    Mwait { hints: u8, ext: u8 },
    /// Power entry.
    Pwre { hw: bool, state: u8, sub_state: u8 },
    /// Power exit.
    Pwrx { last: u8, deepest: u8, wake: u8 },
    /// PEBS block begin; `short` items are 4 bytes wide.
    Bbp { short: bool, kind: u8 },
    /// PEBS block item.
    Bip { id: u8, value: u64, short: bool },
    /// PEBS block end.
    Bep { ip: bool },
    /// Control-flow event.
    Cfe { kind: u8, vector: u8, ip: bool },
    /// Event data.
    Evd { kind: u8, payload: u64 },
    /// Trigger; `count` (ICNT) where present, `mult` = several triggers since.
    Trig { ip: bool, mult: bool, bits: u8, count: Option<u16> },
}
