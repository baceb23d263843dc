//! The records besides the trace, in order of time: they tell who ran, under which name, with what mapped.

use crate::events::Events;
use crate::process::Processes;
use crate::record::{Comm, ItraceStart, Mmap, Record, Switch, Task, kind};
use crate::{Cpu, Pid, Tid};
use ptflow_decoder::units::Ns;
use std::collections::HashMap;

/// A thread came to a CPU, or left it: what assigns the trace of a CPU to threads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SwitchEvent {
    /// When.
    pub time: Ns,
    /// The CPU, where the event records it.
    pub cpu: Option<Cpu>,
    /// The thread.
    pub task: Option<(Pid, Tid)>,
    /// What it did.
    pub what: SwitchKind,
}

/// What a thread did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SwitchKind {
    /// It came; who ran before, where the record tells.
    In {
        /// The thread before.
        previous: Option<(Pid, Tid)>,
    },
    /// It left; who comes next, where the record tells.
    Out {
        /// It could have run on.
        preempted: bool,
        /// The next thread.
        next: Option<(Pid, Tid)>,
    },
    /// It ran when tracing began (ITRACE_START).
    TraceStart,
}

/// Gathers the records while the file is walked.
#[derive(Debug, Default)]
pub(crate) struct Sideband<'m> {
    records: Vec<(Ns, Record<'m>)>,
}

impl<'m> Sideband<'m> {
    /// Takes a record that is part of the story; others are let go.
    pub fn add(&mut self, record: &Record<'m>, time: Ns) {
        if let kind::MMAP
        | kind::MMAP2
        | kind::COMM
        | kind::FORK
        | kind::EXIT
        | kind::ITRACE_START
        | kind::SWITCH
        | kind::SWITCH_CPU_WIDE = record.kind
        {
            self.records.push((time, *record));
        }
    }

    /// Tells the story. The records of each ring buffer are in order, those of several are interleaved in the file.
    pub fn finish(
        mut self,
        events: &Events,
        build_ids: &HashMap<&[u8], &[u8]>,
    ) -> (Processes, Vec<SwitchEvent>) {
        // Stable: what perf made up for the time before the recording has time 0 and keeps the file's order.
        self.records.sort_by_key(|(time, _)| *time);
        let mut processes = Processes::default();
        let mut switches = Vec::new();
        for (time, record) in &self.records {
            let _ = apply(record, *time, events, build_ids, &mut processes, &mut switches);
        }
        (processes, switches)
    }
}

/// `None` for a record that is too short.
fn apply(
    record: &Record<'_>,
    time: Ns,
    events: &Events,
    build_ids: &HashMap<&[u8], &[u8]>,
    processes: &mut Processes,
    switches: &mut Vec<SwitchEvent>,
) -> Option<()> {
    match record.kind {
        kind::MMAP | kind::MMAP2 => {
            let mmap = Mmap::read(record)?;
            if mmap.is_executable() {
                processes.mmap(mmap, time, build_ids.get(mmap.filename).copied());
            }
        }
        kind::COMM => processes.comm(Comm::read(record)?, time),
        kind::FORK => processes.fork(Task::read(record)?, time),
        kind::EXIT => processes.exit(Task::read(record)?, time),
        kind::ITRACE_START => {
            let ItraceStart { pid, tid } = ItraceStart::read(record)?;
            processes.seen(pid, tid);
            let cpu = events.trailer(record).cpu;
            switches.push(SwitchEvent { time, cpu, task: Some((pid, tid)), what: SwitchKind::TraceStart });
        }
        _ => {
            let Switch { out, preempted, other } = Switch::read(record)?;
            let what = match out {
                true => SwitchKind::Out { preempted, next: other },
                false => SwitchKind::In { previous: other },
            };
            let trailer = events.trailer(record);
            switches.push(SwitchEvent { time, cpu: trailer.cpu, task: trailer.task, what });
        }
    }
    Some(())
}
