//! `bench-traces`: true Intel PT captures without the hardware, and benches.

#[cfg(feature = "oracle")]
mod bench;

use anyhow::Context as _;
use clap::{Args as ClapArgs, Parser, Subcommand};
use ptflow_bench_traces::accuracy::{self, Errors};
use ptflow_bench_traces::log::{Entry, LogReader};
use ptflow_bench_traces::options::{PtOptions, machine};
use ptflow_bench_traces::order::Way;
use ptflow_bench_traces::recorder::{PLUGIN, Recorder};
use ptflow_bench_traces::stacks::{Sampled, StackArgs, sample};
use ptflow_bench_traces::synth::{Made, SynthArgs, synthesize};
use ptflow_decoder::units::Tsc;
use ptflow_decoder::walk::Engine;
use std::ffi::OsString;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::Instant;

/// Intel PT captures without the hardware: real programs under an emulator, with the ground truth
#[derive(Parser, Debug)]
#[command(name = "bench-traces", version, max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Run a program and write DIR/perf.data, DIR/truth.edges and DIR/totals.json
    Record(RecordArgs),
    /// Write a capture of any size: a seeded walk through real code, with DIR/truth.edges and DIR/totals.json
    Synth(SynthArgs),
    /// Run a program and count its instructions and taken branches
    Count(CountArgs),
    /// Print an ordered truth, tab-separated: CYCLES TIME_NS INSTRUCTIONS KIND FROM TO
    Log(LogArgs),
    /// Write a perf.data of branch stacks (LBR), as sampling would have left it, of a recording made with --log
    Stacks(StackArgs),
    /// How far our times and perf's are from the truth, for recordings made with --log
    Accuracy(AccuracyArgs),
    /// Time ptflow against its peers on a capture, after comparing their answers
    #[cfg(feature = "oracle")]
    Bench(bench::BenchArgs),
    /// How the cost of an edge profile grows with the capture
    #[cfg(feature = "oracle")]
    Grow(bench::GrowArgs),
    /// What captures consist of, what each byte, packet and branch costs, and the least that it could
    #[cfg(feature = "oracle")]
    Roofline(bench::RooflineArgs),
    /// One contender's turn in a bench
    #[cfg(feature = "oracle")]
    #[command(hide = true)]
    BenchStep(bench::StepArgs),
}

#[derive(ClapArgs, Debug)]
struct RecordArgs {
    /// Where to put the capture and its truth; made if it is not there
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Write DIR/truth.TID.log too: every transfer of each thread in order, with its time; some 5 bytes each
    #[arg(long)]
    log: bool,
    #[command(flatten)]
    options: PtOptions,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM ARGS")]
    command: Vec<OsString>,
}

#[derive(ClapArgs, Debug)]
struct CountArgs {
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM ARGS")]
    command: Vec<OsString>,
}

#[derive(ClapArgs, Debug)]
struct LogArgs {
    /// A truth.TID.log
    file: PathBuf,
}

#[derive(ClapArgs, Debug)]
struct AccuracyArgs {
    /// The folders of recordings
    #[arg(required = true)]
    recordings: Vec<PathBuf>,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        // As a shell would: the program's own status is ours.
        Ok(status) => ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)),
        Err(error) => {
            eprintln!("bench-traces: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<ExitStatus> {
    // cargo puts the plugin beside this program.
    let plugin = std::env::current_exe()?.with_file_name(PLUGIN);
    match args.verb {
        Verb::Record(args) => {
            let RecordArgs { output, log, options, command } = args;
            Recorder { plugin, command, log }.record(&output, options)
        }
        Verb::Count(args) => {
            let counts = Recorder { plugin, command: args.command, log: false }.count()?;
            // The program's own output is on standard output.
            eprintln!("instructions {}\ntaken_branches {}", counts.instructions, counts.taken_branches);
            Ok(counts.status)
        }
        Verb::Synth(args) => synth(&args).map(|()| ExitStatus::default()),
        Verb::Accuracy(args) => print_accuracy(&args.recordings).map(|()| ExitStatus::default()),
        Verb::Stacks(args) => {
            let Sampled { samples, entries } = sample(&args)?;
            eprintln!("{samples} samples, {entries} entries");
            Ok(ExitStatus::default())
        }
        Verb::Log(args) => print_log(&args.file).map(|()| ExitStatus::default()),
        #[cfg(feature = "oracle")]
        Verb::Bench(args) => bench::run(&args).map(|()| ExitStatus::default()),
        #[cfg(feature = "oracle")]
        Verb::Grow(args) => bench::grow(&args).map(|()| ExitStatus::default()),
        #[cfg(feature = "oracle")]
        Verb::Roofline(args) => bench::roofline(&args).map(|()| ExitStatus::default()),
        #[cfg(feature = "oracle")]
        Verb::BenchStep(args) => bench::step(&args).map(|()| ExitStatus::default()),
    }
}

/// Writes a synthetic capture and says what it is.
fn synth(args: &SynthArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    let Made { bytes, branches, walked: (blocks, code) } = synthesize(args)?;
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let seconds = started.elapsed().as_secs_f64();
    let speed = mb(bytes) / seconds;
    eprintln!("{:.1} MB of trace, {branches} branches, {seconds:.2} s, {speed:.0} MB/s", mb(bytes));
    eprintln!("code walked: {blocks} blocks, {:.2} MB", mb(code));
    Ok(())
}

/// Prints a table of errors in nanoseconds: a row for our times and one for perf's.
fn print_accuracy(recordings: &[PathBuf]) -> anyhow::Result<()> {
    println!("| recording | times | branches | exact | p50 | p99 | max | earliest | latest |");
    println!("| --- | --- | --: | --: | --: | --: | --: | --: | --: |");
    let row = |name: &str, whose: &str, exact: String, errors: &mut Errors| {
        let (early, late) = errors.range();
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|part| errors.quantile(part));
        let count = errors.count();
        println!(
            "| {name} | {whose} | {count} | {exact} | {p50:.1} | {p99:.1} | {max:.1} | {early:.1} | {late:+.1} |"
        );
    };
    for recording in recordings {
        let name = recording.file_name().unwrap_or_default().to_string_lossy();
        let way = Way { engine: Engine::Fast, threads: 2, unit_bytes: 1 << 18 };
        let mut ours = accuracy::ours(recording, way)?;
        let share = 100.0 * ours.exact.count() as f64 / ours.ours.count().max(1) as f64;
        row(&name, "ptflow", format!("{share:.0} %"), &mut ours.ours);
        if ours.exact.count() > 0 {
            row("", "… exact", String::new(), &mut ours.exact);
        }
        if ours.backwards + ours.timeless > 0 {
            println!("| | backwards {}, without time {} |", ours.backwards, ours.timeless);
        }
        match accuracy::perf(recording) {
            Ok(mut errors) => row("", "perf", String::new(), &mut errors),
            Err(error) => println!("| | perf: {error:#} |"),
        }
    }
    Ok(())
}

/// Prints an ordered truth.
fn print_log(file: &Path) -> anyhow::Result<()> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    let hex = |addr: Option<u64>| addr.map_or_else(|| "-".to_owned(), |addr| format!("{addr:#x}"));
    for entry in LogReader::open(file).with_context(|| format!("cannot read {}", file.display()))? {
        let Entry { kind, from, to, taken, cycles, instructions } = entry?;
        let ns = machine::TIME.to_ns(Tsc(machine::tsc(cycles))).0;
        let fell = if taken { "" } else { " not taken" };
        writeln!(out, "{cycles}\t{ns}\t{instructions}\t{}{fell}\t{}\t{}", kind.name(), hex(from), hex(to))?;
    }
    Ok(out.flush()?)
}
