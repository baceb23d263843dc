//! libipt's blocks and events as transfers between instructions, and those as an edge profile.

use libipt_sys as pt;
use rustc_hash::FxHashMap;

use super::blocks::BlockDecoder;
use super::session::{Failure, Visitor};
use crate::code::CodeView;
use crate::insn::{self, Class, Insn};
use crate::packet::ExecMode;
use crate::profile::{CodeAddr, EdgeKind, EdgeRow, merge_rows};
use crate::units::{Ip, Tsc};

/// Straight code that was executed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// The first instruction.
    pub first: Ip,
    /// The last instruction.
    pub last: Ip,
    /// Instructions.
    pub instructions: u64,
    /// Their mode.
    pub mode: ExecMode,
    /// The time of the last timing packet before the block's end, as libipt keeps it (56 bits).
    pub time: Option<Tsc>,
}

/// A transfer of control, or a conditional branch that made none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// The kind; the meaning of all is that of the edge profile's rows.
    pub kind: EdgeKind,
    /// The branch instruction; `None` for [`EdgeKind::Resume`].
    pub from: Option<Ip>,
    /// Where it goes (a conditional branch: when taken); `None` where there is no target or libipt does not tell it.
    pub to: Option<Ip>,
    /// False for a conditional branch that fell through.
    pub taken: bool,
    /// The time of the last timing packet before, as libipt keeps it (56 bits).
    pub time: Option<Tsc>,
}

/// Takes the flow that libipt finds, in order.
pub trait Flow {
    /// Whether the times are wanted; if not, they are all `None`.
    const TIMES: bool;
    /// Straight code; its last instruction's transfer, if it makes one, comes next.
    fn block(&mut self, block: &Block);
    /// A transfer.
    fn transfer(&mut self, transfer: &Transfer);
    /// The flow is lost, up to the next PSB.
    fn failure(&mut self, failure: &Failure);
    /// libipt and this crate do not agree on the instruction at this address, or on where it leads.
    fn odd(&mut self, ip: Ip);
    /// A branch was executed whose outcome libipt does not tell (one before an overflow).
    fn untold(&mut self, ip: Ip);
}

/// Joins blocks to transfers: where a block's last instruction led is known from where the next block begins, or from
/// the event between them.
pub(super) struct FlowVisitor<'f, 's, F> {
    code: CodeView<'s, 's>,
    flow: &'f mut F,
    insns: FxHashMap<(u64, ExecMode), Option<Insn>>,
    /// The last instruction executed, with its time, until it is known where it led.
    last: Option<(Insn, Option<Tsc>)>,
    /// An overflow was resolved while tracing was off: the next TIP.PGE ends a gap, and is no new start.
    overflowed: bool,
}

impl<'f, 's, F: Flow> FlowVisitor<'f, 's, F> {
    pub fn new(code: CodeView<'s, 's>, flow: &'f mut F) -> Self {
        Self { code, flow, insns: FxHashMap::default(), last: None, overflowed: false }
    }

    /// The last instruction led to `to`, or left tracing for a place not told.
    fn leave(&mut self, to: Option<u64>) {
        let Some((insn, time)) = self.last.take() else { return };
        let from = Some(Ip(insn.addr));
        let leads = |target: u64| to.is_none_or(|to| to == target);
        let (kind, target, taken) = match insn.class {
            // A branch to its own next instruction: the block decoder does not tell the TNT bit.
            Class::Jcc { target } if to == Some(insn.next()) => (EdgeKind::Jcc, Some(target), false),
            Class::Jcc { target } if leads(target) => (EdgeKind::Jcc, Some(target), true),
            Class::Jmp { target } if leads(target) => (EdgeKind::Jmp, Some(target), true),
            Class::Call { target } if leads(target) => (EdgeKind::Call, Some(target), true),
            Class::JmpInd => (EdgeKind::JmpInd, to, true),
            Class::CallInd => (EdgeKind::CallInd, to, true),
            Class::Ret => (EdgeKind::Ret, to, true),
            Class::Syscall => (EdgeKind::Syscall, None, true),
            Class::Far | Class::Int => (EdgeKind::Far, to, true),
            Class::Plain | Class::MovCr3 | Class::Ptwrite | Class::Fault if leads(insn.next()) => return,
            _ => return self.flow.odd(Ip(insn.addr)),
        };
        self.flow.transfer(&Transfer { kind, from, to: target.map(Ip), taken, time });
    }

    /// Where the last instruction led is lost, but for a direct branch.
    fn leave_untold(&mut self) {
        match self.last {
            Some((
                Insn { class: Class::Jcc { .. } | Class::JmpInd | Class::CallInd | Class::Ret, addr, .. },
                _,
            )) => {
                self.last = None;
                self.flow.untold(Ip(addr));
            }
            Some((Insn { class: Class::Far | Class::Int | Class::Syscall, addr, .. }, _)) => {
                self.last = None;
                self.flow.untold(Ip(addr));
            }
            _ => self.leave(None),
        }
    }

    fn event_transfer(&mut self, kind: EdgeKind, from: Option<u64>, to: Option<u64>, time: Option<Tsc>) {
        self.flow.transfer(&Transfer { kind, from: from.map(Ip), to: to.map(Ip), taken: true, time });
    }

    /// The last instruction of a block.
    fn insn(&mut self, block: &pt::pt_block, mode: ExecMode) -> Option<Insn> {
        let code = &self.code;
        *self.insns.entry((block.end_ip, mode)).or_insert_with(|| {
            if block.truncated() != 0 {
                // It straddles two sections; libipt hands out its bytes.
                insn::decode(block.raw.get(..usize::from(block.size))?, block.end_ip, mode)
            } else {
                code.insn(Ip(block.end_ip), mode)
            }
        })
    }
}

impl<F: Flow> Visitor for FlowVisitor<'_, '_, F> {
    fn block(&mut self, decoder: &mut BlockDecoder<'_>, block: &pt::pt_block) {
        self.leave(Some(block.ip));
        if block.ninsn == 0 {
            return;
        }
        let mode = match block.mode {
            pt::pt_exec_mode_ptem_16bit => ExecMode::Bits16,
            pt::pt_exec_mode_ptem_32bit => ExecMode::Bits32,
            _ => ExecMode::Bits64,
        };
        let time = if F::TIMES { decoder.time() } else { None };
        self.flow.block(&Block {
            first: Ip(block.ip),
            last: Ip(block.end_ip),
            instructions: u64::from(block.ninsn),
            mode,
            time,
        });
        match self.insn(block, mode) {
            Some(insn) if agree(insn.class, block.iclass) => self.last = Some((insn, time)),
            _ => self.flow.odd(Ip(block.end_ip)),
        }
    }

    fn event(&mut self, decoder: &mut BlockDecoder<'_>, event: &pt::pt_event) {
        let told = |ip: u64| (event.ip_suppressed() == 0).then_some(ip);
        let time = if F::TIMES { decoder.time() } else { None };
        match event.type_ {
            // It takes effect where the flow is now, in PSB+ as elsewhere.
            pt::pt_event_type_ptev_exec_mode => {
                // SAFETY: the type says which variant it is; the same holds for all below.
                let ip = unsafe { event.variant.exec_mode.ip };
                if let Some(ip) = told(ip) {
                    self.leave(Some(ip));
                }
            }
            // In PSB+ events repeat what is known already; the walk goes on as if there were no PSB.
            _ if event.status_update() != 0 => {}
            pt::pt_event_type_ptev_enabled => {
                // SAFETY: as above.
                let ip = unsafe { event.variant.enabled.ip };
                if !std::mem::take(&mut self.overflowed) {
                    self.event_transfer(EdgeKind::Resume, None, Some(ip), time);
                }
            }
            pt::pt_event_type_ptev_disabled => {
                // SAFETY: as above.
                let ip = unsafe { event.variant.disabled.ip };
                self.leave(told(ip));
            }
            pt::pt_event_type_ptev_async_disabled => {
                // SAFETY: as above.
                let event = unsafe { event.variant.async_disabled };
                self.leave(Some(event.at));
                self.event_transfer(EdgeKind::Async, Some(event.at), told(event.ip), time);
            }
            pt::pt_event_type_ptev_async_branch => {
                // SAFETY: as above.
                let event = unsafe { event.variant.async_branch };
                self.leave(Some(event.from));
                self.event_transfer(EdgeKind::Async, Some(event.from), told(event.to), time);
            }
            pt::pt_event_type_ptev_overflow => {
                self.leave_untold();
                self.overflowed = event.ip_suppressed() != 0;
            }
            _ => {}
        }
    }

    fn arrive(&mut self, ip: u64) {
        self.leave(Some(ip));
    }

    fn failure(&mut self, failure: Failure) {
        self.last = None;
        self.overflowed = false;
        self.flow.failure(&failure);
    }
}

/// True where libipt's class of an instruction is compatible with ours.
fn agree(class: Class, iclass: pt::pt_insn_class) -> bool {
    match iclass {
        pt::pt_insn_class_ptic_call => matches!(class, Class::Call { .. } | Class::CallInd),
        pt::pt_insn_class_ptic_return => class == Class::Ret,
        pt::pt_insn_class_ptic_jump => matches!(class, Class::Jmp { .. } | Class::JmpInd),
        pt::pt_insn_class_ptic_cond_jump => matches!(class, Class::Jcc { .. }),
        pt::pt_insn_class_ptic_far_call => matches!(class, Class::Syscall | Class::Far | Class::Int),
        pt::pt_insn_class_ptic_far_return | pt::pt_insn_class_ptic_far_jump => class == Class::Far,
        pt::pt_insn_class_ptic_ptwrite => class == Class::Ptwrite,
        pt::pt_insn_class_ptic_other => matches!(class, Class::Plain | Class::MovCr3 | Class::Fault),
        // "Unknown", and "an indirect jump or a far transfer".
        _ => true,
    }
}

/// The edge profile by libipt.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Edges {
    /// Each row once, sorted as [`merge_rows`] sorts; addresses are runtime addresses.
    pub rows: Vec<EdgeRow>,
    /// Instructions executed.
    pub instructions: u64,
    /// Where libipt gave up.
    pub failures: Vec<Failure>,
    /// Instructions on which libipt and this crate do not agree: in a sound trace, a bug in one of them. (libipt does
    /// not check that a TIP.PGD's address is where its branch can lead, so in a damaged trace they may stand here.)
    pub odd: Vec<Ip>,
    /// Branches before an overflow that are in no row, for libipt does not tell where they led.
    pub untold: Vec<Ip>,
}

/// Kind, from, to.
type Edge = (EdgeKind, Option<Ip>, Option<Ip>);

/// Sums transfers up.
#[derive(Default)]
pub(super) struct Counter {
    /// Times taken, times not.
    counts: FxHashMap<Edge, (u64, u64)>,
    edges: Edges,
}

impl Counter {
    pub fn finish(self) -> Edges {
        let bare = |ip: Option<Ip>| ip.map(CodeAddr::bare);
        let rows = self.counts.into_iter().map(|((kind, from, to), (taken, not_taken))| EdgeRow {
            kind,
            from: bare(from),
            to: bare(to),
            taken,
            not_taken,
            mispredicted: 0,
        });
        let mut edges = Edges { rows: rows.collect(), ..self.edges };
        merge_rows(&mut edges.rows);
        edges
    }
}

impl Flow for Counter {
    const TIMES: bool = false;

    fn block(&mut self, block: &Block) {
        self.edges.instructions += block.instructions;
    }

    fn transfer(&mut self, transfer: &Transfer) {
        let (taken, not_taken) = self.counts.entry((transfer.kind, transfer.from, transfer.to)).or_default();
        *(if transfer.taken { taken } else { not_taken }) += 1;
    }

    fn failure(&mut self, failure: &Failure) {
        self.edges.failures.push(*failure);
    }

    fn odd(&mut self, ip: Ip) {
        self.edges.odd.push(ip);
    }

    fn untold(&mut self, ip: Ip) {
        self.edges.untold.push(ip);
    }
}
