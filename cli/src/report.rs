//! The run's ledger: what became of every byte of trace, for people and for scripts.

use crate::unknown_code::{Cost, UnknownCode, UnknownCosts};
use anyhow::Context as _;
use ptflow_decoder::ledger::Ledger;
use ptflow_exporters::budget::Folding;
use ptflow_exporters::output::Output;
use ptflow_exporters::timeline::Category;
use serde::Serialize;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

/// `--report`: the run in figures.
#[derive(Serialize, Debug)]
pub struct Report<'a> {
    pt_bytes_in: u64,
    pt_bytes_decoded: u64,
    /// Outside of the window that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pt_bytes_skipped: Option<u64>,
    lost: Vec<Lost>,
    /// The code that `no_image` losses were in.
    no_image: Vec<NoImage<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    branches: Option<u64>,
    instructions: u64,
    segments: usize,
    threads: usize,
    seconds: Seconds,
    peak_rss_bytes: u64,
    #[serde(flatten)]
    calls: Option<Folded>,
}

/// What became of a timeline's calls.
#[derive(Serialize, Debug)]
struct Folded {
    /// Shorter ones were folded, in nanoseconds.
    min_duration_ns: u64,
    slices: u64,
    folded: u64,
    calls: Vec<Function>,
    /// Inlined functions, which nobody calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    inlined: Vec<Function>,
}

/// The calls of a function; times are with what it called. What ran before its call could be seen is of category
/// "inferred".
#[derive(Serialize, Debug)]
struct Function {
    function: String,
    category: &'static str,
    kept: u64,
    kept_ns: u64,
    folded: u64,
    folded_ns: u64,
}

impl Folded {
    fn new(folding: &Folding) -> Self {
        let functions = folding.functions.iter().map(|((category, function), calls)| Function {
            function: function.clone(),
            category: category.name(),
            kept: calls.kept,
            kept_ns: calls.kept_ns,
            folded: calls.folded,
            folded_ns: calls.folded_ns,
        });
        let is_inlined = |function: &Function| function.category == Category::Inlined.name();
        let (inlined, calls) = functions.partition(is_inlined);
        Self {
            min_duration_ns: folding.min_ns,
            slices: folding.slices,
            folded: folding.folded,
            calls,
            inlined,
        }
    }
}

#[derive(Serialize, Debug)]
struct Lost {
    reason: &'static str,
    stream: String,
    from: u64,
    to: u64,
    bytes: u64,
    count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<String>,
}

#[derive(Serialize, Debug)]
struct NoImage<'a> {
    #[serde(flatten)]
    code: &'a UnknownCode,
    #[serde(flatten)]
    cost: Cost,
}

#[derive(Serialize, Debug)]
struct Seconds {
    total: f64,
    cpu: f64,
}

/// What a run comes to.
pub struct Outcome<'a> {
    /// Bytes of trace that were to be decoded.
    pub bytes_in: u64,
    /// What became of them, by stream.
    pub ledgers: &'a [Ledger],
    /// The streams' names.
    pub streams: &'a [String],
    /// What code without an image cost.
    pub unknown: &'a UnknownCosts,
    /// Branches, where they were counted.
    pub branches: Option<u64>,
    /// Instructions.
    pub instructions: u64,
    /// Units of work.
    pub segments: usize,
    /// Threads.
    pub threads: usize,
    /// What became of the calls of a timeline.
    pub folding: Option<&'a Folding>,
}

impl Outcome<'_> {
    /// Writes the report where it is asked for, and says on standard error what was lost.
    pub fn tell(&self, started: Instant, file: Option<&Path>, quiet: bool) -> anyhow::Result<()> {
        if !quiet {
            self.warn();
        }
        let Some(path) = file else { return Ok(()) };
        let report = Report {
            pt_bytes_in: self.bytes_in,
            pt_bytes_decoded: self.ledgers.iter().map(|ledger| ledger.decoded).sum(),
            pt_bytes_skipped: Some(self.skipped()).filter(|bytes| *bytes > 0),
            lost: self.lost(),
            no_image: self.unknown.iter().map(|(code, cost)| NoImage { code, cost: *cost }).collect(),
            branches: self.branches,
            instructions: self.instructions,
            segments: self.segments,
            threads: self.threads,
            seconds: Seconds { total: started.elapsed().as_secs_f64(), cpu: cpu_seconds() },
            peak_rss_bytes: peak_rss_bytes(),
            calls: self.folding.map(Folded::new),
        };
        let mut text = serde_json::to_string_pretty(&report)?;
        text.push('\n');
        let write = || {
            let mut output = Output::create(path)?;
            output.write_all(text.as_bytes())?;
            output.commit()
        };
        write().with_context(|| format!("cannot write the report {}", path.display()))
    }

    fn skipped(&self) -> u64 {
        self.ledgers.iter().map(|ledger| ledger.skipped).sum()
    }

    fn lost(&self) -> Vec<Lost> {
        let mut lost = Vec::new();
        for (ledger, stream) in self.ledgers.iter().zip(self.streams) {
            for loss in &ledger.losses {
                lost.push(Lost {
                    reason: loss.reason.name(),
                    stream: stream.clone(),
                    from: loss.from.0,
                    to: loss.to.0,
                    bytes: loss.bytes,
                    count: 1,
                    at: loss.at.map(|ip| ip.to_string()),
                });
            }
        }
        lost
    }

    /// A line for each reason: how often, how many bytes.
    fn warn(&self) {
        let skipped = self.skipped();
        if skipped > 0 {
            let all = self.bytes_in;
            eprintln!("ptflow: {skipped} of {all} bytes of trace are of other times, and were not decoded");
        }
        let mut by_reason = std::collections::BTreeMap::new();
        for loss in self.ledgers.iter().flat_map(|ledger| &ledger.losses) {
            let (count, bytes) = by_reason.entry(loss.reason).or_insert((0u64, 0u64));
            *count += 1;
            *bytes += loss.bytes;
        }
        let cost = |count: u64, bytes: u64| {
            let share = 100.0 * bytes as f64 / self.bytes_in.max(1) as f64;
            let times = if count == 1 { "once".to_owned() } else { format!("{count} times") };
            format!("{times}, {bytes} bytes of trace ({share:.2} %)")
        };
        for (reason, (count, bytes)) in by_reason {
            eprintln!("ptflow: lost: {} {}", reason.name(), cost(count, bytes));
        }
        /// So many are named one by one.
        const MOST: usize = 8;
        let mut unknown: Vec<_> = self.unknown.iter().collect();
        unknown.sort_by_key(|(_, cost)| std::cmp::Reverse(cost.bytes));
        for (UnknownCode { image, why }, Cost { bytes, count }) in unknown.into_iter().take(MOST) {
            eprintln!("ptflow: lost: no_image: {image}, {why}: {}", cost(*count, *bytes));
        }
    }
}

/// CPU seconds of this process, all threads.
fn cpu_seconds() -> f64 {
    // utime and stime are the 14th and 15th field, in clock ticks; the name in the second may hold anything.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// The most memory this process ever had resident, mapped files included.
fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}
