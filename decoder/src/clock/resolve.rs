//! From a unit's notes to points in time, in hindsight: cycles scaled to TSC ticks between moments where both are known.

use super::timeline::{Timeline, TimelineBuilder};
use super::{Kind, Note, Notes};
use std::ops::Range;

/// A moment at which both the cycle count and the TSC are known.
#[derive(Clone, Copy, Debug)]
struct Tie {
    cycles: u64,
    tsc: u64,
    /// By a CYC; else the count is the last one seen before.
    dated: bool,
    sure: bool,
}

impl Tie {
    /// The TSC at a cycle count behind it.
    #[inline]
    fn at(&self, cycles: u64, factor: f64) -> u64 {
        // Rounded: neither is negative. Signed numbers, as all but senseless counts are, convert in fewer instructions.
        let elapsed = cycles.wrapping_sub(self.cycles) as i64 as f64 * factor + 0.5;
        self.tsc.saturating_add(elapsed as i64 as u64)
    }
}

/// The cycle count at a transfer's own packet.
const OWN: Kind = Kind::Cycles { own: true };

/// Scales cycles to TSC ticks between ties.
#[derive(Clone, Debug)]
pub(super) struct Resolver {
    max_nonturbo: u8,
    tie: Option<Tie>,
    /// TSC ticks per cycle from the tie to the next one.
    factor: Option<f64>,
    /// TSC ticks per cycle as CBR says.
    by_ratio: Option<f64>,
    /// The last factor there was, where CBR says nothing.
    last_factor: Option<f64>,
    /// Times since the last transfer, and the ordinals behind which they are.
    floating: Vec<(u64, u64)>,
    timeline: TimelineBuilder,
}

impl Resolver {
    pub fn new(max_nonturbo: u8) -> Self {
        Self {
            max_nonturbo,
            tie: None,
            factor: None,
            by_ratio: None,
            last_factor: None,
            floating: Vec::new(),
            timeline: TimelineBuilder::default(),
        }
    }

    /// Takes so many notes. What is behind those says what they mean: a tie's cycles scale to the next tie. Where not all
    /// times are wanted, but those at some ordinals, cycles that tell none of them are passed over.
    pub fn take(&mut self, Notes { all: notes, landmarks }: Notes<'_>, count: usize, wanted: Option<&[u64]>) {
        let mut next_wanted = 0;
        let mut anchors = Anchors { notes, landmarks };
        // Landmarks that are passed.
        let mut passed = 0;
        let mut index = 0;
        let count = count.min(notes.len());
        while index < count {
            let note = &notes[index];
            index += 1;
            passed += usize::from(note.kind.is_landmark());
            match note.kind {
                Kind::Anchor { tsc, dated, sure } => {
                    self.floating.push((note.ordinal, tsc));
                    // A tie by CYC is better than a later one without, but that one is better than a former such.
                    if dated || self.tie.is_none_or(|tie| !tie.dated) {
                        let tie = Tie { cycles: note.cycles, tsc, dated, sure };
                        self.tie = Some(tie);
                        self.factor = self.ahead(notes, landmarks.get(passed..).unwrap_or_default(), tie);
                        self.last_factor = self.factor.or(self.last_factor);
                    }
                }
                OWN => {
                    let ceiling = anchors.ceiling(index);
                    let run = notes[index..count].iter().take_while(|note| note.kind == OWN).count();
                    let run = index - 1..index + run;
                    index = run.end;
                    self.transfers(notes, run, ceiling, wanted.map(|wanted| (wanted, &mut next_wanted)));
                }
                Kind::Cycles { .. } => {
                    if let Some(tsc) = self.scale(note.cycles) {
                        self.floating.push((note.ordinal, tsc.min(anchors.ceiling(index))));
                    }
                }
                Kind::Reached { here } => {
                    self.settle(note.ordinal, self.floating.len() as u64 + u64::from(!here));
                }
                Kind::Ratio { ratio } => self.ratio(ratio, note.cycles),
                Kind::Break => {
                    self.tie = None;
                    self.factor = None;
                }
                Kind::Off => {
                    self.settle(0, 1);
                    self.timeline.off(note.ordinal);
                }
            }
        }
    }

    /// Takes a run of transfers with their cycles; the next anchor is at `ceiling`.
    fn transfers(
        &mut self,
        notes: &[Note],
        run: Range<usize>,
        ceiling: u64,
        mut wanted: Option<(&[u64], &mut usize)>,
    ) {
        let scale = self.tie.zip(self.scale_factor());
        for index in run {
            if wanted.as_mut().is_some_and(|(wanted, next)| is_passed_over(notes, index, wanted, next)) {
                continue;
            }
            let Note { ordinal, cycles, .. } = notes[index];
            if !self.floating.is_empty() {
                self.settle(ordinal, self.floating.len() as u64 + 1);
            }
            if let Some((tie, factor)) = scale {
                let tsc = tie.at(cycles, factor);
                // Where another packet says that it was before, the scale is not right.
                let exact = tie.dated & tie.sure & (tsc <= ceiling);
                self.timeline.point(ordinal, tsc.min(ceiling), exact);
            }
        }
    }

    /// The points so far.
    pub fn timeline(&mut self) -> &mut TimelineBuilder {
        &mut self.timeline
    }

    pub fn finish(mut self) -> Timeline {
        self.settle(0, 1);
        self.timeline.finish()
    }

    /// Gives the floating times their places: none is before the transfer that it follows, nor behind `reached`. All that
    /// is known more is their order, so they are spread evenly, as if they were so many `parts`.
    fn settle(&mut self, reached: u64, parts: u64) {
        let Some((first, _)) = self.floating.first().copied() else { return };
        let reach = reached.saturating_sub(first);
        for (part, (ordinal, tsc)) in (1..).zip(self.floating.drain(..)) {
            let place = first + (u128::from(reach) * part / u128::from(parts.max(1))) as u64;
            self.timeline.point(place.max(ordinal), tsc, false);
        }
    }

    /// The TSC at a cycle count.
    fn scale(&self, cycles: u64) -> Option<u64> {
        let tie = self.tie?;
        Some(tie.at(cycles, self.scale_factor()?))
    }

    /// TSC ticks per cycle, as far as anything tells.
    fn scale_factor(&self) -> Option<f64> {
        self.factor.or(self.by_ratio).or(self.last_factor)
    }

    /// CBR. It is repeated in each PSB+: only another one says that the clock rate changed. What was tied before scales
    /// by the former rate up to here.
    fn ratio(&mut self, ratio: u8, cycles: u64) {
        let known = ratio != 0 && self.max_nonturbo != 0;
        let new = known.then(|| f64::from(self.max_nonturbo) / f64::from(ratio));
        if new == self.by_ratio {
            return;
        }
        let first = self.by_ratio.is_none();
        if let (Some(tsc), Some(tie)) = (self.scale(cycles), &mut self.tie) {
            (tie.cycles, tie.tsc) = (cycles, tsc);
        }
        self.by_ratio = new;
        // The first one tells the rate, and changes nothing.
        if !first {
            self.factor = None;
            self.last_factor = None;
        }
    }

    /// Ticks per cycle from a tie to the next one. None where the cycle counter may have stood still on the way, where
    /// the clock rate changed, or where the figure is more than a quarter above what CBR says (as in the kernel's
    /// decoder, `intel_pt_calc_cyc_to_tsc`).
    fn ahead(&self, notes: &[Note], landmarks: &[usize], tie: Tie) -> Option<f64> {
        let mut by_ratio = self.by_ratio;
        for note in landmarks.iter().filter_map(|index| notes.get(*index)) {
            match note.kind {
                Kind::Anchor { tsc: next, dated, .. } if dated || !tie.dated => {
                    let elapsed = note.cycles.wrapping_sub(tie.cycles);
                    let factor = next.saturating_sub(tie.tsc) as f64 / elapsed as f64;
                    let plausible = by_ratio.is_none_or(|by_ratio| factor <= by_ratio * 1.25);
                    return (elapsed > 0 && plausible).then_some(factor);
                }
                Kind::Ratio { ratio } => {
                    let known = ratio != 0 && self.max_nonturbo != 0;
                    let new = known.then(|| f64::from(self.max_nonturbo) / f64::from(ratio));
                    if by_ratio.is_some() && new != by_ratio {
                        return None;
                    }
                    by_ratio = new;
                }
                Kind::Break | Kind::Off => return None,
                Kind::Anchor { .. } | Kind::Cycles { .. } | Kind::Reached { .. } => {}
            }
        }
        None
    }
}

/// Whether nothing would be different without the point in time of a transfer's cycles: it lies between two others of this
/// kind, in the same scale, and no time is wanted between these. (Nor is any sum: what passes from the first to the last is
/// the same with or without it.)
#[inline]
fn is_passed_over(notes: &[Note], index: usize, wanted: &[u64], next: &mut usize) -> bool {
    let (Some(before), Some(behind)) =
        (index.checked_sub(1).and_then(|at| notes.get(at)), notes.get(index + 1))
    else {
        return false;
    };
    let ordinal = notes[index].ordinal;
    if before.kind != OWN || behind.kind != OWN || ordinal <= before.ordinal || behind.ordinal <= ordinal {
        return false;
    }
    while wanted.get(*next).is_some_and(|wanted| *wanted <= before.ordinal) {
        *next += 1;
    }
    wanted.get(*next).is_none_or(|wanted| *wanted >= behind.ordinal)
}

/// The anchors that are not passed.
struct Anchors<'n> {
    notes: &'n [Note],
    landmarks: &'n [usize],
}

impl Anchors<'_> {
    /// The time that the first one gives, from a note on.
    fn ceiling(&mut self, from: usize) -> u64 {
        while let Some((index, behind)) = self.landmarks.split_first() {
            if let Some(Note { kind: Kind::Anchor { tsc, .. }, .. }) = self.notes.get(*index)
                && *index >= from
            {
                return *tsc;
            }
            self.landmarks = behind;
        }
        u64::MAX
    }
}
