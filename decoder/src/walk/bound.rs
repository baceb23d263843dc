//! Packets that tell of something at an instruction: PTWRITE, power, event trace, transactions, triggers.
//!
//! Some stand for themselves; others wait for the FUP that carries their address (SDM, the "Binding" line of each
//! packet's table). MWAIT, PWRE and EXSTOP may share one FUP, as EVDs and their CFE do.

use super::Walker;
use super::cursor::Place;
use crate::insn::Class;
use crate::packet::Packet;
use crate::sink::{Event, Sink};
use crate::units::Ip;

/// So many packets may wait for one FUP; more are no CPU's doing and are reported without an address.
const MAX_BOUND: usize = 64;
/// So many instructions may lie between a PTW packet and its PTWRITE.
const MAX_AHEAD: usize = 4096;

impl<S: Sink> Walker<'_, '_, '_, S> {
    /// Takes a packet that tells of something. False where it is none of those.
    pub(super) fn tell(&mut self, packet: Packet) -> bool {
        match packet {
            Packet::Ptw { ip: false, .. } => {
                self.flush_bound(None);
                let at = self.walk_to_ptwrite();
                self.report(packet, at);
            }
            Packet::Ptw { ip: true, .. }
            | Packet::Bep { ip: true }
            | Packet::Trig { ip: true, .. }
            | Packet::Cfe { ip: true, .. }
            | Packet::ExStop { ip: true } => {
                self.bind(packet);
                self.pending.fup_is_bound = true;
            }
            Packet::ModeTsx { abort, .. } if self.is_on() || self.cursor.place == Place::Lost => {
                // Begin and commit: only an address follows. Abort: FUP and TIP, as of any event.
                self.bind(packet);
                self.pending.fup_is_bound = !abort;
            }
            // SKD010: behind an overflow without a FUP of its own, this one's FUP ends it.
            Packet::ModeTsx { .. } if self.cursor.place == Place::Overflowed => self.bind(packet),
            // These wait for an EXSTOP, a CFE, or the event itself.
            Packet::Mwait { .. } | Packet::Evd { .. } => self.bind(packet),
            Packet::Cfe { ip: false, .. } if self.is_on() => self.bind(packet),
            Packet::Pwre { .. } if !self.bound.is_empty() => self.bind(packet),
            Packet::ExStop { ip: false } | Packet::Cfe { ip: false, .. } => {
                self.bind(packet);
                self.flush_bound(None);
            }
            Packet::ModeTsx { .. }
            | Packet::Pwre { .. }
            | Packet::Pwrx { .. }
            | Packet::Bbp { .. }
            | Packet::Bip { .. }
            | Packet::Bep { .. }
            | Packet::Trig { .. }
            | Packet::Pip { .. }
            | Packet::Vmcs { .. }
            | Packet::TraceStop => self.report(packet, None),
            Packet::Cbr { .. } => {
                // The clock wants it too.
                self.report(packet, None);
                return false;
            }
            _ => return false,
        }
        true
    }

    fn report(&mut self, packet: Packet, at: Option<Ip>) {
        let at = at.map(|ip| self.code.site(ip));
        self.sink.event(Event::Told { packet, at }, self.mark);
    }

    fn bind(&mut self, packet: Packet) {
        if self.bound.len() == MAX_BOUND {
            self.flush_bound(None);
        }
        self.bound.push(packet);
    }

    /// Reports the packets that waited for an address.
    pub(super) fn flush_bound(&mut self, at: Option<Ip>) {
        self.pending.fup_is_bound = false;
        if self.bound.is_empty() {
            return;
        }
        let bound = std::mem::take(&mut self.bound);
        for packet in &bound {
            self.report(*packet, at);
        }
        self.bound = bound;
        self.bound.clear();
    }

    /// The FUP of bound packets: control is at its address, and flow goes on from there.
    pub(super) fn bound_fup(&mut self, ip: Option<Ip>) {
        if let Some(ip) = ip {
            match self.cursor.place {
                // Of a PEBS record the address is that of the event, which may lie behind.
                Place::At(_) if self.waits_for_record() && !self.free_path(|at, _| at == ip) => {}
                Place::At(_) => {
                    let walk = self.walk_to(ip);
                    self.reached(ip, walk);
                }
                Place::NoImage | Place::Lost if !self.waits_for_record() && self.code.has_code(ip) => {
                    self.resync(ip);
                }
                _ => {}
            }
        }
        self.flush_bound(ip);
    }

    fn waits_for_record(&self) -> bool {
        self.bound.iter().any(|packet| matches!(packet, Packet::Bep { .. }))
    }

    /// The PTWRITE that a PTW without address belongs to is the next one on the way; goes to it.
    fn walk_to_ptwrite(&mut self) -> Option<Ip> {
        let mut found = None;
        self.free_path(|at, class| {
            let here = class == Class::Ptwrite;
            if here {
                found = Some(at);
            }
            here
        });
        let found = found?;
        self.walk_to(found).ok()?;
        self.walk_through().ok()?;
        Some(found)
    }

    /// Looks along the code as far as it needs no trace; says whether `stop` stopped it. Changes nothing.
    pub(super) fn free_path(&self, mut stop: impl FnMut(Ip, Class) -> bool) -> bool {
        let Place::At(mut ip) = self.cursor.place else { return false };
        for _ in 0..MAX_AHEAD {
            let Some(insn) = self.code.insn(ip, self.cursor.mode) else { return stop(ip, Class::Fault) };
            if stop(ip, insn.class) {
                return true;
            }
            ip = match insn.class {
                Class::Plain | Class::MovCr3 | Class::Ptwrite => Ip(insn.next()),
                Class::Jmp { target } | Class::Call { target } => Ip(target),
                _ => return false,
            };
        }
        false
    }
}
