//! The shipped sample, through the binary, against the recorder's truth that lies beside it.

use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench-traces/samples/requests")
}

/// Runs `ptflow VERB sample ARGS --images …`.
fn ptflow(verb: &[&str], args: &[&str]) -> Output {
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
fn succeed(output: Output) -> Vec<u8> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn truth() -> String {
    std::fs::read_to_string(sample().join("truth.edges")).expect("the truth is there")
}

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

/// Functions by start: end, and all names.
fn functions() -> BTreeMap<u64, (u64, Vec<String>)> {
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
fn true_calls(functions: &BTreeMap<u64, (u64, Vec<String>)>) -> BTreeMap<u64, u64> {
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

fn json(output: Output) -> serde_json::Value {
    serde_json::from_slice(&succeed(output)).expect("JSON")
}

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

/// What runs into each branch is what the recorder saw leave it: the two are counted from different rows.
#[test]
fn ranges_for_bolt_conserve_the_flow() {
    let text =
        String::from_utf8(succeed(ptflow(&["profile"], &["--format", "bolt-preaggregated"]))).expect("text");
    let again = succeed(ptflow(&["profile"], &["--format", "bolt-preaggregated", "--threads", "3"]));
    assert!(text.as_bytes() == again, "the same for any number of threads");
    let hex = |text: &str| u64::from_str_radix(text, 16).expect("an address");
    let mut into: BTreeMap<u64, u64> = BTreeMap::new();
    let mut taken: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let count: u64 = fields[3].parse().expect("a count");
        match fields[0] {
            "B" => assert_eq!(taken.insert((hex(fields[1]), hex(fields[2])), count), None),
            "F" | "f" => *into.entry(hex(fields[2])).or_insert(0) += count,
            other => panic!("{other}"),
        }
    }
    let (mut left, mut true_taken) = (BTreeMap::new(), BTreeMap::new());
    let mut system_calls = Vec::new();
    for row in ptflow_exporters::edges::read(truth().as_bytes()).expect("the truth") {
        let addr = |text: &Option<String>| text.as_ref().map(|text| hex(text.trim_start_matches("0x")));
        match (row.kind.name(), addr(&row.from), addr(&row.to)) {
            ("syscall", Some(from), _) => system_calls.push(from),
            ("async" | "resume" | "far", ..) => {}
            (_, Some(from), Some(to)) => {
                *left.entry(from).or_insert(0) += row.taken + row.not_taken;
                if row.taken > 0 {
                    *true_taken.entry((from, to)).or_insert(0) += row.taken;
                }
            }
            _ => {}
        }
    }
    assert_eq!(taken, true_taken);
    // The program's last system call does not come back.
    into.retain(|end, _| !system_calls.contains(end));
    assert_eq!(into, left);
}

/// A trace by Intel PT is counted edge by edge: nothing says what ran behind which branch.
#[test]
fn traces_for_bolt_are_of_branch_stacks() {
    for format in ["bolt-preaggregated", "edges"] {
        let refused = ptflow(&["profile"], &["--format", format, "--traces"]);
        assert_eq!(refused.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&refused.stderr).contains("--traces is for "), "{format}");
    }
}

/// perf2bolt's own output, from our records.
#[test]
fn bolt_by_way_of_perf2bolt() {
    let folder = TempDir::new().expect("a folder");
    let fdata = folder.path().join("out.fdata");
    let output = ptflow(&["profile"], &["--format", "bolt", "-o", fdata.to_str().expect("UTF-8")]);
    if String::from_utf8_lossy(&output.stderr).contains("perf2bolt is not installed") {
        println!("skipped: there is no perf2bolt; install Debian's package bolt-19");
        return;
    }
    succeed(output);
    let lines = std::fs::read_to_string(&fdata).expect("written");
    assert!(lines.lines().any(|line| line.contains(" handle_request/")), "no branch of handle_request");
    assert_eq!(ptflow(&["profile"], &["--format", "bolt"]).status.code(), Some(2));
}

/// What llvm-profgen makes of our counts is what we make of them.
#[test]
fn a_sample_profile_by_way_of_llvm_profgen() {
    let folder = TempDir::new().expect("a folder");
    let shown = |profile: &[u8]| {
        let path = folder.path().join("profile");
        std::fs::write(&path, profile).expect("written");
        let show = ["show", "--sample", "--all-functions", path.to_str().expect("UTF-8")];
        let llvm_profdata = "/usr/lib/llvm-19/bin/llvm-profdata";
        let output = Command::new(llvm_profdata).args(show).output();
        let text = succeed(output.expect("llvm-profdata runs: it is in Debian's package llvm-19"));
        assert!(String::from_utf8_lossy(&text).contains("handle_request"));
        text
    };
    for format in ["llvm", "llvm-extbinary"] {
        let theirs = ptflow(&["profile"], &["--format", format, "--via", "llvm-profgen"]);
        if String::from_utf8_lossy(&theirs.stderr).contains("llvm-profgen is not installed") {
            println!("skipped: there is no llvm-profgen; install Debian's package llvm-19");
            return;
        }
        let theirs = succeed(theirs);
        let ours = succeed(ptflow(&["profile"], &["--format", format]));
        match format {
            "llvm" => assert_eq!(String::from_utf8_lossy(&theirs), String::from_utf8_lossy(&ours)),
            // The order of names is free; LLVM reads the same of both.
            _ => assert!(shown(&theirs) == shown(&ours)),
        }
    }
    assert_eq!(ptflow(&["profile"], &["--via", "llvm-profgen"]).status.code(), Some(2));
}

/// Of a tool that fails, its last words are told; the one in PATH is taken first.
#[test]
fn a_tool_that_fails_is_told() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = TempDir::new().expect("a folder");
    let tool = folder.path().join("llvm-profgen");
    std::fs::write(&tool, "#!/bin/sh\necho 'it broke' >&2; exit 3\n").expect("written");
    std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).expect("made executable");
    let output = Command::new(env!("CARGO_BIN_EXE_ptflow"))
        .arg("profile")
        .arg(sample().join("perf.data"))
        .arg("--images")
        .arg(sample())
        .args(["--format", "llvm", "--via", "llvm-profgen"])
        .env("PATH", format!("{}:/usr/bin:/bin", folder.path().display()))
        .output()
        .expect("ptflow runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{error}");
    assert!(error.contains(&format!("{}: it broke", tool.display())), "{error}");
}

/// Two binaries of one name: each has a file of its own in the folder, and in it what it has alone.
#[test]
fn several_binaries_are_several_files() {
    let folder = TempDir::new().expect("a folder");
    let other = folder.path().join("other");
    std::fs::create_dir(&other).expect("a folder");
    // The same program by another build id.
    let program = std::fs::read(sample().join("requests")).expect("the program");
    let file = object::File::parse(&*program).expect("an ELF file");
    let id = file.build_id().expect("notes").expect("a build id").to_owned();
    let other_id: Vec<u8> = id.iter().map(|byte| !byte).collect();
    for name in ["requests", "perf.data"] {
        let mut bytes = std::fs::read(sample().join(name)).expect("a file");
        let found: Vec<usize> =
            bytes.windows(id.len()).enumerate().filter(|(_, own)| *own == id).map(|(at, _)| at).collect();
        assert!(!found.is_empty(), "{name} tells the build id");
        for at in found {
            bytes[at..at + id.len()].copy_from_slice(&other_id);
        }
        std::fs::write(other.join(name), bytes).expect("written");
    }
    let out = folder.path().join("out");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let (capture, images) = (text(&other.join("perf.data")), text(&other));
    let to = format!("{}/", text(&out));
    let args = [&*capture, "--images", &images, "--format", "bolt-preaggregated", "-o", &to];
    let output = ptflow(&["profile"], &args);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    succeed(output);
    let entries = std::fs::read_dir(&out).expect("the folder is made");
    let files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    assert_eq!(files.len(), 2, "{files:?}");
    let alone = succeed(ptflow(&["profile"], &["--format", "bolt-preaggregated"]));
    for file in &files {
        let name = file.file_name().and_then(|name| name.to_str()).expect("UTF-8");
        assert!(
            name == "requests" || name.strip_prefix("requests.").is_some_and(|id| id.len() == 40),
            "{name}"
        );
        assert!(std::fs::read(file).expect("a file") == alone, "{name}");
        assert!(told.contains(&format!("ptflow: wrote {}, of ", file.display())), "{told}");
    }
    // One file for all: nothing to put into a folder.
    assert_eq!(ptflow(&["profile"], &["-o", &to]).status.code(), Some(2));
}

/// Every instruction is some function's own, and of one stack; pprof's message is not empty.
#[test]
fn stacks_have_all_instructions() {
    let folder = TempDir::new().expect("a folder");
    let report = folder.path().join("report");
    let profile = |format: &str| {
        let report = report.to_str().expect("UTF-8");
        succeed(ptflow(&["profile"], &["--quiet", "--format", format, "--report", report]))
    };
    let functions = String::from_utf8(profile("functions")).expect("text");
    let folded = String::from_utf8(profile("folded")).expect("text");
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&report).expect("a report")).expect("JSON");
    let all = report["instructions"].as_u64().expect("a number");
    let sum = |line: &str, field: fn(&str) -> Option<&str>| -> u64 {
        field(line).and_then(|text| text.parse().ok()).expect("a number")
    };
    let folded = folded.lines().map(|line| sum(line, |line| line.rsplit(' ').next()));
    assert_eq!(folded.sum::<u64>(), all);
    let rows: Vec<&str> = functions.lines().filter(|line| !line.starts_with('#')).collect();
    let own: u64 = rows.iter().map(|line| sum(line, |line| line.split('\t').nth(2))).sum();
    assert!(own <= all && own > all / 10 * 9, "{own} of {all} in functions");
    // As calls counts it: 400 requests.
    let calls = json(ptflow(&["calls"], &["--function", "handle_request", "--json"]));
    let row = rows.iter().find(|row| row.starts_with("handle_request\t")).expect("the function");
    assert_eq!(Some(sum(row, |line| line.split('\t').nth(1))), calls["count"].as_u64());
    assert_eq!(profile("pprof")[..2], [0x1f, 0x8b]);
}

/// The tables of conditional branches: each branch as the recorder saw it go, each function with those that lie in it.
#[test]
fn branches_went_where_the_truth_says() {
    let table = |args: &[&str]| -> Vec<Vec<String>> {
        let text = String::from_utf8(succeed(ptflow(&["profile"], args))).expect("text");
        let rows = text.lines().filter(|line| !line.starts_with('#'));
        rows.map(|line| line.split('\t').map(str::to_owned).collect()).collect()
    };
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let mut truly: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for line in truth().lines().filter(|line| line.starts_with("jcc\t")) {
        let fields: Vec<&str> = line.split('\t').collect();
        let ways = truly.entry(fields[1].to_owned()).or_default();
        *ways = (ways.0 + number(fields[3]), ways.1 + number(fields[4]));
    }
    let branches = table(&["--format", "branches", "--addresses", "runtime"]);
    let found = branches.iter().map(|row| (row[1].clone(), (number(&row[2]), number(&row[3]))));
    assert_eq!(found.collect::<BTreeMap<_, _>>(), truly);
    assert_eq!(branches.len(), truly.len());
    // Those of a function by the symbol table: name, branches, never taken, always taken.
    let functions = functions();
    let bias = table(&["--format", "bias"]);
    let mut compared = 0;
    for name in ["handle_request", "main"] {
        let (start, end) = functions
            .iter()
            .find_map(|(start, (end, names))| names.iter().any(|own| own == name).then_some((*start, *end)))
            .expect("the function");
        let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("an address");
        let own: Vec<_> = truly.iter().filter(|(at, _)| (start..end).contains(&hex(at))).collect();
        let names = branches.iter().filter(|row| row[0] == name).map(|row| &row[1]);
        assert!(names.eq(own.iter().map(|branch| branch.0)), "{name}");
        let count = |is: fn(&(u64, u64)) -> bool| own.iter().filter(|branch| is(branch.1)).count() as u64;
        let expected = [
            own.len() as u64,
            count(|ways| ways.0 == 0),
            count(|ways| ways.1 == 0),
            own.iter().map(|b| b.1.0).sum(),
            own.iter().map(|b| b.1.1).sum(),
        ];
        let Some(row) = bias.iter().find(|row| row[0] == name) else {
            assert!(own.is_empty(), "{name}");
            continue;
        };
        assert_eq!(row[2..7].iter().map(|text| number(text)).collect::<Vec<_>>(), expected, "{name}");
        let rarer = own.iter().map(|branch| branch.1.0.min(branch.1.1)).max();
        assert_eq!(rarer, Some(number(&row[8]).min(number(&row[9]))), "{name}");
        compared += 1;
    }
    assert!(compared > 0);
    // All of them: as many as there are, and none twice.
    let sum = |column: usize| bias.iter().map(|row| number(&row[column])).sum::<u64>();
    let count = |is: fn(&(u64, u64)) -> bool| truly.values().filter(|ways| is(ways)).count() as u64;
    assert_eq!(
        (sum(2), sum(3), sum(4)),
        (truly.len() as u64, count(|ways| ways.0 == 0), count(|ways| ways.1 == 0))
    );
    // The same of a table of edges, whose functions the binary names.
    let folder = TempDir::new().expect("a folder");
    let edges = folder.path().join("edges");
    std::fs::write(&edges, succeed(ptflow(&["profile"], &[]))).expect("written");
    let program = sample().join("requests");
    let of_table = Command::new(env!("CARGO_BIN_EXE_ptflow"))
        .args(["profile", "--format", "bias", "--binary", program.to_str().expect("UTF-8")])
        .arg(&edges)
        .output()
        .expect("ptflow runs");
    assert_eq!(succeed(of_table), succeed(ptflow(&["profile"], &["--format", "bias"])));
}

/// The check: of what was traced all fits; one record that the program cannot have made is named.
#[test]
fn a_profile_is_checked_against_the_binary() {
    let program = sample().join("requests");
    let program = program.to_str().expect("UTF-8");
    let output = ptflow(&["profile"], &["--format", "bolt-preaggregated"]);
    let verdict = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(verdict.contains(" records fit the binary; flow is conserved at all "), "{verdict}");
    let folder = TempDir::new().expect("a folder");
    let table = folder.path().join("edges");
    let edges = String::from_utf8(succeed(ptflow(&["profile"], &[]))).expect("text");
    let check = |edges: &str| {
        std::fs::write(&table, edges).expect("written");
        let table = table.to_str().expect("UTF-8");
        let output = Command::new(env!("CARGO_BIN_EXE_ptflow"))
            .args(["profile", table, "--check", program, "-o", "/dev/null"])
            .output()
            .expect("ptflow runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (status, verdict) = check(&edges);
    assert_eq!(status, Some(0), "{verdict}");
    assert!(verdict.contains(" records fit"), "{verdict}");
    // A direct call led one byte further.
    let call = edges.lines().find(|line| line.starts_with("call\t")).expect("a call");
    let (start, counts) = call.split_at(call.match_indices('\t').nth(2).expect("a third tab").0);
    let (image, to) = start.rsplit_once("0x").expect("an address");
    let to = u64::from_str_radix(to, 16).expect("hex") + 1;
    let (status, verdict) = check(&edges.replace(call, &format!("{image}{to:#x}{counts}")));
    assert_eq!(status, Some(1), "{verdict}");
    assert!(verdict.contains("records do not fit the binary, first branch "), "{verdict}");
    assert!(verdict.contains("the branch goes elsewhere"), "{verdict}");
}

#[test]
fn a_binary_is_chosen_by_path_or_build_id() {
    let profile =
        |binary: &str| ptflow(&["profile"], &["--format", "bolt-preaggregated", "--binary", binary]);
    let program = sample().join("requests");
    let by_path = succeed(profile(program.to_str().expect("UTF-8")));
    assert!(by_path == succeed(ptflow(&["profile"], &["--format", "bolt-preaggregated"])));
    let edges = String::from_utf8(succeed(ptflow(&["profile"], &[]))).expect("text");
    let build_id =
        edges.lines().last().and_then(|line| line.split('\t').nth(1)?.split(':').next()).expect("an image");
    assert!(by_path == succeed(profile(build_id)));
    let refused = profile("no-such-binary");
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no-such-binary is no binary of this capture"));
}
