//! Timing packets to time: when each instruction of a work unit ran.
//!
//! A timing packet dates what stands behind it (SDM, "Intel PT and Time"); a CYC directly before a branch packet gives
//! that branch's own time, one directly before an MTC or TSC ties the cycle count to the TSC. So [`Clock`] only notes
//! what each packet said and how many instructions the walk had behind it, and [`Clock::finish`] works out times in
//! hindsight: between two tied points the cycles are scaled to fit both ends, so that CYC times never pass the next
//! known one.
//!
//! ```text
//! ordinal   0 ......... 412 ........ 980 ....... 1500 ......... 2210
//! packets   TSC         CYC          CYC,MTC     CYC            CYC,MTC
//!           anchor      cycles 800   anchor      cycles 2100    anchor
//! time      given       scaled       given       scaled         given
//! ```
//!
//! Between points, time is spread evenly over instructions. A stretch without tracing takes up the slack: the
//! instructions around it go at the unit's usual rate.

use crate::config::PtConfig;
use crate::units::Tsc;

/// A TSC packet may lag behind the time that MTC and CYC gave; up to this many ticks back it is no wrap
/// (as in the kernel's decoder).
const TSC_SLIP: u64 = 0x1_0000;

/// Relation of the crystal clock to the TSC, from a TMA packet.
#[derive(Clone, Copy, Debug)]
struct Crystal {
    /// TSC at the last MTC edge before the TMA.
    base: u64,
    /// Crystal ticks since then.
    ticks: u64,
    /// The MTC payload last seen, or the one that the TMA implies.
    last: u8,
    /// The TMA carries too few bits for a long MTC period: the next MTC tells the missing ones.
    fix_up: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// The TSC is known here; `dated` = a CYC stood directly before, so the cycle count is known too.
    Anchor { tsc: u64, dated: bool },
    /// The cycle count is known here.
    Cycles,
    /// The core's clock rate changed.
    Ratio { ratio: u8 },
    /// Tracing went off.
    Off,
}

#[derive(Clone, Copy, Debug)]
struct Note {
    ordinal: u64,
    cycles: u64,
    kind: Kind,
}

/// Takes notes of one unit's timing packets.
#[derive(Clone, Debug)]
pub struct Clock {
    mtc_shift: u32,
    ctc_ratio: Option<(u64, u64)>,
    max_nonturbo: u8,
    reference: Option<u64>,
    /// Time as far as TSC and MTC packets gave it.
    now: Option<u64>,
    /// The raw value of the last TSC packet: base of the next TMA.
    raw_tsc: u64,
    crystal: Option<Crystal>,
    cycles: u64,
    cycles_pending: bool,
    notes: Vec<Note>,
}

impl Clock {
    /// A clock that knows nothing yet.
    pub fn new(config: &PtConfig) -> Self {
        Self {
            mtc_shift: u32::from(config.mtc_period.min(15)),
            ctc_ratio: config
                .tsc_ctc_ratio
                .filter(|(n, d)| *n != 0 && *d != 0)
                .map(|(n, d)| (u64::from(n), u64::from(d))),
            max_nonturbo: config.max_nonturbo_ratio,
            reference: None,
            now: None,
            raw_tsc: 0,
            crystal: None,
            cycles: 0,
            cycles_pending: false,
            notes: Vec::new(),
        }
    }

    /// A TSC value near the bytes that come now; it completes the 56 bits of the first TSC packet.
    pub fn set_reference(&mut self, reference: Option<Tsc>) {
        self.reference = reference.map(|tsc| tsc.0);
    }

    /// The latest TSC that a packet gave.
    pub fn now(&self) -> Option<Tsc> {
        self.now.map(Tsc)
    }

    fn note(&mut self, ordinal: u64, kind: Kind) {
        self.notes.push(Note { ordinal, cycles: self.cycles, kind });
    }

    fn anchor(&mut self, ordinal: u64, tsc: u64) {
        self.now = Some(tsc);
        let dated = std::mem::take(&mut self.cycles_pending);
        self.note(ordinal, Kind::Anchor { tsc, dated });
    }

    /// A TSC packet with its 56 bits.
    pub fn tsc(&mut self, payload: u64, ordinal: u64) {
        let payload = payload & ((1 << 56) - 1);
        let full = match (self.now, self.reference) {
            (Some(now), _) => nearest(payload, now),
            (None, Some(reference)) => nearest(payload, reference),
            (None, None) => payload,
        };
        self.crystal = None;
        self.raw_tsc = full;
        match self.now {
            // Slipped behind what MTC and CYC said: the later time stands.
            Some(now) if full < now && now - full < TSC_SLIP => self.anchor(ordinal, now),
            // Far in the past: a wrong packet, or another clock. Time must not run backwards.
            Some(now) if full < now => self.cycles_pending = false,
            _ => self.anchor(ordinal, full),
        }
    }

    fn to_tsc(&self, crystal_ticks: u64) -> Option<u64> {
        let (n, d) = self.ctc_ratio?;
        let (q, r) = (crystal_ticks / d, crystal_ticks % d);
        Some(q.wrapping_mul(n).wrapping_add(r * n / d))
    }

    /// A TMA packet: the crystal clock's low 16 bits, and TSC ticks since its last tick.
    pub fn tma(&mut self, ctc: u16, fast: u16) {
        if self.now.is_none() {
            return;
        }
        let rest = u64::from(ctc) & ((1 << self.mtc_shift) - 1);
        let Some(rest_tsc) = self.to_tsc(rest) else { return };
        self.crystal = Some(Crystal {
            base: self.raw_tsc.wrapping_sub(u64::from(fast)).wrapping_sub(rest_tsc),
            ticks: 0,
            last: (u64::from(ctc) >> self.mtc_shift) as u8,
            fix_up: self.mtc_shift > 8,
        });
    }

    /// An MTC packet.
    pub fn mtc(&mut self, ctc: u8, ordinal: u64) {
        let dated_by_cyc = self.cycles_pending;
        self.cycles_pending = false;
        let Some(mut crystal) = self.crystal else { return };
        if std::mem::take(&mut crystal.fix_up) {
            // TMA gave CTC[15:0] only; take the missing top bits from this MTC, and if that is not before it, from
            // the turn before.
            let known = 16 - self.mtc_shift;
            let mut last =
                (u32::from(crystal.last) & ((1 << known) - 1)) | (u32::from(ctc) & !((1 << known) - 1));
            if last >= u32::from(ctc) {
                last = last.wrapping_sub(1 << known);
            }
            crystal.last = last as u8;
        }
        // The same payload again is a whole turn: an MTC is sent on a change only.
        let delta = u64::from(ctc.wrapping_sub(crystal.last));
        let delta = if delta == 0 { 256 } else { delta };
        crystal.ticks = crystal.ticks.wrapping_add(delta << self.mtc_shift);
        crystal.last = ctc;
        self.crystal = Some(crystal);
        let Some(elapsed) = self.to_tsc(crystal.ticks) else { return };
        let tsc = crystal.base.wrapping_add(elapsed);
        let tsc = self.now.map_or(tsc, |now| tsc.max(now));
        self.cycles_pending = dated_by_cyc;
        self.anchor(ordinal, tsc);
    }

    /// A CYC packet; what follows decides what it dates.
    pub fn cyc(&mut self, cycles: u64) {
        self.cycles = self.cycles.wrapping_add(cycles);
        self.cycles_pending = true;
    }

    /// A CBR packet.
    pub fn cbr(&mut self, ratio: u8, ordinal: u64) {
        self.date(ordinal);
        self.note(ordinal, Kind::Ratio { ratio });
    }

    /// True where a CYC waits for the packet that it dates.
    #[inline]
    pub fn dates_next(&self) -> bool {
        self.cycles_pending
    }

    /// The packet behind a CYC was reached, at this ordinal.
    #[inline]
    pub fn date(&mut self, ordinal: u64) {
        if std::mem::take(&mut self.cycles_pending) {
            self.note(ordinal, Kind::Cycles);
        }
    }

    /// Tracing went off.
    pub fn off(&mut self, ordinal: u64) {
        self.note(ordinal, Kind::Off);
    }

    /// Packets were lost inside the CPU: the cycle count and the crystal relation are not to be trusted.
    pub fn overflow(&mut self, ordinal: u64) {
        self.date(ordinal);
        self.crystal = None;
        self.note(ordinal, Kind::Off);
    }

    /// Works out the times.
    pub fn finish(self) -> Timeline {
        Resolver::new(self.max_nonturbo).resolve(&self.notes)
    }
}

/// The 64-bit value with these low 56 bits that lies nearest to `near`.
fn nearest(low56: u64, near: u64) -> u64 {
    const TURN: u64 = 1 << 56;
    let t = low56 | (near & !(TURN - 1));
    if t < near && near - t > TURN / 2 {
        t.wrapping_add(TURN)
    } else if t > near && t - near > TURN / 2 {
        t.checked_sub(TURN).unwrap_or(t)
    } else {
        t
    }
}

/// Scales cycles to TSC ticks between the points where both are known.
struct Resolver {
    max_nonturbo: u8,
    points: Vec<Point>,
    offs: Vec<u64>,
}

impl Resolver {
    fn new(max_nonturbo: u8) -> Self {
        Self { max_nonturbo, points: Vec::new(), offs: Vec::new() }
    }

    fn resolve(mut self, notes: &[Note]) -> Timeline {
        // (cycles, tsc) where both are known, and TSC ticks per cycle by the clock ratio.
        let mut tied: Option<(u64, u64)> = None;
        let mut by_ratio: Option<f64> = None;
        let mut last_factor: Option<f64> = None;
        let mut factor: Option<f64> = None;
        let mut ceiling = u64::MAX;
        for (index, note) in notes.iter().enumerate() {
            match note.kind {
                Kind::Anchor { tsc, dated } => {
                    self.push(note.ordinal, tsc, true);
                    if dated || tied.is_none() {
                        tied = Some((note.cycles, tsc));
                        (factor, ceiling) = Self::ahead(&notes[index + 1..], note.cycles, tsc, by_ratio);
                        last_factor = factor.or(last_factor);
                    }
                }
                Kind::Cycles => {
                    let Some((cycles, tsc)) = tied else { continue };
                    let Some(factor) = factor.or(by_ratio).or(last_factor) else { continue };
                    let elapsed = (note.cycles.wrapping_sub(cycles) as f64 * factor) as u64;
                    self.push(note.ordinal, tsc.saturating_add(elapsed).min(ceiling), true);
                }
                Kind::Ratio { ratio } => {
                    let new = (ratio != 0 && self.max_nonturbo != 0)
                        .then(|| f64::from(self.max_nonturbo) / f64::from(ratio));
                    if new != by_ratio {
                        by_ratio = new;
                        // The rate changes here: what was tied before no longer scales.
                        if let (Some((cycles, tsc)), Some(factor)) = (tied, factor.or(last_factor)) {
                            let elapsed = (note.cycles.wrapping_sub(cycles) as f64 * factor) as u64;
                            tied = Some((note.cycles, tsc.saturating_add(elapsed).min(ceiling)));
                        }
                        factor = None;
                        last_factor = None;
                    }
                }
                Kind::Off => self.offs.push(note.ordinal),
            }
        }
        let (mut ticks, mut instructions) = (0u64, 0u64);
        for pair in self.points.windows(2) {
            if !self.has_off(pair[0].ordinal, pair[1].ordinal) {
                ticks += pair[1].tsc - pair[0].tsc;
                instructions += pair[1].ordinal - pair[0].ordinal;
            }
        }
        let rate = if instructions == 0 { 1.0 } else { ticks as f64 / instructions as f64 };
        Timeline { points: self.points, offs: self.offs, rate }
    }

    /// Ticks per cycle up to the next tied point, and the time there. No factor where the cycle counter may have stood
    /// still on the way, or where the figure is more than a quarter above what the clock ratio says.
    fn ahead(notes: &[Note], cycles: u64, tsc: u64, by_ratio: Option<f64>) -> (Option<f64>, u64) {
        let mut broken = false;
        for note in notes {
            match note.kind {
                Kind::Anchor { tsc: next, dated: true } => {
                    let elapsed = note.cycles.wrapping_sub(cycles);
                    let factor = next.saturating_sub(tsc) as f64 / elapsed as f64;
                    let plausible = by_ratio.is_none_or(|by_ratio| factor <= by_ratio * 1.25);
                    let good = !broken && elapsed > 0 && plausible;
                    return (good.then_some(factor), next.max(tsc));
                }
                Kind::Ratio { .. } | Kind::Off => broken = true,
                Kind::Anchor { .. } | Kind::Cycles => {}
            }
        }
        (None, u64::MAX)
    }

    fn push(&mut self, ordinal: u64, tsc: u64, exact: bool) {
        let (tsc, exact) = match self.points.last() {
            Some(last) if last.tsc > tsc => (last.tsc, false),
            _ => (tsc, exact),
        };
        self.points.push(Point { ordinal, tsc, exact });
    }

    fn has_off(&self, from: u64, to: u64) -> bool {
        let at = self.offs.partition_point(|off| *off < from);
        self.offs.get(at).is_some_and(|off| *off < to)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Point {
    ordinal: u64,
    tsc: u64,
    exact: bool,
}

/// The times of one unit.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// Ordinals and times never fall.
    points: Vec<Point>,
    /// Ordinals at which tracing went off.
    offs: Vec<u64>,
    /// Ticks per instruction, the unit's average while tracing was on.
    rate: f64,
}

/// A moment, and how it is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// When.
    pub tsc: Tsc,
    /// True where a packet says so, false where it was interpolated.
    pub exact: bool,
}

impl Timeline {
    /// Reads times in rising order of ordinals.
    pub fn reader(&self) -> TimeReader<'_> {
        TimeReader { timeline: self, next: 0, offs: 0 }
    }

    /// The first and the last time that a packet gave.
    pub fn span(&self) -> Option<(Tsc, Tsc)> {
        Some((Tsc(self.points.first()?.tsc), Tsc(self.points.last()?.tsc)))
    }
}

/// A forward reader of a [`Timeline`].
#[derive(Clone, Debug)]
pub struct TimeReader<'t> {
    timeline: &'t Timeline,
    /// Index of the first point behind the ordinal last asked for.
    next: usize,
    /// Index of the first off mark at or behind the point before it.
    offs: usize,
}

impl TimeReader<'_> {
    /// The time at an ordinal, which must not be lower than the one asked for before; `None` where no packet of the
    /// unit tells any time.
    pub fn at(&mut self, ordinal: u64) -> Option<Moment> {
        let points = &self.timeline.points;
        while points.get(self.next).is_some_and(|point| point.ordinal <= ordinal) {
            self.next += 1;
        }
        let Some(before) = self.next.checked_sub(1).map(|index| points[index]) else {
            let first = points.first()?;
            let ticks = ((first.ordinal - ordinal) as f64 * self.timeline.rate) as u64;
            return Some(Moment { tsc: Tsc(first.tsc.saturating_sub(ticks)), exact: false });
        };
        if before.ordinal == ordinal {
            return Some(Moment { tsc: Tsc(before.tsc), exact: before.exact });
        }
        let since = ordinal - before.ordinal;
        let by_rate = |count: u64| (count as f64 * self.timeline.rate) as u64;
        let Some(after) = points.get(self.next) else {
            return Some(Moment { tsc: Tsc(before.tsc.saturating_add(by_rate(since))), exact: false });
        };
        let span = after.tsc - before.tsc;
        let offs = &self.timeline.offs;
        while offs.get(self.offs).is_some_and(|off| *off < before.ordinal) {
            self.offs += 1;
        }
        let tsc = match offs.get(self.offs).filter(|off| **off < after.ordinal) {
            None => {
                let share = since as f64 / (after.ordinal - before.ordinal) as f64;
                before.tsc + (span as f64 * share) as u64
            }
            // Before the first off mark: onward at the usual rate. Behind it: back from the next point.
            Some(off) if ordinal <= *off => before.tsc + by_rate(since).min(span),
            Some(off) => {
                let floor = by_rate(*off - before.ordinal).min(span);
                after.tsc - by_rate(after.ordinal - ordinal).min(span - floor)
            }
        };
        Some(Moment { tsc: Tsc(tsc.min(after.tsc)), exact: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> PtConfig {
        PtConfig {
            mtc: true,
            mtc_period: 3,
            cyc: true,
            tsc_ctc_ratio: Some((80, 1)),
            max_nonturbo_ratio: 20,
            ..PtConfig::default()
        }
    }

    #[track_caller]
    fn times(clock: Clock, ordinals: &[u64]) -> Vec<(u64, bool)> {
        let timeline = clock.finish();
        let mut reader = timeline.reader();
        ordinals
            .iter()
            .map(|ordinal| {
                let moment = reader.at(*ordinal).expect("a time");
                (moment.tsc.0, moment.exact)
            })
            .collect()
    }

    /// The manual's arithmetic, worked by hand: FC 17 TSC ticks and 5 crystal ticks since the last MTC edge; the next
    /// edge is 8 crystal ticks of 80 TSC ticks behind that.
    #[test]
    fn mtc_lands_on_the_crystal_edge() {
        let mut clock = Clock::new(&config());
        clock.tsc(4_398_046_511_137, 0);
        clock.tma(0xccc8 + 5, 17);
        clock.mtc(((0xccc8u32 >> 3) + 1) as u8, 100);
        assert_eq!(times(clock, &[100]), [(4_398_046_511_137 - 17 - 5 * 80 + 8 * 80, true)]);
    }

    #[test]
    fn cycles_fit_both_ends() {
        let mut clock = Clock::new(&config());
        clock.cyc(10);
        clock.tsc(1_000_000, 0);
        clock.tma(0, 0);
        clock.cyc(100);
        clock.date(10);
        clock.cyc(300);
        clock.mtc(1, 50);
        // 640 ticks for 400 cycles: 100 cycles are 160 ticks.
        assert_eq!(
            times(clock, &[0, 5, 10, 30, 50]),
            [(1_000_000, true), (1_000_080, false), (1_000_160, true), (1_000_400, false), (1_000_640, true)]
        );
    }

    #[test]
    fn untraced_time_takes_the_slack() {
        let mut clock = Clock::new(&config());
        clock.tsc(1_000, 0);
        clock.tsc(1_100, 100);
        clock.off(120);
        clock.tsc(900_000, 121);
        clock.tsc(900_079, 200);
        assert_eq!(
            times(clock, &[110, 120, 121, 160]),
            [(1_110, false), (1_120, false), (900_000, true), (900_039, false)]
        );
    }

    #[test]
    fn the_upper_byte_comes_from_the_reference() {
        let mut clock = Clock::new(&config());
        clock.set_reference(Some(Tsc(0x0300_0000_0000_0010)));
        clock.tsc(0x00ff_ffff_ffff_fff0, 0);
        assert_eq!(clock.now(), Some(Tsc(0x02ff_ffff_ffff_fff0)));
        clock.tsc(0x20, 1);
        assert_eq!(clock.now(), Some(Tsc(0x0300_0000_0000_0020)));
    }

    #[test]
    fn no_packet_no_time() {
        assert_eq!(Clock::new(&config()).finish().reader().at(5), None);
    }

    #[test]
    fn long_mtc_periods_need_the_missing_bits() {
        let mut clock = Clock::new(&PtConfig { mtc_period: 9, ..config() });
        clock.tsc(10_000_000, 0);
        clock.tma(0xfe00, 0); // slice bits 0x7f of seven known bits
        clock.mtc(0x80, 10);
        assert_eq!(times(clock, &[10]), [(10_000_000 + 512 * 80, true)]);
    }
}
