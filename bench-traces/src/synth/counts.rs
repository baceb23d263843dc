//! What was walked, counted; the walk's packets are not asked.

use super::blocks::{Block, End};
use super::program::Program;
use super::stretch::Stretches;
use crate::truth::Rows;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

/// Indirect transfers counted before they go to the table: most repeat.
const RECENT: usize = 1 << 14;

/// What is kept of a node, in one cache line.
#[derive(Clone, Copy, Debug, Default)]
pub struct AtNode {
    /// How often its direct branch fell through, and how often it was taken.
    pub direct: [u64; 2],
    /// Executions since the branch's pattern began.
    pub turn: u32,
}

/// A worker's counts.
#[derive(Debug)]
pub struct Counts {
    nodes: Vec<AtNode>,
    /// Indirect transfers, by node and target node, and how often each.
    recent: Vec<(u64, u64)>,
    indirect: FxHashMap<u64, u64>,
    /// Resumptions and interruptions of tracing, by address.
    resumes: BTreeMap<u64, u64>,
    stops: BTreeMap<u64, u64>,
    /// What is walked again, with its counts; `None`: every block is decided anew.
    pub(super) stretches: Option<Stretches>,
}

fn key(node: u32, target: u32) -> u64 {
    u64::from(node) << 32 | u64::from(target)
}

impl Counts {
    /// Nothing yet.
    pub fn new(program: &Program) -> Self {
        Self {
            nodes: vec![AtNode::default(); program.nodes.len()],
            recent: vec![(0, 0); RECENT],
            indirect: FxHashMap::default(),
            resumes: BTreeMap::new(),
            stops: BTreeMap::new(),
            stretches: None,
        }
    }

    /// Stretches are walked again ([`super::stretch`]).
    pub fn with_stretches(self, program: &Program) -> Self {
        Self { stretches: Some(Stretches::new(program)), ..self }
    }

    /// Adds what stretches were walked to the blocks' counts. Nothing is walked afterwards.
    pub fn settle(&mut self, program: &Program) {
        let Some(stretches) = self.stretches.take() else { return };
        for way in stretches.walked() {
            // Where a return at its end led to was counted each time.
            let blocks = way.blocks() - u32::from(way.returns);
            for (at, taken, next) in stretches.branches(way, way.end).take(blocks as usize) {
                match program.nodes[at as usize].end {
                    End::JmpInd | End::CallInd | End::Ret => {
                        *self.indirect.entry(key(at, next)).or_insert(0) += way.uses;
                    }
                    _ => self.nodes[at as usize].direct[usize::from(taken)] += way.uses,
                }
            }
        }
    }

    /// A node's own.
    #[inline]
    pub fn at(&mut self, node: u32) -> &mut AtNode {
        &mut self.nodes[node as usize]
    }

    /// An indirect branch or a return.
    #[inline]
    pub fn indirect(&mut self, node: u32, target: u32) {
        let key = key(node, target);
        let slot =
            &mut self.recent[(key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - RECENT.ilog2())) as usize];
        if slot.0 != key {
            let (key, count) = std::mem::replace(slot, (key, 0));
            if count > 0 {
                *self.indirect.entry(key).or_insert(0) += count;
            }
        }
        slot.1 += 1;
    }

    /// Tracing begins at an address.
    pub fn resume(&mut self, at: u64) {
        *self.resumes.entry(at).or_insert(0) += 1;
    }

    /// Tracing ends in front of an address.
    pub fn stop(&mut self, at: u64) {
        *self.stops.entry(at).or_insert(0) += 1;
    }

    /// Adds them to the truth, so many times.
    pub fn add_to(&self, rows: &mut Rows, blocks: &[Block], times: u64) {
        let mut add = |kind, from, to, taken: u64, not_taken: u64| {
            rows.add(kind, from, to, taken * times, not_taken * times);
        };
        for (block, AtNode { direct: [fell, taken], .. }) in blocks.iter().zip(&self.nodes) {
            let (from, to) = (Some(block.last), Some(block.target));
            match block.end {
                _ if fell + taken == 0 => {}
                End::Jcc => add("jcc", from, to, *taken, *fell),
                End::Jmp => add("jmp", from, to, *taken, 0),
                _ => add("call", from, to, *taken, 0),
            }
        }
        for (key, count) in self.recent.iter().map(|(key, count)| (key, count)).chain(&self.indirect) {
            if *count == 0 {
                continue;
            }
            let (block, target) = (&blocks[(key >> 32) as usize], &blocks[*key as u32 as usize]);
            let kind = match block.end {
                End::JmpInd => "jmp_ind",
                End::CallInd => "call_ind",
                _ => "ret",
            };
            add(kind, Some(block.last), Some(target.start), *count, 0);
        }
        for (at, count) in &self.resumes {
            add("resume", None, Some(*at), *count, 0);
        }
        for (at, count) in &self.stops {
            add("async", Some(*at), None, *count, 0);
        }
    }

    /// Marks the nodes that were walked.
    pub fn mark_walked(&self, walked: &mut [bool]) {
        for (walked, node) in walked.iter_mut().zip(&self.nodes) {
            *walked |= node.direct != [0; 2];
        }
        for (key, count) in self.recent.iter().map(|(key, count)| (key, count)).chain(&self.indirect) {
            if *count > 0 {
                walked[(key >> 32) as usize] = true;
            }
        }
    }
}
