//! Stretches of the walk that are walked again: where a program comes past a place often, the ways on from there are
//! drawn a few times only, and then one of those is taken each time.
//!
//! A walk decides branch by branch, each of which depends on the one before; that costs more than the packets are worth.
//! A stretch has its decisions behind it: what it sends between two timing packets is known beforehand, and its branches
//! are counted by counting it. It begins at one node, never returns from a call that was made before it, and has no more
//! branches that go by chance than its drawn ways can stand for, so that chance stays what it was asked to be.

use super::blocks::End;
use super::program::Program;
use std::ops::Range;

/// Ways that are drawn from one node.
const WAYS: u32 = 8;
/// Branches by chance in a stretch: as many as [`WAYS`] ways can tell apart.
const CHANCES: u32 = WAYS.ilog2();
/// Blocks of a stretch, at most; from the lower number on it ends where another may begin.
const BLOCKS: [usize; 2] = [24, 64];
/// Outcomes up to a target: with those that wait already they are eight packets at most ([`crate::pt`]).
const OUTCOMES: u32 = 43;
/// Indirect targets of a stretch.
const TARGETS: usize = 8;
/// Core cycles of a stretch.
const CYCLES: u16 = 4000;
/// Places where stretches begin, for each worker: what lies beyond is walked block by block.
const STARTS: usize = 1 << 15;

/// Outcomes and the indirect target behind them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Part {
    /// The outcomes, the oldest in the highest place.
    pub bits: u64,
    /// The target; 0 at the end of the stretch.
    pub target: u64,
    /// How many outcomes.
    pub count: u32,
}

/// A block in a stretch.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The node, doubled; odd: its branch is taken.
    branch: u32,
    /// Core cycles from the stretch's begin to the branch.
    pub cycles: u16,
    /// Outcomes before the branch, in its part of the stretch.
    pub outcomes: u8,
    /// The part.
    pub part: u8,
}

/// A way from one node to another; in one cache line.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
pub struct Stretch {
    /// The outcomes at its end.
    pub last: Part,
    /// How often it was walked.
    pub uses: u64,
    /// The node behind it; of a stretch that [returns](Self::returns), the node of the return.
    pub end: u32,
    /// Where its blocks, parts and open calls begin in [`Stretches`].
    first: [u32; 3],
    /// Core cycles.
    pub cycles: u16,
    /// Instructions.
    pub insns: u16,
    /// Its blocks, its parts but the last, and its calls that are open at the end.
    count: [u8; 3],
    /// Bytes of trace that it takes at most, in short TNTs without CYC.
    pub bytes: u8,
    /// Returns in it, of calls in it.
    pub inner_returns: u8,
    /// Most calls that are open at a time.
    pub deepest: u8,
    /// It ends with a return to where its function was called.
    pub returns: bool,
    /// It stays in one function.
    pub is_flat: bool,
}

impl Stretch {
    /// How many blocks it has.
    pub fn blocks(&self) -> u32 {
        u32::from(self.count[0])
    }

    fn range(&self, of: usize) -> Range<usize> {
        let first = self.first[of] as usize;
        first..first + usize::from(self.count[of])
    }
}

/// What a worker remembers.
#[derive(Debug)]
pub struct Stretches {
    /// For each node its group of [`WAYS`], times 16, and how many of them are drawn; by whether the walk goes home.
    starts: [Vec<u32>; 2],
    ways: Vec<Stretch>,
    steps: Vec<Step>,
    parts: Vec<Part>,
    /// Nodes that open calls return to.
    calls: Vec<u32>,
    /// Calls that are open in the stretch that is being drawn.
    open: Vec<u32>,
}

impl Stretches {
    /// Nothing yet.
    pub fn new(program: &Program) -> Self {
        let none = vec![0; program.nodes.len()];
        Self {
            starts: [none.clone(), none],
            ways: Vec::new(),
            steps: Vec::new(),
            parts: Vec::new(),
            calls: Vec::new(),
            open: Vec::new(),
        }
    }

    /// The way that `chance`, of which the high bits count, draws from a node; `draw` decides a block's branch where it is
    /// a new one: gives whether it is taken, and the node that follows. `None`: to be walked block by block.
    #[inline]
    pub fn choose(
        &mut self,
        program: &Program,
        from: u32,
        goes_home: bool,
        chance: u64,
        draw: impl FnMut(u32) -> (bool, u32),
    ) -> Option<&mut Stretch> {
        let start = self.starts[usize::from(goes_home)][from as usize];
        // One way leads home.
        let way = if goes_home { 0 } else { (chance >> (64 - WAYS.ilog2())) as u32 };
        if way < start % 16 {
            return Some(&mut self.ways[(start / 16 * WAYS + way) as usize]);
        }
        self.draw(program, from, goes_home, draw)
    }

    /// Its parts but the last, each with a target.
    #[inline]
    pub fn parts(&self, stretch: &Stretch) -> &[Part] {
        &self.parts[stretch.range(1)]
    }

    /// Where its open calls return to.
    #[inline]
    pub fn calls(&self, stretch: &Stretch) -> &[u32] {
        &self.calls[stretch.range(2)]
    }

    /// Its blocks.
    #[inline]
    pub fn steps(&self, stretch: &Stretch) -> &[Step] {
        &self.steps[stretch.range(0)]
    }

    /// Its blocks: the node, whether its branch is taken, and the node that follows, which of the last is `end`.
    #[inline]
    pub fn branches(&self, stretch: &Stretch, end: u32) -> impl Iterator<Item = (u32, bool, u32)> + '_ {
        let steps = self.steps(stretch);
        let next = steps[1..].iter().map(|step| step.branch >> 1).chain([end]);
        steps.iter().zip(next).map(|(step, next)| (step.branch >> 1, step.branch & 1 != 0, next))
    }

    /// All that were walked.
    pub fn walked(&self) -> impl Iterator<Item = &Stretch> {
        self.ways.iter().filter(|way| way.uses > 0)
    }

    #[cold]
    fn draw(
        &mut self,
        program: &Program,
        from: u32,
        goes_home: bool,
        mut draw: impl FnMut(u32) -> (bool, u32),
    ) -> Option<&mut Stretch> {
        let start = &mut self.starts[usize::from(goes_home)][from as usize];
        if *start == 0 && self.ways.len() >= STARTS * WAYS as usize {
            return None;
        }
        let first = [self.steps.len(), self.parts.len(), self.calls.len()];
        let mut way = Stretch { first: first.map(|len| len as u32), is_flat: true, ..Stretch::default() };
        let (mut at, mut chances, mut part, mut outcomes) = (from, 0, Part::default(), 0);
        self.open.clear();
        loop {
            let node = &program.nodes[at as usize];
            let (blocks, parts) = (self.steps.len() - first[0], self.parts.len() - first[1]);
            // Any node may be a place to begin, so long as it is one for all who come past it.
            let is_start = at.wrapping_mul(0x9e37_79b9) >> 30 == 0;
            let is_over = blocks >= BLOCKS[1]
                || blocks >= BLOCKS[0] && is_start
                || part.count >= OUTCOMES
                || way.cycles + node.cycles > CYCLES
                || way.insns.checked_add(node.insns).is_none()
                || parts >= TARGETS
                || node.end == End::Dead;
            if is_over {
                break;
            }
            if !goes_home {
                chances += u32::from(node.goes_by_chance());
                if node.is_long_loop || chances > CHANCES {
                    break;
                }
            }
            way.returns = node.end == End::Ret && self.open.is_empty();
            let (taken, next) = match (node.end, self.open.last()) {
                (End::Ret, Some(call)) => (true, *call),
                (End::Ret, None) => (true, at),
                _ => draw(at),
            };
            way.cycles += node.cycles;
            way.insns += node.insns;
            self.steps.push(Step {
                branch: at << 1 | u32::from(taken),
                cycles: way.cycles,
                outcomes: part.count as u8,
                part: parts as u8,
            });
            at = next;
            if way.returns {
                break;
            }
            if matches!(node.end, End::Jcc | End::Ret) {
                (part.bits, part.count) = (part.bits << 1 | u64::from(taken), part.count + 1);
                outcomes += 1;
            }
            if matches!(node.end, End::JmpInd | End::CallInd) {
                self.parts.push(Part { target: program.nodes[next as usize].start, ..part });
                part = Part::default();
            }
            if node.end == End::Ret {
                self.open.pop();
                way.inner_returns += 1;
            } else if node.calls() {
                self.open.push(node.fall);
                way.deepest = way.deepest.max(self.open.len() as u8);
                way.is_flat = false;
            }
        }
        if self.steps.len() == first[0] {
            return None;
        }
        (way.end, way.last) = (at, part);
        self.calls.extend(&self.open);
        let ends = [self.steps.len(), self.parts.len(), self.calls.len()];
        way.count = std::array::from_fn(|of| (ends[of] - first[of]) as u8);
        // A target takes 7 bytes and cuts a TNT short, as an MTC does: not more than one in 100 cycles.
        let bytes =
            8 * usize::from(way.count[1]) + outcomes / 6 + 3 * (usize::from(way.cycles) / 100 + 1) + 2;
        way.bytes = bytes as u8;
        if *start == 0 {
            *start = self.ways.len() as u32 / WAYS * 16;
            self.ways.resize(self.ways.len() + WAYS as usize, Stretch::default());
        }
        let number = (*start / 16 * WAYS + *start % 16) as usize;
        *start += 1;
        self.ways[number] = way;
        Some(&mut self.ways[number])
    }
}
