//! How a truth is written down: `truth.edges` and `totals.json`.
//!
//! The rows are those of `ptflow profile --format edges`, sorted by from, to, kind; what writes them shares no code with it.

use std::collections::BTreeMap;
use std::io::{self, Write};

/// What counts as a taken branch of the program.
pub const TAKEN_KINDS: [&str; 6] = ["jcc", "jmp", "call", "jmp_ind", "call_ind", "ret"];

/// From, to, kind.
type Row = (Option<u64>, Option<u64>, &'static str);

/// Executed transfers: taken and not taken.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rows(BTreeMap<Row, (u64, u64)>);

impl Rows {
    /// Adds executions.
    pub fn add(
        &mut self,
        kind: &'static str,
        from: Option<u64>,
        to: Option<u64>,
        taken: u64,
        not_taken: u64,
    ) {
        let counts = self.0.entry((from, to, kind)).or_insert((0, 0));
        counts.0 += taken;
        counts.1 += not_taken;
    }

    /// Executed transfers of a kind.
    pub fn of_kind(&self, kind: &str) -> (u64, u64) {
        let rows = self.0.iter().filter(|((_, _, row), _)| *row == kind);
        rows.fold((0, 0), |sum, (_, counts)| (sum.0 + counts.0, sum.1 + counts.1))
    }

    /// Branches taken.
    pub fn taken(&self) -> u64 {
        TAKEN_KINDS.iter().map(|kind| self.of_kind(kind).0).sum()
    }

    /// Writes the rows.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let hex = |addr: Option<u64>| addr.map_or_else(|| "-".to_owned(), |addr| format!("{addr:#x}"));
        writeln!(out, "#ptflow-edges 1")?;
        for ((from, to, kind), (taken, not_taken)) in &self.0 {
            writeln!(out, "{kind}\t{}\t{}\t{taken}\t{not_taken}\t0", hex(*from), hex(*to))?;
        }
        Ok(())
    }
}

/// What one thread, or the streams that are no thread's, came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Thread.
    pub tid: u32,
    /// Instructions executed.
    pub instructions: u64,
    /// Steps that no rule explains. Must be 0.
    pub unexplained: u64,
    /// Packets sent.
    pub packets: u64,
    /// RETs that took one bit.
    pub compressed_returns: u64,
    /// Trace bytes.
    pub bytes: u64,
}

/// Writes `totals.json`; `shared` is of streams that are no thread's.
pub fn write_totals(out: &mut impl Write, rows: &Rows, threads: &[Totals], shared: Totals) -> io::Result<()> {
    let total = |value: fn(&Totals) -> u64| threads.iter().chain([&shared]).map(value).sum::<u64>();
    writeln!(out, "{{")?;
    writeln!(out, "  \"instructions\": {},", total(|thread| thread.instructions))?;
    writeln!(out, "  \"unexplained\": {},", total(|thread| thread.unexplained))?;
    writeln!(out, "  \"jcc_not_taken\": {},", rows.of_kind("jcc").1)?;
    for kind in TAKEN_KINDS.iter().chain(&["syscall", "far", "async", "resume"]) {
        writeln!(out, "  \"{kind}\": {},", rows.of_kind(kind).0)?;
    }
    writeln!(out, "  \"compressed_returns\": {},", total(|thread| thread.compressed_returns))?;
    writeln!(out, "  \"packets\": {},", total(|thread| thread.packets))?;
    writeln!(out, "  \"bytes\": {},", total(|thread| thread.bytes))?;
    writeln!(out, "  \"threads\": [")?;
    for (index, thread) in threads.iter().enumerate() {
        let comma = if index + 1 == threads.len() { "" } else { "," };
        let Totals { tid, instructions, bytes, packets, unexplained, .. } = thread;
        writeln!(
            out,
            "    {{\"tid\": {tid}, \"instructions\": {instructions}, \"bytes\": {bytes}, \"packets\": {packets}, \"unexplained\": {unexplained}}}{comma}",
        )?;
    }
    writeln!(out, "  ]\n}}")?;
    out.flush()
}
