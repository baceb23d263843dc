//! Strips a stretch of trace to its outcomes and targets: timing goes, and what is left needs no look at packets.
//!
//! A target stands among the outcomes as one that says no. So a return that a TIP belongs to is told from a compressed
//! one, whose outcome says yes, and no branch behind the TIP is walked before it.

use crate::code::CodeView;
use crate::graph::compact::{LINE, name};
use crate::graph::window::MTC;
use crate::graph::{Graph, NOWHERE};
use crate::packet::peek::{ip_payload_at, long_tnt_at};
use crate::packet::{ExecMode, LastIp};
use crate::reader::MAX_PACKET;
use crate::units::Ip;

/// At most so many bytes of trace are stripped at once: what comes out stays in the second-level cache.
const STRETCH: usize = 32 << 10;
/// Bytes of trace between two marks.
const MARK_BYTES: usize = 512;

/// Where a packet begins in a stretch, in bytes and in what came out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub byte: usize,
    pub outcomes: u32,
    pub last_ip: LastIp,
    /// Of the packet before, so many outcomes are not used yet, the oldest on top.
    pub left: (u64, u32),
    /// Where that packet begins.
    pub packet: usize,
}

/// A stretch without anything but outcomes and targets.
#[derive(Default)]
pub(super) struct Stretch {
    /// The outcomes, oldest in the top bits; zeros behind.
    bits: Vec<u8>,
    /// How many.
    pub outcomes: u32,
    /// TIPs: how many outcomes came before, and in the upper half the name of the node at the target.
    pub targets: Vec<u64>,
    marks: Vec<Place>,
    /// Bytes of trace.
    pub bytes: usize,
}

/// Behind the last target.
const NO_TARGET: u64 = u32::MAX as u64;

impl Stretch {
    /// Strips `data` up to the first packet that is no TNT, TIP or timing.
    pub fn strip(
        &mut self,
        data: &[u8],
        graph: &mut Graph,
        code: &CodeView<'_, '_>,
        mode: ExecMode,
        last_ip: LastIp,
        skd007: bool,
    ) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
        {
            // SAFETY: the CPU has what the function needs.
            return unsafe { self.strip_here(data, graph, code, mode, last_ip, skd007) };
        }
        self.strip_anywhere(data, graph, code, mode, last_ip, skd007);
    }

    /// Packet by packet: eight bytes at once, by masks and bit extraction, took 15 to 25 % longer on trace with core cycles,
    /// where predicted lengths let packets overlap.
    ///
    /// Where a TNT's stop bit is, and shifts by a register, are one operation each.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "bmi1,bmi2,lzcnt")]
    fn strip_here(
        &mut self,
        data: &[u8],
        graph: &mut Graph,
        code: &CodeView<'_, '_>,
        mode: ExecMode,
        last_ip: LastIp,
        skd007: bool,
    ) {
        self.strip_anywhere(data, graph, code, mode, last_ip, skd007);
    }

    #[inline(always)]
    fn strip_anywhere(
        &mut self,
        data: &[u8],
        graph: &mut Graph,
        code: &CodeView<'_, '_>,
        mode: ExecMode,
        mut last_ip: LastIp,
        skd007: bool,
    ) {
        let limit = data.len().saturating_sub(MAX_PACKET).min(STRETCH);
        // A byte of trace has six outcomes at most, and eight are written at a time.
        self.bits.resize(STRETCH + 2 * MAX_PACKET, 0);
        self.targets.clear();
        self.marks.clear();
        let mut pos = 0;
        // The outcomes that are no whole byte yet, on top.
        let (mut partial, mut partial_len) = (0u64, 0u32);
        let mut out = 0;
        'packets: while pos < limit {
            let outcomes = out as u32 * 8 + partial_len;
            self.marks.push(Place { byte: pos, outcomes, last_ip, left: (0, 0), packet: pos });
            let next_mark = limit.min(pos + MARK_BYTES);
            while pos < next_mark {
                let mut head = data[pos];
                // Where there are any, a CYC stands in front of nearly every packet: both are taken in one round.
                if head & 3 == 3 {
                    let more = head >> 2 & 1;
                    if more & (data[pos + 1] | u8::from(skd007)) != 0 {
                        let Some(len) = timing(data, pos, skd007) else { break 'packets };
                        pos += len;
                        continue;
                    }
                    pos += 1 + usize::from(more);
                    head = data[pos];
                }
                // Outcomes, the oldest on top, and how many.
                let (bits, count) = if head & 1 == 0 && head > 2 {
                    pos += 1;
                    // Below the stop bit, which is the top one set, lie the outcomes, and a zero.
                    let zeros = u64::from(head).leading_zeros();
                    (u64::from(head) << zeros << 1, 62 - zeros)
                } else if head & 0x1f == 0x0d {
                    let Some((payload, len)) = ip_payload_at(data, pos) else { break 'packets };
                    let mut ip = last_ip;
                    let Some(to) = ip.update(payload) else { break 'packets };
                    let node = graph.node_at_ip(code, mode, Ip(to));
                    if node == NOWHERE || node.0 >= u32::MAX / LINE - 1 {
                        break 'packets;
                    }
                    last_ip = ip;
                    pos += len;
                    let outcomes = out as u64 * 8 + u64::from(partial_len);
                    self.targets.push(outcomes | u64::from(name(node)) << 32);
                    (0, 1)
                } else if let Some(len) = timing(data, pos, skd007) {
                    pos += len;
                    continue;
                } else if let Some((bits, count)) = long_tnt_at(data, pos) {
                    pos += 8;
                    (bits << (64 - count), count)
                } else {
                    break 'packets;
                };
                // At most 7 + 47 bits.
                partial |= bits >> partial_len;
                partial_len += count;
                self.bits[out..out + 8].copy_from_slice(&partial.to_be_bytes());
                out += (partial_len / 8) as usize;
                partial <<= partial_len / 8 * 8;
                partial_len %= 8;
            }
        }
        self.outcomes = out as u32 * 8 + partial_len;
        self.targets.push(NO_TARGET);
        self.bytes = pos;
    }

    /// Outcomes, and targets with the number of outcomes before each, among which they stand as outcomes of their own.
    #[cfg(test)]
    pub fn of(outcomes: &[bool], targets: &[(u32, u32)]) -> Self {
        let mut bits = vec![0; outcomes.len() / 8 + 16];
        let is_target = |index: usize| targets.iter().any(|&(at, _)| at as usize == index);
        for (index, _) in outcomes.iter().enumerate().filter(|(index, taken)| **taken && !is_target(*index)) {
            bits[index / 8] |= 0x80 >> (index % 8);
        }
        let targets = targets.iter().map(|&(before, line)| u64::from(before) | u64::from(line) << 32);
        Self {
            bits,
            outcomes: outcomes.len() as u32,
            targets: targets.chain([NO_TARGET]).collect(),
            ..Self::default()
        }
    }

    /// 57 outcomes and more from the `from`th on, the oldest on top.
    #[inline]
    pub fn bits_at(&self, from: u32) -> u64 {
        let byte = (from / 8) as usize;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.bits[byte..byte + 8]);
        u64::from_be_bytes(bytes) << (from % 8)
    }

    /// Where the packets stand when so many outcomes are used.
    pub fn place(&self, data: &[u8], outcomes: u32, skd007: bool) -> Option<Place> {
        let before = self.marks.partition_point(|mark| mark.outcomes <= outcomes);
        let mut at = *self.marks.get(before.checked_sub(1)?)?;
        while at.outcomes < outcomes {
            let head = data[at.byte];
            let packet = at.byte;
            let (bits, count) = if head & 1 == 0 && head > 2 {
                let count = 6 - head.leading_zeros();
                at.byte += 1;
                (u64::from(head >> 1) & ((1 << count) - 1), count)
            } else if head & 0x1f == 0x0d {
                let (payload, len) = ip_payload_at(data, at.byte)?;
                at.last_ip.update(payload)?;
                at.byte += len;
                at.outcomes += 1;
                continue;
            } else if let Some(len) = timing(data, at.byte, skd007) {
                at.byte += len;
                continue;
            } else {
                let long = long_tnt_at(data, at.byte)?;
                at.byte += 8;
                long
            };
            let used = count.min(outcomes - at.outcomes);
            at.outcomes += used;
            let left = count - used;
            if left > 0 {
                at.left = (bits << (64 - left), left);
                at.packet = packet;
                break;
            }
        }
        Some(at)
    }
}

/// The length of a timing packet or padding; `None` for any other packet, and where the careful walker must look. As the
/// fast walker's.
#[inline(always)]
fn timing(data: &[u8], pos: usize, skd007: bool) -> Option<usize> {
    let head = data[pos];
    if head & 3 == 3 {
        if head & 4 == 0 {
            return Some(1);
        }
        let mut len = 2;
        while data[pos + len - 1] & 1 != 0 {
            if len == 9 {
                return None;
            }
            len += 1;
        }
        if len == 2 && skd007 && data[pos + 1..pos + 3] == [0x02, 0xf3] {
            return None;
        }
        return Some(len);
    }
    match head {
        0 => Some(1),
        MTC => Some(2),
        0x19 => Some(8),
        _ => None,
    }
}
