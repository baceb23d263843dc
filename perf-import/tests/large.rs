//! A capture of 4 GiB: opening it touches neither the trace nor much memory.

mod kit;

use kit::{config, who};
use ptflow_decoder::units::Tsc;
use ptflow_perf_import::write::PerfWriter;
use ptflow_perf_import::{Capture, PerfFile, Tid};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::time::{Duration, Instant};

/// Writes zeros by leaving them out: the file has holes there.
struct Sparse(File);

impl Write for Sparse {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() >= 4096 && bytes.iter().all(|byte| *byte == 0) {
            self.0.seek(SeekFrom::Current(bytes.len() as i64))?;
            return Ok(bytes.len());
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Seek for Sparse {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

/// Memory of this process that is no file's, in KiB.
fn anonymous() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[test]
fn four_gigabytes_open_at_once() {
    const CHUNK: usize = 4 << 20;
    const CHUNKS: u64 = 1024;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("perf.data");
    let mut w =
        PerfWriter::new(Sparse(File::create(&path).unwrap()), config(kit::DEFAULT_EVENT, false)).unwrap();
    // A PSB, then PADs.
    let mut chunk = [0x02, 0x82].repeat(8);
    chunk.resize(4096, 0);
    let zeros = vec![0u8; CHUNK - chunk.len()];
    w.comm(who(100, 100, 0, 1), "large", true).unwrap();
    for index in 0..CHUNKS {
        let (thread, at) = ((index % 4) as u32, index / 4 * CHUNK as u64);
        let (tid, time) = (100 + thread, 1_000 + index);
        w.aux(who(100, tid, 0, time), at, CHUNK as u64, 0).unwrap();
        // In two pieces: the sink sees the zeros alone.
        w.auxtrace(thread, Some(Tid(tid)), None, at, Tsc(time), &chunk).unwrap();
        let behind = at + chunk.len() as u64;
        w.auxtrace(thread, Some(Tid(tid)), None, behind, Tsc(time), &zeros).unwrap();
    }
    drop(zeros);
    w.finish().unwrap();
    let before = anonymous();
    let started = Instant::now();
    let file = PerfFile::open(&path).unwrap();
    let capture = Capture::read(&file).unwrap();
    let took = started.elapsed();
    assert!(file.len() > CHUNKS * CHUNK as u64);
    assert_eq!(capture.trace_bytes(), CHUNKS * CHUNK as u64);
    assert_eq!(capture.streams.len(), 4);
    assert_eq!(capture.notes, [""; 0]);
    println!("{} bytes in {took:?}", file.len());
    // One second is asked for; a debug build on a busy machine gets more.
    assert!(took < Duration::from_secs(3), "{took:?}");
    if let (Some(before), Some(after)) = (before, anonymous()) {
        println!("{} KiB more", after.saturating_sub(before));
        assert!(after.saturating_sub(before) < 100_000, "{before} KiB before, {after} KiB after");
    }
    if let Some(keep) = std::env::var_os("PTFLOW_KEEP_LARGE") {
        std::fs::rename(&path, keep).unwrap();
    }
}
