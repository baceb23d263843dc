//! A sparse capture of 4 GiB: four threads' trace, of PSBs and PADs.

use super::{DEFAULT_EVENT, config, who};
use ptflow_decoder::units::Tsc;
use ptflow_perf_import::Tid;
use ptflow_perf_import::write::PerfWriter;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

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

const CHUNK: usize = 4 << 20;
const CHUNKS: u64 = 1024;
/// Bytes of trace.
pub const TRACE: u64 = CHUNKS * CHUNK as u64;

/// Writes it.
pub fn write(path: &Path) {
    let mut w = PerfWriter::new(Sparse(File::create(path).unwrap()), config(DEFAULT_EVENT, false)).unwrap();
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
    w.finish().unwrap();
}
