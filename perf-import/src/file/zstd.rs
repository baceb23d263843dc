//! COMPRESSED records: the payloads of one data file are one zstd stream, which perf flushes but never ends (linux
//! `tools/perf/util/zstd.c`). A block of it may be cut between two records, and so may a record between two blocks.

use super::spool::Spool;
use ruzstd::decoding::errors::FrameDecoderError;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use std::io::{self, Read};

/// What came out, and what was wrong with it.
pub(super) struct Decompressed {
    pub map: Option<memmap2::Mmap>,
    pub problem: Option<String>,
}

/// Beyond so many times the compressed bytes, the output is none that perf would write: an event differs from the one
/// before by its time at least.
const MOST_RATIO: u64 = 512;
/// What the first block may have beyond that.
const SLACK: u64 = 1 << 20;
/// An empty last block and no checksum: what ends a frame that was only flushed.
const END: [u8; 7] = [1, 0, 0, 0, 0, 0, 0];

/// Decompresses payloads. `Err` only where the output cannot be kept.
pub(super) fn decompress<'m>(payloads: impl Iterator<Item = &'m [u8]> + Clone) -> io::Result<Decompressed> {
    let total: u64 = payloads.clone().map(|bytes| bytes.len() as u64).sum();
    let (spool, damage) = attempt(&mut Payloads::new(payloads.clone(), total))?;
    let Some(Damage { at, what }) = damage else {
        return Ok(Decompressed { map: spool.map()?, problem: None });
    };
    // The decoder holds the last bytes back until the frame is over: once more, up to the damage.
    let (spool, _) = attempt(&mut Payloads::new(payloads, at))?;
    let problem = format!("{what}; {} of {total} compressed bytes are lost", total - at);
    Ok(Decompressed { map: spool.map()?, problem: Some(problem) })
}

struct Damage {
    /// Where the last whole block ended.
    at: u64,
    what: String,
}

fn attempt<'m>(
    payloads: &mut Payloads<'m, impl Iterator<Item = &'m [u8]>>,
) -> io::Result<(Spool, Option<Damage>)> {
    let mut spool = Spool::new()?;
    let mut decoder = FrameDecoder::new();
    while payloads.left() > 0 {
        let start = payloads.at;
        if let Err(error) = decoder.reset(&mut *payloads) {
            return Ok((spool, Some(Damage { at: start, what: error.to_string() })));
        }
        while !decoder.is_finished() {
            let at = payloads.at;
            let block = match payloads.left() {
                0 => decoder.decode_blocks(&END[..], BlockDecodingStrategy::All),
                _ => decoder.decode_blocks(&mut *payloads, BlockDecodingStrategy::UptoBlocks(1)),
            };
            // What is missing at the very end of a file that is cut short, and nothing more, is a checksum.
            if let Err(error) = block
                && !matches!(error, FrameDecoderError::FailedToReadChecksum(_))
            {
                return Ok((spool, Some(Damage { at, what: error.to_string() })));
            }
            decoder.collect_to_writer(&mut spool)?;
            if spool.len() > payloads.at.saturating_mul(MOST_RATIO).saturating_add(SLACK) {
                return Ok((
                    spool,
                    Some(Damage { at, what: "more comes out than perf ever compressed".to_owned() }),
                ));
            }
        }
    }
    Ok((spool, None))
}

/// The payloads as one stream, up to a limit.
struct Payloads<'m, I> {
    current: &'m [u8],
    more: I,
    at: u64,
    limit: u64,
}

impl<'m, I: Iterator<Item = &'m [u8]>> Payloads<'m, I> {
    fn new(payloads: I, limit: u64) -> Self {
        Self { current: &[], more: payloads, at: 0, limit }
    }

    fn left(&self) -> u64 {
        self.limit - self.at
    }
}

impl<'m, I: Iterator<Item = &'m [u8]>> Read for Payloads<'m, I> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            let Some(next) = self.more.next() else { return Ok(0) };
            self.current = next;
        }
        let limit = usize::try_from(self.left()).unwrap_or(usize::MAX);
        let len = out.len().min(self.current.len()).min(limit);
        let (head, rest) = self.current.split_at(len);
        out[..len].copy_from_slice(head);
        self.current = rest;
        self.at += len as u64;
        Ok(len)
    }
}
