//! PSB+: the status packets from PSB to PSBEND, which say where control is and forget everything before.
//!
//! SDM vol. 3C, "Packet Stream Boundary (PSB) Packet": what they may be, and that no state from before a PSB is needed.
//! FUP and MODE.Exec are among them only while packets are enabled.

use super::careful::{BadIp, Used};
use super::cursor::Place;
use super::steps::Stuck;
use super::{PsbPlus, Walker};
use crate::ledger::LossReason;
use crate::packet::Packet;
use crate::psb::is_in_psb_plus;
use crate::sink::Sink;

impl<S: Sink> Walker<'_, '_, '_, S> {
    /// The packets that close the unit: the next unit's PSB+, which says where the walk ends. Its bytes are the next
    /// unit's.
    pub(super) fn seam(&mut self) {
        if self.reader.at() != self.end || !matches!(self.reader.peek(), Some(Ok((Packet::Psb, _)))) {
            return;
        }
        self.packet_at = self.reader.offset();
        while let Some(Ok((packet, len))) = self.reader.read() {
            self.advance_bytes(len);
            self.apply(packet);
            if self.pending.psb.is_none() {
                break;
            }
        }
    }

    /// Takes a packet between PSB and PSBEND.
    pub(super) fn apply_in_psb(&mut self, packet: Packet) -> Used {
        let Some(mut psb) = self.pending.psb else { return Used::Yes };
        match packet {
            Packet::ModeExec { mode, .. } => psb.mode = Some(mode),
            Packet::Fup(payload) => match self.take_ip(payload) {
                Ok(ip) => psb.ip = ip,
                Err(BadIp) => {
                    self.pending.psb = None;
                    return self.bad_ip();
                }
            },
            Packet::PsbEnd => {
                self.pending.psb = None;
                self.finish_psb(psb);
                return Used::Yes;
            }
            Packet::Ovf => {
                self.pending.psb = None;
                self.overflow();
                return Used::Yes;
            }
            Packet::Psb => psb = PsbPlus::default(),
            _ if is_in_psb_plus(packet) => {
                self.status(packet);
            }
            _ => {
                self.pending.psb = None;
                self.lose(LossReason::Desync, Place::Lost);
                return Used::No;
            }
        }
        self.pending.psb = Some(psb);
        Used::Yes
    }

    /// PSBEND: walks to the address that PSB+ gave; everything from before is forgotten here.
    fn finish_psb(&mut self, mut psb: PsbPlus) {
        if self.errata.bdm70 && !self.is_on() && self.enable_follows() {
            psb = PsbPlus::default();
        }
        if let (Place::At(_), Some(ip)) = (self.cursor.place, psb.ip) {
            // The way to here ran before this PSB+, in the mode from before it.
            if let Err(Stuck::Loss(reason)) = self.walk_to(ip) {
                self.lose(reason, Place::Lost);
            } else if psb.mode.is_some_and(|mode| mode != self.cursor.mode) {
                // No packet told of a change: what was walked may have been read in the wrong mode.
                self.lose(LossReason::Desync, Place::Lost);
            }
        }
        if self.timed && psb.ip.is_some() {
            self.clock.here(self.mark.ordinal);
        }
        if let Some(mode) = psb.mode {
            self.set_mode(mode);
        }
        self.is_whole = true;
        self.choose_space();
        match (self.cursor.place, psb.ip) {
            (Place::At(_), Some(_)) => {
                self.cursor.stack.clear();
                self.cursor.unknown_below = false;
            }
            (_, Some(ip)) => self.resync(ip),
            (Place::At(_), None) => {
                self.lose(LossReason::Desync, Place::Lost);
                self.switch_off();
            }
            (_, None) => self.switch_off(),
        }
        self.cursor.tnt.clear();
    }
}
