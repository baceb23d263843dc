//! The walk of stripped stretches, several side by side, without a branch that depends on the trace.
//!
//! High-entropy code costs a misprediction every few branches, and a miss of the first-level cache too. Here each step
//! is a load, a counter and a selection, so that the lanes' latencies overlap. A batch of steps is walked blindly, then
//! judged: where it went wrong it is taken back, and the other walkers, which know the rules, go on from before it.

use super::strip::Stretch;
use crate::graph::compact::{DEAD, LINE, Line, PUSH, RET, TIP};
use std::hint::select_unpredictable;

/// Steps between two looks at the targets. One of 50 transfers needs a target, and waits for the look.
const STEPS: usize = 5;
/// Rounds of so many steps, and a look, for one load of outcomes.
const ROUNDS: usize = 5;
/// Outcomes that a load may use up: two a step, one a look.
pub(super) const LOAD: u32 = 56;
const _: () = assert!(ROUNDS * (2 * STEPS + 1) <= LOAD as usize);
/// Loads in a batch.
const LOADS: usize = 2;
/// Steps and looks of a lane in a batch, at most: so often may its stack be pushed or popped.
pub(super) const MAX_STEPS: usize = LOADS * ROUNDS * (STEPS + 1);
/// Outcomes that the one round of a batch in tests may use up.
const FEW: u32 = 2 * STEPS as u32 + 1;

/// Return addresses that a CPU's return stack holds.
const DEPTH: usize = 64;
// An address that is dropped at the full stack's bottom cannot be popped in the same batch.
const _: () = assert!(MAX_STEPS < DEPTH);
/// Where the empty stack's top lies; it grows down, and a batch fits on a full one.
pub(super) const BOTTOM: usize = MAX_STEPS + 1 + DEPTH;
/// Behind the bottom lie [`DEAD`] ones.
const STACK: usize = BOTTOM + MAX_STEPS;
/// So many places, the first, are [`UNTOUCHED`] between batches: each step writes above its top, and so only one that
/// begins with more addresses than a return stack holds writes there. That tells how high the stack was without a look
/// at it in each step.
const ABOVE: usize = BOTTOM - DEPTH - 1;
/// No name.
const UNTOUCHED: u32 = u32::MAX;

/// A lane's registers.
#[derive(Clone, Copy)]
struct Hot {
    /// The name of the node.
    at: u32,
    /// Outcomes, and a mark behind them that tells how many are gone.
    bits: u64,
    /// What the mark's place must be added to for the number of outcomes used.
    base: u32,
    /// The stack's top.
    top: *mut u32,
    bottom: *mut u32,
    /// Targets used.
    targets: usize,
}

/// One walk.
pub(super) struct Lane {
    pub stretch: Stretch,
    /// The name of the node.
    pub at: u32,
    /// Outcomes used.
    pub outcomes: u32,
    /// Targets used.
    targets: usize,
    /// Return addresses by names; [`DEAD`] where there is none, and behind the bottom. The first [`ABOVE`] are untouched.
    stack: [u32; STACK],
    top: usize,
    /// What lay on the stack before the batch.
    saved: [u32; MAX_STEPS],
    /// It cannot go on.
    pub stopped: bool,
}

/// Transfers whose target is not the node's own, `from | to << 32` by names: of all lanes in a batch.
pub(super) struct Log {
    transfers: [u64; MAX_STEPS * super::lanes::LANES + 1],
    len: usize,
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

impl Log {
    pub fn new() -> Self {
        Self { transfers: [0; _], len: 0 }
    }

    /// The transfers since the last call.
    pub fn take(&mut self) -> &[u64] {
        &self.transfers[..std::mem::take(&mut self.len)]
    }

    /// Forgets one that was logged, of any lane: only how many there are counts.
    fn forget(&mut self, transfer: u64) {
        if let Some(index) = self.transfers[..self.len].iter().rposition(|logged| *logged == transfer) {
            self.len -= 1;
            self.transfers[index] = self.transfers[self.len];
        }
    }
}

impl Lane {
    pub fn new() -> Self {
        Self {
            stretch: Stretch::default(),
            at: DEAD,
            outcomes: 0,
            targets: 0,
            stack: std::array::from_fn(|index| if index < ABOVE { UNTOUCHED } else { DEAD }),
            top: BOTTOM,
            saved: [DEAD; MAX_STEPS],
            stopped: false,
        }
    }

    /// Begins with the stretch, at a node, with return addresses, the oldest first.
    pub fn begin(&mut self, at: u32, stack: impl Iterator<Item = u32>) {
        (self.at, self.outcomes, self.targets, self.stopped) = (at, 0, 0, false);
        self.stack[BOTTOM..].fill(DEAD);
        self.top = BOTTOM;
        for address in stack.take(DEPTH) {
            self.top -= 1;
            self.stack[self.top] = address;
        }
    }

    /// The return addresses, the oldest first.
    pub fn stack(&self) -> impl Iterator<Item = u32> {
        self.stack[self.top..BOTTOM].iter().rev().copied()
    }

    /// How many loads a batch may have; 0 where the lane has not enough outcomes left.
    pub fn loads(&self, few: bool) -> usize {
        // One outcome stays: then all that was walked without the trace's help is sure to have been executed.
        let left = self.stretch.outcomes.saturating_sub(self.outcomes + 2);
        if few { usize::from(left >= FEW) } else { ((left / LOAD) as usize).min(LOADS) }
    }

    /// To walk a batch.
    #[inline(always)]
    fn hot(&mut self) -> Hot {
        self.saved.copy_from_slice(&self.stack[self.top..][..MAX_STEPS]);
        let Self { at, outcomes, targets, .. } = *self;
        let stack = self.stack.as_mut_ptr();
        let (top, bottom) = (stack.wrapping_add(self.top), stack.wrapping_add(BOTTOM));
        Hot { at, bits: 0, base: outcomes, top, bottom, targets }
    }

    /// An index of the stack.
    fn index(&self, top: *const u32) -> usize {
        (top as usize - self.stack.as_ptr() as usize) / size_of::<u32>()
    }

    /// After a batch: goes on behind it, or stays where it was. By value: of registers that something refers to, each
    /// step would write all to memory (5 % of the profile of high-entropy code).
    #[inline]
    fn judge(&mut self, hot: Hot) -> Batch {
        let target = self.stretch.targets.get(hot.targets).map_or(u32::MAX, |target| *target as u32);
        if target < hot.base || hot.at == DEAD {
            return Batch::TakenBack;
        }
        if (hot.at, hot.base, hot.targets) == (self.at, self.outcomes, self.targets) {
            return Batch::Parked;
        }
        (self.at, self.outcomes, self.targets) = (hot.at, hot.base, hot.targets);
        self.top = self.index(hot.top);
        if self.stack[ABOVE - 1] != UNTOUCHED || self.top < BOTTOM - DEPTH {
            self.drop_oldest();
        }
        Batch::Walked
    }

    /// The stack was more than full.
    fn drop_oldest(&mut self) {
        let touched = self.stack[..ABOVE].iter().rev().take_while(|slot| **slot != UNTOUCHED).count();
        let highest = self.top.min(BOTTOM - DEPTH - touched);
        let end = highest + DEPTH;
        let down = BOTTOM - end;
        self.stack.copy_within(self.top..end, self.top + down);
        self.top += down;
        self.stack[..ABOVE].fill(UNTOUCHED);
    }

    /// Puts back what pops uncovered and pushes overwrote.
    fn restore(&mut self) {
        self.stack[self.top..][..MAX_STEPS].copy_from_slice(&self.saved);
        self.stack[..ABOVE].fill(UNTOUCHED);
    }
}

/// The steps of a batch, in lanes side by side.
macro_rules! walk {
    ($lines:ident, $log:ident, $logged:ident, $loads:ident, $rounds:ident, $(($hot:ident, $lane:ident)),+) => {
        for _ in 0..$loads.min(LOADS) {
            $(load(&mut $hot, &$lane.stretch);)+
            for _ in 0..$rounds {
                // SAFETY: every name of a line, in lines, targets and stacks, was made from a node that has one, and
                // lines never go. Targets end with one that no position equals. Each stack has room for all steps of a
                // batch on both sides of where its top may be, and the log, which is empty between batches, for all
                // steps of all lanes.
                unsafe {
                    for _ in 0..STEPS {
                        $(step::<1>($lines, &mut $hot, $log, &mut $logged);)+
                    }
                    $(step_by_target($lines, &mut $hot, &$lane.stretch, $log, &mut $logged);)+
                }
            }
            $($hot.base = $hot.used();)+
            $($hot.bits = 1 << MARK;)+
        }
    };
}

/// Walks a batch in the lane; `loads` is at most what [`Lane::loads`] allows it.
pub(super) fn batch_of_one(
    lines: &mut [Line],
    lane: &mut Lane,
    log: &mut Log,
    loads: usize,
    few: bool,
) -> Batch {
    let rounds = if few { 1 } else { ROUNDS };
    let lines = lines.as_mut_ptr();
    let mut hot = lane.hot();
    let (transfers, mut logged) = (log.transfers.as_mut_ptr(), 0);
    walk!(lines, transfers, logged, loads, rounds, (hot, lane));
    log.len = logged;
    let result = lane.judge(hot);
    if result == Batch::TakenBack {
        take_back(lines, lane, log, loads, rounds);
    }
    result
}

/// Walks a batch in each of the lanes; `loads` is at most what [`Lane::loads`] allows each of them.
pub(super) fn batch_of_three(
    lines: &mut [Line],
    lanes: [&mut Lane; 3],
    log: &mut Log,
    loads: usize,
    few: bool,
) -> [Batch; 3] {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("bmi2") && is_x86_feature_detected!("avx")
    {
        // SAFETY: the CPU has what the function needs.
        return unsafe { batch_of_three_here(lines, lanes, log, loads, few) };
    }
    batch_of_three_anywhere(lines, lanes, log, loads, few)
}

/// Shifts by a register and the search for the mark are one operation each, not three; stacks are copied in a few.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx,bmi1,bmi2")]
fn batch_of_three_here(
    lines: &mut [Line],
    lanes: [&mut Lane; 3],
    log: &mut Log,
    loads: usize,
    few: bool,
) -> [Batch; 3] {
    batch_of_three_anywhere(lines, lanes, log, loads, few)
}

#[inline(always)]
fn batch_of_three_anywhere(
    lines: &mut [Line],
    [a, b, c]: [&mut Lane; 3],
    log: &mut Log,
    loads: usize,
    few: bool,
) -> [Batch; 3] {
    let rounds = if few { 1 } else { ROUNDS };
    let lines = lines.as_mut_ptr();
    // By names, not in an array: so they stay in registers.
    let (mut hot_a, mut hot_b, mut hot_c) = (a.hot(), b.hot(), c.hot());
    let (transfers, mut logged) = (log.transfers.as_mut_ptr(), 0);
    walk!(lines, transfers, logged, loads, rounds, (hot_a, a), (hot_b, b), (hot_c, c));
    log.len = logged;
    let mut judge = |lane: &mut Lane, hot: Hot| {
        let result = lane.judge(hot);
        if result == Batch::TakenBack {
            take_back(lines, lane, log, loads, rounds);
        }
        result
    };
    [judge(a, hot_a), judge(b, hot_b), judge(c, hot_c)]
}

/// Walks a batch once more, counting down.
#[cold]
fn take_back(lines: *mut Line, lane: &mut Lane, log: &mut Log, loads: usize, rounds: usize) {
    lane.restore();
    let mut again = Log::new();
    let (transfers, mut logged) = (again.transfers.as_mut_ptr(), 0);
    let mut hot = lane.hot();
    for _ in 0..loads {
        load(&mut hot, &lane.stretch);
        for _ in 0..rounds {
            // SAFETY: as in `batch_anywhere`, whose steps these are.
            unsafe {
                for _ in 0..STEPS {
                    step::<{ u32::MAX }>(lines, &mut hot, transfers, &mut logged);
                }
                step_by_target(lines, &mut hot, &lane.stretch, transfers, &mut logged);
            }
        }
        hot.base = hot.used();
    }
    again.len = logged;
    again.take().iter().for_each(|transfer| log.forget(*transfer));
    lane.restore();
}

impl Hot {
    /// Outcomes used so far, in all.
    #[inline(always)]
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

#[inline(always)]
fn transfer(from: u32, to: u32) -> u64 {
    u64::from(from) | u64::from(to) << 32
}

/// A step: up to two outcomes, a call and a return.
#[inline(always)]
unsafe fn step<const ONE: u32>(lines: *mut Line, hot: &mut Hot, log: *mut u64, logged: &mut usize) {
    // SAFETY: the caller's.
    unsafe {
        let line = &mut *lines.byte_add(hot.at as usize);
        let outcomes = (hot.bits >> 62) as usize;
        let (way, push) = (line.next[outcomes], line.push[outcomes]);
        line.count[outcomes] = line.count[outcomes].wrapping_add(ONE);
        let returns = way < LINE;
        let next = select_unpredictable(returns, *hot.top, way & !(LINE - 1));
        // Where nothing is pushed, that place is free.
        *hot.top.sub(1) = push;
        hot.top = hot.top.byte_offset(isize::from(line.moves[outcomes]));
        hot.bits <<= way & (LINE - 1);
        // In one store, not two.
        *log.add(*logged) = transfer(push, next);
        *logged += usize::from(returns);
        hot.at = next;
    }
}

/// A step to a target, if one is due and the node waits for it.
#[inline(always)]
unsafe fn step_by_target(
    lines: *mut Line,
    hot: &mut Hot,
    stretch: &Stretch,
    log: *mut u64,
    logged: &mut usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let line = &*lines.byte_add(hot.at as usize);
        let target = *stretch.targets.get_unchecked(hot.targets);
        let is_due = u32::from(target as u32 == hot.used());
        let taken = (line.ret / TIP) & is_due & 1;
        let next = select_unpredictable(taken != 0, (target >> 32) as u32, hot.at);
        *hot.top.sub(1) = line.ret & !(LINE - 1);
        let pushes = (line.ret / PUSH) & taken;
        let pops = (line.ret / RET) & taken;
        // A return that is no compressed one may find the stack empty.
        hot.top = hot.top.sub(pushes as usize).add(pops as usize).min(hot.bottom);
        *log.add(*logged) = transfer(hot.at, next);
        *logged += taken as usize;
        hot.targets += taken as usize;
        hot.bits <<= taken;
        hot.at = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::NodeId;

    const LOOP: u32 = 2 * LINE;
    const RETURN: u32 = 3 * LINE;
    const CALLS: u32 = 4 * LINE;
    const EITHER: u32 = 5 * LINE;

    /// Nothing, nowhere, a conditional branch that leads to itself whatever it does, a return, and a branch behind which
    /// a call leads to itself. One that calls itself or returns.
    fn lines() -> Vec<Line> {
        let mut lines: Vec<Line> = [0, 0, 1, 2, 3, 4].map(|id| Line::parked(NodeId(id))).to_vec();
        lines[2].next = [LOOP | 2; 4];
        lines[3].ret = RET | TIP;
        (lines[3].next[2..]).fill(1);
        (lines[3].push[2..]).fill(RETURN);
        (lines[3].moves[2..]).fill(4);
        lines[4].next = [CALLS | 1; 4];
        lines[4].push = [LOOP; 4];
        lines[4].moves = [-4; 4];
        lines[5].next = [EITHER | 1, EITHER | 1, 1, 1];
        lines[5].push = [EITHER; 4];
        lines[5].moves = [-4, -4, 4, 4];
        lines
    }

    fn lane(at: u32, outcomes: &[bool], targets: &[(u32, u32)], stack: &[u32]) -> Lane {
        let mut lane = Lane { stretch: Stretch::of(outcomes, targets), ..Lane::new() };
        lane.begin(at, stack.iter().copied());
        lane
    }

    fn run(lane: &mut Lane) -> (Batch, Vec<Line>, Vec<[u32; 2]>) {
        let (mut lines, mut log) = (lines(), Log::new());
        let loads = lane.loads(false);
        assert!(loads > 0);
        let result = batch_of_one(&mut lines, lane, &mut log, loads, false);
        (result, lines, logged(&mut log))
    }

    fn logged(log: &mut Log) -> Vec<[u32; 2]> {
        log.take().iter().map(|transfer| [*transfer as u32, (transfer >> 32) as u32]).collect()
    }

    fn stack(lane: &Lane) -> Vec<u32> {
        lane.stack().collect()
    }

    #[test]
    fn what_goes_well_is_counted() {
        let mut lane = lane(LOOP, &[true; 200], &[(190, RETURN)], &[]);
        let (result, lines, log) = run(&mut lane);
        let steps = (LOADS * ROUNDS * STEPS) as u32;
        assert_eq!((result, lane.outcomes, lane.at), (Batch::Walked, 2 * steps, LOOP));
        assert_eq!((lines[2].count, log), ([0, 0, 0, steps], vec![]));
    }

    #[test]
    fn a_walk_past_a_target_is_taken_back() {
        for at in [1, 2, 7, 50, 99] {
            let mut lane = lane(LOOP, &[true; 200], &[(at, RETURN)], &[RETURN]);
            let (result, lines, log) = run(&mut lane);
            assert_eq!((result, lane.outcomes, lane.at), (Batch::TakenBack, 0, LOOP), "{at}");
            assert_eq!((lines[2].count, lane.targets, log), ([0; 4], 0, vec![]));
            assert_eq!(stack(&lane), [RETURN]);
        }
    }

    #[test]
    fn returns_take_outcomes_that_say_so_and_addresses_that_are_there() {
        // To itself, twice, then to the loop.
        let mut there = lane(RETURN, &[true; 120], &[], &[LOOP, RETURN, RETURN]);
        let (result, _, log) = run(&mut there);
        assert_eq!((result, there.at, stack(&there)), (Batch::Walked, LOOP, vec![]));
        assert_eq!(log, [[RETURN, RETURN], [RETURN, RETURN], [RETURN, LOOP]]);

        let mut missing = lane(RETURN, &[true; 120], &[], &[RETURN]);
        let (result, _, log) = run(&mut missing);
        assert_eq!((result, missing.at, stack(&missing)), (Batch::TakenBack, RETURN, vec![RETURN]));
        assert_eq!(log, [[0; 2]; 0]);

        let mut not_taken = lane(RETURN, &[false; 120], &[], &[LOOP]);
        assert_eq!(run(&mut not_taken).0, Batch::Parked);
        assert_eq!((not_taken.at, not_taken.outcomes, stack(&not_taken)), (RETURN, 0, vec![LOOP]));
    }

    #[test]
    fn a_return_by_target_pops_what_there_is() {
        for depth in [0, 1, 2] {
            let mut lane = lane(RETURN, &[true; 120], &[(0, LOOP)], &[CALLS, RETURN][..depth]);
            let (result, _, log) = run(&mut lane);
            assert_eq!((result, lane.at, lane.targets), (Batch::Walked, LOOP, 1));
            assert_eq!(stack(&lane), [CALLS, RETURN][..depth.saturating_sub(1)]);
            assert_eq!(log, [[RETURN, LOOP]]);
        }
    }

    /// The walk fails in one of three lanes only: the others' transfers stay.
    #[test]
    fn what_is_taken_back_is_not_logged() {
        let well = || lane(RETURN, &[true; 120], &[], &[LOOP, RETURN]);
        let (mut a, mut c) = (well(), well());
        let mut b = lane(RETURN, &[true; 120], &[], &[RETURN, RETURN]);
        let (mut lines, mut log) = (lines(), Log::new());
        let results = batch_of_three(&mut lines, [&mut a, &mut b, &mut c], &mut log, 2, false);
        assert_eq!(results, [Batch::Walked, Batch::TakenBack, Batch::Walked]);
        let mut left = logged(&mut log);
        left.sort_unstable();
        assert_eq!(left, [[RETURN, LOOP], [RETURN, LOOP], [RETURN, RETURN], [RETURN, RETURN]]);
        assert_eq!((b.at, stack(&b)), (RETURN, vec![RETURN, RETURN]));
    }

    #[test]
    fn a_full_stack_drops_the_oldest() {
        let steps = LOADS * ROUNDS * STEPS;
        for before in [0, 1, 13, 14, 15, 63, 64] {
            let older: Vec<u32> = (0..before as u32).map(|index| (index + 9) * LINE).collect();
            let mut lane = lane(CALLS, &[true; 200], &[], &older);
            assert_eq!(run(&mut lane).0, Batch::Walked);
            let mut expected = older;
            expected.extend(std::iter::repeat_n(LOOP, steps));
            let dropped = expected.len().saturating_sub(DEPTH);
            assert_eq!(stack(&lane), expected[dropped..], "{before}");
        }
    }

    /// Up and down, and up again, in one batch.
    #[test]
    fn what_a_full_stack_dropped_does_not_come_back() {
        for before in [0, 13, 30, 38, 39, 40, 41, 62, 63, 64] {
            for up in [1, 2, 3, 12, 24, 25, 26, 40] {
                let mut expected: Vec<u32> = (0..before).map(|index| (index + 9) * LINE).collect();
                let returns = [vec![false; up], vec![true; up - 1], vec![false; 200]].concat();
                let mut lane = lane(EITHER, &returns, &[], &expected);
                assert_eq!(run(&mut lane).0, Batch::Walked);
                for returns in &returns[..LOADS * ROUNDS * STEPS] {
                    if *returns {
                        expected.pop();
                    } else {
                        expected.push(EITHER);
                    }
                    if expected.len() > DEPTH {
                        expected.remove(0);
                    }
                }
                assert_eq!(stack(&lane), expected, "{before} {up}");
            }
        }
    }
}
