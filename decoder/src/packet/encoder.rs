//! Packets to bytes: the mirror image of the [lexer](super::lexer).

use super::{ExecMode, IpPayload, Packet, TntBits};
use crate::psb::PSB;

/// The longest packet, in bytes.
pub const MAX_PACKET_LEN: usize = 16;

/// Appends the packet's bytes to `out`: at most [`MAX_PACKET_LEN`].
///
/// A packet that [`lex`](super::lexer::lex) gave comes back as its canonical bytes. Of a packet made by hand the
/// caller sees to it that every field fits the width that the manual gives it (a TNT holds 1..=6 or 1..=47 outcomes,
/// CR3 is a multiple of 32 below 2^52, and so on): bits beyond are cut off, and debug builds assert the TNT's count.
///
/// BIP is bytes of its own only inside a block: the lexer reads it back as BIP after a BBP of the same item size.
#[inline]
pub fn encode(packet: &Packet, out: &mut Vec<u8>) {
    let (word, len) = layout(packet);
    // A copy of fixed size and a cut are one store each; a copy of `len` bytes would be a call.
    let start = out.len();
    out.extend_from_slice(&word.to_le_bytes());
    out.truncate(start + len);
}

/// The packet as a little-endian word and its length in bytes.
#[inline]
fn layout(packet: &Packet) -> (u128, usize) {
    match *packet {
        Packet::Pad => (0x00, 1),
        Packet::Psb => (u128::from_le_bytes(PSB), PSB.len()),
        Packet::PsbEnd => (0x23_02, 2),
        Packet::ShortTnt(outcomes) => (u128::from(with_stop_bit(outcomes, 6)) << 1, 1),
        Packet::LongTnt(outcomes) => (0xa3_02 | u128::from(with_stop_bit(outcomes, 47)) << 16, 8),
        Packet::Tip(ip) => ip_packet(0x0d, ip),
        Packet::TipPge(ip) => ip_packet(0x11, ip),
        Packet::TipPgd(ip) => ip_packet(0x01, ip),
        Packet::Fup(ip) => ip_packet(0x1d, ip),
        Packet::ModeExec { mode, interrupt_flag } => {
            let size = match mode {
                ExecMode::Bits16 => 0,
                ExecMode::Bits64 => 1,
                ExecMode::Bits32 => 2,
            };
            (0x99 | size << 8 | flag(interrupt_flag, 10), 2)
        }
        Packet::ModeTsx { in_tx, abort } => (0x20_99 | flag(in_tx, 8) | flag(abort, 9), 2),
        Packet::Pip { cr3, non_root } => (0x43_02 | flag(non_root, 16) | field((cr3 >> 5) << 1, 48) << 16, 8),
        Packet::Vmcs { base } => (0xc8_02 | field(base >> 12, 40) << 16, 7),
        Packet::Tsc { tsc } => (0x19 | field(tsc, 56) << 8, 8),
        Packet::Tma { ctc, fast } => (0x73_02 | u128::from(ctc) << 16 | u128::from(fast & 0x1ff) << 40, 7),
        Packet::Mtc { ctc } => (0x59 | u128::from(ctc) << 8, 2),
        Packet::Cyc { cycles } => cyc(cycles),
        Packet::Cbr { ratio } => (0x03_02 | u128::from(ratio) << 16, 4),
        Packet::Ovf => (0xf3_02, 2),
        Packet::TraceStop => (0x83_02, 2),
        Packet::Mnt { payload } => (0x88_c3_02 | u128::from(payload) << 24, 11),
        Packet::Ptw { payload, wide: false, ip } => (0x12_02 | flag(ip, 15) | field(payload, 32) << 16, 6),
        Packet::Ptw { payload, wide: true, ip } => (0x32_02 | flag(ip, 15) | u128::from(payload) << 16, 10),
        Packet::ExStop { ip } => (0x62_02 | flag(ip, 15), 2),
        Packet::Mwait { hints, ext } => {
            (0xc2_02 | u128::from(hints) << 16 | u128::from(ext & 0x03) << 48, 10)
        }
        Packet::Pwre { hw, state, sub_state } => {
            (0x22_02 | flag(hw, 23) | u128::from(sub_state & 0x0f) << 24 | u128::from(state & 0x0f) << 28, 4)
        }
        Packet::Pwrx { last, deepest, wake } => {
            let nibbles = [deepest, last, wake].map(|nibble| u128::from(nibble & 0x0f));
            (0xa2_02 | nibbles[0] << 16 | nibbles[1] << 20 | nibbles[2] << 24, 7)
        }
        Packet::Bbp { short, kind } => (0x63_02 | u128::from(kind & 0x1f) << 16 | flag(short, 23), 3),
        Packet::Bip { id, value, short } => {
            let head = 0x04 | u128::from(id & 0x1f) << 3;
            if short { (head | field(value, 32) << 8, 5) } else { (head | u128::from(value) << 8, 9) }
        }
        Packet::Bep { ip } => (0x33_02 | flag(ip, 15), 2),
        Packet::Cfe { kind, vector, ip } => {
            (0x13_02 | u128::from(kind & 0x1f) << 16 | flag(ip, 23) | u128::from(vector) << 24, 4)
        }
        Packet::Evd { kind, payload } => {
            (0x53_02 | u128::from(kind & 0x3f) << 16 | u128::from(payload) << 24, 11)
        }
        Packet::Trig { ip, mult, bits, count } => {
            let head =
                0xd9 | flag(mult, 13) | flag(count.is_some(), 14) | flag(ip, 15) | u128::from(bits) << 16;
            match count {
                None => (head, 3),
                Some(count) => (head | u128::from(count) << 24, 5),
            }
        }
    }
}

/// The outcomes with the stop bit above the oldest of them.
#[inline]
fn with_stop_bit(outcomes: TntBits, max: u8) -> u64 {
    debug_assert!((1..=max).contains(&outcomes.count), "a TNT of {} outcomes", outcomes.count);
    let stop = 1u64 << outcomes.count.clamp(1, max);
    stop | (outcomes.bits & (stop - 1))
}

#[inline]
fn ip_packet(opcode: u8, ip: IpPayload) -> (u128, usize) {
    let len = ip.form.payload_len();
    let head = u128::from(opcode | ip.form.code() << 5);
    (head | field(ip.raw, 8 * len as u32) << 8, 1 + len)
}

/// Five bits in the first byte, seven in each that follows; bit 2 of the first and bit 0 of the others: more follow.
#[inline]
fn cyc(cycles: u64) -> (u128, usize) {
    let mut word = 0x03 | u128::from(cycles & 0x1f) << 3;
    let mut rest = cycles >> 5;
    if rest != 0 {
        word |= 0x04;
    }
    let mut len = 1;
    while rest != 0 {
        let part = (rest & 0x7f) << 1;
        rest >>= 7;
        word |= u128::from(part | u64::from(rest != 0)) << (8 * len);
        len += 1;
    }
    (word, len)
}

/// The low `bits` of a payload.
#[inline]
fn field(value: u64, bits: u32) -> u128 {
    u128::from(value) & ((1 << bits) - 1)
}

#[inline]
fn flag(set: bool, bit: u32) -> u128 {
    u128::from(set) << bit
}
