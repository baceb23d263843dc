//! The block graph for walks without branches: one cache line a node, and the way of two outcomes in one step.
//!
//! A way leads from a node as far as the next two outcomes tell: through conditional branches, through one direct call,
//! whose return address it pushes, and up to a return, which ends it. Where a way needs a TIP, or code that is not built,
//! the node *parks*: a step leaves it where it is. Counters become the graph's by [`Graph::settle_compact`]; ways that
//! ended at unbuilt code are made anew whenever the graph has grown a good deal.

use super::{Exit, Graph, NOWHERE, NodeId};

/// Bytes of a line. Nodes are named by the offsets of theirs; at 0 there is none.
pub(crate) const LINE: u32 = 64;
/// The name of [`NOWHERE`].
pub(crate) const DEAD: u32 = LINE;
/// So many nodes have names; beyond, nothing is walked this way.
const MAX_NODES: usize = 1 << 25;

/// Near return.
pub(crate) const RET: u32 = 1;
/// Takes a TIP.
pub(crate) const TIP: u32 = 2;
/// Pushes a return address when it takes a TIP.
pub(crate) const PUSH: u32 = 4;
/// One of its ways ends at code that was not built.
const UNFINISHED: u32 = 8;

/// By how many bytes the top of a stack that grows down moves.
const POPS: i8 = 4;
const PUSHES: i8 = -4;

/// A node.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line {
    /// For the next two outcomes: the node behind them, and in the low bits how many they are. No node where the way ends
    /// with a return; itself and 0 where it parks.
    pub next: [u32; 4],
    /// How often each of [`Self::next`] was taken; means nothing where it parks.
    pub count: [u32; 4],
    /// The return address pushed on each of the ways, or the return that ends it.
    pub push: [u32; 4],
    /// What becomes of the stack's top.
    pub moves: [i8; 4],
    /// Where the transfers of [`Self::arrivals`] came from.
    pub from: u32,
    /// Returns and indirect transfers from one node to this one. Nearly all returns to an address are by one instruction.
    pub arrivals: u32,
    /// The return address pushed where it takes a TIP, and flags in the low bits.
    pub ret: u32,
}

/// A node's name.
#[inline]
pub(crate) fn name(id: NodeId) -> u32 {
    (id.0 + 1) * LINE
}

/// The node of a name.
#[inline]
pub(crate) fn named(name: u32) -> NodeId {
    NodeId((name / LINE).saturating_sub(1))
}

/// As far as two outcomes lead.
struct Way {
    to: NodeId,
    outcomes: u32,
    push: NodeId,
    pops: bool,
    /// The nodes left, by which exit.
    left: [(NodeId, usize); 3],
    len: usize,
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
    /// Other transfers than [`Line::arrivals`], `from | to << 32`, in a table without chains: who is driven out is counted in
    /// the graph.
    targets: Vec<(u64, u64)>,
}

/// Slots of the table of transfers: 256 KiB.
const TARGETS: usize = 1 << 14;
/// Steps between two settlements.
const MAX_STEPS: u32 = 1 << 30;

impl Compact {
    /// Whether only [`Graph::build_compact`] may help a walk on.
    pub fn parks(&self, id: NodeId) -> bool {
        let parked = Line::parked(id);
        self.lines.get(id.0 as usize + 1).is_none_or(|line| line.ret % LINE == 0 && line.next == parked.next)
    }
}

impl Line {
    pub(crate) fn parked(id: NodeId) -> Self {
        Self { next: [name(id); 4], count: [0; 4], push: [0; 4], moves: [0; 4], from: 0, arrivals: 0, ret: 0 }
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
            self.compact.lines.push(Line::parked(NOWHERE));
        }
        if self.compact.steps > MAX_STEPS {
            self.settle_compact();
        }
        let size = self.nodes.len() + self.compact.built;
        if size - self.compact.made_for > 64 + self.compact.made_for / 4 {
            for index in 1..self.compact.lines.len() {
                if self.compact.lines[index].ret & UNFINISHED != 0 {
                    self.settle_line(index);
                    self.make_line(index);
                }
            }
            self.compact.made_for = size;
        }
        self.add_lines();
        true
    }

    fn add_lines(&mut self) {
        for index in self.compact.lines.len()..=self.nodes.len() {
            self.compact.lines.push(Line::parked(NodeId(index as u32 - 1)));
            self.make_line(index);
        }
    }

    /// Follows two outcomes from a node, or fewer: up to where so many of them are used, and a call is passed or not.
    fn way(&self, from: NodeId, outcomes: usize, end: Option<(u32, bool)>) -> Way {
        let mut way =
            Way { to: from, outcomes: 0, push: NOWHERE, pops: false, left: [(NOWHERE, 0); 3], len: 0 };
        loop {
            let node = &self.nodes[way.to.0 as usize];
            let outcome = outcomes >> (way.outcomes ^ 1) & 1;
            let exit = match node.exit {
                Exit::Jcc if way.outcomes < 2 => {
                    way.outcomes += 1;
                    outcome
                }
                Exit::Call if way.push == NOWHERE => {
                    way.push = node.ret;
                    0
                }
                Exit::Link if way.len == 0 => 0,
                // What was pushed on the same way would have to be found there.
                Exit::Ret if way.outcomes < 2 && outcome == 1 && way.push == NOWHERE => {
                    way.outcomes += 1;
                    way.pops = true;
                    return way;
                }
                _ => return way,
            };
            way.left[way.len] = (way.to, exit);
            way.len += 1;
            way.to = node.succ[exit];
            if end == Some((way.outcomes, way.push != NOWHERE)) || node.exit == Exit::Link {
                return way;
            }
        }
    }

    /// Makes a node's ways anew; their counters are settled.
    fn make_line(&mut self, index: usize) {
        let id = NodeId(index as u32 - 1);
        let node = &self.nodes[id.0 as usize];
        let mut line = Line { ret: name(node.ret), ..Line::parked(id) };
        match node.exit {
            Exit::Jcc | Exit::Call | Exit::Link | Exit::Ret => {
                for outcomes in 0..4 {
                    let way = self.way(id, outcomes, None);
                    line.next[outcomes] = if way.pops { 0 } else { name(way.to) } | way.outcomes;
                    (line.push[outcomes], line.moves[outcomes]) = match way.push {
                        _ if way.pops => (name(way.to), POPS),
                        NOWHERE => (0, 0),
                        address => (name(address), PUSHES),
                    };
                    let is_unbuilt = self.nodes[way.to.0 as usize].exit == Exit::Unbuilt;
                    line.ret |= u32::from(is_unbuilt) * UNFINISHED;
                }
                if node.exit == Exit::Ret {
                    line.ret |= RET | TIP;
                }
            }
            Exit::CallInd => line.ret |= TIP | PUSH,
            Exit::JmpInd => line.ret |= TIP,
            Exit::Unbuilt | Exit::Cross | Exit::Endless | Exit::Stop => {}
        }
        let old = &self.compact.lines[index];
        (line.from, line.arrivals) = (old.from, old.arrivals);
        self.compact.lines[index] = line;
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
        // It had no ways: none is counted.
        self.make_line(index + 1);
        true
    }

    /// Counts transfers that a walk logged, `from | to << 32` by names.
    pub(crate) fn count_log(&mut self, log: &[u64]) {
        for &transfer in log {
            let (from, to) = (transfer as u32, (transfer >> 32) as u32);
            let Some(line) = self.compact.lines.get_mut((to / LINE) as usize) else { return };
            if line.arrivals == 0 {
                line.from = from;
            }
            if line.from == from {
                line.arrivals += 1;
                continue;
            }
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
            self.count_targets(named(transfer as u32), named((transfer >> 32) as u32), times);
        }
    }

    /// Moves all counters of the lines to the graph's own.
    pub(crate) fn settle_compact(&mut self) {
        for index in 1..self.compact.lines.len() {
            self.settle_line(index);
        }
        self.compact.steps = 0;
        for slot in 0..self.compact.targets.len() {
            let (transfer, times) = std::mem::take(&mut self.compact.targets[slot]);
            self.count_transfer(transfer, times);
        }
    }

    fn settle_line(&mut self, index: usize) {
        let id = NodeId(index as u32 - 1);
        let line = &mut self.compact.lines[index];
        let counts = std::mem::take(&mut line.count);
        let arrivals = std::mem::take(&mut line.arrivals);
        let (next, moves, from) = (line.next, line.moves, line.from);
        self.count_transfer(u64::from(from) | u64::from(name(id)) << 32, u64::from(arrivals));
        for outcomes in 0..4 {
            let (count, next) = (counts[outcomes], next[outcomes]);
            if count == 0 || next == name(id) {
                continue;
            }
            let way = self.way(id, outcomes, Some((next % LINE, moves[outcomes] == PUSHES)));
            for &(node, exit) in &way.left[..way.len] {
                self.nodes[node.0 as usize].count[exit] += u64::from(count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::FunctionAt;
    use crate::packet::ExecMode;
    use crate::placement::UNPLACED;
    use crate::units::Svma;
    use rustc_hash::FxHashMap;

    /// Transfers from anywhere to anywhere, far more of them than the tables have room for: the tables stay as large as
    /// they are, and no transfer is lost.
    #[test]
    fn any_transfers_are_counted_in_tables_that_do_not_grow() {
        let mut graph = Graph::new();
        for at in 0..1000 {
            graph.push(UNPLACED, ExecMode::Bits64, Svma(at), FunctionAt::default());
        }
        assert!(graph.make_compact());
        let (mut random, mut truth) = (1u64, FxHashMap::default());
        for _ in 0..2000 {
            let log: Vec<u64> = (0..100)
                .map(|_| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let any = |shift: u64| NodeId(((random >> shift) % 1000) as u32 + 1);
                    let (from, to) = (any(20), any(40));
                    *truth.entry((from, to)).or_insert(0) += 1;
                    u64::from(name(from)) | u64::from(name(to)) << 32
                })
                .collect();
            graph.count_log(&log);
        }
        assert_eq!(
            (graph.compact.targets.len(), graph.compact.lines.len()),
            (TARGETS, graph.nodes.len() + 1)
        );
        assert!(truth.len() > 2 * TARGETS);
        graph.settle_compact();
        let mut found = std::mem::take(&mut graph.spill);
        for (id, node) in (0..).map(NodeId).zip(&graph.nodes) {
            for (to, count) in node.succ.into_iter().zip(node.count).filter(|(_, count)| *count > 0) {
                *found.entry((id, to)).or_insert(0) += count;
            }
        }
        assert!(found == truth);
    }
}
