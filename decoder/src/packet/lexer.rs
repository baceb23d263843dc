//! Bytes to packets.
//!
//! A packet has no length field and no alignment: its first one to three bytes decide everything (SDM vol. 3C,
//! "Packet Definitions"). All payloads are little endian.
//!
//! What the manual reserves is handled by one rule: where both readings of the bytes would be guesses, they are
//! [`LexError::BadPacket`]; where the packet is certain and only some spare bits are set, the bits are ignored.
//! - Bad: IPBytes 5 and 7, unknown opcodes, MODE leaves but Exec and TSX, MODE.Exec with CS.L and CS.D, MODE.TSX with
//!   InTX and Abort, PTW sizes 2 and 3, TMA with reserved bits (the only trace of erratum SKZ84, which also adds a
//!   byte), a long TNT without an outcome or a stop bit, a CYC beyond 64 bits.
//! - Ignored: CBR byte 3, MODE bits 4:2 (but MODE.Exec's IF), MWAIT but hints and the two low bits of its extensions,
//!   PWRE bits 6:0, PWRX bits 39:12, BBP bits 6:5, CFE bits 6:5, EVD type bits 7:6, TRIG byte 1 bits 4:0, and zeros
//!   that make a CYC longer than it needs to be.
//!
//! Bytes with an ignored bit set are *not canonical*: the [encoder](super::encoder) writes zeros there. All other
//! accepted bytes come back from it as they were.

use super::{ExecMode, IpBytes, IpPayload, Packet, TntBits};
use crate::psb::PSB;

/// The lexer's only state: inside a PEBS block some short TNT bytes are block items instead.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BlockContext {
    /// Outside a block.
    #[default]
    None,
    /// Items of four bytes.
    Short,
    /// Items of eight bytes.
    Long,
}

impl BlockContext {
    /// The context after a packet.
    ///
    /// A block ends at BEP and at every packet that may not stand in one. Timing, power and maintenance packets and
    /// FUP may (SDM, "Block Item Packet"; the same list as `intel_pt_upd_pkt_ctx` in Linux
    /// tools/perf/util/intel-pt-decoder/intel-pt-pkt-decoder.c).
    #[inline]
    #[must_use]
    pub fn after(self, packet: &Packet) -> Self {
        match packet {
            Packet::Bbp { short: true, .. } => Self::Short,
            Packet::Bbp { short: false, .. } => Self::Long,
            Packet::Pad
            | Packet::Tsc { .. }
            | Packet::Tma { .. }
            | Packet::Mtc { .. }
            | Packet::Cyc { .. }
            | Packet::Cbr { .. }
            | Packet::Fup(_)
            | Packet::Mnt { .. }
            | Packet::ExStop { .. }
            | Packet::Pwre { .. }
            | Packet::Pwrx { .. }
            | Packet::Bip { .. } => self,
            _ => Self::None,
        }
    }
}

/// Why no packet could be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LexError {
    /// These bytes begin no legal packet.
    BadPacket,
    /// The bytes end inside a packet that is legal as far as it goes.
    Truncated,
}

impl std::fmt::Display for LexError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::BadPacket => "bad packet",
            Self::Truncated => "truncated packet",
        })
    }
}

impl std::error::Error for LexError {}

/// Reads the packet at the start of `bytes`: the packet and its length in bytes (1..=16).
///
/// `context` is brought up to date; an error leaves it as it was.
///
/// # Errors
/// [`LexError::Truncated`] for no bytes at all and for a legal beginning of a packet, else [`LexError::BadPacket`].
#[inline]
pub fn lex(bytes: &[u8], context: &mut BlockContext) -> Result<(Packet, usize), LexError> {
    let &first = bytes.first().ok_or(LexError::Truncated)?;
    let (packet, len) = match *context {
        BlockContext::Short if first & 0x07 == 0x04 => (bip(first, le::<4>(bytes, 1)?, true), 5),
        BlockContext::Long if first & 0x07 == 0x04 => (bip(first, le::<8>(bytes, 1)?, false), 9),
        _ => plain(first, bytes)?,
    };
    *context = context.after(&packet);
    Ok((packet, len))
}

fn bip(first: u8, value: u64, short: bool) -> Packet {
    Packet::Bip { id: first >> 3, value, short }
}

/// Any packet but BIP, by its first byte.
#[inline]
fn plain(first: u8, bytes: &[u8]) -> Result<(Packet, usize), LexError> {
    match first {
        0x00 => Ok((Packet::Pad, 1)),
        0x02 => extended(bytes),
        // 0x04 is the least here, so there are one to six outcomes.
        _ if first & 0x01 == 0 => Ok((Packet::ShortTnt(tnt(u64::from(first >> 1))), 1)),
        _ if first & 0x03 == 0x03 => cyc(first, bytes),
        0x19 => Ok((Packet::Tsc { tsc: le::<7>(bytes, 1)? }, 8)),
        0x59 => Ok((Packet::Mtc { ctc: byte(bytes, 1)? }, 2)),
        0x99 => Ok((mode(byte(bytes, 1)?)?, 2)),
        0xd9 => trig(bytes),
        _ => {
            let make = match first & 0x1f {
                0x0d => Packet::Tip,
                0x11 => Packet::TipPge,
                0x01 => Packet::TipPgd,
                0x1d => Packet::Fup,
                _ => return Err(LexError::BadPacket),
            };
            let form = IpBytes::from_code(first >> 5).ok_or(LexError::BadPacket)?;
            let raw = match form {
                IpBytes::Suppressed => 0,
                IpBytes::Update16 => le::<2>(bytes, 1)?,
                IpBytes::Update32 => le::<4>(bytes, 1)?,
                IpBytes::Sext48 | IpBytes::Update48 => le::<6>(bytes, 1)?,
                IpBytes::Full => le::<8>(bytes, 1)?,
            };
            Ok((make(IpPayload { form, raw }), 1 + form.payload_len()))
        }
    }
}

/// Packets that begin with 0x02: the second byte decides.
fn extended(bytes: &[u8]) -> Result<(Packet, usize), LexError> {
    Ok(match byte(bytes, 1)? {
        0x82 => return psb(bytes),
        0x23 => (Packet::PsbEnd, 2),
        0xa3 => {
            let field = le::<6>(bytes, 2)?;
            if field <= 1 {
                return Err(LexError::BadPacket);
            }
            (Packet::LongTnt(tnt(field)), 8)
        }
        0x43 => {
            let field = le::<6>(bytes, 2)?;
            (Packet::Pip { cr3: (field >> 1) << 5, non_root: field & 1 != 0 }, 8)
        }
        0x83 => (Packet::TraceStop, 2),
        0x03 => {
            let field = le::<2>(bytes, 2)?;
            (Packet::Cbr { ratio: field as u8 }, 4)
        }
        0x73 => return tma(bytes),
        0xf3 => (Packet::Ovf, 2),
        0xc8 => (Packet::Vmcs { base: le::<5>(bytes, 2)? << 12 }, 7),
        0xc3 => match byte(bytes, 2)? {
            0x88 => (Packet::Mnt { payload: le::<8>(bytes, 3)? }, 11),
            _ => return Err(LexError::BadPacket),
        },
        0x62 => (Packet::ExStop { ip: false }, 2),
        0xe2 => (Packet::ExStop { ip: true }, 2),
        0xc2 => {
            let field = le::<8>(bytes, 2)?;
            (Packet::Mwait { hints: field as u8, ext: (field >> 32) as u8 & 0x03 }, 10)
        }
        0x22 => {
            let [low, high] = (le::<2>(bytes, 2)? as u16).to_le_bytes();
            (Packet::Pwre { hw: low & 0x80 != 0, state: high >> 4, sub_state: high & 0x0f }, 4)
        }
        0xa2 => {
            let [low, high, ..] = le::<5>(bytes, 2)?.to_le_bytes();
            (Packet::Pwrx { last: low >> 4, deepest: low & 0x0f, wake: high & 0x0f }, 7)
        }
        0x12 => (Packet::Ptw { payload: le::<4>(bytes, 2)?, wide: false, ip: false }, 6),
        0x32 => (Packet::Ptw { payload: le::<8>(bytes, 2)?, wide: true, ip: false }, 10),
        0x92 => (Packet::Ptw { payload: le::<4>(bytes, 2)?, wide: false, ip: true }, 6),
        0xb2 => (Packet::Ptw { payload: le::<8>(bytes, 2)?, wide: true, ip: true }, 10),
        0x13 => {
            let [low, vector] = (le::<2>(bytes, 2)? as u16).to_le_bytes();
            (Packet::Cfe { kind: low & 0x1f, vector, ip: low & 0x80 != 0 }, 4)
        }
        0x53 => {
            let kind = byte(bytes, 2)? & 0x3f;
            (Packet::Evd { kind, payload: le::<8>(bytes, 3)? }, 11)
        }
        0x63 => {
            let field = byte(bytes, 2)?;
            (Packet::Bbp { short: field & 0x80 != 0, kind: field & 0x1f }, 3)
        }
        0x33 => (Packet::Bep { ip: false }, 2),
        0xb3 => (Packet::Bep { ip: true }, 2),
        _ => return Err(LexError::BadPacket),
    })
}

/// The outcomes below the stop bit, which is the topmost one; `field` is at least 2.
#[inline]
fn tnt(field: u64) -> TntBits {
    let count = field.ilog2();
    TntBits { bits: field ^ (1 << count), count: count as u8 }
}

/// SDM "Cycle Count (CYC) Packet": five bits of the count in the first byte, seven in each that follows while Exp is set.
#[inline]
fn cyc(first: u8, bytes: &[u8]) -> Result<(Packet, usize), LexError> {
    let mut cycles = u64::from(first >> 3);
    let mut more = first & 0x04 != 0;
    let mut shift = 5;
    let mut len = 1;
    while more {
        if shift >= u64::BITS {
            return Err(LexError::BadPacket);
        }
        let next = byte(bytes, len)?;
        let part = u64::from(next >> 1);
        if part << shift >> shift != part {
            return Err(LexError::BadPacket);
        }
        cycles |= part << shift;
        more = next & 0x01 != 0;
        shift += 7;
        len += 1;
    }
    Ok((Packet::Cyc { cycles }, len))
}

/// SDM "MODE Packets": the leaf in bits 7:5.
fn mode(field: u8) -> Result<Packet, LexError> {
    match (field >> 5, field & 0x03) {
        (0, bits) => {
            let mode = match bits {
                0 => ExecMode::Bits16,
                1 => ExecMode::Bits64,
                2 => ExecMode::Bits32,
                _ => return Err(LexError::BadPacket),
            };
            Ok(Packet::ModeExec { mode, interrupt_flag: field & 0x04 != 0 })
        }
        (1, bits @ 0..=2) => Ok(Packet::ModeTsx { in_tx: bits & 0x01 != 0, abort: bits & 0x02 != 0 }),
        _ => Err(LexError::BadPacket),
    }
}

/// SDM "Trigger Packet": two more bytes (ICNT) where ICNTV is set.
fn trig(bytes: &[u8]) -> Result<(Packet, usize), LexError> {
    let flags = byte(bytes, 1)?;
    let bits = byte(bytes, 2)?;
    let (count, len) = match flags & 0x40 {
        0 => (None, 3),
        _ => (Some(le::<2>(bytes, 3)? as u16), 5),
    };
    Ok((Packet::Trig { ip: flags & 0x80 != 0, mult: flags & 0x20 != 0, bits, count }, len))
}

fn psb(bytes: &[u8]) -> Result<(Packet, usize), LexError> {
    if bytes.starts_with(&PSB) {
        Ok((Packet::Psb, PSB.len()))
    } else if PSB.starts_with(bytes) {
        Err(LexError::Truncated)
    } else {
        Err(LexError::BadPacket)
    }
}

/// SDM "TSC/MTC Alignment (TMA) Packet": byte 4 and bits 7:1 of byte 6 are reserved.
fn tma(bytes: &[u8]) -> Result<(Packet, usize), LexError> {
    let reserved = bytes.get(4).copied().unwrap_or(0) | (bytes.get(6).copied().unwrap_or(0) & 0xfe);
    if reserved != 0 {
        return Err(LexError::BadPacket);
    }
    let fast = le::<2>(bytes, 5)?;
    Ok((Packet::Tma { ctc: le::<2>(bytes, 2)? as u16, fast: fast as u16 }, 7))
}

#[inline]
fn byte(bytes: &[u8], at: usize) -> Result<u8, LexError> {
    bytes.get(at).copied().ok_or(LexError::Truncated)
}

/// `N` <= 8 bytes from `at` on, zero-extended.
#[inline]
fn le<const N: usize>(bytes: &[u8], at: usize) -> Result<u64, LexError> {
    let payload: &[u8; N] = bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or(LexError::Truncated)?;
    let mut word = [0; 8];
    word[..N].copy_from_slice(payload);
    Ok(u64::from_le_bytes(word))
}
