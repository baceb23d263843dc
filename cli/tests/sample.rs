//! The shipped sample: edges, lists and the ledger are the recorder's truth, which lies beside it.

mod requests;

use requests::{ptflow, sample, succeed, truth};
use std::collections::BTreeMap;
use tempfile::TempDir;

#[test]
fn edges_are_the_truth_for_any_number_of_threads() {
    for threads in ["1", "2", "7"] {
        let out = succeed(ptflow(&["profile"], &["--addresses", "runtime", "--threads", threads]));
        assert!(out == truth().as_bytes(), "{threads} threads");
    }
    let by_image = String::from_utf8(succeed(ptflow(&["profile"], &[]))).expect("text");
    assert_eq!(by_image.lines().count(), truth().lines().count());
    // The program is loaded where it says: only the image's name is new.
    let line = by_image.lines().find(|line| line.starts_with("jcc")).expect("a conditional branch");
    let fields: Vec<&str> = line.split('\t').collect();
    assert!(fields[1].split_once(":0x").is_some_and(|(image, _)| image.len() == 40), "{line}");
}

#[test]
fn the_ledger_adds_up() {
    let folder = TempDir::new().expect("a folder");
    let report = folder.path().join("report.json");
    succeed(ptflow(&["profile"], &["--report", report.to_str().expect("UTF-8")]));
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(report).expect("a report")).expect("JSON");
    assert_eq!(report["pt_bytes_in"], report["pt_bytes_decoded"]);
    assert_eq!(report["lost"], serde_json::json!([]));
    let totals: serde_json::Value =
        serde_json::from_slice(&std::fs::read(sample().join("totals.json")).expect("totals")).expect("JSON");
    assert_eq!(report["pt_bytes_in"], totals["bytes"]);
    assert_eq!(report["instructions"], totals["instructions"]);
}

#[test]
fn the_branch_list_holds_every_taken_branch_in_order_of_time() {
    let text = String::from_utf8(succeed(ptflow(&["dump", "branches"], &[]))).expect("text");
    let mut counts: BTreeMap<(String, String, String), u64> = BTreeMap::new();
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [ns, tid, kind, from, to] = fields[..] else { panic!("five fields: {line}") };
        let ns: u64 = ns.parse().expect("a time");
        let before = last.insert(tid.to_owned(), ns).unwrap_or(0);
        assert!(before <= ns, "time falls: {line}");
        *counts.entry((kind.to_owned(), from.to_owned(), to.to_owned())).or_insert(0) += 1;
    }
    let mut expected = BTreeMap::new();
    for row in ptflow_exporters::edges::read(truth().as_bytes()).expect("the truth") {
        if row.taken > 0 {
            let dash = |addr: Option<String>| addr.unwrap_or_else(|| "-".to_owned());
            expected.insert((row.kind.name().to_owned(), dash(row.from), dash(row.to)), row.taken);
        }
    }
    assert!(counts == expected, "the lines, counted, are the truth's rows");
}

/// Each instruction of a branch was executed as often as the branch was taken or not, and all together as the recorder
/// counted; times do not fall.
#[test]
fn the_instruction_list_is_what_was_executed() {
    let text = String::from_utf8(succeed(ptflow(&["dump", "instructions"], &[]))).expect("text");
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    let mut total = 0;
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [ns, tid, ip] = fields[..] else { panic!("three fields: {line}") };
        let ns: u64 = ns.parse().expect("a time");
        assert!(last.insert(tid, ns).unwrap_or(0) <= ns, "time falls: {line}");
        *counts.entry(ip).or_insert(0) += 1;
        total += 1;
    }
    let totals: serde_json::Value =
        serde_json::from_slice(&std::fs::read(sample().join("totals.json")).expect("totals")).expect("JSON");
    assert_eq!(totals["instructions"], total);
    let mut branches: BTreeMap<String, u64> = BTreeMap::new();
    for row in ptflow_exporters::edges::read(truth().as_bytes()).expect("the truth") {
        if let (Some(from), false) = (row.from, row.kind == ptflow_decoder::profile::EdgeKind::Async) {
            *branches.entry(from).or_insert(0) += row.taken + row.not_taken;
        }
    }
    for (ip, count) in branches {
        assert_eq!(counts.get(&*ip), Some(&count), "{ip}");
    }
}

#[test]
fn packets_are_listed() {
    let text = String::from_utf8(succeed(ptflow(&["dump", "packets"], &[]))).expect("text");
    assert_eq!(text.lines().filter(|line| line.starts_with("# tid ")).count(), 5);
    assert!(text.lines().any(|line| line.ends_with("psbend")));
    assert!(!text.contains("no packet"));
}

#[test]
fn info_as_json() {
    let info: serde_json::Value =
        serde_json::from_slice(&succeed(ptflow(&["info"], &["--json"]))).expect("JSON");
    assert_eq!(info["streams"].as_array().map(Vec::len), Some(5));
    assert_eq!(info["images"][0]["status"], "found");
    assert_eq!(info["settings"]["cyc"], true);
    assert!(info["first_pt_ns"].is_u64());
}
