//! The ground truth: what ran, counted from pairs of consecutive blocks and from nothing else; and on request all of it in
//! order. It has a clock of its own, which the same blocks drive as the encoder's.

use crate::block::{Block, End};
use ptflow_bench_traces::log::{Entry, LogWriter};
use ptflow_decoder::profile::EdgeKind;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};

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

/// One line of `truth.edges`: from, to, kind, taken, not taken.
type Row = (Option<u64>, Option<u64>, &'static str);

/// Sums over threads and blocks.
#[derive(Debug, Default)]
pub struct Sums {
    rows: BTreeMap<Row, (u64, u64)>,
    unknowable: BTreeMap<Transfer, u64>,
    instructions: u64,
    unexplained: u64,
}

impl Sums {
    /// Adds a thread; `blocks` by id.
    pub fn add(&mut self, truth: &Truth, blocks: &[&Block]) {
        let rows = &mut self.rows;
        let mut row = |kind, from, to, taken, not_taken| {
            let counts = rows.entry((from, to, kind)).or_insert((0, 0));
            counts.0 += taken;
            counts.1 += not_taken;
        };
        for (block, [fell, taken]) in blocks.iter().zip(&truth.counts) {
            if fell + taken == 0 {
                continue;
            }
            let kind = block.end.kind().name();
            match block.end {
                End::Jcc => row(kind, Some(block.last), Some(block.target), *taken, *fell),
                End::Jmp | End::Call => row(kind, Some(block.last), Some(block.target), *taken, 0),
                End::Syscall => row(kind, Some(block.last), None, *taken, 0),
                _ => {}
            }
        }
        for ((block, target), count) in &truth.indirect {
            let Some(block) = blocks.get(*block as usize) else { continue };
            row(block.end.kind().name(), Some(block.last), Some(*target), *count, 0);
        }
        for (at, count) in &truth.resumes {
            row("resume", None, Some(*at), *count, 0);
        }
        for ((at, to), count) in &truth.asyncs {
            row("async", Some(*at), *to, *count, 0);
        }
        for (transfer, count) in &truth.unknowable {
            *self.unknowable.entry(*transfer).or_insert(0) += count;
        }
        self.instructions += truth.instructions;
        self.unexplained += truth.unexplained;
    }

    /// Writes `truth.edges`: sorted by from, to, kind.
    pub fn write_edges(&self, out: &mut impl Write) -> io::Result<()> {
        write_rows(out, &self.rows)
    }

    /// Writes `truth.unknowable`: rows as in `truth.edges`, of what was executed but cannot be decoded.
    pub fn write_unknowable(&self, out: &mut impl Write) -> io::Result<()> {
        let mut rows: BTreeMap<Row, (u64, u64)> = BTreeMap::new();
        for ((kind, from, to, taken), count) in &self.unknowable {
            let counts = rows.entry((Some(*from), *to, kind)).or_insert((0, 0));
            if *taken {
                counts.0 += count;
            } else {
                counts.1 += count;
            }
        }
        write_rows(out, &rows)
    }

    /// Executed transfers of a kind: taken and not taken.
    pub fn of_kind(&self, kind: &str) -> (u64, u64) {
        let rows = self.rows.iter().filter(|((_, _, row), _)| *row == kind);
        rows.fold((0, 0), |sum, (_, counts)| (sum.0 + counts.0, sum.1 + counts.1))
    }

    /// Instructions executed.
    pub fn instructions(&self) -> u64 {
        self.instructions
    }

    /// Pairs of blocks that no rule explains.
    pub fn unexplained(&self) -> u64 {
        self.unexplained
    }
}

fn write_rows(out: &mut impl Write, rows: &BTreeMap<Row, (u64, u64)>) -> io::Result<()> {
    let hex = |addr: Option<u64>| addr.map_or_else(|| "-".to_owned(), |addr| format!("{addr:#x}"));
    writeln!(out, "#ptflow-edges 1")?;
    for ((from, to, kind), (taken, not_taken)) in rows {
        writeln!(out, "{kind}\t{}\t{}\t{taken}\t{not_taken}\t0", hex(*from), hex(*to))?;
    }
    Ok(())
}
