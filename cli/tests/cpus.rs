//! Timelines of traces by CPU: windows against the whole, CPUs against each other, and turns off CPU against the recorder's
//! log and the switch records as perf reads them.

mod recording;
mod timeline;

use ptflow_cli::RunOptions;
use recording::{Recorded, record};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::Command;
use std::sync::OnceLock;
use tempfile::TempDir;
use timeline::Slice;

/// Four threads that wait for each other and migrate.
const SHARING: &str = "../../../bench-traces/plugin/tests/programs/sharing.c";

fn on_two_cpus() -> &'static Recorded {
    static RECORDED: OnceLock<Recorded> = OnceLock::new();
    RECORDED.get_or_init(|| record(SHARING, &[&[]], &["--per-cpu", "2", "--psb-period", "1"]))
}

struct Timeline {
    slices: Vec<Slice>,
    report: serde_json::Value,
}

/// In units of a few PSBs, so that a window is a small part of the trace.
#[track_caller]
fn convert(recorded: &Recorded, args: &[&str]) -> Timeline {
    let folder = TempDir::new().expect("a folder");
    let (out, report) = (folder.path().join("out.json"), folder.path().join("report"));
    let paths: [OsString; 5] = [
        recorded.folder.path().join("capture/perf.data").into(),
        "-o".into(),
        out.clone().into(),
        "--report".into(),
        report.clone().into(),
    ];
    let all = ["ptflow", "convert", "--quiet", "--full"].into_iter().map(OsString::from).chain(paths);
    let options = RunOptions { unit_bytes: Some(6000) };
    let status = ptflow_cli::run(all.chain(args.iter().map(OsString::from)), options);
    assert_eq!(status, 0, "{args:?}");
    Timeline { slices: timeline::read(&out), report: timeline::json(&report) }
}

fn time(ns: u64) -> String {
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

/// Functions that were entered, and system calls: by thread, name and times; and what they lie in.
type Calls = Vec<(u64, u64, u64, String, Option<String>)>;

/// Calls that begin in a window, cut off at its end.
fn begun_in(slices: &[Slice], (from, to): (u64, u64)) -> Calls {
    let begun = slices.iter().filter(|slice| from < slice.begin && slice.begin <= to);
    let calls = begun.filter(|slice| slice.category == "function");
    let call = |slice: &Slice| {
        let inside = slice
            .inside
            .map(|outer| &slices[outer])
            .filter(|outer| outer.begin > from && outer.category == "function");
        let inside = inside.map(|outer| outer.name.clone());
        (slice.tid, slice.begin, slice.end.min(to), slice.name.clone(), inside)
    };
    let mut calls: Calls = calls.map(call).collect();
    calls.sort();
    calls
}

/// What begins in a window is what the whole has there, though only what touches the window is looked at.
#[test]
fn a_window_of_cpus_shows_what_the_whole_has_there() {
    let recorded = on_two_cpus();
    let whole = convert(recorded, &[]);
    let all = whole.report["pt_bytes_in"].as_u64().expect("a number");
    let calls = whole.slices.iter().filter(|slice| slice.category == "function");
    let (first, last) =
        calls.fold((u64::MAX, 0), |(first, last), slice| (first.min(slice.begin), last.max(slice.end)));
    let mut compared = 0;
    for (from, length) in [(0, 20), (10, 5), (37, 10), (50, 1), (61, 3), (80, 15)] {
        let from = first + (last - first) * from / 100;
        let window = (from, from + (last - first) * length / 100);
        for more in [&["--threads", "1"][..], &["--threads", "3"], &["--exact-stacks"]] {
            let part =
                convert(recorded, &[&["--from", &time(window.0), "--to", &time(window.1)], more].concat());
            let (expected, found) = (begun_in(&whole.slices, window), begun_in(&part.slices, window));
            assert_eq!(found, expected, "{window:?} {more:?}");
            compared += found.len();
            let outside = |slice: &&Slice| slice.begin < window.0 || slice.end > window.1;
            assert_eq!(part.slices.iter().find(outside), None);
            let count = |what: &str| part.report[what].as_u64().unwrap_or(0);
            assert_eq!(count("pt_bytes_decoded") + count("pt_bytes_skipped"), all);
            assert!(more[0] == "--exact-stacks" || count("pt_bytes_skipped") > all / 3, "{}", part.report);
        }
    }
    assert!(compared > 1000, "{compared}");
}

/// Every call begins on one CPU: those of each CPU alone are together those of all.
#[test]
fn the_calls_of_each_cpu() {
    let recorded = on_two_cpus();
    let everything = (0, u64::MAX);
    let names = |calls: Calls| {
        let mut counts: BTreeMap<(u64, String), u64> = BTreeMap::new();
        calls.into_iter().for_each(|(tid, _, _, name, _)| *counts.entry((tid, name)).or_default() += 1);
        counts
    };
    let whole = names(begun_in(&convert(recorded, &[]).slices, everything));
    let mut sums = BTreeMap::new();
    let mut bytes = 0;
    for cpu in ["0", "1"] {
        let alone = convert(recorded, &["--cpu", cpu]);
        bytes += alone.report["pt_bytes_decoded"].as_u64().expect("a number");
        for (of, count) in names(begun_in(&alone.slices, everything)) {
            *sums.entry(of).or_default() += count;
        }
        // A window of it, too.
        let calls = begun_in(&alone.slices, everything);
        let (from, to) = (calls[calls.len() / 3].1, calls[calls.len() / 3].1 + 400_000);
        let part = convert(recorded, &["--cpu", cpu, "--from", &time(from), "--to", &time(to)]);
        // What the thread did on other CPUs is not there, so nothing is sure of what was open.
        let begun = |slices: &[Slice]| -> Vec<(u64, u64, String)> {
            let calls = begun_in(slices, (from, to)).into_iter();
            calls.map(|(tid, begin, _, name, _)| (tid, begin, name)).collect()
        };
        let expected = begun(&alone.slices);
        assert!(expected.len() > 20, "{}", expected.len());
        assert_eq!(begun(&part.slices), expected);
    }
    assert_eq!(sums, whole);
    let totals = recorded.folder.path().join("capture/totals.json");
    assert_eq!(Some(bytes), timeline::json(&totals)["bytes"].as_u64());
}

/// A turn off CPU: its thread, when it began and ended, and whether the thread could have run on.
type Turn = (u64, u64, u64, String);

fn turns_off_cpu(slices: &[Slice]) -> Vec<Turn> {
    let off = slices.iter().filter(|slice| slice.category == "off-cpu");
    // Notes on a thread are a thread of their own, with this bit in its number.
    let mut turns: Vec<Turn> =
        off.map(|slice| (slice.tid & !0x4000_0000, slice.begin, slice.end, slice.name.clone())).collect();
    turns.sort();
    turns
}

/// A switch record is written up to so many nanoseconds after the switch.
const LATEST_RECORD: u64 = 10_000;

/// A turn off CPU lies where the recorder's log of the thread has a hole: behind a system call where the thread waited, and
/// behind an interruption where it was preempted.
#[test]
fn turns_off_cpu_and_why() {
    let recorded = record(SHARING, &[&[]], &["--per-cpu", "1"]);
    let whole = convert(&recorded, &[]);
    let turns = turns_off_cpu(&whole.slices);
    // When each thread stopped, by what, and when it went on.
    let mut holes: BTreeMap<u64, Vec<(u64, String, u64)>> = BTreeMap::new();
    for (tid, lines) in recorded.log() {
        let mut stopped: Option<(u64, String)> = None;
        for line in lines {
            let [_, ns, _, kind, _, to] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let ns: u64 = ns.parse().expect("a time");
            match kind {
                "syscall" => stopped = Some((ns, "waiting".to_owned())),
                "async" if to == "-" => stopped = Some((ns, "preempted".to_owned())),
                "resume" => {
                    if let Some((since, why)) = stopped.take() {
                        holes.entry(u64::from(tid)).or_default().push((since, why, ns));
                    }
                }
                _ => {}
            }
        }
    }
    let mut preempted = 0;
    for (tid, from, to, why) in &turns {
        let fits = |(stopped, cause, resumed): &&(u64, String, u64)| {
            stopped <= from && resumed <= to && *to <= resumed + LATEST_RECORD && cause == why
        };
        assert!(holes[tid].iter().any(|hole| fits(&hole)), "{why} of {tid} from {from} to {to}");
        preempted += usize::from(why == "preempted");
    }
    assert!(turns.len() > 100 && preempted > 0, "{} turns, {preempted} preempted", turns.len());
    let stopped = holes.values().flatten().filter(|hole| hole.1 == "preempted").count();
    assert!(preempted <= stopped, "{preempted} of {stopped}");
    check_by_perf(&recorded, &turns);
    // A window has what of them lies in it.
    let mut begins: Vec<u64> = turns.iter().map(|turn| turn.1).collect();
    begins.sort_unstable();
    let (from, to) = (begins[begins.len() / 4] + 1, begins[begins.len() / 2] + 1);
    let part = convert(&recorded, &["--from", &time(from), "--to", &time(to)]);
    let seen: BTreeMap<u64, (u64, u64)> = part.slices.iter().fold(BTreeMap::new(), |mut seen, slice| {
        let reach = seen.entry(slice.tid & !0x4000_0000).or_insert((u64::MAX, 0));
        *reach = (reach.0.min(slice.begin), reach.1.max(slice.end));
        seen
    });
    let clipped = turns.iter().filter_map(|(tid, from, to, why)| {
        let reach = seen.get(tid)?;
        let (from, to) = (*from.max(&reach.0), *to.min(&reach.1));
        (from < to).then(|| (*tid, from, to, why.clone()))
    });
    assert_eq!(turns_off_cpu(&part.slices), clipped.collect::<Vec<_>>());
}

/// The turns that perf's own reading of the switch records gives.
fn check_by_perf(recorded: &Recorded, turns: &[Turn]) {
    let capture = recorded.folder.path().join("capture/perf.data");
    let perf = Command::new("perf")
        .args(["script", "--show-switch-events", "--ns", "-F", "tid,time", "-i"])
        .arg(capture)
        .output();
    let Ok(perf) = perf else {
        println!("skipped: there is no perf; install Debian's package linux-perf");
        return;
    };
    let text = String::from_utf8_lossy(&perf.stdout);
    let mut left: BTreeMap<u64, (u64, &str)> = BTreeMap::new();
    let mut expected: Vec<Turn> = Vec::new();
    for line in text.lines().filter(|line| line.contains("PERF_RECORD_SWITCH_CPU_WIDE")) {
        let (head, what) = line.split_once(": PERF_RECORD_SWITCH_CPU_WIDE ").expect("a record");
        let [.., tid, at] = head.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{line}") };
        let at: u64 = at.replace('.', "").parse().expect("a time");
        let tid: u64 = tid.parse().expect("a thread");
        if what.starts_with("OUT") {
            left.insert(tid, (at, if what.contains("preempt") { "preempted" } else { "waiting" }));
        } else if let Some((from, why)) = left.remove(&tid).filter(|(from, _)| *from < at) {
            expected.push((tid, from, at, why.to_owned()));
        }
    }
    expected.sort();
    // Where a thread's trace begins or ends within a turn, no more of the turn is drawn.
    let missing = expected.iter().filter(|turn| !turns.contains(turn)).count();
    let more = turns.iter().filter(|turn| !expected.contains(turn)).count();
    let threads = turns.chunk_by(|a, b| a.0 == b.0).count();
    assert!(missing <= 2 * threads && more <= 2 * threads, "{missing} missing, {more} more");
}
