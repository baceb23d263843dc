//! Running the work units, in parallel, with results that do not depend on the number of threads.

use crate::clock::Timeline;
use crate::graph::Graph;
use crate::ledger::Ledger;
use crate::plan::{Plan, Unit, Window, plan, time_of};
use crate::profile::{EdgeRow, merge_rows};
use crate::reader::Reader;
use crate::sink::{CountOnly, Sink};
use crate::units::Tsc;
use crate::walk::lanes::{LANES, walk_units};
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
    let Plan { units, mut ledgers, .. } =
        plan(contexts.iter().map(|context| context.stream), options.unit_bytes);
    let next = AtomicUsize::new(0);
    // Counts are the graph's, which knows no threads: what is not wanted goes to one that is thrown away.
    let all_wanted = contexts.iter().flat_map(|context| context.owners).all(|owner| owner.wanted);
    // Units that wait in a lane are no other thread's: few are shared out one by one.
    let threads = options.pool.current_num_threads();
    let lanes = if units.len() >= 4 * LANES * threads || matches!(options.engine, Engine::Interrupted(_)) {
        LANES
    } else {
        1
    };
    let workers = options.pool.broadcast(|_| {
        let new_graph = || new_graph(options.engine);
        let mut graph = new_graph();
        let mut unwanted = (!all_wanted).then(new_graph);
        let mut done = Vec::new();
        let next = || {
            let index = next.fetch_add(1, Ordering::Relaxed);
            units.get(index).map(|unit| (index, unit))
        };
        let mut finished = |index: usize, result: UnitResult| {
            (options.progress)(units[index].bytes);
            done.push((index, result.ledger));
        };
        match &mut unwanted {
            None => walk_units(contexts, options.engine, &mut graph, lanes, next, finished),
            Some(unwanted) => {
                while let Some((index, unit)) = next() {
                    let mut sink = CountOnly;
                    let walker = walker(contexts, unit, &mut graph, &mut sink, options.engine);
                    finished(index, walker.with_unwanted(unwanted).run());
                }
            }
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
    fold: impl FnMut(&Unit, &mut S, &mut UnitResult) -> Result<(), E>,
) -> Result<Vec<Ledger>, E> {
    in_order_within(contexts, options, &[Window::ALL], new_sink, fold)
}

/// As [`in_order`], of the units that touch a window only. Windows are in order of time.
pub fn in_order_within<S: Sink + Send, E>(
    contexts: &[Context<'_, '_>],
    options: &Options<'_>,
    windows: &[Window],
    new_sink: impl Fn(&Unit) -> S + Sync,
    mut fold: impl FnMut(&Unit, &mut S, &mut UnitResult) -> Result<(), E>,
) -> Result<Vec<Ledger>, E> {
    let plan = plan_within(contexts, options, windows);
    fold_units(contexts, options, plan, new_sink, |_, unit, sink, result| fold(unit, sink, result))
}

/// How far a run in order of time is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reach<'p> {
    /// Nothing from before it will come any more; `None` where that is not known.
    pub horizon: Option<Tsc>,
    /// What is in none of these stretches is not there for every CPU. Empty: all is there.
    pub complete: &'p [(Tsc, Tsc)],
}

/// As [`in_order`], but over all streams by the units' times: the streams of several CPUs side by side. `fold` is told
/// too how far the run is.
pub fn in_time_order<S: Sink + Send, E>(
    contexts: &[Context<'_, '_>],
    options: &Options<'_>,
    new_sink: impl Fn(&Unit) -> S + Sync,
    fold: impl FnMut(&Unit, &mut S, &mut UnitResult, Reach<'_>) -> Result<(), E>,
) -> Result<Vec<Ledger>, E> {
    in_time_order_within(contexts, options, &[Window::ALL], new_sink, fold)
}

/// As [`in_time_order`], of the units that touch a window only. Windows are in order of time.
pub fn in_time_order_within<S: Sink + Send, E>(
    contexts: &[Context<'_, '_>],
    options: &Options<'_>,
    windows: &[Window],
    new_sink: impl Fn(&Unit) -> S + Sync,
    mut fold: impl FnMut(&Unit, &mut S, &mut UnitResult, Reach<'_>) -> Result<(), E>,
) -> Result<Vec<Ledger>, E> {
    let mut plan = plan_within(contexts, options, windows);
    let complete = std::mem::take(&mut plan.complete);
    // A unit that tells no time has that of the one before it in its stream.
    let mut timed = Vec::with_capacity(plan.units.len());
    let mut before = (usize::MAX, Tsc(0));
    for unit in plan.units {
        let context = &contexts[unit.stream];
        let told = starts_at(context, &unit).unwrap_or_default();
        let time = if before.0 == unit.stream { told.max(before.1) } else { told };
        before = (unit.stream, time);
        timed.push((time, unit));
    }
    // Stable: units of a stream stay in order.
    timed.sort_by_key(|(time, _)| *time);
    let times: Vec<Tsc> = timed.iter().map(|(time, _)| *time).collect();
    plan.units = timed.into_iter().map(|(_, unit)| unit).collect();
    fold_units(contexts, options, plan, new_sink, |index, unit, sink, result| {
        fold(unit, sink, result, Reach { horizon: times.get(index + 1).copied(), complete: &complete })
    })
}

fn plan_within(contexts: &[Context<'_, '_>], options: &Options<'_>, windows: &[Window]) -> Plan {
    let mut plan = plan(contexts.iter().map(|context| context.stream), options.unit_bytes);
    plan.narrow(windows, |unit| starts_at(&contexts[unit.stream], unit));
    plan
}

fn starts_at(context: &Context<'_, '_>, unit: &Unit) -> Option<Tsc> {
    time_of(Reader::new(context.stream, unit.from), context.config)
}

fn fold_units<S: Sink + Send, E>(
    contexts: &[Context<'_, '_>],
    options: &Options<'_>,
    Plan { units, mut ledgers, .. }: Plan,
    new_sink: impl Fn(&Unit) -> S + Sync,
    mut fold: impl FnMut(usize, &Unit, &mut S, &mut UnitResult) -> Result<(), E>,
) -> Result<Vec<Ledger>, E> {
    let graphs = Mutex::new(Vec::<Graph>::new());
    // What was folded lends its memory to what comes: gigabytes of steps would else be pages asked of the kernel, each for
    // one unit (a fifth of the time of all calls of high-entropy code).
    let folded = Mutex::new(Vec::<(Option<S>, Timeline)>::new());
    let ahead = 2 * options.pool.current_num_threads();
    let (graphs, folded, new_sink) = (&graphs, &folded, &new_sink);
    // Up to where the units of each stream reach in time.
    let mut reached = vec![0; contexts.len()];
    let ledgers = options.pool.in_place_scope_fifo(|scope| {
        let mut waiting = VecDeque::with_capacity(ahead);
        let mut to_start = units.iter();
        let mut index = 0;
        loop {
            while waiting.len() < ahead
                && let Some(unit) = to_start.next()
            {
                let (send, receive) = mpsc::sync_channel(1);
                scope.spawn_fifo(move |_| {
                    // Locks are taken a few times a unit, never in the walk.
                    let mut graph = pop(graphs).unwrap_or_else(|| new_graph(options.engine));
                    let (sink, memory) = pop(folded).unwrap_or_default();
                    let mut sink = sink.unwrap_or_else(|| new_sink(unit));
                    let walker = walker(contexts, unit, &mut graph, &mut sink, options.engine);
                    let result = walker.with_memory(memory).run();
                    (options.progress)(unit.bytes);
                    push(graphs, graph);
                    // The receiver is gone only when the fold gave up.
                    let _ = send.send((sink, result));
                });
                waiting.push_back((unit, receive));
            }
            let Some((unit, receive)) = waiting.pop_front() else { break };
            // A worker that panicked drops its sender; the scope then hands the panic on.
            let Ok((mut sink, mut result)) = receive.recv() else { break };
            ledgers[unit.stream].append(std::mem::take(&mut result.ledger));
            let reached = &mut reached[unit.stream];
            result.timeline.not_before(*reached);
            *reached = result.timeline.end(result.end.ordinal);
            fold(index, unit, &mut sink, &mut result)?;
            let serves_again = sink.forget_unit();
            push(folded, (serves_again.then_some(sink), result.timeline));
            index += 1;
        }
        Ok(ledgers)
    })?;
    Ok(sorted(ledgers))
}

fn pop<T>(from: &Mutex<Vec<T>>) -> Option<T> {
    from.lock().unwrap_or_else(PoisonError::into_inner).pop()
}

fn push<T>(to: &Mutex<Vec<T>>, what: T) {
    to.lock().unwrap_or_else(PoisonError::into_inner).push(what);
}

fn new_graph(engine: Engine) -> Graph {
    let mut graph = Graph::new();
    if let Engine::Interrupted(_) = engine {
        graph.memo.shrink();
    }
    graph
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
