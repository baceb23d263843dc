//! What nodes' numbers mean, for those who have no graph: where each node begins, and where each folded jump leads.
//!
//! A graph only grows, so what was told once stays: tables share their full chunks, and one that is up to date is handed
//! out again.

use super::{FoldedJump, Graph, NodeId};
use crate::profile::CodeAddr;
use crate::sink::Site;
use std::sync::Arc;

/// Sites in a chunk.
const CHUNK: usize = 1 << 12;
/// Of a number: a jump's.
const JUMP: u32 = 1 << 30;

/// Sites by their numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct SiteTable {
    nodes: Arc<Chunks>,
    jumps: Arc<Chunks>,
}

#[derive(Clone, Debug, Default)]
struct Chunks {
    chunks: Vec<Arc<[Site]>>,
    len: usize,
}

impl Chunks {
    #[inline]
    fn get(&self, index: usize) -> Site {
        let site = self.chunks.get(index / CHUNK).and_then(|chunk| chunk.get(index % CHUNK));
        site.copied().unwrap_or(Site::NOWHERE)
    }

    /// As it is, or with what has come since.
    fn grown(self: &Arc<Self>, len: usize, site: impl Fn(usize) -> Site) -> Arc<Self> {
        if self.len == len {
            return self.clone();
        }
        let mut chunks = self.chunks.clone();
        chunks.truncate(self.len / CHUNK);
        for from in (chunks.len() * CHUNK..len).step_by(CHUNK) {
            chunks.push((from..len.min(from + CHUNK)).map(&site).collect());
        }
        Arc::new(Self { chunks, len })
    }
}

impl SiteTable {
    /// A node's number. A graph of as many nodes as do not fit fits in no memory.
    #[inline]
    pub fn node(id: NodeId) -> u32 {
        id.0 & (JUMP - 1)
    }

    /// The site of a number.
    #[inline]
    pub fn site(&self, number: u32) -> Site {
        let table = if number & JUMP == 0 { &self.nodes } else { &self.jumps };
        table.get((number & (JUMP - 1)) as usize)
    }
}

impl FoldedJump {
    fn target(&self) -> Site {
        Site { addr: CodeAddr { image: Some(self.image), addr: self.to.0 }, function: self.function }
    }
}

impl Graph {
    /// What all numbers of this graph mean.
    pub(crate) fn site_table(&mut self) -> SiteTable {
        let nodes = self.sites.nodes.grown(self.nodes.len(), |index| self.site(NodeId(index as u32)));
        let jumps = self.sites.jumps.grown(self.jumps.len(), |index| self.jumps[index].target());
        self.sites = SiteTable { nodes, jumps };
        self.sites.clone()
    }

    /// The direct transfers folded into a node, in order, with the numbers and sites of where they lead.
    pub(crate) fn jump_sites(&self, id: NodeId) -> impl Iterator<Item = (u32, &FoldedJump, Site)> {
        let first = self.info(id).first_jump;
        (first..).zip(self.jumps(id)).map(|(index, jump)| (index & (JUMP - 1) | JUMP, jump, jump.target()))
    }
}
