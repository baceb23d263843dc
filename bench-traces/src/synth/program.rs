//! Blocks made into a program that never ends and never gets stuck: what follows what, and how each branch behaves.
//!
//! Which way leads back to the function's caller, and at what cost, is known for every block: the least cost over all
//! ways, calls included. What has no such way is never entered. So the walk can always go home: when the call stack is
//! as deep as it may be, or a loop has no end.

use super::blocks::{Block, End};
use super::rng::Rng;
use std::ops::Range;

/// How the program behaves; all of it by seed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Behaviour {
    /// Seed.
    pub seed: u64,
    /// Mean trip count of loops.
    pub trips: u32,
    /// Of 100 branches so many go by chance each time; the others repeat a pattern of their own.
    pub random: u8,
    /// Targets of an indirect branch: the first has half of the executions, the next half of the rest, and so on.
    pub targets: u8,
}

/// A node of the walk: a block with what follows it.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// First address.
    pub start: u64,
    /// The node behind the branch.
    pub fall: u32,
    /// The node of the direct target; of an indirect branch, its first target in [`Program::targets`].
    pub taken: u32,
    /// The branch does the unusual once in so many times; 0: by chance.
    pub period: u32,
    /// By chance: taken in so many of 256 cases. Of an indirect branch, the number of targets.
    pub chance: u16,
    /// Core cycles.
    pub cycles: u16,
    /// Instructions.
    pub insns: u16,
    /// What ends it.
    pub end: End,
    /// What the branch mostly does.
    pub usual: bool,
    /// The way home.
    pub home: bool,
    /// A loop of more rounds than a stretch should hold ([`super::stretch`]).
    pub is_long_loop: bool,
}

impl Node {
    /// A call, but not of the next instruction, which only asks where it is.
    pub fn calls(&self) -> bool {
        self.end == End::CallInd || self.end == End::Call && self.taken != self.fall
    }

    /// What its branch does is decided by chance each time.
    pub fn goes_by_chance(&self) -> bool {
        match self.end {
            End::Jcc => self.period == 0 && !matches!(self.chance, 0 | 256),
            End::JmpInd | End::CallInd => self.period == 0 && self.chance > 1,
            _ => false,
        }
    }
}

/// All code that can be walked, and how it behaves.
#[derive(Debug)]
pub struct Program {
    /// The blocks.
    pub blocks: Vec<Block>,
    /// A node for each block.
    pub nodes: Vec<Node>,
    /// Targets of indirect branches. The first of each branch's leads home at the least cost.
    pub targets: Vec<u32>,
    /// Where functions begin that come back, in a seeded order.
    pub entries: Vec<u32>,
}

/// Rounds of a loop that is long.
const LONG: u32 = 32;
/// No way home.
const NEVER: u32 = 1 << 24;

impl Program {
    /// Makes a program of blocks, which are sorted by address. `None` where no function of them comes back.
    pub fn new(
        blocks: Vec<Block>,
        functions: &[Range<u64>],
        stubs: &[Range<u64>],
        behaviour: Behaviour,
    ) -> Option<Self> {
        let mut rng = Rng::new(behaviour.seed, u64::MAX);
        let node_at = |addr: u64| {
            let found = blocks.binary_search_by_key(&addr, |block| block.start);
            found.map_or(u32::MAX, |index| index as u32)
        };
        let mut nodes: Vec<Node> = blocks
            .iter()
            .map(|block| Node {
                start: block.start,
                fall: if matches!(block.end, End::Jmp | End::JmpInd | End::Ret | End::Dead) {
                    u32::MAX
                } else {
                    node_at(block.next)
                },
                taken: if block.target == 0 { u32::MAX } else { node_at(block.target) },
                period: 0,
                chance: 0,
                cycles: cycles(block),
                insns: block.insns as u16,
                end: block.end,
                usual: false,
                home: false,
                is_long_loop: false,
            })
            .collect();
        let (mut targets, calls_out) = case_targets(&blocks, &mut nodes, stubs, behaviour, &mut rng);
        let costs = costs(&nodes, &targets, &calls_out);
        let cost = |node: u32| costs.get(node as usize).copied().unwrap_or(NEVER);
        let mut entries: Vec<u32> = functions.iter().map(|function| node_at(function.start)).collect();
        entries.retain(|entry| cost(*entry) < NEVER);
        let nearest = entries.iter().copied().min_by_key(|entry| (cost(*entry), *entry))?;
        shuffle(&mut entries, &mut rng);
        for (index, node) in nodes.iter_mut().enumerate() {
            if cost(index as u32) >= NEVER {
                continue;
            }
            match node.end {
                End::Jcc => {
                    behave(node, &blocks[index], [cost(node.fall), cost(node.taken)], behaviour, &mut rng)
                }
                End::JmpInd if !calls_out[index] => {
                    let range = node.taken as usize..node.taken as usize + usize::from(node.chance);
                    let own = &mut targets[range];
                    own.sort_unstable_by_key(|target| (cost(*target), *target));
                    node.period = by_pattern(behaviour, &mut rng);
                    node.chance = own.iter().filter(|target| cost(**target) < NEVER).count() as u16;
                }
                End::JmpInd | End::CallInd => {
                    node.taken = targets.len() as u32;
                    node.chance = u16::from(behaviour.targets.max(1));
                    node.period = by_pattern(behaviour, &mut rng);
                    targets.push(nearest);
                    let pick = |_| entries[rng.below(entries.len() as u64) as usize];
                    targets.extend((1..node.chance).map(pick));
                }
                _ => {}
            }
        }
        Some(Self { blocks, nodes, targets, entries })
    }
}

/// Two instructions a cycle, one cycle a branch, and a stall in some blocks: as the recorder has it.
fn cycles(block: &Block) -> u16 {
    let stall = if block.start.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61 == 0 { 9 } else { 0 };
    (block.insns / 2 + 1 + stall).min(1 << 12) as u16
}

/// Chooses targets for the indirect jumps that may be `switch` statements, and says which indirect branches leave their
/// function instead.
fn case_targets(
    blocks: &[Block],
    nodes: &mut [Node],
    stubs: &[Range<u64>],
    behaviour: Behaviour,
    rng: &mut Rng,
) -> (Vec<u32>, Vec<bool>) {
    let mut targets = Vec::new();
    let mut calls_out = vec![false; blocks.len()];
    let mut from = 0;
    for function in blocks.chunk_by(|a, b| a.function == b.function) {
        let range = from..from + function.len();
        from = range.end;
        let cases: Vec<u32> =
            range.clone().filter(|index| blocks[*index].is_case).map(|index| index as u32).collect();
        for index in range {
            let in_stub = || stubs.iter().any(|stub| stub.contains(&blocks[index].start));
            match nodes[index].end {
                End::CallInd => calls_out[index] = true,
                // A jump of a function without cases is a tail call.
                End::JmpInd if cases.len() < 3 || in_stub() => calls_out[index] = true,
                End::JmpInd => {
                    let count = usize::from(behaviour.targets.max(1)).min(cases.len());
                    nodes[index].taken = targets.len() as u32;
                    nodes[index].chance = count as u16;
                    let pick = |_| cases[rng.below(cases.len() as u64) as usize];
                    targets.extend((0..count).map(pick));
                }
                _ => {}
            }
        }
    }
    (targets, calls_out)
}

/// For each node the least number of branches up to its function's return.
fn costs(nodes: &[Node], targets: &[u32], calls_out: &[bool]) -> Vec<u32> {
    /// What a call costs that may lead anywhere: it leads to a function that returns at once.
    const ANYWHERE: u32 = 3;
    let mut costs = vec![NEVER; nodes.len()];
    loop {
        let mut changed = false;
        // Backwards, for most ways lead on.
        for (index, node) in nodes.iter().enumerate().rev() {
            let cost = |node: u32| costs.get(node as usize).copied().unwrap_or(NEVER);
            let rest = match node.end {
                End::Ret => 0,
                End::Dead => NEVER,
                End::Jmp => cost(node.taken),
                End::Jcc => cost(node.taken).min(cost(node.fall)),
                End::Call => cost(node.taken) + cost(node.fall),
                End::CallInd => ANYWHERE + cost(node.fall),
                End::JmpInd if calls_out[index] => ANYWHERE,
                End::JmpInd => {
                    let own = node.taken as usize..node.taken as usize + usize::from(node.chance);
                    targets[own].iter().map(|target| cost(*target)).min().unwrap_or(NEVER)
                }
            };
            let now = (rest + 1).min(NEVER);
            if now < costs[index] {
                costs[index] = now;
                changed = true;
            }
        }
        if !changed {
            return costs;
        }
    }
}

/// How a conditional branch behaves; `costs` of falling through and of going to its target.
fn behave(node: &mut Node, block: &Block, costs: [u32; 2], behaviour: Behaviour, rng: &mut Rng) {
    let [fall, taken] = costs;
    // The recorder and real traces agree with decoders on this only where such a branch falls through.
    if taken >= NEVER || block.target == block.next {
        (node.home, node.chance) = (false, 0);
        return;
    }
    if fall >= NEVER {
        (node.home, node.chance) = (true, 256);
        return;
    }
    node.home = taken < fall;
    let by_chance = rng.below(100) < u64::from(behaviour.random);
    if block.target <= block.last {
        // A loop: its trip counts spread around the mean.
        let trips = 1 + rng.below(2 * u64::from(behaviour.trips.max(1))) as u32;
        (node.usual, node.period) = (true, trips);
        node.is_long_loop = trips > LONG;
        if by_chance {
            (node.period, node.chance) = (0, 256 - (256 / trips.max(2)) as u16);
        }
    } else if by_chance {
        node.chance = 16 + rng.below(225) as u16;
    } else {
        (node.usual, node.period) = (rng.chance(96), 2 << rng.below(8));
    }
}

/// Whether an indirect branch repeats a pattern: 1, or 0.
fn by_pattern(behaviour: Behaviour, rng: &mut Rng) -> u32 {
    u32::from(rng.below(100) >= u64::from(behaviour.random))
}

fn shuffle(values: &mut [u32], rng: &mut Rng) {
    for last in (1..values.len()).rev() {
        values.swap(last, rng.below(last as u64 + 1) as usize);
    }
}
