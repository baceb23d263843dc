//! Inlined functions on a timeline, against what ran (the recorder's log, objdump's instructions) and whose code that was
//! (addr2line's inlining).

mod recording;
mod timeline;

use recording::{Recorded, Transfer, record};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use timeline::Slice;

fn by_thread() -> &'static Recorded {
    static RECORDED: OnceLock<Recorded> = OnceLock::new();
    RECORDED.get_or_init(|| record("inlined.c", &[&["-O2"]], &["--cyc"]))
}

/// The functions and inlined functions that an instruction is of, with the lines that inlined ones are called at, the
/// outermost first.
type Place = Vec<(String, String)>;

fn places(recorded: &Recorded, addresses: &BTreeSet<u64>) -> BTreeMap<u64, Place> {
    let list = recorded.folder.path().join("addresses");
    let lines: Vec<String> = addresses.iter().map(|address| format!("{address:#x}\n")).collect();
    std::fs::write(&list, lines.concat()).expect("written");
    let output = Command::new("addr2line")
        .args(["-a", "-i", "-f", "-e"])
        .arg(&recorded.program)
        .stdin(std::fs::File::open(&list).expect("a file"))
        .output()
        .expect("addr2line runs: install Debian's package binutils");
    let mut places = BTreeMap::new();
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines().peekable();
    while let Some(address) = lines.next() {
        let address = u64::from_str_radix(address.trim_start_matches("0x"), 16).expect("an address");
        let mut innermost_first: Vec<(String, String)> = Vec::new();
        while let Some(function) = lines.next_if(|line| !line.starts_with("0x")) {
            let line = lines.next().expect("a line").split(" (discriminator").next().unwrap_or_default();
            innermost_first.push((function.to_owned(), line.to_owned()));
        }
        // Each was called at the line of the one around it.
        let called_at = innermost_first.iter().skip(1).map(|around| around.1.clone()).chain([String::new()]);
        let mut place: Place =
            innermost_first.iter().zip(called_at).map(|((name, _), at)| (name.clone(), at)).collect();
        place.reverse();
        places.insert(address, place);
    }
    places
}

/// Something that begins or ends: a call, or an inlined function.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Made {
    name: String,
    inlined: bool,
    depth: usize,
    /// In it, with all that it calls.
    instructions: u64,
}

/// What must be seen of one invocation, in the order in which it begins.
fn truth(instructions: &[u64], transfers: &[Transfer], places: &BTreeMap<u64, Place>) -> Vec<Made> {
    let mut made: Vec<Made> = Vec::new();
    // For each frame where control is in it, and what of `made` is open for that.
    let mut frames: Vec<(Place, Vec<usize>)> = vec![(Vec::new(), Vec::new())];
    let mut transfers = transfers.iter().peekable();
    // Until it ends, a slice has the instructions before it.
    fn end(made: &mut [Made], slices: &mut Vec<usize>, left: usize, at: u64) {
        for slice in slices.drain(left..) {
            made[slice].instructions = at - made[slice].instructions;
        }
    }
    for (at, address) in (0..).zip(instructions) {
        let below: usize = frames.iter().rev().skip(1).map(|frame| frame.1.len()).sum();
        let (place, slices) = frames.last_mut().expect("a frame");
        let now = &places[address];
        let same = place.iter().zip(now).take_while(|(before, now)| before == now).count();
        end(&mut made, slices, same, at);
        for (level, (name, _)) in now.iter().enumerate().skip(same) {
            let depth = below + slices.len();
            slices.push(made.len());
            made.push(Made { name: name.clone(), inlined: level > 0, depth, instructions: at });
        }
        place.clone_from(now);
        while let Some(transfer) = transfers.next_if(|transfer| transfer.passed <= at + 1) {
            match &*transfer.kind {
                "call" | "call_ind" => frames.push((Vec::new(), Vec::new())),
                "ret" if frames.len() > 1 => {
                    let (_, mut slices) = frames.pop().expect("a frame");
                    end(&mut made, &mut slices, 0, at + 1);
                }
                _ => {}
            }
        }
    }
    for (_, mut slices) in frames {
        end(&mut made, &mut slices, 0, instructions.len() as u64);
    }
    made
}

/// Of each invocation of a function all that lies in it, where slices say what was executed in them.
fn shown(slices: &[Slice], function: &str) -> Vec<Vec<Made>> {
    let mut found: Vec<Vec<Made>> = Vec::new();
    // What lies in one: of which, and how deep.
    let mut inside: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
    for (index, slice) in slices.iter().enumerate() {
        let (of, depth) = match slice.inside.and_then(|outer| inside.get(&outer)) {
            Some((of, depth)) => (*of, depth + 1),
            None if slice.name == function && slice.category == "function" => {
                found.push(Vec::new());
                (found.len() - 1, 0)
            }
            None => continue,
        };
        inside.insert(index, (of, depth));
        let instructions = slice.args["instructions"].as_u64().unwrap_or(0);
        found[of].push(Made {
            name: slice.name.clone(),
            inlined: slice.category == "inlined",
            depth,
            instructions,
        });
    }
    found
}

#[track_caller]
fn convert(recorded: &Recorded, args: &[&str]) -> (Vec<Slice>, Value) {
    let folder = tempfile::TempDir::new().expect("a folder");
    let (out, report) = (folder.path().join("out.json"), folder.path().join("report"));
    let paths = ["-o", out.to_str().expect("UTF-8"), "--report", report.to_str().expect("UTF-8")];
    recorded.ptflow("convert", &[&paths[..], args].concat());
    (timeline::read(&out), timeline::json(&report))
}

/// All of each invocation of `work`, in order: what began, in what, and how many instructions were in it.
fn check(recorded: &Recorded) {
    let invocations: Vec<_> = recorded.truth("work", |_| true).into_values().flatten().collect();
    assert_eq!(invocations.len(), 200);
    let lists: Vec<Vec<u64>> =
        invocations.iter().map(|invocation| recorded.instructions("work", invocation)).collect();
    let places = places(recorded, &lists.iter().flatten().copied().collect());
    let (slices, _) = convert(recorded, &["--full", "--inlined", "--args"]);
    let shown = shown(&slices, "work");
    assert_eq!(shown.len(), invocations.len());
    let mut inlined: BTreeMap<String, usize> = BTreeMap::new();
    for (number, (list, shown)) in lists.iter().zip(&shown).enumerate() {
        let truth = truth(list, &invocations[number].transfers, &places);
        for made in truth.iter().filter(|made| made.inlined) {
            *inlined.entry(made.name.clone()).or_default() += 1;
        }
        let differ = shown.iter().zip(&truth).find(|(shown, truth)| shown != truth);
        assert_eq!((shown.len(), differ), (truth.len(), None), "invocation {number}");
    }
    let names: Vec<&str> = inlined.keys().map(String::as_str).collect();
    assert_eq!(names, ["calls_out", "ends_with_a_call", "loops", "mix", "twice"]);
    assert!(inlined.values().all(|count| *count > 200), "{inlined:?}");
}

#[test]
fn inlined_functions_are_where_their_code_ran() {
    check(by_thread());
}

#[test]
fn of_cpus_too() {
    check(&record("inlined.c", &[&["-O2"]], &["--cyc", "--per-cpu", "2"]));
}

/// Calls are counted as without inlined functions, whatever is folded.
#[test]
fn calls_are_counted_apart() {
    let calls = |report: &Value, what: &str| -> BTreeMap<(String, String), (u64, u64)> {
        let rows = report[what].as_array().expect("a list").iter();
        rows.map(|row| {
            let text = |key: &str| row[key].as_str().expect("text").to_owned();
            let number = |key: &str| row[key].as_u64().expect("a number");
            let (all, ns) = (number("kept") + number("folded"), number("kept_ns") + number("folded_ns"));
            ((text("function"), text("category")), (all, ns))
        })
        .collect()
    };
    let (_, plain) = convert(by_thread(), &["--full"]);
    let (_, all) = convert(by_thread(), &["--full", "--inlined"]);
    let (slices, few) = convert(by_thread(), &["--max-slices", "3000", "--inlined"]);
    assert!(plain.get("inlined").is_none());
    assert_eq!(calls(&all, "calls"), calls(&plain, "calls"));
    assert_eq!(calls(&few, "calls"), calls(&plain, "calls"));
    assert_eq!(calls(&few, "inlined"), calls(&all, "inlined"));
    assert!(slices.len() <= 3000 && slices.iter().any(|slice| slice.category == "inlined"));
    // What is folded into what is shown are calls: of the truth's there are as many.
    let truth = by_thread().truth("leaf", |_| false).into_values().map(|all| all.len() as u64).sum::<u64>();
    let leaf = ("leaf".to_owned(), "function".to_owned());
    assert_eq!(calls(&few, "calls")[&leaf].0, truth);
    let folded: u64 = slices.iter().filter_map(|slice| slice.args["folded calls"].as_u64()).sum();
    let rows = few["calls"].as_array().expect("a list").iter();
    assert_eq!(folded, rows.map(|row| row["folded"].as_u64().expect("a number")).sum::<u64>());
}

/// What begins in a window is what begins there in the whole, and so is what is in each part of it.
#[test]
fn parts_show_what_the_whole_has() {
    let (whole, _) = convert(by_thread(), &["--full", "--inlined"]);
    let begins: Vec<u64> = whole.iter().map(|slice| slice.begin).collect();
    let (from, to) = (begins[begins.len() / 3], begins[begins.len() / 2]);
    let time = |ns: u64| format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
    let (part, _) = convert(
        by_thread(),
        &["--full", "--inlined", "--from", &time(from), "--to", &time(to), "--exact-stacks"],
    );
    // What was open before is drawn from the window's beginning on.
    let begun = |slices: &[Slice]| -> Vec<(u64, u64, String, String)> {
        let inside = slices.iter().filter(|slice| slice.begin > from && slice.begin < to);
        inside.map(|s| (s.begin, s.end.min(to), s.name.clone(), s.category.clone())).collect()
    };
    assert!(begun(&part).len() > 1000);
    assert!(begun(&part) == begun(&whole));
    let (function, _) = convert(by_thread(), &["--full", "--inlined", "--function", "jumps_on"]);
    let made = |slices: &[Slice]| shown(slices, "jumps_on");
    assert!(made(&function) == made(&whole));
}

/// Perfetto's own engine finds nothing wrong. PTFLOW_SKIP_PERFETTO=1 leaves this out.
#[test]
fn perfetto_opens_it() {
    if std::env::var_os("PTFLOW_SKIP_PERFETTO").is_some_and(|value| value != "0") {
        println!("left out: PTFLOW_SKIP_PERFETTO is set");
        return;
    }
    let out = by_thread().folder.path().join("out.pftrace.gz");
    let report = by_thread().folder.path().join("report");
    let paths = ["-o", out.to_str().expect("UTF-8"), "--report", report.to_str().expect("UTF-8")];
    by_thread().ptflow("convert", &[&paths[..], &["--full", "--inlined"]].concat());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench-traces/perfetto/check.sh");
    let query = "select count(*) from slice where category = 'inlined'";
    let output = Command::new(&script).arg(&out).arg(query).output().expect("check.sh and bash");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let last: Value = serde_json::from_str(said.lines().last().expect("an answer")).expect("JSON");
    let rows = timeline::json(&report);
    let rows = rows["inlined"].as_array().expect("a list").iter();
    let kept: u64 = rows.map(|row| row["kept"].as_u64().expect("a number")).sum();
    assert_eq!(last["rows"][0][0], kept);
}
