//! Does a profile fit a binary? Each branch, each range and each sum, against the code.
//!
//! A tool that is given a record which the program cannot have made throws away more than the record: so look first.
//! What counts is exact only where all was traced; samples conserve no flow, and are checked record by record.

use crate::flow::{End, Flow};
use crate::ranges::{Entered, StraightRange};
use ptflow_decoder::image::CodeImage;
use ptflow_decoder::insn::{Class, Insn, InsnStream, decode};
use ptflow_decoder::packet::ExecMode;
use ptflow_decoder::units::Svma;
use std::collections::BTreeMap;
use std::fmt;

/// What is wrong with a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// There is no code where it begins.
    NoCode,
    /// It begins at an instruction that is no branch.
    NoBranch,
    /// The branch goes elsewhere.
    OtherTarget,
    /// There is no instruction where it leads.
    NoTarget,
    /// It returns to where no call is.
    NoCall,
    /// A branch that always leaves is on the way.
    NotStraight,
    /// It does not end at the beginning of an instruction.
    NoEnd,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoCode => "there is no code where it begins",
            Self::NoBranch => "it begins at an instruction that is no branch",
            Self::OtherTarget => "the branch goes elsewhere",
            Self::NoTarget => "there is no instruction where it leads",
            Self::NoCall => "it returns to where no call is",
            Self::NotStraight => "a branch that always leaves is on the way",
            Self::NoEnd => "it does not end at the beginning of an instruction",
        })
    }
}

/// A record of a profile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Record {
    /// A branch.
    Branch(End, End),
    /// Straight code.
    Range(StraightRange),
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |end: &End| end.map_or_else(|| "outside".to_owned(), |addr| format!("{addr:#x}"));
        match self {
            Self::Branch(from, to) => write!(f, "branch {} -> {}", end(from), end(to)),
            Self::Range(range) => write!(f, "range {:#x}-{:#x}", range.start, range.end),
        }
    }
}

/// What the check found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verdict {
    /// Branches and ranges.
    pub records: usize,
    /// Those that do not fit, in order of address.
    pub misfits: Vec<(Record, Reason)>,
    /// Branches that all that ran into and out of is known of.
    pub branches: usize,
    /// Those of them that not as much ran out of as into: address, into, out of.
    pub unequal: Vec<(u64, u64, u64)>,
}

impl Verdict {
    /// Every record fits.
    pub fn fits(&self) -> bool {
        self.misfits.is_empty()
    }
}

/// One line.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { records, misfits, branches, unequal } = self;
        match misfits.first() {
            None => write!(f, "all {records} records fit the binary")?,
            Some((record, reason)) => {
                write!(
                    f,
                    "{} of {records} records do not fit the binary, first {record}: {reason}",
                    misfits.len()
                )?;
            }
        }
        match unequal.first() {
            _ if *branches == 0 => Ok(()),
            None => write!(f, "; flow is conserved at all {branches} branches"),
            Some((at, into, out)) => {
                let apart: u64 =
                    unequal.iter().fold(0, |sum, (_, into, out)| sum.saturating_add(into.abs_diff(*out)));
                let first = format!("first {at:#x}: {into} in, {out} out");
                write!(
                    f,
                    "; flow differs at {} of {branches} branches by {apart} in all, {first}",
                    unequal.len()
                )
            }
        }
    }
}

const MODE: ExecMode = ExecMode::Bits64;

/// Checks a profile. `is_exact`: everything was traced, so that flow is conserved.
pub fn check(flow: &Flow, code: &CodeImage<'_>, is_exact: bool) -> Verdict {
    let mut verdict =
        Verdict { records: flow.branches.len() + flow.ranges.counts.len(), ..Verdict::default() };
    for (from, to) in flow.branches.keys() {
        if let Err(reason) = branch(code, *from, *to) {
            verdict.misfits.push((Record::Branch(*from, *to), reason));
        }
    }
    for range in flow.ranges.counts.keys() {
        if let Err(reason) = straight(code, range) {
            verdict.misfits.push((Record::Range(*range), reason));
        }
    }
    if is_exact {
        conserve(flow, code, &mut verdict);
    }
    verdict
}

fn insn(code: &CodeImage<'_>, addr: u64) -> Option<Insn> {
    decode(code.code_at(Svma(addr))?, addr, MODE)
}

fn branch(code: &CodeImage<'_>, from: End, to: End) -> Result<(), Reason> {
    if let Some(to) = to {
        insn(code, to).ok_or(Reason::NoTarget)?;
    }
    let Some(from) = from else { return Ok(()) };
    match (insn(code, from).ok_or(Reason::NoCode)?.class, to) {
        (Class::Jcc { target } | Class::Jmp { target } | Class::Call { target }, to) => {
            let leads = match to {
                Some(to) => to == target,
                None => insn(code, target).is_none(),
            };
            leads.then_some(()).ok_or(Reason::OtherTarget)
        }
        (Class::Ret, Some(to)) => is_behind_call(code, to).then_some(()).ok_or(Reason::NoCall),
        (Class::JmpInd | Class::CallInd | Class::Ret, _) => Ok(()),
        _ => Err(Reason::NoBranch),
    }
}

/// A call may end in front of the address: E8 has 5 bytes, FF /2 from 2 to 8 with prefixes.
fn is_behind_call(code: &CodeImage<'_>, addr: u64) -> bool {
    let before = (2..=8).filter_map(|len| insn(code, addr.checked_sub(len)?));
    before
        .into_iter()
        .any(|insn| insn.next() == addr && matches!(insn.class, Class::Call { .. } | Class::CallInd))
}

fn straight(code: &CodeImage<'_>, range: &StraightRange) -> Result<(), Reason> {
    let bytes = code.code_at(Svma(range.start)).ok_or(Reason::NoCode)?;
    for insn in InsnStream::new(bytes, range.start, MODE) {
        match insn.class {
            _ if insn.addr == range.end => return Ok(()),
            _ if insn.addr > range.end => return Err(Reason::NoEnd),
            // System calls and interrupts come back, if they do, behind the instruction.
            Class::Jcc { .. } | Class::Plain | Class::MovCr3 | Class::Ptwrite => {}
            Class::Syscall | Class::Far | Class::Int => {}
            _ => return Err(Reason::NotStraight),
        }
    }
    Err(Reason::NoEnd)
}

/// As often as a branch was come to it was taken or let flow through.
fn conserve(flow: &Flow, code: &CodeImage<'_>, verdict: &mut Verdict) {
    let mut sums: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    let add = |sum: &mut u64, count: u64| *sum = sum.saturating_add(count);
    for ((from, _), taken) in &flow.branches {
        if let Some(from) = from {
            add(&mut sums.entry(*from).or_default().1, taken.count);
        }
    }
    for (range, count) in &flow.ranges.counts {
        add(&mut sums.entry(range.end).or_default().0, *count);
        if range.entered == Entered::Through {
            add(&mut sums.entry(range.start).or_default().1, *count);
        }
    }
    for (at, (into, out)) in sums {
        // Returns to other objects are in no profile; straight code that ends elsewhere was interrupted for good.
        let is_known = insn(code, at).is_some_and(|insn| {
            matches!(
                insn.class,
                Class::Jcc { .. } | Class::Jmp { .. } | Class::Call { .. } | Class::JmpInd | Class::CallInd
            )
        });
        if is_known {
            verdict.branches += 1;
            if into != out {
                verdict.unequal.push((at, into, out));
            }
        }
    }
}
