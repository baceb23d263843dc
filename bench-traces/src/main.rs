//! `bench-traces`: true Intel PT captures without the hardware, and benches.

mod record;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

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
    Record(record::RecordArgs),
    /// Run a program and count its instructions and taken branches
    Count(record::CountArgs),
}

fn main() -> ExitCode {
    let result = match Args::parse().verb {
        Verb::Record(args) => record::record(&args),
        Verb::Count(args) => record::count(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench-traces: {error:#}");
            ExitCode::FAILURE
        }
    }
}
