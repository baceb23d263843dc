//! A capture's call stacks: whose they are, and the run that folds them.

use crate::load::Loaded;
use crate::replay::pick::Nowhere;
use crate::unknown_code::{self, UnknownCosts};
use ptflow_decoder::image::Images;
use ptflow_decoder::jobs::calls::{
    CallStacks, CallSteps, FrameSink, InlineSteps, InlinedCode, LoopSteps, OuterFrames, UnitSteps,
};
use ptflow_decoder::ledger::Ledger;
use ptflow_decoder::owners::ThreadId;
use ptflow_decoder::plan::{Unit, Window};
use ptflow_decoder::run::{self, Options};
use ptflow_decoder::units::Ns;
use ptflow_decoder::walk::{Engine, UnitResult};
use std::sync::Arc;

/// The thread that a stack is of; of a CPU's trace that no thread is known for, the CPU.
pub struct StackOwner {
    /// The process, or 0.
    pub pid: u32,
    /// The thread, or the number of the stream.
    pub tid: u32,
    /// What to call it.
    pub name: String,
}

/// The stacks' owners: the streams', then those of the threads that ran on CPUs' streams.
pub fn owners(loaded: &Loaded<'_>) -> Vec<StackOwner> {
    let capture = &loaded.capture;
    let of_streams = loaded.streams().map(|stream| StackOwner {
        pid: stream.pid.map_or(0, |pid| pid.0),
        tid: stream.tid.map_or(stream.idx, |tid| tid.0),
        name: match (stream.pid, stream.tid) {
            (Some(pid), Some(tid)) => capture.thread_name(pid, tid).to_owned(),
            _ => stream.name(),
        },
    });
    let of_threads = capture.schedules.threads.iter().map(|&(pid, tid)| {
        let name = capture.thread_name(pid, tid).to_owned();
        StackOwner { pid: pid.0, tid: tid.0, name }
    });
    of_streams.chain(of_threads).collect()
}

/// What a run leaves.
pub struct Folded<S> {
    /// The sink that took the frames.
    pub sink: S,
    /// What became of the bytes, by stream.
    pub ledgers: Vec<Ledger>,
    /// What code without an image cost.
    pub unknown: UnknownCosts,
    /// Instructions in all.
    pub instructions: u64,
    /// Units of work.
    pub units: usize,
}

impl<S> Folded<S> {
    /// The same with another sink.
    pub fn map<T>(self, with: impl FnOnce(S) -> T) -> Folded<T> {
        let Self { sink, ledgers, unknown, instructions, units } = self;
        Folded { sink: with(sink), ledgers, unknown, instructions, units }
    }
}

/// Decodes everything and hands the frames of all stacks to the sink, which knows the stacks by the indices of
/// [`owners`].
pub fn fold<S: FrameSink>(
    loaded: &Loaded<'_>,
    images: &Images<'_>,
    pool: &rayon::ThreadPool,
    progress: &(dyn Fn(u64) + Sync),
    sink: S,
) -> Result<Folded<S>, S::Error> {
    fold_part(loaded, images, pool, progress, &Part::default(), sink)
}

/// What of a capture's frames a job needs.
#[derive(Clone)]
pub struct Part {
    /// Of some windows, in order of time: frames that were open before one are known as far as it tells.
    pub windows: Vec<Window>,
    /// When the last one ends. What is open there goes on up to then, if its thread does: one that sleeps has nothing in the
    /// window's trace that would tell of it.
    pub end: Option<Ns>,
    /// Of the functions with a flag; of others only what is open above or below them when they begin or end.
    pub functions: Option<Arc<[bool]>>,
    /// What is known to have been open before.
    pub outer: OuterFrames,
    /// With the rounds of loops.
    pub loops: bool,
    /// With inlined functions.
    pub inlined: Option<Arc<dyn InlinedCode>>,
}

impl Default for Part {
    fn default() -> Self {
        let windows = vec![Window::ALL];
        let outer = OuterFrames::default();
        Self { windows, end: None, functions: None, outer, loops: false, inlined: None }
    }
}

/// The same of a part.
pub fn fold_part<S: FrameSink>(
    loaded: &Loaded<'_>,
    images: &Images<'_>,
    pool: &rayon::ThreadPool,
    progress: &(dyn Fn(u64) + Sync),
    part: &Part,
    sink: S,
) -> Result<Folded<S>, S::Error> {
    let (mut stacks, folded) = run_part(loaded, images, pool, progress, part, sink)?;
    if let Some(end) = part.end {
        for (stack, known) in loaded.last_known().into_iter().enumerate() {
            if let Some(known) = known {
                stacks.goes_on(stack, known.min(end))?;
            }
        }
    }
    let sink = stacks.finish()?;
    Ok(folded.map(|()| sink))
}

/// What must have been open before a window began, as far as what is decoded of it tells.
pub fn outer_frames(
    loaded: &Loaded<'_>,
    images: &Images<'_>,
    pool: &rayon::ThreadPool,
    window: Window,
) -> OuterFrames {
    /// So many units of each stream: who returns later is known from then on.
    const MOST: usize = 32;
    // Of CPUs all must be there: a thread may be on any.
    let most = loaded.capture.schedules.threads.is_empty().then_some(MOST);
    let part = Part { windows: vec![Window { most, ..window }], ..Part::default() };
    let Ok((stacks, _)) = run_part(loaded, images, pool, &|_| {}, &part, Nowhere);
    stacks.into_outer()
}

fn run_part<S: FrameSink>(
    loaded: &Loaded<'_>,
    images: &Images<'_>,
    pool: &rayon::ThreadPool,
    progress: &(dyn Fn(u64) + Sync),
    part: &Part,
    sink: S,
) -> Result<(CallStacks<S>, Folded<()>), S::Error> {
    let options = loaded.options(pool, Engine::Fast, progress);
    match (&part.functions, &part.inlined) {
        (Some(functions), _) => {
            let new = || CallSteps::only(functions.clone());
            run_steps(loaded, images, &options, part, new, sink)
        }
        (None, Some(inlined)) => {
            let new = || InlineSteps::new(images, &**inlined);
            run_steps(loaded, images, &options, part, new, sink)
        }
        (None, None) if part.loops => run_steps(loaded, images, &options, part, LoopSteps::default, sink),
        (None, None) => run_steps(loaded, images, &options, part, CallSteps::default, sink),
    }
}

fn run_steps<P: UnitSteps + Send, S: FrameSink>(
    loaded: &Loaded<'_>,
    images: &Images<'_>,
    options: &Options<'_>,
    part: &Part,
    new_steps: impl Fn() -> P + Sync,
    sink: S,
) -> Result<(CallStacks<S>, Folded<()>), S::Error> {
    let new_steps = |_: &Unit| new_steps();
    let owners = loaded.owners_within(options.pool, &part.windows);
    let contexts = loaded.contexts(images, &owners);
    let stacks = contexts.len() + loaded.capture.schedules.threads.len();
    let stacks = CallStacks::new(stacks, loaded.capture.config.time, sink);
    let mut stacks = stacks.with_outer(part.outer.clone());
    if let Some(inlined) = &part.inlined {
        stacks = stacks.with_inlined(inlined.clone());
    }
    let (mut instructions, mut units) = (0, 0);
    let mut count = |result: &UnitResult| {
        instructions += result.end.instructions();
        units += 1;
    };
    let ledgers = if owners.iter().all(Vec::is_empty) {
        run::in_order_within(&contexts, options, &part.windows, new_steps, |unit, steps, result| {
            count(result);
            steps.end(result.end);
            stacks.take(unit, steps.steps(), result)
        })
    } else {
        run::in_time_order_within(
            &contexts,
            options,
            &part.windows,
            new_steps,
            |unit, steps, result, reach| {
                count(result);
                steps.end(result.end);
                let stack = |thread| stack_of(loaded, contexts.len(), unit.stream, thread);
                stacks.take_shared(unit, steps.steps(), result, stack, reach)
            },
        )
    }?;
    let unknown = unknown_code::costs(&loaded.store, &contexts, &ledgers);
    Ok((stacks, Folded { sink: (), ledgers, unknown, instructions, units }))
}

/// The stack of a thread of a CPU's stream: behind those of the streams, which are for what is nobody's. `None` for what
/// was not asked for.
pub fn stack_of(
    loaded: &Loaded<'_>,
    streams: usize,
    stream: usize,
    thread: Option<ThreadId>,
) -> Option<usize> {
    let stack = thread.map_or(stream, |thread| streams + thread.0 as usize);
    loaded.running(thread).wanted.then_some(stack)
}
