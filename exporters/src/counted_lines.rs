//! Counted ranges and branches as plain lines: what tools take that name code themselves.
//!
//! | format | sections, each behind a line with its number of lines | read by |
//! | --- | --- | --- |
//! | `llvm-unsymbolized` | `START-END:COUNT`, `FROM->TO:COUNT` | `llvm-profgen --unsymbolized-profile FILE --use-offset=0` |
//! | `gcc` | `START-END:COUNT`, `ADDRESS:COUNT`, `FROM->TO:COUNT` | AutoFDO's `create_llvm_prof`, `create_gcov`, `--profiler=text` |
//!
//! Addresses are stated ones, in hexadecimal digits without `0x`; END is the last instruction. (LLVM's
//! `llvm/tools/llvm-profgen/PerfReader.cpp`, `UnsymbolizedProfileReader`; AutoFDO's `sample_reader.cc`,
//! `TextSampleReaderWriter`.)

use crate::flow::Flow;
use ptflow_decoder::image::CodeImage;
use std::collections::BTreeMap;
use std::io::{self, Write};

/// What llvm-profgen calls any address outside the binary (`ExternalAddr` in its `PerfReader.h` is 1; a profile that says
/// so names the last page instead, where no binary is).
const OUTSIDE: u64 = 0xffff_ffff_ffff_f001;

/// Writes for llvm-profgen.
///
/// # Errors
/// Those of `out`.
pub fn write_unsymbolized(out: &mut impl Write, flow: &Flow, code: &CodeImage<'_>) -> io::Result<()> {
    write_ranges(out, flow, code)?;
    // Where from matters not: only calls are looked at, and of them what function they enter.
    let mut branches: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    let inner = flow.branches.iter().filter_map(|((from, to), taken)| Some((*from, (*to)?, taken.count)));
    for (from, to, count) in inner.chain(flow.came_back.iter().map(|(to, count)| (None, *to, *count))) {
        let sum = branches.entry((from.unwrap_or(OUTSIDE), to)).or_default();
        *sum = sum.saturating_add(count);
    }
    write_branches(out, &branches)
}

/// Writes for AutoFDO's tools.
///
/// # Errors
/// Those of `out`.
pub fn write_autofdo(out: &mut impl Write, flow: &Flow, code: &CodeImage<'_>) -> io::Result<()> {
    write_ranges(out, flow, code)?;
    // Counts of single instructions follow from the ranges.
    out.write_all(b"0\n")?;
    let within =
        flow.branches.iter().filter_map(|((from, to), taken)| Some((((*from)?, (*to)?), taken.count)));
    write_branches(out, &within.collect())
}

fn write_ranges(out: &mut impl Write, flow: &Flow, code: &CodeImage<'_>) -> io::Result<()> {
    let ranges = flow.ranges.executed(code);
    writeln!(out, "{}", ranges.len())?;
    ranges.iter().try_for_each(|((start, end), count)| writeln!(out, "{start:x}-{end:x}:{count}"))
}

fn write_branches(out: &mut impl Write, branches: &BTreeMap<(u64, u64), u64>) -> io::Result<()> {
    writeln!(out, "{}", branches.len())?;
    branches.iter().try_for_each(|((from, to), count)| writeln!(out, "{from:x}->{to:x}:{count}"))
}
