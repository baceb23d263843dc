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
    /// Where control came back to from other objects, and how often: by returns, or by jumps to where calls return to
    /// (`longjmp`). No function is entered by them.
    pub came_back: BTreeMap<u64, u64>,
    /// Straight code.
    pub ranges: Ranges,
}

impl Flow {
    /// Of exact rows, of the binary that `is_own` tells apart and whose code is given.
    pub fn new(rows: &[EdgeRow], is_own: impl Fn(ImageId) -> bool, code: &CodeImage<'_>) -> Self {
        let (branches, came_back) = branches(rows, &is_own);
        Self { branches, came_back, ranges: derive(rows, is_own, code) }
    }

    /// Of rows that tell ranges of their own.
    pub fn sampled(rows: &[EdgeRow], is_own: impl Fn(ImageId) -> bool) -> Self {
        let (branches, came_back) = branches(rows, &is_own);
        Self { branches, came_back, ranges: counted(rows, is_own) }
    }

    /// Adds another profile of the same binary.
    pub fn sum(&mut self, other: Self) {
        for (ends, taken) in other.branches {
            self.branches.entry(ends).or_default().add(taken);
        }
        for (to, count) in other.came_back {
            add(self.came_back.entry(to).or_default(), count);
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

fn add(sum: &mut u64, count: u64) {
    *sum = sum.saturating_add(count);
}

/// The branches that a compiler's flow graph has, and where control came back from other objects.
fn branches(
    rows: &[EdgeRow],
    is_own: impl Fn(ImageId) -> bool,
) -> (BTreeMap<(End, End), Taken>, BTreeMap<u64, u64>) {
    let end = |addr: CodeAddr| addr.image.is_some_and(&is_own).then_some(addr.addr);
    let returned_to: BTreeSet<End> =
        rows.iter().filter(|row| row.kind == EdgeKind::Ret).filter_map(|row| row.to.map(end)).collect();
    let mut branches: BTreeMap<(End, End), Taken> = BTreeMap::new();
    let mut came_back = BTreeMap::new();
    for row in rows.iter().filter(|row| row.taken > 0) {
        let (Some(from), Some(to)) = (row.from.map(end), row.to.map(end)) else { continue };
        let comes_back = match row.kind {
            EdgeKind::Jcc | EdgeKind::Jmp | EdgeKind::JmpInd | EdgeKind::Call | EdgeKind::CallInd => {
                // What jumps in from outside to where calls return to is a longjmp, and calls nothing.
                from.is_none() && returned_to.contains(&to)
            }
            EdgeKind::Ret if from.is_some() && to.is_none() => continue,
            EdgeKind::Ret => from.is_none(),
            EdgeKind::Syscall | EdgeKind::Far | EdgeKind::Async | EdgeKind::Resume | EdgeKind::Range => {
                continue;
            }
        };
        match (from, to) {
            (None, None) => {}
            (None, Some(to)) if comes_back => add(came_back.entry(to).or_default(), row.taken),
            _ => {
                let taken = Taken { count: row.taken, mispredicted: row.mispredicted };
                branches.entry((from, to)).or_default().add(taken);
            }
        }
    }
    (branches, came_back)
}
