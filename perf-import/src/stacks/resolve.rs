//! From traces by runtime address to rows by image: each is looked at once, with the code at hand.
//!
//! The code decides. A branch that the instruction cannot have made is dropped, as is a stretch that is no straight code:
//! Skylake at times records its youngest branch twice, and between the two there is no way. (The entry itself is counted as
//! often as it was recorded, as perf2bolt and llvm-profgen do.)

use super::count::{Count, TOLD_IRQ, Trace};
use super::{StackProfile, StackSums, Traces};
use ptflow_decoder::code::CodeView;
use ptflow_decoder::image::{AddressSpace, Images};
use ptflow_decoder::insn::{Class, Insn, InsnStream, decode};
use ptflow_decoder::packet::ExecMode;
use ptflow_decoder::profile::{CodeAddr, EdgeKind, EdgeRow, TraceRow};
use ptflow_decoder::units::{Ip, Svma};
use rustc_hash::FxHashMap;

/// The rows of all traces.
pub fn resolve(traces: &Traces, images: &Images<'_>) -> StackProfile {
    resolve_each(traces, images, |_| {})
}

/// The same; and each branch with the straight code behind it goes to `each`, in no order.
pub fn resolve_each(traces: &Traces, images: &Images<'_>, mut each: impl FnMut(TraceRow)) -> StackProfile {
    static NOTHING: AddressSpace = AddressSpace::empty();
    let mut edges = Edges { counts: FxHashMap::default(), sums: *traces.sums(), passed: Vec::new() };
    for (trace, count) in &traces.counts {
        let space = traces.spaces.get(trace.space as usize).unwrap_or(&NOTHING);
        Resolver { code: CodeView { images, space }, edges: &mut edges }.trace(trace, *count).map(&mut each);
    }
    let row = |((kind, from, to), [taken, not_taken, mispredicted]): (EdgeKey, [u64; 3])| EdgeRow {
        kind,
        from,
        to,
        taken,
        not_taken,
        mispredicted,
    };
    let mut rows: Vec<EdgeRow> = edges.counts.into_iter().map(row).collect();
    rows.sort_unstable_by_key(EdgeRow::key);
    StackProfile { rows, sums: edges.sums }
}

/// As [`EdgeRow::key`].
type EdgeKey = (EdgeKind, Option<CodeAddr>, Option<CodeAddr>);

struct Edges {
    /// Taken, not taken, mispredicted.
    counts: FxHashMap<EdgeKey, [u64; 3]>,
    sums: StackSums,
    /// The conditional branches of one range, with their targets.
    passed: Vec<(u64, u64)>,
}

impl Edges {
    fn add(&mut self, key: EdgeKey, counts: [u64; 3]) {
        let sums = self.counts.entry(key).or_default();
        for (sum, count) in sums.iter_mut().zip(counts) {
            *sum = sum.saturating_add(count);
        }
    }
}

const MODE: ExecMode = ExecMode::Bits64;

/// No function has so many bytes without a taken branch.
const LONGEST_RANGE: u64 = 1 << 20;

/// A branch: its kind, where the instruction is, where it went.
type Branch = (EdgeKind, Ip, Option<Ip>);

struct Resolver<'a, 'm> {
    code: CodeView<'a, 'm>,
    edges: &'a mut Edges,
}

fn is_kernel(ip: Ip) -> bool {
    ip.0 >> 63 != 0
}

impl Resolver<'_, '_> {
    fn trace(&mut self, trace: &Trace, count: Count) -> Option<TraceRow> {
        let Count { taken, mispredicted } = count;
        let mut row = None;
        let [is_from_known, is_to_known] = [trace.from, trace.to].map(|ip| self.code.has_code(ip));
        if !is_from_known && !is_to_known {
            self.edges.sums.outside += taken;
        } else if let Some((kind, from, to)) = self.branch(trace) {
            let (from, to) = (self.code.code_addr(from), to.map(|to| self.code.code_addr(to)));
            self.edges.add((kind, Some(from), to), [taken, 0, mispredicted]);
            row = Some(TraceRow { kind, from, to, end: None, count: taken });
        } else {
            self.edges.sums.impossible += taken;
        }
        if let Some(next) = trace.next.filter(|_| is_to_known) {
            self.edges.sums.ranges += taken;
            let start = self.code.code_addr(trace.to);
            match self.range(trace, next, taken) {
                None => self.edges.sums.impossible_ranges += taken,
                end => {
                    let unknown =
                        TraceRow { kind: EdgeKind::Range, from: start, to: Some(start), end, count: taken };
                    row = Some(row.map_or(unknown, |row| TraceRow { end, ..row }));
                }
            }
        }
        row
    }

    /// What kind of branch it is; `None` where there cannot be one.
    fn branch(&self, trace: &Trace) -> Option<Branch> {
        let Trace { told, from, to, .. } = *trace;
        let leaves = is_kernel(to) && !is_kernel(from);
        if told == TOLD_IRQ {
            return Some((EdgeKind::Async, from, Some(to)));
        }
        let Some(insn) = self.insn(from) else {
            return Some((self.kind_from_unknown(trace), from, Some(to)));
        };
        let insn = match insn.class {
            // AMD names the instruction that a conditional branch is fused with (linux arch/x86/events/amd/lbr.c).
            Class::Plain => self.insn(Ip(insn.next())).filter(|next| matches!(next.class, Class::Jcc { .. })),
            _ => Some(insn),
        };
        match insn.map(|insn| (insn.class, Ip(insn.addr))) {
            Some((Class::Syscall, from)) => Some((EdgeKind::Syscall, from, None)),
            Some((Class::Jcc { target } | Class::Jmp { target } | Class::Call { target }, _))
                if target != to.0 =>
            {
                leaves.then_some((EdgeKind::Async, trace.from, Some(to)))
            }
            Some((class, from)) if !leaves || matches!(class, Class::Far | Class::Int) => {
                Some((class.edge_kind()?, from, Some(to)))
            }
            // Any instruction may be interrupted, or fault.
            _ => leaves.then_some((EdgeKind::Async, trace.from, Some(to))),
        }
    }

    /// The kind where the instruction cannot be read, by what the record tells and by where it went.
    fn kind_from_unknown(&self, trace: &Trace) -> EdgeKind {
        match trace.told {
            1 => EdgeKind::Jcc,
            2 => EdgeKind::Jmp,
            3 => EdgeKind::JmpInd,
            4 => EdgeKind::Call,
            5 => EdgeKind::CallInd,
            6 => EdgeKind::Ret,
            7 | 8 | 11 => EdgeKind::Far,
            _ if is_kernel(trace.from) != is_kernel(trace.to) => EdgeKind::Far,
            _ if self.is_behind_call(trace.to) => EdgeKind::Ret,
            _ => EdgeKind::CallInd,
        }
    }

    fn insn(&self, ip: Ip) -> Option<Insn> {
        self.code.insn(ip, MODE)
    }

    /// A call may end in front of the address.
    fn is_behind_call(&self, ip: Ip) -> bool {
        // FF /2 with the least and the most that can belong to it; E8 has 5.
        const LENS: std::ops::RangeInclusive<u64> = 2..=8;
        LENS.filter_map(|len| self.insn(Ip(ip.0.checked_sub(len)?)))
            .any(|insn| insn.next() == ip.0 && matches!(insn.class, Class::Call { .. } | Class::CallInd))
    }

    /// Adds straight code from where a branch went to the next one at `end`, with the conditional branches on the way, which were not
    /// taken. Gives the branch at its end; `None` where it is none.
    fn range(&mut self, trace: &Trace, end: Ip, count: u64) -> Option<CodeAddr> {
        let start = trace.to;
        let len = end.0.checked_sub(start.0).filter(|len| *len < LONGEST_RANGE)?;
        let (image, first) = self.code.locate(start)?;
        let last = Svma(first.0.checked_add(len)?);
        self.code.locate(end).filter(|found| *found == (image, last))?;
        let mut passed = std::mem::take(&mut self.edges.passed);
        passed.clear();
        let code = self.code.code(image, first)?;
        let pass = |jcc, target| passed.push((jcc, target));
        let branch = straight(code, first.0, last.0, trace.leaves, pass);
        let addr = |addr| Some(CodeAddr { image: Some(image), addr });
        if let Some(branch) = branch {
            for (jcc, target) in &passed {
                self.edges.add((EdgeKind::Jcc, addr(*jcc), addr(*target)), [0, count, 0]);
            }
            self.edges.add((EdgeKind::Range, addr(first.0), addr(branch)), [count, 0, 0]);
        }
        self.edges.passed = passed;
        branch.and_then(addr)
    }
}

/// Goes through the code from `first` to the branch at `last`, and tells the conditional branches before it. Gives the
/// address of that branch, which is the one behind `last` where that is fused with it. `leaves`: what ended the stretch went into the kernel.
fn straight(
    code: &[u8],
    first: u64,
    last: u64,
    leaves: bool,
    mut not_taken: impl FnMut(u64, u64),
) -> Option<u64> {
    let mut insns = InsnStream::new(code, first, MODE);
    loop {
        let insn = insns.next()?;
        if insn.addr == last {
            return match insn.class {
                Class::Syscall | Class::Far | Class::Int => Some(last),
                // Interrupted: it did not run.
                _ if leaves => None,
                Class::Plain => {
                    let next = decode(code.get((insn.next() - first) as usize..)?, insn.next(), MODE)?;
                    matches!(next.class, Class::Jcc { .. }).then_some(next.addr)
                }
                class => class.edge_kind().map(|_| last),
            };
        }
        match insn.class {
            _ if insn.addr > last => return None,
            Class::Jcc { target } => not_taken(insn.addr, target),
            // An event of user code alone has no entry for a system call.
            Class::Plain | Class::MovCr3 | Class::Ptwrite | Class::Syscall | Class::Int => {}
            _ => return None,
        }
    }
}
