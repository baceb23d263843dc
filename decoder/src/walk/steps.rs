//! The careful walker's steps: one instruction at a time, with or without help of the trace.
//!
//! SDM vol. 3C, "Change of Flow Instruction (COFI) Tracing": what each instruction consumes.

use super::Walker;
use super::cursor::{Place, ReturnAddress};
use crate::insn::{Class, Insn};
use crate::ledger::LossReason;
use crate::packet::Packet;
use crate::profile::EdgeKind;
use crate::sink::{Off, Sink};
use crate::units::Ip;

/// Instructions that may be walked without any help of the trace: no code between two branches is that long.
const MAX_FREE_INSNS: u32 = 1 << 20;

/// Why the walk cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stuck {
    Loss(LossReason),
}

const DESYNC: Stuck = Stuck::Loss(LossReason::Desync);
const NO_IMAGE: Stuck = Stuck::Loss(LossReason::NoImage);

/// Bounds a walk without trace. Direct branches that come back to where they were, with no packet used in between, go
/// round without end; Brent's algorithm sees that after a few rounds.
#[derive(Default)]
pub(super) struct Leash {
    insns: u32,
    branches: u32,
    /// Where the last branch led whose number was a power of two.
    target: Option<u64>,
}

impl Leash {
    fn branch(&mut self, target: u64) -> Result<(), Stuck> {
        if self.target == Some(target) {
            return Err(Stuck::Loss(LossReason::EndlessLoop));
        }
        self.branches += 1;
        if self.branches.is_power_of_two() {
            self.target = Some(target);
        }
        Ok(())
    }
}

impl<S: Sink> Walker<'_, '_, '_, S> {
    /// The instruction at the cursor.
    fn here(&self) -> Result<Insn, Stuck> {
        let Place::At(ip) = self.cursor.place else { return Err(DESYNC) };
        self.code.insn(ip, self.cursor.mode).ok_or(NO_IMAGE)
    }

    /// Counts the instruction as executed.
    fn execute(&mut self, leash: &mut Leash) -> Result<(), Stuck> {
        self.mark.ordinal += 1;
        if S::COUNTS {
            self.graph.count_single_instruction();
        }
        leash.insns += 1;
        if leash.insns > MAX_FREE_INSNS { Err(Stuck::Loss(LossReason::EndlessLoop)) } else { Ok(()) }
    }

    fn go(&mut self, ip: u64) {
        self.cursor.place = Place::At(Ip(ip));
    }

    /// Executes an instruction that needs no trace.
    fn execute_free(&mut self, insn: &Insn, leash: &mut Leash) -> Result<(), Stuck> {
        let (kind, target) = match insn.class {
            Class::Jmp { target } => (EdgeKind::Jmp, target),
            Class::Call { target } => (EdgeKind::Call, target),
            _ => {
                self.execute(leash)?;
                self.go(insn.next());
                return Ok(());
            }
        };
        leash.branch(target)?;
        self.execute(leash)?;
        self.pass(kind, insn, Some(Ip(target)), true);
        if kind == EdgeKind::Call && target != insn.next() {
            self.cursor.stack.push(ReturnAddress::Ip(Ip(insn.next())));
        }
        self.go(target);
        Ok(())
    }

    /// Executes the one instruction at the cursor, which needs no trace.
    pub(super) fn walk_through(&mut self) -> Result<(), Stuck> {
        let insn = self.here()?;
        self.execute_free(&insn, &mut Leash::default())
    }

    /// Walks to an address without any help of the trace.
    pub(super) fn walk_to(&mut self, target: Ip) -> Result<(), Stuck> {
        let mut leash = Leash::default();
        while self.cursor.place != Place::At(target) {
            let insn = self.here()?;
            match insn.class {
                Class::Plain | Class::MovCr3 | Class::Ptwrite | Class::Jmp { .. } | Class::Call { .. } => {
                    self.execute_free(&insn, &mut leash)?;
                }
                _ => return Err(DESYNC),
            }
        }
        Ok(())
    }

    /// Walks one instruction on towards the next outcome, or through it.
    pub(super) fn consume_bit(&mut self, leash: &mut Leash) -> Result<(), Stuck> {
        let insn = self.here()?;
        match insn.class {
            Class::Jcc { target } => {
                let taken = self.cursor.tnt.take().ok_or(DESYNC)?;
                *leash = Leash::default();
                self.execute(leash)?;
                self.transfer(EdgeKind::Jcc, &insn, Some(Ip(target)), taken);
                self.go(if taken { target } else { insn.next() });
            }
            Class::Ret => {
                // SDM: a compressed RET is always a taken bit; its target is the return stack's top.
                if self.cursor.tnt.take() != Some(true) {
                    return Err(DESYNC);
                }
                let Some(to) = self.pop() else {
                    // A call from code without an image is returned from.
                    return Err(if self.cursor.unknown_below { NO_IMAGE } else { DESYNC });
                };
                *leash = Leash::default();
                self.execute(leash)?;
                self.transfer(EdgeKind::Ret, &insn, Some(to), true);
                self.arrive(to);
            }
            Class::JmpInd | Class::CallInd | Class::Far => {
                // A deferred TIP: outcomes of later branches were sent before it (SDM, "Deferred TIPs").
                let to = self.deferred_tip().ok_or(DESYNC)?;
                *leash = Leash::default();
                self.indirect(&insn, to, leash)?;
            }
            Class::Plain | Class::MovCr3 | Class::Ptwrite | Class::Jmp { .. } | Class::Call { .. } => {
                self.execute_free(&insn, leash)?;
            }
            Class::Syscall => {
                let to = self.deferred_tip().ok_or(DESYNC)?;
                *leash = Leash::default();
                self.execute(leash)?;
                self.system_call(&insn, to);
                self.arrive(to);
            }
            Class::Int | Class::Fault => return Err(DESYNC),
        }
        match self.cursor.place {
            Place::At(_) => Ok(()),
            _ => Err(NO_IMAGE),
        }
    }

    /// Pops a return address.
    fn pop(&mut self) -> Option<Ip> {
        match self.cursor.stack.pop()? {
            ReturnAddress::Ip(ip) => Some(ip),
            ReturnAddress::Node(node) => self.graph.ip_of(node),
        }
    }

    /// The TIP that must follow here; padding may stand before it. It is taken out of the stream.
    fn deferred_tip(&mut self) -> Option<Ip> {
        while let Some(Ok((Packet::Pad, len))) = self.reader.peek() {
            self.advance_bytes(len);
            self.ledger.decoded += len as u64;
        }
        let Some(Ok((Packet::Tip(payload), len))) = self.reader.peek() else { return None };
        let to = self.take_ip(payload).ok()??;
        self.advance_bytes(len);
        self.ledger.decoded += len as u64;
        Some(to)
    }

    fn indirect(&mut self, insn: &Insn, to: Ip, leash: &mut Leash) -> Result<(), Stuck> {
        self.execute(leash)?;
        let kind = insn.class.edge_kind().unwrap_or(EdgeKind::Far);
        if insn.class == Class::CallInd {
            self.cursor.stack.push(ReturnAddress::Ip(Ip(insn.next())));
        }
        self.transfer(kind, insn, Some(to), true);
        self.arrive(to);
        Ok(())
    }

    /// Walks to the instruction that the TIP belongs to, and through it.
    pub(super) fn walk_to_tip(&mut self, to: Ip) -> Result<(), Stuck> {
        let mut leash = Leash::default();
        loop {
            let insn = self.here()?;
            match insn.class {
                Class::Plain | Class::MovCr3 | Class::Ptwrite | Class::Jmp { .. } | Class::Call { .. } => {
                    self.execute_free(&insn, &mut leash)?;
                }
                Class::JmpInd | Class::CallInd => {
                    self.take_mode();
                    return self.indirect(&insn, to, &mut leash);
                }
                Class::Ret => {
                    self.take_mode();
                    self.cursor.stack.pop();
                    return self.indirect(&insn, to, &mut leash);
                }
                Class::Syscall => {
                    self.execute(&mut leash)?;
                    self.system_call(&insn, to);
                    self.take_mode();
                    self.arrive(to);
                    return Ok(());
                }
                Class::Far | Class::Int => {
                    // The instruction itself is read in the mode from before.
                    let mode = self.pending.mode.take();
                    let walked = self.indirect(&insn, to, &mut leash);
                    if let Some(mode) = mode {
                        self.set_mode(mode);
                    }
                    return walked;
                }
                Class::Jcc { .. } | Class::Fault => return Err(DESYNC),
            }
        }
    }

    /// A TIP.PGD without a FUP: the first instruction that needs the trace, or a direct branch to its address, left
    /// the traced code.
    pub(super) fn disable_at_branch(&mut self, to: Option<Ip>) -> Result<(), Stuck> {
        let mut leash = Leash::default();
        loop {
            let insn = self.here()?;
            let from = Ip(insn.addr);
            match insn.class {
                Class::Jmp { .. } | Class::Call { .. } => {
                    self.execute_free(&insn, &mut leash)?;
                    let Place::At(target) = self.cursor.place else { return Err(DESYNC) };
                    if to == Some(target) || to.is_none() && self.context.config.is_filtered_out(target) {
                        self.went_off(from, Some(target), Off::Branch);
                        return Ok(());
                    }
                }
                Class::MovCr3 if to.is_none() && self.may_end_at_cr3() => {
                    self.execute(&mut leash)?;
                    self.went_off(from, to, Off::Branch);
                    return Ok(());
                }
                Class::Plain | Class::MovCr3 | Class::Ptwrite => self.execute_free(&insn, &mut leash)?,
                Class::Syscall => {
                    self.execute(&mut leash)?;
                    self.transfer(EdgeKind::Syscall, &insn, None, true);
                    self.went_off(from, to, Off::Syscall);
                    return Ok(());
                }
                Class::Jcc { target } => {
                    // Only a taken branch is checked against a filter; no TNT bit is sent for it.
                    self.execute(&mut leash)?;
                    self.transfer(EdgeKind::Jcc, &insn, Some(Ip(target)), true);
                    self.went_off(from, Some(to.unwrap_or(Ip(target))), Off::Branch);
                    return Ok(());
                }
                Class::Ret => {
                    self.execute(&mut leash)?;
                    let target = self.pop();
                    let to = to.or(target);
                    self.transfer(EdgeKind::Ret, &insn, to, true);
                    self.went_off(from, to, Off::Branch);
                    return Ok(());
                }
                Class::JmpInd | Class::CallInd | Class::Far | Class::Int => {
                    self.execute(&mut leash)?;
                    if insn.class == Class::CallInd {
                        // Packets were enabled when it was executed: the return from it may be compressed.
                        self.cursor.stack.push(ReturnAddress::Ip(Ip(insn.next())));
                    }
                    let kind = insn.class.edge_kind().unwrap_or(EdgeKind::Far);
                    self.transfer(kind, &insn, to, true);
                    self.went_off(from, to, Off::Branch);
                    return Ok(());
                }
                Class::Fault => return Err(DESYNC),
            }
        }
    }

    /// Whether a TIP.PGD without address is rather the MOV CR3's here than that of what comes behind it. Under a CR3 filter
    /// only the MOV can leave the context, unless a far transfer or SYSCALL comes before any branch: kernel code that
    /// switches page tables on its way out to user code, with the kernel alone being traced.
    fn may_end_at_cr3(&self) -> bool {
        let leaves_context = |_: Ip, class: Class| matches!(class, Class::Far | Class::Syscall);
        self.context.config.filters.is_empty() && !self.free_path(leaves_context)
    }
}
