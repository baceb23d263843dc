//! The block graph for walks without branches: one cache line a node, and the way of two outcomes in one step.
//!
//! A node of a conditional branch has the four ways of the next two outcomes, as far as both are known. Any other node
//! *parks*: plain steps leave it where it is, and a special step looks at what it is. Counters become the graph's by
//! [`Graph::settle_compact`]; the lines are made anew whenever the graph has grown a good deal.

use super::{Exit, Graph, NodeId};

/// Bytes of a line: nodes are named by the offset of theirs.
pub(crate) const LINE: u32 = 64;
/// So many nodes have offsets; beyond, nothing is walked this way.
const MAX_NODES: usize = 1 << 25;

/// Near return.
pub(crate) const RET: u32 = 1;
/// Takes a TIP.
pub(crate) const TIP: u32 = 2;
/// Pushes a return address when it is left.
pub(crate) const PUSH: u32 = 4;
/// Goes on without the trace.
pub(crate) const FREE: u32 = 8;

/// A node.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line {
    /// For the next two outcomes: the node behind them, and in the low bits how many it takes; itself and 0 where it parks.
    pub next: [u32; 4],
    /// How often each of [`Self::next`] was taken; means nothing where it parks.
    pub count: [u32; 4],
    /// Where a free node leads; others, to themselves.
    pub target: u32,
    /// The return address that it pushes.
    pub push: u32,
    pub flags: u32,
    /// How often a free node was left.
    pub passed: u32,
}

/// The lines of a graph's nodes.
#[derive(Default)]
pub(crate) struct Compact {
    pub lines: Vec<Line>,
    /// Nodes, and nodes built on the way, when the lines were made.
    made_for: usize,
    built: usize,
    /// Steps since the counters were settled: none may overflow.
    pub steps: u32,
    /// Returns and indirect transfers, `from | to << 32`, in a table without chains: who is driven out is counted in the graph.
    targets: Vec<(u64, u64)>,
}

/// Slots of the table of transfers: 256 KiB.
const TARGETS: usize = 1 << 14;
/// Steps between two settlements.
const MAX_STEPS: u32 = 1 << 30;

impl Compact {
    /// Whether only [`Graph::build_compact`] may help a walk on.
    pub fn parks(&self, id: NodeId) -> bool {
        self.lines.get(id.0 as usize).is_none_or(|line| line.flags == 0 && line.next[0] == id.0 * LINE)
    }
}

impl Line {
    pub(crate) fn parked(id: usize) -> Self {
        let at = id as u32 * LINE;
        Self { next: [at; 4], count: [0; 4], target: at, push: 0, flags: 0, passed: 0 }
    }
}

impl Graph {
    /// Makes lines for all nodes; false where there are too many.
    pub(crate) fn make_compact(&mut self) -> bool {
        if self.nodes.len() > MAX_NODES {
            return false;
        }
        if self.compact.targets.is_empty() {
            self.compact.targets = vec![(0, 0); TARGETS];
        }
        let size = self.nodes.len() + self.compact.built;
        let grown = size - self.compact.made_for > 64 + self.compact.made_for / 8;
        if grown || self.compact.steps > MAX_STEPS {
            self.settle_compact();
            for id in 0..self.compact.lines.len() {
                self.make_line(id);
            }
            self.compact.made_for = size;
        }
        self.add_lines();
        true
    }

    fn add_lines(&mut self) {
        for id in self.compact.lines.len()..self.nodes.len() {
            self.compact.lines.push(Line::parked(id));
            self.make_line(id);
        }
    }

    /// Makes a line anew; its counters are settled.
    fn make_line(&mut self, id: usize) {
        let node = self.nodes[id];
        let mut line = Line::parked(id);
        line.push = node.ret.0 * LINE;
        match node.exit {
            Exit::Jcc => {
                for (outcomes, next) in line.next.iter_mut().enumerate() {
                    let first = node.succ[outcomes >> 1];
                    let then = self.nodes[first.0 as usize];
                    *next = if then.exit == Exit::Jcc {
                        (then.succ[outcomes & 1].0 * LINE) | 2
                    } else {
                        (first.0 * LINE) | 1
                    };
                }
            }
            Exit::Call => {
                line.flags = FREE | PUSH;
                line.target = node.succ[0].0 * LINE;
            }
            Exit::Link => {
                line.flags = FREE;
                line.target = node.succ[0].0 * LINE;
            }
            Exit::Ret => line.flags = RET | TIP,
            Exit::CallInd => line.flags = TIP | PUSH,
            Exit::JmpInd => line.flags = TIP,
            Exit::Unbuilt | Exit::Cross | Exit::Endless | Exit::Stop => {}
        }
        self.compact.lines[id] = line;
    }

    /// A walk came to a node that parks: builds it. False where that is no help.
    pub(crate) fn build_compact(&mut self, code: &crate::code::CodeView<'_, '_>, id: NodeId) -> bool {
        let index = id.0 as usize;
        if self.nodes[index].exit == Exit::Unbuilt {
            self.build(code, id);
            self.compact.built += 1;
        }
        if matches!(self.nodes[index].exit, Exit::Cross | Exit::Endless | Exit::Stop) {
            return false;
        }
        self.add_lines();
        // It had none: nothing is counted in it.
        self.make_line(index);
        true
    }

    /// Counts transfers that a walk logged, `from | to << 32` by lines.
    pub(crate) fn count_log(&mut self, log: &[u64]) {
        for &transfer in log {
            let slot = (transfer.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize % TARGETS;
            let Some(entry) = self.compact.targets.get_mut(slot) else { return };
            if entry.0 == transfer {
                entry.1 += 1;
            } else {
                let (driven_out, times) = std::mem::replace(entry, (transfer, 1));
                self.count_transfer(driven_out, times);
            }
        }
    }

    fn count_transfer(&mut self, transfer: u64, times: u64) {
        if times != 0 {
            let (from, to) = (transfer as u32 / LINE, (transfer >> 32) as u32 / LINE);
            self.count_targets(NodeId(from), NodeId(to), times);
        }
    }

    /// Moves all counters of the lines to the graph's own.
    pub(crate) fn settle_compact(&mut self) {
        for id in 0..self.compact.lines.len() {
            let node = self.nodes[id];
            let line = &mut self.compact.lines[id];
            let counts = std::mem::take(&mut line.count);
            let passed = std::mem::take(&mut line.passed);
            let next = line.next;
            self.nodes[id].count[0] += u64::from(passed);
            for (outcomes, (count, next)) in counts.into_iter().zip(next).enumerate() {
                if next & 3 == 0 || count == 0 {
                    continue;
                }
                let first = outcomes >> 1;
                self.nodes[id].count[first] += u64::from(count);
                if next & 3 == 2 {
                    self.nodes[node.succ[first].0 as usize].count[outcomes & 1] += u64::from(count);
                }
            }
        }
        self.compact.steps = 0;
        for slot in 0..self.compact.targets.len() {
            let (transfer, times) = std::mem::take(&mut self.compact.targets[slot]);
            self.count_transfer(transfer, times);
        }
    }
}
