//! The edge profile: how often each branch went where.

use crate::units::{ImageId, Ip};

/// An address of traced code: in an image (then `addr` is a stated address) or outside any (then a runtime one).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct CodeAddr {
    /// The image, where there is one.
    pub image: Option<ImageId>,
    /// Stated address in the image, or the runtime address.
    pub addr: u64,
}

impl CodeAddr {
    /// An address in no image.
    pub fn bare(ip: Ip) -> Self {
        Self { image: None, addr: ip.0 }
    }
}

/// The kind of a row. Names and meaning as `profile --format edges` prints them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum EdgeKind {
    /// Conditional branch.
    Jcc,
    /// Direct jump.
    Jmp,
    /// Direct call.
    Call,
    /// Indirect jump.
    JmpInd,
    /// Indirect call.
    CallInd,
    /// Near return.
    Ret,
    /// Executed SYSCALL; no target.
    Syscall,
    /// Other far transfers: INT n, IRET, SYSRET, far jumps.
    Far,
    /// Interrupt, fault, signal, tracing switched off: no edge of the program.
    Async,
    /// Tracing (re)started here.
    Resume,
    /// Straight code (LBR only).
    Range,
}

impl EdgeKind {
    /// All kinds.
    pub const ALL: [Self; 11] = [
        Self::Jcc,
        Self::Jmp,
        Self::Call,
        Self::JmpInd,
        Self::CallInd,
        Self::Ret,
        Self::Syscall,
        Self::Far,
        Self::Async,
        Self::Resume,
        Self::Range,
    ];

    /// The kind's name in the edges format.
    pub fn name(self) -> &'static str {
        match self {
            Self::Jcc => "jcc",
            Self::Jmp => "jmp",
            Self::Call => "call",
            Self::JmpInd => "jmp_ind",
            Self::CallInd => "call_ind",
            Self::Ret => "ret",
            Self::Syscall => "syscall",
            Self::Far => "far",
            Self::Async => "async",
            Self::Resume => "resume",
            Self::Range => "range",
        }
    }
}

/// One row of the profile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EdgeRow {
    /// What kind of transfer.
    pub kind: EdgeKind,
    /// The branch instruction; `None` for [`EdgeKind::Resume`].
    pub from: Option<CodeAddr>,
    /// Where it went; `None` where there is no target.
    pub to: Option<CodeAddr>,
    /// Times it went there.
    pub taken: u64,
    /// Times it fell through (conditional branches only).
    pub not_taken: u64,
    /// Times it was mispredicted, where known; else 0.
    pub mispredicted: u64,
}

/// A taken branch with the straight code that was run behind it, as a branch stack has them (LBR only).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TraceRow {
    /// What kind of branch. [`EdgeKind::Range`]: what led to `to` is not known.
    pub kind: EdgeKind,
    /// The branch.
    pub from: CodeAddr,
    /// Where it went; `None` where there is no target.
    pub to: Option<CodeAddr>,
    /// The next branch that was taken; `None` where that is not known, or no straight code leads there.
    pub end: Option<CodeAddr>,
    /// Times.
    pub count: u64,
}

/// Sorts rows by kind, from, to, and sums those of the same branch and target.
pub fn merge_rows(rows: &mut Vec<EdgeRow>) {
    rows.sort_unstable_by_key(EdgeRow::key);
    rows.dedup_by(|row, kept| {
        let same = row.key() == kept.key();
        if same {
            kept.taken = kept.taken.saturating_add(row.taken);
            kept.not_taken = kept.not_taken.saturating_add(row.not_taken);
            kept.mispredicted = kept.mispredicted.saturating_add(row.mispredicted);
        }
        same
    });
}

impl EdgeRow {
    /// What makes two rows the same branch with the same target.
    pub fn key(&self) -> (EdgeKind, Option<CodeAddr>, Option<CodeAddr>) {
        (self.kind, self.from, self.to)
    }
}
