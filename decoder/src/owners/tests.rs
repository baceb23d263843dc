use super::*;
use crate::packet::encoder::encode;
use crate::packet::{ExecMode, IpBytes, IpPayload, Packet};
use crate::plan::{plan, time_of};
use crate::stream::{Break, Piece};
use proptest::prelude::*;

/// A CPU whose crystal ticks once in 100 TSC ticks and sends an MTC every 8 of them; TSC of 1 GHz, so ticks are
/// nanoseconds.
const TICKS: u64 = 100;
const MTC: u64 = 8 * TICKS;
const START: u64 = 1 << 30;

fn config() -> PtConfig {
    PtConfig {
        mtc: true,
        mtc_period: 3,
        tsc_ctc_ratio: Some((TICKS as u32, 1)),
        time: Some(crate::config::TscConversion { shift: 0, mult: 1, zero: 0 }),
        ..PtConfig::default()
    }
}

/// Writes a CPU's stream, and what is true of it.
struct Cpu {
    bytes: Vec<u8>,
    now: u64,
    next_psb: usize,
    /// Where user code went on, and whose it was.
    resumed: Vec<(u64, u32)>,
    schedule: Schedule,
}

impl Cpu {
    fn new(stops: bool) -> Self {
        let schedule = Schedule { stops, ..Schedule::default() };
        Self { bytes: Vec::new(), now: START, next_psb: 0, resumed: Vec::new(), schedule }
    }

    fn put(&mut self, packet: Packet) {
        encode(&packet, &mut self.bytes);
    }

    fn time(&mut self) {
        self.put(Packet::Tsc { tsc: self.now });
        self.put(Packet::Tma { ctc: (self.now / TICKS) as u16, fast: (self.now % TICKS) as u16 });
    }

    fn pass(&mut self, ticks: u64) {
        let until = self.now + ticks;
        while self.now / MTC < until / MTC {
            self.now = (self.now / MTC + 1) * MTC;
            self.put(Packet::Mtc { ctc: (self.now / MTC) as u8 });
        }
        self.now = until;
    }

    fn psb_if_due(&mut self, ip: Option<u64>) {
        if self.bytes.len() >= self.next_psb {
            self.next_psb = self.bytes.len() + 400;
            self.put(Packet::Psb);
            self.time();
            if let Some(ip) = ip {
                self.put(Packet::Fup(IpPayload::with_form(IpBytes::Full, ip)));
            }
            self.put(Packet::PsbEnd);
        }
    }

    /// User code goes on.
    fn on(&mut self, thread: u32, restarts: bool) {
        if restarts {
            self.time();
        }
        self.put(Packet::ModeExec { mode: ExecMode::Bits64, interrupt_flag: true });
        self.resumed.push((self.bytes.len() as u64, thread));
        self.put(Packet::TipPge(IpPayload::with_form(IpBytes::Full, 0x40_1000)));
    }

    fn off(&mut self) {
        self.put(Packet::TipPgd(IpPayload::SUPPRESSED));
    }

    /// A thread runs for so long, with a system call now and then.
    fn run(&mut self, thread: u32, ticks: u64, syscalls: u64, restarts: bool) {
        self.on(thread, restarts);
        for _ in 0..syscalls {
            self.pass(ticks / (syscalls + 1));
            self.psb_if_due(Some(0x40_1000));
            self.off();
            self.pass(300);
            self.psb_if_due(None);
            self.on(thread, false);
        }
        self.pass(ticks / (syscalls + 1));
        self.off();
    }

    fn switch(&mut self, to: Option<u32>, late: u64) {
        self.schedule.turns.push(Turn { since: Tsc(self.now + late), thread: to.map(ThreadId) });
    }

    /// The kernel ends an AUX record here.
    fn end(&mut self, thread: u32) {
        let end = AuxOffset(self.bytes.len() as u64);
        let from = self.schedule.ends.last().map_or(AuxOffset(0), |last| last.end);
        self.schedule.ends_stop = true;
        self.schedule.ends.push(RanUpTo { from, end, thread: ThreadId(thread) });
    }

    fn found(&self) -> Vec<Change> {
        self.find(|stream| changes(stream, &config(), &self.schedule))
    }

    fn find<T>(&self, find: impl Fn(&TraceStream<'_>) -> T) -> T {
        let piece = Piece {
            offset: AuxOffset(0),
            bytes: &self.bytes,
            break_before: Some(Break::Start),
            reference: Some(Tsc(START)),
        };
        find(&TraceStream { pieces: vec![piece] })
    }

    /// Resumptions of a window's units that are put to another thread than they were of, if only what the window needs is
    /// looked at; and how many there are.
    fn wrong_within(&self, from: u64, to: u64, unit_bytes: usize) -> (Vec<(u64, u32)>, usize) {
        let windows = [Window { from: Some(Tsc(from)), to: Some(Tsc(to)), ..Window::ALL }];
        let found =
            self.find(|stream| changes_within(stream, &config(), &self.schedule, &windows, unit_bytes));
        let needed: Vec<std::ops::Range<u64>> = self.find(|stream| {
            let mut plan = plan([stream], unit_bytes);
            plan.narrow(&windows, |unit| time_of(Reader::new(stream, unit.from), &config()));
            plan.units.iter().map(|unit| unit.from.byte as u64..unit.end.byte as u64).collect()
        });
        let owner = |at: u64| {
            let begun = found.partition_point(|change| change.from.0 <= at);
            begun.checked_sub(1).and_then(|last| found[last].thread)
        };
        let is_needed = |(at, _): &&(u64, u32)| needed.iter().any(|unit| unit.contains(at));
        let resumed = self.resumed.iter().filter(is_needed);
        let wrong = resumed.clone().filter(|(at, thread)| owner(*at) != Some(ThreadId(*thread)));
        (wrong.copied().collect(), resumed.count())
    }

    /// Resumptions that are put to another thread than they were of.
    fn wrong(&self) -> Vec<(u64, u32)> {
        let found = self.found();
        let owner = |at: u64| {
            let begun = found.partition_point(|change| change.from.0 <= at);
            begun.checked_sub(1).and_then(|last| found[last].thread)
        };
        self.resumed.iter().filter(|(at, thread)| owner(*at) != Some(ThreadId(*thread))).copied().collect()
    }
}

#[derive(Clone, Debug)]
struct Slice {
    thread: u32,
    ticks: u64,
    syscalls: u64,
    late: u64,
    away: u64,
    idle: bool,
}

fn slices(shortest: u64, latest: u64) -> impl Strategy<Value = Vec<Slice>> {
    let slice = (0..4u32, shortest..60_000, 0..6u64, 0..=latest, 0..1_000u64, any::<bool>()).prop_map(
        |(thread, ticks, syscalls, late, away, idle)| Slice { thread, ticks, syscalls, late, away, idle },
    );
    proptest::collection::vec(slice, 1..60)
}

fn write(slices: &[Slice], stops: bool, with_ends: bool) -> Cpu {
    let mut cpu = Cpu::new(stops);
    let mut late_until = 0;
    for (index, slice) in slices.iter().enumerate() {
        cpu.psb_if_due(None);
        // Records are written in order.
        let late = slice.late.max(late_until.max(cpu.now) - cpu.now);
        late_until = cpu.now + late;
        cpu.switch(Some(slice.thread), late);
        // The kernel is on its way back to user code; a tracer that is stopped says nothing.
        match stops {
            true => cpu.now += slice.away,
            false => cpu.pass(slice.late + 200),
        }
        cpu.run(slice.thread, slice.ticks, slice.syscalls, stops || index == 0);
        if !stops {
            cpu.pass(700);
        }
        if with_ends {
            cpu.end(slice.thread);
        }
        if slice.idle {
            cpu.switch(None, late_until.max(cpu.now) - cpu.now);
            cpu.pass(5_000);
        }
    }
    cpu.psb_if_due(None);
    cpu
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// The tracer stops at every switch; records come after user code may have gone on.
    #[test]
    fn records_that_are_late(slices in slices(13_000, 10_000), with_ends: bool) {
        prop_assert_eq!(write(&slices, true, with_ends).wrong(), []);
    }

    /// Of a window's part as much is known, with a tracer that stops at every switch and with one that never stops.
    #[test]
    fn parts_of_a_stream(
        (slices, stops) in prop_oneof![
            (proptest::collection::vec(slices(13_000, 10_000), 8), Just(true)),
            (proptest::collection::vec(slices(14_000, 3_000), 8), Just(false)),
        ],
        with_ends: bool,
        from in 0..100u64,
        length in 0..30u64,
    ) {
        let cpu = write(&slices.concat(), stops, with_ends && stops);
        let from = START + (cpu.now - START) * from / 100;
        let (wrong, _) = cpu.wrong_within(from, from + (cpu.now - START) * length / 100, 1000);
        prop_assert_eq!(wrong, []);
    }

    /// With the ends of AUX records, threads may come and go faster than their records; whether those tell of each
    /// thread alone when it leaves and when it comes, or of who follows whom.
    #[test]
    fn threads_that_run_for_a_moment(slices in slices(0, 10_000), threads in 2..5u32, longest in 1_000..30_000u64, apart: bool) {
        let slices: Vec<Slice> = slices
            .iter()
            .scan(None, |last, slice| {
                let thread = slice.thread % threads;
                let thread = if *last == Some(thread) { (thread + 1) % threads } else { thread };
                *last = Some(thread);
                Some(Slice { thread, idle: false, ticks: slice.ticks % longest, ..slice.clone() })
            })
            .collect();
        let mut cpu = write(&slices, true, true);
        if apart {
            let turns = std::mem::take(&mut cpu.schedule.turns);
            let nobody = |turn: &Turn| Turn { thread: None, ..*turn };
            cpu.schedule.turns = turns.iter().flat_map(|turn| [nobody(turn), *turn]).collect();
        }
        prop_assert_eq!(cpu.wrong(), []);
    }

    /// Between threads whose events are clones the kernel lets the tracer run; what it writes of that is from within the
    /// pause, and a stop a little before is not for it. Pauses are further apart than timing packets.
    #[test]
    fn a_tracer_that_stops_at_some_switches(slices in slices(3_000, 1_000)) {
        let mut cpu = Cpu::new(true);
        let mut stopped = true;
        for slice in &slices {
            cpu.psb_if_due(None);
            cpu.switch(Some(slice.thread), slice.late);
            cpu.pass(slice.late + 200);
            cpu.run(slice.thread, slice.ticks, 0, stopped);
            cpu.pass(700);
            stopped = slice.idle;
            if stopped {
                cpu.end(slice.thread);
            }
        }
        cpu.end(slices[slices.len() - 1].thread);
        prop_assert_eq!(cpu.wrong(), []);
    }

    /// The tracer runs through: records are from within the pause. Pauses are further apart than timing packets: no more
    /// can be told.
    #[test]
    fn a_tracer_that_never_stops(slices in slices(14_000, 3_000)) {
        prop_assert_eq!(write(&slices, false, false).wrong(), []);
    }

    /// Any bytes, any records: no panic, and changes in order.
    #[test]
    fn any_bytes(
        bytes in proptest::collection::vec(prop_oneof![Just(0x02u8), Just(0x82), Just(0x23), any::<u8>()], 0..3000),
        turns in proptest::collection::vec((any::<u64>(), proptest::option::of(0..3u32)), 0..200),
        stops: bool,
    ) {
        let mut cpu = Cpu::new(stops);
        cpu.psb_if_due(None);
        cpu.bytes.extend(bytes);
        let turn = |(since, thread): (u64, Option<u32>)| {
            // Near and far.
            let since = if since % 2 == 0 { START + since % 1_000_000 } else { since };
            Turn { since: Tsc(since), thread: thread.map(ThreadId) }
        };
        cpu.schedule.turns = turns.into_iter().map(turn).collect();
        cpu.schedule.turns.sort_by_key(|turn| turn.since);
        let found = cpu.found();
        prop_assert!(found.is_sorted_by_key(|change| change.from));
    }
}

/// The kernel is traced too: a switch is where the kernel runs.
#[test]
fn with_the_kernel() {
    let mut cpu = Cpu::new(false);
    let kernel =
        |cpu: &mut Cpu| cpu.put(Packet::Tip(IpPayload::with_form(IpBytes::Full, 0xffff_ffff_8100_0000)));
    let user = |cpu: &mut Cpu, thread| {
        cpu.resumed.push((cpu.bytes.len() as u64, thread));
        cpu.put(Packet::Tip(IpPayload::with_form(IpBytes::Full, 0x40_1000)));
    };
    cpu.psb_if_due(None);
    cpu.switch(Some(1), 0);
    cpu.on(1, true);
    cpu.pass(20_000);
    kernel(&mut cpu);
    cpu.pass(2_000);
    user(&mut cpu, 1);
    cpu.pass(20_000);
    kernel(&mut cpu);
    cpu.pass(1_000);
    cpu.switch(Some(2), 0);
    cpu.pass(2_000);
    user(&mut cpu, 2);
    cpu.pass(20_000);
    kernel(&mut cpu);
    assert_eq!(cpu.wrong(), []);
    assert_eq!(cpu.found().len(), 2);
}

#[test]
fn without_a_clock_the_ends_tell() {
    let mut cpu = Cpu::new(true);
    for thread in [1, 2, 2, 1] {
        cpu.run(thread, 1_000, 2, false);
        cpu.end(thread);
    }
    let untimed = PtConfig { tsc: false, ..config() };
    let found = changes(&TraceStream::default(), &untimed, &cpu.schedule);
    let ends: Vec<AuxOffset> = cpu.schedule.ends.iter().map(|end| end.end).collect();
    let change = |from, thread| Change { from, thread: Some(ThreadId(thread)) };
    assert_eq!(found, [change(AuxOffset(0), 1), change(ends[0], 2), change(ends[2], 1)]);
    // Of what no end speaks, nothing is known; nor of anything, where only the place itself is told.
    let mut schedule = cpu.schedule.clone();
    schedule.ends.remove(1);
    let found = changes(&TraceStream::default(), &untimed, &schedule);
    let unknown = Change { from: ends[0], thread: None };
    assert_eq!(found, [change(AuxOffset(0), 1), unknown, change(ends[1], 2), change(ends[2], 1)]);
    schedule.ends.iter_mut().for_each(|told| told.from = told.end);
    let found = changes(&TraceStream::default(), &untimed, &schedule);
    assert!(found.iter().all(|change| change.thread.is_none()), "{found:?}");
}

/// The last turn is over before any packet tells a time behind it; its record is late.
#[test]
fn a_last_turn_that_is_short() {
    let mut cpu = Cpu::new(true);
    cpu.psb_if_due(None);
    cpu.switch(Some(1), 0);
    cpu.run(1, 10_000, 3, true);
    cpu.end(1);
    cpu.now += 5_000;
    cpu.switch(Some(2), 10_000);
    cpu.run(2, 50, 0, true);
    cpu.end(2);
    assert_eq!(cpu.wrong(), []);
}

/// A long stretch without a switch is not looked at; what comes behind it is right all the same.
#[test]
fn long_stretches() {
    let mut cpu = Cpu::new(true);
    for round in 0..20 {
        for thread in [3, 1, 2] {
            cpu.psb_if_due(None);
            cpu.switch(Some(thread), 9_000);
            cpu.run(thread, 2_000_000, 50 + round, true);
            cpu.end(thread);
        }
    }
    assert_eq!(cpu.wrong(), []);
}

/// A window of a long stream is found without most of it: what is not looked at may be anything.
#[test]
fn no_more_is_looked_at_than_is_needed() {
    let mut cpu = Cpu::new(true);
    for _ in 0..200 {
        for thread in [3, 1, 2] {
            cpu.psb_if_due(None);
            cpu.switch(Some(thread), 9_000);
            cpu.run(thread, 100_000, 5, true);
            cpu.end(thread);
        }
    }
    let (from, to) = (START + (cpu.now - START) / 2, START + (cpu.now - START) / 2 + 1_000_000);
    let (wrong, needed) = cpu.wrong_within(from, to, 1000);
    assert!(wrong.is_empty() && (20..200).contains(&needed), "{wrong:?} of {needed}");
    let whole = cpu.found();
    let part = cpu.find(|stream| {
        let windows = [Window { from: Some(Tsc(from)), to: Some(Tsc(to)), ..Window::ALL }];
        changes_within(stream, &config(), &cpu.schedule, &windows, 1000)
    });
    assert!(part.len() < whole.len() / 5, "{} of {}", part.len(), whole.len());
}
