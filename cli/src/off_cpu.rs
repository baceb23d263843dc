//! When threads were off their CPU, as the capture's switch records say.

use ptflow_perf_import::Capture;
use ptflow_perf_import::sideband::SwitchKind;
use std::collections::BTreeMap;

/// The turns off CPU of each thread.
#[derive(Default)]
pub struct OffCpu {
    threads: BTreeMap<u32, Vec<Turn>>,
}

/// One turn; `before` is the sum of those before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Turn {
    from: u64,
    to: u64,
    before: u64,
    /// It could have run on.
    preempted: bool,
}

/// A turn off CPU, for a timeline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Away {
    pub from: u64,
    /// `u64::MAX` where it did not come back.
    pub to: u64,
    /// It could have run on; otherwise it waited for something.
    pub preempted: bool,
}

impl OffCpu {
    /// What the capture tells. A thread without switch records is not known: not all recordings have them.
    pub fn of(capture: &Capture<'_>) -> Self {
        let mut off = Self::default();
        let mut left: BTreeMap<u32, (u64, bool)> = BTreeMap::new();
        for switch in &capture.switches {
            let Some((_, tid)) = switch.task else { continue };
            match switch.what {
                SwitchKind::Out { preempted, .. } => {
                    left.insert(tid.0, (switch.time.0, preempted));
                    off.threads.entry(tid.0).or_default();
                }
                SwitchKind::In { .. } => {
                    if let Some((from, preempted)) = left.remove(&tid.0) {
                        off.add(tid.0, from, switch.time.0, preempted);
                    }
                }
                SwitchKind::TraceStart => {}
            }
        }
        for (tid, (from, preempted)) in left {
            off.add(tid, from, u64::MAX, preempted);
        }
        off
    }

    /// A thread's turns off CPU, in order of time.
    pub fn turns(&self, tid: u32) -> impl Iterator<Item = Away> {
        let turns = self.threads.get(&tid).into_iter().flatten();
        turns.map(|Turn { from, to, preempted, .. }| Away { from: *from, to: *to, preempted: *preempted })
    }

    fn add(&mut self, tid: u32, from: u64, to: u64, preempted: bool) {
        let turns = self.threads.entry(tid).or_default();
        let before = turns.last().map_or(0, |last| last.before + (last.to - last.from));
        let from = turns.last().map_or(from, |last| from.max(last.to));
        turns.push(Turn { from, to: to.max(from), before, preempted });
    }

    /// How long a thread was off CPU between two times; `None` where nothing is known of it.
    pub fn between(&self, tid: u32, from: u64, to: u64) -> Option<u64> {
        let turns = self.threads.get(&tid)?;
        let up_to = |time: u64| {
            let begun = turns.partition_point(|turn| turn.from < time);
            turns[..begun].last().map_or(0, |turn| turn.before + (turn.to.min(time) - turn.from))
        };
        Some(up_to(to).saturating_sub(up_to(from)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_turns() {
        let mut off = OffCpu::default();
        off.add(7, 100, 200, true);
        off.add(7, 300, 310, false);
        off.add(7, 400, u64::MAX, false);
        let between = |from, to| off.between(7, from, to);
        assert_eq!(between(0, 50), Some(0));
        assert_eq!(between(0, 150), Some(50));
        assert_eq!(between(150, 305), Some(55));
        assert_eq!(between(200, 300), Some(0));
        assert_eq!(between(0, 500), Some(210));
        assert_eq!(off.between(8, 0, 500), None);
    }
}
