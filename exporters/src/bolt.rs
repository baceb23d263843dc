//! `profile --format bolt-preaggregated`: what `perf2bolt -p FILE --pa` and `llvm-bolt -p FILE --pa` read, of one binary.
//!
//! ```text
//! B FROM TO COUNT MISPREDICTED     a branch was taken
//! F START END COUNT                straight code from a branch's target, or from a branch not taken, to the next branch
//! f START END COUNT                the same, entered by a return
//! T FROM TO END COUNT              a branch was taken, then straight code from TO to END; instead of B and F, by [`write_traces`]
//! ```
//!
//! (LLVM's `bolt/include/bolt/Profile/DataAggregator.h`, "pre-aggregated".) Addresses are stated ones, in hexadecimal digits
//! without `0x`; what lies in another object is `X:0`: BOLT 19 reads the number as an address in the binary, whatever the
//! object is called, and there is no function at 0. After a return BOLT looks for the call in front of START and
//! counts the way from there: hence `f`.

use crate::address::push_number;
use crate::flow::{End, Flow};
use crate::ranges::Entered;
use ptflow_decoder::profile::{CodeAddr, EdgeKind, TraceRow};
use ptflow_decoder::units::ImageId;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

/// Writes a profile, sorted: branches, then ranges.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut impl Write, flow: &Flow) -> io::Result<()> {
    let mut line = Vec::new();
    for ((from, to), taken) in &flow.branches {
        line.clear();
        line.extend_from_slice(b"B ");
        push_end(&mut line, *from);
        line.push(b' ');
        push_end(&mut line, *to);
        push_count(&mut line, taken.count);
        push_count(&mut line, taken.mispredicted);
        line.push(b'\n');
        out.write_all(&line)?;
    }
    let mut ranges: BTreeMap<(u64, u64, bool), u64> = BTreeMap::new();
    for (range, count) in &flow.ranges.counts {
        let returned = range.entered == Entered::Return;
        let sum = ranges.entry((range.start, range.end, returned)).or_default();
        *sum = sum.saturating_add(*count);
    }
    write_ranges(out, ranges)
}

/// The end of a `T` behind whose branch no straight code is known.
const BRANCH_ONLY: u64 = u64::MAX;

/// Writes a profile of branch stacks as `T` records, of the binary that `is_own` tells apart, sorted. What a `T` cannot tell,
/// straight code that no branch of the program led to or that was returned to from another object, is `F` and `f` as above.
///
/// # Errors
/// Those of `out`.
pub fn write_traces(
    out: &mut impl Write,
    rows: &[TraceRow],
    is_own: impl Fn(ImageId) -> bool,
) -> io::Result<()> {
    use EdgeKind::{Async, Call, CallInd, Far, Jcc, Jmp, JmpInd, Range, Resume, Ret, Syscall};
    let own = |addr: CodeAddr| addr.image.is_some_and(&is_own).then_some(addr.addr);
    let returned_to: BTreeSet<u64> =
        rows.iter().filter(|row| row.kind == Ret).filter_map(|row| own(row.to?)).collect();
    let mut traces: BTreeMap<(End, End, u64), u64> = BTreeMap::new();
    let mut ranges: BTreeMap<(u64, u64, bool), u64> = BTreeMap::new();
    for row in rows {
        let (from, to, end) = (own(row.from), row.to.and_then(own), row.end.and_then(own));
        let is_branch = match row.kind {
            Jcc | Jmp | JmpInd | Call | CallInd => match (from, to) {
                // A longjmp.
                (None, Some(to)) => !returned_to.contains(&to),
                (None, None) => false,
                _ => row.to.is_some(),
            },
            Ret => from.is_some() && to.is_some(),
            Syscall | Far | Async | Resume | Range => false,
        };
        let sum = match (to, end) {
            _ if is_branch => traces.entry((from, to, end.unwrap_or(BRANCH_ONLY))).or_default(),
            (Some(to), Some(end)) => ranges.entry((to, end, row.kind == Ret)).or_default(),
            _ => continue,
        };
        *sum = sum.saturating_add(row.count);
    }
    let mut line = Vec::new();
    for ((from, to, end), count) in traces {
        line.clear();
        line.extend_from_slice(b"T ");
        for addr in [from, to, Some(end)] {
            push_end(&mut line, addr);
            line.push(b' ');
        }
        line.pop();
        push_count(&mut line, count);
        line.push(b'\n');
        out.write_all(&line)?;
    }
    write_ranges(out, ranges)
}

fn write_ranges(out: &mut impl Write, ranges: BTreeMap<(u64, u64, bool), u64>) -> io::Result<()> {
    let mut line = Vec::new();
    for ((start, end, returned), count) in ranges {
        line.clear();
        line.extend_from_slice(if returned { b"f " } else { b"F " });
        push_end(&mut line, Some(start));
        line.push(b' ');
        push_end(&mut line, Some(end));
        push_count(&mut line, count);
        line.push(b'\n');
        out.write_all(&line)?;
    }
    Ok(())
}

fn push_end(out: &mut Vec<u8>, end: End) {
    match end {
        Some(addr) => out.extend_from_slice(format!("{addr:x}").as_bytes()),
        None => out.extend_from_slice(b"X:0"),
    }
}

/// BOLT reads counts as signed numbers.
fn push_count(out: &mut Vec<u8>, count: u64) {
    out.push(b' ');
    push_number(out, count.min(i64::MAX as u64));
}
