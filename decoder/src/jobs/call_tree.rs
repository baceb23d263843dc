//! What each call stack cost: a tree of frames, with the calls, instructions and time of each.
//!
//! Where time is not traced it is counted in instructions, as everywhere.

use super::calls::{FrameName, FrameSink};
use crate::ledger::LossReason;
use crate::units::Ns;
use rustc_hash::FxHashMap;
use std::convert::Infallible;

/// So many frames of a stack are told apart; what is deeper counts for the deepest of them.
pub const DEEPEST: usize = 1024;

/// So many different stacks are told apart; what is in none of them counts for the frame that called it. A bound on memory.
pub const MOST_NODES: usize = 1 << 22;

/// A frame in the tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CallNode {
    /// Index of the frame below; of a root its own.
    pub parent: u32,
    /// What it is; `None` for a root, which is one stack's, by index.
    pub name: Option<FrameName>,
    /// How often it was called on this stack.
    pub calls: u64,
    /// Instructions of its own.
    pub instructions: u64,
    /// Nanoseconds of its own.
    pub ns: u64,
}

/// Where a stack is.
#[derive(Clone, Copy, Debug, Default)]
struct At {
    node: u32,
    depth: usize,
    /// Open frames above the node that have none of their own.
    above: usize,
    instructions: u64,
    since: Option<Ns>,
}

/// Sums the frames of all stacks.
#[derive(Debug)]
pub struct CallTree {
    nodes: Vec<CallNode>,
    children: FxHashMap<(u32, FrameName), u32>,
    stacks: Vec<At>,
    most: usize,
}

impl CallTree {
    /// For so many stacks; the roots are the first nodes.
    pub fn new(stacks: usize) -> Self {
        Self::with_limit(stacks, MOST_NODES)
    }

    fn with_limit(stacks: usize, most: usize) -> Self {
        let root = |index| CallNode { parent: index, name: None, calls: 0, instructions: 0, ns: 0 };
        let at = |node| At { node, ..At::default() };
        Self {
            nodes: (0..stacks as u32).map(root).collect(),
            children: FxHashMap::default(),
            stacks: (0..stacks as u32).map(at).collect(),
            most,
        }
    }

    /// The frames; one comes behind that below it.
    pub fn nodes(&self) -> &[CallNode] {
        &self.nodes
    }

    /// Time up to now is the open frame's.
    fn pass(&mut self, stack: usize, now: Ns) {
        let at = &mut self.stacks[stack];
        let passed = at.since.map_or(0, |since| now.0.saturating_sub(since.0));
        at.since = Some(now);
        self.nodes[at.node as usize].ns += passed;
    }
}

impl FrameSink for CallTree {
    type Error = Infallible;

    fn open(&mut self, stack: usize, at: Ns, name: FrameName, inferred: bool) -> Result<(), Infallible> {
        self.pass(stack, at);
        let here = &mut self.stacks[stack];
        let key = (here.node, name);
        let known = self.children.get(&key).copied();
        let node = match known {
            _ if here.above > 0 || here.depth >= DEEPEST => None,
            None if self.nodes.len() < self.most => {
                let node = self.nodes.len() as u32;
                self.nodes.push(CallNode {
                    parent: here.node,
                    name: Some(name),
                    calls: 0,
                    instructions: 0,
                    ns: 0,
                });
                self.children.insert(key, node);
                Some(node)
            }
            known => known,
        };
        match node {
            Some(node) => {
                (here.node, here.depth) = (node, here.depth + 1);
                self.nodes[node as usize].calls += u64::from(!inferred);
            }
            None => here.above += 1,
        }
        Ok(())
    }

    fn close(&mut self, stack: usize, at: Ns) -> Result<(), Infallible> {
        self.pass(stack, at);
        let here = &mut self.stacks[stack];
        match here.above.checked_sub(1) {
            Some(above) => here.above = above,
            None => {
                here.node = self.nodes[here.node as usize].parent;
                here.depth = here.depth.saturating_sub(1);
            }
        }
        Ok(())
    }

    fn executed(&mut self, stack: usize, instructions: u64) {
        let here = &mut self.stacks[stack];
        let more = instructions.saturating_sub(here.instructions);
        here.instructions = instructions;
        self.nodes[here.node as usize].instructions += more;
    }

    fn gap(&mut self, stack: usize, _: Ns, to: Ns, _: LossReason) -> Result<(), Infallible> {
        // Nobody's time.
        self.stacks[stack].since = Some(to);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::FunctionId;

    const A: FrameName = FrameName::Function(FunctionId(1));
    const B: FrameName = FrameName::Function(FunctionId(2));

    /// Name, calls, instructions, time of each frame.
    fn figures(tree: &CallTree) -> Vec<(Option<FrameName>, u64, u64, u64)> {
        tree.nodes().iter().map(|node| (node.name, node.calls, node.instructions, node.ns)).collect()
    }

    #[test]
    fn each_frame_has_its_own() {
        let mut tree = CallTree::new(1);
        tree.executed(0, 3);
        tree.open(0, Ns(100), A, false).expect("infallible");
        for (called, instructions, left) in [(110, 11, 115), (120, 30, 128)] {
            tree.executed(0, instructions);
            tree.open(0, Ns(called), B, false).expect("infallible");
            tree.executed(0, instructions + 7);
            tree.close(0, Ns(left)).expect("infallible");
        }
        tree.close(0, Ns(130)).expect("infallible");
        tree.gap(0, Ns(130), Ns(500), LossReason::Overflow).expect("infallible");
        tree.open(0, Ns(510), B, true).expect("infallible");
        tree.close(0, Ns(517)).expect("infallible");
        // A before the first call and between the two.
        let own = (11 - 3) + (30 - 18);
        let expected =
            [(None, 0, 3, 10), (Some(A), 1, own, 10 + 5 + 2), (Some(B), 2, 14, 5 + 8), (Some(B), 0, 0, 7)];
        assert_eq!(figures(&tree), expected);
    }

    #[test]
    fn what_is_too_much_counts_below() {
        let mut tree = CallTree::with_limit(1, 2);
        for name in [A, B, A] {
            tree.open(0, Ns(0), name, false).expect("infallible");
        }
        tree.executed(0, 5);
        tree.close(0, Ns(2)).expect("infallible");
        tree.close(0, Ns(3)).expect("infallible");
        tree.executed(0, 6);
        tree.close(0, Ns(4)).expect("infallible");
        tree.executed(0, 7);
        assert_eq!(figures(&tree), [(None, 0, 1, 0), (Some(A), 1, 6, 4)]);
        let mut deep = CallTree::new(1);
        (0..2 * DEEPEST as u64).for_each(|at| deep.open(0, Ns(at), A, false).expect("infallible"));
        (0..2 * DEEPEST).for_each(|_| deep.close(0, Ns(9999)).expect("infallible"));
        assert_eq!((deep.nodes().len(), deep.stacks[0].node), (DEEPEST + 1, 0));
    }
}
