//! A timeline in parts against the whole.

mod timeline;

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use timeline::Slice;

#[track_caller]
fn convert(out: &Path, args: &[&str]) -> Value {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench-traces/samples/requests");
    let report = out.with_file_name("report");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ptflow"));
    command.arg("convert").arg(sample.join("perf.data")).arg("--images").arg(&sample);
    let output = command.args(args).arg("-o").arg(out).arg("--report").arg(&report).output();
    let output = output.expect("ptflow runs");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    timeline::json(&report)
}

fn parts(out: &Path, parts: usize) -> Vec<PathBuf> {
    let name = out.file_name().expect("a name").to_string_lossy().into_owned();
    let (stem, ending) = name.split_once('.').expect("an ending");
    (1..=parts).map(|part| out.with_file_name(format!("{stem}.{part}-of-{parts}.{ending}"))).collect()
}

/// Puts cut slices together again: one goes on in the part behind, first in its thread and as deep. Also says how many
/// began in each part.
fn joined(parts: &[PathBuf]) -> (Vec<Slice>, Vec<usize>) {
    let mut whole: Vec<Slice> = Vec::new();
    let mut began = Vec::new();
    // By thread and depth: the last one there.
    let mut last: BTreeMap<(u64, usize), usize> = BTreeMap::new();
    for path in parts {
        // Where each slice of the part is in the whole, and how deep.
        let mut places: Vec<(usize, usize)> = Vec::new();
        let before = whole.len();
        for slice in timeline::read(path) {
            let (inside, depth) = match slice.inside {
                Some(outer) => (Some(places[outer].0), places[outer].1 + 1),
                None => (None, 0),
            };
            let place = (slice.tid, depth);
            if slice.category == "continued" {
                let index = last[&place];
                let whole = &mut whole[index];
                assert_eq!((&whole.name, whole.end, whole.inside), (&slice.name, slice.begin, inside));
                assert_eq!(whole.args, Value::Null, "what is folded is told once");
                (whole.end, whole.args) = (slice.end, slice.args);
                places.push((index, depth));
            } else {
                last.insert(place, whole.len());
                places.push((whole.len(), depth));
                whole.push(Slice { inside, ..slice });
            }
        }
        began.push(whole.len() - before);
    }
    (whole, began)
}

/// With the slices around each by name and time, which are the same however the list is ordered.
fn comparable(slices: &[Slice]) -> Vec<String> {
    let around = |slice: &Slice| slice.inside.map(|outer| (&slices[outer].name, slices[outer].begin));
    let mut all: Vec<String> = slices
        .iter()
        .map(|slice| format!("{:?} in {:?}", Slice { inside: None, ..slice.clone() }, around(slice)))
        .collect();
    all.sort();
    all
}

#[test]
fn the_parts_are_the_whole() {
    let folder = TempDir::new().expect("a folder");
    let out = folder.path().join("out.json");
    for (count, args) in [
        (7, &["--full", "--to", "+1ms"][..]),
        (4, &["--max-slices", "1500"]),
        (3, &["--min-duration", "2us", "--max-depth", "6"]),
        (3, &["--max-slices", "500", "--from", "+1ms", "--to", "+3ms"]),
    ] {
        let split = convert(&out, &[args, &["--split", &count.to_string()]].concat());
        let (found, began) = joined(&parts(&out, count));
        let least = format!("{}ns", split["min_duration_ns"]);
        let mut of_whole = args.to_vec();
        if let Some(at) = of_whole.iter().position(|arg| *arg == "--max-slices") {
            of_whole.drain(at..at + 2);
            assert_ne!(least, "0ns");
        }
        of_whole.retain(|arg| *arg != "--full");
        of_whole.extend(["--max-slices", "0", "--min-duration", &least]);
        of_whole.dedup();
        let of_whole: Vec<&str> = match of_whole.iter().position(|arg| *arg == "2us") {
            Some(at) => [&of_whole[..at - 1], &of_whole[at + 1..]].concat(),
            None => of_whole,
        };
        let whole = convert(&out, &of_whole);
        let expected = timeline::read(&out);
        assert!(expected.len() > 300, "{args:?}: {} slices", expected.len());
        let differ = comparable(&found)
            .into_iter()
            .zip(comparable(&expected))
            .find(|(found, expected)| found != expected);
        assert_eq!((found.len(), differ), (expected.len(), None), "{args:?}");
        for what in ["slices", "folded", "calls", "instructions", "pt_bytes_decoded"] {
            assert_eq!(split[what], whole[what], "{args:?}: {what}");
        }
        // Few begin at one time, so that the parts are about equal.
        let even = expected.len() / count;
        assert!(began.iter().all(|part| part.abs_diff(even) <= even / 20 + 4), "{args:?}: {began:?}");
        if let Some(at) = args.iter().position(|arg| *arg == "--max-slices") {
            let most: usize = args[at + 1].parse().expect("a number");
            assert!(began.iter().all(|part| *part <= most) && even > most * 3 / 4, "{args:?}: {began:?}");
        }
    }
}

/// Curves go on from part to part.
#[test]
fn curves_are_cut_too() {
    let folder = TempDir::new().expect("a folder");
    let out = folder.path().join("out.json");
    let points = |path: &Path| -> Vec<(String, String, u64)> {
        let trace = timeline::json(path);
        let origin: u64 = trace["otherData"]["origin_ns"].as_str().expect("text").parse().expect("a number");
        let events = trace["traceEvents"].as_array().expect("events").iter();
        let curves = events.filter(|event| event["ph"] == "C");
        let point = |event: &Value| {
            (event["name"].to_string(), event["args"]["value"].to_string(), origin + timeline::ns(event))
        };
        curves.map(point).collect()
    };
    convert(&out, &["--full", "--to", "+1ms"]);
    let whole = points(&out);
    assert!(whole.len() > 100);
    convert(&out, &["--full", "--to", "+1ms", "--split", "3"]);
    let mut joined: Vec<(String, String, u64)> = Vec::new();
    for path in parts(&out, 3) {
        let mut seen = BTreeSet::new();
        for point in points(&path) {
            // A part begins with the value that the one before ended with.
            let is_first = seen.insert(point.0.clone());
            match joined.iter().rev().find(|before| before.0 == point.0) {
                Some(before) if is_first => assert_eq!(before.1, point.1),
                _ => joined.push(point),
            }
        }
    }
    joined.sort();
    let mut whole = whole;
    whole.sort();
    assert!(joined == whole, "{} points, not {}", joined.len(), whole.len());
}

/// Perfetto's own engine finds nothing wrong with any part. PTFLOW_SKIP_PERFETTO=1 leaves this out.
#[test]
fn each_part_opens() {
    if std::env::var_os("PTFLOW_SKIP_PERFETTO").is_some_and(|value| value != "0") {
        println!("left out: PTFLOW_SKIP_PERFETTO is set");
        return;
    }
    let folder = TempDir::new().expect("a folder");
    let out = folder.path().join("out.pftrace.gz");
    let report = convert(&out, &["--full", "--split", "3"]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench-traces/perfetto/check.sh");
    let mut began = 0;
    for path in parts(&out, 3) {
        let query = "select count(*) from slice where category is null or category != 'continued'";
        let output = Command::new(&script).arg(&path).arg(query).output().expect("check.sh and bash");
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&output.stderr));
        let last: Value = serde_json::from_str(said.lines().last().expect("an answer")).expect("JSON");
        began += last["rows"][0][0].as_u64().expect("a number");
    }
    assert_eq!(report["slices"], began);
}

#[test]
fn what_cannot_be_split_is_told() {
    for (args, told) in [
        (&["-o", "-", "--split", "2"][..], "--split writes files"),
        (&["-o", "out.json", "--split", "1"], "2..=100"),
        (&["-o", "out.json", "--split", "2", "--open"], "cannot be used with"),
    ] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_ptflow")).args(["convert", "perf.data"]).args(args).output();
        let output = output.expect("ptflow runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(error.contains(told), "{args:?}: {error}");
    }
}
