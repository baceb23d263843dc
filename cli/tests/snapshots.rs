//! Snapshot mode: the sample's trace as overlapping windows of a ring is the sample's trace.

use ptflow_decoder::units::Tsc;
use ptflow_perf_import::process::SpaceEvent;
use ptflow_perf_import::record::kind;
use ptflow_perf_import::write::{PerfWriter, Who, WriterConfig};
use ptflow_perf_import::{Capture, Cpu, PerfFile, Tid};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench-traces/samples/requests")
}

/// Bytes of a window, and how much further each is than the one before.
const WINDOW: usize = 96 << 10;
const STEP: usize = 40 << 10;

/// The sample, its trace written as snapshots; how many there are.
fn write(path: &Path) -> usize {
    let file = PerfFile::open(&sample().join("perf.data")).expect("the sample");
    let capture = Capture::read(&file).expect("the sample");
    let config = WriterConfig {
        cmdline: vec!["snapshots".to_owned()],
        cpuid: capture.machine.cpuid.clone().expect("a CPU"),
        cpudesc: String::new(),
        cpus: 64,
        event_config: file.events().iter().next().expect("the event").attr.config,
        time: capture.config.time.expect("a clock"),
        tsc_ctc_ratio: capture.info.tsc_ctc_ratio,
        max_nonturbo_ratio: capture.config.max_nonturbo_ratio,
        per_cpu: false,
    };
    let mut w = PerfWriter::create(path, config).expect("a file");
    let mut count = 0;
    let begun = capture.time.expect("times").0;
    let (pid, process) = capture.processes.iter().next().expect("a process");
    let who = |tid: Tid| Who { pid, tid, cpu: Cpu(0), time: begun };
    w.comm(who(Tid(pid.0)), &process.comm, true).expect("written");
    for event in &process.space {
        let SpaceEvent::Map(range) = event else { continue };
        let file = &capture.processes.files()[range.file.0 as usize];
        w.mmap2(who(Tid(pid.0)), range.addr, range.len, range.pgoff, &file.path).expect("written");
        w.build_id(pid, &file.path, file.build_id.as_deref().unwrap_or(&[]));
    }
    for stream in &capture.streams {
        let tid = stream.tid.expect("a thread's");
        if tid.0 != pid.0 {
            w.fork(who(Tid(pid.0)), pid, tid).expect("written");
        }
        let bytes: Vec<u8> = stream.trace.pieces.iter().flat_map(|piece| piece.bytes).copied().collect();
        let reference = stream.trace.pieces[0].reference.unwrap_or(Tsc(1));
        let mut start = 0;
        loop {
            let end = (start + WINDOW).min(bytes.len());
            // In a ring, offsets are of no use.
            w.auxtrace(stream.idx, Some(tid), None, 0, reference, &bytes[start..end]).expect("written");
            count += 1;
            if end == bytes.len() {
                break;
            }
            start += STEP;
        }
    }
    w.finish().expect("written");
    // AUXTRACE_INFO's word 8 says that these are snapshots.
    let written = PerfFile::open(path).expect("our own file");
    let info = written.records().find(|record| record.kind == kind::AUXTRACE_INFO).expect("its settings");
    let word = info.offset.0 as usize + 8 + 8 + 8 * 8;
    drop(written);
    let mut bytes = std::fs::read(path).expect("our own file");
    bytes[word] = 1;
    std::fs::write(path, bytes).expect("written");
    count
}

#[test]
fn overlapping_snapshots_are_the_trace() {
    let folder = TempDir::new().expect("a folder");
    let capture = folder.path().join("perf.data");
    let snapshots = write(&capture);
    assert!(snapshots > 4, "{snapshots} snapshots");
    let report = folder.path().join("report.json");
    for threads in ["1", "3"] {
        let output = Command::new(env!("CARGO_BIN_EXE_ptflow"))
            .args(["profile", "--addresses", "runtime", "--quiet", "--threads", threads, "--report"])
            .arg(&report)
            .arg("--images")
            .arg(sample())
            .arg(&capture)
            .output()
            .expect("ptflow runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let truth = std::fs::read(sample().join("truth.edges")).expect("the truth");
        assert!(output.stdout == truth, "{threads} threads: the edges are not the truth");
        let report = std::fs::read(&report).expect("a report");
        let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
        let lost = report["lost"].as_array().expect("a list");
        assert!(lost.iter().all(|loss| loss["reason"] == "overlap"), "{lost:?}");
        let bytes: u64 = lost.iter().map(|loss| loss["bytes"].as_u64().expect("a number")).sum();
        let decoded = report["pt_bytes_decoded"].as_u64().expect("a number");
        assert_eq!(report["pt_bytes_in"], bytes + decoded);
        assert!(bytes > 0);
    }
}
