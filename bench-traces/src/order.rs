//! Our decoder and the ordered truth ([`crate::log`]) side by side, transfer by transfer.

use crate::log::{self, Entry, LogReader};
use anyhow::{Context as _, bail, ensure};
use ptflow_decoder::clock::Moment;
use ptflow_decoder::image::AddressSpaces;
use ptflow_decoder::jobs::branches::{BranchList, Line};
use ptflow_decoder::profile::CodeAddr;
use ptflow_decoder::run::{Options, in_order};
use ptflow_decoder::sink::Mark;
use ptflow_decoder::units::Svma;
use ptflow_decoder::walk::{Context, Engine};
use ptflow_perf_import::images::{ImageSearch, ImageStore};
use ptflow_perf_import::{Capture, PerfFile};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// How to decode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Way {
    /// Which walker.
    pub engine: Engine,
    /// On how many threads.
    pub threads: usize,
    /// Bytes of trace in a unit.
    pub unit_bytes: usize,
}

/// Decodes a recording without losses and holds every transfer, in order, to the truth: what, where, and after how many
/// instructions. `each` is told of every one: the thread, the truth, and when we say that it was.
pub fn compare(
    folder: &Path,
    way: Way,
    mut each: impl FnMut(u32, &Entry, Option<Moment>),
) -> anyhow::Result<()> {
    let file = PerfFile::open(&folder.join("perf.data"))?;
    let capture = Capture::read(&file)?;
    let store = ImageStore::load(&capture, &ImageSearch::default());
    let images = store.images();
    let spaces = capture.streams[0].pid.map(|pid| store.address_spaces(pid)).unwrap_or_default();
    let contexts: Vec<Context<'_, '_>> = capture
        .streams
        .iter()
        .map(|stream| Context {
            stream: &stream.trace,
            images: &images,
            spaces: &spaces,
            config: &capture.config,
            owners: &[],
        })
        .collect();
    let mut truths = Vec::new();
    for stream in &capture.streams {
        let tid = stream.tid.context("a trace by CPU has no threads to compare")?.0;
        truths.push(Truth { tid, log: open(folder, tid)?, instructions: 0, entries: 0 });
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(way.threads).build()?;
    let Way { engine, unit_bytes, .. } = way;
    let options = Options { pool: &pool, engine, unit_bytes, progress: &|_| {} };
    in_order(
        &contexts,
        &options,
        |_| BranchList { not_taken: true, ..BranchList::default() },
        |unit, list, result| {
            let truth = &mut truths[unit.stream];
            let mut times = result.timeline.reader();
            for (mark, line) in &list.lines {
                let entry = truth.check(*mark, line, &spaces)?;
                each(truth.tid, &entry, times.at(mark.ordinal));
            }
            truth.instructions += result.end.instructions();
            anyhow::Ok(())
        },
    )?;
    for truth in &mut truths {
        let (tid, entries) = (truth.tid, truth.entries);
        ensure!(truth.log.next().is_none(), "thread {tid} did more than the {entries} transfers decoded");
    }
    Ok(())
}

/// A thread's ordered truth.
pub(crate) fn open(folder: &Path, tid: u32) -> anyhow::Result<LogReader<BufReader<File>>> {
    let path = log::path(folder, tid);
    LogReader::open(&path).with_context(|| format!("cannot read {}; record with --log", path.display()))
}

struct Truth {
    tid: u32,
    log: LogReader<BufReader<File>>,
    /// Instructions in the units before.
    instructions: u64,
    entries: u64,
}

impl Truth {
    /// The next entry, which a line must equal.
    fn check(&mut self, mark: Mark, line: &Line, spaces: &AddressSpaces) -> anyhow::Result<Entry> {
        let (Some(entry), Line::Transfer { kind, from, to, taken }) = (self.log.next().transpose()?, *line)
        else {
            bail!("thread {}, transfer {}: {line:?} is not in the truth", self.tid, self.entries)
        };
        let ip = |addr: Option<CodeAddr>| addr.map(|addr| runtime(spaces, addr));
        let instructions = self.instructions + mark.instructions();
        let found = Entry { kind, from: ip(from), to: ip(to), taken, instructions, ..entry };
        ensure!(
            found == entry,
            "thread {}, transfer {}: {found:x?}, but in truth {entry:x?}",
            self.tid,
            self.entries
        );
        self.entries += 1;
        Ok(entry)
    }
}

fn runtime(spaces: &AddressSpaces, addr: CodeAddr) -> u64 {
    let Some(image) = addr.image else { return addr.addr };
    let mut versions = spaces.versions().iter();
    versions.find_map(|(_, space)| space.avma(image, Svma(addr.addr))).map_or(addr.addr, |ip| ip.0)
}
