//! Chrome's JSON, read back with serde_json.

mod model;

use model::{
    Format, Model, NOTES, Slice, Stack, assert_same, finish_stacks, gunzip, thousandths, track_name,
};
use serde_json::Value;
use std::collections::BTreeMap;

/// A thread of the file that is a track of notes has this bit in its number.
const NOTE_BIT: u64 = 0x4000_0000;

#[derive(Default)]
struct Trace {
    slices: Vec<Slice>,
    processes: Vec<(u32, String)>,
    threads: Vec<(u32, u32, String)>,
    metadata: BTreeMap<String, String>,
}

/// Nanoseconds of a time that is written in microseconds. serde_json's double is exact enough for what the file holds, and a
/// viewer reads it the same way.
fn nanoseconds(event: &Value, key: &str) -> u64 {
    let micros = event[key].as_f64().expect("a number");
    assert!(micros >= 0.0, "Perfetto drops negative times");
    (micros * 1000.0).round() as u64
}

fn read(bytes: &[u8]) -> Trace {
    let file: Value = serde_json::from_slice(bytes).expect("JSON");
    let mut trace = Trace::default();
    for (key, value) in file["otherData"].as_object().expect("otherData") {
        trace.metadata.insert(key.clone(), value.as_str().expect("a string").to_owned());
    }
    let origin: u64 = trace.metadata["origin_ns"].parse().expect("a number");
    let mut tracks: BTreeMap<(u64, u64), (String, Stack, u64)> = BTreeMap::new();
    for event in file["traceEvents"].as_array().expect("events") {
        let (pid, tid) = (event["pid"].as_u64().expect("pid"), event["tid"].as_u64().expect("tid"));
        let phase = event["ph"].as_str().expect("a phase");
        if phase == "M" {
            let name = event["args"]["name"].as_str().expect("a name").to_owned();
            let notes = (tid & NOTE_BIT != 0).then_some(NOTES);
            let real = (tid & !NOTE_BIT) as u32;
            match event["name"].as_str() {
                Some("process_name") => trace.processes.push((pid as u32, name)),
                Some("thread_name") => {
                    assert_eq!(notes.unwrap_or(&name), name);
                    if notes.is_none() {
                        trace.threads.push((pid as u32, real, name));
                    }
                    let track = track_name(pid as u32, real, notes);
                    assert!(tracks.insert((pid, tid), (track, Stack::default(), 0)).is_none());
                }
                other => panic!("metadata {other:?}"),
            }
            continue;
        }
        let (track, stack, last) = tracks.get_mut(&(pid, tid)).expect("a thread that was named");
        let begin = origin + nanoseconds(event, "ts");
        assert!(begin >= *last, "a thread's events are in the order of time");
        *last = begin;
        let folded = event["args"]["folded calls"].as_u64().unwrap_or(0);
        if phase == "E" {
            let count = |key: &str| event["args"][key].as_u64();
            let ipc = event["args"]["ipc"].as_f64().map(thousandths);
            let work = [count("instructions"), count("cycles"), ipc];
            stack.end(&mut trace.slices, begin, folded, work);
            continue;
        }
        assert_eq!(phase, "B");
        let slice = Slice {
            track: track.clone(),
            begin,
            dur: 0,
            depth: 0,
            name: event["name"].as_str().expect("a name").to_owned(),
            category: event["cat"].as_str().expect("a category").to_owned(),
            folded: 0,
            work: [None; 3],
            parent: None,
        };
        stack.begin(&mut trace.slices, slice);
    }
    finish_stacks(tracks.values().map(|track| &track.1), &mut trace.slices);
    trace
}

fn check(model: &Model) {
    let file = model.file(Format::Chrome);
    let trace = read(&file);
    assert_same(trace.slices, model.slices());
    assert_eq!(trace.processes, model.processes);
    assert_eq!(trace.threads, model.threads());
    assert_eq!(trace.metadata["before"], "all processes");
    assert_eq!(trace.metadata["command"], "record \"it\"");
    assert_eq!(file, model.file(Format::Chrome), "the same calls give the same bytes");
    assert_eq!(file, gunzip(&model.file(Format::ChromeGzip)));
}

#[test]
fn random_calls() {
    for seed in 20..28 {
        check(&Model::random(seed, 5, 2000));
    }
}

#[test]
fn many_threads() {
    check(&Model::random(120, 200, 30));
}

#[test]
fn deep_calls_are_folded() {
    for depth in [511, 512, 513, 3000] {
        check(&Model::deep(depth));
    }
}

#[test]
fn open_calls_are_closed() {
    check(&Model::random(28, 5, 2000).cut());
    check(&Model::deep(3000).cut());
}
