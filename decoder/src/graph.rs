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
//! Nodes are keyed by image and stated address (and by which parts of the image are mapped together, see
//! `placement.rs`): processes and load addresses share them. Their exits are counted in the node itself, and become
//! edges once, at the end ([`Graph::rows`]).
//!
//! *Invariant*: a node's id never changes, and leaves the worker that owns the graph only with a [`SiteTable`].
//! *Invariant*: the graph grows with the code touched, never with the trace.

mod build;
pub(crate) mod compact;
mod effect;
mod info;
mod memo;
mod sites;
pub(crate) mod window;

use crate::code::CodeView;
use crate::image::{AddressSpace, FunctionAt};
use crate::packet::ExecMode;
use crate::placement::{PlacementId, Placements, UNPLACED};
use crate::profile::{CodeAddr, EdgeKind, EdgeRow};
use crate::sink::Site;
use crate::units::{ImageId, Ip, Svma};
use hashbrown::HashTable;
use info::NodeInfo;
use rustc_hash::{FxBuildHasher, FxHashMap};
pub(crate) use sites::SiteTable;
use std::hash::BuildHasher;
use std::sync::Arc;

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
    /// Leads into another image, or another part of this one, by a direct jump or call or straight on: consumes nothing,
    /// and what is there is looked up each time.
    Cross,
    /// A direct call or link that may lead round without end, or nearly so, with nothing on the way that needs the trace:
    /// only an event can end it, which is the careful walker's.
    Endless,
    /// Anything that only the careful walker knows: far transfers, faults, missing code.
    Stop,
}

impl Exit {
    /// True where the node leads on to one other and consumes nothing.
    fn is_free(self) -> bool {
        matches!(self, Self::Call | Self::Link)
    }
}

/// The hot half of a node: half a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(crate) struct Node {
    /// Jcc: not-taken and taken successor. Call, Link: target in `[0]`. Indirect, Ret and Cross: the two targets last
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
    /// [`CROSSES`], [`ASKED`].
    pub flags: u8,
}

/// A jump in the node, or at its end, leads into another function.
const CROSSES: u8 = 1;
/// The node lies in a function that the job asks about.
const ASKED: u8 = 2;

impl Node {
    /// A jump in it, or at its end, leads into another function.
    #[inline]
    pub fn crosses(&self) -> bool {
        self.flags & CROSSES != 0
    }

    /// It lies in a function that the job [asks](Graph::ask) about.
    #[inline]
    pub fn is_asked(&self) -> bool {
        self.flags & ASKED != 0
    }
}

/// A direct transfer folded into a node.
#[derive(Clone, Copy, Debug)]
pub struct FoldedJump {
    /// The image that it is in.
    pub image: ImageId,
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

/// Slots of the runtime address cache: 128 KiB, which stays in the second-level cache.
const IP_CACHE: usize = 1 << 13;

type RowKey = (EdgeKind, Option<CodeAddr>, Option<CodeAddr>);

/// The block graph of one worker.
pub struct Graph {
    pub(crate) nodes: Vec<Node>,
    info: Vec<NodeInfo>,
    jumps: Vec<FoldedJump>,
    /// Nodes by their keys, which their infos hold.
    ids: HashTable<NodeId>,
    /// Of each [`Exit::Cross`]: the transfer, if it is by one, and the address that it leads to, as if it were stated.
    crosses: FxHashMap<NodeId, (Option<EdgeKind>, Svma)>,
    placements: Placements,
    /// Runtime address to node, for one address space and mode at a time.
    ip_cache: Vec<(u64, NodeId)>,
    /// Executions of transfers that the inline counters had no room for.
    spill: FxHashMap<(NodeId, NodeId), u64>,
    /// Transfers that the careful walker saw one at a time.
    single: FxHashMap<RowKey, (u64, u64)>,
    single_instructions: u64,
    /// Where the [`Exit::Cross`]es met so far lead, in the space at hand.
    crossings: FxHashMap<NodeId, NodeId>,
    pub(crate) memo: memo::Memo,
    pub(crate) compact: compact::Compact,
    /// What nodes and jumps mean, as it was told last.
    sites: SiteTable,
    /// The functions that the job asks about.
    asked: Option<Arc<[bool]>>,
    /// Numbers of the spaces met so far, by where they lie in memory: they outlive the graph's work. Windows are of one
    /// space, and are good again when it comes back.
    spaces: FxHashMap<usize, u32>,
    /// The number of the space at hand.
    pub(crate) space: u32,
    /// The mode that the runtime address cache is of.
    mode: ExecMode,
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
            ids: HashTable::new(),
            crosses: FxHashMap::default(),
            placements: Placements::new(),
            ip_cache: vec![(u64::MAX, NOWHERE); IP_CACHE],
            spill: FxHashMap::default(),
            single: FxHashMap::default(),
            single_instructions: 0,
            crossings: FxHashMap::default(),
            memo: memo::Memo::default(),
            compact: compact::Compact::default(),
            sites: SiteTable::default(),
            asked: None,
            spaces: FxHashMap::default(),
            space: 0,
            mode: ExecMode::Bits64,
        };
        let nowhere = graph.push(UNPLACED, ExecMode::Bits64, Svma(0), FunctionAt::default());
        graph.nodes[nowhere.0 as usize].exit = Exit::Stop;
        graph
    }

    /// A graph that is never walked: it stands in where another one is lent out.
    pub(crate) fn stand_in() -> Self {
        let mut graph = Self::new();
        graph.ip_cache = Vec::new();
        graph
    }

    fn push(&mut self, placement: PlacementId, mode: ExecMode, start: Svma, function: FunctionAt) -> NodeId {
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.push(Node {
            succ: [NOWHERE; 2],
            count: [0; 2],
            ret: NOWHERE,
            insns: 0,
            exit: Exit::Unbuilt,
            flags: self.flag(&function),
        });
        self.info.push(NodeInfo::new(placement, mode, start, function));
        id
    }

    /// A job asks about some functions: the flags by function.
    pub(crate) fn ask(&mut self, functions: &Arc<[bool]>) {
        if self.asked.as_ref().is_some_and(|asked| Arc::ptr_eq(asked, functions)) {
            return;
        }
        self.asked = Some(functions.clone());
        for index in 0..self.nodes.len() {
            let flag = self.flag(&self.info[index].function());
            self.nodes[index].flags = self.nodes[index].flags & !ASKED | flag;
        }
    }

    fn flag(&self, function: &FunctionAt) -> u8 {
        let asked = self.asked.as_ref().zip(function.function);
        let is_asked = asked.is_some_and(|(asked, id)| asked.get(id.0 as usize) == Some(&true));
        if is_asked { ASKED } else { 0 }
    }

    /// The node that begins at a stated address of a placement; it may be unbuilt.
    fn node_at(
        &mut self,
        code: &CodeView<'_, '_>,
        placement: PlacementId,
        mode: ExecMode,
        svma: Svma,
    ) -> NodeId {
        let key = (placement, mode, svma);
        let hash = hash(&key);
        if let Some(id) = self.ids.find(hash, |id| self.info[id.0 as usize].key() == key) {
            return *id;
        }
        let function = code.function(self.placements.image(placement), svma);
        let id = self.push(placement, mode, svma, function);
        let info = &self.info;
        self.ids.insert_unique(hash, id, |id| self::hash(&info[id.0 as usize].key()));
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
        let id = self.locate(code, mode, ip).unwrap_or(NOWHERE);
        self.ip_cache[slot] = (ip.0, id);
        id
    }

    fn locate(&mut self, code: &CodeView<'_, '_>, mode: ExecMode, ip: Ip) -> Option<NodeId> {
        let mapping = code.space.find(ip).filter(|_| ip.is_canonical())?;
        // Such code has no addresses above: in it, targets are cut off to 32 bits.
        if mode == ExecMode::Bits32 && mapping.end.0 > 1 << 32 {
            return None;
        }
        let placement = self.placements.of(code.space, mapping);
        let svma = mapping.to_svma(ip);
        self.is_code(code, placement, svma).then(|| self.node_at(code, placement, mode, svma))
    }

    /// True where there is code at a stated address of a placement.
    fn is_code(&self, code: &CodeView<'_, '_>, placement: PlacementId, svma: Svma) -> bool {
        self.placements.part_end(placement, svma).is_some()
            && code.code(self.placements.image(placement), svma).is_some()
    }

    /// What comes runs in `space` and `mode`: forgets where everything lies, unless nothing changed.
    pub(crate) fn enter(&mut self, space: &AddressSpace, mode: ExecMode) {
        if mode != self.mode {
            self.mode = mode;
            self.ip_cache.fill((u64::MAX, NOWHERE));
        }
        let next = self.spaces.len() as u32 + 1;
        let number = *self.spaces.entry(std::ptr::from_ref(space) as usize).or_insert(next);
        if number == self.space {
            return;
        }
        self.space = number;
        self.placements.enter_space(number);
        self.crossings.clear();
        self.ip_cache.fill((u64::MAX, NOWHERE));
    }

    /// The runtime address of a node's start; `None` where the space at hand does not have it.
    pub(crate) fn ip_of(&self, id: NodeId) -> Option<Ip> {
        let info = &self.info[id.0 as usize];
        self.placements.ip(info.placement, info.start)
    }

    /// Where a [`Exit::Cross`] leads in the space at hand; [`NOWHERE`] where no code is, or code that leads on without end.
    #[cold]
    pub(crate) fn cross(&mut self, code: &CodeView<'_, '_>, id: NodeId) -> NodeId {
        if let Some(to) = self.crossings.get(&id) {
            return *to;
        }
        let to = self.find_crossing(code, id).unwrap_or(NOWHERE);
        self.crossings.insert(id, to);
        to
    }

    fn find_crossing(&mut self, code: &CodeView<'_, '_>, id: NodeId) -> Option<NodeId> {
        let NodeInfo { placement, mode, .. } = self.info[id.0 as usize];
        let (_, to) = *self.crosses.get(&id)?;
        let mut ip = self.placements.ip(placement, to)?;
        if mode == ExecMode::Bits32 {
            ip.0 &= u64::from(u32::MAX);
        }
        code.needs_trace_behind(ip, mode).then(|| self.node_at_ip(code, mode, ip))
    }

    /// What transfer a [`Exit::Cross`] is; `None` where the code leads straight on.
    pub(crate) fn crossing_kind(&self, id: NodeId) -> Option<EdgeKind> {
        self.crosses.get(&id)?.0
    }

    /// The image that a node lies in.
    #[inline]
    pub(crate) fn image(&self, info: &NodeInfo) -> ImageId {
        self.placements.image(info.placement)
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    pub(crate) fn info(&self, id: NodeId) -> &NodeInfo {
        &self.info[id.0 as usize]
    }

    /// The direct transfers folded into a node, in order.
    pub(crate) fn jumps(&self, id: NodeId) -> &[FoldedJump] {
        let NodeInfo { first_jump, jumps, .. } = self.info[id.0 as usize];
        &self.jumps[first_jump as usize..][..usize::from(jumps)]
    }

    /// Counts an indirect transfer or a return from `from` to `to`.
    #[inline]
    pub(crate) fn count_target(&mut self, from: NodeId, to: NodeId) {
        self.count_targets(from, to, 1);
    }

    /// As [`Self::count_target`], so many times.
    #[inline]
    fn count_targets(&mut self, from: NodeId, to: NodeId, times: u64) {
        let node = &mut self.nodes[from.0 as usize];
        if node.succ[0] == to {
            node.count[0] += times;
        } else if node.succ[1] == to {
            node.count[1] += times;
        } else {
            self.count_target_slow(from, to, times);
        }
    }

    #[cold]
    #[inline(never)]
    fn count_target_slow(&mut self, from: NodeId, to: NodeId, times: u64) {
        let node = &mut self.nodes[from.0 as usize];
        // A slot counted at 0 is free: an id alone is no claim, since NOWHERE stands in fresh slots.
        if let Some(slot) = (0..2).find(|slot| node.count[*slot] == 0) {
            node.succ[slot] = to;
            node.count[slot] = times;
        } else {
            *self.spill.entry((from, to)).or_insert(0) += times;
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
    pub fn instructions(&mut self) -> u64 {
        self.settle();
        self.settle_compact();
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
        Site { addr: self.start_addr(id), function: self.info(id).function() }
    }

    /// A node's start in the profile's terms.
    pub(crate) fn start_addr(&self, id: NodeId) -> CodeAddr {
        let info = self.info(id);
        self.addr(self.image(info), info.start)
    }

    /// Everything counted, as rows in no order; a row may stand several times.
    pub fn rows(&mut self) -> Vec<EdgeRow> {
        self.settle();
        self.settle_compact();
        let mut rows = Vec::with_capacity(self.nodes.len() * 2);
        let mut leavings: FxHashMap<NodeId, u64> = FxHashMap::default();
        for (&(from, to), &count) in &self.spill {
            *leavings.entry(from).or_insert(0) += count;
            self.push_target_row(&mut rows, from, to, count);
        }
        for index in 1..self.nodes.len() {
            let id = NodeId(index as u32);
            let (node, info) = (self.nodes[index], self.info[index]);
            let image = self.image(&info);
            let left = node.count[0] + node.count[1] + leavings.get(&id).copied().unwrap_or(0);
            if left == 0 {
                continue;
            }
            for jump in self.jumps(id) {
                rows.push(EdgeRow {
                    kind: jump.kind,
                    from: Some(self.addr(image, jump.from)),
                    to: Some(self.addr(image, jump.to)),
                    taken: left,
                    not_taken: 0,
                    mispredicted: 0,
                });
            }
            match node.exit {
                Exit::Jcc => rows.push(EdgeRow {
                    kind: EdgeKind::Jcc,
                    from: Some(self.addr(image, info.last)),
                    to: Some(self.start_addr(node.succ[1])),
                    taken: node.count[1],
                    not_taken: node.count[0],
                    mispredicted: 0,
                }),
                Exit::Call | Exit::CallInd | Exit::JmpInd | Exit::Ret | Exit::Cross => {
                    for slot in 0..2 {
                        if node.count[slot] > 0 {
                            self.push_target_row(&mut rows, id, node.succ[slot], node.count[slot]);
                        }
                    }
                }
                Exit::Link | Exit::Stop | Exit::Endless | Exit::Unbuilt => {}
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
            Exit::Cross => match self.crossing_kind(from) {
                Some(kind) => kind,
                None => return,
            },
            _ => EdgeKind::Ret,
        };
        rows.push(EdgeRow {
            kind,
            from: Some(self.addr(self.image(info), info.last)),
            to: Some(self.start_addr(to)),
            taken: count,
            not_taken: 0,
            mispredicted: 0,
        });
    }
}

fn hash(key: &(PlacementId, ExecMode, Svma)) -> u64 {
    FxBuildHasher.hash_one(key)
}
