//! What a walk reports, and to whom.
//!
//! Every job is a [`Sink`]. The walker calls it in trace order within one work unit; units of one stream are put in
//! order by the caller. Executions are counted in the block graph whatever the sink does, so a job that wants counts
//! only needs [`CountOnly`].

use crate::graph::{Exit, Graph, NodeId};
use crate::image::FunctionAt;
use crate::ledger::LossReason;
use crate::owners::ThreadId;
use crate::packet::{ExecMode, Packet};
use crate::profile::{CodeAddr, EdgeKind};

/// A place in the flow of one work unit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Mark {
    /// Instructions executed since the unit's start, plus [`Mark::switches`]: rises with every branch, and at every
    /// interruption, so that it orders all events and can be joined with the clock.
    pub ordinal: u64,
    /// Steps of the ordinal that were no instructions: before tracing goes on and behind where it went off, before and
    /// behind a gap, at an interrupt.
    pub switches: u64,
}

impl Mark {
    /// The flow is interrupted: what comes now has another ordinal than what was before.
    pub(crate) fn interrupt(&mut self) {
        self.ordinal += 1;
        self.switches += 1;
    }

    /// Instructions executed since the unit's start.
    pub fn instructions(self) -> u64 {
        // Of a mark put together from two, an interruption may lie in between.
        self.ordinal.saturating_sub(self.switches)
    }
}

/// How a node of the graph was left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leave {
    /// Conditional branch, not taken.
    NotTaken,
    /// Conditional branch, taken.
    Taken,
    /// Direct call or link.
    Direct,
    /// Indirect transfer or return, to this node.
    To(NodeId),
}

/// An address of traced code, and the function that it lies in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Site {
    /// The address.
    pub addr: CodeAddr,
    /// The function.
    pub function: FunctionAt,
}

impl Site {
    /// No code.
    pub(crate) const NOWHERE: Self = Self {
        addr: CodeAddr { image: None, addr: 0 },
        function: FunctionAt { function: None, entry: false, stub: false, resume: false },
    };
}

/// One executed run: a node of the block graph, from its first instruction to its last.
#[derive(Clone, Copy)]
pub struct Run<'g> {
    /// The graph.
    pub graph: &'g Graph,
    /// The node.
    pub node: NodeId,
    /// What ends it.
    pub exit: Exit,
    /// How it was left.
    pub leave: Leave,
}

/// One transfer that was walked instruction by instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Branch {
    /// Kind of the transfer.
    pub kind: EdgeKind,
    /// The mode that the branch is read in.
    pub mode: ExecMode,
    /// The branch instruction.
    pub from: Site,
    /// The instruction behind it: where a call returns to.
    pub next: CodeAddr,
    /// Where it goes (for a conditional branch: when taken), as the profile has it: a SYSCALL goes nowhere.
    pub to: Option<Site>,
    /// Where control goes on, where the trace says so.
    pub then: Option<CodeAddr>,
    /// False for a conditional branch that fell through.
    pub taken: bool,
}

/// Why tracing went off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Off {
    /// At a SYSCALL.
    Syscall,
    /// By an interrupt, a fault, a signal, or by the tracer itself.
    Async,
    /// At another instruction: a filter's edge, a far transfer, a stop region.
    Branch,
}

/// Things that are no instruction's doing, or that interrupt the flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// In a CPU's stream: what comes now is of this thread. Comes first in every unit that has an owner, and at every
    /// change.
    Owner {
        /// The thread; `None` where it is not known.
        thread: Option<ThreadId>,
    },
    /// Flow is known to be here: the start of a unit (a PSB), or after a gap.
    Sync {
        /// Where.
        at: Site,
    },
    /// Tracing went on.
    Enabled {
        /// First traced instruction.
        at: Site,
        /// This ends an overflow, and is no new start of tracing.
        resumes: bool,
    },
    /// Tracing went off.
    Disabled {
        /// The last instruction, or for [`Off::Async`] the one that did not execute any more.
        from: Site,
        /// Where control went, if the trace says so.
        to: Option<Site>,
        /// Why.
        why: Off,
    },
    /// An interrupt or exception whose handler is traced.
    Async {
        /// The instruction that did not execute any more.
        from: Site,
        /// The handler.
        to: Site,
    },
    /// A packet that tells of something besides flow and time: PTWRITE, power, transactions, event trace, paging.
    Told {
        /// The packet.
        packet: Packet,
        /// The instruction that it belongs to, where it has one.
        at: Option<Site>,
    },
    /// Flow was lost from `begin` up to this mark.
    Gap {
        /// Why.
        reason: LossReason,
        /// Where the flow was lost.
        begin: Mark,
        /// Bytes of trace that could not be used.
        bytes: u64,
    },
}

/// What a sink keeps of some runs; the meaning is its own, but for the ordinal, which it adds to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kept {
    /// Where in the flow, and of what kind.
    pub at: u64,
    /// Whatever else.
    pub words: [u32; 2],
}

/// Takes what a walk reports.
pub trait Sink {
    /// Whether the job needs times: timing packets are read only then.
    const CLOCK: bool;
    /// Whether the job needs each run; if not, [`Sink::run`] and [`Sink::branch`] are never called.
    const RUNS: bool;
    /// Whether the job needs the graph's counters.
    const COUNTS: bool = true;
    /// Whether the job needs runs that a conditional branch ends within its function.
    const BRANCHES: bool = true;
    /// Whether the job can do with what it [keeps](Sink::learn) of the runs of a window, instead of each run.
    const WINDOWS: bool = false;

    /// The walk begins.
    fn start(&mut self, _graph: &mut Graph) {}

    /// A run was executed; `mark` is behind its last instruction.
    fn run(&mut self, run: Run<'_>, mark: Mark);

    /// A transfer was executed; `mark` is behind it.
    fn branch(&mut self, branch: &Branch, mark: Mark);

    /// Something else happened.
    fn event(&mut self, event: Event, mark: Mark);

    /// What [`Sink::run`] would keep of some runs, with marks from 0 on.
    fn learn<'g>(&self, _runs: impl Iterator<Item = (Run<'g>, Mark)>) -> Vec<Kept> {
        Vec::new()
    }

    /// Such runs were executed, from this mark on.
    fn window(&mut self, _kept: &[Kept], _before: Mark) {}

    /// Adds the ordinals of which the job will want times, from one on, as far as it knows now, and in order. False where
    /// it may want that of any.
    fn marks(&self, _from: u64, _marks: &mut Vec<u64>) -> bool {
        false
    }

    /// The walk is done.
    fn finish(&mut self, _graph: &mut Graph) {}

    /// Nobody needs what it took any more: makes it as good as new for another unit, with the memory that it has. False
    /// where it cannot.
    fn forget_unit(&mut self) -> bool {
        false
    }
}

/// The sink of jobs that need nothing but the graph's counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct CountOnly;

impl Sink for CountOnly {
    const CLOCK: bool = false;
    const RUNS: bool = false;

    fn run(&mut self, _: Run<'_>, _: Mark) {}
    fn branch(&mut self, _: &Branch, _: Mark) {}
    fn event(&mut self, _: Event, _: Mark) {}
}
