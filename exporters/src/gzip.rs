//! gzip around any format.
//!
//! A gzip file may be a chain of members, each a whole gzip file by itself (RFC 1952, section 2.2): every reader puts them
//! together. So what is written is cut into blocks of a fixed length, and blocks are compressed at once on several threads.
//! Where the cuts are depends on nothing but the bytes: the number of threads does not change the file.

use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::{self, Write};
use std::num::NonZeroUsize;

/// So many bytes are a member. Costs next to nothing in size: deflate looks back no more than 32 KiB.
const BLOCK: usize = 1 << 20;

/// Compresses what is written through it. [`Write::flush`] writes all that is left, and must be the last call: what is not
/// flushed is not written.
#[derive(Debug)]
pub struct Gzip<W: Write> {
    out: W,
    threads: usize,
    /// At most one for each thread; all but the last are full.
    blocks: Vec<Vec<u8>>,
    /// Whether a member was written: a file without one would be no gzip file.
    begun: bool,
}

impl<W: Write> Gzip<W> {
    /// Compresses on the thread that writes.
    pub fn new(out: W) -> Self {
        Self::with_threads(out, NonZeroUsize::MIN)
    }

    /// Compresses on up to so many threads, started for each so many blocks. Keeps a MiB for each.
    pub fn with_threads(out: W, threads: NonZeroUsize) -> Self {
        Self { out, threads: threads.get(), blocks: Vec::new(), begun: false }
    }

    fn write_blocks(&mut self) -> io::Result<()> {
        self.begun = true;
        let blocks = std::mem::take(&mut self.blocks);
        if let [block] = blocks.as_slice() {
            return self.out.write_all(&member(block)?);
        }
        let members: Vec<_> = std::thread::scope(|scope| {
            let running: Vec<_> = blocks.iter().map(|block| scope.spawn(move || member(block))).collect();
            running.into_iter().map(|thread| thread.join()).collect()
        });
        for member in members {
            self.out.write_all(&member.map_err(|_| io::Error::other("a compressing thread panicked"))??)?;
        }
        Ok(())
    }
}

/// A gzip member that holds the block.
///
/// Level 1: traces shrink to a tenth at once, and little more at any price.
fn member(block: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(block.len() / 8), Compression::fast());
    encoder.write_all(block)?;
    encoder.finish()
}

impl<W: Write> Write for Gzip<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.blocks.last().is_none_or(|block| block.len() == BLOCK) {
            if self.blocks.len() == self.threads {
                self.write_blocks()?;
            }
            self.blocks.push(Vec::with_capacity(BLOCK));
        }
        let Some(block) = self.blocks.last_mut() else { return Ok(0) };
        let taken = bytes.len().min(BLOCK - block.len());
        block.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.begun && self.blocks.is_empty() {
            self.blocks.push(Vec::new());
        }
        if !self.blocks.is_empty() {
            self.write_blocks()?;
        }
        self.out.flush()
    }
}
