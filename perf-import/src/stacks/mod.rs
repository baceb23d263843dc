//! Branch stacks (LBR and its like) to an edge profile.
//!
//! ```text
//! samples ─► traces: a branch, and the branch that was taken next ─► edges, and the straight code between the two
//!            (count.rs: in parallel, runtime addresses)               (resolve.rs: once for each, stated addresses)
//! ```
//!
//! A stack is a window on the flow, so its edges conserve none: how often straight code ran is counted here, from entry to
//! next entry, and cannot be worked out from the edges later. Between two entries all is straight only where every taken
//! branch is recorded; an event with a filter gives edges alone.

mod count;
mod resolve;
#[cfg(test)]
mod tests;

pub use count::{MOST_TRACES, Traces};
pub use resolve::{resolve, resolve_each};

use ptflow_decoder::profile::EdgeRow;

/// What became of the samples and entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StackSums {
    /// Samples with a branch stack, empty ones among them.
    pub samples: u64,
    /// Entries in them.
    pub entries: u64,
    /// Samples of events that record active calls (`--call-graph lbr`) instead of the last branches. They are not used.
    pub call_stacks: u64,
    /// Entries of a path that was predicted and never ran.
    pub wrong_path: u64,
    /// Samples whose two youngest entries are the same.
    pub repeated: u64,
    /// Entries left out because there were too many different ones.
    pub too_many: u64,
    /// Entries with neither end in code that is known.
    pub outside: u64,
    /// Entries that no branch of the code can have made.
    pub impossible: u64,
    /// Stretches between two entries.
    pub ranges: u64,
    /// Stretches that are not straight code.
    pub impossible_ranges: u64,
}

/// An edge profile of branch stacks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StackProfile {
    /// Edges, and [`Range`](ptflow_decoder::profile::EdgeKind::Range) rows of straight code.
    pub rows: Vec<EdgeRow>,
    /// What became of the entries.
    pub sums: StackSums,
}
