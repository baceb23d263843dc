//! `bench-traces bench CAPTURE`: our exact edge profile and Intel's block decoder, on the same capture in the same run.
//!
//! The answers are compared first. Then the two take turns, so that a noisy machine disturbs both alike; medians of CPU
//! seconds count. Ours is the whole `ptflow profile --format edges` process; libipt's is its decode alone, with its block
//! cache, images and files opened before.

use anyhow::{Context as _, bail};
use clap::Args;
use ptflow_decoder::image::Images;
use ptflow_decoder::oracle::{FileSection, SectionCache, Session, Walk, stretches};
use ptflow_perf_import::images::{ImageSearch, ImageStore};
use ptflow_perf_import::{Capture, PerfFile};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

#[derive(Args, Debug)]
pub struct BenchArgs {
    /// A perf.data file with one process in it
    capture: PathBuf,
    /// Look for images below this folder first
    #[arg(long, value_name = "DIR")]
    images: Vec<PathBuf>,
    /// Rounds
    #[arg(long, default_value_t = 5, value_name = "N")]
    rounds: usize,
}

/// Runs the bench and prints a table.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let file = PerfFile::open(&args.capture)?;
    let capture = Capture::read(&file)?;
    let store = ImageStore::load(&capture, &ImageSearch::new(args.images.clone()));
    let images = store.images();
    let bytes = capture.trace_bytes();
    compare(args)?;
    let mut ours = [Vec::new(), Vec::new()];
    let mut walls = [Vec::new(), Vec::new()];
    let mut theirs = Vec::new();
    let mut blocks = 0;
    for _ in 0..args.rounds.max(1) {
        for (index, threads) in ["1", "2"].into_iter().enumerate() {
            let (cpu, wall) = profile(args, threads, Path::new("/dev/null"))?;
            ours[index].push(cpu);
            walls[index].push(wall);
        }
        let (walk, took) = libipt(&capture, &store, &images)?;
        if let Some(failure) = walk.failures.first() {
            bail!("libipt gives up at {:#x}: {}", failure.offset, failure.error);
        }
        blocks = walk.blocks;
        theirs.push(took.as_secs_f64());
    }
    let libipt = median(&mut theirs);
    let mib = bytes as f64 / f64::from(1 << 20);
    println!("{}: {mib:.1} MiB of trace, {blocks} blocks, {} rounds", args.capture.display(), args.rounds);
    println!("{:<34} {:>8} {:>8} {:>8} {:>7}", "", "CPU s", "wall s", "MiB/s", "ratio");
    let line = |what: &str, cpu: f64, wall: String| {
        println!("{what:<34} {cpu:>8.3} {wall:>8} {:>8.1} {:>7.2}", mib / cpu, libipt / cpu);
    };
    line("libipt block decoder, decode only", libipt, "-".into());
    line("ptflow profile, 1 thread", median(&mut ours[0]), format!("{:.3}", median(&mut walls[0])));
    line("ptflow profile, 2 threads", median(&mut ours[1]), format!("{:.3}", median(&mut walls[1])));
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Both give the same edges, or nothing is timed.
fn compare(args: &BenchArgs) -> anyhow::Result<()> {
    let folder = std::env::temp_dir().join(format!("ptflow-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let (native, oracle) = (folder.join("native"), folder.join("libipt"));
    let result = profile(args, "2", &native).and_then(|_| {
        ptflow(args, &["--engine", "libipt", "-o", &oracle.to_string_lossy()])?;
        Ok(std::fs::read(&native)? == std::fs::read(&oracle)?)
    });
    std::fs::remove_dir_all(&folder)?;
    if !result? {
        bail!("ptflow and libipt differ on {}: nothing is timed", args.capture.display());
    }
    Ok(())
}

/// CPU seconds and wall seconds of one `ptflow profile`.
fn profile(args: &BenchArgs, threads: &str, out: &Path) -> anyhow::Result<(f64, f64)> {
    ptflow(args, &["--threads", threads, "-o", &out.to_string_lossy()])
}

fn ptflow(args: &BenchArgs, more: &[&str]) -> anyhow::Result<(f64, f64)> {
    // cargo puts the binary beside this one.
    let binary = std::env::current_exe()?.with_file_name("ptflow");
    let started = std::time::Instant::now();
    let before = children_cpu();
    let mut command = Command::new(&binary);
    command.arg("profile").arg(&args.capture).args(["--quiet", "--addresses", "runtime"]).args(more);
    for folder in &args.images {
        command.arg("--images").arg(folder);
    }
    let status = command.status().with_context(|| {
        format!("cannot run {}: cargo build --release -p ptflow --features oracle", binary.display())
    })?;
    if !status.success() {
        bail!("ptflow failed: build it with cargo build --release -p ptflow --features oracle");
    }
    Ok((children_cpu() - before, started.elapsed().as_secs_f64()))
}

/// CPU seconds of all processes that this one waited for.
fn children_cpu() -> f64 {
    // SAFETY: all-zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is writable; the call fails for no valid `who`.
    unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage) };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 * 1e-6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// CPU time of this thread: what else runs on the machine does not count.
fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable; the call fails for no clock that Linux has.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
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
        let sections: Vec<FileSection> = store
            .file_sections(space)
            .into_iter()
            .map(|(path, offset, size, address)| FileSection { path: path.to_owned(), offset, size, address })
            .collect();
        let cache = SectionCache::new(&sections).map_err(|error| anyhow::anyhow!("libipt: {error}"))?;
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
