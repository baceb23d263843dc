//! Matching switches to pauses: the cheapest way to put every switch, in order, into some pause.
//!
//! A way is known by how many switches it has put so far. At each pause it may put further ones there; ways that come
//! to the same number are compared and the cheaper one is kept (Viterbi's algorithm). Few numbers are possible at any
//! pause, for a switch cannot be far from its record's time.

use super::pauses::Pause;
use super::{Change, Schedule, ThreadId, Turn};
use crate::config::PtConfig;
use crate::units::{AuxOffset, Tsc};
use std::rc::Rc;

/// A stretch of time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    ns: u64,
}

impl Span {
    /// In ticks of the trace's clock.
    pub fn ticks(self, config: &PtConfig) -> u64 {
        // Without a conversion, a clock of 3 GHz is near enough: bounds are not sharp.
        let ticks = match config.time {
            Some(time) => (u128::from(self.ns) << time.shift.min(64)) / u128::from(time.mult.max(1)),
            None => u128::from(self.ns) * 3,
        };
        u64::try_from(ticks).unwrap_or(u64::MAX / 4).min(u64::MAX / 4)
    }
}

/// A record is at most so late: the kernel starts tracing before it writes the record, and both take their time.
pub(super) const LATEST: Span = Span { ns: 12_000 };
/// Clocks agree so well.
const SLACK: Span = Span { ns: 1_000 };
/// A switch for which no pause was found is put somewhere after so long.
const GIVEN_UP: Span = Span { ns: 1_000_000 };

/// A way that is so much worse than another is not followed.
const HOPELESS: u64 = 60_000;
/// Ways are at most so many switches apart: time stays linear on any records.
const MOST_AHEAD: usize = 64;

// What speaks against a way; only the order of magnitude matters.
/// User code goes on, but nobody runs.
const NOBODY: u64 = 4_000;
/// The kernel says that another thread ran up to here. Of two threads that take turns faster than their records come,
/// nothing else tells: it outweighs the delays of many records.
const OTHER: u64 = 20_000;
/// Tracing started anew, but not for a switch: worse than any delay, or two late switches would go into one pause.
const NO_REASON: u64 = 4_000;
/// A switch, but tracing was not stopped for it. Better than a record's delay: between threads whose events are clones of
/// the same ones the kernel lets the tracer run (linux `kernel/events/core.c`, `perf_event_context_sched_out`).
const NO_STOP: u64 = 200;
/// The record is not from within the pause; more, the later it is.
const LATE: u64 = 300;
const LATER: u64 = 500;
/// The record is from a little before the pause: times in a trace are worked out.
const SOON: u64 = 400;
/// The record is from before the pause.
const EARLY: u64 = 20_000;

/// A way of matching, up to the last pause.
#[derive(Clone, Debug)]
struct Way {
    /// Switches that it has put.
    put: usize,
    cost: u64,
    changes: Option<Rc<Chain>>,
}

/// The pauses at which switches were put, the latest first.
#[derive(Debug)]
struct Chain {
    at: AuxOffset,
    put: usize,
    before: Option<Rc<Chain>>,
}

pub(super) struct Matching<'s> {
    turns: &'s [Turn],
    stops: bool,
    ends_stop: bool,
    latest: u64,
    slack: u64,
    given_up: u64,
    ways: Vec<Way>,
}

impl<'s> Matching<'s> {
    /// `begin`: not at the stream's beginning, but at this place and time.
    pub fn new(schedule: &'s Schedule, config: &PtConfig, begin: Option<(AuxOffset, Tsc)>) -> Self {
        let mut matching = Self {
            turns: &schedule.turns,
            stops: schedule.stops,
            ends_stop: schedule.ends_stop && !schedule.ends.is_empty(),
            latest: LATEST.ticks(config),
            slack: SLACK.ticks(config),
            given_up: GIVEN_UP.ticks(config),
            ways: vec![Way { put: 0, cost: 0, changes: None }],
        };
        if let Some((at, now)) = begin {
            matching.begin(at, now);
        }
        matching
    }

    /// Switches of this time may have been, those of earlier ones have.
    fn begin(&mut self, at: AuxOffset, now: Tsc) {
        let up_to = |time: u64| self.turns.partition_point(|turn| turn.since.0 <= time);
        let least = up_to(now.0.saturating_sub(self.slack));
        let most = up_to(now.0.saturating_add(self.latest)).min(least + MOST_AHEAD);
        let way = |put: usize| {
            let late = put.checked_sub(1).map_or(0, |last| self.turns[last].since.0.saturating_sub(now.0));
            let cost = if put == least { 0 } else { self.lateness(late) };
            Way { put, cost, changes: Some(Rc::new(Chain { at, put, before: None })) }
        };
        self.ways = (least..=most).map(way).collect();
    }

    fn lateness(&self, late: u64) -> u64 {
        if late == 0 { 0 } else { LATE + LATER.saturating_mul(late.min(self.latest)) / self.latest.max(1) }
    }

    fn runs(&self, put: usize) -> Option<ThreadId> {
        self.turns.get(put.checked_sub(1)?)?.thread
    }

    /// What it costs to put a switch into a pause.
    fn misfit(&self, turn: &Turn, pause: &Pause) -> u64 {
        let since = turn.since.0;
        match pause.after.map_or(0, |after| after.0.saturating_sub(since)) {
            0 => {}
            early if early <= self.slack => return SOON,
            _ => return EARLY,
        }
        // That nobody runs is told with who comes: one record's delay counts.
        let Some(before) = pause.before.filter(|_| turn.thread.is_some()) else { return 0 };
        self.lateness(since.saturating_sub(before.0))
    }

    /// Whether the tracer was stopped in a pause, where that tells of a switch; `None` where it is not known.
    fn stopped(&self, pause: &Pause) -> Option<bool> {
        match (self.stops && !pause.broken, self.ends_stop) {
            (false, _) => None,
            (true, false) => Some(pause.restarted),
            // A TSC packet alone: the AUX record is lost, or the core woke up.
            (true, true) if pause.restarted && pause.ran.is_none() => None,
            (true, true) => Some(pause.ran.is_some()),
        }
    }

    /// Takes the next pause.
    pub fn take(&mut self, pause: Pause) {
        let before = pause.before.or(pause.after);
        let reach = before.map_or(0, |time| time.0.saturating_add(self.slack + self.latest));
        let overdue = pause.after.map_or(0, |time| time.0.saturating_sub(self.given_up));
        let least = self.turns.partition_point(|turn| turn.since.0 < overdue);
        // Whoever is first ran from the start.
        let most = self.turns.partition_point(|turn| turn.since.0 <= reach).max(1);
        let lowest = self.ways.first().map_or(0, |way| way.put).max(least);
        let most = most.min(lowest + MOST_AHEAD).min(self.turns.len());
        // At the end every switch has been.
        let least = if pause.ends { least } else { most };
        let stopped = self.stopped(&pause);
        let mut next: Vec<Way> = Vec::with_capacity(self.ways.len() + 2);
        for way in &self.ways {
            let mut cost = way.cost;
            if pause.ran.is_some_and(|ran| self.runs(way.put) != Some(ran)) {
                cost += OTHER;
            }
            let mut put = way.put;
            loop {
                let unlikely = match (put != way.put, stopped) {
                    (false, Some(true)) => NO_REASON,
                    (true, Some(false)) => NO_STOP,
                    _ => 0,
                };
                let mut total = cost + unlikely;
                if pause.ends && self.runs(put).is_none() {
                    total += NOBODY;
                }
                if put >= least {
                    let changes = match put == way.put {
                        true => way.changes.clone(),
                        false => Some(Rc::new(Chain { at: pause.at, put, before: way.changes.clone() })),
                    };
                    offer(&mut next, Way { put, cost: total, changes });
                }
                if put >= most.max(least) {
                    break;
                }
                cost = cost.saturating_add(self.misfit(&self.turns[put], &pause));
                put += 1;
            }
        }
        next.sort_by_key(|way| way.put);
        // Only differences count.
        let cheapest = next.iter().map(|way| way.cost).min().unwrap_or(0);
        next.iter_mut().for_each(|way| way.cost -= cheapest);
        next.retain(|way| way.cost <= HOPELESS);
        self.ways = next;
    }

    /// The changes of the cheapest way.
    pub fn finish(self) -> Vec<Change> {
        let best = self.ways.iter().min_by_key(|way| (way.cost, way.put));
        let mut link = best.and_then(|way| way.changes.clone());
        let mut changes = Vec::new();
        while let Some(chain) = link {
            changes.push(Change { from: chain.at, thread: self.runs(chain.put) });
            link = chain.before.clone();
        }
        changes.reverse();
        changes.dedup_by_key(|change| change.thread);
        changes
    }
}

impl Drop for Chain {
    /// A long chain is taken apart link by link: its parts must not drop each other down the stack.
    fn drop(&mut self) {
        let mut before = self.before.take();
        while let Some(link) = before {
            match Rc::try_unwrap(link) {
                Ok(mut link) => before = link.before.take(),
                Err(_) => break,
            }
        }
    }
}

/// Keeps the cheaper one of two ways that come to the same; of equal ones the first.
fn offer(ways: &mut Vec<Way>, way: Way) {
    match ways.iter_mut().find(|known| known.put == way.put) {
        Some(known) if known.cost <= way.cost => {}
        Some(known) => *known = way,
        None => ways.push(way),
    }
}
