//! Running the work units, in parallel, with results that do not depend on the number of threads.

use crate::graph::Graph;
use crate::ledger::Ledger;
use crate::plan::{Plan, Unit, plan};
use crate::profile::{EdgeRow, merge_rows};
use crate::sink::{CountOnly, Sink};
use crate::walk::{Context, Engine, UnitResult, Walker};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};

/// How to run.
#[derive(Clone, Copy)]
pub struct Options<'p> {
    /// The threads to run on.
    pub pool: &'p rayon::ThreadPool,
    /// Which walker.
    pub engine: Engine,
    /// Bytes of trace in a unit ([`crate::plan::UNIT_BYTES`]).
    pub unit_bytes: usize,
    /// Told the bytes of each unit that is done; called from any thread.
    pub progress: &'p (dyn Fn(u64) + Sync),
}

/// What [`count`] found.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// All edges, sorted by kind, from, to; each row once.
    pub rows: Vec<EdgeRow>,
    /// Instructions executed.
    pub instructions: u64,
    /// For each stream what became of its bytes, in stream order.
    pub ledgers: Vec<Ledger>,
    /// How many units were walked.
    pub units: usize,
}

/// The exact edge profile of all streams.
pub fn count(contexts: &[Context<'_, '_>], options: &Options<'_>) -> Counts {
    let Plan { units, mut ledgers } = plan(contexts.iter().map(|context| context.stream), options.unit_bytes);
    let next = AtomicUsize::new(0);
    // Counts are the graph's, which knows no threads: what is not wanted goes to one that is thrown away.
    let all_wanted = contexts.iter().flat_map(|context| context.owners).all(|owner| owner.wanted);
    let workers = options.pool.broadcast(|_| {
        let mut graph = Graph::new();
        let mut unwanted = (!all_wanted).then(Graph::new);
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(unit) = units.get(index) else { break };
            let mut sink = CountOnly;
            let mut walker = walker(contexts, unit, &mut graph, &mut sink, options.engine);
            if let Some(unwanted) = &mut unwanted {
                walker = walker.with_unwanted(unwanted);
            }
            let result = walker.run();
            (options.progress)(unit.bytes);
            done.push((index, result.ledger));
        }
        let mut rows = graph.rows();
        merge_rows(&mut rows);
        (rows, graph.instructions(), done)
    });
    let mut counts = Counts { units: units.len(), ..Counts::default() };
    let mut done = Vec::with_capacity(units.len());
    for (mut rows, instructions, mut units) in workers {
        counts.rows.append(&mut rows);
        counts.instructions += instructions;
        done.append(&mut units);
    }
    merge_rows(&mut counts.rows);
    done.sort_unstable_by_key(|(index, _)| *index);
    for (index, ledger) in done {
        ledgers[units[index].stream].append(ledger);
    }
    counts.ledgers = sorted(ledgers);
    counts
}

/// Walks every unit with a sink of its own and hands the sinks to `fold` in stream order. At most two units a thread
/// are in flight, so memory does not grow with the trace. `fold` may stop the run by an error.
pub fn in_order<S: Sink + Send, E>(
    contexts: &[Context<'_, '_>],
    options: &Options<'_>,
    new_sink: impl Fn(&Unit) -> S + Sync,
    mut fold: impl FnMut(&Unit, S, UnitResult) -> Result<(), E>,
) -> Result<Vec<Ledger>, E> {
    let Plan { units, mut ledgers } = plan(contexts.iter().map(|context| context.stream), options.unit_bytes);
    let graphs = Mutex::new(Vec::<Graph>::new());
    let ahead = 2 * options.pool.current_num_threads();
    let (graphs, new_sink) = (&graphs, &new_sink);
    // Up to where the units of each stream reach in time.
    let mut reached = vec![0; contexts.len()];
    let ledgers = options.pool.in_place_scope_fifo(|scope| {
        let mut waiting = VecDeque::with_capacity(ahead);
        let mut to_start = units.iter();
        loop {
            while waiting.len() < ahead
                && let Some(unit) = to_start.next()
            {
                let (send, receive) = mpsc::sync_channel(1);
                scope.spawn_fifo(move |_| {
                    // The lock is taken twice a unit, never in the walk.
                    let graph = graphs.lock().unwrap_or_else(PoisonError::into_inner).pop();
                    let mut graph = graph.unwrap_or_default();
                    let mut sink = new_sink(unit);
                    let result = walker(contexts, unit, &mut graph, &mut sink, options.engine).run();
                    (options.progress)(unit.bytes);
                    graphs.lock().unwrap_or_else(PoisonError::into_inner).push(graph);
                    // The receiver is gone only when the fold gave up.
                    let _ = send.send((sink, result));
                });
                waiting.push_back((unit, receive));
            }
            let Some((unit, receive)) = waiting.pop_front() else { break };
            // A worker that panicked drops its sender; the scope then hands the panic on.
            let Ok((sink, mut result)) = receive.recv() else { break };
            ledgers[unit.stream].append(std::mem::take(&mut result.ledger));
            let reached = &mut reached[unit.stream];
            result.timeline.not_before(*reached);
            *reached = result.timeline.end(result.end.ordinal);
            fold(unit, sink, result)?;
        }
        Ok(ledgers)
    })?;
    Ok(sorted(ledgers))
}

fn walker<'w, 'a, 'm, S: Sink>(
    contexts: &[Context<'a, 'm>],
    unit: &Unit,
    graph: &'w mut Graph,
    sink: &'w mut S,
    engine: Engine,
) -> Walker<'w, 'a, 'm, S> {
    Walker::new(contexts[unit.stream], graph, sink, engine, unit.from, unit.end)
}

fn sorted(mut ledgers: Vec<Ledger>) -> Vec<Ledger> {
    for ledger in &mut ledgers {
        ledger.losses.sort_by_key(|loss| (loss.from, loss.to));
    }
    ledgers
}
