//! LOST, LOST_SAMPLES, THROTTLE, UNTHROTTLE: what the capture says it does not have.

use super::{Record, WriteRecord, kind};
use crate::bytes::{Fields, Put};
use ptflow_decoder::units::Ns;

/// LOST: the ring buffer was full and records were dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lost {
    /// The event.
    pub id: u64,
    /// How many records.
    pub lost: u64,
}

impl Lost {
    /// Reads the body.
    pub fn read(record: &Record<'_>) -> Option<Self> {
        let mut f = Fields(record.body);
        Some(Self { id: f.u64()?, lost: f.u64()? })
    }
}

impl WriteRecord for Lost {
    fn kind(&self) -> u32 {
        kind::LOST
    }

    fn body(&self, out: &mut Vec<u8>) {
        out.u64(self.id);
        out.u64(self.lost);
    }
}

/// LOST_SAMPLES: the hardware dropped samples.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LostSamples {
    /// How many.
    pub lost: u64,
}

impl LostSamples {
    /// Reads the body.
    pub fn read(record: &Record<'_>) -> Option<Self> {
        Some(Self { lost: Fields(record.body).u64()? })
    }
}

impl WriteRecord for LostSamples {
    fn kind(&self) -> u32 {
        kind::LOST_SAMPLES
    }

    fn body(&self, out: &mut Vec<u8>) {
        out.u64(self.lost);
    }
}

/// THROTTLE and UNTHROTTLE: an event was stopped because it came too often, or goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Throttle {
    /// The event goes on.
    pub ended: bool,
    /// When.
    pub time: Ns,
    /// The event.
    pub id: u64,
    /// The event's stream.
    pub stream_id: u64,
}

impl Throttle {
    /// Reads the body of either kind.
    pub fn read(record: &Record<'_>) -> Option<Self> {
        let mut f = Fields(record.body);
        let ended = record.kind == kind::UNTHROTTLE;
        Some(Self { ended, time: Ns(f.u64()?), id: f.u64()?, stream_id: f.u64()? })
    }
}

impl WriteRecord for Throttle {
    fn kind(&self) -> u32 {
        if self.ended { kind::UNTHROTTLE } else { kind::THROTTLE }
    }

    fn body(&self, out: &mut Vec<u8>) {
        out.u64(self.time.0);
        out.u64(self.id);
        out.u64(self.stream_id);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{cut_everywhere, through_bytes};
    use super::*;

    #[test]
    fn round_trips() {
        let lost = Lost { id: 1, lost: 2 };
        through_bytes(&lost, |record| assert_eq!(Lost::read(record), Some(lost)));
        cut_everywhere(&lost, |record| assert_eq!(Lost::read(record), None));
        let samples = LostSamples { lost: 3 };
        through_bytes(&samples, |record| assert_eq!(LostSamples::read(record), Some(samples)));
        cut_everywhere(&samples, |record| assert_eq!(LostSamples::read(record), None));
        for ended in [false, true] {
            let throttle = Throttle { ended, time: Ns(1), id: 2, stream_id: 3 };
            through_bytes(&throttle, |record| assert_eq!(Throttle::read(record), Some(throttle)));
            cut_everywhere(&throttle, |record| assert_eq!(Throttle::read(record), None));
        }
    }
}
