//! Every executed transfer in order, for printing.

use crate::graph::Exit;
use crate::ledger::LossReason;
use crate::owners::ThreadId;
use crate::profile::{CodeAddr, EdgeKind};
use crate::sink::{Branch, Event, Leave, Mark, Run, Sink};
use crate::units::Svma;

/// One line of the list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Line {
    /// A transfer: branches, calls, returns, asynchronous events, resumptions.
    Transfer {
        /// Kind.
        kind: EdgeKind,
        /// From; `None` for [`EdgeKind::Resume`].
        from: Option<CodeAddr>,
        /// To, or where a conditional branch would go; `None` where the trace does not say.
        to: Option<CodeAddr>,
        /// False for a conditional branch that fell through.
        taken: bool,
    },
    /// What comes now is of this thread.
    Owner(Option<ThreadId>),
    /// Flow was lost.
    Gap {
        /// Why.
        reason: LossReason,
        /// Bytes of trace that could not be used.
        bytes: u64,
    },
}

/// Collects the lines of one unit with the mark of each.
#[derive(Clone, Debug, Default)]
pub struct BranchList {
    /// Ordinals never fall.
    pub lines: Vec<(Mark, Line)>,
    /// Conditional branches that fell through are wanted too.
    pub not_taken: bool,
}

impl BranchList {
    fn transfer(&mut self, mark: Mark, kind: EdgeKind, from: Option<CodeAddr>, to: Option<CodeAddr>) {
        self.lines.push((mark, Line::Transfer { kind, from, to, taken: true }));
    }
}

impl Sink for BranchList {
    const CLOCK: bool = true;
    const RUNS: bool = true;

    fn run(&mut self, run: Run<'_>, mark: Mark) {
        let info = run.graph.info(run.node);
        let node = run.graph.node(run.node);
        let addr = |svma: Svma| Some(CodeAddr { image: Some(run.graph.image(info)), addr: svma.0 });
        let start = mark.ordinal - u64::from(node.insns);
        for jump in run.graph.jumps(run.node) {
            let mark = Mark { ordinal: start + u64::from(jump.insns), ..mark };
            self.transfer(mark, jump.kind, addr(jump.from), addr(jump.to));
        }
        let (kind, to) = match (node.exit, run.leave) {
            (_, Leave::NotTaken) => {
                if self.not_taken {
                    let (from, to) = (addr(info.last), Some(run.graph.start_addr(node.succ[1])));
                    self.lines.push((mark, Line::Transfer { kind: EdgeKind::Jcc, from, to, taken: false }));
                }
                return;
            }
            (Exit::Link, _) => return,
            (Exit::Jcc, _) => (EdgeKind::Jcc, node.succ[1]),
            (Exit::Call, _) => (EdgeKind::Call, node.succ[0]),
            (Exit::CallInd, Leave::To(to)) => (EdgeKind::CallInd, to),
            (Exit::JmpInd, Leave::To(to)) => (EdgeKind::JmpInd, to),
            (Exit::Cross, Leave::To(to)) => (run.graph.crossing_kind(run.node).unwrap_or(EdgeKind::Jmp), to),
            (_, Leave::To(to)) => (EdgeKind::Ret, to),
            _ => return,
        };
        self.transfer(mark, kind, addr(info.last), Some(run.graph.start_addr(to)));
    }

    fn branch(&mut self, branch: &Branch, mark: Mark) {
        if branch.taken || self.not_taken {
            let Branch { kind, taken, .. } = *branch;
            let (from, to) = (Some(branch.from.addr), branch.to.map(|to| to.addr));
            self.lines.push((mark, Line::Transfer { kind, from, to, taken }));
        }
    }

    fn event(&mut self, event: Event, mark: Mark) {
        match event {
            Event::Sync { .. } | Event::Told { .. } => {}
            Event::Owner { thread } => self.lines.push((mark, Line::Owner(thread))),
            Event::Enabled { at, resumes } => {
                if !resumes {
                    self.transfer(mark, EdgeKind::Resume, None, Some(at.addr));
                }
            }
            Event::Disabled { from, to, why } => {
                if why == crate::sink::Off::Async {
                    self.transfer(mark, EdgeKind::Async, Some(from.addr), to.map(|to| to.addr));
                }
            }
            Event::Async { from, to } => {
                self.transfer(mark, EdgeKind::Async, Some(from.addr), Some(to.addr));
            }
            Event::Gap { reason, bytes, .. } => self.lines.push((mark, Line::Gap { reason, bytes })),
        }
    }
}
