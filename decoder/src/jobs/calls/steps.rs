//! What a unit's walk leaves for the fold: its calls, returns and jumps into other functions, and what interrupted them.
//!
//! There are many, so one is 16 bytes: an ordinal, its kind, and where it leads as a number of the graph's
//! ([`SiteTable`]); what the numbers mean is looked up where the steps are folded.

use super::inlined::InlinedId;
use crate::graph::{Exit, Graph, NOWHERE, NodeId, SiteTable};
use crate::ledger::LossReason;
use crate::owners::ThreadId;
use crate::packet::Packet;
use crate::profile::{CodeAddr, EdgeKind};
use crate::sink::{Branch, Event, Kept, Leave, Mark, Off, Run, Sink, Site};
use crate::units::ImageId;
use std::fmt;
use std::slice;
use std::sync::Arc;

/// Something that may change the stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Call {
        to: Site,
        returns_to: CodeAddr,
    },
    Return {
        to: Site,
    },
    Jump {
        to: Site,
        indirect: bool,
    },
    Off {
        why: Off,
        /// The instruction that was not executed any more, of an interrupt.
        interrupted: Option<CodeAddr>,
    },
    On {
        at: Site,
    },
    Sync {
        at: Site,
    },
    Gap {
        reason: LossReason,
        begin: Mark,
    },
    /// What comes now is this thread's.
    Owner(Option<ThreadId>),
    /// The program wrote a value into the trace (PTWRITE).
    Value(u64),
    /// The core's clock rate is another from here on.
    Ratio(u8),
    /// The frame goes on in that inlined function, or in none.
    Inlined(Option<InlinedId>),
    /// Control went back to the head of a loop, so often since the step before.
    Rounds {
        head: CodeAddr,
        times: u64,
    },
}

/// A [`Step`] as it is kept: equal numbers are of one site, and different ones may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Numbered {
    Call {
        to: u32,
        returns_to: u32,
    },
    Return {
        to: u32,
    },
    Jump {
        to: u32,
        indirect: bool,
    },
    /// The frame goes on in that inlined function, or in none.
    Inlined(Option<InlinedId>),
    /// One of [`CallSteps::rare`].
    Rare(u32),
    Rounds {
        head: u32,
        times: u32,
    },
}

/// Kinds of [`Kept`] steps, in the low bits of [`Kept::at`]; words are where it leads and, of a call, returns to.
const CALL: u64 = 0;
const RETURN: u64 = 1;
const JUMP: u64 = 2;
const JUMP_INDIRECT: u64 = 3;
/// The first word is an index of [`CallSteps::rare`].
const RARE: u64 = 4;
/// From here on marks have so many switches: words are its low and high half.
const SWITCHES: u64 = 5;
/// Rounds of a loop: words are its head and how many.
const ROUNDS: u64 = 6;
/// From here on control is in an inlined function: words are its image and its number, or [`NOT_INLINED`].
const INLINED: u64 = 7;
const NOT_INLINED: [u32; 2] = [u32::MAX; 2];
const KIND: u64 = 7;
/// It leads into a function that the job asks about.
const ASKED: u64 = 8;
/// A jump to a function's first instruction, or to a stub.
const ENTERS: u64 = 16;
/// The ordinal is what is above.
const ORDINAL: u32 = 5;

/// So many loops' rounds are added up between two other steps: loops in loops, without a call in them.
const NESTED_LOOPS: usize = 8;

/// Of a site's number: an index of [`CallSteps::others`], not of the graph's.
const OTHER: u32 = 1 << 31;

/// Collects the steps of one unit.
#[derive(Clone, Default)]
pub struct CallSteps {
    steps: Vec<Kept>,
    rare: Vec<Step>,
    /// Sites that the careful walker met.
    others: Vec<Site>,
    /// The marks' switches so far.
    switches: u64,
    /// What the sites' numbers mean; there when the walk is done.
    sites: SiteTable,
    /// The functions that the job asks about, where it needs no others' frames.
    only: Option<Arc<[bool]>>,
}

impl CallSteps {
    /// For a job that asks about some functions: a flag for each function. Calls of others that return to where they came
    /// from are left out when nothing is left in between; all that is left out opens and ends frames of other functions
    /// above those that stay.
    pub fn only(functions: Arc<[bool]>) -> Self {
        Self { only: Some(functions), ..Self::default() }
    }

    /// The steps, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Mark, Step)> {
        self.numbered().filter_map(|(mark, step)| Some((mark, self.step(step)?)))
    }

    /// The steps, in order, with numbers instead of sites.
    #[inline]
    pub(super) fn numbered(&self) -> NumberedSteps<'_> {
        NumberedSteps { steps: self.steps.iter(), switches: 0 }
    }

    /// What the numbers mean.
    pub(super) fn step(&self, step: Numbered) -> Option<Step> {
        Some(match step {
            Numbered::Call { to, returns_to } => {
                Step::Call { to: self.site(to), returns_to: self.site(returns_to).addr }
            }
            Numbered::Return { to } => Step::Return { to: self.site(to) },
            Numbered::Jump { to, indirect } => Step::Jump { to: self.site(to), indirect },
            Numbered::Inlined(to) => Step::Inlined(to),
            Numbered::Rare(index) => *self.rare.get(index as usize)?,
            Numbered::Rounds { head, times } => {
                Step::Rounds { head: self.site(head).addr, times: times.into() }
            }
        })
    }

    #[inline]
    pub(super) fn site(&self, number: u32) -> Site {
        if number & OTHER == 0 {
            return self.sites.site(number);
        }
        self.others.get((number & !OTHER) as usize).copied().unwrap_or(Site::NOWHERE)
    }

    fn is_asked(&self, site: &Site) -> bool {
        let asked = |only: &Arc<[bool]>| {
            site.function.function.is_some_and(|id| only.get(id.0 as usize) == Some(&true))
        };
        self.only.as_ref().is_some_and(asked)
    }

    /// A call or return, perhaps to what the job asks about.
    #[inline(always)]
    fn transfer(&mut self, mark: Mark, kind: u64, words: [u32; 2], is_asked: bool) {
        self.keep(mark, kind | if is_asked { ASKED } else { 0 }, words);
    }

    /// A jump to a site with a number.
    pub(super) fn jump(&mut self, mark: Mark, indirect: bool, number: u32, to: &Site) {
        let mut kind = if indirect { JUMP_INDIRECT } else { JUMP };
        if self.only.is_some() {
            let enters = to.function.entry || to.function.stub;
            // Enters nothing, and ends nothing: so says `Fold::jump`.
            if !indirect && !enters {
                return;
            }
            kind |= if enters { ENTERS } else { 0 } | if self.is_asked(to) { ASKED } else { 0 };
        }
        self.keep(mark, kind, [number, 0]);
    }

    #[inline(always)]
    fn keep(&mut self, mark: Mark, kind: u64, words: [u32; 2]) {
        self.switch(mark);
        self.add(Kept { at: mark.ordinal << ORDINAL | kind, words });
    }

    #[inline(always)]
    fn switch(&mut self, mark: Mark) {
        if mark.switches != self.switches {
            self.switches = mark.switches;
            let words = [mark.switches as u32, (mark.switches >> 32) as u32];
            self.steps.push(Kept { at: mark.ordinal << ORDINAL | SWITCHES, words });
        }
    }

    #[inline(always)]
    fn add(&mut self, step: Kept) {
        if self.only.is_some()
            && let Some(last) = self.steps.last()
            && last.at & (KIND | ASKED) == CALL
        {
            if step.at & KIND == RETURN && self.is_same(last.words[1], step.words[0]) {
                self.steps.pop();
                return;
            }
            // A tail call, or a stub that jumps on: the frame's function changes, and where it returns to stays.
            if step.at & (ENTERS | ASKED) == ENTERS {
                if let Some(last) = self.steps.last_mut() {
                    last.words[0] = step.words[0];
                }
                return;
            }
        }
        self.steps.push(step);
    }

    /// Whether two numbers are the same address. Where they come from different walkers it may not be known.
    #[inline]
    fn is_same(&self, a: u32, b: u32) -> bool {
        a == b || a & b & OTHER != 0 && self.site(a).addr == self.site(b).addr
    }

    /// One more round of the loop whose head has this number.
    pub(super) fn round(&mut self, mark: Mark, head: u32) {
        let last = self.steps.iter_mut().rev().take(NESTED_LOOPS);
        let mut known = last.take_while(|step| step.at & KIND == ROUNDS);
        match known.find(|step| step.words[0] == head && step.words[1] < u32::MAX) {
            Some(step) => step.words[1] += 1,
            None => self.keep(mark, ROUNDS, [head, 1]),
        }
    }

    /// Control goes on in that inlined function, or in none.
    pub(super) fn inlined(&mut self, mark: Mark, to: Option<InlinedId>) {
        self.keep(mark, INLINED, to.map_or(NOT_INLINED, |to| [to.image.0, to.number]));
    }

    /// The last step is that control goes on in some inlined function, or in none.
    pub(super) fn ends_inlined(&self) -> bool {
        self.steps.last().is_some_and(|last| last.at & KIND == INLINED)
    }

    fn rare(&mut self, mark: Mark, step: Step) {
        let index = self.rare.len() as u32;
        self.rare.push(step);
        self.keep(mark, RARE, [index, 0]);
    }

    /// The number of a site that is none of the graph's.
    pub(super) fn other(&mut self, site: Site) -> u32 {
        self.others.push(site);
        (self.others.len() - 1) as u32 | OTHER
    }

    /// The jump at a node's end.
    fn jump_at_end(&mut self, run: &Run<'_>, to: NodeId, mark: Mark) {
        let indirect = run.graph.node(run.node).exit == Exit::JmpInd;
        let site = run.graph.site(to);
        if site.function.function != run.graph.info(run.node).last_function().function {
            self.jump(mark, indirect, SiteTable::node(to), &site);
        }
    }

    /// The call, return or jump at a node's end.
    #[inline(always)]
    pub(super) fn at_end(&mut self, run: &Run<'_>, mark: Mark) {
        let node = run.graph.node(run.node);
        let (kind, to) = match (run.exit, run.leave) {
            (Exit::Call, _) => (CALL, node.succ[0]),
            (Exit::CallInd, Leave::To(to)) => (CALL, to),
            (Exit::Ret, Leave::To(to)) => (RETURN, to),
            (Exit::JmpInd, Leave::To(to)) => return self.jump_at_end(run, to, mark),
            (Exit::Cross, Leave::To(to)) if run.graph.crossing_kind(run.node) == Some(EdgeKind::Call) => {
                // A call to the next instruction is none.
                if node.ret == NOWHERE {
                    return;
                }
                (CALL, to)
            }
            (Exit::Cross, Leave::To(to)) => return self.jump_at_end(run, to, mark),
            _ => return,
        };
        let words = [SiteTable::node(to), SiteTable::node(node.ret)];
        self.transfer(mark, kind, words, run.graph.node(to).is_asked());
    }

    /// The jumps folded into a node, and its conditional branch, where they lead into another function.
    #[cold]
    fn crossing(&mut self, run: &Run<'_>, mark: Mark) {
        let info = run.graph.info(run.node);
        let node = run.graph.node(run.node);
        let start = mark.ordinal - u64::from(node.insns);
        for (number, jump, site) in run.graph.jump_sites(run.node).filter(|(_, jump, _)| jump.crosses) {
            let mark = Mark { ordinal: start + u64::from(jump.insns), ..mark };
            self.jump(mark, false, number, &site);
        }
        if node.exit == Exit::Jcc && run.leave == Leave::Taken {
            let to = run.graph.site(node.succ[1]);
            if to.function.function != info.last_function().function {
                self.jump(mark, false, SiteTable::node(node.succ[1]), &to);
            }
        }
    }
}

/// Reads a unit's steps.
pub(super) struct NumberedSteps<'s> {
    steps: slice::Iter<'s, Kept>,
    /// The marks' switches so far.
    switches: u64,
}

impl NumberedSteps<'_> {
    /// Takes the next step if it is a return to that number, and before an ordinal.
    #[inline]
    pub fn next_return(&mut self, number: u32, before: u64) -> Option<Mark> {
        let next = self.steps.as_slice().first()?;
        let ordinal = next.at >> ORDINAL;
        if next.at & KIND != RETURN || next.words[0] != number || ordinal > before {
            return None;
        }
        self.steps.next();
        Some(Mark { ordinal, switches: self.switches })
    }
}

impl Iterator for NumberedSteps<'_> {
    type Item = (Mark, Numbered);

    #[inline]
    fn next(&mut self) -> Option<(Mark, Numbered)> {
        loop {
            let kept = self.steps.next()?;
            let [to, returns_to] = kept.words;
            let step = match kept.at & KIND {
                CALL => Numbered::Call { to, returns_to },
                RETURN => Numbered::Return { to },
                kind @ (JUMP | JUMP_INDIRECT) => Numbered::Jump { to, indirect: kind == JUMP_INDIRECT },
                RARE => Numbered::Rare(to),
                ROUNDS => Numbered::Rounds { head: to, times: returns_to },
                INLINED => Numbered::Inlined(
                    (kept.words != NOT_INLINED)
                        .then_some(InlinedId { image: ImageId(to), number: returns_to }),
                ),
                _ => {
                    self.switches = u64::from(to) | u64::from(returns_to) << 32;
                    continue;
                }
            };
            return Some((Mark { ordinal: kept.at >> ORDINAL, switches: self.switches }, step));
        }
    }
}

impl Sink for CallSteps {
    const CLOCK: bool = true;
    const RUNS: bool = true;
    const COUNTS: bool = false;
    const BRANCHES: bool = false;
    const WINDOWS: bool = true;

    fn start(&mut self, graph: &mut Graph) {
        if let Some(only) = &self.only {
            graph.ask(only);
        }
    }

    #[inline(always)]
    fn run(&mut self, run: Run<'_>, mark: Mark) {
        if run.graph.node(run.node).crosses() {
            self.crossing(&run, mark);
        }
        self.at_end(&run, mark);
    }

    fn branch(&mut self, branch: &Branch, mark: Mark) {
        let Some(to) = branch.to.filter(|_| branch.taken) else { return };
        match branch.kind {
            // A call to the next instruction is how old code reads its own address.
            EdgeKind::Call if to.addr == branch.next => {}
            EdgeKind::Call | EdgeKind::CallInd => {
                let returns_to = Site { addr: branch.next, ..Site::NOWHERE };
                let words = [self.other(to), self.other(returns_to)];
                let is_asked = self.is_asked(&to);
                self.transfer(mark, CALL, words, is_asked);
            }
            EdgeKind::Ret => {
                let words = [self.other(to), 0];
                let is_asked = self.is_asked(&to);
                self.transfer(mark, RETURN, words, is_asked);
            }
            EdgeKind::Jmp | EdgeKind::JmpInd | EdgeKind::Jcc | EdgeKind::Far => {
                let indirect = matches!(branch.kind, EdgeKind::JmpInd | EdgeKind::Far);
                if to.function.function != branch.from.function.function {
                    let number = self.other(to);
                    self.jump(mark, indirect, number, &to);
                }
            }
            EdgeKind::Syscall | EdgeKind::Async | EdgeKind::Resume | EdgeKind::Range => {}
        }
    }

    fn event(&mut self, event: Event, mark: Mark) {
        match event {
            Event::Sync { at } => self.rare(mark, Step::Sync { at }),
            Event::Enabled { at, .. } => self.rare(mark, Step::On { at }),
            Event::Disabled { why, from, .. } => {
                let interrupted = (why == Off::Async).then_some(from.addr);
                self.rare(mark, Step::Off { why, interrupted });
            }
            Event::Told { packet: Packet::Ptw { payload, .. }, .. } => self.rare(mark, Step::Value(payload)),
            Event::Told { .. } => {}
            Event::Owner { thread } => self.rare(mark, Step::Owner(thread)),
            // A traced handler runs on top of what it interrupted; its IRET is a far jump back into it.
            Event::Async { from, to } => self.rare(mark, Step::Call { to, returns_to: from.addr }),
            Event::Gap { reason, begin, .. } => {
                self.rare(mark, Step::Gap { reason, begin });
            }
        }
    }

    fn learn<'g>(&self, runs: impl Iterator<Item = (Run<'g>, Mark)>) -> Vec<Kept> {
        // No rule looks further back than to the step before: what is left out here would be left out anyway.
        let mut part = Self { only: self.only.clone(), ..Self::default() };
        runs.for_each(|(run, mark)| part.run(run, mark));
        part.steps
    }

    #[inline]
    fn window(&mut self, kept: &[Kept], before: Mark) {
        if kept.is_empty() {
            return;
        }
        self.switch(before);
        let base = before.ordinal << ORDINAL;
        let steps = kept.iter().map(|step| Kept { at: step.at + base, ..*step });
        if self.only.is_some() {
            steps.for_each(|step| self.add(step));
        } else {
            self.steps.extend(steps);
        }
    }

    fn marks(&self, from: u64, marks: &mut Vec<u64>) -> bool {
        let steps = self.steps.iter().rev().map(|step| step.at >> ORDINAL);
        marks.extend(steps.take_while(|ordinal| *ordinal >= from));
        marks.reverse();
        true
    }

    fn finish(&mut self, graph: &mut Graph) {
        self.sites = graph.site_table();
    }

    fn forget_unit(&mut self) -> bool {
        let Self { steps, rare, others, switches, sites, only: _ } = self;
        steps.clear();
        rare.clear();
        others.clear();
        (*switches, *sites) = (0, SiteTable::default());
        true
    }
}

impl fmt::Debug for CallSteps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
