//! The flow through one binary, as tools for compilers take it: branches that were taken, straight code between them.
//!
//! Nothing asynchronous is in it. One edge that the program does not have makes BOLT take a function's whole profile for that
//! of another build. Returns between objects are left out, too: the places returned to would count as entries.

use crate::ranges::{Ranges, counted, derive};
use ptflow_decoder::image::CodeImage;
use ptflow_decoder::profile::{CodeAddr, EdgeKind, EdgeRow};
use ptflow_decoder::units::ImageId;
use std::collections::{BTreeMap, BTreeSet};

/// An end of a branch: an address in the binary, or `None` in any other object.
pub type End = Option<u64>;

/// How often a branch was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Taken {
    /// Times.
    pub count: u64,
    /// Times of these that it was mispredicted, where that is known.
    pub mispredicted: u64,
}

impl Taken {
    fn add(&mut self, other: Self) {
        self.count = self.count.saturating_add(other.count);
        self.mispredicted = self.mispredicted.saturating_add(other.mispredicted);
    }
}

/// The profile of one binary.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Flow {
    /// Taken branches, from and to.
    pub branches: BTreeMap<(End, End), Taken>,
    /// Straight code.
    pub ranges: Ranges,
}

impl Flow {
    /// Of exact rows, of the binary that `is_own` tells apart and whose code is given.
    pub fn new(rows: &[EdgeRow], is_own: impl Fn(ImageId) -> bool, code: &CodeImage<'_>) -> Self {
        Self { branches: branches(rows, &is_own), ranges: derive(rows, is_own, code) }
    }

    /// Of rows that tell ranges of their own.
    pub fn sampled(rows: &[EdgeRow], is_own: impl Fn(ImageId) -> bool) -> Self {
        Self { branches: branches(rows, &is_own), ranges: counted(rows, is_own) }
    }

    /// Adds another profile of the same binary.
    pub fn sum(&mut self, other: Self) {
        for (ends, taken) in other.branches {
            self.branches.entry(ends).or_default().add(taken);
        }
        self.ranges.sum(other.ranges);
    }

    /// True where the binary did not run.
    pub fn is_empty(&self) -> bool {
        self.branches.is_empty() && self.ranges.counts.is_empty()
    }

    /// How often flow was cut off by a loss, so that no range tells of it.
    pub fn unexplained(&self) -> u64 {
        self.ranges.unexplained
    }
}

/// The branches that a compiler's flow graph has.
fn branches(rows: &[EdgeRow], is_own: impl Fn(ImageId) -> bool) -> BTreeMap<(End, End), Taken> {
    let end = |addr: CodeAddr| addr.image.is_some_and(&is_own).then_some(addr.addr);
    let returned_to: BTreeSet<End> =
        rows.iter().filter(|row| row.kind == EdgeKind::Ret).filter_map(|row| row.to.map(end)).collect();
    let mut branches: BTreeMap<(End, End), Taken> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.taken > 0) {
        let (Some(from), Some(to)) = (row.from.map(end), row.to.map(end)) else { continue };
        let is_edge = match row.kind {
            EdgeKind::Jcc | EdgeKind::Jmp | EdgeKind::JmpInd | EdgeKind::Call | EdgeKind::CallInd => {
                // What jumps in from outside to where calls return to is a longjmp, and calls nothing.
                from.is_some() || to.is_some() && !returned_to.contains(&to)
            }
            EdgeKind::Ret => from.is_some() && to.is_some(),
            EdgeKind::Syscall | EdgeKind::Far | EdgeKind::Async | EdgeKind::Resume | EdgeKind::Range => false,
        };
        if is_edge {
            let taken = Taken { count: row.taken, mispredicted: row.mispredicted };
            branches.entry((from, to)).or_default().add(taken);
        }
    }
    branches
}
