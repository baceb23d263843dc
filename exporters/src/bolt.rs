//! `profile --format bolt-preaggregated`: what `perf2bolt -p FILE --pa` and `llvm-bolt -p FILE --pa` read, of one binary.
//!
//! ```text
//! B FROM TO COUNT MISPREDICTED     a branch was taken
//! F START END COUNT                straight code from a branch's target to the next branch
//! f START END COUNT                the same, entered by a return
//! ```
//!
//! (LLVM's `bolt/include/bolt/Profile/DataAggregator.h`, "pre-aggregated".) Addresses are stated ones, in hexadecimal digits
//! without `0x`; what lies in another object is `X:0`: BOLT 19 reads the number as an address in the binary, whatever the
//! object is called, and there is no function at 0. After a return BOLT looks for the call in front of START and
//! counts the way from there: hence `f`.
//!
//! Nothing asynchronous is written. One edge that the program does not have makes BOLT take the function's whole profile for
//! that of another build. Returns between objects are left out, too: BOLT would count the places returned to as entries.

use crate::address::push_number;
use crate::ranges::{Ranges, derive};
use ptflow_decoder::image::CodeImage;
use ptflow_decoder::profile::{CodeAddr, EdgeKind, EdgeRow};
use ptflow_decoder::units::ImageId;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

/// An end of a branch: an address in the binary, or `None` in any other object.
type End = Option<u64>;

/// The profile of one binary.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Preaggregated {
    /// Taken branches, from and to: how often, and how often mispredicted.
    branches: BTreeMap<(End, End), (u64, u64)>,
    ranges: Ranges,
}

impl Preaggregated {
    /// Of the binary that `is_own` tells apart, whose code is given.
    pub fn new(rows: &[EdgeRow], is_own: impl Fn(ImageId) -> bool, code: &CodeImage<'_>) -> Self {
        let end = |addr: CodeAddr| addr.image.is_some_and(&is_own).then_some(addr.addr);
        let returned_to: BTreeSet<End> =
            rows.iter().filter(|row| row.kind == EdgeKind::Ret).filter_map(|row| row.to.map(end)).collect();
        let mut branches: BTreeMap<(End, End), (u64, u64)> = BTreeMap::new();
        for row in rows.iter().filter(|row| row.taken > 0) {
            let (Some(from), Some(to)) = (row.from.map(end), row.to.map(end)) else { continue };
            let within = from.is_some() && to.is_some();
            let is_edge = match row.kind {
                EdgeKind::Jcc | EdgeKind::Jmp | EdgeKind::JmpInd | EdgeKind::Call | EdgeKind::CallInd => {
                    // What jumps in from outside to where calls return to is a longjmp, and calls nothing.
                    from.is_some() || to.is_some() && !returned_to.contains(&to)
                }
                EdgeKind::Ret => within,
                EdgeKind::Syscall | EdgeKind::Far | EdgeKind::Async | EdgeKind::Resume | EdgeKind::Range => {
                    false
                }
            };
            if is_edge {
                let sum = branches.entry((from, to)).or_default();
                *sum = (sum.0.saturating_add(row.taken), sum.1.saturating_add(row.mispredicted));
            }
        }
        Self { branches, ranges: derive(rows, is_own, code) }
    }

    /// True where the binary did not run.
    pub fn is_empty(&self) -> bool {
        self.branches.is_empty() && self.ranges.counts.is_empty()
    }

    /// How often flow was cut off by a loss, so that no range tells of it.
    pub fn unexplained(&self) -> u64 {
        self.ranges.unexplained
    }

    /// Writes it, sorted: branches, then ranges.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut line = Vec::new();
        for ((from, to), (count, mispredicted)) in &self.branches {
            line.clear();
            line.extend_from_slice(b"B ");
            push_end(&mut line, *from);
            line.push(b' ');
            push_end(&mut line, *to);
            push_count(&mut line, *count);
            push_count(&mut line, *mispredicted);
            line.push(b'\n');
            out.write_all(&line)?;
        }
        for (range, count) in &self.ranges.counts {
            line.clear();
            line.extend_from_slice(if range.returned { b"f " } else { b"F " });
            push_end(&mut line, Some(range.start));
            line.push(b' ');
            push_end(&mut line, Some(range.end));
            push_count(&mut line, *count);
            line.push(b'\n');
            out.write_all(&line)?;
        }
        Ok(())
    }
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
