//! The block graph: code cut at the points where a walk must look at the trace.
//!
//! A node is the straight run from one address to the next instruction that consumes a TNT bit or a TIP, or is a
//! direct call; direct jumps on the way are folded into it. So a walk takes one step per consumed bit:
//!
//! ```text
//!     entry ──► insn insn jmp ─► insn insn jcc ──0──► node
//!               └───── one node ────────────┘ └─1──► node
//! ```
//!
//! Nodes are keyed by image and stated address: processes and load addresses share them. Their exits are counted
//! in the node itself, and become edges once, at the end ([`Graph::rows`]).
//!
//! *Invariant*: a node's id never changes and never leaves the worker that owns the graph.
//! *Invariant*: the graph grows with the code touched, never with the trace.

use crate::code::CodeView;
use crate::image::FunctionAt;
use crate::insn::{Class, InsnStream};
use crate::packet::ExecMode;
use crate::profile::{CodeAddr, EdgeKind, EdgeRow};
use crate::sink::Site;
use crate::units::{ImageId, Ip, Svma};
use rustc_hash::FxHashMap;

/// A node of one graph.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NodeId(pub(crate) u32);

/// The node that stands for "nowhere": a dead end without code.
pub(crate) const NOWHERE: NodeId = NodeId(0);

/// What ends a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// Referred to, but not decoded yet.
    Unbuilt,
    /// Conditional branch: consumes a TNT bit.
    Jcc,
    /// Direct call: consumes nothing, pushes a return address.
    Call,
    /// Indirect call: consumes a TIP, pushes a return address.
    CallInd,
    /// Indirect jump: consumes a TIP.
    JmpInd,
    /// Near return: consumes a TNT bit of 1 or a TIP, pops a return address.
    Ret,
    /// Too long a run of direct jumps: goes on in another node and consumes nothing.
    Link,
    /// Anything that only the careful walker knows: far transfers, faults, missing code.
    Stop,
}

/// The hot half of a node: half a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(crate) struct Node {
    /// Jcc: not-taken and taken successor. Call, Link: target in `[0]`. Indirect and Ret: the two targets last
    /// seen most, counted inline; others go to the spill map.
    pub succ: [NodeId; 2],
    /// How often the node was left towards `succ`.
    pub count: [u64; 2],
    /// Calls: the node at the return address.
    pub ret: NodeId,
    /// Instructions up to and with the last.
    pub insns: u16,
    /// What ends it.
    pub exit: Exit,
    /// A jump in it, or at its end, leads into another function.
    pub crosses: bool,
}

/// A direct transfer folded into a node.
#[derive(Clone, Copy, Debug)]
pub struct FoldedJump {
    /// Address of the instruction (stated).
    pub from: Svma,
    /// Its target (stated).
    pub to: Svma,
    /// Jmp, or Call for a call to the next instruction, which pushes nothing.
    pub kind: EdgeKind,
    /// Instructions from the node's start up to and with this one.
    pub insns: u16,
    /// The function at the target.
    pub function: FunctionAt,
    /// The target lies in another function than the instruction.
    pub crosses: bool,
}

/// The cold half of a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeInfo {
    pub image: ImageId,
    pub mode: ExecMode,
    pub start: Svma,
    /// The function at `start`.
    pub function: FunctionAt,
    /// The last instruction; `start` where there is none.
    pub last: Svma,
    /// The function at `last`.
    pub last_function: FunctionAt,
    jumps: (u32, u32),
}

/// At most this many direct jumps are folded into a node; a longer run goes on in a [`Exit::Link`] successor.
const MAX_FOLDED: u32 = 16;
/// At most this many instructions make a node.
const MAX_INSNS: u16 = 4096;
/// Slots of the runtime address cache: 128 KiB, which stays in the second-level cache.
const IP_CACHE: usize = 1 << 13;

type RowKey = (EdgeKind, Option<CodeAddr>, Option<CodeAddr>);

/// The block graph of one worker.
pub struct Graph {
    pub(crate) nodes: Vec<Node>,
    info: Vec<NodeInfo>,
    jumps: Vec<FoldedJump>,
    ids: FxHashMap<(ImageId, ExecMode, Svma), NodeId>,
    /// Runtime address to node, for one address space and mode at a time.
    ip_cache: Vec<(u64, NodeId)>,
    /// Executions of transfers that the inline counters had no room for.
    spill: FxHashMap<(NodeId, NodeId), u64>,
    /// Transfers that the careful walker saw one at a time.
    single: FxHashMap<RowKey, (u64, u64)>,
    single_instructions: u64,
}

impl Default for Graph {
    fn default() -> Self {
        Self::new()
    }
}

impl Graph {
    /// A graph without nodes.
    pub fn new() -> Self {
        let mut graph = Self {
            nodes: Vec::new(),
            info: Vec::new(),
            jumps: Vec::new(),
            ids: FxHashMap::default(),
            ip_cache: vec![(u64::MAX, NOWHERE); IP_CACHE],
            spill: FxHashMap::default(),
            single: FxHashMap::default(),
            single_instructions: 0,
        };
        let nowhere = graph.push(ImageId(u32::MAX), ExecMode::Bits64, Svma(0), FunctionAt::default());
        graph.nodes[nowhere.0 as usize].exit = Exit::Stop;
        graph
    }

    fn push(&mut self, image: ImageId, mode: ExecMode, start: Svma, function: FunctionAt) -> NodeId {
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.push(Node {
            succ: [NOWHERE; 2],
            count: [0; 2],
            ret: NOWHERE,
            insns: 0,
            exit: Exit::Unbuilt,
            crosses: false,
        });
        self.info.push(NodeInfo {
            image,
            mode,
            start,
            function,
            last: start,
            last_function: function,
            jumps: (0, 0),
        });
        id
    }

    /// The node that begins at a stated address; it may be unbuilt.
    fn node_at(&mut self, code: &CodeView<'_, '_>, image: ImageId, mode: ExecMode, svma: Svma) -> NodeId {
        if let Some(id) = self.ids.get(&(image, mode, svma)) {
            return *id;
        }
        let id = self.push(image, mode, svma, code.function(image, svma));
        self.ids.insert((image, mode, svma), id);
        id
    }

    /// The node that begins at a runtime address; [`NOWHERE`] where nothing is mapped.
    #[inline]
    pub(crate) fn node_at_ip(&mut self, code: &CodeView<'_, '_>, mode: ExecMode, ip: Ip) -> NodeId {
        let slot = (ip.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - IP_CACHE.trailing_zeros())) as usize;
        let (cached, id) = self.ip_cache[slot];
        if cached == ip.0 {
            return id;
        }
        self.node_at_ip_slow(code, mode, ip, slot)
    }

    #[cold]
    #[inline(never)]
    fn node_at_ip_slow(&mut self, code: &CodeView<'_, '_>, mode: ExecMode, ip: Ip, slot: usize) -> NodeId {
        let id = match code.locate(ip) {
            Some((image, svma)) => self.node_at(code, image, mode, svma),
            None => NOWHERE,
        };
        self.ip_cache[slot] = (ip.0, id);
        id
    }

    /// Forgets every runtime address: the address space or the mode changed.
    pub(crate) fn forget_ips(&mut self) {
        self.ip_cache.fill((u64::MAX, NOWHERE));
    }

    /// The runtime address of a node's start; `None` where the space does not map it.
    pub(crate) fn ip_of(&self, code: &CodeView<'_, '_>, id: NodeId) -> Option<Ip> {
        let info = &self.info[id.0 as usize];
        code.space.avma(info.image, info.start)
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    pub(crate) fn info(&self, id: NodeId) -> &NodeInfo {
        &self.info[id.0 as usize]
    }

    /// The direct transfers folded into a node, in order.
    pub(crate) fn jumps(&self, id: NodeId) -> &[FoldedJump] {
        let (from, to) = self.info[id.0 as usize].jumps;
        &self.jumps[from as usize..to as usize]
    }

    /// Decodes a node's code.
    #[cold]
    #[inline(never)]
    pub(crate) fn build(&mut self, code: &CodeView<'_, '_>, id: NodeId) {
        let NodeInfo { image, mode, start, .. } = self.info[id.0 as usize];
        let first_jump = self.jumps.len() as u32;
        let mut insns = 0u16;
        let mut last = start;
        let mut exit = Exit::Stop;
        let mut succ = [NOWHERE; 2];
        let mut ret = NOWHERE;
        let mut at = start;
        'runs: while let Some(bytes) = code.code(image, at) {
            let mut target = None;
            for insn in InsnStream::new(bytes, at.0, mode) {
                if insns == MAX_INSNS {
                    exit = Exit::Link;
                    succ[0] = self.node_at(code, image, mode, Svma(insn.addr));
                    break 'runs;
                }
                insns += 1;
                last = Svma(insn.addr);
                match insn.class {
                    Class::Plain | Class::MovCr3 | Class::Ptwrite => continue,
                    Class::Jmp { target: to } => target = Some((EdgeKind::Jmp, Svma(to))),
                    Class::Call { target: to } if to == insn.next() => {
                        target = Some((EdgeKind::Call, Svma(to)));
                    }
                    Class::Jcc { target: to } => {
                        exit = Exit::Jcc;
                        succ = [
                            self.node_at(code, image, mode, Svma(insn.next())),
                            self.node_at(code, image, mode, Svma(to)),
                        ];
                    }
                    Class::Call { target: to } => {
                        exit = Exit::Call;
                        succ[0] = self.node_at(code, image, mode, Svma(to));
                        ret = self.node_at(code, image, mode, Svma(insn.next()));
                    }
                    Class::CallInd => {
                        exit = Exit::CallInd;
                        ret = self.node_at(code, image, mode, Svma(insn.next()));
                    }
                    Class::JmpInd => exit = Exit::JmpInd,
                    Class::Ret => exit = Exit::Ret,
                    Class::Syscall | Class::Far | Class::Int | Class::Fault => exit = Exit::Stop,
                }
                if let Some((kind, to)) = target {
                    let function = code.function(image, to);
                    let crosses = function.function != code.function(image, last).function;
                    self.jumps.push(FoldedJump { from: last, to, kind, insns, function, crosses });
                }
                break;
            }
            match target {
                Some((_, to)) if self.jumps.len() as u32 - first_jump < MAX_FOLDED => at = to,
                Some((_, to)) => {
                    exit = Exit::Link;
                    succ[0] = self.node_at(code, image, mode, to);
                    break 'runs;
                }
                None => break 'runs,
            }
        }
        let last_function = code.function(image, last);
        let leaves = |to: NodeId| self.info[to.0 as usize].function.function != last_function.function;
        let crosses = exit == Exit::Jcc && succ.into_iter().any(leaves)
            || self.jumps[first_jump as usize..].iter().any(|jump| jump.crosses);
        let info = &mut self.info[id.0 as usize];
        info.last = last;
        info.last_function = last_function;
        info.jumps = (first_jump, self.jumps.len() as u32);
        let node = &mut self.nodes[id.0 as usize];
        node.exit = exit;
        node.succ = succ;
        node.ret = ret;
        node.insns = insns;
        node.crosses = crosses;
    }

    /// Counts an indirect transfer or a return from `from` to `to`.
    #[inline]
    pub(crate) fn count_target(&mut self, from: NodeId, to: NodeId) {
        let node = &mut self.nodes[from.0 as usize];
        if node.succ[0] == to {
            node.count[0] += 1;
        } else if node.succ[1] == to {
            node.count[1] += 1;
        } else {
            self.count_target_slow(from, to);
        }
    }

    #[cold]
    #[inline(never)]
    fn count_target_slow(&mut self, from: NodeId, to: NodeId) {
        let node = &mut self.nodes[from.0 as usize];
        // A slot counted at 0 is free: an id alone is no claim, since NOWHERE stands in fresh slots.
        if let Some(slot) = (0..2).find(|slot| node.count[*slot] == 0) {
            node.succ[slot] = to;
            node.count[slot] = 1;
        } else {
            *self.spill.entry((from, to)).or_insert(0) += 1;
        }
    }

    /// Counts one transfer that the careful walker saw.
    pub(crate) fn count_single(
        &mut self,
        kind: EdgeKind,
        from: Option<CodeAddr>,
        to: Option<CodeAddr>,
        taken: bool,
    ) {
        let counts = self.single.entry((kind, from, to)).or_insert((0, 0));
        if taken {
            counts.0 += 1;
        } else {
            counts.1 += 1;
        }
    }

    /// Counts one instruction that the careful walker executed.
    #[inline]
    pub(crate) fn count_single_instruction(&mut self) {
        self.single_instructions += 1;
    }

    /// Instructions executed.
    pub fn instructions(&self) -> u64 {
        let left = |node: &Node| (node.count[0] + node.count[1]) * u64::from(node.insns);
        let spilled =
            self.spill.iter().map(|(&(from, _), count)| count * u64::from(self.nodes[from.0 as usize].insns));
        self.nodes.iter().map(left).sum::<u64>() + spilled.sum::<u64>() + self.single_instructions
    }

    fn addr(&self, image: ImageId, svma: Svma) -> CodeAddr {
        CodeAddr { image: Some(image), addr: svma.0 }
    }

    /// A node's start and its function.
    pub(crate) fn site(&self, id: NodeId) -> Site {
        Site { addr: self.start_addr(id), function: self.info(id).function }
    }

    /// A node's start in the profile's terms.
    pub(crate) fn start_addr(&self, id: NodeId) -> CodeAddr {
        let info = self.info(id);
        self.addr(info.image, info.start)
    }

    /// Everything counted, as rows in no order; a row may stand several times.
    pub fn rows(&self) -> Vec<EdgeRow> {
        let mut rows = Vec::with_capacity(self.nodes.len() * 2);
        let mut leavings: FxHashMap<NodeId, u64> = FxHashMap::default();
        for (&(from, to), &count) in &self.spill {
            *leavings.entry(from).or_insert(0) += count;
            self.push_target_row(&mut rows, from, to, count);
        }
        for index in 1..self.nodes.len() {
            let id = NodeId(index as u32);
            let (node, info) = (self.nodes[index], self.info[index]);
            let left = node.count[0] + node.count[1] + leavings.get(&id).copied().unwrap_or(0);
            if left == 0 {
                continue;
            }
            for jump in self.jumps(id) {
                rows.push(EdgeRow {
                    kind: jump.kind,
                    from: Some(self.addr(info.image, jump.from)),
                    to: Some(self.addr(info.image, jump.to)),
                    taken: left,
                    not_taken: 0,
                    mispredicted: 0,
                });
            }
            match node.exit {
                Exit::Jcc => rows.push(EdgeRow {
                    kind: EdgeKind::Jcc,
                    from: Some(self.addr(info.image, info.last)),
                    to: Some(self.start_addr(node.succ[1])),
                    taken: node.count[1],
                    not_taken: node.count[0],
                    mispredicted: 0,
                }),
                Exit::Call | Exit::CallInd | Exit::JmpInd | Exit::Ret => {
                    for slot in 0..2 {
                        if node.count[slot] > 0 {
                            self.push_target_row(&mut rows, id, node.succ[slot], node.count[slot]);
                        }
                    }
                }
                Exit::Link | Exit::Stop | Exit::Unbuilt => {}
            }
        }
        for (&(kind, from, to), &(taken, not_taken)) in &self.single {
            rows.push(EdgeRow { kind, from, to, taken, not_taken, mispredicted: 0 });
        }
        rows
    }

    fn push_target_row(&self, rows: &mut Vec<EdgeRow>, from: NodeId, to: NodeId, count: u64) {
        let info = self.info(from);
        let kind = match self.nodes[from.0 as usize].exit {
            Exit::Call => EdgeKind::Call,
            Exit::CallInd => EdgeKind::CallInd,
            Exit::JmpInd => EdgeKind::JmpInd,
            _ => EdgeKind::Ret,
        };
        rows.push(EdgeRow {
            kind,
            from: Some(self.addr(info.image, info.last)),
            to: Some(self.start_addr(to)),
            taken: count,
            not_taken: 0,
            mispredicted: 0,
        });
    }
}
