//! What the careful walker does about the recording CPU's known defects ([`crate::errata`] tells which it has).

use super::Walker;
use super::steps::Stuck;
use crate::insn::{self, Class};
use crate::ledger::LossReason;
use crate::packet::Packet;
use crate::sink::Sink;
use crate::units::Ip;

/// So many packets are looked at for what follows an overflow.
const MAX_LOOK: u32 = 256;

impl<S: Sink> Walker<'_, '_, '_, S> {
    /// SKD007: an OVF took the place of a CYC's second byte.
    pub(super) fn is_cyc_cut_by_overflow(&self, packet: Packet, len: usize) -> bool {
        let Packet::Cyc { cycles } = packet else { return false };
        // The first byte holds five bits of the count, and that another byte follows.
        let first = (cycles as u8) << 3 | 7;
        self.errata.skd007 && len == 2 && self.reader.starts_with(&[first, 0x02, 0xf3])
    }

    /// BDM70: whether a TIP.PGE comes next; PSB+ then should not have had an address.
    pub(super) fn enable_follows(&self) -> bool {
        let mut ahead = self.reader.clone();
        while let Some(Ok((packet, len))) = ahead.read() {
            match packet {
                Packet::TipPge(_) => return true,
                Packet::Pad
                | Packet::Tsc { .. }
                | Packet::Tma { .. }
                | Packet::Mtc { .. }
                | Packet::Cyc { .. }
                | Packet::Cbr { .. }
                | Packet::Pip { .. }
                | Packet::ModeExec { .. }
                | Packet::ModeTsx { .. }
                | Packet::Vmcs { .. }
                | Packet::Mnt { .. } => ahead.skip(len),
                _ => return false,
            };
        }
        false
    }

    /// APL12: whether what follows an overflow and its FUP can only follow while tracing is off.
    pub(super) fn is_off_after_overflow(&self) -> bool {
        let mut ahead = self.reader.clone();
        let mut in_psb = false;
        for _ in 0..MAX_LOOK {
            let Some(Ok((packet, len))) = ahead.read() else { return false };
            match packet {
                Packet::TipPge(_) | Packet::TraceStop => return true,
                Packet::PsbEnd => return in_psb,
                Packet::Psb => in_psb = true,
                Packet::Fup(_) if in_psb => return false,
                Packet::ShortTnt(_)
                | Packet::LongTnt(_)
                | Packet::Tip(_)
                | Packet::TipPgd(_)
                | Packet::Ovf => return false,
                _ => {}
            }
            ahead.skip(len);
        }
        false
    }

    pub(super) fn is_vm_entry(&self, ip: Ip) -> bool {
        let code = self.code.locate(ip).and_then(|(image, svma)| self.code.code(image, svma));
        code.is_some_and(|code| insn::is_vm_entry(code, self.cursor.mode))
    }

    /// Walks to the source of an event.
    pub(super) fn walk_to_event(&mut self, ip: Ip) -> Result<(), Stuck> {
        if !self.errata.fup_with_next_ip && !self.errata.bdm64 {
            return self.walk_to(ip);
        }
        if self.free_path(|at, _| at == ip) {
            return self.walk_to(ip);
        }
        if self.errata.fup_with_next_ip {
            // Goldmont: the address behind an indirect branch stands for the branch itself.
            let mut last = None;
            self.free_path(|at, class| {
                last = Some((at, class));
                false
            });
            if let Some((at, Class::JmpInd | Class::CallInd | Class::Ret)) = last
                && self.code.insn(at, self.cursor.mode).is_some_and(|insn| insn.next() == ip.0)
            {
                return self.walk_to(at);
            }
        }
        if self.errata.bdm64 && self.bound.iter().any(|packet| matches!(packet, Packet::ModeTsx { .. })) {
            // The branch before a transaction's abort was recorded wrongly: only the abort's own address counts, and
            // what the wrong branch leads to did not execute.
            return Err(Stuck::Loss(LossReason::Desync));
        }
        self.walk_to(ip)
    }
}
