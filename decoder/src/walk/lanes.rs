//! Units side by side in one thread: each has its walker, one graph serves all, and what needs no rules is walked in
//! [`super::bulk`].
//!
//! ```text
//! walker 0 ──► strip ─┐                ┌─► place ──► walker 0, to the next stretch
//! walker 1 ──► strip ─┼─► batch, batch ┼─► ...
//! walker 2 ──► strip ─┘                └─►
//! ```

use super::bulk::{Batch, LOAD, Lane, Log, MAX_STEPS, batch_of_one, batch_of_three};
use super::cursor::{Place, ReturnAddress};
use super::{Context, Engine, UnitResult, Walker};
use crate::graph::compact::{DEAD, name, named};
use crate::graph::{Graph, NOWHERE};
use crate::packet::ExecMode;
use crate::plan::Unit;
use crate::sink::{CountOnly, Sink};
use crate::units::AuxOffset;

/// Lanes of a thread. Two overlap too little, and the registers of four are too many.
pub(crate) const LANES: usize = 3;

/// Bytes of trace that are worth stripping.
const WORTH: usize = 1 << 10;
/// So many bytes, at least, are left to the other walkers where a stretch could not be walked to its end.
const AFTER_STOP: usize = 512;
/// And so many where it was too short.
const SHORT: usize = 64;

/// How a walker and its lane stand to each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Bulk {
    /// There is no lane.
    #[default]
    Off,
    /// Not before so many bytes are walked.
    After(usize),
    /// As soon as there is enough to walk.
    Soon,
}

impl<S: Sink> Walker<'_, '_, '_, S> {
    /// Whether what comes is for the lane. The cursor stands where the fast walker could go on.
    pub(super) fn is_for_bulk(&mut self) -> bool {
        if self.bulk != Bulk::Soon || self.timed || self.cursor.mode != ExecMode::Bits64 {
            return false;
        }
        match self.engine {
            // Without trying windows first, and as soon as possible.
            Engine::Interrupted(packets) => packets % 2 == 1,
            _ => self.bytes_ahead() > WORTH && self.graph.memo.is_in_vain(),
        }
    }

    /// Bytes to the end of the piece or the unit.
    fn bytes_ahead(&self) -> usize {
        let here = self.reader.at();
        let len = self.reader.rest().len();
        if here.piece == self.end.piece { len.min(self.end.byte.saturating_sub(here.byte)) } else { len }
    }

    /// Strips what comes; false where the lane cannot go on.
    fn strip(&mut self, lane: &mut Lane) -> bool {
        let Place::At(ip) = self.cursor.place else { return false };
        let node = self.graph.node_at_ip(&self.code, self.cursor.mode, ip);
        if node == NOWHERE {
            return false;
        }
        let data = &self.reader.rest()[..self.bytes_ahead()];
        let (mode, last_ip) = (self.cursor.mode, self.cursor.last_ip);
        lane.stretch.strip(data, self.graph, &self.code, mode, last_ip, self.errata.skd007);
        let (stack, graph, code) = (&self.cursor.stack, &mut *self.graph, &self.code);
        let addresses = (0..stack.depth()).rev().map(|others| {
            name(match stack.below(others, 0) {
                Some(ReturnAddress::Node(node)) => node,
                Some(ReturnAddress::Ip(ip)) => graph.node_at_ip(code, mode, ip),
                None => NOWHERE,
            })
        });
        lane.begin(name(node), addresses);
        if !self.graph.make_compact() {
            return false;
        }
        lane.loads(self.is_interrupted()) > 0
    }

    fn is_interrupted(&self) -> bool {
        matches!(self.engine, Engine::Interrupted(_))
    }

    /// Goes on where the lane stands.
    fn take_back(&mut self, lane: &Lane) {
        let data = self.reader.rest();
        self.bulk = Bulk::After(AFTER_STOP);
        let place = lane.stretch.place(data, lane.outcomes, self.errata.skd007);
        let Some(place) = place else { return };
        let is_short = lane.stretch.outcomes - lane.outcomes < 2 * LOAD;
        self.bulk = if is_short && !lane.stopped || self.is_interrupted() {
            Bulk::After(1)
        } else {
            // Nothing is stripped twice: however often lanes stop, time stays linear.
            Bulk::After(AFTER_STOP.max(lane.stretch.bytes.saturating_sub(place.byte)))
        };
        let Some(ip) = self.graph.ip_of(named(lane.at)) else { return };
        self.cursor.place = Place::At(ip);
        self.cursor.last_ip = place.last_ip;
        // What was not popped, and lies where it did, may be an address that no node begins at.
        let before = self.cursor.stack.clone();
        self.cursor.stack.clear();
        for (height, address) in lane.stack().enumerate() {
            let kept = before.depth().checked_sub(height + 1).and_then(|others| before.below(others, 0));
            self.cursor.stack.push(match kept {
                Some(kept) if address == DEAD => kept,
                _ => ReturnAddress::Node(named(address)),
            });
        }
        self.packet_at = AuxOffset(self.reader.offset().0.wrapping_add(place.packet as u64));
        self.ledger.decoded += place.byte as u64;
        self.graph.memo.walked(place.byte);
        self.advance_bytes(place.byte);
        let (bits, count) = place.left;
        if count > 0 {
            self.cursor.tnt.bits = bits;
            self.cursor.tnt.count = count;
        }
        self.after_branches = true;
    }
}

/// A unit on its way.
struct Row<'w, 'a, 'm> {
    index: usize,
    walker: Walker<'w, 'a, 'm, CountOnly>,
    lane: Box<Lane>,
}

impl Row<'_, '_, '_> {
    /// Lends the graph to the walker, which has a stand-in else.
    fn lent<T>(&mut self, graph: &mut Graph, run: impl FnOnce(&mut Self) -> T) -> T {
        std::mem::swap(graph, self.walker.graph);
        self.walker.graph.enter(self.walker.code.space, self.walker.cursor.mode);
        let result = run(self);
        std::mem::swap(graph, self.walker.graph);
        result
    }

    /// Walks until there is something for the lane; false at the unit's end.
    fn advance(&mut self) -> bool {
        while self.walker.advance() {
            if self.walker.strip(&mut self.lane) {
                return true;
            }
            self.walker.bulk = Bulk::After(SHORT);
        }
        false
    }

    /// After a batch: whether the lane can go on.
    fn goes_on(&mut self, graph: &mut Graph, batch: Batch) -> bool {
        let node = named(self.lane.at);
        if batch == Batch::TakenBack {
            return false;
        }
        if graph.compact.parks(node) {
            return self.lent(graph, |row| row.walker.graph.build_compact(&row.walker.code, node));
        }
        batch == Batch::Walked
    }
}

/// Walks units as `next` gives them, and hands over what came out of each.
pub(crate) fn walk_units<'a, 'm, 'u>(
    contexts: &[Context<'a, 'm>],
    engine: Engine,
    graph: &mut Graph,
    lanes: usize,
    mut next: impl FnMut() -> Option<(usize, &'u Unit)>,
    mut done: impl FnMut(usize, UnitResult),
) {
    let mut stand_ins: Vec<Graph> = (0..lanes).map(|_| Graph::stand_in()).collect();
    let mut sinks = vec![CountOnly; lanes];
    let mut idle: Vec<_> = stand_ins
        .iter_mut()
        .zip(&mut sinks)
        .map(|(graph, sink)| (graph, sink, Box::new(Lane::new())))
        .collect();
    let mut rows: Vec<Row<'_, 'a, 'm>> = Vec::with_capacity(lanes);
    let mut log = Box::new(Log::new());
    loop {
        while let Some((stand_in, sink, lane)) = idle.pop() {
            let Some((index, unit)) = next() else {
                idle.push((stand_in, sink, lane));
                break;
            };
            let mut walker = Walker::new(contexts[unit.stream], stand_in, sink, engine, unit.from, unit.end);
            walker.bulk = Bulk::Soon;
            let mut row = Row { index, walker, lane };
            let goes_on = row.lent(graph, |row| {
                row.walker.begin();
                row.advance()
            });
            if goes_on {
                rows.push(row);
            } else {
                idle.push(finish(row, graph, &mut done));
            }
        }
        if rows.is_empty() {
            return;
        }
        batches(&mut rows, graph, &mut log, lanes, engine);
        // Lanes that came to their end, or cannot go on.
        for index in (0..rows.len()).rev() {
            let row = &mut rows[index];
            if row.lane.loads(is_few(engine)) > 0 && !row.lane.stopped {
                continue;
            }
            let goes_on = row.lent(graph, |row| {
                row.walker.take_back(&row.lane);
                row.advance()
            });
            if !goes_on {
                let row = rows.remove(index);
                idle.push(finish(row, graph, &mut done));
            }
        }
    }
}

type Idle<'w> = (&'w mut Graph, &'w mut CountOnly, Box<Lane>);

fn finish<'w>(row: Row<'w, '_, '_>, graph: &mut Graph, done: &mut impl FnMut(usize, UnitResult)) -> Idle<'w> {
    std::mem::swap(graph, row.walker.graph);
    let (result, stand_in, sink) = row.walker.finish();
    std::mem::swap(graph, stand_in);
    done(row.index, result);
    (stand_in, sink, row.lane)
}

fn is_few(engine: Engine) -> bool {
    matches!(engine, Engine::Interrupted(_))
}

/// Walks all lanes until one of them needs its walker.
fn batches(rows: &mut [Row<'_, '_, '_>], graph: &mut Graph, log: &mut Log, lanes: usize, engine: Engine) {
    let few = is_few(engine);
    loop {
        let loads = rows.iter().map(|row| row.lane.loads(few)).min().unwrap_or(0);
        // The lines may lag behind the graph where another lane was built.
        if loads == 0 || !graph.make_compact() {
            return;
        }
        graph.compact.steps += (lanes * MAX_STEPS) as u32;
        if let [a, b, c] = rows {
            let lanes = [&mut *a.lane, &mut *b.lane, &mut *c.lane];
            let results = batch_of_three(&mut graph.compact.lines, lanes, log, loads, few);
            graph.count_log(log.take());
            for (row, result) in rows.iter_mut().zip(results) {
                row.lane.stopped = !row.goes_on(graph, result);
            }
        } else {
            for row in rows.iter_mut() {
                let result = batch_of_one(&mut graph.compact.lines, &mut row.lane, log, loads, few);
                graph.count_log(log.take());
                row.lane.stopped = !row.goes_on(graph, result);
            }
        }
        if rows.iter().any(|row| row.lane.stopped) {
            return;
        }
    }
}
