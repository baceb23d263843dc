//! Who ran when on which CPU, for traces by CPU: from whichever records the capture has.
//!
//! | recorded with | records | what they tell |
//! | --- | --- | --- |
//! | `-a`, `-C`, or rights to watch a CPU | SWITCH_CPU_WIDE | who leaves and who comes |
//! | without such rights | SWITCH | when a traced thread leaves and comes |
//! | kernels before 4.3 | the tracepoint sched:sched_switch | who comes |
//! | always | ITRACE_START, AUX | who runs as tracing begins, and when the trace is taken |
//! | `--aux-sample` | the samples | who runs as the trace is taken |

use crate::process::Processes;
use crate::sideband::{SwitchEvent, SwitchKind};
use crate::{Cpu, Pid, Tid};
use ptflow_decoder::config::TscConversion;
use ptflow_decoder::owners::{RanUpTo, Schedule, ThreadId, Turn};
use ptflow_decoder::units::AuxOffset;
use std::collections::{BTreeMap, HashMap};

/// The schedules of all CPUs.
#[derive(Clone, Debug, Default)]
pub struct Schedules {
    /// The threads that ran, by [`ThreadId`].
    pub threads: Vec<(Pid, Tid)>,
    cpus: BTreeMap<Cpu, Schedule>,
}

impl Schedules {
    /// The schedule of a CPU, if anything is known of it.
    pub fn of(&self, cpu: Cpu) -> Option<&Schedule> {
        self.cpus.get(&cpu)
    }

    /// A thread.
    pub fn thread(&self, id: ThreadId) -> Option<(Pid, Tid)> {
        self.threads.get(id.0 as usize).copied()
    }
}

/// What a sample of sched:sched_switch tells (linux `include/trace/events/sched.h`, TRACE_EVENT(sched_switch)): behind
/// the 8 bytes that all tracepoints have, comm, pid, prio and state of who leaves, then comm, pid and prio of who comes.
/// The layout is the same since 2.6.31.
pub(crate) fn sched_switch(raw: &[u8]) -> Option<Tid> {
    const NEXT_PID: usize = 8 + 16 + 4 + 4 + 8 + 16;
    let bytes = raw.get(NEXT_PID..NEXT_PID + 4)?;
    Some(Tid(u32::from_le_bytes(bytes.try_into().ok()?)))
}

/// A stretch of a CPU's stream, and the thread that ran at its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Taken {
    /// CPU.
    pub cpu: Cpu,
    /// Where it begins.
    pub from: AuxOffset,
    /// One past its last byte.
    pub end: AuxOffset,
    /// Who ran.
    pub tid: Tid,
    /// Nobody else is known to have run since its first byte.
    pub whole: bool,
    /// The tracer was stopped at its end.
    pub stops: bool,
}

/// Puts the schedules together. `taken` tells who ran as trace was taken; the tracer `stops` at every switch, or not.
pub(crate) fn schedules(
    switches: &[SwitchEvent],
    taken: &[Taken],
    processes: &Processes,
    time: Option<TscConversion>,
    stops: bool,
) -> Schedules {
    let mut threads = Threads { processes, ids: HashMap::new(), threads: Vec::new() };
    let mut cpus: BTreeMap<Cpu, Schedule> = BTreeMap::new();
    for switch in switches {
        let Some(cpu) = switch.cpu else { continue };
        let Some(since) = time.and_then(|time| time.to_tsc(switch.time)) else { continue };
        let task = match switch.what {
            SwitchKind::In { .. } | SwitchKind::TraceStart => switch.task,
            SwitchKind::Out { next, .. } => next,
        };
        let thread = task.and_then(|(_, tid)| threads.id(tid));
        let turns = &mut cpus.entry(cpu).or_default().turns;
        // Out and in tell of the same switch.
        if turns.last().is_none_or(|last| last.thread != thread) {
            turns.push(Turn { since, thread });
        }
    }
    for Taken { cpu, from, end, tid, whole, stops } in taken {
        let Some(thread) = threads.id(*tid) else { continue };
        let from = if *whole { *from } else { *end };
        let schedule = cpus.entry(*cpu).or_default();
        schedule.ends_stop |= stops;
        schedule.ends.push(RanUpTo { from, end: *end, thread });
    }
    for schedule in cpus.values_mut() {
        schedule.stops = stops;
        schedule.ends.sort_by_key(|end| end.end);
        // Times before the clock's zero wrap; such are no times of a trace.
        schedule.turns.sort_by_key(|turn| turn.since);
    }
    Schedules { threads: threads.threads, cpus }
}

/// Numbers threads as they come.
struct Threads<'p> {
    processes: &'p Processes,
    ids: HashMap<Tid, ThreadId>,
    threads: Vec<(Pid, Tid)>,
}

impl Threads<'_> {
    /// `None` for idle CPUs and threads of which the capture knows nothing else: they are not traced.
    fn id(&mut self, tid: Tid) -> Option<ThreadId> {
        if tid.0 == 0 || tid.0 == u32::MAX {
            return None;
        }
        let pid = self.processes.process_of(tid)?;
        let next = ThreadId(self.threads.len() as u32);
        let threads = &mut self.threads;
        Some(*self.ids.entry(tid).or_insert_with(|| {
            threads.push((pid, tid));
            next
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ptflow_decoder::units::{Ns, Tsc};

    const TIME: TscConversion = TscConversion { shift: 0, mult: 1, zero: 0 };

    fn processes(tids: &[u32]) -> Processes {
        let mut processes = Processes::default();
        tids.iter().for_each(|tid| processes.seen(Pid(tid / 10), Tid(*tid)));
        processes
    }

    fn switch(time: u64, cpu: u32, tid: u32, what: SwitchKind) -> SwitchEvent {
        let task = Some((Pid(tid / 10), Tid(tid)));
        SwitchEvent { time: Ns(time), cpu: Some(Cpu(cpu)), task, what }
    }

    fn turns(schedules: &Schedules, cpu: u32) -> Vec<(u64, Option<u32>)> {
        let turn = |turn: &Turn| (turn.since.0, turn.thread.and_then(|id| Some(schedules.thread(id)?.1.0)));
        schedules.of(Cpu(cpu)).unwrap().turns.iter().map(turn).collect()
    }

    #[test]
    fn switches_of_both_kinds() {
        let processes = processes(&[10, 11, 20]);
        let out = |next: Option<u32>| SwitchKind::Out {
            preempted: false,
            next: next.map(|tid| (Pid(tid / 10), Tid(tid))),
        };
        let came = SwitchKind::In { previous: None };
        let switches = [
            switch(1, 0, 10, SwitchKind::TraceStart),
            switch(5, 1, 20, came),
            // Both ends of one switch; then to the idle task, and to a thread that nobody traces.
            switch(10, 0, 10, out(Some(11))),
            switch(12, 0, 11, came),
            switch(20, 0, 11, out(Some(0))),
            switch(30, 0, 0, out(Some(999))),
            switch(40, 0, 999, out(Some(10))),
            switch(50, 1, 20, out(None)),
        ];
        let schedules = schedules(&switches, &[], &processes, Some(TIME), true);
        assert_eq!(turns(&schedules, 0), [(1, Some(10)), (10, Some(11)), (20, None), (40, Some(10))]);
        assert_eq!(turns(&schedules, 1), [(5, Some(20)), (50, None)]);
        assert_eq!(schedules.of(Cpu(2)).map(|_| ()), None);
        assert!(schedules.of(Cpu(0)).unwrap().turns.iter().all(|turn| turn.since < Tsc(100)));
    }

    /// What perf makes of real samples: it reads the layout that the kernel tells.
    #[test]
    fn tracepoints_of_this_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let perf = |args: &[&str]| {
            let output =
                std::process::Command::new("perf").args(args).current_dir(dir.path()).output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let made = perf(&["record", "-q", "-a", "-e", "sched:sched_switch", "-o", "p", "sleep", "0.05"]);
        let Some(text) = made.and_then(|_| perf(&["script", "-i", "p", "--ns", "-F", "time,trace"])) else {
            println!("skipped: perf may not record sched:sched_switch here");
            return;
        };
        let golden = text.lines().map(|line| {
            let (time, rest) = line.trim().split_once(':').unwrap();
            let (_, next) = rest.split_once("next_pid=").unwrap();
            let next = next.split(' ').next().unwrap().parse().unwrap();
            (time.replace('.', "").parse::<u64>().unwrap(), next)
        });
        let mut golden: Vec<(u64, u32)> = golden.collect();
        let file = crate::PerfFile::open(&dir.path().join("p")).unwrap();
        let ours = file.records().filter_map(|record| {
            let (_, sample) = file.events().sample(&record)?;
            Some((sample.time.unwrap().0, sched_switch(sample.raw.unwrap()).unwrap().0))
        });
        let mut ours: Vec<(u64, u32)> = ours.collect();
        ours.sort_unstable();
        golden.sort_unstable();
        assert!(!ours.is_empty());
        assert_eq!(ours, golden);
    }

    #[test]
    fn a_tracepoint_tells_who_comes() {
        let mut raw = vec![0u8; 64];
        raw[40..45].copy_from_slice(b"other");
        raw[56..60].copy_from_slice(&4711u32.to_le_bytes());
        assert_eq!(sched_switch(&raw), Some(Tid(4711)));
        assert_eq!(sched_switch(&raw[..59]), None);
    }
}
