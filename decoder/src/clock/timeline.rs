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
    /// The point before the last, be it among the points or not: its ordinal, and the last time there.
    before_last: Option<(u64, u64)>,
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
    #[inline]
    pub fn point(&mut self, ordinal: u64, tsc: u64, exact: bool) {
        let Some(last) = self.points.last_mut() else {
            self.points.push(Point { ordinal, at: tsc, exact, until: tsc });
            return;
        };
        if last.ordinal == ordinal {
            let sound = tsc >= last.until;
            last.until = last.until.max(tsc);
            if exact && sound && !last.exact {
                (last.at, last.exact) = (tsc, true);
            }
            return;
        }
        let last = *last;
        self.pair(last.ordinal, last.at);
        self.before_last = Some((last.ordinal, last.until));
        // Time never runs backwards; what was to be held back is not exact.
        let at = tsc.max(last.until);
        self.points.push(Point { ordinal, at, exact: exact & (at == tsc), until: at });
    }

    /// Flow is interrupted between this ordinal and the next.
    pub fn off(&mut self, ordinal: u64) {
        if self.offs.last() != Some(&ordinal) {
            self.offs.push(ordinal);
        }
    }

    /// Nothing comes to the last point any more: what lies between it and the one before counts for the usual rate.
    #[inline]
    fn pair(&mut self, last: u64, at: u64) {
        let Some((before, until)) = self.before_last else { return };
        if self.offs_before < self.offs.len() && self.is_interrupted(before, last) {
            return;
        }
        self.ticks += at - until;
        self.instructions += last - before;
    }

    /// Whether flow was interrupted between two points.
    fn is_interrupted(&mut self, before: u64, last: u64) -> bool {
        let offs = &self.offs[self.offs_before..];
        self.offs_before += offs.iter().take_while(|off| **off < before).count();
        self.offs.get(self.offs_before).is_some_and(|off| *off < last)
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
            self.pair(last.ordinal, last.at);
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
        TimeReader { timeline: self, before: None, to_come: &self.points, next_cycles: 0, passed_offs: 0 }
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
    /// The last point that is not behind the ordinal last asked for.
    before: Option<&'t Point>,
    /// The points behind it.
    to_come: &'t [Point],
    /// Index of the first point of cycles behind the ordinal last asked for.
    next_cycles: usize,
    /// So many interruptions are before the last point that is not.
    passed_offs: usize,
}

/// So many of `count` parts of `span`. In whole numbers where they have room: conversions to floating point and back take
/// longer than the division.
#[inline]
pub(super) fn share(span: u64, part: u64, count: u64) -> u64 {
    if (span | part) >> 32 == 0 {
        return span * part / count.max(1);
    }
    // Rounded up, it could be more than all.
    ((span as f64 * (part as f64 / count.max(1) as f64)) as u64).min(span)
}

impl TimeReader<'_> {
    /// The time at an ordinal, which must not be lower than the one asked for before; `None` where no packet of the
    /// unit tells any time.
    #[inline(always)]
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

    #[inline(always)]
    fn known_at(&mut self, ordinal: u64) -> Option<Moment> {
        while let Some((point, to_come)) = self.to_come.split_first()
            && point.ordinal <= ordinal
        {
            (self.before, self.to_come) = (Some(point), to_come);
        }
        let (Some(before), Some(after)) = (self.before, self.to_come.first()) else {
            return self.at_an_end(ordinal);
        };
        if before.ordinal == ordinal {
            return Some(Moment { tsc: Tsc(before.at), exact: before.exact });
        }
        let (span, count) = (after.at - before.until, after.ordinal - before.ordinal);
        let part = ordinal.saturating_sub(before.ordinal);
        let elapsed = match self.timeline.offs.get(self.passed_offs) {
            Some(off) if *off < after.ordinal => self.elapsed_with_interruptions(*before, *after, ordinal),
            _ => share(span, part, count),
        };
        let tsc = before.until.saturating_add(elapsed).min(after.at);
        Some(Moment { tsc: Tsc(tsc), exact: false })
    }

    /// Ticks from a point to an ordinal in front of the next one, where the flow may have been interrupted in between.
    #[cold]
    fn elapsed_with_interruptions(&mut self, before: Point, after: Point, ordinal: u64) -> u64 {
        let (span, count) = (after.at - before.until, after.ordinal - before.ordinal);
        let part = ordinal.saturating_sub(before.ordinal);
        let offs = &self.timeline.offs;
        self.passed_offs += count_below(&offs[self.passed_offs..], before.ordinal);
        let offs = &offs[self.passed_offs..];
        let within = count_below(offs, after.ordinal);
        if within == 0 {
            return share(span, part, count);
        }
        let walking = self.timeline.ticks(count).min(span);
        let passed = count_below(&offs[..within], ordinal);
        share(walking, part, count) + share(span - walking, passed as u64, within as u64)
    }

    /// Before the first point, or from the last one on.
    fn at_an_end(&self, ordinal: u64) -> Option<Moment> {
        let tsc = match self.before {
            Some(last) if last.ordinal == ordinal => {
                return Some(Moment { tsc: Tsc(last.at), exact: last.exact });
            }
            Some(last) => self.timeline.behind(last, ordinal),
            None => {
                let first = self.timeline.points.first()?;
                first.at.saturating_sub(self.timeline.ticks(first.ordinal - ordinal))
            }
        };
        Some(Moment { tsc: Tsc(tsc), exact: false })
    }
}
