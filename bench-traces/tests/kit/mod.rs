//! Programs of `examples/` under valgrind.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::Command;

mod release;

/// One of the examples, optimised.
pub fn build(example: &str) -> PathBuf {
    release::build(&["-p", env!("CARGO_PKG_NAME"), "--example", example]).join("examples").join(example)
}

/// What counts inside of the examples' `measured` alone, on its thread.
pub const MEASURED: [&str; 2] = ["--collect-atstart=no", "--toggle-collect=*measured*"];

/// Instructions, counted by valgrind.
pub fn count(program: &Path, options: &[&str], arguments: &[&str]) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(options)
        .arg(program)
        .args(arguments)
        .output()
        .expect("valgrind runs: install Debian's package valgrind");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {text}");
    let count = text.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    count.unwrap_or_else(|| panic!("{arguments:?}: valgrind counted nothing: {text}"))
}
