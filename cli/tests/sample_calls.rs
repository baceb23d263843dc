//! `ptflow calls` on the shipped sample: invocations are the calls of the recorder's truth.

mod requests;

use requests::{functions, json, ptflow, sample, succeed, true_calls, truth};
use std::collections::BTreeMap;
use std::process::Command;
use tempfile::TempDir;

/// Every function's invocations, inner ones too, are as many as the truth has calls of it.
#[test]
fn invocations_are_the_truths_calls() {
    let result = json(ptflow(&["calls"], &["--function", "*", "--recursive", "--json"]));
    let of_function = |function: &serde_json::Value| {
        let name = function["name"].as_str().expect("a name").to_owned();
        (name, function["count"].as_u64().expect("a count"))
    };
    let mut found: BTreeMap<String, u64> = BTreeMap::new();
    for (name, count) in result["functions"].as_array().expect("functions").iter().map(of_function) {
        *found.entry(name).or_insert(0) += count;
    }
    let functions = functions();
    let mut expected: BTreeMap<&String, u64> = BTreeMap::new();
    for (start, count) in true_calls(&functions) {
        // A PLT stub and what else has no name in the table is no function.
        let name = functions[&start].1.iter().find(|name| found.contains_key(*name)).expect("a name");
        *expected.entry(name).or_insert(0) += count;
    }
    found.retain(|_, count| *count > 0);
    assert_eq!(found.iter().map(|(name, count)| (name, *count)).collect::<BTreeMap<_, _>>(), expected);
    assert_eq!(result["count"].as_u64(), Some(expected.values().sum()));
}

/// One request of 400 is slow: the one that had to make the table larger (NOTE.md, where the figures are perf's).
#[test]
fn the_slowest_request_is_the_planted_one() {
    let requests = json(ptflow(&["calls"], &["--function", "handle_request", "--json", "--top", "2"]));
    assert_eq!([&requests["count"], &requests["complete"]], [400, 400]);
    assert_eq!(requests["open_at_start"], 0);
    let ns = &requests["ns"];
    let near = |value: &serde_json::Value, expected: f64| {
        let value = value.as_f64().expect("a number") / 1000.0;
        assert!((value - expected).abs() <= 0.01 * expected, "{value} µs, not {expected}");
    };
    near(&ns["max"], 141.0);
    near(&ns["p50"], 5.8);
    let slowest = requests["slowest"].as_array().expect("a list");
    near(&slowest[0]["duration_ns"], 141.0);
    near(&slowest[1]["duration_ns"], 6.6);
    let rehash = json(ptflow(&["calls"], &["--function", "rehash", "--json"]));
    assert_eq!(rehash["count"], 1);
    let (request, rehash) = (&slowest[0], &rehash["slowest"][0]);
    assert_eq!(request["tid"], rehash["tid"]);
    let span = |of: &serde_json::Value| {
        let start = of["start_ns"].as_u64().expect("a time");
        start..start + of["duration_ns"].as_u64().expect("a duration")
    };
    assert!(span(request).start < span(rehash).start && span(rehash).end < span(request).end);
}

/// The instructions of each invocation are those listed from its first one up to where its call returns to; the order of
/// a thread's invocations is the same.
#[test]
fn instructions_of_an_invocation_are_those_between_call_and_return() {
    let csv = String::from_utf8(succeed(ptflow(&["calls"], &["--function", "handle_request", "--csv"])))
        .expect("text");
    let mut found: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for line in csv.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let [_, tid, _, _, instructions, "seen", "seen", ..] = fields[..] else { panic!("{line}") };
        found.entry(tid).or_default().push(instructions.parse().expect("a count"));
    }
    let functions = functions();
    let is_it = |of: &(&u64, &(u64, Vec<String>))| of.1.1.iter().any(|name| name == "handle_request");
    let start = format!("{:#x}", functions.iter().find(is_it).expect("it is there").0);
    // It is called in one place, by a direct call: five bytes.
    let rows = ptflow_exporters::edges::read(truth().as_bytes()).expect("the truth");
    let calls: Vec<_> = rows.iter().filter(|row| row.to.as_ref() == Some(&start)).collect();
    let [call] = calls[..] else { panic!("one call: {calls:?}") };
    let from = call.from.as_ref().expect("an address").trim_start_matches("0x").to_owned();
    let behind = format!("{:#x}", u64::from_str_radix(&from, 16).expect("an address") + 5);

    let list = String::from_utf8(succeed(ptflow(&["dump", "instructions"], &[]))).expect("text");
    let mut expected: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    let mut running: BTreeMap<&str, u64> = BTreeMap::new();
    for line in list.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [_, tid, ip] = fields[..] else { panic!("three fields: {line}") };
        if ip == behind
            && let Some(count) = running.remove(tid)
        {
            expected.entry(tid).or_default().push(count);
        }
        if ip == start {
            running.insert(tid, 0);
        }
        if let Some(count) = running.get_mut(tid) {
            *count += 1;
        }
    }
    assert_eq!(found.values().map(Vec::len).sum::<usize>(), 400);
    assert_eq!(found, expected);
}

/// A gap cuts an invocation in two: neither half is in the figures, and both are told.
#[test]
fn what_a_gap_cuts_is_not_complete() {
    let psb: Vec<u8> = [0x02, 0x82].repeat(8);
    let mut capture = std::fs::read(sample().join("perf.data")).expect("the sample");
    let psbs: Vec<usize> = (0..capture.len()).filter(|at| capture[*at..].starts_with(&psb)).collect();
    // No packet begins with these bytes (SDM vol. 3C, table of packet opcodes).
    let at = psbs[psbs.len() / 3] + 300;
    capture[at..at + 16].copy_from_slice(&[0x02, 0x01].repeat(8));
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("damaged.data");
    std::fs::write(&path, capture).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_ptflow"))
        .args(["calls", "--function", "work", "--json", "--images"])
        .args([sample(), path])
        .output()
        .expect("ptflow runs");
    let warned = String::from_utf8_lossy(&output.stderr).contains("lost: ");
    assert!(warned, "the loss is told");
    let work = json(output);
    let figures = ["count", "complete", "end_in_gap", "begin_in_gap", "open_at_start", "open_at_end"];
    assert_eq!(figures.map(|name| work[name].as_u64().expect("a count")), [4, 3, 1, 1, 0, 0], "{work}");
}

#[test]
fn a_function_that_is_not_there_is_told_with_its_like() {
    let output = ptflow(&["calls"], &["--function", "handle_reqests"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("no function is named handle_reqests; there are: handle_request"), "{text}");
    // Another name of the same address is as good.
    let mutex = json(ptflow(&["calls"], &["--function", "pthread_mutex_lock", "--json"]));
    assert_eq!(mutex["functions"][0]["name"], "__pthread_mutex_lock");
}

/// Asked about alone, where calls of others are left out early, a function has the invocations that it has among all.
#[test]
fn a_function_alone_is_as_among_all() {
    let rows = |function: &str| -> Vec<String> {
        let csv = succeed(ptflow(&["calls"], &["--function", function, "--recursive", "--csv"]));
        String::from_utf8(csv).expect("text").lines().skip(1).map(str::to_owned).collect()
    };
    let all = rows("*");
    let mut checked = 0;
    for name in [
        "handle_request",
        "render",
        "render_field",
        "append",
        "insert",
        "rehash",
        "work",
        "main",
        "sift",
        "__pthread_create",
        "__pthread_mutex_unlock",
        "_start_c",
        "memcpy",
        "__clone",
    ] {
        let expected: Vec<&String> = all.iter().filter(|row| row.split(',').next() == Some(name)).collect();
        let found = rows(name);
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{name}");
        checked += found.len();
    }
    assert!(checked > 50_000, "{checked}");
}

/// Functions by regular expression and by several names are those that the names alone give.
#[test]
fn several_functions_and_expressions() {
    let count = |args: &[&str]| {
        let result = json(ptflow(&["calls"], &[args, &["--json", "--recursive"]].concat()));
        let functions = result["functions"].as_array().expect("functions").len();
        (functions, result["count"].as_u64().expect("a count"))
    };
    let single = |name| count(&["--function", name]);
    let (render, field) = (single("render"), single("render_field"));
    assert!(render.1 > 400 && field.1 > 400);
    let both = (2, render.1 + field.1);
    assert_eq!(count(&["--function", "render", "--function", "render_field"]), both);
    assert_eq!(count(&["--regex", "--function", "^render(_field)?$"]), both);
    assert_eq!(count(&["--function", "requests:render"]), render);
    for wrong in [&["--regex", "--function", "("][..], &[], &["--function", "f", "--between", "a", "b"]] {
        assert_eq!(ptflow(&["calls"], wrong).status.code(), Some(2), "{wrong:?}");
    }
    let output = ptflow(&["calls"], &["--function", "no:render"]);
    assert_eq!(output.status.code(), Some(1));
}

/// A worker takes a request, handles it, and takes the next: from one taking to the next lies one handling.
#[test]
fn between_two_markers_lies_what_they_enclose() {
    let rows = |args: &[&str]| -> Vec<(u32, u64, u64, u64)> {
        let csv = String::from_utf8(succeed(ptflow(&["calls"], &[args, &["--csv"]].concat()))).expect("text");
        let row = |line: &str| {
            let fields: Vec<&str> = line.split(',').collect();
            let number = |at: usize| fields[at].parse::<u64>().expect("a number");
            (fields[5..7] == ["seen", "seen"])
                .then(|| (number(1) as u32, number(2), number(2) + number(3), number(4)))
        };
        csv.lines().skip(1).filter_map(row).collect()
    };
    let handled = rows(&["--function", "handle_request"]);
    let taken = rows(&["--function", "take_request"]);
    let cycles = rows(&["--between", "take_request", "take_request"]);
    assert_eq!((handled.len(), taken.len()), (400, 404));
    // Each worker's last taking gets nothing.
    assert_eq!(cycles.len(), 400);
    let mut handled_in = 0;
    for (tid, start, end, instructions) in cycles {
        let inside = |of: &&(u32, u64, u64, u64)| of.0 == tid && start <= of.1 && of.2 <= end;
        let [handled] = handled.iter().filter(inside).collect::<Vec<_>>()[..] else { panic!("one in each") };
        let [taken] = taken.iter().filter(inside).collect::<Vec<_>>()[..] else { panic!("one in each") };
        // And a few more: taking ends with a tail call of pthread_mutex_unlock, which is another function.
        let more = instructions - handled.3 - taken.3;
        assert!((1..100).contains(&more), "{more}");
        handled_in += 1;
    }
    assert_eq!(handled_in, 400);
    assert_eq!(rows(&["--between", "handle_request", "take_request"]).len(), 400);
}
