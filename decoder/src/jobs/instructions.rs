//! Every executed instruction in order, as stretches of straight code, for printing.

use crate::graph::Exit;
use crate::ledger::LossReason;
use crate::owners::ThreadId;
use crate::packet::ExecMode;
use crate::profile::CodeAddr;
use crate::sink::{Branch, Event, Leave, Mark, Run, Sink};
use crate::units::Svma;

/// Instructions one behind the other in memory, each executed once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stretch {
    /// The first.
    pub start: CodeAddr,
    /// How they are read.
    pub mode: ExecMode,
    /// How many.
    pub count: u64,
    /// Ordinal of the last one; those before have the ordinals before.
    pub ordinal: u64,
}

/// One entry of the list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Instructions.
    Stretch(Stretch),
    /// What comes now is of this thread.
    Owner(Option<ThreadId>),
    /// Flow was lost.
    Gap {
        /// Where the flow goes on.
        ordinal: u64,
        /// Why.
        reason: LossReason,
        /// Bytes of trace that could not be used.
        bytes: u64,
    },
}

/// Collects the instructions of one unit.
#[derive(Clone, Debug)]
pub struct InstructionList {
    /// Ordinals rise.
    pub entries: Vec<Entry>,
    /// Where control is, as far as it is told; straight code leads on from there.
    at: Option<CodeAddr>,
    mode: ExecMode,
    told: Mark,
}

impl Default for InstructionList {
    fn default() -> Self {
        Self { entries: Vec::new(), at: None, mode: ExecMode::Bits64, told: Mark::default() }
    }
}

impl InstructionList {
    /// The instructions up to a mark, straight on from where control was.
    fn reach(&mut self, mark: Mark) {
        let count = mark.instructions() - self.told.instructions();
        // What interrupts the flow comes behind the instructions before it.
        let ordinal = self.told.ordinal + count;
        if let (Some(start), 1..) = (self.at, count) {
            self.entries.push(Entry::Stretch(Stretch { start, mode: self.mode, count, ordinal }));
        }
        self.told = mark;
    }

    /// The unit ends: takes the instructions behind the last branch.
    pub fn finish(&mut self, end: Mark) {
        self.reach(end);
        self.at = None;
    }
}

impl Sink for InstructionList {
    const CLOCK: bool = true;
    const RUNS: bool = true;

    fn run(&mut self, run: Run<'_>, mark: Mark) {
        let (info, node) = (run.graph.info(run.node), run.graph.node(run.node));
        let addr = |svma: Svma| Some(CodeAddr { image: Some(run.graph.image(info)), addr: svma.0 });
        let start = Mark { ordinal: mark.ordinal - u64::from(node.insns), ..mark };
        self.reach(start);
        (self.at, self.mode) = (addr(info.start), info.mode);
        for jump in run.graph.jumps(run.node) {
            self.reach(Mark { ordinal: start.ordinal + u64::from(jump.insns), ..mark });
            self.at = addr(jump.to);
        }
        self.reach(mark);
        let to = match (node.exit, run.leave) {
            (_, Leave::To(to)) => to,
            (Exit::Jcc, Leave::Taken) => node.succ[1],
            _ => node.succ[0],
        };
        self.at = Some(run.graph.start_addr(to));
    }

    fn branch(&mut self, branch: &Branch, mark: Mark) {
        self.mode = branch.mode;
        self.reach(mark);
        self.at = branch.then;
    }

    fn event(&mut self, event: Event, mark: Mark) {
        match event {
            Event::Sync { at } | Event::Enabled { at, .. } | Event::Async { to: at, .. } => {
                self.reach(mark);
                self.at = Some(at.addr);
            }
            Event::Disabled { .. } => {
                self.reach(mark);
                self.at = None;
            }
            Event::Owner { thread } => {
                self.reach(mark);
                self.entries.push(Entry::Owner(thread));
            }
            Event::Told { .. } => {}
            Event::Gap { reason, begin, bytes } => {
                self.reach(begin);
                self.at = None;
                self.entries.push(Entry::Gap { ordinal: mark.ordinal, reason, bytes });
            }
        }
    }
}
