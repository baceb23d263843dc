//! What `ptflow convert` wrote to a Chrome JSON, as slices.
#![allow(dead_code, reason = "each test program uses a part of it")]

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// A slice: what it is, when, what it lies in (among those of its thread), and what is said of it.
#[derive(Clone, PartialEq, Debug)]
pub struct Slice {
    pub tid: u64,
    pub name: String,
    pub category: String,
    pub begin: u64,
    pub end: u64,
    pub inside: Option<usize>,
    pub args: Value,
}

/// A time in a JSON number: a double tells nanoseconds of microseconds well enough, and what was written is on the line.
pub fn ns(event: &Value) -> u64 {
    let text = event["ts"].to_string();
    let (us, rest) = text.split_once('.').unwrap_or((&text, ""));
    let rest: u64 = format!("{rest:0<3}").parse().expect("three digits");
    us.parse::<u64>().expect("a number") * 1000 + rest
}

/// The file's JSON.
pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON")
}

/// The file's slices, in the order in which each thread's begin.
#[track_caller]
pub fn read(path: &Path) -> Vec<Slice> {
    let trace = json(path);
    let origin: u64 = trace["otherData"]["origin_ns"].as_str().expect("text").parse().expect("a number");
    let mut slices: Vec<Slice> = Vec::new();
    let mut open: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for event in trace["traceEvents"].as_array().expect("events") {
        let tid = event["tid"].as_u64().expect("a thread");
        let open = open.entry(tid).or_default();
        match event["ph"].as_str() {
            Some("B") => {
                let text = |what: &str| event[what].as_str().expect("text").to_owned();
                let (name, category) = (text("name"), text("cat"));
                let begin = origin + ns(event);
                let inside = open.last().copied();
                open.push(slices.len());
                slices.push(Slice { tid, name, category, begin, end: 0, inside, args: Value::Null });
            }
            Some("E") => {
                let slice = &mut slices[open.pop().expect("something is open")];
                (slice.end, slice.args) = (origin + ns(event), event["args"].clone());
            }
            _ => {}
        }
    }
    assert!(open.values().all(Vec::is_empty));
    slices
}
