//! Where control enters and leaves inlined functions, beside a unit's steps.
//!
//! For this every instruction is looked at, which no other job of call stacks needs: it is slower, and only for who asks for
//! it. What a stretch of straight code goes through is worked out once.

use super::UnitSteps;
use super::inlined::{InlinedCode, InlinedId};
use super::steps::CallSteps;
use crate::graph::{Exit, Graph, SiteTable};
use crate::image::Images;
use crate::insn::InsnStream;
use crate::packet::ExecMode;
use crate::profile::CodeAddr;
use crate::sink::{Branch, Event, Leave, Mark, Run, Sink};
use crate::units::Svma;
use rustc_hash::FxHashMap;

/// [`CallSteps`] with inlined functions.
pub struct InlineSteps<'c> {
    steps: CallSteps,
    images: &'c Images<'c>,
    inlined: &'c dyn InlinedCode,
    /// Where control is, as far as it is told; straight code leads on from there.
    at: Option<CodeAddr>,
    mode: ExecMode,
    told: Mark,
    /// What the last instruction was of; `None` where the next one is another frame's, perhaps.
    within: Option<Option<InlinedId>>,
    known: FxHashMap<(ExecMode, CodeAddr, u64), Stretch>,
}

/// Straight code.
#[derive(Debug)]
struct Stretch {
    /// What it goes through; the first one at its beginning.
    changes: Vec<Change>,
    /// What is behind it; `None` where its code is not known to the end.
    next: Option<CodeAddr>,
}

/// So many stretches are remembered: code that is damaged may have any number.
const MOST_KNOWN: usize = 1 << 20;

/// So many instructions of a stretch are before one that is of another function than the one before it.
#[derive(Clone, Copy, Debug)]
struct Change {
    passed: u64,
    to: Option<InlinedId>,
}

impl<'c> InlineSteps<'c> {
    /// Of code that `inlined` knows.
    pub fn new(images: &'c Images<'c>, inlined: &'c dyn InlinedCode) -> Self {
        Self {
            steps: CallSteps::default(),
            images,
            inlined,
            at: None,
            mode: ExecMode::Bits64,
            told: Mark::default(),
            within: None,
            known: FxHashMap::default(),
        }
    }

    /// The instructions up to a mark, straight on from where control was.
    fn reach(&mut self, mark: Mark) {
        let count = mark.instructions().saturating_sub(self.told.instructions());
        let before = std::mem::replace(&mut self.told, mark);
        let (Some(start), 1..) = (self.at, count) else { return };
        if self.known.len() >= MOST_KNOWN {
            self.known.clear();
        }
        let (images, inlined, mode) = (self.images, self.inlined, self.mode);
        let known = self.known.entry((mode, start, count));
        let stretch = known.or_insert_with(|| Stretch::new(images, inlined, mode, start, count));
        self.at = stretch.next;
        for Change { passed, to } in &stretch.changes {
            if self.within != Some(*to) {
                self.within = Some(*to);
                self.steps.inlined(Mark { ordinal: before.ordinal + *passed, ..before }, *to);
            }
        }
    }

    /// What comes next is in another frame, or the same frame is found again.
    fn forget(&mut self) {
        self.within = None;
    }

    /// The same where a step was kept that may change the stack.
    fn forget_after_transfer(&mut self) {
        if !self.steps.ends_inlined() {
            self.forget();
        }
    }
}

impl Stretch {
    fn new(
        images: &Images<'_>,
        inlined: &dyn InlinedCode,
        mode: ExecMode,
        start: CodeAddr,
        count: u64,
    ) -> Self {
        let code = start.image.and_then(|image| images.get(image)?.code_at(Svma(start.addr)));
        let mut insns = InsnStream::new(code.unwrap_or_default(), start.addr, mode);
        let mut this = Self { changes: Vec::new(), next: None };
        for passed in 0..count {
            let Some(insn) = insns.next() else { return Self { next: None, ..this } };
            let to = inlined.at(CodeAddr { addr: insn.addr, ..start });
            if this.changes.last().is_none_or(|last| last.to != to) {
                this.changes.push(Change { passed, to });
            }
            this.next = Some(CodeAddr { addr: insn.next(), ..start });
        }
        this
    }
}

impl UnitSteps for InlineSteps<'_> {
    fn end(&mut self, end: Mark) {
        self.reach(end);
        self.at = None;
    }

    fn steps(&self) -> &CallSteps {
        &self.steps
    }
}

impl Sink for InlineSteps<'_> {
    const CLOCK: bool = true;
    const RUNS: bool = true;
    const COUNTS: bool = false;

    fn start(&mut self, graph: &mut Graph) {
        self.steps.start(graph);
    }

    fn run(&mut self, run: Run<'_>, mark: Mark) {
        let (info, node) = (run.graph.info(run.node), run.graph.node(run.node));
        let start = Mark { ordinal: mark.ordinal - u64::from(node.insns), ..mark };
        self.mode = info.mode;
        // Elsewhere it is there already; or it came straight on from another image, which the careful walker does not tell.
        if self.at.is_none() {
            self.reach(start);
            self.at = Some(run.graph.start_addr(run.node));
        }
        for (number, jump, site) in run.graph.jump_sites(run.node) {
            let mark = Mark { ordinal: start.ordinal + u64::from(jump.insns), ..mark };
            self.reach(mark);
            if jump.crosses {
                self.steps.jump(mark, false, number, &site);
                self.forget_after_transfer();
            }
            self.at = Some(site.addr);
        }
        self.reach(mark);
        let to = match (node.exit, run.leave) {
            (_, Leave::To(to)) => to,
            (Exit::Jcc, Leave::Taken) => node.succ[1],
            _ => node.succ[0],
        };
        let site = run.graph.site(to);
        let is_taken = node.exit == Exit::Jcc && run.leave == Leave::Taken;
        if is_taken && site.function.function != info.last_function().function {
            self.steps.jump(mark, false, SiteTable::node(to), &site);
        }
        self.steps.at_end(&run, mark);
        self.forget_after_transfer();
        if node.exit != Exit::Cross || run.graph.crossing_kind(run.node).is_some() {
            self.at = Some(run.graph.start_addr(to));
        }
    }

    fn branch(&mut self, branch: &Branch, mark: Mark) {
        self.mode = branch.mode;
        self.reach(mark);
        self.steps.branch(branch, mark);
        self.forget_after_transfer();
        self.at = branch.then;
    }

    fn event(&mut self, event: Event, mark: Mark) {
        match event {
            Event::Gap { begin, .. } => self.reach(begin),
            _ => self.reach(mark),
        }
        self.steps.event(event, mark);
        match event {
            Event::Sync { at } | Event::Enabled { at, .. } | Event::Async { to: at, .. } => {
                self.at = Some(at.addr);
                self.forget();
            }
            Event::Disabled { .. } | Event::Gap { .. } => {
                self.at = None;
                self.forget();
            }
            Event::Owner { .. } => self.forget(),
            Event::Told { .. } => {}
        }
        // A gap's instructions, if any were counted, are not known.
        self.told = mark;
    }

    fn finish(&mut self, graph: &mut Graph) {
        self.steps.finish(graph);
    }

    fn forget_unit(&mut self) -> bool {
        (self.at, self.told, self.within) = (None, Mark::default(), None);
        self.steps.forget_unit()
    }
}
