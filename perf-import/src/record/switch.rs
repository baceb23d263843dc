//! SWITCH and SWITCH_CPU_WIDE: a thread came to a CPU or left it. Who and where stands in the trailer.

use super::{Record, WriteRecord, kind, misc};
use crate::bytes::{Fields, Put};
use crate::{Pid, Tid};

/// A context switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Switch {
    /// The thread left; else it came.
    pub out: bool,
    /// It left though it could have run on.
    pub preempted: bool,
    /// The thread that comes next (on out) or that ran before (on in); only SWITCH_CPU_WIDE tells.
    pub other: Option<(Pid, Tid)>,
}

impl Switch {
    /// Reads the body of either kind.
    pub fn read(record: &Record<'_>) -> Option<Self> {
        let mut f = Fields(record.body);
        let other = match record.kind {
            kind::SWITCH_CPU_WIDE => Some((Pid(f.u32()?), Tid(f.u32()?))),
            _ => None,
        };
        let has = |bit| record.misc & bit != 0;
        Some(Self { out: has(misc::SWITCH_OUT), preempted: has(misc::SWITCH_OUT_PREEMPT), other })
    }
}

impl WriteRecord for Switch {
    fn kind(&self) -> u32 {
        if self.other.is_some() { kind::SWITCH_CPU_WIDE } else { kind::SWITCH }
    }

    fn misc(&self) -> u16 {
        let out = if self.out { misc::SWITCH_OUT } else { 0 };
        if self.preempted { out | misc::SWITCH_OUT_PREEMPT } else { out }
    }

    fn body(&self, out: &mut Vec<u8>) {
        if let Some((pid, tid)) = self.other {
            out.u32(pid.0);
            out.u32(tid.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{cut_everywhere, through_bytes};
    use super::*;

    #[test]
    fn round_trips() {
        for (out, preempted) in [(false, false), (true, false), (true, true)] {
            for other in [None, Some((Pid(1), Tid(2)))] {
                let switch = Switch { out, preempted, other };
                through_bytes(&switch, |record| assert_eq!(Switch::read(record), Some(switch)));
                cut_everywhere(&switch, |record| assert_eq!(Switch::read(record), None));
            }
        }
    }
}
