//! The shipped sample's timeline: its slices are the calls of the recorder's truth, shown or folded.

mod requests;

use requests::{functions, ptflow, succeed, true_calls};
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

/// Slices by name. A thread's times never fall, and every begin has its end.
fn slices(path: &Path) -> BTreeMap<String, u64> {
    let trace: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path).expect("a trace")).expect("valid JSON");
    let mut counts = BTreeMap::new();
    // Open slices and the last time, by thread.
    let mut threads: BTreeMap<u64, (usize, u64)> = BTreeMap::new();
    for event in trace["traceEvents"].as_array().expect("events") {
        // Names, and curves, which lie beside the slices.
        if event["ph"] == "M" || event["ph"] == "C" {
            continue;
        }
        let now = (event["ts"].as_f64().expect("a time") * 1000.0).round() as u64;
        let (open, last) = threads.entry(event["tid"].as_u64().expect("a thread")).or_default();
        assert!(now >= *last, "{event} after {last}");
        *last = now;
        if event["ph"] == "B" {
            *open += 1;
            // A thread begins in the middle of clone(): a frame, but no call.
            if event["cat"] != "inferred" {
                *counts.entry(event["name"].as_str().expect("a name").to_owned()).or_insert(0) += 1;
            }
        } else {
            assert_eq!(event["ph"], "E");
            *open = open.checked_sub(1).expect("an end has a begin");
        }
    }
    assert!(threads.values().all(|(open, _)| *open == 0), "every begin has an end");
    counts
}

#[test]
fn slices_per_function_are_the_truths_calls() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("sample.json");
    succeed(ptflow(&["convert"], &["-o", path.to_str().expect("UTF-8")]));
    let functions = functions();
    let found = slices(&path);
    let mut expected: BTreeMap<&String, u64> = BTreeMap::new();
    for (start, count) in true_calls(&functions) {
        // Which of a function's names is shown is the symbol table's affair.
        let names = &functions[&start].1;
        let shown = names.iter().find(|name| found.contains_key(*name)).unwrap_or(&names[0]);
        *expected.entry(shown).or_insert(0) += count;
    }
    assert!(expected.len() > 50, "the sample calls many functions");
    for (name, count) in &expected {
        assert_eq!(found.get(*name).copied().unwrap_or(0), *count, "slices of {name} and its calls");
    }
    let more: Vec<_> =
        found.iter().filter(|(name, _)| !name.starts_with('[') && !expected.contains_key(name)).collect();
    assert!(more.is_empty(), "slices of functions that were never called: {more:?}");
}

/// Kept and folded calls by function, as the report of a run has them, and how many slices were written.
fn reported(args: &[&str], out: &Path) -> (BTreeMap<String, (u64, u64)>, serde_json::Value) {
    let report = out.with_extension("report");
    let paths = ["-o", out.to_str().expect("UTF-8"), "--report", report.to_str().expect("UTF-8")];
    succeed(ptflow(&["convert"], &[&paths, args].concat()));
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(report).expect("a report")).expect("JSON");
    let mut calls = BTreeMap::new();
    for row in report["calls"].as_array().expect("rows") {
        if row["category"] != "inferred" {
            let count = |key: &str| row[key].as_u64().expect("a number");
            calls.insert(
                row["function"].as_str().expect("a name").to_owned(),
                (count("kept"), count("folded")),
            );
        }
    }
    (calls, report)
}

#[test]
fn a_budget_is_met_and_every_call_accounted_for() {
    let folder = TempDir::new().expect("a folder");
    let full = folder.path().join("full.json");
    let (all, _) = reported(&["--full"], &full);
    // The slices of the whole timeline, which are the truth's calls (above).
    let truth = slices(&full);
    assert_eq!(all, truth.iter().map(|(name, count)| (name.clone(), (*count, 0))).collect());
    for budget in ["1000", "10000"] {
        let path = folder.path().join(format!("{budget}.json"));
        let (calls, report) = reported(&["--max-slices", budget], &path);
        let most: u64 = budget.parse().expect("a number");
        let shown = slices(&path);
        let written = std::fs::read_to_string(&path).expect("a trace").matches("\"ph\":\"B\"").count() as u64;
        assert!(written <= most && written > most / 2, "{written} slices of {budget}");
        assert_eq!(report["slices"], written);
        for (name, count) in &truth {
            let (kept, folded) = calls[name];
            assert_eq!(kept, shown.get(name).copied().unwrap_or(0), "{name}");
            assert_eq!(kept + folded, *count, "{name}");
        }
        assert_eq!(calls.len(), truth.len());
        // What is folded stands on the slices, and the threshold in the file.
        let trace: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).expect("a trace")).expect("JSON");
        let events = trace["traceEvents"].as_array().expect("events");
        let told: u64 = events.iter().filter_map(|event| event["args"]["folded calls"].as_u64()).sum();
        assert!(told > 0 && told <= report["folded"].as_u64().expect("a number"));
        assert!(trace["otherData"]["folded"].as_str().is_some_and(|said| said.contains("shorter than")));
    }
}
