//! What really happened, in order, and which part of it the packets that were sent can prove.
//!
//! The decoder's own words (kinds, rows, events) are used here for comparing only.

use super::machine::Retired;
use super::program::{Op, Program};
use ptflow_decoder::ledger::LossReason;
use ptflow_decoder::profile::{CodeAddr, EdgeKind};
use ptflow_decoder::sink::Off;
use ptflow_decoder::units::{ImageId, Ip};
use std::collections::BTreeMap;

/// Something that happened.
#[derive(Clone, PartialEq, Debug)]
pub enum What {
    /// A transfer; for a conditional branch that fell through `taken` is false and `to` where it would have gone.
    Branch {
        kind: EdgeKind,
        from: CodeAddr,
        to: Option<CodeAddr>,
        taken: bool,
    },
    /// An event whose handler is traced.
    Async {
        from: CodeAddr,
        to: CodeAddr,
    },
    Enabled {
        at: CodeAddr,
        resumes: bool,
    },
    Disabled {
        from: CodeAddr,
        to: Option<CodeAddr>,
        why: Off,
    },
    Gap {
        reason: LossReason,
    },
    /// The trace says where control is: behind an overflow, or in the PSB+ at that offset, if a unit begins there.
    Sync {
        at: CodeAddr,
        psb: Option<usize>,
    },
    /// A packet besides flow and time.
    Told {
        packet: String,
        at: Option<CodeAddr>,
    },
}

/// A row of the profile: kind, from, to.
pub type Row = (EdgeKind, Option<CodeAddr>, Option<CodeAddr>);
/// Rows with how often they were taken and not taken.
pub type Rows = BTreeMap<Row, (u64, u64)>;

/// The log of one run.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    /// Instructions executed so far, whether the trace tells or not: the clock that proofs refer to.
    pub retired: u64,
    /// Instructions that no packet can tell of: lost in an overflow, or not traced.
    hidden: u64,
    /// Instructions told of, `retired` then, and what.
    pub log: Vec<(u64, u64, What)>,
    /// All that was executed while tracing was on, also what no packet tells of.
    pub executed: Rows,
}

/// The address in the profile's terms.
pub fn code_addr(program: &Program, ip: u64) -> CodeAddr {
    match program.locate(ip) {
        Some((image, addr)) => CodeAddr { image: Some(ImageId(image as u32)), addr },
        None => CodeAddr::bare(Ip(ip)),
    }
}

fn count(rows: &mut Rows, what: &What) {
    let (row, taken) = match *what {
        What::Branch { kind, from, to, taken } => ((kind, Some(from), to), taken),
        What::Async { from, to } => ((EdgeKind::Async, Some(from), Some(to)), true),
        What::Enabled { at, resumes: false } => ((EdgeKind::Resume, None, Some(at)), true),
        What::Disabled { from, to, why: Off::Async } => ((EdgeKind::Async, Some(from), to), true),
        _ => return,
    };
    let (yes, no) = rows.entry(row).or_default();
    *(if taken { yes } else { no }) += 1;
}

impl Truth {
    /// The transfer that an instruction makes; `None` for those that make none.
    fn transfer(program: &Program, retired: &Retired) -> Option<What> {
        let kind = match retired.op {
            Op::Plain | Op::Ptwrite | Op::Int | Op::Fault => return None,
            Op::Jcc { .. } => EdgeKind::Jcc,
            Op::Jmp { .. } => EdgeKind::Jmp,
            Op::Call { .. } => EdgeKind::Call,
            Op::JmpInd => EdgeKind::JmpInd,
            Op::CallInd => EdgeKind::CallInd,
            Op::Ret => EdgeKind::Ret,
            Op::Syscall => EdgeKind::Syscall,
            Op::Far => EdgeKind::Far,
        };
        let to = match retired.op {
            Op::Jcc { target } => Some(code_addr(program, target)),
            Op::Syscall => None,
            _ => Some(code_addr(program, retired.to)),
        };
        Some(What::Branch { kind, from: code_addr(program, retired.from), to, taken: retired.taken })
    }

    /// An instruction was executed while tracing was on.
    pub fn retire(&mut self, program: &Program, retired: &Retired) {
        self.retired += 1;
        if let Some(what) = Self::transfer(program, retired) {
            self.note(what);
        }
    }

    /// An instruction was executed while packets were lost.
    pub fn retire_lost(&mut self, program: &Program, retired: &Retired) {
        self.retired += 1;
        self.hidden += 1;
        if let Some(what) = Self::transfer(program, retired) {
            count(&mut self.executed, &what);
        }
    }

    /// An instruction was executed while tracing was off.
    pub fn retire_untraced(&mut self) {
        self.retired += 1;
        self.hidden += 1;
    }

    /// Something happened here.
    pub fn note(&mut self, what: What) {
        count(&mut self.executed, &what);
        self.log.push((self.retired - self.hidden, self.retired, what));
    }

    /// A packet tells of something when the instructions up to `proven` are told of; those behind come later.
    pub fn note_behind(&mut self, proven: u64, what: What) {
        let at = self.log.partition_point(|entry| entry.1 <= proven);
        let hidden = self.hidden;
        self.log.insert(at, (proven - hidden, proven, what));
    }

    /// Something happened while packets were lost.
    pub fn note_lost(&mut self, what: &What) {
        count(&mut self.executed, what);
    }

    /// No packet will tell what happened behind `proven` any more.
    pub fn forget_unproven(&mut self, proven: u64) {
        self.hidden += self.retired - proven;
        while self.log.last().is_some_and(|entry| entry.1 > proven) {
            self.log.pop();
        }
    }

    /// Instructions that the trace tells of.
    pub fn instructions(&self) -> u64 {
        self.retired - self.hidden
    }

    /// What the trace tells of, as rows.
    pub fn rows(&self) -> Rows {
        rows_of(self.log.iter().map(|entry| &entry.2))
    }
}

/// What happened as rows.
pub fn rows_of<'w>(what: impl Iterator<Item = &'w What>) -> Rows {
    let mut rows = Rows::new();
    what.for_each(|what| count(&mut rows, what));
    rows
}
