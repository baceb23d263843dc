//! Snapshots and AUX samples: the sample's trace as windows over it, which overlap or leave holes.

use ptflow_decoder::units::{Ip, Tsc};
use ptflow_exporters::edges::{self, TextRow};
use ptflow_perf_import::process::SpaceEvent;
use ptflow_perf_import::write::{PerfWriter, TraceForm, Who, WriterConfig};
use ptflow_perf_import::{Capture, Cpu, PerfFile, Tid};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench-traces/samples/requests")
}

/// Windows over a trace: their bytes, and how much further each is than the one before.
#[derive(Clone, Copy)]
struct Windows {
    size: usize,
    step: usize,
}

const OVERLAPPING: Windows = Windows { size: 56 << 10, step: 22 << 10 };
const APART: Windows = Windows { size: 60 << 10, step: 70 << 10 };

/// The sample in another form; how many windows there are.
fn write(path: &Path, form: TraceForm, windows: Windows) -> usize {
    let file = PerfFile::open(&sample().join("perf.data")).expect("the sample");
    let capture = Capture::read(&file).expect("the sample");
    let config = WriterConfig {
        cmdline: vec!["windows".to_owned()],
        cpuid: capture.machine.cpuid.clone().expect("a CPU"),
        cpudesc: String::new(),
        cpus: 64,
        event_config: file.events().iter().next().expect("the event").attr.config,
        time: capture.config.time.expect("a clock"),
        tsc_ctc_ratio: capture.info.tsc_ctc_ratio,
        max_nonturbo_ratio: capture.config.max_nonturbo_ratio,
        per_cpu: false,
        form,
    };
    let mut w = PerfWriter::create(path, config).expect("a file");
    let begun = capture.time.expect("times").0;
    let (pid, process) = capture.processes.iter().next().expect("a process");
    let who = |tid: Tid, time| Who { pid, tid, cpu: Cpu(0), time };
    w.comm(who(Tid(pid.0), begun), &process.comm, true).expect("written");
    for event in &process.space {
        let SpaceEvent::Map(range) = event else { continue };
        let file = &capture.processes.files()[range.file.0 as usize];
        let main = who(Tid(pid.0), begun);
        w.mmap2(main, range.addr, range.len, range.pgoff, &file.path).expect("written");
        w.build_id(pid, &file.path, file.build_id.as_deref().unwrap_or(&[]));
    }
    let mut count = 0;
    for stream in &capture.streams {
        let tid = stream.tid.expect("a thread's");
        if tid.0 != pid.0 {
            w.fork(who(Tid(pid.0), begun), pid, tid).expect("written");
        }
        let bytes: Vec<u8> = stream.trace.pieces.iter().flat_map(|piece| piece.bytes).copied().collect();
        let reference = stream.trace.pieces[0].reference.unwrap_or(Tsc(1));
        let starts: Vec<usize> = (0..bytes.len()).step_by(windows.step).collect();
        let last = starts.iter().position(|start| start + windows.size >= bytes.len());
        let starts = &starts[..=last.unwrap_or(starts.len() - 1)];
        let window = |start: usize| &bytes[start..(start + windows.size).min(bytes.len())];
        match form {
            // In a ring, offsets are of no use.
            TraceForm::Snapshots => starts.iter().for_each(|start| {
                w.auxtrace(stream.idx, Some(tid), None, 0, reference, window(*start)).expect("written");
            }),
            // Of several events they may come in any order: it is the time that counts.
            _ => starts.iter().rev().for_each(|start| {
                let time = begun + *start as u64;
                w.aux_sample(who(tid, time), Ip(0x40_1000), window(*start)).expect("written");
            }),
        }
        count += starts.len();
    }
    w.finish().expect("written");
    count
}

/// The edges, and the report.
fn edges(capture: &Path, threads: &str) -> (String, serde_json::Value) {
    let report = capture.with_extension("json");
    let output = Command::new(env!("CARGO_BIN_EXE_ptflow"))
        .args(["profile", "--addresses", "runtime", "--quiet", "--threads", threads, "--report"])
        .arg(&report)
        .arg("--images")
        .arg(sample())
        .arg(capture)
        .output()
        .expect("ptflow runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = std::fs::read(&report).expect("a report");
    (String::from_utf8(output.stdout).expect("text"), serde_json::from_slice(&report).expect("JSON"))
}

/// Bytes lost by reason; they and those that were decoded are all.
fn losses(report: &serde_json::Value) -> BTreeMap<String, (u64, u64)> {
    let mut losses = BTreeMap::new();
    for loss in report["lost"].as_array().expect("a list") {
        let sum = losses.entry(loss["reason"].as_str().expect("text").to_owned()).or_insert((0, 0));
        *sum = (sum.0 + 1, sum.1 + loss["bytes"].as_u64().expect("a number"));
    }
    let lost: u64 = losses.values().map(|sum| sum.1).sum();
    assert_eq!(report["pt_bytes_in"], report["pt_bytes_decoded"].as_u64().expect("a number") + lost);
    losses
}

fn truth() -> String {
    std::fs::read_to_string(sample().join("truth.edges")).expect("the truth")
}

#[test]
fn overlapping_windows_are_the_trace() {
    let folder = TempDir::new().expect("a folder");
    let capture = folder.path().join("perf.data");
    for form in [TraceForm::Snapshots, TraceForm::Samples(OVERLAPPING.size as u32)] {
        let windows = write(&capture, form, OVERLAPPING);
        assert!(windows > 8, "{windows} windows");
        for threads in ["1", "3"] {
            let (found, report) = edges(&capture, threads);
            assert!(found == truth(), "{form:?}, {threads} threads: the edges are not the truth");
            let losses = losses(&report);
            assert_eq!(losses.keys().collect::<Vec<_>>(), ["overlap"]);
            assert!(losses["overlap"].1 > 0);
        }
    }
}

#[test]
fn windows_apart_hold_no_more_than_the_trace() {
    let folder = TempDir::new().expect("a folder");
    let capture = folder.path().join("perf.data");
    let key = |row: &TextRow| (row.from.clone(), row.to.clone(), format!("{:?}", row.kind));
    let truth: BTreeMap<_, _> = edges::read(truth().as_bytes())
        .expect("the truth")
        .iter()
        .map(|row| (key(row), row.clone()))
        .collect();
    for form in [TraceForm::Snapshots, TraceForm::Samples(APART.size as u32)] {
        let windows = write(&capture, form, APART) as u64;
        let (found, report) = edges(&capture, "2");
        let (mut sum, mut all) = (0, 0);
        for row in edges::read(found.as_bytes()).expect("an edge table") {
            let known = truth.get(&key(&row)).unwrap_or_else(|| panic!("{row:?} was never run"));
            assert!(
                row.taken <= known.taken && row.not_taken <= known.not_taken,
                "{row:?}, truth: {known:?}"
            );
            sum += row.taken + row.not_taken;
        }
        truth.values().for_each(|row| all += row.taken + row.not_taken);
        assert!(sum * 2 > all && sum < all, "{sum} of {all} branches");
        let losses = losses(&report);
        let streams = 5;
        // At a glance: a line a stream, however many windows there are.
        let told = Command::new(env!("CARGO_BIN_EXE_ptflow"))
            .arg("info")
            .arg(&capture)
            .output()
            .expect("ptflow runs");
        let told = String::from_utf8(told.stdout).expect("text");
        let holes = told.lines().filter(|line| line.starts_with("lost ") && line.contains(": missing "));
        assert_eq!(holes.count() as u64, streams, "{told}");
        let kind = if form == TraceForm::Snapshots {
            "snapshots".to_owned()
        } else {
            format!("{windows} AUX samples")
        };
        assert!(told.contains(&kind), "{told}");
        assert_eq!(losses["missing"], (windows - streams, 0), "{losses:?}");
    }
}
