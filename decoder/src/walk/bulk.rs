//! The walk of stripped stretches, several side by side, without a branch that depends on the trace.
//!
//! High-entropy code costs a misprediction every few branches, and a miss of the first-level cache too. Here each step
//! is a load, a counter and a selection, so that the lanes' latencies overlap. A batch of steps is walked blindly, then
//! judged: where it went wrong it is taken back, and the other walkers, which know the rules, go on from before it.

use super::strip::Stretch;
use crate::graph::compact::{FREE, LINE, Line, PUSH, RET, TIP};
use std::hint::select_unpredictable;

/// Rounds for one load of outcomes, each of two plain steps (up to two outcomes each) and a special one.
const ROUNDS: usize = 10;
/// Outcomes that a load may use up.
pub(super) const LOAD: u32 = 56;
/// Loads in a batch.
const LOADS: usize = 3;
/// Special steps in a batch: so often may the stack be pushed or popped.
const SPECIAL: usize = ROUNDS * LOADS;

/// Return addresses that a CPU's return stack holds.
const DEPTH: usize = 64;
/// Where the empty stack's top lies; it grows down, and [`SPECIAL`] fit on a full one.
pub(super) const BOTTOM: usize = DEPTH + SPECIAL;
/// With more addresses on it than this there is no room for a load.
pub(super) const ALMOST_FULL: usize = DEPTH - ROUNDS;
/// Steps of a lane in a batch, at most.
pub(super) const MAX_STEPS: usize = 3 * SPECIAL;

/// A lane's registers.
#[derive(Clone, Copy, Debug)]
struct Hot {
    /// The line of the node.
    at: u32,
    /// Outcomes, and a mark behind them that tells how many are gone.
    bits: u64,
    /// What the mark's place must be added to for the number of outcomes used.
    base: u32,
    /// The stack's top.
    top: usize,
    /// Targets used.
    targets: usize,
    /// Transfers logged.
    logged: usize,
}

/// One walk.
pub(super) struct Lane {
    pub stretch: Stretch,
    /// The line of the node.
    pub at: u32,
    /// Outcomes used.
    pub outcomes: u32,
    /// Targets used.
    pub targets: usize,
    /// Return addresses by lines; 0 where there is none, and behind the bottom.
    pub stack: [u32; BOTTOM + SPECIAL],
    pub top: usize,
    pub log: [u64; SPECIAL + 1],
    pub logged: usize,
    /// It cannot go on.
    pub stopped: bool,
}

/// What a batch came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Batch {
    /// It went well.
    Walked,
    /// The lane did not move: its node parks.
    Parked,
    /// The walk and the trace do not fit: the batch was taken back.
    TakenBack,
}

impl Lane {
    pub fn new() -> Self {
        Self {
            stretch: Stretch::default(),
            at: 0,
            outcomes: 0,
            targets: 0,
            stack: [0; BOTTOM + SPECIAL],
            top: BOTTOM,
            log: [0; SPECIAL + 1],
            logged: 0,
            stopped: false,
        }
    }

    /// How many loads a batch may have; 0 where the lane has not enough outcomes left, or the stack is too full.
    pub fn loads(&self, few: bool) -> usize {
        // One outcome stays: then all that was walked without the trace's help is sure to have been executed.
        let load = if few { FEW } else { LOAD };
        let left = self.stretch.outcomes.saturating_sub(self.outcomes + 2) / load;
        let room = self.top - SPECIAL;
        if few { usize::from(left > 0 && room > 0) } else { (left as usize).min(room / ROUNDS).min(LOADS) }
    }

    fn hot(&self) -> Hot {
        let Self { at, outcomes, top, targets, logged, .. } = *self;
        Hot { at, bits: 0, base: outcomes, top, targets, logged }
    }
}

/// Outcomes that the one round of a batch in tests may use up.
const FEW: u32 = 5;

/// Walks a batch in each of the lanes; `loads` is the least of what [`Lane::loads`] allows them.
pub(super) fn batch<const K: usize>(
    lines: &mut [Line],
    lanes: [&mut Lane; K],
    loads: usize,
    few: bool,
) -> [Batch; K] {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("bmi2") {
        // SAFETY: the CPU has what the function needs.
        return unsafe { batch_with_bmi(lines, lanes, loads, few) };
    }
    batch_anywhere(lines, lanes, loads, few)
}

/// Shifts by a register and the search for the mark are one operation each, not three.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "bmi1,bmi2")]
fn batch_with_bmi<const K: usize>(
    lines: &mut [Line],
    lanes: [&mut Lane; K],
    loads: usize,
    few: bool,
) -> [Batch; K] {
    batch_anywhere(lines, lanes, loads, few)
}

#[inline(always)]
fn batch_anywhere<const K: usize>(
    lines: &mut [Line],
    lanes: [&mut Lane; K],
    loads: usize,
    few: bool,
) -> [Batch; K] {
    let rounds = if few { 1 } else { ROUNDS };
    let before: [Hot; K] = std::array::from_fn(|k| lanes[k].hot());
    // What pops may uncover and pushes overwrite.
    let saved: [[u32; SPECIAL]; K] = std::array::from_fn(|k| {
        let mut saved = [0; SPECIAL];
        saved.copy_from_slice(&lanes[k].stack[lanes[k].top..][..SPECIAL]);
        saved
    });
    let mut hot = before;
    for _ in 0..loads {
        for k in 0..K {
            load(&mut hot[k], &lanes[k].stretch);
        }
        for _ in 0..rounds {
            for _ in 0..2 {
                for hot in &mut hot {
                    // SAFETY: `at` names a line: see `step_specially`.
                    unsafe { step::<1>(lines, hot) };
                }
            }
            for k in 0..K {
                // SAFETY: every name of a line, in lines, targets and stacks, was made from a node that has one, and
                // lines never go. Targets end with one that no position equals. The stack has room for all special
                // steps of a batch, and so has the log, which is empty between batches.
                unsafe { step_specially(lines, &mut hot[k], lanes[k]) };
            }
        }
        for hot in &mut hot {
            hot.base = hot.used();
            hot.bits = 1 << MARK;
        }
    }
    let mut results = [Batch::Walked; K];
    for (k, lane) in lanes.into_iter().enumerate() {
        let now = hot[k];
        let target = lane.stretch.targets.get(now.targets).map_or(u32::MAX, |target| *target as u32);
        results[k] = if target < now.base || now.at == 0 {
            take_back(lines, lane, before[k], loads, rounds, &saved[k]);
            Batch::TakenBack
        } else if (now.at, now.base, now.targets) == (before[k].at, before[k].base, before[k].targets) {
            Batch::Parked
        } else {
            lane.at = now.at;
            lane.outcomes = now.base;
            lane.targets = now.targets;
            lane.top = now.top;
            lane.logged = now.logged;
            Batch::Walked
        };
    }
    results
}

/// Walks a batch once more, counting down.
#[cold]
fn take_back(
    lines: &mut [Line],
    lane: &mut Lane,
    before: Hot,
    loads: usize,
    rounds: usize,
    saved: &[u32; SPECIAL],
) {
    let restore = |lane: &mut Lane| {
        lane.stack[before.top..][..SPECIAL].copy_from_slice(saved);
    };
    restore(lane);
    let mut hot = before;
    for _ in 0..loads {
        load(&mut hot, &lane.stretch);
        for _ in 0..rounds {
            // SAFETY: as in `batch`, whose steps these are.
            unsafe {
                step::<{ u32::MAX }>(lines, &mut hot);
                step::<{ u32::MAX }>(lines, &mut hot);
                let free = lines.get_unchecked((hot.at / LINE) as usize).flags & FREE;
                let at = (hot.at / LINE) as usize;
                step_specially(lines, &mut hot, lane);
                if free != 0 {
                    // Once for the step that is taken back, once for this one.
                    lines[at].passed = lines[at].passed.wrapping_sub(2);
                }
            }
        }
        hot.base = hot.used();
    }
    restore(lane);
}

impl Hot {
    /// Outcomes used so far, in all.
    fn used(&self) -> u32 {
        self.base + (self.bits.trailing_zeros() - MARK)
    }
}

/// Place of the mark before anything is used.
const MARK: u32 = 7;

#[inline(always)]
fn load(hot: &mut Hot, stretch: &Stretch) {
    hot.bits = stretch.bits_at(hot.base) & !0xff | 1 << MARK;
}

/// A plain step: up to two outcomes of conditional branches.
#[inline(always)]
unsafe fn step<const ONE: u32>(lines: &mut [Line], hot: &mut Hot) {
    // SAFETY: the caller's.
    let line = unsafe { lines.get_unchecked_mut((hot.at / LINE) as usize) };
    let outcomes = (hot.bits >> 62) as usize;
    let next = line.next[outcomes];
    line.count[outcomes] = line.count[outcomes].wrapping_add(ONE);
    hot.bits <<= next & (LINE - 1);
    hot.at = next & !(LINE - 1);
}

/// A step through anything but a conditional branch, if the trace says so.
#[inline(always)]
unsafe fn step_specially(lines: &mut [Line], hot: &mut Hot, lane: &mut Lane) {
    // SAFETY: the caller's.
    let line = unsafe { lines.get_unchecked_mut((hot.at / LINE) as usize) };
    // SAFETY: the caller's.
    let target = unsafe { *lane.stretch.targets.get_unchecked(hot.targets) };
    // SAFETY: the caller's.
    let top = unsafe { *lane.stack.get_unchecked(hot.top) };
    let flags = line.flags;
    let is_target = u32::from(target as u32 == hot.used());
    let by_target = (flags / TIP) & is_target & 1;
    let is_return = (flags / RET) & 1;
    let compressed = is_return & !by_target & (hot.bits >> 63) as u32;
    let free = (flags / FREE) & 1;
    let next = select_unpredictable(compressed != 0, top, line.target);
    let next = select_unpredictable(by_target != 0, (target >> 32) as u32, next);
    line.passed = line.passed.wrapping_add(free);
    // SAFETY: the caller's.
    unsafe { *lane.stack.get_unchecked_mut(hot.top - 1) = line.push };
    let pushes = (flags / PUSH) & 1 & (free | by_target);
    let pops = is_return & (compressed | by_target);
    // A return that is no compressed one may find the stack empty.
    hot.top = (hot.top - pushes as usize + pops as usize).min(BOTTOM);
    // SAFETY: the caller's.
    unsafe { *lane.log.get_unchecked_mut(hot.logged) = u64::from(hot.at) | u64::from(next) << 32 };
    hot.logged += (compressed | by_target) as usize;
    hot.targets += by_target as usize;
    hot.bits <<= compressed;
    hot.at = next;
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOP: u32 = LINE;
    const RETURN: u32 = 2 * LINE;

    /// Nowhere, a conditional branch that leads to itself whatever it does, and a return.
    fn lines() -> Vec<Line> {
        let mut lines: Vec<Line> = (0..3).map(Line::parked).collect();
        lines[1].next = [LOOP | 2; 4];
        lines[2].flags = RET | TIP;
        lines
    }

    fn lane(at: u32, outcomes: &[bool], targets: &[(u32, u32)]) -> Lane {
        Lane { stretch: Stretch::of(outcomes, targets), at, ..Lane::new() }
    }

    fn run(lane: &mut Lane) -> (Batch, Vec<Line>) {
        let mut lines = lines();
        let loads = lane.loads(false);
        assert!(loads > 0);
        let [result] = batch(&mut lines, [lane], loads, false);
        (result, lines)
    }

    #[test]
    fn what_goes_well_is_counted() {
        let mut lane = lane(LOOP, &[true; 200], &[(190, RETURN)]);
        let (result, lines) = run(&mut lane);
        // Each round has two plain steps, of two outcomes each.
        assert_eq!((result, lane.outcomes, lane.at), (Batch::Walked, 4 * SPECIAL as u32, LOOP));
        assert_eq!(lines[1].count, [0, 0, 0, 2 * SPECIAL as u32]);
    }

    #[test]
    fn a_walk_past_a_target_is_taken_back() {
        for before in [1, 2, 7, 50, 119] {
            let mut lane = lane(LOOP, &[true; 200], &[(before, RETURN)]);
            let (result, lines) = run(&mut lane);
            assert_eq!((result, lane.outcomes, lane.at), (Batch::TakenBack, 0, LOOP), "{before}");
            assert_eq!((lines[1].count, lane.targets, lane.logged), ([0; 4], 0, 0));
        }
    }

    #[test]
    fn returns_take_outcomes_that_say_so_and_addresses_that_are_there() {
        // To itself, twice, then to the loop.
        let mut there = lane(RETURN, &[true; 100], &[]);
        there.top -= 3;
        there.stack[there.top..BOTTOM].copy_from_slice(&[RETURN, RETURN, LOOP]);
        let (result, _) = run(&mut there);
        assert_eq!((result, there.at, there.top, there.logged), (Batch::Walked, LOOP, BOTTOM, 3));
        assert_eq!(there.log[2], u64::from(RETURN) | u64::from(LOOP) << 32);

        let mut missing = lane(RETURN, &[true; 100], &[]);
        missing.top -= 1;
        missing.stack[missing.top] = RETURN;
        let (result, _) = run(&mut missing);
        assert_eq!((result, missing.at, missing.top), (Batch::TakenBack, RETURN, BOTTOM - 1));
        assert_eq!(missing.stack[missing.top], RETURN);

        let mut not_taken = lane(RETURN, &[false; 100], &[]);
        not_taken.top -= 1;
        not_taken.stack[not_taken.top] = LOOP;
        assert_eq!(run(&mut not_taken).0, Batch::Parked);
        assert_eq!((not_taken.at, not_taken.outcomes, not_taken.top), (RETURN, 0, BOTTOM - 1));
    }

    #[test]
    fn a_return_by_target_pops_what_there_is() {
        for depth in [0, 1, 2] {
            let mut lane = lane(RETURN, &[true; 100], &[(0, LOOP)]);
            lane.top -= depth;
            let (result, _) = run(&mut lane);
            assert_eq!((result, lane.at, lane.targets), (Batch::Walked, LOOP, 1));
            assert_eq!(lane.top, BOTTOM - depth.saturating_sub(1));
        }
    }
}
