//! A timeline's curves, against its calls and the recorder's machine.

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// Curves by name: microseconds and values.
type Curves = BTreeMap<String, Vec<(f64, f64)>>;

fn convert(more: &[&str]) -> (Curves, Value) {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench-traces/samples/requests");
    let folder = TempDir::new().expect("a folder");
    let (out, report) = (folder.path().join("out.json"), folder.path().join("report"));
    let status = Command::new(env!("CARGO_BIN_EXE_ptflow"))
        .arg("convert")
        .arg(sample.join("perf.data"))
        .arg("--images")
        .arg(&sample)
        .arg("-o")
        .arg(&out)
        .arg("--report")
        .arg(&report)
        .arg("--quiet")
        .args(more)
        .status();
    assert!(status.expect("ptflow runs").success());
    let json =
        |path: &Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).expect("JSON") };
    let mut curves = Curves::new();
    for event in
        json(&out)["traceEvents"].as_array().expect("events").iter().filter(|event| event["ph"] == "C")
    {
        let name = event["name"].as_str().expect("a name").to_owned();
        let value = event["args"]["value"].as_f64().expect("a number");
        curves.entry(name).or_default().push((event["ts"].as_f64().expect("a time"), value));
    }
    (curves, json(&report))
}

/// The sum of what a curve says of each moment.
fn area(points: &[(f64, f64)], step: f64) -> f64 {
    let ends = points.iter().skip(1).map(|point| point.0).chain([f64::NAN]);
    let widths = points.iter().zip(ends).map(|(point, end)| if end.is_nan() { step } else { end - point.0 });
    points.iter().zip(widths).map(|(point, width)| point.1 * width).sum()
}

#[test]
fn curves_say_what_was_recorded() {
    let (curves, report) = convert(&[]);
    let of = |what: &'static str| {
        let wanted = curves.iter().filter(move |(name, _)| name.ends_with(what));
        wanted.map(|(_, points)| points)
    };
    // The trace is 2.5 ms long: steps are the shortest there are.
    let calls: f64 = of("calls/us").map(|points| area(points, 1.024)).sum();
    let expected: u64 = report["calls"]
        .as_array()
        .expect("functions")
        .iter()
        .filter(|function| function["category"] == "function")
        .map(|function| function["kept"].as_u64().unwrap() + function["folded"].as_u64().unwrap())
        .sum();
    assert!((calls - expected as f64).abs() < 0.01 * expected as f64, "{calls} of {expected}");
    assert_eq!(of("calls/us").count(), 5);
    // The recorder's core runs at 3.0 GHz, always.
    assert!(of("core frequency (MHz)").all(|points| matches!(points[..], [(_, 3000.0)])), "{curves:?}");
    assert_eq!(of("core frequency (MHz)").count(), 5);
    // Its clock says how many instructions a cycle takes: a few.
    assert_eq!(of("instructions per cycle").count(), 5);
    assert!(of("instructions per cycle").flatten().all(|point| (0.0..8.0).contains(&point.1)));
    assert!(of("instructions per cycle").all(|points| points.iter().any(|point| point.1 > 0.3)));
}

/// A window's curves are of the window.
#[test]
fn curves_of_a_window() {
    let (curves, _) = convert(&["--from", "+1ms", "--to", "+1.1ms"]);
    let times = || curves.values().flatten().map(|point| point.0);
    let (first, last) = (times().fold(f64::MAX, f64::min), times().fold(0.0, f64::max));
    assert!(last - first <= 100.0, "{first} to {last}");
    let frequency = curves.iter().filter(|(name, _)| name.ends_with("core frequency (MHz)"));
    assert!(frequency.clone().count() > 0 && frequency.into_iter().all(|(_, points)| points[0].1 == 3000.0));
}
