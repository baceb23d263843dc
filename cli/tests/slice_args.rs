//! `ptflow convert --args`: what was executed in each slice, against the recorder's log of the program.

mod recording;

use recording::{Recorded, record};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::OnceLock;

const TWICE: [&[&str]; 2] = [&[], &["-DOTHER"]];

fn by_thread() -> &'static Recorded {
    static RECORDED: OnceLock<Recorded> = OnceLock::new();
    RECORDED.get_or_init(|| record("calls.c", &TWICE, &["--cyc"]))
}

/// A slice of the JSON.
#[derive(Clone, PartialEq, Debug)]
struct Slice {
    tid: u64,
    name: String,
    begin: u64,
    end: u64,
    args: Value,
}

/// The slices of a conversion, each thread's in the order in which they begin.
fn slices(recorded: &Recorded, options: &[&str]) -> Vec<Slice> {
    let folder = tempfile::TempDir::new().expect("a folder");
    let out = folder.path().join("out.json");
    let path = out.to_str().expect("UTF-8");
    recorded.ptflow("convert", &[&["-o", path, "--quiet", "--args"], options].concat());
    let trace: Value = serde_json::from_slice(&std::fs::read(&out).expect("a trace")).expect("JSON");
    let origin: u64 = trace["otherData"]["origin_ns"].as_str().expect("text").parse().expect("a number");
    let mut slices: Vec<Slice> = Vec::new();
    let mut open: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for event in trace["traceEvents"].as_array().expect("events") {
        let tid = event["tid"].as_u64().expect("a thread");
        let at = || origin + (event["ts"].as_f64().expect("a time") * 1e3).round() as u64;
        match event["ph"].as_str() {
            Some("B") => {
                let name = event["name"].as_str().expect("a name").to_owned();
                open.entry(tid).or_default().push(slices.len());
                slices.push(Slice { tid, name, begin: at(), end: 0, args: Value::Null });
            }
            Some("E") => {
                let slice = open.get_mut(&tid).and_then(Vec::pop).expect("an end has its begin");
                (slices[slice].end, slices[slice].args) = (at(), event["args"].clone());
            }
            _ => {}
        }
    }
    slices
}

fn count(slice: &Slice, what: &str) -> Option<u64> {
    slice.args[what].as_u64()
}

/// Of every function, by thread and in order: the instructions that the recorder saw between call and return.
fn check(recorded: &Recorded, slices: &[Slice], functions: &[&str]) {
    for function in functions {
        let mut found: BTreeMap<u32, Vec<Option<u64>>> = BTreeMap::new();
        for slice in slices.iter().filter(|slice| slice.name == *function) {
            found.entry(slice.tid as u32).or_default().push(count(slice, "instructions"));
        }
        let expected: BTreeMap<u32, Vec<Option<u64>>> = recorded
            .truth(function, |_| false)
            .into_iter()
            .map(|(tid, all)| (tid, all.iter().map(|one| Some(one.instructions)).collect()))
            .collect();
        assert!(!expected.is_empty());
        assert_eq!(found, expected, "{function}");
    }
}

#[test]
fn instructions_of_a_slice_are_the_truths() {
    let functions = ["handle", "fib", "even", "odd", "last", "other"];
    check(by_thread(), &slices(by_thread(), &["--full"]), &functions);
    // Where most calls are folded, those that are shown count what is not.
    let few = slices(by_thread(), &["--max-slices", "1200"]);
    assert!(few.iter().any(|slice| count(slice, "folded calls").is_some()));
    check(by_thread(), &few, &["handle"]);
    // On whichever CPU: what other threads executed there in between counts for them.
    let by_cpu = record("calls.c", &TWICE, &["--per-cpu", "2"]);
    let slices = slices(&by_cpu, &["--full"]);
    check(&by_cpu, &slices, &functions);
    assert!(slices.iter().all(|slice| count(slice, "cycles").is_none()), "there are no CYC packets");
}

/// A thread's outermost slices have all that it executed, and a system call nothing.
#[test]
fn sums_of_a_thread() {
    let totals = by_thread().folder.path().join("capture/totals.json");
    let totals: Value = serde_json::from_slice(&std::fs::read(totals).expect("totals")).expect("JSON");
    let all = slices(by_thread(), &["--full"]);
    let mut found: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for slice in &all {
        let (sum, reach) = found.entry(slice.tid).or_default();
        if slice.begin >= *reach && !slice.name.starts_with('[') {
            *sum += count(slice, "instructions").unwrap_or(0);
        }
        *reach = slice.end.max(*reach);
        assert!(slice.name != "[syscall]" || slice.args == Value::Null, "{slice:?}");
    }
    let threads = totals["threads"].as_array().expect("threads");
    assert_eq!(threads.len(), 3);
    for thread in threads {
        let tid = thread["tid"].as_u64().expect("a thread");
        assert_eq!(Some(found[&tid].0), thread["instructions"].as_u64(), "{tid}");
    }
}

/// Cycles of a function without system calls are the truth's, but for where it begins: a direct jump leads to it, of which no
/// packet tells.
#[test]
fn cycles_of_a_slice_are_the_truths() {
    let all = slices(by_thread(), &["--full"]);
    let mut compared = 0;
    for (tid, expected) in by_thread().truth("last", |_| false) {
        let found = all.iter().filter(|slice| slice.tid == u64::from(tid) && slice.name == "last");
        for (found, expected) in found.zip(&expected) {
            let cycles = count(found, "cycles").expect("CYC packets tell them");
            let truly = expected.cycles.1 - expected.cycles.0;
            assert!(cycles.abs_diff(truly) <= 12, "{cycles} cycles, not {truly}");
            let ipc = found.args["ipc"].as_f64().expect("a ratio");
            assert!((ipc - expected.instructions as f64 / cycles as f64).abs() <= 0.0005, "{found:?}");
            compared += 1;
        }
    }
    assert_eq!(compared, 120);
}

/// Slices of a window count as they do in the whole; those that its edges cut tell nothing.
#[test]
fn what_a_window_cuts_is_not_counted() {
    let all = slices(by_thread(), &["--full"]);
    let handled: Vec<&Slice> = all.iter().filter(|slice| slice.name == "handle").collect();
    let (from, to) = (handled[7].begin + 1, handled[17].begin + 1);
    let time = |ns: u64| format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
    let part = slices(by_thread(), &["--full", "--from", &time(from), "--to", &time(to)]);
    let is_inside = |slice: &&Slice| slice.begin > from && slice.end < to;
    let inside: Vec<&Slice> = part.iter().filter(is_inside).collect();
    assert_eq!(inside, all.iter().filter(is_inside).collect::<Vec<_>>());
    assert!(inside.iter().filter(|slice| slice.name == "handle").count() >= 9);
    let cut: Vec<&Slice> = part.iter().filter(|slice| slice.begin == from || slice.end == to).collect();
    assert!(cut.len() > 4);
    assert!(cut.iter().all(|slice| slice.args == Value::Null), "{cut:?}");
}
