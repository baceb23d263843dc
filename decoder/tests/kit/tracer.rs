//! The part of a CPU that writes the trace: SDM vol. 3C, "Change of Flow Instruction (COFI) Tracing" and the tables of
//! packet generation.
//!
//! It is told what the machine does and keeps count of what its packets prove.

use super::machine::Retired;
use super::program::Op;
use super::rng::Rng;
use super::wire::{IpKind, Wire};

/// How a trace is written; all forms are legal.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    pub ret_compression: bool,
    /// Percent of TIPs that wait for the TNT to be sent.
    pub defer: u32,
    /// Percent of packets with padding before.
    pub pad: u32,
    /// Percent of TNTs in the long form.
    pub long_tnt: u32,
    /// Percent of IP packets that do not use the shortest form.
    pub odd_ip_form: u32,
    /// Percent of packets with a CYC before.
    pub cyc: u32,
    pub mtc: bool,
    /// Percent of direct branches out of a filter whose TIP.PGD lacks its address (erratum SKL014).
    pub skl014: u32,
    /// Each PTWRITE sends a packet, without an address.
    pub ptwrite: bool,
}

impl Habits {
    pub fn random(rng: &mut Rng) -> Self {
        Self {
            ret_compression: rng.percent(85),
            defer: *rng.pick(&[0, 0, 30, 100]),
            pad: *rng.pick(&[0, 0, 2, 20]),
            long_tnt: *rng.pick(&[0, 0, 50, 100]),
            odd_ip_form: *rng.pick(&[0, 30, 100]),
            cyc: *rng.pick(&[0, 0, 30, 100]),
            mtc: rng.percent(50),
            ptwrite: rng.percent(50),
            skl014: *rng.pick(&[0, 0, 50, 100]),
        }
    }
}

/// Tracing stopped and started again.
pub struct Restart {
    /// The byte with which it starts.
    pub offset: usize,
    /// The bus ratio that is told there.
    pub ratio: u8,
    /// The TIP.PGE has a whole address.
    pub is_whole: bool,
}

/// The state of the trace.
pub struct Tracer {
    pub wire: Wire,
    pub habits: Habits,
    rng: Rng,
    bits: Vec<bool>,
    capacity: usize,
    /// Targets of TIPs that wait behind the bits.
    deferred: Vec<u64>,
    /// The newest instruction that a waiting bit or TIP tells of.
    waiting: u64,
    /// All instructions up to this one are told of.
    pub proven: u64,
    /// From which byte on the trace tells of all instructions up to which.
    pub proofs: Vec<(usize, u64)>,
    /// Return addresses that a RET may be compressed against.
    returns: Vec<u64>,
    /// The mode that the last MODE.Exec told.
    mode: Option<u8>,
    tsc: u64,
    ctc: u64,
}

impl Tracer {
    pub fn new(habits: Habits, rng: &mut Rng) -> Self {
        Self {
            wire: Wire::default(),
            habits,
            rng: Rng::new(rng.next()),
            bits: Vec::new(),
            capacity: 6,
            deferred: Vec::new(),
            waiting: 0,
            proven: 0,
            proofs: Vec::new(),
            returns: Vec::new(),
            mode: None,
            tsc: 0x12_3456_0000,
            ctc: 0x1000,
        }
    }

    /// The packets so far tell of all instructions up to this one.
    fn prove(&mut self, number: u64) {
        self.proven = number;
        self.proofs.push((self.wire.bytes.len(), number));
    }

    // ---- packets

    /// Padding, which may stand before any packet.
    fn pads(&mut self) {
        while self.rng.percent(self.habits.pad) {
            self.wire.pad();
        }
    }

    fn cyc(&mut self) {
        if self.rng.percent(self.habits.cyc) {
            let width = self.rng.below(20);
            self.wire.cyc(self.rng.next() & ((1 << width) - 1));
        }
        self.pads();
    }

    fn ip_packet(&mut self, kind: IpKind, ip: u64) {
        let forms = self.wire.forms(ip);
        let form = if self.rng.percent(self.habits.odd_ip_form) { *self.rng.pick(&forms) } else { forms[0] };
        self.wire.ip(kind, form, ip);
    }

    /// An address packet before which a CYC may stand.
    fn ip(&mut self, kind: IpKind, ip: Option<u64>) {
        self.cyc();
        match ip {
            Some(ip) => self.ip_packet(kind, ip),
            None => self.wire.ip(kind, 0, 0),
        }
    }

    /// Sends the outcomes and the TIPs that wait.
    pub fn flush(&mut self) {
        if self.bits.is_empty() {
            return;
        }
        self.cyc();
        let bits = std::mem::take(&mut self.bits);
        if bits.len() > 6 || self.rng.percent(self.habits.long_tnt) {
            self.wire.tnt64(&bits);
        } else {
            self.wire.tnt8(&bits);
        }
        for ip in std::mem::take(&mut self.deferred) {
            self.pads();
            self.ip_packet(IpKind::Tip, ip);
        }
        self.prove(self.waiting);
        self.capacity = if self.rng.percent(self.habits.long_tnt) { 47 } else { 6 };
    }

    fn mode_packet(&mut self, mode: u8) {
        // One that tells nothing new is legal.
        if self.mode != Some(mode) || self.rng.percent(10) {
            self.pads();
            self.wire.mode_exec(mode, self.rng.percent(50));
            self.mode = Some(mode);
        }
    }

    // ---- time

    /// Time passes: whatever packets tell of it.
    pub fn time(&mut self) {
        self.flush();
        self.tsc += 1 + self.rng.next() % 10_000;
        self.ctc += 1 + self.rng.next() % 100;
        self.pads();
        match self.rng.below(4) {
            0 => self.wire.tsc(self.tsc),
            1 => {
                self.wire.tsc(self.tsc);
                self.wire.tma(self.ctc as u16, self.rng.below(512) as u16);
            }
            2 if self.habits.mtc => self.wire.mtc((self.ctc >> 3) as u8),
            _ => {
                let cycles = self.rng.next() % 5000;
                self.wire.cyc(cycles);
            }
        }
    }

    /// A TSC packet behind a moment that no packet before it has reached. Gives that moment.
    pub fn turn_of_time(&mut self) -> u64 {
        let turn = self.tsc + 1;
        self.tsc = turn + self.rng.next() % 10_000;
        self.wire.tsc(self.tsc);
        turn
    }

    /// Packets that may stand in the middle of an event.
    fn between(&mut self) {
        self.cyc();
        if self.habits.mtc && self.rng.percent(10) {
            self.ctc += 8;
            self.wire.mtc((self.ctc >> 3) as u8);
        }
    }

    // ---- flow

    /// An instruction was executed; it is the one of that number.
    pub fn retire(&mut self, retired: &Retired, number: u64) {
        match retired.op {
            Op::Plain | Op::Ptwrite | Op::Jmp { .. } | Op::Int | Op::Fault => {}
            Op::Call { target } => {
                if target != retired.next {
                    self.push(retired.next);
                }
            }
            Op::Jcc { .. } => self.bit(retired.taken, number),
            Op::CallInd => {
                self.push(retired.next);
                self.tip_or_defer(retired.to, number);
            }
            Op::JmpInd => self.tip_or_defer(retired.to, number),
            Op::Ret => {
                if self.returns.pop() == Some(retired.to) && self.habits.ret_compression {
                    self.bit(true, number);
                } else {
                    self.tip(retired.to, number);
                }
            }
            Op::Syscall | Op::Far => panic!("{retired:?} needs to know where it goes"),
        }
    }

    fn push(&mut self, next: u64) {
        self.returns.push(next);
        if self.returns.len() > 64 {
            self.returns.remove(0);
        }
    }

    fn bit(&mut self, taken: bool, number: u64) {
        self.bits.push(taken);
        self.waiting = number;
        if self.bits.len() >= self.capacity || self.rng.percent(3) {
            self.flush();
        }
    }

    fn tip_or_defer(&mut self, to: u64, number: u64) {
        if !self.bits.is_empty() && self.rng.percent(self.habits.defer) {
            self.deferred.push(to);
            self.waiting = number;
        } else {
            self.tip(to, number);
        }
    }

    fn tip(&mut self, to: u64, number: u64) {
        self.flush();
        self.ip(IpKind::Tip, Some(to));
        self.prove(number);
    }

    /// A far transfer, or SYSCALL, to traced code.
    pub fn far(&mut self, to: u64, mode: u8, number: u64) {
        self.flush();
        self.mode_packet(mode);
        self.tip(to, number);
    }

    /// A branch, or SYSCALL, after which nothing is traced; `to` as the table of the event has it.
    pub fn leave(&mut self, to: Option<u64>, number: u64) {
        self.flush();
        self.ip(IpKind::Pgd, to);
        self.prove(number);
    }

    /// A branch to an address that a filter leaves out (table "Packet Generation under Different Enable Conditions":
    /// what would have been a TNT bit is a TIP.PGD without address).
    pub fn leave_by(&mut self, retired: &Retired, number: u64) {
        let to = match retired.op {
            Op::Jcc { .. } => None,
            Op::Jmp { .. } | Op::Call { .. } if self.rng.percent(self.habits.skl014) => None,
            Op::Ret if self.returns.pop() == Some(retired.to) && self.habits.ret_compression => None,
            _ => Some(retired.to),
        };
        let pushes = match retired.op {
            Op::Call { target } => target != retired.next,
            op => op == Op::CallInd,
        };
        if pushes {
            self.push(retired.next);
        }
        self.leave(to, number);
    }

    /// An event before the instruction `from`; its handler is traced.
    pub fn event(&mut self, from: u64, to: u64, mode: u8, number: u64) {
        self.flush();
        self.ip(IpKind::Fup, Some(from));
        self.between();
        self.mode_packet(mode);
        self.between();
        self.ip(IpKind::Tip, Some(to));
        self.prove(number);
    }

    /// An event after which nothing is traced.
    pub fn event_leaves(&mut self, from: u64, to: Option<u64>, number: u64) {
        self.flush();
        self.ip(IpKind::Fup, Some(from));
        self.between();
        self.ip(IpKind::Pgd, to);
        self.prove(number);
    }

    /// Tracing goes on. `calls_were_made` while it was off: returns to before are not compressed then.
    pub fn enter(&mut self, ip: u64, mode: u8, calls_were_made: bool, number: u64) {
        if calls_were_made || self.rng.percent(30) {
            self.returns.clear();
        }
        self.mode_packet(mode);
        self.ip(IpKind::Pge, Some(ip));
        self.prove(number);
    }

    /// The buffer is switched, at the end of one AUX record: tracing stops, and starts again without a PSB.
    pub fn restart(&mut self, ip: u64, mode: u8, number: u64) -> Restart {
        self.event_leaves(ip, None, number);
        let offset = self.wire.bytes.len();
        if self.habits.mtc && self.rng.percent(50) {
            self.wire.mtc((self.ctc >> 3) as u8);
        }
        self.tsc += 1 + self.rng.next() % 100_000;
        self.ctc += 1 + self.rng.next() % 1000;
        self.wire.tsc(self.tsc);
        self.wire.tma(self.ctc as u16, self.rng.below(512) as u16);
        let ratio = self.rng.between(8, 40) as u8;
        self.wire.cbr(ratio);
        self.mode = None;
        self.enter(ip, mode, false, number);
        let pge = self.wire.starts.last().map_or(0, |start| self.wire.bytes[*start]);
        Restart { offset, ratio, is_whole: matches!(pge >> 5, 3 | 6) }
    }

    /// PSB+; `at` is where the CPU is and in what mode, if tracing is on.
    pub fn psb(&mut self, at: Option<(u64, u8)>, number: u64) -> usize {
        self.flush();
        let mut repeat = 1 + u32::from(!self.wire.bytes.is_empty() && self.rng.percent(3));
        if !self.wire.bytes.is_empty() {
            self.pads();
        }
        let mut offset = self.wire.bytes.len();
        while repeat > 0 {
            repeat -= 1;
            offset = self.wire.bytes.len();
            self.wire.psb();
        }
        self.returns.clear();
        let mut status = vec![0, 1, 2, 3, 4, 5, 6];
        for last in (1..status.len()).rev() {
            status.swap(last, self.rng.below(last + 1));
        }
        for packet in status {
            self.pads();
            match (packet, at) {
                (0, Some((ip, _))) => self.ip_packet(IpKind::Fup, ip),
                (1, Some((_, mode))) => {
                    self.wire.mode_exec(mode, self.rng.percent(50));
                    self.mode = Some(mode);
                }
                (2, _) => {
                    self.tsc += 1000;
                    self.wire.tsc(self.tsc);
                    if self.rng.percent(50) {
                        self.wire.tma(self.ctc as u16, self.rng.below(512) as u16);
                    }
                }
                (3, _) => self.wire.cbr(self.rng.between(8, 40) as u8),
                (4, _) if self.rng.percent(50) => self.wire.pip(self.rng.next() & 0xf_ffff_ffff_ffe0, false),
                (5, _) if self.rng.percent(20) => self.wire.mode_tsx(false, false),
                (6, _) if self.rng.percent(20) => self.wire.vmcs(self.rng.next() & 0xf_ffff_ffff_f000),
                _ => {}
            }
        }
        if at.is_none() {
            self.mode = None;
        }
        self.pads();
        self.wire.psbend();
        if at.is_some() {
            self.prove(number);
        }
        offset
    }

    /// Packets were lost up to now. All that waits is gone.
    pub fn overflow(&mut self, cut_psb: bool) {
        self.bits.clear();
        self.deferred.clear();
        self.returns.clear();
        self.mode = None;
        if cut_psb {
            // The overflow takes the rest of a PSB+.
            self.wire.psb();
            self.wire.tsc(self.tsc);
        }
        self.cyc();
        self.wire.ovf();
        self.between();
        if self.rng.percent(20) {
            self.wire.mnt(self.rng.next());
        }
    }

    /// The overflow ended while tracing was on.
    pub fn recover(&mut self, ip: u64, mode: u8, number: u64) {
        // The mode is not told here: a trace of several modes tells it in a PSB+ soon.
        self.mode = Some(mode);
        self.ip(IpKind::Fup, Some(ip));
        self.prove(number);
    }

    /// A packet that waits for a FUP of its own; what was executed up to `ip` is told of.
    pub fn bound(&mut self, ip: u64, number: u64, packet: impl FnOnce(&mut Wire)) {
        self.flush();
        self.pads();
        packet(&mut self.wire);
        self.between();
        self.ip(IpKind::Fup, Some(ip));
        self.prove(number);
    }

    /// A packet that tells of the instruction just executed.
    pub fn executed(&mut self, number: u64, packet: impl FnOnce(&mut Wire)) {
        self.alone(packet);
        self.prove(number);
    }

    /// A packet that stands for itself.
    pub fn alone(&mut self, packet: impl FnOnce(&mut Wire)) {
        self.flush();
        self.pads();
        packet(&mut self.wire);
    }
}
