//! One invocation in detail: its calls as a tree, and what interrupted it.
//!
//! Calls of one function by one caller, on the same path from the invocation, are one node with their sums: a loop of a
//! million calls is a line. The tree's size is that of the code's paths, not of the trace.

use super::calls::{Cut, FrameName, FrameSink};
use super::invocations::{Begin, End, Invocation, passed};
use crate::image::FunctionId;
use crate::ledger::LossReason;
use crate::profile::CodeAddr;
use crate::units::Ns;
use std::collections::HashMap;

/// Calls deeper than this are counted where they are too deep.
const MAX_DEPTH: usize = 1000;
/// So many paths are told apart.
const MAX_NODES: usize = 1 << 20;
/// So many interruptions are listed one by one.
const MAX_EVENTS: usize = 1 << 20;
/// So many loops of one node are told apart.
const MAX_LOOPS: usize = 256;

/// All calls of one function on one path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// What.
    pub what: FrameName,
    /// Nodes below, in the order in which they first came.
    pub children: Vec<usize>,
    /// How many calls.
    pub calls: u64,
    /// Time in them, in what they called too.
    pub ns: u64,
    /// The longest of them.
    pub longest: u64,
    /// Instructions in them, in what they called too.
    pub instructions: u64,
    /// Core cycles of traced code in them, likewise; `None` where none are told.
    pub cycles: Option<u64>,
    /// Where the first one returned to.
    pub returns_to: Option<CodeAddr>,
    /// When the first one began, and how many instructions of the invocation were before it.
    pub first: (Ns, u64),
    /// Calls below it that are not told apart: too deep, or too many paths.
    pub deeper: u64,
    /// Its loops, by their first instruction, and how often control went back there.
    pub loops: Vec<(CodeAddr, u64)>,
}

/// Time without trace: a system call, a fault, another thread's turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interruption {
    /// What.
    pub what: FrameName,
    /// When it began.
    pub from: Ns,
    /// When it ended.
    pub to: Ns,
    /// Instructions of the invocation before it.
    pub instructions: u64,
    /// Its node.
    pub node: usize,
}

/// Which invocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// The one with this start, end and number of instructions.
    Known {
        /// When it began.
        start: Ns,
        /// When it ended.
        end: Ns,
        /// Instructions in it.
        instructions: u64,
    },
    /// The one that was going on at this time.
    At(Ns),
}

/// An invocation in detail.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Detail {
    /// When it began.
    pub start: Ns,
    /// When it ended.
    pub end: Ns,
    /// How it came into view.
    pub began: Begin,
    /// How it ended.
    pub ended: End,
    /// Instructions of its stack before it and up to its end, counted from where decoding began.
    pub instructions: (u64, u64),
    /// The first is the invocation itself.
    pub nodes: Vec<Node>,
    /// In order; no more than can be listed.
    pub interruptions: Vec<Interruption>,
}

/// The invocation is found, and nothing behind it needs to be decoded; or else why a frame could not be taken.
#[derive(Debug)]
pub enum Stop<E> {
    /// It is found.
    Found,
    /// It is not there: this is behind all that it could be.
    Behind,
    /// The sink that the frames are handed on to gave up.
    Sink(E),
}

/// Finds one invocation of some functions on one stack, and hands its frames on to a sink.
#[derive(Debug)]
pub struct Replay<S> {
    stack: usize,
    wanted: Vec<bool>,
    which: Which,
    /// Decoding begins where the trace does: what is not known before was not traced.
    whole: bool,
    /// Flow was lost before now.
    lost: bool,
    executed: u64,
    cycles: Option<u64>,
    returns_to: Option<CodeAddr>,
    open: Vec<Open>,
    children: HashMap<(usize, FrameName), usize>,
    detail: Option<Detail>,
    found: Option<Detail>,
    sink: S,
}

/// An open frame; `node` is that of the one above where it is too deep.
#[derive(Clone, Copy, Debug)]
struct Open {
    node: usize,
    told: bool,
    at: Ns,
    executed: u64,
    cycles: Option<u64>,
}

impl<S: FrameSink> Replay<S> {
    /// Of any of these functions. The sink takes the frames of every invocation that may be the one.
    pub fn new(stack: usize, functions: &[FunctionId], which: Which, sink: S) -> Self {
        Self {
            stack,
            wanted: super::invocations::flags(functions),
            which,
            whole: false,
            lost: false,
            executed: 0,
            cycles: None,
            returns_to: None,
            open: Vec::new(),
            children: HashMap::new(),
            detail: None,
            found: None,
            sink,
        }
    }

    /// The trace is decoded from its beginning on: an invocation that was going on then is found by a time, too.
    pub fn from_the_start(mut self) -> Self {
        self.whole = true;
        self
    }

    /// What was found, and the sink.
    pub fn finish(self) -> (Option<Detail>, S) {
        (self.found, self.sink)
    }

    /// Control may be in it from here on: how it came into view.
    fn begins(&self, at: Ns, name: FrameName, inferred: bool) -> Option<Begin> {
        let FrameName::Function(function) = name else { return None };
        let (by_time, by_moment) = match self.which {
            Which::Known { start, .. } => (at == start, false),
            Which::At(time) => (at <= time, true),
        };
        if !by_time || self.wanted.get(function.0 as usize) != Some(&true) {
            return None;
        }
        match inferred {
            false => Some(Begin::Seen),
            // Behind a gap nothing is known of before, wherever decoding began.
            true if by_moment && self.lost => Some(Begin::InGap),
            true if by_moment && self.whole => Some(Begin::BeforeTrace),
            true => None,
        }
    }

    fn is_it(&self, detail: &Detail) -> bool {
        match self.which {
            Which::Known { start, end, instructions } => {
                let (from, to) = detail.instructions;
                (start, end, instructions) == (detail.start, detail.end, to - from)
            }
            Which::At(time) => detail.start <= time && time <= detail.end,
        }
    }

    fn is_behind(&self, at: Ns) -> bool {
        match self.which {
            Which::Known { start, .. } => at > start,
            Which::At(time) => at > time,
        }
    }

    /// The node of something below another node; `None` where no more are told apart.
    fn child(&mut self, parent: usize, what: FrameName, at: Ns) -> Option<usize> {
        let detail = self.detail.as_mut()?;
        if let Some(node) = self.children.get(&(parent, what)) {
            return Some(*node);
        }
        if detail.nodes.len() >= MAX_NODES || self.open.len() >= MAX_DEPTH {
            return None;
        }
        let node = detail.nodes.len();
        let before = self.executed.saturating_sub(detail.instructions.0);
        detail.nodes.push(Node::new(what, self.returns_to.take(), (at, before)));
        detail.nodes.get_mut(parent)?.children.push(node);
        self.children.insert((parent, what), node);
        Some(node)
    }

    fn begin(&mut self, at: Ns, name: FrameName, began: Begin) {
        let root = Node::new(name, self.returns_to.take(), (at, 0));
        self.children.clear();
        self.open.clear();
        self.detail = Some(Detail {
            start: at,
            end: at,
            began,
            ended: End::Seen,
            instructions: (self.executed, self.executed),
            nodes: vec![root],
            interruptions: Vec::new(),
        });
        let Self { executed, cycles, .. } = *self;
        self.open.push(Open { node: 0, told: true, at, executed, cycles });
    }

    fn end(&mut self, at: Ns, ended: End) -> Result<(), Stop<S::Error>> {
        let (Some(detail), Some(open)) = (&mut self.detail, self.open.pop()) else { return Ok(()) };
        let Some(node) = detail.nodes.get_mut(open.node) else { return Ok(()) };
        if open.told {
            let ns = at.0.saturating_sub(open.at.0);
            node.calls += 1;
            node.ns = node.ns.saturating_add(ns);
            node.longest = node.longest.max(ns);
            node.instructions += self.executed.saturating_sub(open.executed);
            node.cycles = match (node.cycles, passed(open.cycles, self.cycles)) {
                (Some(before), Some(more)) => Some(before.saturating_add(more)),
                (before, more) => before.or(more),
            };
        } else {
            node.deeper += 1;
        }
        let (what, node) = (node.what, open.node);
        if let FrameName::Syscall | FrameName::Untraced = what
            && open.told
            && detail.interruptions.len() < MAX_EVENTS
        {
            let instructions = open.executed.saturating_sub(detail.instructions.0);
            detail.interruptions.push(Interruption { what, from: open.at, to: at, instructions, node });
        }
        if !self.open.is_empty() {
            return Ok(());
        }
        detail.end = at;
        detail.ended = ended;
        detail.instructions.1 = self.executed;
        let Some(detail) = self.detail.take() else { return Ok(()) };
        if self.is_it(&detail) {
            self.found = Some(detail);
            return Err(Stop::Found);
        }
        Ok(())
    }
}

impl Node {
    fn new(what: FrameName, returns_to: Option<CodeAddr>, first: (Ns, u64)) -> Self {
        Self {
            what,
            children: Vec::new(),
            calls: 0,
            ns: 0,
            longest: 0,
            instructions: 0,
            cycles: None,
            returns_to,
            first,
            deeper: 0,
            loops: Vec::new(),
        }
    }
}

impl<S: FrameSink> FrameSink for &mut Replay<S> {
    type Error = Stop<S::Error>;
    const CYCLES: bool = true;
    const RETURNS: bool = true;

    fn open(&mut self, index: usize, at: Ns, name: FrameName, inferred: bool) -> Result<(), Self::Error> {
        if index != self.stack {
            return Ok(());
        }
        if self.detail.is_none() {
            if self.is_behind(at) {
                return Err(Stop::Behind);
            }
            let Some(began) = self.begins(at, name, inferred) else {
                self.returns_to = None;
                return Ok(());
            };
            self.begin(at, name, began);
        } else {
            let parent = self.open.last().map_or(0, |open| open.node);
            let node = self.child(parent, name, at);
            self.returns_to = None;
            let Replay { executed, cycles, .. } = **self;
            let told = node.is_some();
            self.open.push(Open { node: node.unwrap_or(parent), told, at, executed, cycles });
        }
        self.sink.open(index, at, name, inferred).map_err(Stop::Sink)
    }

    fn close(&mut self, index: usize, at: Ns) -> Result<(), Self::Error> {
        if index != self.stack || self.detail.is_none() {
            return Ok(());
        }
        self.sink.close(index, at).map_err(Stop::Sink)?;
        self.end(at, End::Seen)
    }

    fn cut(&mut self, index: usize, at: Ns, why: Cut) -> Result<(), Self::Error> {
        if index != self.stack {
            return Ok(());
        }
        self.lost |= why == Cut::Gap;
        if self.detail.is_none() {
            return Ok(());
        }
        self.sink.cut(index, at, why).map_err(Stop::Sink)?;
        self.end(at, if why == Cut::Gap { End::InGap } else { End::AfterTrace })
    }

    fn executed(&mut self, index: usize, instructions: u64) {
        if index == self.stack {
            self.executed = instructions;
        }
    }

    fn cycles(&mut self, index: usize, cycles: u64) {
        if index == self.stack {
            self.cycles = Some(cycles);
        }
    }

    fn returns_to(&mut self, index: usize, at: CodeAddr) {
        if index == self.stack {
            self.returns_to = Some(at);
        }
    }

    fn rounds(&mut self, index: usize, head: CodeAddr, times: u64) {
        let (Some(detail), Some(open)) = (&mut self.detail, self.open.last()) else { return };
        let Some(node) = detail.nodes.get_mut(open.node).filter(|_| index == self.stack && open.told) else {
            return;
        };
        if let Some(known) = node.loops.iter_mut().find(|known| known.0 == head) {
            known.1 += times;
        } else if node.loops.len() < MAX_LOOPS {
            node.loops.push((head, times));
        }
    }

    fn gap(&mut self, index: usize, from: Ns, to: Ns, reason: LossReason) -> Result<(), Self::Error> {
        if index != self.stack {
            return Ok(());
        }
        self.lost = true;
        if self.detail.is_none() {
            return Ok(());
        }
        self.sink.gap(index, from, to, reason).map_err(Stop::Sink)
    }
}

impl From<&Invocation> for Which {
    fn from(invocation: &Invocation) -> Self {
        let Invocation { start, end, instructions, .. } = *invocation;
        Self::Known { start, end, instructions }
    }
}
