//! The contenders that are no programs of their own: each runs in a process of this program (`bench-traces bench-step`).

use super::iptr;
use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use ptflow_bench_traces::frames::Frames;
use ptflow_decoder::image::{AddressSpaces, Images};
use ptflow_decoder::jobs::calls::{CallStacks, CallSteps};
use ptflow_decoder::oracle::{FileSection, SectionCache, Session, Walk, stretches};
use ptflow_decoder::plan::{UNIT_BYTES, plan};
use ptflow_decoder::run::{Options, in_order};
use ptflow_decoder::walk::{Context, Engine};
use ptflow_perf_import::images::{ImageSearch, ImageStore};
use ptflow_perf_import::{Capture, PerfFile};
use std::path::PathBuf;
use std::time::Duration;

/// What to run.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inside {
    /// libipt's block decoder.
    Libipt,
    /// iptr's edge analyzer.
    Iptr,
    /// Calls and returns with their times.
    Clocked,
    /// Cutting at PSBs.
    Plan,
    /// Every PSB.
    Psbs,
}

#[derive(Args, Debug)]
pub struct StepArgs {
    what: Inside,
    capture: PathBuf,
    #[arg(long)]
    images: Vec<PathBuf>,
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

/// Runs one contender once and prints a line for the bench.
pub fn step(args: &StepArgs) -> anyhow::Result<()> {
    let file = PerfFile::open(&args.capture)?;
    let capture = Capture::read(&file)?;
    if let Inside::Plan | Inside::Psbs = args.what {
        let unit_bytes = if args.what == Inside::Plan { UNIT_BYTES } else { 1 };
        let before = thread_cpu();
        let units = plan(capture.streams.iter().map(|stream| &stream.trace), unit_bytes).units.len();
        println!("decode {} {units} units", (thread_cpu() - before).as_secs_f64());
        return Ok(());
    }
    let store = ImageStore::load(&capture, &ImageSearch::new(args.images.clone()));
    let (images, _) = store.images_with_functions();
    match args.what {
        Inside::Clocked => clocked(&capture, &store, &images, args.threads),
        Inside::Iptr => iptr::run(&capture, &store),
        _ => {
            let (walk, took) = libipt(&capture, &store, &images)?;
            if let Some(failure) = walk.failures.first() {
                bail!("gives up at {:#x}: {}", failure.offset, failure.error);
            }
            println!("decode {} {} blocks", took.as_secs_f64(), walk.blocks);
            Ok(())
        }
    }
}

/// CPU time of this thread: what else runs on the machine does not count.
pub fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable; the call fails for no clock that Linux has.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The files' code, as the process had it mapped.
pub fn sections(store: &ImageStore, capture: &Capture<'_>) -> anyhow::Result<Vec<FileSection>> {
    let pid = capture.streams.iter().find_map(|stream| stream.pid).context("no stream of a process")?;
    let spaces = store.address_spaces(pid);
    let (_, space) = spaces.versions().last().context("a process without code")?;
    let sections = store.file_sections(space).into_iter();
    Ok(sections
        .map(|(path, offset, size, address)| FileSection { path: path.to_owned(), offset, size, address })
        .collect())
}

/// libipt's own walk over every stream, at its best.
fn libipt(
    capture: &Capture<'_>,
    store: &ImageStore,
    images: &Images<'_>,
) -> anyhow::Result<(Walk, Duration)> {
    let mut sum = Walk::default();
    let mut took = Duration::ZERO;
    for stream in &capture.streams {
        let Some(pid) = stream.pid else { bail!("a stream without a process") };
        let spaces = store.address_spaces(pid);
        let Some((_, space)) = spaces.versions().last() else { continue };
        let cache = SectionCache::new(&sections(store, capture)?)
            .map_err(|error| anyhow::anyhow!("libipt: {error}"))?;
        for trace in stretches(&stream.trace) {
            let session = Session::new(&trace, images, space, &capture.config).with_sections(&cache);
            let (walk, time) =
                session.timed_walk(thread_cpu).map_err(|error| anyhow::anyhow!("libipt: {error}"))?;
            sum.blocks += walk.blocks;
            sum.instructions += walk.instructions;
            sum.failures.extend(walk.failures);
            took += time;
        }
    }
    Ok((sum, took))
}

/// Calls and returns of every function with their times, folded into stacks and then forgotten.
fn clocked(
    capture: &Capture<'_>,
    store: &ImageStore,
    images: &Images<'_>,
    threads: usize,
) -> anyhow::Result<()> {
    let spaces: Vec<AddressSpaces> = (capture.streams.iter())
        .map(|stream| stream.pid.map(|pid| store.address_spaces(pid)).unwrap_or_default())
        .collect();
    let contexts: Vec<Context<'_, '_>> = (capture.streams.iter().zip(&spaces))
        .map(|(stream, spaces)| Context {
            stream: &stream.trace,
            images,
            spaces,
            config: &capture.config,
            owners: &[],
        })
        .collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let options = Options { pool: &pool, engine: Engine::Fast, unit_bytes: UNIT_BYTES, progress: &|_| {} };
    let mut stacks = CallStacks::new(contexts.len(), capture.config.time, Frames::default());
    let steps = |_: &_| CallSteps::default();
    let Ok(_) = in_order(&contexts, &options, steps, |unit, steps, result| stacks.take(unit, steps, result));
    let Ok(Frames(frames)) = stacks.finish();
    // Not `decode`: the whole process counts.
    println!("{frames} frames");
    Ok(())
}
