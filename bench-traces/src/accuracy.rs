//! How far the times of branches are from the truth: ours, and perf's.
//!
//! The same branches count for both: all that were taken, of all threads. perf gives each the time of the last timing
//! packet that it had read; its list is compared with the truth as ours is, and times count only where the flows agree.

use crate::log::Entry;
use crate::options::machine;
use crate::order::{self, Way, compare};
use anyhow::{Context as _, bail};
use ptflow_decoder::clock::Moment;
use ptflow_decoder::profile::EdgeKind;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

/// Errors of many times, in nanoseconds; positive = too late.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Errors(Vec<f64>);

impl Errors {
    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The distance from the truth that this part of them does not exceed; 0 where there are none.
    pub fn quantile(&mut self, part: f64) -> f64 {
        self.0.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
        let index = (part * self.0.len() as f64).ceil() as usize;
        self.0.get(index.saturating_sub(1)).map_or(0.0, |error| error.abs())
    }

    /// The furthest too early (negative), and the furthest too late.
    pub fn range(&self) -> (f64, f64) {
        self.0.iter().fold((0.0, 0.0), |(low, high), error| (error.min(low), error.max(high)))
    }
}

/// What was measured on one recording.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Accuracy {
    /// Our times.
    pub ours: Errors,
    /// Those of them that we call exact.
    pub exact: Errors,
    /// Times that went backwards within a thread.
    pub backwards: u64,
    /// Transfers without any time.
    pub timeless: u64,
    /// How many transfers a CYC dates, and by how many cycles our count up to one of those is off at worst: cycles while
    /// tracing was on.
    pub cycles: (u64, u64),
    /// How often tracing went on.
    pub resumes: u64,
    /// The worst error of any transfer, taken or not, in nanoseconds. Direct jumps and calls have no packet, so no time
    /// in hand: of theirs, what goes beyond the stretch between the transfers around them that have.
    pub worst: f64,
}

/// One thread's transfers as they come.
#[derive(Debug, Default)]
struct Thread {
    /// The last time.
    tsc: u64,
    /// Cycles at the last transfer that had a packet.
    told_at: u64,
    /// Errors of those since then that had none.
    untold: Vec<f64>,
    /// Cycles at the last transfer, and how many up to there were traced.
    cycles: u64,
    traced: u64,
}

impl Thread {
    /// Traced cycles up to this transfer.
    fn traced(&mut self, entry: &Entry) -> u64 {
        let passed = entry.cycles - std::mem::replace(&mut self.cycles, entry.cycles);
        if entry.kind != EdgeKind::Resume {
            self.traced += passed;
        }
        self.traced
    }

    /// The worst error that is known now, of this transfer and those before it.
    fn worst(&mut self, entry: &Entry, error: f64) -> f64 {
        if matches!(entry.kind, EdgeKind::Jmp | EdgeKind::Call) {
            self.untold.push(error.abs());
            return 0.0;
        }
        let stretch = true_ns(entry.cycles) - true_ns(self.told_at);
        self.told_at = entry.cycles;
        self.untold.drain(..).map(|untold| untold - stretch).fold(error.abs(), f64::max)
    }
}

/// The time of an entry in perf's clock, unrounded.
pub fn true_ns(cycles: u64) -> f64 {
    let ratio = f64::from(machine::TSC_RATIO) / f64::from(machine::CORE_RATIO);
    // Relative to the start: nanoseconds since boot have no room for fractions in a double.
    cycles as f64 * ratio * f64::from(machine::TIME.mult) / (1u64 << machine::TIME.shift) as f64
}

/// A time in perf's clock relative to the recording's start, for [`true_ns`].
fn since_start(ns: u64) -> f64 {
    let scaled = u128::from(machine::TSC_START) * u128::from(machine::TIME.mult);
    let start = machine::TIME.zero + (scaled >> machine::TIME.shift) as u64;
    let part = (scaled & ((1 << machine::TIME.shift) - 1)) as f64 / (1u64 << machine::TIME.shift) as f64;
    ns.wrapping_sub(start) as i64 as f64 - part
}

/// Branches that perf lists too: the program's own, taken.
fn counts(entry: &Entry) -> bool {
    entry.taken && !matches!(entry.kind, EdgeKind::Syscall | EdgeKind::Async | EdgeKind::Resume)
}

/// Our times of a recording without losses.
pub fn ours(folder: &Path, way: Way) -> anyhow::Result<Accuracy> {
    let mut accuracy = Accuracy::default();
    let mut threads: BTreeMap<u32, Thread> = BTreeMap::new();
    compare(folder, way, |tid, entry, moment, cycles| {
        let thread = threads.entry(tid).or_default();
        let traced = thread.traced(entry);
        accuracy.resumes += u64::from(entry.kind == EdgeKind::Resume);
        let Some(Moment { tsc, exact }) = moment else {
            accuracy.timeless += 1;
            return;
        };
        let error = since_start(machine::TIME.to_ns(tsc).0) - true_ns(entry.cycles);
        if let (true, Some(cycles)) = (exact, cycles) {
            accuracy.cycles.0 += 1;
            accuracy.cycles.1 = accuracy.cycles.1.max(cycles.abs_diff(traced));
        }
        accuracy.backwards += u64::from(thread.tsc > tsc.0);
        thread.tsc = tsc.0;
        accuracy.worst = accuracy.worst.max(thread.worst(entry, error));
        if counts(entry) {
            accuracy.ours.0.push(error);
            if exact {
                accuracy.exact.0.push(error);
            }
        }
    })?;
    Ok(accuracy)
}

/// perf's times of the same branches.
pub fn perf(folder: &Path) -> anyhow::Result<Errors> {
    let mut script = Command::new("perf")
        .args(["script", "--ns", "--itrace=b", "-F", "tid,time,flags,ip,addr", "-i"])
        .arg(folder.join("perf.data"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run perf: install Debian's package linux-perf")?;
    let output = script.stdout.take().context("perf's output")?;
    let mut errors = Errors::default();
    let mut truths = BTreeMap::new();
    for line in BufReader::new(output).lines() {
        let line = line?;
        let Some(found) = Line::parse(&line) else { continue };
        let truth = match truths.entry(found.tid) {
            std::collections::btree_map::Entry::Occupied(truth) => truth.into_mut(),
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(order::open(folder, found.tid)?)
            }
        };
        let entry = loop {
            match truth.next().transpose()? {
                Some(entry) if counts(&entry) => break entry,
                Some(_) => {}
                None => bail!("perf lists more than there is: {line}"),
            }
        };
        if (entry.from, entry.to) != (Some(found.from), Some(found.to)) {
            bail!("perf lists {line}, but in truth {entry:x?}");
        }
        errors.0.push(since_start(found.ns) - true_ns(entry.cycles));
    }
    script.wait()?;
    Ok(errors)
}

/// One line of `perf script`.
struct Line {
    tid: u32,
    ns: u64,
    from: u64,
    to: u64,
}

impl Line {
    /// `7186  1000.000237909:   jcc   400289bc03 =>   400289bbca`; none for the beginnings and ends of tracing.
    fn parse(line: &str) -> Option<Self> {
        let (left, to) = line.split_once("=>")?;
        let mut words = left.split_whitespace();
        let tid = words.next()?.parse().ok()?;
        let (seconds, nanos) = words.next()?.trim_end_matches(':').split_once('.')?;
        let ns = seconds.parse::<u64>().ok()? * 1_000_000_000 + nanos.parse::<u64>().ok()?;
        let rest: Vec<&str> = words.collect();
        let (from, flags) = rest.split_last()?;
        if flags.contains(&"tr") {
            return None;
        }
        let hex = |word: &str| u64::from_str_radix(word.trim(), 16).ok();
        Some(Self { tid, ns, from: hex(from)?, to: hex(to)? })
    }
}
