//! Straight stretches of code and how often each was run, worked out from the edges of one binary.
//!
//! Of an exact trace nothing but edges is kept. That is enough: what enters an address (by a branch, or because tracing
//! came back there) runs straight on to the next branch, and what a conditional branch lets through runs on from that
//! branch. An interruption that comes back to where it struck, and a system call that comes back behind it, change nothing;
//! where fewer come back than left, the stretch is split there, and nothing reaches across.
//!
//! The code is read on the way. A stretch that comes to a branch that has no row, or to bytes that are no code, was cut
//! off by a loss in the trace: nobody knows where it ended, and it is left out rather than guessed.

use ptflow_decoder::image::CodeImage;
use ptflow_decoder::insn::{Class, InsnStream};
use ptflow_decoder::packet::ExecMode;
use ptflow_decoder::profile::{CodeAddr, EdgeKind, EdgeRow};
use ptflow_decoder::units::{ImageId, Svma};
use std::collections::BTreeMap;

/// How a range was entered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Entered {
    /// By a branch to its start, or by anything else that is no return.
    Jump,
    /// By a return to its start.
    Return,
    /// From its start, which another range ends with: by what a conditional branch let through, or what runs on from where
    /// some of the flow was broken. Tools that follow the flow want to know the way from there.
    Through,
}

/// Straight code from `start` to the instruction at `end`, which is the last one of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct StraightRange {
    /// Where it was entered, or for [`Entered::Through`] the instruction before.
    pub start: u64,
    /// The next branch, or the last instruction before the flow was broken.
    pub end: u64,
    /// How it was entered.
    pub entered: Entered,
}

/// The ranges of one binary.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ranges {
    /// How often each was run.
    pub counts: BTreeMap<StraightRange, u64>,
    /// How often flow went on to where no row says what became of it.
    pub unexplained: u64,
}

/// What enters and leaves the flow in front of an instruction, or at it.
#[derive(Clone, Copy, Default)]
struct Point {
    /// By branches other than returns.
    jumped: u64,
    /// By returns.
    returned: u64,
    /// Neither: tracing came on, or control came from a far transfer.
    resumed: u64,
    /// Left without a branch of the program: interrupted here, or by the system call just before.
    left: u64,
    /// Times the instruction here let flow through, if it is a branch.
    fell_through: u64,
    /// The instruction here is a branch with a row.
    is_branch: bool,
}

impl Point {
    /// How many more left than came back.
    fn deficit(&self) -> u64 {
        self.left.saturating_sub(self.resumed)
    }
}

/// Where straight code leads from one point.
#[derive(Clone, Copy)]
struct Next {
    /// The last instruction before it.
    last: u64,
    /// The point.
    to: u64,
}

/// Works out the ranges of the binary that `is_own` tells apart and whose code is given.
///
/// Code is read as 64-bit code: the tools that take ranges know no other.
pub fn derive(rows: &[EdgeRow], is_own: impl Fn(ImageId) -> bool, code: &CodeImage<'_>) -> Ranges {
    let own =
        |addr: Option<CodeAddr>| addr.filter(|addr| addr.image.is_some_and(&is_own)).map(|addr| addr.addr);
    let points = points(rows, own, code);
    let nexts: BTreeMap<u64, Next> = points
        .iter()
        .filter(|(_, point)| !point.is_branch || point.fell_through > 0)
        .filter_map(|(at, _)| Some((*at, next_point(&points, code, *at)?)))
        .collect();
    // From the last point to the first: where one ends, those before it that lead there end, too.
    let mut ends: BTreeMap<u64, u64> = BTreeMap::new();
    let follow = |ends: &BTreeMap<u64, u64>, at: u64| {
        let next = nexts.get(&at)?;
        let point = points.get(&next.to)?;
        if point.deficit() > 0 { Some(next.last) } else { ends.get(&next.to).copied() }
    };
    for (at, point) in points.iter().rev() {
        let end = if point.is_branch { Some(*at) } else { follow(&ends, *at) };
        if let Some(end) = end {
            ends.insert(*at, end);
        }
    }
    let mut ranges = Ranges::default();
    // What runs on into a point, with the instruction that it comes from; summed from the first point to the last.
    let mut carried: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for (at, point) in &points {
        let (from, carry) = carried.remove(at).unwrap_or((*at, 0));
        // Who left is taken from those that ran on to here first, then from those that entered here.
        let mut deficit = point.deficit();
        let mut rest = |count: u64| {
            let rest = count.saturating_sub(deficit);
            deficit -= count - rest;
            rest
        };
        let (carry, jumped, returned) = (rest(carry), rest(point.jumped), rest(point.returned));
        let entered = jumped.saturating_add(point.resumed.saturating_sub(point.left));
        let end = ends.get(at).copied();
        ranges.add(*at, end, Entered::Jump, entered);
        ranges.add(*at, end, Entered::Return, returned);
        if point.deficit() > 0 {
            // The stretch was split in front of here. It goes on from the instruction before, so that the way from that
            // one to this one is counted.
            ranges.add(from, end, Entered::Through, carry);
        }
        if point.is_branch {
            ranges.add(*at, follow(&ends, *at), Entered::Through, point.fell_through);
        }
        let on = match point.is_branch {
            true => point.fell_through,
            false => carry.saturating_add(entered).saturating_add(returned),
        };
        if let Some(next) = nexts.get(at) {
            let sum = carried.entry(next.to).or_insert((next.last, 0));
            sum.1 = sum.1.saturating_add(on);
        }
    }
    ranges
}

/// The ranges that the rows themselves tell, where windows on the flow were counted.
///
/// They do not tell what entered a range: that is how most of what came to its start did, and what nothing came to was run
/// through.
pub fn counted(rows: &[EdgeRow], is_own: impl Fn(ImageId) -> bool) -> Ranges {
    let own =
        |addr: Option<CodeAddr>| addr.filter(|addr| addr.image.is_some_and(&is_own)).map(|addr| addr.addr);
    let mut entries: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.kind != EdgeKind::Range && row.taken > 0) {
        let Some(to) = own(row.to) else { continue };
        let (returned, jumped) = entries.entry(to).or_default();
        let sum = if row.kind == EdgeKind::Ret { returned } else { jumped };
        *sum = sum.saturating_add(row.taken);
    }
    let mut ranges = Ranges::default();
    for row in rows.iter().filter(|row| row.kind == EdgeKind::Range) {
        if let (Some(start), Some(end)) = (own(row.from), own(row.to)) {
            let entered = match entries.get(&start) {
                Some((returned, jumped)) if returned > jumped => Entered::Return,
                Some(_) => Entered::Jump,
                None => Entered::Through,
            };
            ranges.add(start, Some(end), entered, row.taken);
        }
    }
    ranges
}

impl Ranges {
    /// What ran: first and last instruction, and how often. Each instruction is in it once for each time.
    pub fn executed(&self, code: &CodeImage<'_>) -> BTreeMap<(u64, u64), u64> {
        let mut executed = BTreeMap::new();
        for (range, count) in &self.counts {
            let start = match range.entered {
                Entered::Jump | Entered::Return => Some(range.start),
                Entered::Through => code
                    .code_at(Svma(range.start))
                    .and_then(|bytes| InsnStream::new(bytes, range.start, MODE).next())
                    .map(|insn| insn.next()),
            };
            if let Some(start) = start.filter(|start| *start <= range.end) {
                let sum: &mut u64 = executed.entry((start, range.end)).or_default();
                *sum = sum.saturating_add(*count);
            }
        }
        executed
    }

    /// As rows of that image.
    pub fn rows(&self, image: ImageId) -> impl Iterator<Item = EdgeRow> {
        let addr = move |addr| Some(CodeAddr { image: Some(image), addr });
        self.counts.iter().map(move |(range, count)| EdgeRow {
            kind: EdgeKind::Range,
            from: addr(range.start),
            to: addr(range.end),
            taken: *count,
            not_taken: 0,
            mispredicted: 0,
        })
    }

    /// Adds those of another source.
    pub fn sum(&mut self, other: Self) {
        for (range, count) in other.counts {
            self.add(range.start, Some(range.end), range.entered, count);
        }
        self.unexplained = self.unexplained.saturating_add(other.unexplained);
    }

    fn add(&mut self, start: u64, end: Option<u64>, entered: Entered, count: u64) {
        match end {
            _ if count == 0 => {}
            None => self.unexplained = self.unexplained.saturating_add(count),
            Some(end) => {
                let sum = self.counts.entry(StraightRange { start, end, entered }).or_insert(0);
                *sum = sum.saturating_add(count);
            }
        }
    }
}

/// Every place where flow enters, leaves or branches.
fn points(
    rows: &[EdgeRow],
    own: impl Fn(Option<CodeAddr>) -> Option<u64>,
    code: &CodeImage<'_>,
) -> BTreeMap<u64, Point> {
    let mut points: BTreeMap<u64, Point> = BTreeMap::new();
    let add = |sum: &mut u64, count: u64| *sum = sum.saturating_add(count);
    for row in rows {
        match row.kind {
            EdgeKind::Jcc
            | EdgeKind::Jmp
            | EdgeKind::Call
            | EdgeKind::JmpInd
            | EdgeKind::CallInd
            | EdgeKind::Ret => {
                if let Some(from) = own(row.from) {
                    let point = points.entry(from).or_default();
                    point.is_branch = true;
                    add(&mut point.fell_through, row.not_taken);
                }
                if let Some(to) = own(row.to).filter(|_| row.taken > 0) {
                    let point = points.entry(to).or_default();
                    let is_return = row.kind == EdgeKind::Ret;
                    add(if is_return { &mut point.returned } else { &mut point.jumped }, row.taken);
                }
            }
            EdgeKind::Syscall | EdgeKind::Far => {
                // Most come back behind the instruction.
                let insn = own(row.from)
                    .and_then(|from| InsnStream::new(code.code_at(Svma(from))?, from, MODE).next());
                if let Some(insn) = insn {
                    add(&mut points.entry(insn.next()).or_default().left, row.taken);
                }
                if let Some(to) = own(row.to) {
                    add(&mut points.entry(to).or_default().resumed, row.taken);
                }
            }
            EdgeKind::Async => {
                if let Some(from) = own(row.from) {
                    add(&mut points.entry(from).or_default().left, row.taken);
                }
                if let Some(to) = own(row.to) {
                    add(&mut points.entry(to).or_default().resumed, row.taken);
                }
            }
            EdgeKind::Resume => {
                if let Some(to) = own(row.to) {
                    add(&mut points.entry(to).or_default().resumed, row.taken);
                }
            }
            // Counted by others, and only where no edges conserve the flow.
            EdgeKind::Range => {}
        }
    }
    points
}

const MODE: ExecMode = ExecMode::Bits64;

/// The next point that straight code comes to; `None` where it comes to a branch first, or to no code.
fn next_point(points: &BTreeMap<u64, Point>, code: &CodeImage<'_>, at: u64) -> Option<Next> {
    // A branch may be passed only where it stands at the start and has a row: that one fell through.
    let is_branch = points.get(&at).is_some_and(|point| point.is_branch);
    let mut insns = InsnStream::new(code.code_at(Svma(at))?, at, MODE);
    loop {
        let insn = insns.next()?;
        let to = insn.next();
        match insn.class {
            Class::Plain | Class::MovCr3 | Class::Ptwrite => {}
            Class::Jcc { .. } if is_branch && insn.addr == at => {}
            // These come back, if they do, to a point just behind.
            Class::Syscall | Class::Far | Class::Int => {
                return points.contains_key(&to).then_some(Next { last: insn.addr, to });
            }
            _ => return None,
        }
        if points.contains_key(&to) {
            return Some(Next { last: insn.addr, to });
        }
    }
}
