//! AUX samples (`perf record --aux-sample`): each sample of another event brings the trace up to it.
//!
//! ```text
//! trace     ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
//! samples      ├─────┤  ├─────┤       ├─────┤
//!                  ├─────┤                              they may overlap, and leave holes
//! ```
//!
//! They are snapshots that come by themselves: pieces of a stream for each CPU or thread, numbered on, and the packets
//! tell what repeats (perf does the same: linux `tools/perf/util/auxtrace.c`, `auxtrace_queues__add_sample`).

use crate::record::{IdIndex, Record, Sample};
use crate::schedule::Taken;
use crate::streams::PtStream;
use crate::{Cpu, Tid};
use ptflow_decoder::config::TscConversion;
use ptflow_decoder::stream::{Break, Piece, TraceStream};
use ptflow_decoder::units::{AuxOffset, Ns};
use std::collections::{BTreeMap, HashMap};

/// A sample with trace.
#[derive(Clone, Copy, Debug)]
struct AuxSample<'m> {
    cpu: Option<Cpu>,
    tid: Option<Tid>,
    time: Option<Ns>,
    bytes: &'m [u8],
}

/// Whose buffer a sample was taken from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Queue {
    Cpu(Cpu),
    Thread(Tid),
    Unknown,
}

/// Gathers samples with trace.
#[derive(Debug, Default)]
pub(crate) struct AuxSamples<'m> {
    samples: Vec<AuxSample<'m>>,
    /// CPU and thread of an event id: for samples that do not tell them.
    ids: HashMap<u64, (Option<Cpu>, Option<Tid>)>,
}

impl<'m> AuxSamples<'m> {
    /// Takes a sample that has trace.
    pub fn add(&mut self, sample: &Sample<'m>) {
        let Some(bytes) = sample.aux.filter(|bytes| !bytes.is_empty()) else { return };
        let of_id = sample.identifier.or(sample.id).and_then(|id| self.ids.get(&id)).copied();
        let (cpu, tid) = of_id.unwrap_or_default();
        self.samples.push(AuxSample {
            cpu: sample.cpu.or(cpu),
            tid: sample.task.map(|task| task.1).or(tid),
            time: sample.time,
            bytes,
        });
    }

    /// Takes perf's table of event ids.
    pub fn id_index(&mut self, record: &Record<'m>) {
        let entries = IdIndex::read(record).into_iter().flat_map(|index| index.iter());
        self.ids.extend(entries.map(|entry| (entry.id, (entry.cpu, entry.tid))));
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.samples.len() as u64
    }

    /// The streams, numbered from `first` on, and who ran as each piece was taken. The threads of a CPU may have changed
    /// since a piece began: without switch records it is taken for the sample's thread's, as perf does.
    pub fn finish(
        self,
        per_cpu: bool,
        time: Option<TscConversion>,
        first: u32,
    ) -> (Vec<PtStream<'m>>, Vec<Taken>) {
        let mut queues: BTreeMap<Queue, Vec<AuxSample<'m>>> = BTreeMap::new();
        for sample in self.samples {
            let of_thread = || sample.tid.map_or(Queue::Unknown, Queue::Thread);
            let queue = sample.cpu.filter(|_| per_cpu).map_or_else(of_thread, Queue::Cpu);
            queues.entry(queue).or_default().push(sample);
        }
        let (mut streams, mut taken) = (Vec::new(), Vec::new());
        for (idx, (queue, mut samples)) in (first..).zip(queues) {
            // Samples of several events may lie in the file in another order. Stable: without times the file's counts.
            samples.sort_by_key(|sample| sample.time);
            let (cpu, tid) = match queue {
                Queue::Cpu(cpu) => (Some(cpu), None),
                Queue::Thread(tid) => (None, Some(tid)),
                Queue::Unknown => (None, None),
            };
            let mut pieces = Vec::with_capacity(samples.len());
            let mut offset = 0u64;
            for sample in samples {
                let from = AuxOffset(offset);
                offset += sample.bytes.len() as u64;
                let reference = sample.time.and_then(|at| time?.to_tsc(at));
                let break_before = Some(if from.0 == 0 { Break::Start } else { Break::Snapshot });
                pieces.push(Piece { offset: from, bytes: sample.bytes, break_before, reference });
                if let (Some(cpu), Some(tid)) = (cpu, sample.tid) {
                    taken.push(Taken { cpu, from, end: AuxOffset(offset), tid, whole: true, stops: false });
                }
            }
            streams.push(PtStream { idx, cpu, tid, pid: None, trace: TraceStream { pieces } });
        }
        (streams, taken)
    }
}
