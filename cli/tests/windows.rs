//! Parts of a timeline against the whole: what is shown of a window is what is there.

mod timeline;

use ptflow_cli::RunOptions;
use serde_json::Value;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use timeline::Slice;

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench-traces/samples/requests")
}

/// The arguments of a verb that reads the sample.
fn of_sample(args: &[&str]) -> Vec<OsString> {
    let mut all: Vec<OsString> = vec![args[0].into(), sample().join("perf.data").into()];
    all.extend(["--images".into(), sample().into()]);
    all.extend(args[1..].iter().map(OsString::from));
    all
}

struct Timeline {
    slices: Vec<Slice>,
    report: Value,
}

#[track_caller]
fn convert(args: &[&str]) -> Timeline {
    let folder = TempDir::new().expect("a folder");
    let (out, report) = (folder.path().join("out.json"), folder.path().join("report"));
    let paths = ["convert", "--quiet", "-o", out.to_str().unwrap(), "--report", report.to_str().unwrap()];
    let args = of_sample(&[&paths[..], args].concat());
    // In units of a few PSBs, so that a window is a small part of it.
    let options = RunOptions { unit_bytes: Some(6000) };
    let status = ptflow_cli::run(std::iter::once("ptflow".into()).chain(args.clone()), options);
    assert_eq!(status, 0, "{args:?}");
    let report = std::fs::read(&report).unwrap();
    Timeline { slices: timeline::read(&out), report: serde_json::from_slice(&report).expect("JSON") }
}

/// The slices that begin in a window, as they are there: cut off at its end, and in one another where that began there too.
/// What is shorter than `least` once it is cut off is folded.
fn begun_in(slices: &[Slice], (from, to): (u64, u64), least: u64) -> Vec<Slice> {
    let mut places = vec![None; slices.len()];
    let mut found = Vec::new();
    for (index, slice) in slices.iter().enumerate() {
        // A system call that was going on when the window began opens there, too, and is none that begins there.
        let before = slice.category == "inferred" || slice.category == "untraced" && slice.begin == from;
        let long = slice.end.min(to).saturating_sub(slice.begin) >= least;
        if (from..=to).contains(&slice.begin) && !before && long {
            places[index] = Some(found.len());
            let inside = slice.inside.and_then(|outer| places[outer]);
            let args = if slice.end < to { slice.args.clone() } else { Value::Null };
            found.push(Slice { end: slice.end.min(to), inside, args, ..slice.clone() });
        }
    }
    found
}

fn time(ns: u64) -> String {
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

const FIRST: u64 = 999_999_999_627;

/// Every slice that begins in a window is that of the whole: name, times, what it lies in, and what is folded into it.
#[test]
fn a_window_shows_what_the_whole_has_there() {
    let mut compared = 0;
    for (threshold, least) in [(&["--full"][..], 0), (&["--max-slices", "0", "--min-duration", "300ns"], 300)]
    {
        let whole = convert(threshold);
        let all = whole.report["pt_bytes_in"].as_u64().unwrap();
        assert_eq!(whole.report["pt_bytes_skipped"], Value::Null);
        for (from, to) in [
            (0, 3_000),
            (700_000, 702_000),
            (1_234_567, 1_434_567),
            (2_000_000, 2_000_100),
            (2_500_000, 9_000_000),
        ] {
            for more in [&["--threads", "1"][..], &["--threads", "3"], &["--exact-stacks"]] {
                let window = (FIRST + from, FIRST + to);
                let (absolute, relative) = (
                    [time(window.0), time(window.1)],
                    [format!("+{from}ns"), format!("+{}us", to as f64 / 1e3)],
                );
                for [from, to] in [absolute, relative] {
                    let part = convert(&[threshold, &["--from", &from, "--to", &to], more].concat());
                    let (expected, found) =
                        (begun_in(&whole.slices, window, least), begun_in(&part.slices, window, least));
                    for (expected, found) in expected.iter().zip(&found) {
                        assert_eq!(found, expected, "{from} to {to} {more:?}");
                    }
                    assert_eq!(found.len(), expected.len(), "{from} to {to} {more:?}");
                    compared += found.len();
                    // Nothing from before but what was open, and nothing from behind.
                    for slice in &part.slices {
                        assert!(
                            window.0 <= slice.begin && slice.begin <= slice.end && slice.end <= window.1,
                            "{slice:?}"
                        );
                        assert!(slice.category != "inferred" || slice.begin == window.0, "{slice:?}");
                    }
                    let count = |what: &str| part.report[what].as_u64().unwrap_or(0);
                    assert_eq!(count("pt_bytes_in"), all);
                    assert_eq!(part.report["lost"], serde_json::json!([]));
                    assert_eq!(count("pt_bytes_decoded") + count("pt_bytes_skipped"), all);
                    let exact = more.contains(&"--exact-stacks");
                    assert!(exact || count("pt_bytes_decoded") < all / 2, "{from} to {to}: {}", part.report);
                }
            }
        }
    }
    assert!(compared > 100_000, "{compared}");
}

/// What was open when the window began is what the whole has open there, down to the last frame that control returned to.
#[test]
fn frames_from_before_the_window() {
    let whole = convert(&["--full"]);
    let (from, to) = (FIRST + 1_234_567, FIRST + 1_334_567);
    let open = |slices: &[Slice], tid: u64, opened: &dyn Fn(&Slice) -> bool| -> Vec<String> {
        let open = slices.iter().filter(|slice| slice.tid == tid && opened(slice));
        open.map(|slice| slice.name.clone()).collect()
    };
    for exact in [true, false] {
        let args = ["--full", "--from", &time(from), "--to", &time(to), "--exact-stacks"];
        let part = convert(if exact { &args } else { &args[..5] });
        for tid in [4963, 4965, 4966, 4967, 4968] {
            let expected = open(&whole.slices, tid, &|slice| slice.begin < from && slice.end >= from);
            let found = open(&part.slices, tid, &|slice| slice.begin == from && slice.category != "function");
            if exact {
                assert_eq!(found, expected, "{tid}");
            } else {
                assert!(!found.is_empty() && expected.ends_with(&found), "{tid}: {found:?} of {expected:?}");
            }
        }
    }
}

/// A function with all that it calls, and nothing else.
#[test]
fn one_function() {
    let whole = convert(&["--full"]);
    let part = convert(&["--full", "--function", "stor?"]);
    // The slices at or below one of that name.
    let mut wanted = vec![false; whole.slices.len()];
    for (index, slice) in whole.slices.iter().enumerate() {
        wanted[index] = slice.name == "store" || slice.inside.is_some_and(|outer| wanted[outer]);
    }
    let key = |slice: &Slice| (slice.tid, slice.name.clone(), slice.begin, slice.end);
    let wanted = whole.slices.iter().zip(wanted).filter(|(_, wanted)| *wanted);
    let expected: Vec<_> = wanted.map(|(slice, _)| key(slice)).collect();
    assert!(expected.len() > 1000 && expected.len() < whole.slices.len() / 2);
    assert!(part.slices.iter().map(key).eq(expected));
}

/// All threads at the times of a function's slow invocations, and at no other.
#[test]
fn around_a_function() {
    let whole = convert(&["--full"]);
    let slow: Vec<(u64, u64)> = whole
        .slices
        .iter()
        .filter(|slice| slice.name == "store" && slice.end - slice.begin > 20_000)
        .map(|slice| (slice.begin, slice.end))
        .collect();
    assert!(!slow.is_empty());
    let part = convert(&["--full", "--around", "store:slower-than 20us"]);
    let mut compared = 0;
    for window in &slow {
        let (expected, found) = (begun_in(&whole.slices, *window, 0), begun_in(&part.slices, *window, 0));
        assert!(found == expected, "{window:?}");
        compared += found.len();
    }
    assert!(compared > 1000, "{compared}");
    let is_in =
        |slice: &Slice| slow.iter().any(|(from, to)| (from..=to).contains(&&slice.begin) && slice.end <= *to);
    // One of them may overlap the next.
    assert!(part.slices.iter().all(|slice| is_in(slice) || slow.len() > 1), "{slow:?}");
}

#[test]
fn what_cannot_be_shown_is_told() {
    for (args, status, told) in [
        (&["--from", "+2ms", "--to", "+1ms"][..], 2, "--to is before --from"),
        (&["--from", "2ms"], 2, "a time is needed"),
        (&["--function", "no_such"], 1, "no function is named no_such"),
        (&["--around", "store:slower-than 9s"], 1, "ptflow calls --function store"),
        (&["--around", "store:slower-than 9"], 2, "ns, us, ms or s"),
    ] {
        let folder = TempDir::new().expect("a folder");
        let out = folder.path().join("out.json");
        let args = of_sample(&[&["convert", "-o", out.to_str().unwrap()], args].concat());
        let output = Command::new(env!("CARGO_BIN_EXE_ptflow")).args(&args).output().expect("ptflow runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {error}");
        assert!(error.contains(told), "{args:?}: {error}");
        assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none());
    }
}
