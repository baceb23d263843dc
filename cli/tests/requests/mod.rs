//! The shipped sample, through the binary, and what lies beside it: the recorder's truth and the program.
#![allow(dead_code, reason = "each test program uses a part of it")]

use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench-traces/samples/requests")
}

/// Runs `ptflow VERB sample ARGS --images …`.
pub fn ptflow(verb: &[&str], args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ptflow"))
        .args(verb)
        .arg(sample().join("perf.data"))
        .arg("--images")
        .arg(sample())
        .args(args)
        .output()
        .expect("ptflow runs")
}

#[track_caller]
pub fn succeed(output: Output) -> Vec<u8> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

pub fn truth() -> String {
    std::fs::read_to_string(sample().join("truth.edges")).expect("the truth is there")
}

/// Functions by start: end, and all names.
pub fn functions() -> BTreeMap<u64, (u64, Vec<String>)> {
    let bytes = std::fs::read(sample().join("requests")).expect("the program");
    let file = object::File::parse(&*bytes).expect("an ELF file");
    let mut functions: BTreeMap<u64, (u64, Vec<String>)> = BTreeMap::new();
    let is_code = |symbol: &object::Symbol<'_, '_>| {
        matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Unknown | SymbolKind::Label)
            && symbol.section_index().and_then(|index| file.section_by_index(index).ok()).is_some_and(
                |section| {
                    section.kind() == object::SectionKind::Text && !symbol.name().unwrap_or("").is_empty()
                },
            )
    };
    for symbol in file.symbols().filter(is_code) {
        let (start, name) = (symbol.address(), symbol.name().expect("a name").to_owned());
        functions.entry(start).or_insert((start + symbol.size(), Vec::new())).1.push(name);
    }
    // Assembly states no size: such a function reaches to the next one.
    let starts: Vec<u64> = functions.keys().copied().collect();
    for (start, next) in starts.iter().zip(&starts[1..]) {
        let end = &mut functions.get_mut(start).expect("a function").0;
        *end = if *end == *start { *next } else { *end };
    }
    functions
}

/// Calls by address of the function's first instruction, from the truth: transfers that enter it from outside.
pub fn true_calls(functions: &BTreeMap<u64, (u64, Vec<String>)>) -> BTreeMap<u64, u64> {
    let home = |addr: u64| {
        functions.range(..=addr).next_back().filter(|(_, (end, _))| addr < *end).map(|(start, _)| *start)
    };
    let mut calls = BTreeMap::new();
    for row in ptflow_exporters::edges::read(truth().as_bytes()).expect("the truth") {
        let hex = |text: &String| u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("an address");
        let Some(to) = row.to.as_ref().map(hex).filter(|to| functions.contains_key(to)) else { continue };
        let enters = match row.kind.name() {
            "call" | "call_ind" => true,
            // A tail call comes from another function; tracing that starts at a function's start is its call, too.
            "jmp" | "jmp_ind" | "jcc" => row.from.as_ref().map(hex).and_then(home) != Some(to),
            "resume" => true,
            _ => false,
        };
        if enters && row.taken > 0 {
            *calls.entry(to).or_insert(0) += row.taken;
        }
    }
    calls
}

pub fn json(output: Output) -> serde_json::Value {
    serde_json::from_slice(&succeed(output)).expect("JSON")
}
