//! What a window does besides leading on, for sinks that want more than counts.

use super::memo::Memo;
use super::window::{Path, TO};
use super::{Graph, NodeId};
use crate::sink::{Kept, Leave, Mark, Run, Sink};

/// More of a window's steps than this are not stored: a bound on memory. No honest code comes near.
const MAX_KEPT: usize = 256;

/// Instructions, and what a sink keeps.
#[derive(Clone, Debug)]
pub(crate) struct Effect {
    /// Instructions in the window.
    pub insns: u32,
    /// Instructions up to and with the first one that consumes something of the trace.
    pub first: u32,
    /// What the sink keeps of its runs.
    pub kept: Box<[Kept]>,
}

/// The runs of a path.
struct Runs<'g> {
    graph: &'g Graph,
    words: std::slice::Iter<'g, u32>,
    mark: Mark,
}

impl<'g> Runs<'g> {
    fn new(graph: &'g Graph, path: &'g Path) -> Self {
        let (len, words) = path.split_first().map_or((0, &path[..]), |(len, words)| (*len as usize, words));
        Self { graph, words: words[..len.min(words.len())].iter(), mark: Mark::default() }
    }
}

impl<'g> Iterator for Runs<'g> {
    type Item = (Run<'g>, Mark);

    fn next(&mut self) -> Option<Self::Item> {
        let word = *self.words.next()?;
        let node = NodeId(word >> 2);
        let this = self.graph.node(node);
        let leave = match word & 3 {
            TO => Leave::To(NodeId(*self.words.next()?)),
            _ if this.exit.is_free() => Leave::Direct,
            0 => Leave::NotTaken,
            _ => Leave::Taken,
        };
        self.mark.ordinal += u64::from(this.insns);
        Some((Run { graph: self.graph, node, exit: this.exit, leave }, self.mark))
    }
}

impl Memo {
    /// What the window in a slot does, where it is known.
    #[inline]
    pub fn effect(&self, slot: usize) -> Option<&Effect> {
        self.effects.get(slot)?.as_ref()
    }
}

impl Graph {
    /// Works out what the window in a slot does.
    #[cold]
    #[inline(never)]
    pub(crate) fn learn_effect<S: Sink>(&mut self, slot: usize, sink: &S) -> Option<Effect> {
        let path = *self.memo.paths.get(slot)?;
        let insns = Runs::new(self, &path).last().map_or(0, |(_, mark)| mark.ordinal as u32);
        let consumes = |(run, _): &(Run<'_>, Mark)| !self.node(run.node).exit.is_free();
        let first = Runs::new(self, &path).find(consumes).map_or(insns, |(_, mark)| mark.ordinal as u32);
        let kept = sink.learn(Runs::new(self, &path)).into_boxed_slice();
        let effect = Effect { insns, first, kept };
        if effect.kept.len() <= MAX_KEPT {
            let slots = self.memo.paths.len();
            self.memo.effects.resize(slots, None);
            if let Some(place) = self.memo.effects.get_mut(slot) {
                *place = Some(effect.clone());
            }
        }
        Some(effect)
    }
}
