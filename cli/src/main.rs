//! `ptflow`: hardware branch traces into answers.
//!
//! Arguments, progress and reports live here, and no algorithm: importing, decoding and exporting are the crates'.

mod args;
mod binary;
mod call_stacks;
mod commands;
mod counters;
mod find_function;
mod find_invocations;
mod frames;
mod histogram;
mod index;
mod llvm_tools;
mod load;
mod off_cpu;
#[cfg(feature = "oracle")]
mod oracle;
mod progress;
mod replay;
mod report;
mod selection;
mod serve;
mod source_lines;
mod sources;
mod terminal;
mod unknown_code;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        // Help and version are no errors; clap prints both where they belong, and exits 2 for wrong usage.
        Err(error) => error.exit(),
    };
    let result = match &args.verb {
        args::Verb::Info(args) => commands::info::run(args),
        args::Verb::Convert(args) => commands::convert::run(args),
        args::Verb::Profile(args) => commands::profile::run(args),
        args::Verb::Dump(args) => commands::dump::run(args),
        args::Verb::Calls(args) => commands::calls::run(args),
        args::Verb::Replay(args) => commands::replay::run(args),
        args::Verb::Bundle(args) => commands::bundle::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // One line: what, where, what to do.
            eprintln!("ptflow: {error:#}");
            ExitCode::from(if error.is::<args::Usage>() { 2 } else { 1 })
        }
    }
}

/// The reader of our output went away (`ptflow … | head`): nothing is wrong.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}
