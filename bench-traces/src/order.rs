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
use ptflow_decoder::walk::{Context, Engine, UnitResult};
use ptflow_perf_import::images::{ImageSearch, ImageStore};
use ptflow_perf_import::{Capture, PerfFile};
use std::collections::{BTreeMap, btree_map};
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
/// instructions. `each` is told of every one: the thread, the truth, when we say that it was, and how many core cycles we say
/// that the thread's traced code took up to it.
pub fn compare(
    folder: &Path,
    way: Way,
    mut each: impl FnMut(u32, &Entry, Option<Moment>, Option<u64>),
) -> anyhow::Result<()> {
    let mut truths = BTreeMap::new();
    walk(folder, way, |tid, spaces, list, result| {
        let truth = match truths.entry(tid) {
            btree_map::Entry::Occupied(truth) => truth.into_mut(),
            btree_map::Entry::Vacant(place) => {
                place.insert(Truth { tid, log: open(folder, tid)?, instructions: 0, cycles: 0, entries: 0 })
            }
        };
        let mut times = result.timeline.reader();
        for (mark, line) in &list.lines {
            let entry = truth.check(*mark, line, spaces)?;
            let cycles = times.cycles_at(mark.ordinal).map(|cycles| truth.cycles + cycles);
            each(tid, &entry, times.at(mark.ordinal), cycles);
        }
        truth.cycles += result.timeline.cycles().unwrap_or(0);
        truth.instructions += result.end.instructions();
        Ok(())
    })?;
    for (tid, truth) in &mut truths {
        let entries = truth.entries;
        ensure!(truth.log.next().is_none(), "thread {tid} did more than the {entries} transfers decoded");
    }
    Ok(())
}

/// How often the times of a thread's transfers and gaps run backwards; any recording will do.
pub fn falls(folder: &Path, way: Way) -> anyhow::Result<u64> {
    let (mut latest, mut falls) = (BTreeMap::new(), 0);
    walk(folder, way, |tid, _, list, result| {
        let mut times = result.timeline.reader();
        for now in list.lines.iter().filter_map(|(mark, _)| times.at(mark.ordinal)) {
            let before = latest.insert(tid, now.tsc);
            falls += u64::from(before.is_some_and(|before| before > now.tsc));
        }
        Ok(())
    })?;
    Ok(falls)
}

/// Decodes a recording and hands on what each unit's transfers are, with the unit's thread.
fn walk(
    folder: &Path,
    way: Way,
    mut take: impl FnMut(u32, &AddressSpaces, &BranchList, &UnitResult) -> anyhow::Result<()>,
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
    let pool = rayon::ThreadPoolBuilder::new().num_threads(way.threads).build()?;
    let Way { engine, unit_bytes, .. } = way;
    let options = Options { pool: &pool, engine, unit_bytes, progress: &|_| {} };
    in_order(
        &contexts,
        &options,
        |_| BranchList { not_taken: true, ..BranchList::default() },
        |unit, list, result| {
            let tid = capture.streams[unit.stream].tid.context("a trace by CPU has no threads to compare")?;
            take(tid.0, &spaces, list, result)
        },
    )?;
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
    /// Core cycles in them, as we count them.
    cycles: u64,
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
