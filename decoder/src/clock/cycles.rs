//! Core cycles of traced code, as CYC packets count them: what instructions per cycle are told from.
//!
//! A CYC tells the cycles since the CYC before (SDM vol. 3C, "Cycle Count (CYC) Packet"), wherever the core was in between.
//! Those that went by while tracing was off (as in the kernel's decoder, which counts them from TIP.PGE to TIP.PGD), or
//! while the flow was lost, have no instructions and do not count. With a CYC threshold there may be no CYC where tracing
//! goes off: what it kept back, fewer cycles than the threshold each time, is told only with those that do not count.

use super::timeline::{share, thin};

/// The cycles of one unit.
#[derive(Clone, Debug, Default)]
pub struct Cycles {
    /// Ordinals of transfers that a CYC stood directly before, and the cycles up to there. Both rise.
    points: Vec<(u64, u64)>,
    /// Points from here on have not been thinned yet.
    thinned: usize,
    /// Cycles up to the last point.
    counted: u64,
    /// Cycles since then.
    since: u64,
    /// A CYC came.
    any: bool,
    /// An address of traced code was told in the unit.
    was_on: bool,
    /// Tracing is off.
    off: bool,
    /// Flow is lost.
    lost: bool,
    /// The unit is over.
    ended: bool,
}

impl Cycles {
    /// Before the first point: room for some.
    pub(super) fn take_memory(&mut self, other: Self) {
        self.points = other.points;
        self.points.clear();
    }

    /// A CYC.
    #[inline]
    pub(super) fn pass(&mut self, cycles: u64) {
        if !(self.off | self.lost | self.ended) {
            self.any = true;
            self.since = self.since.saturating_add(cycles);
        }
    }

    /// The CYC stood directly before the packet of the transfer at this ordinal.
    #[inline]
    pub(super) fn point(&mut self, ordinal: u64) {
        if !(self.off | self.lost | self.ended) {
            self.was_on = true;
            self.count();
            match self.points.last_mut() {
                Some(last) if last.0 >= ordinal => last.1 = self.counted,
                _ => self.points.push((ordinal, self.counted)),
            }
        }
    }

    fn count(&mut self) {
        self.counted = self.counted.saturating_add(std::mem::take(&mut self.since));
    }

    /// Counting ends at this ordinal. A transfer there keeps its own count: what a CYC told since is of the code behind it.
    fn stop(&mut self, ordinal: u64) {
        self.count();
        if self.any && self.points.last().is_none_or(|last| last.0 < ordinal) {
            self.points.push((ordinal, self.counted));
        }
    }

    /// Tracing is on: PSB+ has an address.
    pub(super) fn here(&mut self) {
        self.was_on = true;
    }

    /// Tracing goes off.
    pub(super) fn off(&mut self, ordinal: u64) {
        self.stop(ordinal);
        self.off = true;
    }

    /// Tracing goes on. Where the unit begins without tracing, what it counted so far is nobody's.
    pub(super) fn on(&mut self) {
        if !self.was_on || self.off {
            self.since = 0;
        }
        self.was_on = true;
        self.off = false;
    }

    /// Flow is lost, and with it the cycles since the last point: some of them may be those of what was lost.
    pub(super) fn lost(&mut self) {
        self.since = 0;
        self.lost = true;
    }

    /// Flow is found again.
    pub(super) fn found(&mut self) {
        self.lost = false;
    }

    /// The unit is over, at this ordinal.
    pub(super) fn end(&mut self, ordinal: u64) {
        if !self.ended {
            self.stop(ordinal);
        }
        self.ended = true;
    }

    /// All cycles of the unit; `None` where no CYC told any.
    pub fn total(&self) -> Option<u64> {
        self.any.then(|| self.counted.saturating_add(self.since))
    }

    /// Points at lower ordinals are thinned already.
    pub(super) fn thinned_to(&self) -> u64 {
        if self.points.is_empty() {
            return u64::MAX;
        }
        self.thinned.checked_sub(1).and_then(|last| self.points.get(last)).map_or(0, |point| point.0)
    }

    /// Keeps all points so far.
    pub(super) fn keep(&mut self) {
        self.thinned = self.points.len();
    }

    /// Drops the points that no count at the `wanted` ordinals depends on.
    pub(super) fn thin(&mut self, wanted: &[u64]) {
        thin(&mut self.points, &mut self.thinned, wanted, |point| point.0);
    }

    /// Cycles up to an ordinal. `next` is the index of the first point behind the ordinal asked for before.
    #[inline]
    pub(super) fn at(&self, ordinal: u64, next: &mut usize) -> Option<u64> {
        let total = self.total()?;
        while self.points.get(*next).is_some_and(|point| point.0 <= ordinal) {
            *next += 1;
        }
        let (begin, before) = next.checked_sub(1).map_or((0, 0), |index| self.points[index]);
        // Most that is asked for was dated itself.
        if ordinal == begin {
            return Some(before);
        }
        let Some(&(end, after)) = self.points.get(*next) else { return Some(total) };
        Some(before + share(after - before, ordinal.saturating_sub(begin), end - begin))
    }
}
