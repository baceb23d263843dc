//! The program.

use ptflow_cli::RunOptions;
use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(ptflow_cli::run(std::env::args_os(), RunOptions::default()))
}
