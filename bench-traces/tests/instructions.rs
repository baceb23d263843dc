//! How many instructions the hot loops take, counted by valgrind: the same on every run, whatever else the machine does.
//!
//! `tests/instructions.txt` has what they took. More than the tolerance above it fails; much less fails too, so that the
//! file follows the code and the next loss is seen. To write it anew, after saying in the commit why it changed:
//!
//!     PTFLOW_RENEW=1 cargo test -p ptflow-bench-traces --test instructions

mod kit;

use kit::{MEASURED, build, count};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

const NAMES: [&str; 7] = ["lexer", "careful", "windows", "bulk", "bulk-no-timing", "clocked", "clocked-cyc"];
/// Percent, with the compiler that the file names.
const TOLERANCE: f64 = 3.0;
/// With another compiler: code generation differs from version to version, and a real loss is larger.
const OTHER_COMPILER: f64 = 20.0;

#[test]
fn instruction_counts() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/instructions.txt");
    let gate = build("gate");
    let found: BTreeMap<&str, u64> =
        NAMES.into_iter().map(|name| (name, instructions(&gate, name))).collect();
    let compiler = compiler();
    if std::env::var_os("PTFLOW_RENEW").is_some() {
        let mut text =
            format!("# Instructions in tests/instructions.rs, counted by valgrind.\n# {compiler}\n");
        for (name, count) in &found {
            writeln!(text, "{name} {count}").expect("a String takes all");
        }
        std::fs::write(&file, text).expect("the file can be written");
        return;
    }
    let known = std::fs::read_to_string(&file).expect("the file is there");
    let tolerance = if known.contains(&compiler) { TOLERANCE } else { OTHER_COMPILER };
    let mut wrong = String::new();
    for (name, count) in &found {
        let line = known.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let before: u64 = line.and_then(|count| count.parse().ok()).unwrap_or(0);
        let change = (*count as f64 / before as f64 - 1.0) * 100.0;
        println!("{name}: {before} instructions before, {count} now: {change:+.2} %");
        if change.is_nan() || change.abs() > tolerance {
            writeln!(wrong, "{name}: {before} instructions before, {count} now: {change:+.2} %")
                .expect("a String takes all");
        }
    }
    assert!(
        wrong.is_empty(),
        "beyond {tolerance} %:\n{wrong}If this is meant: PTFLOW_RENEW=1 cargo test -p ptflow-bench-traces --test \
         instructions"
    );
}

fn compiler() -> String {
    let output = Command::new("rustc").arg("--version").output().expect("rustc runs");
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// Instructions of the decoding alone.
fn instructions(gate: &Path, name: &str) -> u64 {
    if name.starts_with("clocked") {
        count(gate, &[], &[name]) - count(gate, &[], &[name, "prepare"])
    } else {
        count(gate, &MEASURED, &[name])
    }
}
