//! AUX × AUXTRACE: which bytes of the file are which stretch of which trace stream.
//!
//! ```text
//! AUX records    |--- 0..70000 ---|- 70000..81000 TRUNCATED -|        |-- 81000.. --|
//! AUXTRACE       |------- 0..65536 (+ padding) -------|--- 65536..90000 ---|
//! pieces         [        0..65536                    ][65536..81000] ⚡ [81000..90000]
//! ```

use crate::record::{Aux, AuxTrace, Record};
use crate::{Cpu, Pid, Tid};
use ptflow_decoder::stream::{Break, Piece, TraceStream};
use ptflow_decoder::units::{AuxOffset, Tsc};
use std::collections::BTreeMap;

/// The trace of one thread or one CPU.
#[derive(Clone, Debug)]
pub struct PtStream<'m> {
    /// Queue number of the recording.
    pub idx: u32,
    /// The CPU, for a trace by CPU.
    pub cpu: Option<Cpu>,
    /// The thread, for a trace by thread.
    pub tid: Option<Tid>,
    /// The thread's process.
    pub pid: Option<Pid>,
    /// The bytes.
    pub trace: TraceStream<'m>,
}

impl PtStream<'_> {
    /// A name for reports: `tid 1234`, `cpu 3`.
    pub fn name(&self) -> String {
        match (self.cpu, self.tid) {
            (_, Some(tid)) => format!("tid {}", tid.0),
            (Some(cpu), None) => format!("cpu {}", cpu.0),
            (None, None) => format!("queue {}", self.idx),
        }
    }
}

/// Gathers the two kinds of records and joins them.
#[derive(Debug, Default)]
pub(crate) struct StreamBuilder<'m> {
    queues: BTreeMap<u32, Vec<(AuxTrace, &'m [u8])>>,
    /// Where AUX records end, by thread and by CPU, and whether they end truncated.
    ends: Vec<(Option<Tid>, Option<Cpu>, u64, bool)>,
    /// Bytes that a record promised and the file does not have.
    pub missing: u64,
}

impl<'m> StreamBuilder<'m> {
    pub fn auxtrace(&mut self, record: &Record<'m>) {
        let Some(info) = record.auxtrace() else { return };
        self.missing += info.size.saturating_sub(record.payload.len() as u64);
        self.queues.entry(info.idx).or_default().push((info, record.payload));
    }

    pub fn aux(&mut self, aux: Aux, tid: Option<Tid>, cpu: Option<Cpu>) {
        let truncated = aux.flags & Aux::TRUNCATED != 0;
        self.ends.push((tid, cpu, aux.offset.saturating_add(aux.size), truncated));
    }

    pub fn finish(self, per_cpu: bool, snapshot: bool) -> Vec<PtStream<'m>> {
        let mut streams = Vec::new();
        for (idx, mut chunks) in self.queues {
            if !snapshot {
                // perf writes them in order; the offset is what counts.
                chunks.sort_by_key(|(info, _)| info.offset);
            }
            let first = chunks[0].0;
            let (cpu, tid) = if per_cpu { (first.cpu, None) } else { (None, first.tid) };
            let own = || self.ends.iter().filter(|end| if per_cpu { end.1 == cpu } else { end.0 == tid });
            let mut cuts: Vec<u64> = own().filter(|end| end.3).map(|end| end.2).collect();
            cuts.sort_unstable();
            cuts.dedup();
            if !snapshot
                && let Some(end) = own().map(|end| end.2).max()
                && let Some((info, bytes)) = chunks.last_mut()
            {
                // The last chunk's padding: no next chunk tells where it begins.
                let padded = info.offset.saturating_add(bytes.len() as u64);
                if let Some(padding @ 1..8) = padded.checked_sub(end) {
                    *bytes = &bytes[..bytes.len().saturating_sub(padding as usize)];
                }
            }
            let pieces = pieces(&chunks, &cuts, snapshot);
            streams.push(PtStream { idx, cpu, tid, pid: None, trace: TraceStream { pieces } });
        }
        streams
    }
}

fn pieces<'m>(chunks: &[(AuxTrace, &'m [u8])], cuts: &[u64], snapshot: bool) -> Vec<Piece<'m>> {
    let mut pieces: Vec<Piece<'m>> = Vec::with_capacity(chunks.len());
    let mut end = None;
    for (index, (info, bytes)) in chunks.iter().enumerate() {
        let next = chunks.get(index + 1).map(|(info, _)| info.offset);
        let mut len = bytes.len();
        if let Some(next) = next.filter(|_| !snapshot)
            && let Some(distance) = next.checked_sub(info.offset)
            && (distance as usize) < len
        {
            // perf pads what it writes to eight bytes; the offsets do not count the padding.
            len = distance as usize;
        }
        let mut bytes = &bytes[..len];
        let mut offset = info.offset;
        let mut break_before = match end {
            None => Some(Break::Start),
            Some(end) if end == offset && !snapshot => None,
            Some(_) => Some(Break::Missing),
        };
        let reference = (info.reference != 0).then_some(Tsc(info.reference));
        let mut push = |bytes: &'m [u8], offset: u64, break_before| {
            if !bytes.is_empty() {
                pieces.push(Piece { offset: AuxOffset(offset), bytes, break_before, reference });
            }
        };
        let stretch_end = offset.saturating_add(len as u64);
        let from = cuts.partition_point(|cut| *cut < offset);
        for cut in cuts[from..].iter().take_while(|cut| **cut < stretch_end && !snapshot) {
            let (head, tail) = bytes.split_at((cut - offset) as usize);
            push(head, offset, break_before);
            (bytes, offset, break_before) = (tail, *cut, Some(Break::AuxTruncated));
        }
        push(bytes, offset, break_before);
        end = Some(stretch_end);
    }
    pieces
}
