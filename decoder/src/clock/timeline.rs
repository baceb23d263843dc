//! The times of a unit's marks: points that packets gave, and what lies between.
//!
//! Between two points time is spread evenly over instructions. Where the flow was interrupted between them (tracing was
//! off, packets were lost), the instructions go at the unit's usual rate, and the rest of the time is shared by the
//! interruptions alike.

use super::Cycles;
use crate::units::Tsc;

/// What packets said at one ordinal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Point {
    ordinal: u64,
    /// The time of what is at the ordinal: its own, or else the first that a packet behind it gave.
    at: u64,
    /// `at` is its own.
    exact: bool,
    /// The last time that a packet gave here: what is behind is not before it.
    until: u64,
}

/// Gathers points in the order of the trace.
#[derive(Clone, Debug, Default)]
pub(super) struct TimelineBuilder {
    points: Vec<Point>,
    offs: Vec<u64>,
    /// Points from here on have not been thinned yet.
    thinned: usize,
    /// The point before the last, be it among the points or not.
    before_last: Option<Point>,
    /// Interruptions in front of it.
    offs_before: usize,
    /// Time and instructions between points with no interruption in between.
    ticks: u64,
    instructions: u64,
}

impl TimelineBuilder {
    /// Before the first point: room for some.
    pub fn take_memory(&mut self, points: Vec<Point>) {
        self.points = points;
        self.points.clear();
    }

    /// A packet says that it was `tsc` at this ordinal; `exact` = when the transfer there was.
    pub fn point(&mut self, ordinal: u64, tsc: u64, exact: bool) {
        match self.points.last_mut() {
            Some(last) if last.ordinal == ordinal => {
                let sound = tsc >= last.until;
                last.until = last.until.max(tsc);
                if exact && sound && !last.exact {
                    (last.at, last.exact) = (tsc, true);
                }
            }
            last => {
                // Time never runs backwards; what was to be held back is not exact.
                let last = last.copied();
                let floor = last.map_or(0, |last| last.until);
                let at = tsc.max(floor);
                if let Some(last) = last {
                    self.pair(last);
                    self.before_last = Some(last);
                }
                self.points.push(Point { ordinal, at, exact: exact && at == tsc, until: at });
            }
        }
    }

    /// Flow is interrupted between this ordinal and the next.
    pub fn off(&mut self, ordinal: u64) {
        if self.offs.last() != Some(&ordinal) {
            self.offs.push(ordinal);
        }
    }

    /// Nothing comes to the last point any more: what lies between it and the one before counts for the usual rate.
    fn pair(&mut self, last: Point) {
        let Some(before) = self.before_last else { return };
        if self.offs_before < self.offs.len() {
            let offs = &self.offs[self.offs_before..];
            self.offs_before += offs.iter().take_while(|off| **off < before.ordinal).count();
        }
        if self.offs.get(self.offs_before).is_none_or(|off| *off >= last.ordinal) {
            self.ticks += last.at - before.until;
            self.instructions += last.ordinal - before.ordinal;
        }
    }

    /// Points at lower ordinals are thinned already.
    pub fn thinned_to(&self) -> u64 {
        self.thinned.checked_sub(1).and_then(|last| self.points.get(last)).map_or(0, |point| point.ordinal)
    }

    /// Where flow was interrupted, from an ordinal on.
    pub fn offs_from(&self, ordinal: u64) -> &[u64] {
        &self.offs[count_below(&self.offs, ordinal)..]
    }

    /// Keeps all points so far.
    pub fn keep(&mut self) {
        self.thinned = self.points.len();
    }

    /// Drops the points that no time at the `wanted` ordinals depends on; those below [`Self::thinned_to`] are known
    /// to be complete.
    pub fn thin(&mut self, wanted: &[u64]) {
        thin(&mut self.points, &mut self.thinned, wanted, |point| point.ordinal);
    }

    pub fn finish(mut self) -> Timeline {
        if let Some(last) = self.points.last().copied() {
            self.pair(last);
        }
        let Self { points, offs, ticks, instructions, .. } = self;
        let rate = if instructions == 0 { 1.0 } else { ticks as f64 / instructions as f64 };
        Timeline { points, offs, rate, ..Timeline::default() }
    }
}

/// Keeps of all points from `*from` on those next to a `wanted` ordinal, and the first and the last of them all. Both are in
/// order.
pub(super) fn thin<T: Copy>(
    points: &mut Vec<T>,
    from: &mut usize,
    wanted: &[u64],
    ordinal: impl Fn(&T) -> u64,
) {
    let begin = (*from).max(1);
    let Some(mut before) = points.get(begin - 1).map(&ordinal) else { return };
    let mut kept = begin;
    let mut wanted = wanted.iter().copied().peekable();
    for index in begin..points.len() {
        while wanted.next_if(|wanted| *wanted <= before).is_some() {}
        let point = points[index];
        let is_near = match points.get(index + 1) {
            Some(behind) => wanted.peek().is_some_and(|wanted| *wanted < ordinal(behind)),
            None => true,
        };
        before = ordinal(&point);
        if is_near {
            points[kept] = point;
            kept += 1;
        }
    }
    points.truncate(kept);
    *from = points.len();
}

fn count_below(offs: &[u64], ordinal: u64) -> usize {
    offs.partition_point(|off| *off < ordinal)
}

/// The times of one unit.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// One an ordinal, in order; times never fall.
    points: Vec<Point>,
    /// Ordinals behind which the flow was interrupted.
    offs: Vec<u64>,
    /// Ticks per instruction, the unit's average where flow was not interrupted.
    rate: f64,
    /// The units before reach up to here.
    floor: u64,
    /// When the trace was read: nothing in it is later.
    ceiling: Option<u64>,
    cycles: Cycles,
    /// Core:bus ratios by the ordinals behind which they were told.
    ratios: Vec<(u64, u8)>,
}

/// A moment, and how it is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// When.
    pub tsc: Tsc,
    /// True where a CYC packet gives the event's own time; false where the time was interpolated, or is that of a packet
    /// somewhere behind the event.
    pub exact: bool,
}

impl Timeline {
    /// Nothing is later than this, except what packets say.
    pub(super) fn until(mut self, ceiling: Option<u64>) -> Self {
        self.ceiling = ceiling;
        self
    }

    /// Points, and cycles, that nobody needs any more.
    pub(super) fn into_memory(self) -> (Vec<Point>, Cycles) {
        (self.points, self.cycles)
    }

    pub(super) fn with_rates(mut self, cycles: Cycles, ratios: Vec<(u64, u8)>) -> Self {
        (self.cycles, self.ratios) = (cycles, ratios);
        self
    }

    /// Core cycles of the unit's traced code; `None` where no CYC packet tells them.
    pub fn cycles(&self) -> Option<u64> {
        self.cycles.total()
    }

    /// The core:bus ratios (CBR packets), each with the ordinal from which it holds; the first, and every change.
    pub fn ratios(&self) -> &[(u64, u8)] {
        &self.ratios
    }

    /// Nothing is earlier than what the units before reach up to.
    pub(crate) fn not_before(&mut self, floor: u64) {
        self.floor = floor;
    }

    /// The last time, where the unit ends at this ordinal.
    pub(crate) fn end(&self, ordinal: u64) -> u64 {
        self.points.last().map_or(0, |last| self.behind(last, ordinal)).max(self.floor)
    }

    /// The time at an ordinal behind the last point.
    fn behind(&self, last: &Point, ordinal: u64) -> u64 {
        let time = last.until.saturating_add(self.ticks(ordinal.saturating_sub(last.ordinal)));
        self.ceiling.map_or(time, |ceiling| time.min(ceiling.max(last.until)))
    }

    /// Ticks that so many instructions take where nothing tells.
    fn ticks(&self, instructions: u64) -> u64 {
        (instructions as f64 * self.rate) as u64
    }

    /// Reads times in rising order of ordinals.
    pub fn reader(&self) -> TimeReader<'_> {
        TimeReader { timeline: self, next: 0, behind: 0, between: None, offs: 0, offs_end: 0, next_cycles: 0 }
    }

    /// The first and the last time that a packet gave.
    pub fn span(&self) -> Option<(Tsc, Tsc)> {
        Some((Tsc(self.points.first()?.at), Tsc(self.points.last()?.until)))
    }
}

/// A forward reader of a [`Timeline`].
#[derive(Clone, Debug)]
pub struct TimeReader<'t> {
    timeline: &'t Timeline,
    /// Index of the first point behind the ordinal last asked for.
    next: usize,
    /// Its ordinal; 0 before anything is asked for.
    behind: u64,
    /// That point and the one before; `None` where there are not both.
    between: Option<Between>,
    /// Indices of the interruptions between the point before that and it.
    offs: usize,
    offs_end: usize,
    /// Index of the first point of cycles behind the ordinal last asked for.
    next_cycles: usize,
}

/// Two points in a row.
#[derive(Clone, Copy, Debug)]
struct Between {
    before: Point,
    /// Ticks from the one to the other.
    span: u64,
    /// Instructions, likewise.
    count: f64,
    /// The time at the other.
    ceiling: u64,
}

impl TimeReader<'_> {
    /// The time at an ordinal, which must not be lower than the one asked for before; `None` where no packet of the
    /// unit tells any time.
    #[inline]
    pub fn at(&mut self, ordinal: u64) -> Option<Moment> {
        let Moment { tsc, exact } = self.known_at(ordinal)?;
        let floor = Tsc(self.timeline.floor);
        Some(Moment { tsc: tsc.max(floor), exact: exact && tsc >= floor })
    }

    /// Core cycles of traced code from the unit's start to an ordinal, which must not be lower than the one asked for
    /// before; between two transfers that a CYC dates they are spread over the instructions. `None` where no CYC packet
    /// tells any.
    pub fn cycles_at(&mut self, ordinal: u64) -> Option<u64> {
        self.timeline.cycles.at(ordinal, &mut self.next_cycles)
    }

    #[inline]
    fn known_at(&mut self, ordinal: u64) -> Option<Moment> {
        if ordinal >= self.behind {
            self.pass_points(ordinal);
        }
        let Some(Between { before, span, count, ceiling }) = self.between else {
            return self.at_an_end(ordinal);
        };
        let inexact = |tsc: u64| Some(Moment { tsc: Tsc(tsc), exact: false });
        if before.ordinal == ordinal {
            return Some(Moment { tsc: Tsc(before.at), exact: before.exact });
        }
        let share = ordinal.saturating_sub(before.ordinal) as f64 / count;
        let elapsed = match self.offs_end - self.offs {
            0 => span as f64 * share,
            all => {
                let between = &self.timeline.offs[self.offs..self.offs_end];
                let passed = count_below(between, ordinal) as f64 / all as f64;
                let walking = self.timeline.ticks(count as u64).min(span);
                walking as f64 * share + (span - walking) as f64 * passed
            }
        };
        inexact(before.until.saturating_add(elapsed as u64).min(ceiling))
    }

    /// Goes on to the points around an ordinal.
    fn pass_points(&mut self, ordinal: u64) {
        let Timeline { points, offs, .. } = self.timeline;
        let first = self.next;
        while points.get(self.next).is_some_and(|point| point.ordinal <= ordinal) {
            self.next += 1;
        }
        let after = points.get(self.next);
        self.behind = after.map_or(u64::MAX, |after| after.ordinal);
        let before = self.next.checked_sub(1).and_then(|index| points.get(index));
        if self.next > first
            && self.offs_end < offs.len()
            && let Some(before) = before
        {
            self.offs = self.offs_end + count_below(&offs[self.offs_end..], before.ordinal);
            let within = offs[self.offs..].iter().take_while(|off| **off < self.behind);
            self.offs_end = self.offs + within.count();
        } else {
            self.offs = self.offs_end;
        }
        self.between = before.zip(after).map(|(before, after)| Between {
            before: *before,
            span: after.at - before.until,
            count: (after.ordinal - before.ordinal) as f64,
            ceiling: after.at,
        });
    }

    /// Before the first point, or from the last one on.
    fn at_an_end(&self, ordinal: u64) -> Option<Moment> {
        let points = &self.timeline.points;
        let tsc = match self.next.checked_sub(1).and_then(|index| points.get(index)) {
            Some(last) if last.ordinal == ordinal => {
                return Some(Moment { tsc: Tsc(last.at), exact: last.exact });
            }
            Some(last) => self.timeline.behind(last, ordinal),
            None => {
                let first = points.first()?;
                first.at.saturating_sub(self.timeline.ticks(first.ordinal - ordinal))
            }
        };
        Some(Moment { tsc: Tsc(tsc), exact: false })
    }
}
