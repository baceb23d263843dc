//! Finding the flow again after it was lost, without guessing.
//!
//! TIP.PGE, an event's FUP and PSB+ say for sure where control is. A TIP says where one branch went, but branches
//! before it may have outcomes behind it, and a deferred TIP has outcomes of later branches in front (SDM, "Deferred
//! TIPs"): then what follows would be applied to the wrong code. So a TIP counts only where it cannot be a deferred
//! one, or where the packets behind it fit the code from its target on.

use super::Walker;
use super::cursor::TntQueue;
use crate::insn::Class;
use crate::ledger::LossReason;
use crate::packet::{LastIp, Packet};
use crate::sink::Sink;
use crate::units::Ip;

/// So many TIPs must fit before a TIP is believed.
const MIN_FITTING: u32 = 3;
/// So many instructions are looked at.
const MAX_INSNS: u32 = 4000;
/// After so many vain looks in one unit only sure points count: time stays linear on any bytes.
const MAX_VAIN_LOOKS: u32 = 256;

impl<S: Sink> Walker<'_, '_, '_, S> {
    /// Whether flow goes on at the target of the TIP that was just read.
    pub(super) fn is_sure(&mut self, target: Ip) -> bool {
        let stream_is_whole =
            self.loss.is_none_or(|loss| matches!(loss.reason, LossReason::Desync | LossReason::EndlessLoop));
        if !stream_is_whole || !self.code.has_code(target) {
            return false;
        }
        if !self.after_branches {
            return true;
        }
        // Behind a hole flow is lost again at every return from a call before it, without any fault of the code's:
        // there, what fits by chance would be believed too often.
        if !self.is_whole || self.vain_looks >= MAX_VAIN_LOOKS {
            return false;
        }
        let fits = self.fits(target);
        if !fits {
            self.vain_looks += 1;
        }
        fits
    }

    /// Whether the next packets fit the code from `ip` on.
    fn fits(&self, mut ip: Ip) -> bool {
        let mut ahead = self.reader.clone();
        let mut last_ip: LastIp = self.cursor.last_ip;
        let mut tnt = TntQueue::default();
        let mut stack = Vec::new();
        let mut fitting = 0;
        for _ in 0..MAX_INSNS {
            let Some(insn) = self.code.insn(ip, self.cursor.mode) else { return false };
            let needs_trace = match insn.class {
                Class::Plain | Class::MovCr3 | Class::Ptwrite => {
                    ip = Ip(insn.next());
                    false
                }
                Class::Jmp { target } => {
                    ip = Ip(target);
                    false
                }
                Class::Call { target } => {
                    stack.push(insn.next());
                    ip = Ip(target);
                    false
                }
                _ => true,
            };
            if !needs_trace {
                continue;
            }
            let mut tip = None;
            while tnt.count == 0 && tip.is_none() {
                let Some(Ok((packet, len))) = ahead.read() else { return fitting >= MIN_FITTING };
                match packet {
                    Packet::ShortTnt(bits) | Packet::LongTnt(bits) => {
                        tnt.load(bits.bits, u32::from(bits.count));
                    }
                    Packet::Tip(payload) => tip = Some(last_ip.update(payload)),
                    Packet::Pad
                    | Packet::Mtc { .. }
                    | Packet::Cyc { .. }
                    | Packet::Tsc { .. }
                    | Packet::Tma { .. }
                    | Packet::Cbr { .. } => {}
                    // What follows is another story: it counts how far the flow fitted.
                    _ => return fitting >= MIN_FITTING,
                }
                ahead.skip(len);
            }
            match (insn.class, tip) {
                (Class::Jcc { target }, None) => {
                    ip = Ip(if tnt.take() == Some(true) { target } else { insn.next() });
                }
                (Class::Ret, None) => {
                    if tnt.take() != Some(true) {
                        return false;
                    }
                    match stack.pop() {
                        Some(to) => ip = Ip(to),
                        // Its call lies before: nothing more can be told.
                        None => return fitting >= MIN_FITTING,
                    }
                }
                (Class::JmpInd | Class::CallInd | Class::Ret, Some(Some(to))) => {
                    match insn.class {
                        Class::CallInd => stack.push(insn.next()),
                        Class::Ret => _ = stack.pop(),
                        _ => {}
                    }
                    ip = Ip(to);
                    fitting += 1;
                    if fitting >= MIN_FITTING {
                        return true;
                    }
                }
                _ => return false,
            }
        }
        fitting >= MIN_FITTING
    }
}
