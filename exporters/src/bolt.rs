//! `profile --format bolt-preaggregated`: what `perf2bolt -p FILE --pa` and `llvm-bolt -p FILE --pa` read, of one binary.
//!
//! ```text
//! B FROM TO COUNT MISPREDICTED     a branch was taken
//! F START END COUNT                straight code from a branch's target, or from a branch not taken, to the next branch
//! f START END COUNT                the same, entered by a return
//! ```
//!
//! (LLVM's `bolt/include/bolt/Profile/DataAggregator.h`, "pre-aggregated".) Addresses are stated ones, in hexadecimal digits
//! without `0x`; what lies in another object is `X:0`: BOLT 19 reads the number as an address in the binary, whatever the
//! object is called, and there is no function at 0. After a return BOLT looks for the call in front of START and
//! counts the way from there: hence `f`.

use crate::address::push_number;
use crate::flow::{End, Flow};
use crate::ranges::Entered;
use std::collections::BTreeMap;
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
