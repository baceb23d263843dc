//! AUX × AUXTRACE: which bytes of the file are which stretch of which trace stream.
//!
//! ```text
//! AUX records    |--- 0..70000 ---|- 70000..81000 TRUNCATED -|        |-- 81000.. --|
//! AUXTRACE       |------- 0..65536 -------|--- 65536..90000 + padding ---|
//! pieces         [        0..65536        ][65536..81000] ⚡ [81000..90000]
//! ```
//!
//! The offsets of AUXTRACE records say what belongs where. AUX records say where the buffer was full, and where a
//! chunk's bytes end before its padding. Bytes that no AUX record speaks of are kept: the record may have been lost.

use crate::record::{Aux, AuxTrace, Record};
use crate::schedule::Taken;
use crate::{Cpu, Pid, Tid};
use ptflow_decoder::stream::{Break, Piece, TraceStream};
use ptflow_decoder::units::AuxOffset;
use std::collections::{BTreeMap, HashMap};

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

/// What the AUX records of a capture say, summed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AuxSums {
    /// Records.
    pub records: u64,
    /// Bytes of trace that they speak of; snapshots' records speak of the whole buffer and do not count.
    pub bytes: u64,
    /// Times that the buffer was full.
    pub truncated: u64,
    /// Times that there are gaps in the bytes, as while a guest ran.
    pub partial: u64,
    /// Times that a sample collided with another.
    pub collisions: u64,
}

/// Perf pads what it writes to this many bytes; offsets do not count the padding.
const PADDING: u64 = 8;

/// Whose buffer an AUX record is of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Owner {
    Thread(Tid),
    Cpu(Cpu),
}

/// What the AUX records of one buffer say.
#[derive(Clone, Debug, Default)]
struct Marks {
    /// Where records end.
    ends: Vec<u64>,
    /// Where the records end behind which flow does not go on, and why.
    cuts: Vec<(u64, Break)>,
}

impl Marks {
    fn sort(&mut self) {
        self.ends.sort_unstable();
        self.ends.dedup();
        // Of several reasons at one place the first one that was read is told.
        self.cuts.sort_by_key(|(end, _)| *end);
        self.cuts.dedup_by_key(|(end, _)| *end);
    }
}

/// Gathers the two kinds of records and joins them.
#[derive(Debug, Default)]
pub(crate) struct StreamBuilder<'m> {
    per_cpu: bool,
    snapshot: bool,
    queues: BTreeMap<u32, Vec<(AuxTrace, &'m [u8])>>,
    /// AUX records with thread and CPU; which of the two counts is known at the end.
    aux: Vec<(Aux, Option<Tid>, Option<Cpu>)>,
    pub sums: AuxSums,
    /// Bytes that records promised and the file does not have.
    pub missing: u64,
}

impl<'m> StreamBuilder<'m> {
    /// What AUXTRACE_INFO says of the buffers.
    pub fn setup(&mut self, per_cpu: bool, snapshot: bool) {
        (self.per_cpu, self.snapshot) = (per_cpu, snapshot);
    }

    pub fn auxtrace(&mut self, record: &Record<'m>) {
        let Some(info) = AuxTrace::read(record) else { return };
        self.missing = self.missing.saturating_add(info.size.saturating_sub(record.payload.len() as u64));
        self.queues.entry(info.idx).or_default().push((info, record.payload));
    }

    pub fn aux(&mut self, aux: Aux, tid: Option<Tid>, cpu: Option<Cpu>) {
        let has = |flag: u64| u64::from(aux.flags & flag != 0);
        self.sums.records += 1;
        self.sums.truncated += has(Aux::TRUNCATED);
        self.sums.partial += has(Aux::PARTIAL);
        self.sums.collisions += has(Aux::COLLISION);
        // In snapshot mode offsets are positions in the ring: of no use for order or holes.
        if aux.flags & Aux::OVERWRITE == 0 {
            self.sums.bytes = self.sums.bytes.saturating_add(aux.size);
            self.aux.push((aux, tid, cpu));
        }
    }

    /// Who ran as trace was taken: by the AUX records, but for those of snapshots.
    pub fn taken(&self) -> Vec<Taken> {
        let whole = self.follows_threads();
        let taken = |(aux, tid, cpu): &(Aux, Option<Tid>, Option<Cpu>)| {
            let (from, end) = (AuxOffset(aux.offset), AuxOffset(aux.end()));
            Some(Taken { cpu: (*cpu)?, from, end, tid: (*tid)?, whole, stops: true })
        };
        self.aux.iter().filter_map(taken).collect()
    }

    /// True where the buffers are of threads that may run on any CPU, and not of CPUs.
    pub fn follows_threads(&self) -> bool {
        self.queues.values().flatten().any(|(info, _)| info.tid.is_some())
    }

    pub fn finish(self) -> Vec<PtStream<'m>> {
        // Without trailers a record belongs to the only queue, if there is but one.
        let only = self.queues.len() == 1;
        let mut marks: HashMap<Option<Owner>, Marks> = HashMap::new();
        for (aux, tid, cpu) in &self.aux {
            let owner = if self.per_cpu { cpu.map(Owner::Cpu) } else { tid.map(Owner::Thread) };
            let marks = marks.entry(owner.filter(|_| !only)).or_default();
            marks.ends.push(aux.end());
            marks.cuts.extend(aux.breaks().map(|why| (aux.end(), why)));
        }
        marks.values_mut().for_each(Marks::sort);
        let none = Marks::default();
        let mut streams = Vec::with_capacity(self.queues.len());
        for (idx, mut chunks) in self.queues {
            let Some((first, _)) = chunks.first().copied() else { continue };
            // perf gives the workload's thread to the buffers of every CPU: it is the CPU that counts there.
            let (cpu, tid) = if self.per_cpu { (first.cpu, None) } else { (None, first.tid) };
            let owner = cpu.map(Owner::Cpu).or(tid.map(Owner::Thread));
            let marks = marks.get(&owner.filter(|_| !only)).unwrap_or(&none);
            let pieces = if self.snapshot {
                snapshots(&chunks)
            } else {
                // perf writes them in order; the offset is what counts.
                chunks.sort_by_key(|(info, _)| info.offset);
                pieces(&chunks, marks)
            };
            streams.push(PtStream { idx, cpu, tid, pid: None, trace: TraceStream { pieces } });
        }
        streams
    }
}

/// Snapshots one after another. Their offsets are those of a ring, so they are numbered on: what a piece continues,
/// and what it repeats, is for the packets to tell.
fn snapshots<'m>(chunks: &[(AuxTrace, &'m [u8])]) -> Vec<Piece<'m>> {
    let mut offset = 0u64;
    let pieces = chunks.iter().filter(|(_, bytes)| !bytes.is_empty()).map(|(info, bytes)| {
        let break_before = Some(if offset == 0 { Break::Start } else { Break::Snapshot });
        let piece = Piece { offset: AuxOffset(offset), bytes, break_before, reference: reference(info) };
        offset += bytes.len() as u64;
        piece
    });
    pieces.collect()
}

fn pieces<'m>(chunks: &[(AuxTrace, &'m [u8])], marks: &Marks) -> Vec<Piece<'m>> {
    let mut pieces: Vec<Piece<'m>> = Vec::with_capacity(chunks.len());
    let mut end_before = None;
    for (index, (info, bytes)) in chunks.iter().enumerate() {
        let next = chunks.get(index + 1).map(|(info, _)| info.offset);
        let mut offset = info.offset;
        let mut bytes = &bytes[..length(info.offset, bytes, next, &marks.ends)];
        // A chunk without bytes begins nothing and continues nothing.
        if bytes.is_empty() {
            continue;
        }
        let end = offset.saturating_add(bytes.len() as u64);
        let mut break_before = match end_before {
            None => Some(Break::Start),
            Some(before) if before == offset => None,
            Some(_) => Some(Break::Missing),
        };
        end_before = Some(end);
        let mut push = |bytes: &'m [u8], offset: u64, break_before| {
            if !bytes.is_empty() {
                let offset = AuxOffset(offset);
                pieces.push(Piece { offset, bytes, break_before, reference: reference(info) });
            }
        };
        let from = marks.cuts.partition_point(|(cut, _)| *cut < offset);
        for &(cut, why) in marks.cuts[from..].iter().take_while(|(cut, _)| *cut < end) {
            let (head, tail) = bytes.split_at((cut - offset) as usize);
            push(head, offset, break_before);
            (bytes, offset, break_before) = (tail, cut, Some(why));
        }
        push(bytes, offset, break_before);
    }
    pieces
}

fn reference(info: &AuxTrace) -> Option<ptflow_decoder::units::Tsc> {
    (info.reference.0 != 0).then_some(info.reference)
}

/// How many of a chunk's bytes are of the stream: those up to the next chunk, else those without padding.
fn length(offset: u64, bytes: &[u8], next: Option<u64>, aux_ends: &[u64]) -> usize {
    let len = bytes.len() as u64;
    let distance = |to: u64| to.checked_sub(offset).filter(|distance| *distance < len);
    if let Some(distance) = next.and_then(distance) {
        return distance as usize;
    }
    // perf reads up to where the kernel had written: a padded chunk ends where an AUX record does. A record that ends
    // behind the chunk has bytes in it, so it is full; but where the stream has a hole, that record is another one.
    let end = offset.saturating_add(len);
    let before = aux_ends.partition_point(|aux_end| *aux_end < end);
    let hole_follows = next.is_some_and(|next| next > end);
    let full = before < aux_ends.len() && !hole_follows;
    let last = before.checked_sub(1).and_then(|last| distance(aux_ends[last]));
    match last.filter(|last| !full && len - last < PADDING) {
        Some(last) if bytes[last as usize..].iter().all(|byte| *byte == 0) => last as usize,
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FileOffset;
    use crate::record::{WriteRecord, kind};
    use ptflow_decoder::units::Tsc;

    struct Chunk(AuxTrace, Vec<u8>);

    fn chunk(idx: u32, offset: u64, bytes: &[u8]) -> Chunk {
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len().next_multiple_of(8), 0);
        let (tid, reference) = (Some(Tid(100 + idx)), Tsc(1));
        Chunk(AuxTrace { size: padded.len() as u64, offset, reference, idx, tid, cpu: None }, padded)
    }

    fn aux(offset: u64, size: u64, flags: u64) -> (Aux, Option<Tid>) {
        (Aux { offset, size, flags }, Some(Tid(100)))
    }

    /// Offset, bytes and break of a piece.
    type Found = (u64, Vec<u8>, Option<Break>);

    /// The pieces of every stream.
    fn build(chunks: &[Chunk], auxs: &[(Aux, Option<Tid>)], snapshot: bool) -> Vec<Vec<Found>> {
        let body = |chunk: &Chunk| {
            let mut body = Vec::new();
            chunk.0.body(&mut body);
            body
        };
        let bodies: Vec<Vec<u8>> = chunks.iter().map(body).collect();
        let mut builder = StreamBuilder::default();
        builder.setup(false, snapshot);
        for (body, Chunk(_, payload)) in bodies.iter().zip(chunks) {
            builder.auxtrace(&Record { kind: kind::AUXTRACE, misc: 0, body, payload, offset: FileOffset(0) });
        }
        for (aux, tid) in auxs {
            builder.aux(*aux, *tid, Some(Cpu(0)));
        }
        let streams = builder.finish();
        let piece = |piece: &Piece<'_>| (piece.offset.0, piece.bytes.to_vec(), piece.break_before);
        streams.iter().map(|stream| stream.trace.pieces.iter().map(piece).collect()).collect()
    }

    #[test]
    fn chunks_that_follow_each_other_are_one_stretch() {
        let chunks = [chunk(0, 0, &[1; 13]), chunk(0, 13, &[2; 16]), chunk(0, 29, &[3; 3])];
        let expected =
            vec![(0, vec![1; 13], Some(Break::Start)), (13, vec![2; 16], None), (29, vec![3; 3], None)];
        let records = [aux(0, 20, 0), aux(20, 12, 0)];
        assert_eq!(build(&chunks, &records, false)[0], expected);
        // The order in the file is not what counts.
        let chunks = [chunk(0, 29, &[3; 3]), chunk(0, 0, &[1; 13]), chunk(0, 13, &[2; 16])];
        assert_eq!(build(&chunks, &records, false)[0], expected);
    }

    #[test]
    fn padding_goes_where_a_record_or_the_next_chunk_says_so() {
        let last = |auxs: &[(Aux, Option<Tid>)], bytes: &[u8]| {
            build(&[chunk(0, 0, bytes)], auxs, false)[0].last().unwrap().1.len()
        };
        assert_eq!(last(&[aux(0, 13, 0)], &[1; 13]), 13);
        // Nothing tells: the zeros may be PAD packets.
        assert_eq!(last(&[], &[1; 13]), 16);
        // A record that ends further back than padding reaches, as where a later one was lost.
        assert_eq!(last(&[aux(0, 5, 0)], &[1; 13]), 16);
        // What follows the record is no padding.
        assert_eq!(last(&[aux(0, 13, 0)], &[1; 16]), 16);
        // A record that reaches over the chunk's end: the chunk is full.
        assert_eq!(last(&[aux(0, 13, 0), aux(13, 100, 0)], &[1; 13]), 16);
        // A hole behind the chunk: the record behind it is another stretch's.
        let chunks = [chunk(0, 0, &[1; 13]), chunk(0, 100, &[2; 8])];
        let streams = build(&chunks, &[aux(0, 13, 0), aux(100, 8, 0)], false);
        let expected = [(0, vec![1; 13], Some(Break::Start)), (100, vec![2; 8], Some(Break::Missing))];
        assert_eq!(streams[0], expected);
    }

    #[test]
    fn a_full_buffer_breaks_the_stream_where_it_was_full() {
        let bytes: Vec<u8> = (1..=24).collect();
        let chunks = [chunk(0, 0, &bytes), chunk(0, 24, &[9; 8])];
        let truncated = Aux::TRUNCATED;
        let inside = build(&chunks, &[aux(0, 10, truncated), aux(10, 22, 0)], false);
        let expected = [
            (0, bytes[..10].to_vec(), Some(Break::Start)),
            (10, bytes[10..].to_vec(), Some(Break::AuxTruncated)),
            (24, vec![9; 8], None),
        ];
        assert_eq!(inside[0], expected);
        let between = build(&chunks, &[aux(0, 24, truncated), aux(24, 8, 0)], false);
        let expected = [(0, bytes, Some(Break::Start)), (24, vec![9; 8], Some(Break::AuxTruncated))];
        assert_eq!(between[0], expected);
        // At the very end nothing follows.
        let end = build(&chunks, &[aux(0, 32, truncated)], false);
        assert!(end[0].iter().skip(1).all(|piece| piece.2.is_none()));
    }

    #[test]
    fn gaps_and_collisions_break_it_too() {
        let chunks = [chunk(0, 0, &[1; 32])];
        let flags =
            [(4, Aux::PARTIAL), (8, Aux::COLLISION), (12, Aux::OVERWRITE | Aux::TRUNCATED), (16, 0xff00)];
        let records: Vec<_> = flags.iter().map(|(end, flags)| aux(end - 4, 4, *flags)).collect();
        let breaks: Vec<_> =
            build(&chunks, &records, false)[0].iter().map(|piece| (piece.0, piece.2.unwrap())).collect();
        assert_eq!(breaks, [(0, Break::Start), (4, Break::AuxPartial), (8, Break::AuxCollision)]);
    }

    #[test]
    fn records_of_one_thread_do_not_touch_another() {
        let chunks = [chunk(0, 0, &[1; 16]), chunk(1, 0, &[2; 16])];
        let streams = build(&chunks, &[aux(0, 8, Aux::TRUNCATED)], false);
        assert_eq!((streams[0].len(), streams[1].len()), (2, 1));
    }

    #[test]
    fn snapshots_are_numbered_on_and_never_continue() {
        let chunks = [chunk(0, 4096, &[1; 16]), chunk(0, 0, &[2; 8])];
        let streams = build(&chunks, &[aux(0, 1 << 20, Aux::OVERWRITE | Aux::TRUNCATED)], true);
        let expected = [(0, vec![1; 16], Some(Break::Start)), (16, vec![2; 8], Some(Break::Snapshot))];
        assert_eq!(streams[0], expected);
    }

    #[test]
    fn offsets_at_the_end_of_the_world() {
        let chunks = [chunk(0, u64::MAX - 3, &[1; 16]), chunk(0, u64::MAX, &[2; 16]), chunk(0, 5, &[3; 16])];
        let records = [aux(u64::MAX, u64::MAX, Aux::TRUNCATED), aux(0, u64::MAX, Aux::TRUNCATED)];
        let streams = build(&chunks, &records, false);
        let bytes: usize = streams[0].iter().map(|piece| piece.1.len()).sum();
        assert_eq!(bytes, 16 + 3 + 16);
    }
}
