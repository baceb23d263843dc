//! Decoding the code of nodes.

use super::{Exit, FoldedJump, Graph, NOWHERE, NodeId};
use crate::code::CodeView;
use crate::insn::{Class, Insn, InsnStream};
use crate::profile::EdgeKind;
use crate::units::Svma;

/// At most this many direct jumps are folded into a node; a longer run goes on in a [`Exit::Link`] successor.
const MAX_FOLDED: usize = 16;
/// At most this many instructions make a node.
const MAX_INSNS: u16 = 4096;

/// At most this many instructions are walked without the trace's help; far below what the careful walker allows
/// itself, so that none of its bounds is met halfway.
const MAX_FREE: u32 = 1 << 16;

/// How a node ends.
struct End {
    exit: Exit,
    succ: [NodeId; 2],
    ret: NodeId,
    cross: (Option<EdgeKind>, Svma),
    leads_on: bool,
}

impl End {
    fn at(exit: Exit) -> Self {
        Self { exit, succ: [NOWHERE; 2], ret: NOWHERE, cross: (None, Svma(0)), leads_on: false }
    }

    fn link(to: NodeId) -> Self {
        Self { succ: [to, NOWHERE], ..Self::at(Exit::Link) }
    }

    fn cross(by: Option<EdgeKind>, to: Svma) -> Self {
        Self { cross: (by, to), leads_on: true, ..Self::at(Exit::Cross) }
    }
}

impl Graph {
    /// Decodes a node's code, and that of all nodes that it leads to without the trace's help. Where that is a circle, or
    /// may be one, or nearly as long as one, none of them is walked by the fast walker: both walkers then count the
    /// same turns before they notice.
    #[cold]
    #[inline(never)]
    pub(crate) fn build(&mut self, code: &CodeView<'_, '_>, id: NodeId) {
        let mut chain = vec![];
        let mut at = id;
        // Instructions from `at` on that need no help.
        let mut free = loop {
            self.build_one(code, at);
            chain.push(at);
            match self.nodes[at.0 as usize].exit {
                Exit::Call | Exit::Link => {}
                // Whether that is a circle can be told only where it is walked.
                Exit::Cross | Exit::Stop if self.info[at.0 as usize].leads_on => break u32::MAX,
                _ => break 0,
            }
            at = self.nodes[at.0 as usize].succ[0];
            match self.nodes[at.0 as usize].exit {
                Exit::Unbuilt => {}
                Exit::Endless => break u32::MAX,
                // Built with a way on, or one of the chain: then it has none yet, and this is a circle.
                _ => break self.info[at.0 as usize].free,
            }
        };
        for id in chain.into_iter().rev() {
            let node = &mut self.nodes[id.0 as usize];
            free = free.saturating_add(u32::from(node.insns));
            if node.exit.is_free() && free > MAX_FREE {
                node.exit = Exit::Endless;
            }
            self.info[id.0 as usize].free = free;
        }
    }

    fn build_one(&mut self, code: &CodeView<'_, '_>, id: NodeId) {
        let info = self.info[id.0 as usize];
        let (image, first_jump) = (self.image(&info), self.jumps.len());
        let mut insns = 0;
        let mut last = info.start;
        let mut at = info.start;
        let end = 'runs: loop {
            let Some(part_end) = self.placements.part_end(info.placement, at) else {
                break End::cross(None, at);
            };
            let (run, mut jump) = (at, None);
            let bytes = code.code(image, at).unwrap_or(&[]);
            for insn in InsnStream::new(bytes, at.0, info.mode) {
                let addr = Svma(insn.addr);
                if addr >= part_end || addr < run {
                    break 'runs End::cross(None, addr);
                }
                if insns == MAX_INSNS {
                    break 'runs End::link(self.node_at(code, info.placement, info.mode, addr));
                }
                insns += 1;
                last = addr;
                match insn.class {
                    Class::Plain | Class::MovCr3 | Class::Ptwrite => {}
                    Class::Jmp { target } => jump = Some((EdgeKind::Jmp, Svma(target))),
                    // A call that pushes nothing.
                    Class::Call { target } if target == insn.next() => {
                        jump = Some((EdgeKind::Call, Svma(target)));
                    }
                    _ => break 'runs self.end(code, id, &insn),
                }
                at = Svma(insn.next());
                if jump.is_some() {
                    break;
                }
            }
            match jump {
                // The code ends here, or is none; perhaps there is other code.
                None => break End::cross(None, at),
                Some((kind, to)) if !self.is_code(code, info.placement, to) => {
                    break End::cross(Some(kind), to);
                }
                Some((kind, to)) => {
                    let function = code.function(image, to);
                    // A call to the next instruction calls nothing.
                    let crosses =
                        kind == EdgeKind::Jmp && function.function != code.function(image, last).function;
                    self.jumps.push(FoldedJump { image, from: last, to, kind, insns, function, crosses });
                    if self.jumps.len() - first_jump > MAX_FOLDED {
                        break End::link(self.node_at(code, info.placement, info.mode, to));
                    }
                    at = to;
                }
            }
        };
        let last_function = code.function(image, last);
        let leaves = |to: &NodeId| self.info[to.0 as usize].function().function != last_function.function;
        let crosses = end.exit == Exit::Jcc && end.succ.iter().any(leaves)
            || self.jumps[first_jump..].iter().any(|jump| jump.crosses);
        let jumps = (self.jumps.len() - first_jump) as u8;
        if end.exit == Exit::Cross {
            self.crosses.insert(id, end.cross);
        }
        let info = &mut self.info[id.0 as usize];
        info.set_last(last, last_function);
        (info.first_jump, info.jumps) = (first_jump as u32, jumps);
        info.leads_on = end.leads_on;
        let node = &mut self.nodes[id.0 as usize];
        node.exit = end.exit;
        node.succ = end.succ;
        node.ret = end.ret;
        node.insns = insns;
        node.flags |= if crosses { super::CROSSES } else { 0 };
    }

    /// The end of a node at an instruction that is more than a jump. What leads out of the placement and is no plain
    /// call is left to the careful walker.
    fn end(&mut self, code: &CodeView<'_, '_>, id: NodeId, insn: &Insn) -> End {
        let info = self.info[id.0 as usize];
        let mut node_at = |svma: u64| {
            let is_code = self.is_code(code, info.placement, Svma(svma));
            is_code.then(|| self.node_at(code, info.placement, info.mode, Svma(svma)))
        };
        let exit = match insn.class {
            Class::Jcc { target } => {
                return match (node_at(insn.next()), node_at(target)) {
                    (Some(next), Some(target)) => End { succ: [next, target], ..End::at(Exit::Jcc) },
                    _ => End::at(Exit::Stop),
                };
            }
            Class::Call { target } => {
                return match (node_at(insn.next()), node_at(target)) {
                    (Some(ret), Some(to)) => End { succ: [to, NOWHERE], ret, ..End::at(Exit::Call) },
                    (Some(ret), None) => End { ret, ..End::cross(Some(EdgeKind::Call), Svma(target)) },
                    (None, _) => End { leads_on: true, ..End::at(Exit::Stop) },
                };
            }
            Class::CallInd => {
                return match node_at(insn.next()) {
                    Some(ret) => End { ret, ..End::at(Exit::CallInd) },
                    None => End::at(Exit::Stop),
                };
            }
            Class::JmpInd => Exit::JmpInd,
            Class::Ret => Exit::Ret,
            _ => Exit::Stop,
        };
        End::at(exit)
    }
}
