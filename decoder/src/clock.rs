//! Timing packets to time: when each instruction of a work unit ran.
//!
//! A timing packet dates what stands behind it (SDM vol. 3C, "Intel PT and Time"); a CYC directly before a branch packet
//! gives that branch's own time, one directly before an MTC or TSC ties the cycle count to the TSC. So [`Clock`] only
//! notes what each packet said and how many instructions the walk had behind it, and works out times in hindsight
//! (`resolve.rs`): between two tied points the cycles are scaled to fit both ends, so that CYC times never pass the next
//! known one. That is done a few hundred notes at a time ([`Clock::settle`]), and of the points that come out only those are
//! kept that are next to something the job tells.
//!
//! ```text
//! ordinal   0 ......... 412 ........ 980 ....... 1500 ......... 2210
//! packets   TSC         CYC          CYC,MTC     CYC            CYC,MTC
//!           anchor      cycles 800   anchor      cycles 2100    anchor
//! time      given       scaled       given       scaled         given
//! ```
//!
//! Between points, time is spread over instructions, and stretches without flow take up the slack (`timeline.rs`). The
//! rules in full, and what they are worth: docs/TIME.md.

mod cycles;
mod resolve;
mod timeline;

pub use cycles::Cycles;
pub use timeline::{Moment, TimeReader, Timeline};

use crate::config::PtConfig;
use crate::units::Tsc;
use resolve::Resolver;

/// A TSC packet may lag behind the time that MTC and CYC gave; up to this many ticks back it is no wrap
/// (as in the kernel's decoder).
const TSC_SLIP: u64 = 0x1_0000;

/// Notes that are resolved at once: few enough for the first-level cache.
const BATCH: usize = 512;

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
    /// The TSC is known here.
    Anchor {
        tsc: u64,
        /// The cycle count is known here too: a CYC stood directly before, or the counter starts here.
        dated: bool,
        /// False where packets were lost on the way from the last TSC packet.
        sure: bool,
    },
    /// The cycle count is known here; `own` = a CYC stood directly before the packet of the transfer at this ordinal.
    Cycles { own: bool },
    /// A transfer was reached, or with `here` the place that the timing packets before tell of.
    Reached { here: bool },
    /// The core's clock rate changed.
    Ratio { ratio: u8 },
    /// The cycle counter stood still, or lost what it had: counts before and behind are not related.
    Break,
    /// Flow ends at this ordinal, and goes on at the next: tracing was off, or the flow was lost.
    Off,
}

impl Kind {
    /// All but counts of cycles and transfers: few, and what is behind them scales what is before.
    fn is_landmark(self) -> bool {
        !matches!(self, Self::Cycles { .. } | Self::Reached { .. })
    }
}

#[derive(Clone, Copy, Debug)]
struct Note {
    ordinal: u64,
    cycles: u64,
    kind: Kind,
}

/// Notes in order.
#[derive(Clone, Copy)]
struct Notes<'n> {
    all: &'n [Note],
    /// As [`Clock::landmarks`].
    landmarks: &'n [usize],
}

/// Takes notes of one unit's timing packets.
#[derive(Clone, Debug)]
pub struct Clock {
    mtc_shift: u32,
    ctc_ratio: Option<(u64, u64)>,
    reference: Option<u64>,
    /// Time as far as TSC and MTC packets gave it.
    now: Option<u64>,
    /// The raw value of the last TSC packet: base of the next TMA.
    raw_tsc: u64,
    crystal: Option<Crystal>,
    cycles: u64,
    cycles_pending: bool,
    /// The last tie's cycle count is known: only another such comes next.
    tie_is_dated: bool,
    /// Packets told times behind the last transfer: the next one says how far behind at most.
    floating: bool,
    /// Tracing went off and not on again.
    off: bool,
    /// No packets were lost since the last TSC packet.
    sure: bool,
    notes: Vec<Note>,
    /// Which of them are [landmarks](Kind::is_landmark).
    landmarks: Vec<usize>,
    /// Notes up to here can be resolved: this one is a tie of cycles and time.
    tie: usize,
    /// So many notes are worth being resolved at once.
    batch: usize,
    resolver: Resolver,
    /// For [`Self::settle`].
    wanted: Vec<u64>,
    traced: Cycles,
    /// The core:bus ratios, each with the ordinal behind which it was told; no two equal ones in a row.
    ratios: Vec<(u64, u8)>,
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
            reference: None,
            now: None,
            raw_tsc: 0,
            crystal: None,
            cycles: 0,
            cycles_pending: false,
            tie_is_dated: false,
            floating: false,
            off: false,
            sure: true,
            notes: Vec::new(),
            landmarks: Vec::new(),
            tie: 0,
            batch: BATCH,
            resolver: Resolver::new(config.max_nonturbo_ratio),
            wanted: Vec::new(),
            traced: Cycles::default(),
            ratios: Vec::new(),
        }
    }

    /// Uses the memory of other times, which are forgotten.
    pub(crate) fn take_memory(&mut self, times: Timeline) {
        let (points, cycles) = times.into_memory();
        self.resolver.timeline().take_memory(points);
        self.traced.take_memory(cycles);
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
        if kind.is_landmark() {
            self.landmarks.push(self.notes.len());
            self.tie_is_dated &= kind != Kind::Break;
        }
        self.notes.push(Note { ordinal, cycles: self.cycles, kind });
    }

    fn anchor(&mut self, ordinal: u64, tsc: u64, dated: bool) {
        self.now = Some(tsc);
        self.floating = true;
        if dated || !self.tie_is_dated {
            self.tie_is_dated = dated;
            self.tie = self.notes.len();
        }
        self.note(ordinal, Kind::Anchor { tsc, dated, sure: self.sure });
    }

    /// Notes are resolved a few at a time, for tests.
    pub(crate) fn set_batch(&mut self, notes: usize) {
        self.batch = notes.max(1);
    }

    /// Enough is noted to be resolved.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.tie >= self.batch
    }

    /// Resolves notes. `marks` adds the ordinals of which times are wanted, from one on, in order; false where they are
    /// wanted of all.
    #[cold]
    pub(crate) fn settle(&mut self, marks: impl FnOnce(u64, &mut Vec<u64>) -> bool) {
        let from = self.resolver.timeline().thinned_to().min(self.traced.thinned_to());
        let mut wanted = std::mem::take(&mut self.wanted);
        wanted.clear();
        let not_all = marks(from, &mut wanted);
        let own = wanted.len();
        // Clock rates are told with their times; holes begin where flow was interrupted.
        let ratios = self.ratios.iter().rev().map(|ratio| ratio.0);
        wanted.extend(ratios.take_while(|ordinal| *ordinal >= from));
        if wanted.len() > own {
            wanted.sort_unstable();
        }
        // Where as much is told as there are points, hardly a point could go.
        let few = not_all && 2 * wanted.len() < self.tie;
        let notes = Notes { all: &self.notes, landmarks: &self.landmarks };
        self.resolver.take(notes, self.tie, few.then_some(&wanted));
        self.notes.drain(..self.tie);
        self.landmarks.retain_mut(|index| {
            let stays = *index >= self.tie;
            *index = index.saturating_sub(self.tie);
            stays
        });
        self.tie = 0;
        if not_all && !few {
            self.resolver.timeline().keep();
            self.traced.keep();
        } else if few {
            let timeline = self.resolver.timeline();
            let own = wanted.len();
            wanted.extend(timeline.offs_from(from));
            if wanted.len() > own {
                wanted.sort_unstable();
            }
            timeline.thin(&wanted);
            self.traced.thin(&wanted);
        }
        self.wanted = wanted;
    }

    /// Nobody wants to know any time but [`Self::now`].
    pub(crate) fn forget(&mut self) {
        self.notes.clear();
        self.landmarks.clear();
        self.tie = 0;
        self.traced = Cycles::default();
        self.ratios.clear();
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
        let mut dated = std::mem::take(&mut self.cycles_pending);
        if self.off && !dated {
            // Tracing is being switched on again: the counter was reset when it was switched off (SDM, "Cycle Count
            // Packet": it counts while TriggerEn is set) and starts as this packet is made.
            self.note(ordinal, Kind::Break);
            dated = true;
        }
        self.sure = true;
        match self.now {
            // Slipped behind what MTC and CYC said: the later time stands.
            Some(now) if full < now && now - full < TSC_SLIP => self.anchor(ordinal, now, dated),
            // Far in the past: a wrong packet, or another clock. Time must not run backwards.
            Some(now) if full < now => {}
            _ => self.anchor(ordinal, full, dated),
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
        let dated = std::mem::take(&mut self.cycles_pending);
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
        self.anchor(ordinal, tsc, dated);
    }

    /// The time that a TSC packet will tell, if it comes next.
    pub(crate) fn tsc_ahead(&self, payload: u64) -> Option<Tsc> {
        Some(Tsc(nearest(payload & ((1 << 56) - 1), self.now?)))
    }

    /// The time that an MTC packet will tell, if it comes next.
    pub(crate) fn mtc_ahead(&self, ctc: u8) -> Option<Tsc> {
        let crystal = self.crystal.filter(|crystal| !crystal.fix_up)?;
        let delta = u64::from(ctc.wrapping_sub(crystal.last));
        let delta = if delta == 0 { 256 } else { delta };
        let elapsed = self.to_tsc(crystal.ticks.wrapping_add(delta << self.mtc_shift))?;
        Some(Tsc(crystal.base.wrapping_add(elapsed)))
    }

    /// A CYC packet; what follows decides what it dates.
    pub fn cyc(&mut self, cycles: u64) {
        // No CPU counts so far; counts never fall.
        self.cycles = self.cycles.saturating_add(cycles);
        self.cycles_pending = true;
        self.traced.pass(cycles);
    }

    /// A CBR packet.
    pub fn cbr(&mut self, ratio: u8, ordinal: u64) {
        self.pass(ordinal);
        self.note(ordinal, Kind::Ratio { ratio });
        if self.ratios.last().is_none_or(|last| last.1 != ratio) {
            self.ratios.push((ordinal, ratio));
        }
    }

    /// The next transfer is to be noted.
    #[inline]
    pub(crate) fn waits(&self) -> bool {
        self.cycles_pending | self.floating
    }

    /// A transfer was reached, at this ordinal; a CYC directly before its packet dates it.
    #[inline]
    pub fn date(&mut self, ordinal: u64) {
        if self.waits() {
            self.note_transfer(ordinal);
        }
    }

    #[inline(never)]
    fn note_transfer(&mut self, ordinal: u64) {
        let dated = std::mem::take(&mut self.cycles_pending);
        self.floating = false;
        if dated {
            self.traced.point(ordinal);
        }
        self.note(ordinal, if dated { Kind::Cycles { own: true } } else { Kind::Reached { here: false } });
    }

    /// PSB+ gave an address, which is at this ordinal: there its times are of.
    pub fn here(&mut self, ordinal: u64) {
        self.pass(ordinal);
        self.floating = false;
        self.traced.here();
        self.note(ordinal, Kind::Reached { here: true });
    }

    /// A packet that is no transfer's took the place behind a CYC.
    #[inline]
    pub fn pass(&mut self, ordinal: u64) {
        if std::mem::take(&mut self.cycles_pending) {
            self.floating = true;
            self.note(ordinal, Kind::Cycles { own: false });
        }
    }

    /// Tracing went off.
    pub fn off(&mut self, ordinal: u64) {
        self.off = true;
        self.traced.off(ordinal);
        self.note(ordinal, Kind::Off);
    }

    /// Tracing went on, with the transfer at this ordinal.
    pub fn on(&mut self, ordinal: u64) {
        self.off = false;
        self.traced.on();
        self.date(ordinal);
    }

    /// Flow was lost behind this ordinal.
    pub fn gap(&mut self, ordinal: u64) {
        self.pass(ordinal);
        self.floating = false;
        self.traced.lost();
        self.note(ordinal, Kind::Off);
    }

    /// Flow is known again: what CYC packets count from here on is that of instructions that are known.
    pub fn found(&mut self) {
        self.traced.found();
    }

    /// What comes now is the next unit's, which counts its cycles itself.
    pub fn seam(&mut self, ordinal: u64) {
        self.traced.end(ordinal);
    }

    /// Packets were lost inside the CPU: cycles among them, and MTCs. MTCs tell the crystal clock's low bits, so they go
    /// on telling the time, but for whole turns, until the next TSC.
    pub fn overflow(&mut self, ordinal: u64) {
        self.cycles_pending = false;
        self.sure = false;
        self.traced.lost();
        self.note(ordinal, Kind::Break);
    }

    /// Works out the times.
    pub fn finish(mut self) -> Timeline {
        let notes = Notes { all: &self.notes, landmarks: &self.landmarks };
        self.resolver.take(notes, self.notes.len(), None);
        let timeline = self.resolver.finish().until(self.reference);
        timeline.with_rates(self.traced, self.ratios)
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

#[cfg(test)]
mod tests;
