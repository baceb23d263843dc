//! The careful walker: one packet at a time, every rule. Its steps through code are in [`super::steps`].
//!
//! SDM vol. 3C, "Intel Processor Trace": "Trace Packets and Data Types", "Change of Flow Instruction (COFI) Tracing",
//! and the tables of packet generation under different enable conditions.

use super::cursor::Place;
use super::steps::{Leash, Stuck};
use super::{PsbPlus, Walker};
use crate::ledger::LossReason;
use crate::packet::lexer::LexError;
use crate::packet::{IpBytes, IpPayload, LastIp, Packet};
use crate::plan::find_psb;
use crate::profile::EdgeKind;
use crate::psb::PSB;
use crate::reader::bytes_between;
use crate::sink::{Event, Sink};
use crate::units::Ip;

/// What became of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Used {
    /// It was understood and used (or means nothing to the flow).
    Yes,
    /// It could not be used: its bytes are lost.
    No,
}

/// An IP packet's address is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct BadIp;

/// Packets that no bound packet waits across.
fn is_flow(packet: Packet) -> bool {
    matches!(
        packet,
        Packet::ShortTnt(_)
            | Packet::LongTnt(_)
            | Packet::Tip(_)
            | Packet::TipPge(_)
            | Packet::TipPgd(_)
            | Packet::Psb
            | Packet::Ovf
    )
}

impl<S: Sink> Walker<'_, '_, '_, S> {
    /// Takes the next packet; false at the end of the stretch.
    pub(super) fn careful(&mut self) -> bool {
        self.packet_at = self.reader.offset();
        match self.reader.read() {
            None => false,
            Some(Ok((packet, len))) if self.is_cyc_cut_by_overflow(packet, len) => {
                self.advance_bytes(1);
                self.ledger.decoded += 1;
                true
            }
            Some(Ok((_, len))) if self.reaches_behind_end(len) => {
                let bytes = bytes_between(&self.context.stream.pieces, self.reader.at(), self.end);
                self.lose_bytes(LossReason::BadPacket, bytes);
                true
            }
            Some(Ok((packet, len))) => {
                self.advance_bytes(len);
                let used = self.apply(packet);
                self.undated(packet);
                if packet != Packet::Pad {
                    self.after_branches =
                        matches!(packet, Packet::ShortTnt(_) | Packet::LongTnt(_) | Packet::Tip(_));
                }
                match (used, &mut self.loss) {
                    (Used::No, Some(loss)) => loss.bytes += len as u64,
                    _ => self.ledger.decoded += len as u64,
                }
                true
            }
            Some(Err(LexError::Truncated)) => {
                // The packet may begin in one piece and be torn in the next.
                while !self.reader.rest().is_empty() {
                    self.lose_bytes(LossReason::TornPacket, self.reader.rest().len());
                }
                false
            }
            Some(Err(LexError::BadPacket)) => {
                if self.errata.skz84 && self.reader.starts_with(&[0x02, 0x73]) {
                    // A corrupt TMA has a byte too many and tells nothing.
                    self.advance_bytes(8);
                    self.ledger.decoded += 8;
                } else {
                    self.skip_to_psb();
                }
                true
            }
        }
    }

    /// A CYC dates the packet directly behind it: where that one was no transfer, it dates none. A FUP's is that of the
    /// TIP or TIP.PGD to come, and padding and the mode are nothing that happens.
    fn undated(&mut self, packet: Packet) {
        let waits =
            matches!(packet, Packet::Cyc { .. } | Packet::Pad | Packet::Fup(_) | Packet::ModeExec { .. });
        if self.timed && !waits {
            self.clock.pass(self.mark.ordinal);
        }
    }

    /// A PSB is never part of another packet: bytes that reach into the next unit's are none.
    fn reaches_behind_end(&self, len: usize) -> bool {
        let mut behind = self.reader.clone();
        behind.skip(len);
        behind.at() > self.end
    }

    pub(super) fn advance_bytes(&mut self, bytes: usize) {
        if self.reader.skip(bytes) {
            self.clock.set_reference(self.reader.reference());
        }
    }

    fn lose_bytes(&mut self, reason: LossReason, bytes: usize) {
        self.lose(reason, Place::Lost);
        if let Some(loss) = &mut self.loss {
            loss.bytes += bytes as u64;
        }
        self.advance_bytes(bytes);
    }

    /// Bytes that are no packet: only a PSB is a safe point to go on from. Damage may end in a PSB, and what was taken
    /// for a packet have its first bytes: such a PSB counts from here on.
    fn skip_to_psb(&mut self) {
        self.pending.psb = None;
        self.cursor.last_ip_known = false;
        self.reader.reset_context();
        let at = self.reader.at();
        let before = self.reader.back(PSB.len() - 1);
        let pieces = &self.context.stream.pieces;
        match find_psb(pieces, before, self.end) {
            Some(psb) if psb < at => {
                self.lose_bytes(LossReason::BadPacket, 0);
                let rest = PSB.len().saturating_sub(bytes_between(pieces, psb, at));
                self.advance_bytes(rest);
                self.ledger.decoded += rest as u64;
                self.apply(Packet::Psb);
            }
            psb => {
                let skip = bytes_between(pieces, at, psb.unwrap_or(self.end));
                self.lose_bytes(LossReason::BadPacket, skip.max(1));
            }
        }
    }

    pub(super) fn apply(&mut self, packet: Packet) -> Used {
        if self.pending.psb.is_some() {
            return self.apply_in_psb(packet);
        }
        if !self.bound.is_empty() && is_flow(packet) {
            self.flush_bound(None);
        }
        match packet {
            Packet::ShortTnt(tnt) | Packet::LongTnt(tnt) => {
                if !matches!(self.cursor.place, Place::At(_)) || self.pending.fup.is_some() {
                    return self.unexpected();
                }
                self.cursor.tnt.load(tnt.bits, u32::from(tnt.count));
                self.consume_tnt()
            }
            Packet::Tip(payload) => self.tip(payload),
            Packet::TipPge(payload) => self.enable(payload),
            Packet::TipPgd(payload) => self.disable(payload),
            Packet::Fup(payload) => self.fup(payload),
            Packet::Psb => {
                self.pending = super::Pending { psb: Some(PsbPlus::default()), ..Default::default() };
                self.cursor.last_ip = LastIp(0);
                self.cursor.last_ip_known = true;
                Used::Yes
            }
            Packet::ModeExec { mode, .. } => {
                self.pending.mode = Some(mode);
                Used::Yes
            }
            Packet::TraceStop => {
                self.tell(packet);
                self.switch_off();
                Used::Yes
            }
            Packet::Ovf => {
                self.overflow();
                Used::Yes
            }
            Packet::PsbEnd => Used::Yes,
            _ if self.tell(packet) => Used::Yes,
            _ => self.status(packet),
        }
    }

    /// Decompresses an address; the inner `None` is a packet without one. `Err` where it cannot be told, or is no
    /// address that a CPU could have sent.
    pub(super) fn take_ip(&mut self, payload: IpPayload) -> Result<Option<Ip>, BadIp> {
        let alone = matches!(payload.form, IpBytes::Sext48 | IpBytes::Full);
        if !self.cursor.last_ip_known && !alone && payload.form != IpBytes::Suppressed {
            return Err(BadIp);
        }
        let Some(ip) = self.cursor.last_ip.update(payload) else { return Ok(None) };
        self.cursor.last_ip_known = Ip(ip).is_canonical();
        if self.cursor.last_ip_known { Ok(Some(Ip(ip))) } else { Err(BadIp) }
    }

    /// An address that no CPU sends: the bytes are not what they seem.
    pub(super) fn bad_ip(&mut self) -> Used {
        self.lose(LossReason::BadPacket, Place::Lost);
        Used::No
    }

    /// Packets that carry time or state and no flow.
    pub(super) fn status(&mut self, packet: Packet) -> Used {
        if self.timed {
            let ordinal = self.mark.ordinal;
            match packet {
                Packet::Tsc { tsc } => self.clock.tsc(tsc, ordinal),
                Packet::Tma { ctc, fast } => self.clock.tma(ctc, fast),
                Packet::Mtc { ctc } => self.clock.mtc(ctc, ordinal),
                Packet::Cyc { cycles } => self.clock.cyc(cycles),
                Packet::Cbr { ratio } => self.clock.cbr(ratio, ordinal),
                _ => {}
            }
            self.settle_clock();
        }
        Used::Yes
    }

    pub(super) fn is_on(&self) -> bool {
        matches!(self.cursor.place, Place::At(_) | Place::NoImage)
    }

    /// A flow packet that the state has no use for.
    pub(super) fn unexpected(&mut self) -> Used {
        match self.cursor.place {
            Place::At(_) | Place::Off | Place::Overflowed => self.lose(LossReason::Desync, Place::Lost),
            Place::NoImage | Place::Lost => {}
        }
        Used::No
    }

    pub(super) fn stuck(&mut self, stuck: Stuck) -> Used {
        let Stuck::Loss(reason) = stuck;
        let place = if reason == LossReason::NoImage { Place::NoImage } else { Place::Lost };
        self.lose(reason, place);
        Used::No
    }

    /// Uses up the outcomes of a TNT packet.
    pub(super) fn consume_tnt(&mut self) -> Used {
        let mut leash = Leash::default();
        while self.cursor.tnt.count > 0 {
            if let Err(stuck) = self.consume_bit(&mut leash) {
                // The packet itself was in order; the bits left over tell nothing any more.
                self.stuck(stuck);
                return Used::Yes;
            }
        }
        Used::Yes
    }

    fn fup(&mut self, payload: IpPayload) -> Used {
        let ip = match self.take_ip(payload) {
            Ok(ip) => ip,
            Err(BadIp) => return self.bad_ip(),
        };
        if self.pending.fup_is_bound || self.is_flag_change() {
            self.pending.mode = None;
            self.bound_fup(ip);
            return Used::Yes;
        }
        let Some(ip) = ip else { return Used::Yes };
        let used = self.event_fup(ip);
        self.flush_bound(Some(ip));
        used
    }

    /// The source of an event, or the end of an overflow.
    fn event_fup(&mut self, ip: Ip) -> Used {
        match self.cursor.place {
            Place::Overflowed if self.errata.apl12 && self.is_off_after_overflow() => Used::Yes,
            Place::Overflowed => {
                self.choose_space();
                self.resync(ip);
                Used::Yes
            }
            Place::At(_) => {
                let walk = self.walk_to_event(ip);
                self.reached(ip, walk);
                self.pending.fup = Some(ip);
                Used::Yes
            }
            Place::NoImage => {
                if self.code.has_code(ip) {
                    self.resume_from_unknown(ip);
                }
                self.pending.fup = Some(ip);
                Used::Yes
            }
            // A FUP that is bound to no packet and no event ends an overflow; the PSB+ between the two had no address
            // yet (SDM vol. 3C, "Overflow (OVF) Packet").
            Place::Off if !(self.errata.apl12 && self.is_off_after_overflow()) => {
                self.choose_space();
                self.resync(ip);
                Used::Yes
            }
            Place::Off => Used::Yes,
            // The source of an event is an address that the trace itself gives: flow is known again.
            Place::Lost => {
                self.resync(ip);
                self.pending.fup = Some(ip);
                Used::Yes
            }
        }
    }

    /// The walk to a FUP's address is done. Where it failed the way is lost, but not the address, which stands for
    /// itself.
    pub(super) fn reached(&mut self, ip: Ip, walk: Result<(), Stuck>) {
        match walk {
            Ok(()) => {}
            Err(Stuck::Loss(LossReason::NoImage)) if !self.code.has_code(ip) => {
                self.lose(LossReason::NoImage, Place::NoImage);
            }
            Err(Stuck::Loss(reason)) => {
                self.lose(reason, Place::Lost);
                self.resync(ip);
            }
        }
    }

    /// With Event Trace, MODE.Exec directly before a FUP tells that the interrupt flag changed there, and no TIP
    /// follows.
    fn is_flag_change(&self) -> bool {
        self.context.config.event_trace && self.pending.mode.is_some()
    }

    /// Code without an image: the first target in known code is where the flow is known again.
    fn leave_unknown_code(&mut self, to: Ip) -> Used {
        self.take_mode();
        self.choose_space();
        if self.code.has_code(to) {
            self.resume_from_unknown(to);
            Used::Yes
        } else {
            Used::No
        }
    }

    fn tip(&mut self, payload: IpPayload) -> Used {
        let to = match self.take_ip(payload) {
            Ok(Some(to)) => to,
            Ok(None) => return self.unexpected(),
            Err(BadIp) => return self.bad_ip(),
        };
        let fup = self.pending.fup.take();
        match (self.cursor.place, fup) {
            (Place::At(_) | Place::NoImage, Some(from)) => {
                self.take_mode();
                self.row(EdgeKind::Async, Some(from), Some(to), true);
                self.mark.interrupt();
                if self.timed {
                    self.clock.date(self.mark.ordinal);
                }
                let (from, at) = (self.code.site(from), self.code.site(to));
                if self.cursor.place == Place::NoImage {
                    if self.code.has_code(to) {
                        self.resume_from_unknown(to);
                    }
                } else {
                    self.sink.event(Event::Async { from, to: at }, self.mark);
                    self.arrive(to);
                    if self.cursor.place == Place::NoImage {
                        self.cursor.interrupted = fup;
                    }
                }
                Used::Yes
            }
            (Place::At(_), None) => {
                let mode = self.pending.mode;
                match self.walk_to_tip(to) {
                    Ok(()) => Used::Yes,
                    Err(stuck @ Stuck::Loss(LossReason::NoImage)) => {
                        self.stuck(stuck);
                        self.pending.mode = mode;
                        self.leave_unknown_code(to)
                    }
                    Err(stuck) => self.stuck(stuck),
                }
            }
            (Place::NoImage, None) => self.leave_unknown_code(to),
            (Place::Lost, _) => {
                if self.is_sure(to) {
                    self.take_mode();
                    self.resync(to);
                    Used::Yes
                } else {
                    Used::No
                }
            }
            (Place::Overflowed, _) if self.errata.skd010 => {
                self.take_mode();
                self.resync(to);
                Used::Yes
            }
            (Place::Off | Place::Overflowed, _) => {
                self.pending.mode = None;
                self.unexpected()
            }
        }
    }
}
