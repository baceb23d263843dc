//! Where tracing goes on and off: TIP.PGE, TIP.PGD, OVF, and the mode that holds from there on.
//!
//! SDM vol. 3C, "Packet Generation Enable (TIP.PGE)", "Packet Generation Disable (TIP.PGD)", "Overflow (OVF) Packet".

use super::Walker;
use super::careful::{BadIp, Used};
use super::cursor::Place;
use crate::ledger::LossReason;
use crate::packet::IpPayload;
use crate::profile::EdgeKind;
use crate::sink::{Event, Off, Sink};
use crate::units::Ip;

impl<S: Sink> Walker<'_, '_, '_, S> {
    pub(super) fn set_mode(&mut self, mode: crate::packet::ExecMode) {
        if mode != self.cursor.mode {
            // A return address lies in whatever mode the RET runs in.
            self.cursor.stack.resolve(|node| self.graph.ip_of(node));
            self.cursor.mode = mode;
            self.graph.enter(self.code.space, mode);
        }
    }

    pub(super) fn take_mode(&mut self) {
        if let Some(mode) = self.pending.mode.take() {
            self.set_mode(mode);
        }
    }

    /// TIP.PGE.
    pub(super) fn enable(&mut self, payload: IpPayload) -> Used {
        let ip = match self.take_ip(payload) {
            Ok(Some(ip)) => ip,
            Ok(None) => return self.unexpected(),
            Err(BadIp) => return self.bad_ip(),
        };
        let after_overflow = self.cursor.place == Place::Overflowed;
        if matches!(self.cursor.place, Place::At(here) if here != ip) {
            // Tracing was on already, elsewhere: what lies between is not known. (At the same address it is a PSB+ that
            // the CPU sent as tracing began.)
            self.lose(LossReason::Desync, Place::Lost);
        }
        self.take_mode();
        self.pending.fup_is_bound = false;
        self.pending.fup = None;
        self.close_loss();
        self.choose_space();
        self.cursor.tnt.clear();
        if self.cursor.interrupted.take().is_some_and(|from| from != ip) {
            self.forget_stack();
        }
        self.mark.interrupt();
        if self.timed {
            self.clock.on(self.mark.ordinal);
        }
        if !after_overflow {
            self.row(EdgeKind::Resume, None, Some(ip), true);
        }
        self.sink.event(Event::Enabled { at: self.code.site(ip), resumes: after_overflow }, self.mark);
        self.arrive(ip);
        Used::Yes
    }

    /// TIP.PGD.
    pub(super) fn disable(&mut self, payload: IpPayload) -> Used {
        let to = match self.take_ip(payload) {
            Ok(to) => to,
            // That tracing is off is certain all the same.
            Err(BadIp) => {
                let used = self.bad_ip();
                self.switch_off();
                return used;
            }
        };
        self.pending.mode = None;
        let fup = self.pending.fup.take();
        let used = match (self.cursor.place, fup) {
            // SKD022: a VM entry is no event; its FUP should not be there.
            (Place::At(at), Some(from)) if self.errata.skd022 && at == from && self.is_vm_entry(at) => {
                match self.disable_at_branch(to) {
                    Ok(()) => Used::Yes,
                    Err(stuck) => self.stuck(stuck),
                }
            }
            (Place::At(_) | Place::NoImage, Some(from)) => {
                self.row(EdgeKind::Async, Some(from), to, true);
                self.close_loss();
                self.went_off(from, to, Off::Async);
                Used::Yes
            }
            (Place::At(_), None) => match self.disable_at_branch(to) {
                Ok(()) => Used::Yes,
                Err(stuck) => self.stuck(stuck),
            },
            (Place::Off, _) => self.unexpected(),
            (Place::NoImage | Place::Lost | Place::Overflowed, _) => Used::Yes,
        };
        self.switch_off();
        used
    }

    pub(super) fn switch_off(&mut self) {
        self.close_loss();
        if self.cursor.place == Place::NoImage && self.cursor.interrupted.is_none() {
            self.forget_stack();
        }
        self.cursor.place = Place::Off;
        self.cursor.tnt.clear();
        self.pending = Default::default();
    }

    pub(super) fn went_off(&mut self, from: Ip, to: Option<Ip>, why: Off) {
        if why == Off::Async {
            self.mark.interrupt();
        }
        if self.timed {
            self.clock.date(self.mark.ordinal);
            self.clock.off(self.mark.ordinal);
        }
        let (from, to) = (self.code.site(from), to.map(|to| self.code.site(to)));
        self.sink.event(Event::Disabled { from, to, why }, self.mark);
        self.mark.interrupt();
    }

    pub(super) fn overflow(&mut self) {
        if self.timed {
            self.clock.overflow(self.mark.ordinal);
        }
        self.lose(LossReason::Overflow, Place::Overflowed);
        self.cursor.stack.clear();
        self.pending = Default::default();
    }
}
