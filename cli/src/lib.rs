//! `ptflow`: hardware branch traces into answers.
//!
//! Arguments, progress and reports live here, and no algorithm: importing, decoding and exporting are the crates'. The program
//! is [`run`] with its own arguments.

mod args;
mod binary;
mod call_stacks;
mod commands;
mod counters;
mod find_function;
mod find_invocations;
mod frame_names;
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
use std::ffi::OsString;

/// What no argument says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RunOptions {
    /// Bytes of a unit of work, about. Tests cut small captures into many; no output depends on it.
    pub unit_bytes: Option<usize>,
}

/// Runs the program with these arguments, of which the first is its name. Gives back its exit status.
pub fn run(args: impl IntoIterator<Item = OsString>, options: RunOptions) -> u8 {
    let mut args = match args::Args::try_parse_from(args) {
        Ok(args) => args,
        // Help and version are no errors; clap prints both where they belong, and exits 2 for wrong usage.
        Err(error) => {
            // Nothing can be done where it cannot be printed.
            let _ = error.print();
            return u8::try_from(error.exit_code()).unwrap_or(2);
        }
    };
    args.verb.common().unit_bytes = options.unit_bytes;
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
        Ok(()) => 0,
        Err(error) if is_broken_pipe(&error) => 0,
        Err(error) => {
            // One line: what, where, what to do.
            eprintln!("ptflow: {error:#}");
            if error.is::<args::Usage>() { 2 } else { 1 }
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
