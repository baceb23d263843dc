//! `ptflow calls` and `ptflow replay` on a program recorded for this: every instruction of an invocation is the truth's, in
//! a trace by thread and in one by CPU, and names that several functions have are told apart.

mod recording;

use recording::{Invocation, Recorded, listed, record};
use std::collections::BTreeMap;
use std::sync::OnceLock;

const TWICE: [&[&str]; 2] = [&[], &["-DOTHER"]];

fn by_thread() -> &'static Recorded {
    static RECORDED: OnceLock<Recorded> = OnceLock::new();
    RECORDED.get_or_init(|| record("calls.c", &TWICE, &["--cyc"]))
}

fn by_cpu() -> &'static Recorded {
    static RECORDED: OnceLock<Recorded> = OnceLock::new();
    RECORDED.get_or_init(|| record("calls.c", &TWICE, &["--cyc", "--per-cpu", "2"]))
}

/// What `calls` has of a function: thread, start, duration and instructions, in order of time, as `--nth` counts them.
fn found(recorded: &Recorded, which: &[&str]) -> Vec<(u32, u64, u64, u64)> {
    let csv = recorded.ptflow("calls", &[which, &["--csv"]].concat());
    let row = |line: &str| {
        let fields: Vec<&str> = line.split(',').collect();
        let number = |at: usize| fields[at].parse::<u64>().expect("a number");
        assert_eq!(fields[5..7], ["seen", "seen"], "{line}");
        (number(1) as u32, number(2), number(3), number(4))
    };
    let mut rows: Vec<_> = csv.lines().skip(1).map(row).collect();
    rows.sort_by_key(|(tid, start, ..)| (*start, *tid));
    rows
}

/// Compares the whole list of instructions of several invocations, and how many there are of all.
fn check(recorded: &Recorded, function: &str, recursive: bool, choose: impl Fn(&Invocation, usize) -> bool) {
    let which = ["--function", function, "--recursive"];
    let which = if recursive { &which[..] } else { &which[..2] };
    let found = found(recorded, which);
    let truth = recorded.truth(function, |_| true);
    if recursive {
        assert_eq!(truth.values().map(Vec::len).sum::<usize>(), found.len());
    }
    let mut compared = 0;
    for (rank, (tid, start, _, instructions)) in found.iter().enumerate() {
        // Of those that begin at one time, nothing tells which is which.
        let alone = |of: &&(u32, u64, u64, u64)| (of.0, of.1) == (*tid, *start);
        if found.iter().filter(alone).count() != 1 {
            continue;
        }
        let before = found.iter().filter(|of| of.0 == *tid && of.1 < *start).count();
        let all = &truth[tid];
        // The outermost ones: what begins in another one is none.
        let mut end = 0;
        let outermost = |one: &&Invocation| {
            let is = recursive || one.cycles.0 >= end;
            end = if is { one.cycles.1 } else { end };
            is
        };
        let expected = all.iter().filter(outermost).nth(before).expect("as many");
        assert_eq!(*instructions, expected.instructions, "{function} {rank}");
        if !choose(expected, before) {
            continue;
        }
        let nth = (rank + 1).to_string();
        let text = recorded
            .ptflow("replay", &[which, &["--nth", &nth, "--instructions", "--unfolded", "--quiet"]].concat());
        assert!(listed(&text) == recorded.instructions(function, expected), "{function} {rank}");
        compared += 1;
    }
    assert!(compared >= 5, "{compared} lists of {function}");
    println!("{compared} lists of {function}");
}

fn check_all(recorded: &Recorded) {
    let interrupted = |one: &Invocation| one.transfers.iter().any(|transfer| transfer.kind == "async");
    let handled = recorded.truth("handle", |_| true);
    assert!(handled.values().flatten().any(interrupted), "a signal comes between two instructions");
    check(recorded, "handle", false, |one, number| number % 16 == 3 || number % 20 == 0 || interrupted(one));
    check(recorded, "fib", true, |one, number| number % 131 == 1 || interrupted(one));
    check(recorded, "fib", false, |_, number| number % 20 == 5);
    check(recorded, "even", true, |_, number| number % 29 == 3);
    check(recorded, "last", false, |_, number| number % 19 == 4);
}

#[test]
fn every_instruction_is_the_truths() {
    check_all(by_thread());
}

#[test]
fn every_instruction_is_the_truths_in_a_trace_by_cpu() {
    check_all(by_cpu());
}

/// Two functions of one name: both are counted, and which is which is told; one file's alone can be asked for.
#[test]
fn a_name_of_two_functions() {
    let recorded = by_thread();
    let step = ["--function", "step"];
    let places: BTreeMap<String, u64> = {
        let json = recorded.json("calls", &[&step[..], &["--json"]].concat());
        let functions = json["functions"].as_array().expect("functions").clone();
        let place = |of: &serde_json::Value| {
            (of["place"].as_str().expect("a place").to_owned(), of["count"].as_u64().expect("a count"))
        };
        functions.iter().map(place).collect()
    };
    let starts = recorded.functions("step");
    assert_eq!(starts.len(), 2);
    let expected: Vec<String> = starts.iter().map(|(start, _)| format!("program+{start:#x}")).collect();
    for place in &expected {
        assert!(places.contains_key(place), "{place} in {places:?}");
    }
    // other() calls its own once a request, of which there are 60 in each of two threads.
    assert!(places.values().any(|count| *count == 120), "{places:?}");
    let text = recorded.ptflow("calls", &step);
    assert!(expected.iter().all(|place| text.contains(&format!("step  ({place})"))), "{text}");
    let replay = recorded.run("replay", &[&step[..], &["--slowest"]].concat());
    let (text, said) = (String::from_utf8_lossy(&replay.stdout), String::from_utf8_lossy(&replay.stderr));
    assert!(said.contains("step is 2 functions: "), "{said}");
    assert!(expected.iter().any(|place| text.contains(&format!("step ({place}) on thread"))), "{text}");
    let json = recorded.json("replay", &[&step[..], &["--slowest", "--json", "--quiet"]].concat());
    assert!(expected.iter().any(|place| json["place"] == **place), "{json}");
}

/// A function that is there and never runs: no figures, but what else has such a name.
#[test]
fn a_function_that_never_runs() {
    let recorded = by_thread();
    let never = ["--function", "handled"];
    let text = recorded.ptflow("calls", &never);
    assert!(text.contains("handled: never entered in this trace"), "{text}");
    assert!(text.contains("names like it: handle"), "{text}");
    let json = recorded.json("calls", &[&never[..], &["--json"]].concat());
    assert_eq!((&json["count"], &json["near"][0]), (&0.into(), &"handle".into()), "{json}");
    let replay = recorded.run("replay", &[&never[..], &["--slowest", "--json"]].concat());
    assert_eq!(replay.status.code(), Some(1));
    let said = String::from_utf8_lossy(&replay.stderr);
    assert!(said.contains("never entered in this trace") && said.contains("names like it: handle"), "{said}");
}

/// Loops went round as often as the recorder saw jumps back, function by function.
#[test]
fn iterations_are_the_truths() {
    fn each(node: &serde_json::Value, sums: &mut BTreeMap<String, u64>) {
        let loops = node["loops"].as_array().into_iter().flatten();
        let sum: u64 = loops.map(|one| one["iterations"].as_u64().expect("a count")).sum();
        *sums.entry(node["name"].as_str().expect("a name").to_owned()).or_default() += sum;
        node["children"].as_array().into_iter().flatten().for_each(|child| each(child, sums));
    }
    for recorded in [by_thread(), by_cpu()] {
        let which = ["--function", "handle"];
        let found = found(recorded, &which);
        let truth = recorded.truth("handle", |_| true);
        let mut all = 0;
        for rank in (0..found.len()).step_by(9) {
            let (tid, start, ..) = found[rank];
            let before = found.iter().filter(|of| of.0 == tid && of.1 < start).count();
            let expected = &truth[&tid][before];
            let nth = (rank + 1).to_string();
            let tree = recorded.json("replay", &[&which[..], &["--nth", &nth, "--json", "--quiet"]].concat());
            let mut sums = BTreeMap::new();
            each(&tree["root"], &mut sums);
            for function in ["handle", "last", "fib", "even", "odd", "chain", "on_signal", "other"] {
                let (begin, end) = recorded.function(function);
                let inside = |addr: Option<u64>| addr.is_some_and(|addr| (begin..end).contains(&addr));
                let back = |one: &&recording::Transfer| {
                    matches!(&*one.kind, "jcc" | "jmp" | "jmp_ind")
                        && one.to.is_some()
                        && one.to <= one.from
                        && inside(one.from)
                        && inside(one.to)
                };
                let back = expected.transfers.iter().filter(back).count() as u64;
                assert_eq!(sums.get(function).copied().unwrap_or(0), back, "{function} in {rank}");
                all += back;
            }
        }
        assert!(all > 200, "{all}");
    }
}

/// Core cycles of an invocation without system calls are the truth's, but for where it begins: a direct jump leads to it,
/// of which no packet tells.
#[test]
fn cycles_are_the_truths() {
    let csv = by_thread().ptflow("calls", &["--function", "last", "--csv"]);
    let mut found: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
    for line in csv.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let number = |at: usize| fields[at].parse::<u64>().expect("a number");
        found.entry(number(1) as u32).or_default().push((number(2), number(9)));
    }
    for (tid, expected) in by_thread().truth("last", |_| false) {
        let found = &found[&tid];
        assert_eq!(found.len(), expected.len());
        let cycles = |one: &Invocation| one.cycles.1 - one.cycles.0;
        for (found, expected) in found.iter().zip(&expected) {
            let apart = found.1.abs_diff(cycles(expected));
            assert!(apart <= 12, "{} cycles, not {}", found.1, cycles(expected));
        }
    }
}
