//! Whose the bytes of a CPU's trace are.
//!
//! A per-CPU stream is of whichever thread ran. Who ran when is known from elsewhere (switch records); the stream tells
//! where a switch may have been: only while user code did not run, so between TIP.PGD and TIP.PGE, or in the kernel, and
//! any place in such a pause is right. The two are joined by time, once, before anything is walked:
//!
//! ```text
//! switches      A ───────────────────────► B ──────────►  (records come up to some microseconds late)
//! stream   ──PGE════PGD─┬──PGE═════PGD──┬─────PGE═════PGD──
//! pauses                1               2
//! owners   A ───────────────────────────┤ B ───────────────
//! ```
//!
//! Time alone does not settle it: a packet's time is that of the last timing packet before it, and records are late. So
//! the switches are matched to the pauses as a whole (`matching.rs`), by what else is known: that tracing was started
//! anew, that the kernel ended an AUX record there and whose it was, that no user code runs while nobody does.

mod matching;
mod part;
mod pauses;

use crate::config::PtConfig;
use crate::image::AddressSpaces;
use crate::plan::Window;
use crate::reader::Reader;
use crate::stream::TraceStream;
use crate::units::{AuxOffset, Tsc};
use matching::Matching;
use part::Part;

/// A thread, as whatever number the caller gives it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ThreadId(pub u32);

/// From this time on a thread runs on the CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Turn {
    /// When, as the record says.
    pub since: Tsc,
    /// The thread; `None` where none does, or one that is not traced.
    pub thread: Option<ThreadId>,
}

/// Who is known to have run up to a place of the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RanUpTo {
    /// Since when nobody else is known to have: at the latest `end`.
    pub from: AuxOffset,
    /// The place.
    pub end: AuxOffset,
    /// The thread.
    pub thread: ThreadId,
}

/// What is known from elsewhere of a CPU.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    /// In order of time.
    pub turns: Vec<Turn>,
    /// In stream order.
    pub ends: Vec<RanUpTo>,
    /// The tracer was stopped at each of them: they are AUX records' ends, and all of them.
    pub ends_stop: bool,
    /// The tracer stops at every switch and starts anew, as for events of threads; else it runs through, as for events
    /// of CPUs.
    pub stops: bool,
}

/// From this place of the stream on, the bytes are a thread's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    /// The place.
    pub from: AuxOffset,
    /// The thread; `None` where it is not known.
    pub thread: Option<ThreadId>,
}

/// A stretch of a CPU's stream and the thread that it is of.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// Where it begins; it ends where the next one begins.
    pub from: AuxOffset,
    /// The thread; `None` where it is not known.
    pub thread: Option<ThreadId>,
    /// What the thread's process had mapped, over time.
    pub spaces: &'a AddressSpaces,
    /// Its branches are wanted. Others are walked too (what the CPU's return stack holds comes from them), but not
    /// counted.
    pub wanted: bool,
}

/// Finds out whose the bytes of a CPU's stream are. Only the stretches between PSBs in which a switch can lie are
/// looked at.
pub fn changes(stream: &TraceStream<'_>, config: &PtConfig, schedule: &Schedule) -> Vec<Change> {
    changes_in(stream, config, schedule, &Part::whole(stream))
}

/// As [`changes`], for the units that the windows need ([`plan::Plan::narrow`](crate::plan::Plan::narrow)): no more of the
/// stream is looked at than those and what lies around them. Of what is outside of that, the changes say nothing.
pub fn changes_within(
    stream: &TraceStream<'_>,
    config: &PtConfig,
    schedule: &Schedule,
    windows: &[Window],
    unit_bytes: usize,
) -> Vec<Change> {
    let part = Part::of(stream, config, windows, unit_bytes);
    part.map_or(Vec::new(), |part| changes_in(stream, config, schedule, &part))
}

fn changes_in(stream: &TraceStream<'_>, config: &PtConfig, schedule: &Schedule, part: &Part) -> Vec<Change> {
    if !config.tsc || schedule.turns.is_empty() {
        return by_ends(&schedule.ends);
    }
    let offset = |part: &Part| Reader::new(stream, part.from).offset();
    let begin = part.since.map(|since| (offset(part), since));
    let mut matching = Matching::new(schedule, config, begin);
    pauses::find(stream, config, schedule, part, &mut |pause| matching.take(pause));
    matching.finish()
}

/// Without a clock or switches: each end tells whose the bytes before it are, as far as it says.
fn by_ends(ends: &[RanUpTo]) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    let mut known = AuxOffset(0);
    for RanUpTo { from, end, thread } in ends {
        let from = known.max(*from);
        if from > known {
            changes.push(Change { from: known, thread: None });
        }
        if *end > from {
            changes.push(Change { from, thread: Some(*thread) });
        }
        known = known.max(*end);
    }
    changes.dedup_by_key(|change| change.thread);
    changes
}

#[cfg(test)]
mod tests;
