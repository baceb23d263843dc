//! iptr (crates iptr-decoder and iptr-edge-analyzer), with its cache, counting blocks.
//!
//! It knows no RET compression, and leaves out what lies between a PSB and the next TIP; the note says how many blocks it
//! counted.

use super::inside::{sections, thread_cpu};
use anyhow::{Context as _, bail};
use iptr_decoder::{DecodeOptions, decode};
use iptr_edge_analyzer::{ControlFlowTransitionKind, EdgeAnalyzer, HandleControlFlow, ReadMemory};
use memmap2::Mmap;
use ptflow_perf_import::Capture;
use ptflow_perf_import::images::ImageStore;
use std::convert::Infallible;
use std::fs::File;
use std::time::Duration;

/// Counts blocks; what it keeps of a cached stretch is their number.
#[derive(Default)]
struct Blocks {
    all: u64,
    cached: u64,
}

impl HandleControlFlow for Blocks {
    type Error = Infallible;
    type CachedKey = u64;

    fn at_decode_begin(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
    #[inline]
    fn on_new_block(&mut self, _: u64, _: ControlFlowTransitionKind, cache: bool) -> Result<(), Infallible> {
        self.all += 1;
        self.cached += u64::from(cache);
        Ok(())
    }
    #[inline]
    fn cache_prev_cached_key(&mut self, key: u64) -> Result<(), Infallible> {
        self.cached += key;
        Ok(())
    }
    #[inline]
    fn take_cache(&mut self) -> Result<Option<u64>, Infallible> {
        let cached = std::mem::take(&mut self.cached);
        Ok((cached > 0).then_some(cached))
    }
    #[inline]
    fn clear_current_cache(&mut self) -> Result<(), Infallible> {
        self.cached = 0;
        Ok(())
    }
    #[inline]
    fn on_reused_cache(&mut self, key: &u64, _: u64) -> Result<(), Infallible> {
        self.all += key;
        Ok(())
    }
    fn should_clear_all_cache(&mut self) -> Result<bool, Infallible> {
        Ok(false)
    }
}

/// The code: first address, bytes.
struct Code(Vec<(u64, Mmap)>);

/// No code there.
#[derive(Debug)]
struct NoCode(u64);

impl std::fmt::Display for NoCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no code at {:#x}", self.0)
    }
}

impl std::error::Error for NoCode {}

impl ReadMemory for Code {
    type Error = NoCode;

    fn at_decode_begin(&mut self) -> Result<(), NoCode> {
        Ok(())
    }
    fn read_memory<T>(&mut self, addr: u64, size: usize, take: impl FnOnce(&[u8]) -> T) -> Result<T, NoCode> {
        let behind = self.0.partition_point(|(start, _)| *start <= addr);
        let bytes = self.0[..behind].last().and_then(|(start, bytes)| bytes.get((addr - start) as usize..));
        let bytes = bytes.filter(|bytes| !bytes.is_empty()).ok_or(NoCode(addr))?;
        Ok(take(&bytes[..bytes.len().min(size)]))
    }
}

/// Decodes every stream and prints a line for the bench.
pub fn run(capture: &Capture<'_>, store: &ImageStore) -> anyhow::Result<()> {
    let mut code = Vec::new();
    for section in sections(store, capture)? {
        let file = File::open(&section.path).with_context(|| format!("no {}", section.path.display()))?;
        let mut map = memmap2::MmapOptions::new();
        map.offset(section.offset).len(section.size as usize);
        // SAFETY: read only; nobody writes to programs while they are benched.
        code.push((section.address.0, unsafe { map.map(&file)? }));
    }
    code.sort_by_key(|(start, _)| *start);
    let mut analyzer = EdgeAnalyzer::new(Blocks::default(), Code(code));
    let mut took = Duration::ZERO;
    for stream in &capture.streams {
        // It takes a stream in one go; ours lie in pieces.
        let trace = stream.trace.pieces.iter().map(|piece| piece.bytes).collect::<Vec<_>>().concat();
        let before = thread_cpu();
        let result = decode(&trace, DecodeOptions::default(), &mut analyzer);
        took += thread_cpu() - before;
        if let Err(error) = result {
            bail!("{}", chain(&error));
        }
    }
    let took = took.as_secs_f64();
    let (blocks, _) = analyzer.into_handler_and_reader();
    println!("decode {took} {} blocks", blocks.all);
    Ok(())
}

/// An error and what it comes from.
fn chain(error: &dyn std::error::Error) -> String {
    let from = error.source().map(|from| format!(": {}", chain(from)));
    format!("{error}{}", from.unwrap_or_default())
}
