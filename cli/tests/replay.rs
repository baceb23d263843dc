//! `ptflow replay` on the shipped sample: the planted request, its calls, its instructions, and what sets it apart.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench-traces/samples/requests")
}

fn ptflow(verb: &str, args: &[&str]) -> Output {
    of_capture(&sample().join("perf.data"), verb, args)
}

fn of_capture(capture: &Path, verb: &str, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ptflow"))
        .arg(verb)
        .arg(capture)
        .arg("--images")
        .arg(sample())
        .args(args)
        .env_remove("COLUMNS")
        .output()
        .expect("ptflow runs")
}

#[track_caller]
fn text(verb: &str, args: &[&str]) -> String {
    let output = ptflow(verb, args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// The thread's instructions, all of them.
fn dumped(tid: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_ptflow"))
        .args(["dump", "instructions"])
        .arg(sample().join("perf.data"))
        .arg("--images")
        .arg(sample())
        .args(["--thread", tid])
        .output()
        .expect("ptflow runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn json(verb: &str, args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&text(verb, args)).expect("JSON")
}

#[track_caller]
fn refused(args: &[&str], status: i32, expected: &str) {
    let output = ptflow("replay", args);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{error}");
    assert!(error.contains(expected), "{error}");
}

const REQUEST: [&str; 2] = ["--function", "handle_request"];

fn replay(args: &[&str]) -> serde_json::Value {
    json("replay", &[&REQUEST[..], args, &["--json"]].concat())
}

/// The node at a path of names.
fn node<'j>(tree: &'j serde_json::Value, path: &[&str]) -> &'j serde_json::Value {
    path.iter().fold(&tree["root"], |node, name| {
        let children = node["children"].as_array().expect("children");
        children.iter().find(|child| child["name"] == *name).unwrap_or_else(|| panic!("{name} in {node:#}"))
    })
}

/// The line of the program's source that holds a text once.
fn source_line(code: &str) -> String {
    let source = std::fs::read_to_string(sample().join("requests.c")).expect("the source");
    let lines: Vec<usize> =
        source.lines().zip(1..).filter(|(line, _)| line.contains(code)).map(|(_, number)| number).collect();
    let [line] = lines[..] else { panic!("{code} in {lines:?}") };
    format!("requests.c:{line}")
}

/// The only PUT stores when the table is full: all 3,072 items are inserted anew, and what is called where stands in the
/// source.
#[test]
fn the_tree_of_the_slowest_request() {
    let tree = replay(&["--slowest"]);
    let calls = json("calls", &[&REQUEST[..], &["--json"]].concat());
    let slowest = &calls["slowest"][0];
    assert_eq!(tree["tid"], slowest["tid"]);
    assert_eq!(tree["start_ns"], slowest["start_ns"]);
    assert_eq!(tree["root"]["ns"], slowest["duration_ns"]);
    assert_eq!(tree["root"]["instructions"], slowest["instructions"]);
    let rehash = node(&tree, &["store", "rehash"]);
    assert_eq!(rehash["calls"], 1);
    assert_eq!(rehash["called_at"], source_line("table = rehash(table)"));
    let insert = node(&tree, &["store", "rehash", "insert"]);
    assert_eq!(insert["calls"], 3072);
    assert_eq!(insert["called_at"], source_line("insert(wider, item)"));
    assert_eq!(node(&tree, &["store", "rehash", "insert", "hash_name"])["calls"], 3072);
    assert_eq!(node(&tree, &["store", "insert"])["calls"], 1);
    assert_eq!(tree["root"]["called_at"], source_line("*sum += handle_request(text)"));
}

/// What is below a node took no longer and ran no more than the node.
#[test]
fn parts_are_no_more_than_the_whole() {
    fn check(node: &serde_json::Value) {
        for what in ["ns", "instructions"] {
            let of = |node: &serde_json::Value| node[what].as_u64().expect("a number");
            let below: u64 = node["children"].as_array().into_iter().flatten().map(of).sum();
            assert!(below <= of(node), "{what} of {}", node["name"]);
        }
        node["children"].as_array().into_iter().flatten().for_each(check);
    }
    check(&replay(&["--slowest"])["root"]);
    check(&replay(&["--nth", "100"])["root"]);
}

/// By rank, by a moment in it, with an index and without, with any number of threads: it is the same invocation.
#[test]
fn one_invocation_by_every_way() {
    let folder = TempDir::new().expect("a folder");
    let index = folder.path().join("index");
    let index = index.to_str().expect("UTF-8");
    let csv = text("calls", &[&REQUEST[..], &["--csv", "--index", index]].concat());
    assert_eq!(std::fs::read_to_string(index).expect("an index").lines().count(), 400 + 3);
    let mut all: Vec<(u64, u64, u64)> = csv
        .lines()
        .skip(1)
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            let number = |at: usize| fields[at].parse::<u64>().expect("a number");
            (number(2), number(1), number(3))
        })
        .collect();
    all.sort_unstable();
    for nth in [1, 57, 400] {
        let (start, tid, duration) = all[nth - 1];
        let rank = nth.to_string();
        let tree = replay(&["--nth", &rank]);
        assert_eq!([&tree["start_ns"], &tree["tid"], &tree["root"]["ns"]], [start, tid, duration]);
        assert_eq!(tree, replay(&["--nth", &rank, "--index", index]));
        assert_eq!(tree, replay(&["--nth", &rank, "--threads", "1"]));
        let middle = start + duration / 2;
        let clock = format!("{}.{:09}", middle / 1_000_000_000, middle % 1_000_000_000);
        let tid = tid.to_string();
        assert_eq!(tree, replay(&["--at", &clock, "--thread", &tid]));
        let first = json("info", &["--json"])["first_pt_ns"].as_u64().expect("a time");
        assert_eq!(tree, replay(&["--at", &format!("+{}ns", middle - first), "--thread", &tid]));
    }
    all.sort_unstable_by_key(|(start, tid, duration)| (std::cmp::Reverse(*duration), *start, *tid));
    assert_eq!(replay(&["--slowest", "7"])["root"]["ns"], all[6].2);
}

/// What the slow one did and the usual one did not comes first: it stored, and so it rehashed.
#[test]
fn against_the_median_the_planted_difference_is_first() {
    let difference = text("replay", &[&REQUEST[..], &["--slowest", "--against", "median"]].concat());
    let mut rows = difference.lines().skip_while(|line| !line.contains("own time, by path")).skip(1);
    let first = rows.next().expect("a row");
    assert!(first.contains("only here: store") && first.trim_start().starts_with("+135."), "{difference}");
    assert!(rows.next().is_some_and(|line| line.contains("└ rehash, 135.")), "{difference}");
    // route() ends with a jump to store(): it is the call of route() that store() returns to.
    let called = source_line("= route(&request)");
    assert!(
        difference.contains(&format!("at {called} handle_request calls store in this only")),
        "{difference}"
    );
    // The same against a saved one.
    let folder = TempDir::new().expect("a folder");
    let saved = folder.path().join("usual.json");
    let saved = saved.to_str().expect("UTF-8");
    text("replay", &[&REQUEST[..], &["--slowest", "200", "--json", "-o", saved]].concat());
    let beside = |other| {
        let output = Command::new(env!("CARGO_BIN_EXE_ptflow"))
            .arg("replay")
            .arg(sample().join("perf.data"))
            .arg("--images")
            .arg(sample())
            .args([&REQUEST[..], &["--slowest", "--against", other]].concat())
            .env("COLUMNS", "200")
            .output()
            .expect("ptflow runs");
        String::from_utf8(output.stdout).expect("text")
    };
    // But for what the other one is called.
    let table = |text: &str| -> Vec<Vec<String>> {
        let rows = text.lines().skip(4).take_while(|line| !line.starts_with("functions only in"));
        rows.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    };
    assert!(table(&beside("200")).len() > 3);
    assert_eq!(table(&beside(saved)), table(&beside("200")));
}

/// The instructions are those of the thread's list from the first one on, as many as there are.
#[test]
fn the_instructions_are_those_executed() {
    for rank in ["1", "2"] {
        let tree = replay(&["--slowest", rank]);
        let (start, count) = (&tree["start_ns"], tree["root"]["instructions"].as_u64().expect("a count"));
        let args = [&REQUEST[..], &["--slowest", rank, "--instructions", "--unfolded"]].concat();
        let listed = text("replay", &args);
        let address =
            |line: &str| line.split_whitespace().find(|word| word.starts_with("0x")).map(str::to_owned);
        let listed: Vec<String> =
            listed.lines().skip_while(|line| !line.contains("source")).skip(1).filter_map(address).collect();
        assert_eq!(listed.len() as u64, count);
        let all = dumped(&tree["tid"].to_string());
        let mut all = all.lines().map(|line| line.split('\t').collect::<Vec<_>>());
        // The first instruction of the function at that time.
        let found =
            all.find(|fields| fields[2] == listed[0] && fields[0] >= &*start.to_string()).expect("it ran");
        let expected: Vec<&str> =
            std::iter::once(found).chain(all).map(|fields| fields[2]).take(listed.len()).collect();
        assert!(listed == expected);
    }
}

/// The timeline holds the calls of that invocation, no others.
#[test]
fn a_timeline_of_one_invocation() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("slow.json");
    text("replay", &[&REQUEST[..], &["--slowest", "-o", path.to_str().expect("UTF-8")]].concat());
    let trace: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path).expect("a trace")).expect("JSON");
    let begins: Vec<&serde_json::Value> =
        trace["traceEvents"].as_array().expect("events").iter().filter(|event| event["ph"] == "B").collect();
    fn calls(node: &serde_json::Value) -> u64 {
        let below: u64 = node["children"].as_array().into_iter().flatten().map(calls).sum();
        node["calls"].as_u64().expect("a count") + below
    }
    let tree = replay(&["--slowest"]);
    assert_eq!(begins.len() as u64, calls(&tree["root"]));
    assert_eq!(begins[0]["name"], "handle_request");
    assert!(begins.iter().all(|event| event["tid"] == tree["tid"]));
    assert_eq!(begins.iter().filter(|event| event["name"] == "rehash").count(), 1);
}

#[test]
fn loops_are_folded() {
    let folded = text("replay", &[&REQUEST[..], &["--slowest", "--instructions"]].concat());
    let list = || folded.lines().skip_while(|line| !line.contains("source"));
    assert!(list().count() < 473_119 / 5, "{} lines", list().count());
    // The last of the characters that a name is hashed by.
    assert!(list().any(|line| line.contains("│ ┌ × 13 to 21")));
    assert_eq!(
        list().filter(|line| line.contains('┌')).count(),
        list().filter(|line| line.contains('└')).count()
    );
}

#[test]
fn what_cannot_be_replayed_is_said() {
    refused(&["--function", "handle_reqests", "--slowest"], 1, "there are: handle_request");
    refused(&["--function", "abort", "--slowest"], 1, "abort: never entered in this trace");
    refused(&["--function", "handle_request", "--slowest", "401"], 1, "only 400 complete invocations");
    refused(&["--function", "handle_request", "--slowest", "0"], 2, "ranks begin at 1");
    refused(&["--function", "handle_request"], 2, "--slowest");
    refused(&["--slowest"], 2, "--function");
    refused(&["--function", "handle_request", "--slowest", "--report", "x"], 2, "--report is of calls");
    refused(&["--function", "handle_request", "--at", "noon"], 2, "a time is needed");
    refused(&["--function", "handle_request", "--at", "1"], 1, "no thread is in it at that time");
    refused(&["--function", "exit", "--slowest"], 1, "no invocation is complete (1 is cut off");
    refused(&["--function", "handle_request", "--slowest", "--index", "/dev/null"], 1, "is no index");
}

/// The sample with a gap in one worker's trace.
fn damaged(folder: &TempDir) -> PathBuf {
    let psb: Vec<u8> = [0x02, 0x82].repeat(8);
    let mut capture = std::fs::read(sample().join("perf.data")).expect("the sample");
    let psbs: Vec<usize> = (0..capture.len()).filter(|at| capture[*at..].starts_with(&psb)).collect();
    // No packet begins with these bytes (SDM vol. 3C, table of packet opcodes).
    let at = psbs[psbs.len() / 3] + 300;
    capture[at..at + 16].copy_from_slice(&[0x02, 0x01].repeat(8));
    let path = folder.path().join("damaged.data");
    std::fs::write(&path, capture).expect("written");
    path
}

fn parsed(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// What a gap cuts off has no rank, and that is said; by a time it is shown as far as it was seen, before the gap and
/// behind it.
#[test]
fn what_a_gap_cuts_is_shown_as_far_as_it_was_seen() {
    let folder = TempDir::new().expect("a folder");
    let capture = damaged(&folder);
    let work = ["--function", "work"];
    let calls = parsed(&of_capture(&capture, "calls", &[&work[..], &["--json", "--quiet"]].concat()));
    let mut cut = calls["cut_off"].as_array().expect("a list").clone();
    cut.sort_by_key(|one| one["start_ns"].as_u64());
    let ends: Vec<_> = cut.iter().map(|one| (one["begin"].as_str(), one["end"].as_str())).collect();
    assert_eq!(ends, [(Some("seen"), Some("in_gap")), (Some("in_gap"), Some("seen"))]);
    let text = of_capture(&capture, "calls", &work);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("not in the figures: 1 going on when a gap in the trace began"), "{text}");
    assert!(text.contains("the longest of these was seen for "), "{text}");
    let ranked = of_capture(&capture, "replay", &[&work[..], &["--slowest"]].concat());
    let said = String::from_utf8_lossy(&ranked.stderr).into_owned();
    assert!(said.contains("2 are cut off by gaps or the ends of the trace and have no rank"), "{said}");
    let mut seen = 0;
    for one in &cut {
        let middle =
            one["start_ns"].as_u64().expect("a time") + one["duration_ns"].as_u64().expect("a time") / 2;
        let (at, tid) =
            (format!("{}.{:09}", middle / 1_000_000_000, middle % 1_000_000_000), one["tid"].to_string());
        let args = [&work[..], &["--at", &at, "--thread", &tid, "--quiet"]].concat();
        let tree = parsed(&of_capture(&capture, "replay", &[&args[..], &["--json"]].concat()));
        for what in ["tid", "start_ns", "begin", "end"] {
            assert_eq!(tree[what], one[what]);
        }
        assert_eq!(tree["root"]["ns"], one["duration_ns"]);
        assert_eq!(tree["root"]["instructions"], one["instructions"]);
        let shown = of_capture(&capture, "replay", &[&args[..], &["--instructions", "--unfolded"]].concat());
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        let what = if one["end"] == "in_gap" {
            "a gap in the trace begins here"
        } else {
            "before a gap in the trace"
        };
        assert!(
            shown.lines().nth(1).is_some_and(|line| line.starts_with("cut off: ") && line.contains(what))
        );
        let instructions = shown.lines().filter(|line| line.contains("  0x")).count() as u64;
        assert_eq!(Some(instructions), one["instructions"].as_u64());
        seen += instructions;
    }
    // Both parts of the worker's life, but for what the gap holds.
    let whole = parsed(&ptflow("calls", &[&work[..], &["--json"]].concat()));
    let tid = &cut[0]["tid"];
    let all = whole["slowest"].as_array().expect("a list").iter().find(|one| one["tid"] == *tid);
    let all = all.and_then(|one| one["instructions"].as_u64()).expect("a count");
    assert!(seen < all && seen > all / 4 * 3, "{seen} of {all}");
}

/// The thread's trace ends in exit(); a thread begins in the middle of clone().
#[test]
fn what_the_ends_of_the_trace_cut_is_shown() {
    for (function, begin, end, said) in [
        ("exit", "seen", "after_trace", "the thread's trace ends here"),
        ("__clone", "before_trace", "after_trace", "it began before the thread's trace did"),
    ] {
        let which = ["--function", function];
        let calls = json("calls", &[&which[..], &["--json"]].concat());
        let cut = calls["cut_off"].as_array().expect("a list").iter();
        let one = cut.clone().find(|one| (&one["begin"], &one["end"]) == (&begin.into(), &end.into()));
        let one = one.unwrap_or_else(|| panic!("{function}: {calls:#}"));
        let at = one["start_ns"].as_u64().expect("a time") + 1;
        let (at, tid) = (format!("{}.{:09}", at / 1_000_000_000, at % 1_000_000_000), one["tid"].to_string());
        let args = [&which[..], &["--at", &at, "--thread", &tid]].concat();
        let tree = json("replay", &[&args[..], &["--json"]].concat());
        for what in ["tid", "start_ns", "begin", "end"] {
            assert_eq!(tree[what], one[what], "{function}");
        }
        assert_eq!(tree["root"]["instructions"], one["instructions"]);
        assert!(tree["cut"].as_str().is_some_and(|cut| cut.contains(said)), "{tree:#}");
        assert!(text("replay", &args).contains(said));
    }
}

/// What a command prints to a terminal of so many columns: `script` gives it one.
fn on_a_terminal(args: &[&str], columns: &str, more: &str) -> Option<String> {
    let capture = sample().join("perf.data");
    let command = format!(
        "stty rows 40 cols {columns}; {more} {} {} {} --images {} --quiet",
        env!("CARGO_BIN_EXE_ptflow"),
        args[0],
        capture.display(),
        sample().display()
    );
    let command = args[1..].iter().fold(command, |command, arg| format!("{command} {arg}"));
    let output = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .env_remove("COLUMNS")
        .env_remove("NO_COLOR")
        .output()
        .ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).expect("text").replace('\r', ""))
}

/// Without what colours text.
fn plain(text: &str) -> String {
    let codes = ["0", "1", "2", "31", "32"];
    codes.iter().fold(text.to_owned(), |text, code| text.replace(&format!("\x1b[{code}m"), ""))
}

/// Colours on a terminal alone, unless they are unwanted; no line is longer than the terminal is wide; the text is the same.
#[test]
fn terminals_have_widths_and_colours() {
    let commands: [&[&str]; 4] = [
        &["calls", "--function", "handle_request"],
        &["replay", "--function", "handle_request", "--slowest"],
        &["replay", "--function", "handle_request", "--slowest", "--against", "median"],
        &["replay", "--function", "take_request", "--slowest", "--instructions"],
    ];
    for command in commands {
        let piped = ptflow(command[0], &command[1..]);
        let piped = String::from_utf8(piped.stdout).expect("text");
        assert!(!piped.contains('\x1b'), "{piped}");
        for columns in ["80", "100", "132"] {
            let Some(shown) = on_a_terminal(command, columns, "") else {
                println!("skipped: there is no script; install Debian's package bsdutils");
                return;
            };
            assert!(shown.contains("\x1b["), "{shown}");
            let shown = plain(&shown);
            assert!(!shown.contains('\x1b'), "{shown}");
            let widest = shown.lines().map(|line| line.chars().count()).max().unwrap_or(0);
            assert!(Some(widest) <= columns.parse().ok(), "{widest} of {columns}:\n{shown}");
            if columns == "100" && !command.contains(&"--instructions") {
                assert_eq!(shown, piped, "without a terminal lines have 100 columns");
            }
            let without = on_a_terminal(command, columns, "NO_COLOR=1").expect("as above");
            assert_eq!(without, shown);
        }
    }
}

/// The README tells the story of the slow request with what the commands print.
#[test]
fn the_readme_has_the_real_output() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = std::fs::read_to_string(readme).expect("the README");
    let slowest = [&REQUEST[..], &["--slowest"]].concat();
    for (output, lines) in [
        (text("calls", &[&REQUEST[..], &["--top", "3"]].concat()), usize::MAX),
        (text("replay", &slowest), 12),
        (text("replay", &[&slowest[..], &["--against", "median"]].concat()), usize::MAX),
    ] {
        let set_in = |line: &str| format!("    {line}").trim_end().to_owned() + "\n";
        let shown: String = output.lines().take(lines).map(set_in).collect();
        assert!(readme.contains(&shown), "not in the README:\n{shown}");
    }
}
