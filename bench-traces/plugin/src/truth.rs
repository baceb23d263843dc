//! The ground truth: what ran, counted from pairs of consecutive blocks and from nothing else; and on request all of it in
//! order. It has a clock of its own, which the same blocks drive as the encoder's.

use crate::block::{Block, End};
use ptflow_bench_traces::log::{Entry, LogWriter};
use ptflow_bench_traces::truth::Rows;
use ptflow_decoder::profile::EdgeKind;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter};

/// One transfer: kind, from, to, taken.
pub type Transfer = (&'static str, u64, Option<u64>, bool);

/// What one thread did.
#[derive(Debug, Default)]
pub struct Truth {
    /// For each block: how often its last branch fell through, and how often it went to its target.
    counts: Vec<[u64; 2]>,
    /// Indirect transfers and returns, by block and target.
    indirect: FxHashMap<(u32, u64), u64>,
    /// Resumptions of tracing, by address.
    resumes: BTreeMap<u64, u64>,
    /// Interruptions, by the address that did not execute any more, and by where they led if that is traced.
    asyncs: BTreeMap<(u64, Option<u64>), u64>,
    /// Transfers that no decoder can know, for their packets were lost.
    pub unknowable: BTreeMap<Transfer, u64>,
    /// Core cycles since the recording began.
    pub cycles: u64,
    /// The ordered truth.
    log: Option<LogWriter<BufWriter<File>>>,
    /// Why the ordered truth could not be written.
    log_error: Option<io::Error>,
    /// Instructions executed.
    pub instructions: u64,
    /// Pairs of blocks that no rule explains. Must be 0.
    pub unexplained: u64,
}

impl End {
    /// The kind of its transfers.
    fn kind(self) -> EdgeKind {
        match self {
            Self::Jcc => EdgeKind::Jcc,
            Self::Jmp => EdgeKind::Jmp,
            Self::Call => EdgeKind::Call,
            Self::JmpInd => EdgeKind::JmpInd,
            Self::CallInd => EdgeKind::CallInd,
            Self::Ret => EdgeKind::Ret,
            Self::Syscall => EdgeKind::Syscall,
            Self::Straight | Self::Rep | Self::Far => EdgeKind::Far,
        }
    }
}

impl Truth {
    /// What a thread does from a time on.
    pub fn new(cycles: u64, log: Option<LogWriter<BufWriter<File>>>) -> Self {
        Self { cycles, log, ..Self::default() }
    }

    /// Time passes.
    #[inline]
    pub fn pass(&mut self, cycles: u64) {
        self.cycles += cycles;
    }

    #[inline]
    fn note(&mut self, kind: EdgeKind, from: Option<u64>, to: Option<u64>, taken: bool, ahead: i64) {
        if self.log.is_some() {
            let (cycles, instructions) = (self.cycles, self.instructions.wrapping_add_signed(ahead));
            self.write(&Entry { kind, from, to, taken, cycles, instructions });
        }
    }

    /// Keeps the first error: the counts go on without the log.
    #[cold]
    fn write(&mut self, entry: &Entry) {
        let Some(log) = &mut self.log else { return };
        if let Err(error) = log.push(entry) {
            self.log_error = Some(error);
            self.log = None;
        }
    }

    /// The log is whole, or this is why not.
    pub fn finish_log(&mut self) -> io::Result<()> {
        self.log_error.take().map_or(Ok(()), Err)?;
        self.log.take().map_or(Ok(()), |log| log.finish().map(drop))
    }

    #[inline]
    fn slot(&mut self, block: &Block) -> &mut [u64; 2] {
        let index = block.id as usize;
        if index >= self.counts.len() {
            self.counts.resize((index + 1).next_power_of_two(), [0; 2]);
        }
        &mut self.counts[index]
    }

    /// A direct branch, conditional or not.
    #[inline]
    pub fn direct(&mut self, block: &Block, taken: bool) {
        self.slot(block)[usize::from(taken)] += 1;
        let to = (block.end != End::Syscall).then_some(block.target);
        self.note(block.end.kind(), Some(block.last), to, taken, 0);
    }

    /// An indirect transfer or a return.
    #[inline]
    pub fn indirect(&mut self, block: &Block, target: u64) {
        *self.indirect.entry((block.id, target)).or_insert(0) += 1;
        self.note(block.end.kind(), Some(block.last), Some(target), true, 0);
    }

    /// Tracing resumed; so many instructions are counted too few, or if negative, too many.
    pub fn resume(&mut self, at: u64, ahead: i64) {
        *self.resumes.entry(at).or_insert(0) += 1;
        self.note(EdgeKind::Resume, None, Some(at), true, ahead);
    }

    /// The flow was interrupted in front of `at`.
    pub fn interrupted(&mut self, at: u64) {
        self.interrupted_to(at, None, 0);
    }

    /// The flow was interrupted in front of `at`, by code at `to`; so many instructions are counted too few, or if negative, too many.
    pub fn interrupted_to(&mut self, at: u64, to: Option<u64>, ahead: i64) {
        *self.asyncs.entry((at, to)).or_insert(0) += 1;
        self.note(EdgeKind::Async, Some(at), to, true, ahead);
    }
}

/// Sums over threads and blocks.
#[derive(Debug, Default)]
pub struct Sums {
    /// What `truth.edges` says.
    pub rows: Rows,
    unknowable: BTreeMap<Transfer, u64>,
}

impl Sums {
    /// Adds a thread; `blocks` by id.
    pub fn add(&mut self, truth: &Truth, blocks: &[&Block]) {
        let rows = &mut self.rows;
        for (block, [fell, taken]) in blocks.iter().zip(&truth.counts) {
            if fell + taken == 0 {
                continue;
            }
            let kind = block.end.kind().name();
            match block.end {
                End::Jcc => rows.add(kind, Some(block.last), Some(block.target), *taken, *fell),
                End::Jmp | End::Call => rows.add(kind, Some(block.last), Some(block.target), *taken, 0),
                End::Syscall => rows.add(kind, Some(block.last), None, *taken, 0),
                _ => {}
            }
        }
        for ((block, target), count) in &truth.indirect {
            let Some(block) = blocks.get(*block as usize) else { continue };
            rows.add(block.end.kind().name(), Some(block.last), Some(*target), *count, 0);
        }
        for (at, count) in &truth.resumes {
            rows.add("resume", None, Some(*at), *count, 0);
        }
        for ((at, to), count) in &truth.asyncs {
            rows.add("async", Some(*at), *to, *count, 0);
        }
        for (transfer, count) in &truth.unknowable {
            *self.unknowable.entry(*transfer).or_insert(0) += count;
        }
    }

    /// What `truth.unknowable` says: rows as in `truth.edges`, of what was executed but cannot be decoded.
    pub fn unknowable(&self) -> Rows {
        let mut rows = Rows::default();
        for ((kind, from, to, taken), count) in &self.unknowable {
            let (taken, not_taken) = if *taken { (*count, 0) } else { (0, *count) };
            rows.add(kind, Some(*from), *to, taken, not_taken);
        }
        rows
    }
}
