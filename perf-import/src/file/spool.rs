//! Bytes that are in no file yet: those of a pipe, and decompressed records.
//!
//! They go to a file without a name in the folder for temporary files (`TMPDIR`) and are mapped like any other, so that
//! memory stays bounded whatever their number; the file is gone when the map is.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};

/// Takes bytes until it is mapped.
pub(super) struct Spool {
    out: BufWriter<File>,
    len: u64,
}

impl Spool {
    pub fn new() -> io::Result<Self> {
        Ok(Self { out: BufWriter::with_capacity(1 << 17, tempfile::tempfile()?), len: 0 })
    }

    /// How many bytes it has taken.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Takes all that a reader has.
    pub fn fill(&mut self, mut from: impl Read) -> io::Result<()> {
        io::copy(&mut from, self).map(drop)
    }

    /// The bytes; `None` where there are none, which cannot be mapped.
    pub fn map(self) -> io::Result<Option<memmap2::Mmap>> {
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        if self.len == 0 {
            return Ok(None);
        }
        // SAFETY: the map is read-only, and the file has no name by which anybody could open and cut it.
        unsafe { memmap2::Mmap::map(&file) }.map(Some)
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
