//! `bench-traces`: true Intel PT captures without the hardware, and benches.

#[cfg(feature = "oracle")]
mod bench;

use clap::{Args as ClapArgs, Parser, Subcommand};
use ptflow_bench_traces::options::PtOptions;
use ptflow_bench_traces::recorder::{PLUGIN, Recorder};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};

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
    /// Run a program and count its instructions and taken branches
    Count(CountArgs),
    /// Time ptflow against Intel's libipt on a capture, after comparing their answers
    #[cfg(feature = "oracle")]
    Bench(bench::BenchArgs),
}

#[derive(ClapArgs, Debug)]
struct RecordArgs {
    /// Where to put the capture and its truth; made if it is not there
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
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
        Verb::Record(args) => Recorder { plugin, command: args.command }.record(&args.output, args.options),
        Verb::Count(args) => Recorder { plugin, command: args.command }.count(),
        #[cfg(feature = "oracle")]
        Verb::Bench(args) => bench::run(&args).map(|()| ExitStatus::default()),
    }
}
