//! One recording: a random program, a run of it with random events, the trace of that run, and the truth.

use super::machine::Machine;
use super::program::{Op, Program, Style};
use super::rng::Rng;
use super::tracer::{Habits, Restart, Tracer};
use super::truth::{Truth, What, code_addr};
use super::wire::Wire;
use ptflow_decoder::config::{Filter, PtConfig};
use ptflow_decoder::ledger::LossReason;
use ptflow_decoder::packet::Packet;
use ptflow_decoder::sink::Off;
use ptflow_decoder::units::Ip;

/// What may happen in a recording.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wants {
    pub style: Style,
    /// The CPU loses packets.
    pub overflows: bool,
    /// An overflow may take the rest of a PSB+.
    pub torn_psbs: bool,
    /// Only a part of the code is traced.
    pub filters: bool,
    /// TIPs never wait behind a TNT.
    pub no_deferred_tips: bool,
}

/// A recording.
pub struct Scenario {
    /// The program, as it lies in memory from a time on.
    pub program: Program,
    pub later: Vec<(u64, Program)>,
    pub config: PtConfig,
    pub habits: Habits,
    pub trace: Vec<u8>,
    /// Where each packet begins.
    pub starts: Vec<usize>,
    pub truth: Truth,
    pub psbs: Vec<PsbPlace>,
    /// Where the buffer was switched: tracing starts again with the byte there.
    pub restarts: Vec<RestartPlace>,
    /// From which byte on the trace tells of all instructions up to which.
    pub proofs: Vec<(usize, u64)>,
}

/// Where a PSB lies.
#[derive(Clone, Copy, Debug)]
pub struct PsbPlace {
    pub offset: usize,
    /// How many entries of the true log lie before.
    pub log: usize,
}

/// Where tracing started again without a PSB.
#[derive(Clone, Copy, Debug)]
pub struct RestartPlace {
    pub offset: usize,
    /// How many entries of the true log lie before.
    pub log: usize,
    /// Its address does not refer to one before.
    pub is_whole: bool,
}

/// How often things happen, in a thousand steps.
struct Rates {
    psb: u32,
    time: u32,
    event: u32,
    told: u32,
    overflow: u32,
    restart: u32,
    /// Percent of events and syscalls whose handler is traced.
    traced_handlers: u32,
}

struct Recording<'p, 'r> {
    machine: Machine<'p>,
    program: &'p Program,
    /// What lies in memory later, and since when the one at hand does.
    later: &'p [Program],
    turns: Vec<u64>,
    tracer: Tracer,
    truth: Truth,
    rng: &'r mut Rng,
    filters: Vec<Filter>,
    rates: Rates,
    psbs: Vec<PsbPlace>,
    restarts: Vec<RestartPlace>,
    torn_psbs: bool,
    /// `truth.retired` when the trace last told where control is: a way without outcomes from there must not come to an
    /// instruction twice, or nobody could say in which turn an event came.
    known: u64,
}

impl Scenario {
    pub fn record(seed: u64, wants: Wants) -> Self {
        let rng = &mut Rng::new(seed);
        let program = Program::random(wants.style, rng);
        Self::record_of(program, Vec::new(), wants, rng)
    }

    /// A run of a program, which other programs may follow in the same memory.
    pub fn record_of(program: Program, later: Vec<Program>, wants: Wants, rng: &mut Rng) -> Self {
        let mut habits = Habits::random(rng);
        // Crystal ticks that come at random make time run ahead: then nobody can tell which program is there.
        habits.mtc &= later.is_empty();
        if wants.no_deferred_tips {
            habits.defer = 0;
        }
        let filters = if wants.filters { random_filters(&program, rng) } else { Vec::new() };
        let start = program.any_entry(rng);
        let mut recording = Recording {
            machine: Machine::new(&program, start),
            program: &program,
            later: &later,
            turns: Vec::new(),
            tracer: Tracer::new(habits, rng),
            truth: Truth::default(),
            filters: filters.clone(),
            rates: Rates {
                psb: *rng.pick(&[5, 5, 30, 200]),
                time: *rng.pick(&[0, 20, 100]),
                event: *rng.pick(&[0, 10, 50, 200]),
                told: *rng.pick(&[0, 0, 20]),
                restart: *rng.pick(&[0, 5, 20]),
                overflow: if wants.overflows { *rng.pick(&[2, 10, 30]) } else { 0 },
                traced_handlers: *rng.pick(&[0, 50, 100]),
            },
            psbs: Vec::new(),
            restarts: Vec::new(),
            torn_psbs: wants.torn_psbs,
            known: 0,
            rng,
        };
        recording.run();
        let Recording { tracer, truth, psbs, restarts, turns, .. } = recording;
        let config = PtConfig {
            ret_compression: habits.ret_compression,
            mtc: true,
            mtc_period: 3,
            cyc: habits.cyc > 0,
            tsc_ctc_ratio: Some((84, 2)),
            max_nonturbo_ratio: 20,
            filters,
            ..PtConfig::default()
        };
        let Tracer { wire: Wire { bytes: trace, starts, .. }, proofs, .. } = tracer;
        let later = turns.into_iter().zip(later).collect();
        Self { program, later, config, habits, trace, starts, truth, psbs, restarts, proofs }
    }
}

/// Up to two stretches of code that are traced, and perhaps one that stops tracing; none if all code were out.
fn random_filters(program: &Program, rng: &mut Rng) -> Vec<Filter> {
    let mut filters = Vec::new();
    for _ in 0..rng.below(3) {
        let start = program.any_entry(rng);
        let end = start + rng.between(1, 200) as u64;
        filters.push(Filter { start: Ip(start), end: Ip(end), stop: false });
    }
    if rng.percent(30) || filters.is_empty() {
        let start = program.any_entry(rng);
        let end = start + rng.between(1, 20) as u64;
        filters.push(Filter { start: Ip(start), end: Ip(end), stop: true });
    }
    let is_traced = |ip: &u64| is_traced(&filters, *ip);
    if program.entries.iter().flatten().any(is_traced) { filters } else { Vec::new() }
}

/// Whether a branch or event that leads to `ip` leaves tracing on.
fn is_traced(filters: &[Filter], ip: u64) -> bool {
    let is_in = |filter: &&Filter| filter.start.0 <= ip && ip < filter.end.0;
    let (stops, traced): (Vec<&Filter>, Vec<&Filter>) = filters.iter().partition(|filter| filter.stop);
    !stops.iter().any(is_in) && (traced.is_empty() || traced.iter().any(is_in))
}

impl Recording<'_, '_> {
    fn run(&mut self) {
        let steps = *self.rng.pick(&[20, 100, 300, 1000]);
        let on = self.is_traced(self.machine.ip);
        self.psb(on);
        if !on || self.rng.percent(10) {
            if on {
                self.event_leaves();
            }
            self.off();
        }
        for _ in 0..steps {
            self.perhaps_something();
            let way = self.truth.retired - self.known;
            let start = self.machine.ip;
            // Before an endless way comes round to where it was, an event must end it.
            let endless = self.program.endless(start).is_some_and(|len| way + 1 >= len as u64);
            if endless || self.rng.permille(self.rates.event) {
                self.event();
            } else {
                self.execute();
            }
        }
        match self.rng.below(3) {
            0 => self.tracer.flush(),
            1 => self.event_leaves(),
            _ => {}
        }
        let proven = self.tracer.proven;
        self.truth.forget_unproven(proven);
    }

    /// Packets between two instructions.
    fn perhaps_something(&mut self) {
        if self.rng.permille(self.rates.psb) {
            self.psb(true);
        }
        if self.rng.permille(self.rates.time) {
            self.tracer.time();
        }
        if self.rng.permille(self.rates.told) {
            self.tell();
        }
        if self.rng.permille(self.rates.overflow) {
            self.overflow();
        }
        if self.rng.permille(self.rates.restart) {
            self.restart();
        }
    }

    /// The buffer is full, or perf takes it away.
    fn restart(&mut self) {
        let (ip, mode) = (self.machine.ip, self.machine.mode());
        let Restart { offset, ratio, is_whole } = self.tracer.restart(ip, mode, self.truth.retired);
        let at = self.at(ip);
        self.truth.note(What::Disabled { from: at, to: None, why: Off::Async });
        self.restarts.push(RestartPlace { offset, log: self.truth.log.len(), is_whole });
        self.truth.note(What::Told { packet: format!("{:?}", Packet::Cbr { ratio }), at: None });
        self.truth.note(What::Enabled { at, resumes: false });
        self.known();
    }

    fn is_traced(&self, ip: u64) -> bool {
        is_traced(&self.filters, ip)
    }

    /// Control came to where a filter ends tracing: for good, as far as the CPU goes, if that is a stop region.
    fn filtered_out(&mut self, ip: u64) {
        if self.filters.iter().any(|filter| filter.stop && filter.start.0 <= ip && ip < filter.end.0) {
            self.told(Wire::trace_stop, Packet::TraceStop, None);
            // Software takes notice some time, and switches tracing on again.
            self.machine.ip = self.program.any_entry(self.rng);
        }
        self.off();
    }

    fn at(&self, ip: u64) -> ptflow_decoder::profile::CodeAddr {
        code_addr(self.program, ip)
    }

    fn mode_of(&self, ip: u64) -> u8 {
        self.program.mode_of[&ip]
    }

    fn known(&mut self) {
        self.known = self.truth.retired;
    }

    fn psb(&mut self, on: bool) {
        let at = on.then(|| (self.machine.ip, self.machine.mode()));
        let offset = self.tracer.psb(at, self.truth.retired);
        self.psbs.push(PsbPlace { offset, log: self.truth.log.len() });
        if on {
            let at = self.at(self.machine.ip);
            self.truth.note(What::Sync { at, psb: Some(offset) });
            self.known();
        }
    }

    // ---- instructions

    fn execute(&mut self) {
        match self.machine.op() {
            Op::Int | Op::Fault => self.event(),
            Op::Syscall => self.syscall(),
            op => {
                let retired = self.machine.step(self.rng);
                self.truth.retire(self.program, &retired);
                let number = self.truth.retired;
                let transfers = retired.taken && !matches!(op, Op::Plain | Op::Ptwrite);
                if transfers && !self.is_traced(retired.to) {
                    self.tracer.leave_by(&retired, number);
                    let (from, to) = (self.at(retired.from), Some(self.at(retired.to)));
                    self.truth.note(What::Disabled { from, to, why: Off::Branch });
                    self.filtered_out(retired.to);
                    return;
                }
                if op == Op::Far {
                    self.tracer.far(retired.to, self.mode_of(retired.to), number);
                } else {
                    self.tracer.retire(&retired, number);
                }
                if !matches!(op, Op::Plain | Op::Ptwrite | Op::Jmp { .. } | Op::Call { .. }) {
                    self.known();
                }
                if op == Op::Ptwrite && self.tracer.habits.ptwrite {
                    let payload = self.rng.next() & 0xffff_ffff;
                    self.tracer.executed(number, |wire| wire.ptw(payload, false, false));
                    let packet = Packet::Ptw { payload, wide: false, ip: false };
                    let at = Some(self.at(retired.from));
                    self.truth.note(What::Told { packet: format!("{packet:?}"), at });
                    self.known();
                }
            }
        }
    }

    fn syscall(&mut self) {
        let retired = self.machine.step(self.rng);
        self.truth.retire(self.program, &retired);
        let number = self.truth.retired;
        let handler = self.program.any_entry(self.rng);
        if self.rng.percent(self.rates.traced_handlers) && self.is_traced(handler) {
            self.machine.ip = handler;
            self.tracer.far(handler, self.mode_of(handler), number);
            self.known();
            return;
        }
        self.tracer.leave(None, number);
        let from = self.at(retired.from);
        self.truth.note(What::Disabled { from, to: None, why: Off::Syscall });
        self.off();
    }

    // ---- events

    /// An interrupt, a fault, a trap: whatever instruction stands here is not executed.
    fn event(&mut self) {
        let handler = self.program.any_entry(self.rng);
        if !self.rng.percent(self.rates.traced_handlers) {
            self.event_leaves();
            self.off();
        } else if self.is_traced(handler) {
            let (from, number) = (self.machine.ip, self.truth.retired);
            self.tracer.event(from, handler, self.mode_of(handler), number);
            let (from, to) = (self.at(from), self.at(handler));
            self.truth.note(What::Async { from, to });
            self.machine.ip = handler;
            self.known();
        } else {
            // In context, but filtered out: the trace says where control went.
            let (from, number) = (self.machine.ip, self.truth.retired);
            self.tracer.event_leaves(from, Some(handler), number);
            let (from, to) = (self.at(from), Some(self.at(handler)));
            self.truth.note(What::Disabled { from, to, why: Off::Async });
            self.machine.ip = handler;
            self.filtered_out(handler);
        }
    }

    fn event_leaves(&mut self) {
        let from = self.machine.ip;
        self.tracer.event_leaves(from, None, self.truth.retired);
        let from = self.at(from);
        self.truth.note(What::Disabled { from, to: None, why: Off::Async });
    }

    /// Tracing is off, and goes on again.
    fn off(&mut self) {
        let mut calls = self.rng.percent(50);
        if let Some((next, later)) = self.later.split_first()
            && self.rng.percent(20)
        {
            (self.program, self.later) = (next, later);
            self.machine.go_on_in(next, next.any_entry(self.rng));
            self.turns.push(self.tracer.turn_of_time());
        }
        if self.rng.permille(self.rates.psb * 2) {
            self.psb(false);
        }
        if self.rng.permille(self.rates.time * 5) {
            self.tracer.time();
        }
        if self.rng.permille(self.rates.told * 5) {
            self.told(Wire::trace_stop, Packet::TraceStop, None);
        }
        if self.rng.percent(20) {
            self.machine.ip = self.program.any_entry(self.rng);
        }
        calls |= self.run_untraced();
        let lost = self.rng.permille(self.rates.overflow * 3);
        let (ip, mode) = (self.machine.ip, self.machine.mode());
        if lost {
            self.tracer.overflow(false);
            self.truth.note(What::Gap { reason: LossReason::Overflow });
        }
        self.tracer.enter(ip, mode, calls, self.truth.retired);
        let at = self.at(ip);
        self.truth.note(What::Enabled { at, resumes: lost });
        self.known();
        if self.rng.permille(self.rates.psb) {
            self.psb(true);
        }
    }

    /// Untraced code runs until a branch, or an event, comes to where tracing goes on. Says whether the CPU's stack of
    /// return addresses may have changed.
    fn run_untraced(&mut self) -> bool {
        let mut calls = false;
        for _ in 0..20 {
            if self.is_traced(self.machine.ip) {
                return calls;
            }
            if matches!(self.machine.op(), Op::Int | Op::Fault) {
                break;
            }
            let retired = self.machine.step(self.rng);
            calls |= matches!(retired.op, Op::Call { .. } | Op::CallInd | Op::Ret);
            self.truth.retire_untraced();
        }
        while !self.is_traced(self.machine.ip) {
            self.machine.ip = self.program.any_entry(self.rng);
        }
        true
    }

    /// Packets are lost for a while.
    fn overflow(&mut self) {
        let proven = self.tracer.proven;
        self.truth.forget_unproven(proven);
        let mode = self.machine.mode();
        let mut off = false;
        for _ in 0..self.rng.below(30) {
            let op = self.machine.op();
            if matches!(op, Op::Int | Op::Fault) || self.rng.percent(2) {
                let from = self.at(self.machine.ip);
                self.truth.note_lost(&What::Disabled { from, to: None, why: Off::Async });
                self.machine.ip = self.program.any_entry(self.rng);
                off = true;
            } else {
                let retired = self.machine.step(self.rng);
                self.truth.retire_lost(self.program, &retired);
                off = self.rng.percent(5);
            }
        }
        if self.machine.mode() != mode || !self.is_traced(self.machine.ip) {
            // Between OVF and FUP no packet may tell the mode.
            self.machine.ip = self.program.entry_in(mode, self.rng);
            while !self.is_traced(self.machine.ip) {
                self.machine.ip = self.program.any_entry(self.rng);
            }
            off = true;
        }
        let (ip, mode) = (self.machine.ip, self.machine.mode());
        self.tracer.overflow(self.torn_psbs && self.rng.percent(10));
        self.truth.note(What::Gap { reason: LossReason::Overflow });
        if off {
            self.tracer.enter(ip, mode, true, self.truth.retired);
            let at = self.at(ip);
            self.truth.note(What::Enabled { at, resumes: true });
        } else {
            self.tracer.recover(ip, mode, self.truth.retired);
            let at = self.at(ip);
            self.truth.note(What::Sync { at, psb: None });
        }
        self.known();
    }

    // ---- other packets

    fn told(&mut self, write: impl FnOnce(&mut Wire), packet: Packet, at: Option<u64>) {
        self.tracer.alone(write);
        let (proven, packet) = (self.tracer.proven, format!("{packet:?}"));
        let at = at.map(|ip| self.at(ip));
        self.truth.note_behind(proven.min(self.truth.retired), What::Told { packet, at });
    }

    /// Some packet that tells of something besides flow.
    fn tell(&mut self) {
        let payload = self.rng.next();
        match self.rng.below(10) {
            0 => self.told(|wire| wire.cbr(payload as u8), Packet::Cbr { ratio: payload as u8 }, None),
            1 => {
                let cr3 = payload & 0xf_ffff_ffff_ffe0;
                self.told(|wire| wire.pip(cr3, false), Packet::Pip { cr3, non_root: false }, None);
            }
            2 => {
                let base = payload & 0xf_ffff_ffff_f000;
                self.told(|wire| wire.vmcs(base), Packet::Vmcs { base }, None);
            }
            3 => self.bound(|wire| wire.exstop(true), &[Packet::ExStop { ip: true }]),
            4 => {
                let packet = Packet::ModeTsx { in_tx: true, abort: false };
                self.bound(|wire| wire.mode_tsx(true, false), &[packet]);
            }
            5 if self.machine.op() == Op::Ptwrite && !self.tracer.habits.ptwrite => {
                let packet = Packet::Ptw { payload, wide: true, ip: true };
                self.bound(|wire| wire.ptw(payload, true, true), &[packet]);
            }
            6 => self.told(|wire| wire.exstop(false), Packet::ExStop { ip: false }, None),
            7 => self.pebs_record(payload),
            8 => {
                let power = |wire: &mut Wire| {
                    wire.mwait(0x10, 1);
                    wire.pwre(false, 2, 3);
                    wire.exstop(true);
                };
                let packets = [
                    Packet::Mwait { hints: 0x10, ext: 1 },
                    Packet::Pwre { hw: false, state: 2, sub_state: 3 },
                    Packet::ExStop { ip: true },
                ];
                self.bound(power, &packets);
                self.told(|wire| wire.pwrx(1, 2, 4), Packet::Pwrx { last: 1, deepest: 2, wake: 4 }, None);
            }
            9 => {
                let event = |wire: &mut Wire| {
                    wire.evd(1, payload);
                    wire.cfe(9, 0x20, true);
                };
                let packets =
                    [Packet::Evd { kind: 1, payload }, Packet::Cfe { kind: 9, vector: 0x20, ip: true }];
                self.bound(event, &packets);
            }
            _ => {}
        }
    }

    /// A block of values; none of its bytes is a packet of its own.
    fn pebs_record(&mut self, payload: u64) {
        let short = self.rng.percent(50);
        let value = if short { payload & 0xffff_ffff } else { payload };
        let items = self.rng.between(1, 31) as u8;
        self.tracer.alone(|wire| {
            wire.bbp(short, 4);
            (0..items).for_each(|id| wire.bip(id, value, short));
            wire.bep(false);
        });
        let values = (0..items).map(|id| Packet::Bip { id, value, short });
        let record =
            [Packet::Bbp { short, kind: 4 }].into_iter().chain(values).chain([Packet::Bep { ip: false }]);
        let proven = self.tracer.proven.min(self.truth.retired);
        for packet in record {
            self.truth.note_behind(proven, What::Told { packet: format!("{packet:?}"), at: None });
        }
    }

    /// Packets whose address a FUP of their own tells.
    fn bound(&mut self, write: impl FnOnce(&mut Wire), packets: &[Packet]) {
        let ip = self.machine.ip;
        self.tracer.bound(ip, self.truth.retired, write);
        for packet in packets {
            let at = Some(self.at(ip));
            self.truth.note(What::Told { packet: format!("{packet:?}"), at });
        }
        self.known();
    }
}
