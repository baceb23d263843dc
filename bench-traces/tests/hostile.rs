//! Traces that mean harm cost no more than their length says: work, counted by valgrind, and memory, as the kernel tells.
//!
//! Of each, three lengths are decoded, each twice the one before. What the longest costs more than the next may not be much
//! more than twice what that costs more than the shortest; what is done once (tables, code) is in neither.

mod kit;

use kit::{MEASURED, build, count};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

/// Every case of `examples/hostile.rs`.
const CASES: [&str; 14] = [
    "windows",
    "desyncs",
    "cycles",
    "psbs",
    "psbs-with-time",
    "targets",
    "long-blocks",
    "nowhere",
    "circles",
    "calls",
    "overflows",
    "stops",
    "times",
    "noise",
];
/// Ways to decode them.
const JOBS: [&str; 3] = ["profile", "lanes", "calls"];
/// Twice the length costs at most so many times as much.
const FACTOR: f64 = 2.3;

#[test]
fn work_is_linear() {
    linear(&["windows", "desyncs", "psbs", "targets", "nowhere", "stops"], 64 << 10);
}

#[test]
#[ignore = "takes minutes: cargo test -p ptflow-bench-traces --test hostile -- --ignored"]
fn work_is_linear_in_every_case() {
    linear(&CASES, 64 << 10);
}

/// Long enough for windows to be given up and units to be walked side by side, as they are by default.
#[test]
#[ignore = "takes minutes: cargo test -p ptflow-bench-traces --test hostile -- --ignored"]
fn work_is_linear_on_longer_ones() {
    linear(&["windows", "desyncs", "cycles", "noise"], 1 << 20);
}

fn linear(cases: &[&str], bytes: u64) {
    let program = build("hostile");
    let queue: Mutex<Vec<(&str, &str)>> =
        Mutex::new(cases.iter().flat_map(|case| JOBS.map(|job| (*case, job))).collect());
    let wrong = Mutex::new(String::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((case, job)) = take(&queue) {
                    let [first, second, third] =
                        [1, 2, 4].map(|times| work(&program, case, job, times * bytes) as f64);
                    let factor = (third - second) / (second - first).max(1.0);
                    let line = format!(
                        "{case}, {job}: {first:.3e}, {second:.3e}, {third:.3e} instructions, × {factor:.2}"
                    );
                    println!("{line}");
                    // By default windows are tried and given up by their luck: a byte costs now less, now more. There the
                    // whole has to do where the parts are no measure.
                    let whole = job == "profile" && third <= FACTOR * second && second <= FACTOR * first;
                    // Less than twice as much is welcome.
                    if factor > FACTOR && !whole {
                        *wrong.lock().expect("no one panics") += &(line + "\n");
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().expect("no one panics");
    assert!(wrong.is_empty(), "more than {FACTOR} times as much:\n{wrong}");
}

fn take<T>(queue: &Mutex<Vec<T>>) -> Option<T> {
    queue.lock().expect("no one panics").pop()
}

/// Instructions of the decoding alone.
fn work(program: &Path, case: &str, job: &str, bytes: u64) -> u64 {
    let bytes = bytes.to_string();
    match job {
        "calls" => {
            count(program, &[], &[case, job, &bytes]) - count(program, &[], &[case, "nothing", &bytes])
        }
        _ => count(program, &MEASURED, &[case, job, &bytes]),
    }
}

#[test]
fn memory_is_bounded() {
    bounded("profile");
}

#[test]
#[ignore = "takes a minute: cargo test -p ptflow-bench-traces --test hostile -- --ignored"]
fn memory_of_calls_is_bounded() {
    bounded("calls");
}

fn bounded(job: &str) {
    let program = build("hostile");
    let mut wrong = String::new();
    for case in CASES {
        let [short, long] = [8 << 20, 16 << 20].map(|bytes| peak(&program, case, job, bytes));
        let a_byte = (long as f64 - short as f64) / f64::from(8 << 20);
        println!("{case}, {job}: {short}, {long} bytes, {a_byte:.1} a byte of trace");
        // The trace itself; an entry for every loss, of which there may be one in ten bytes; and of calls the units in
        // flight, which begin at no even places.
        let has_losses = ["psbs", "psbs-with-time", "nowhere", "overflows", "noise"].contains(&case);
        let most = if job == "profile" && !has_losses { 1.3 } else { 5.0 };
        if a_byte > most {
            wrong += &format!("{case}, {job}: {a_byte:.1} bytes a byte of trace\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Peak of resident memory, the trace with it.
fn peak(program: &Path, case: &str, job: &str, bytes: u64) -> u64 {
    let output = Command::new(program).args([case, job, &bytes.to_string()]).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let kb = text.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
    kb.expect("it says its peak") << 10
}
