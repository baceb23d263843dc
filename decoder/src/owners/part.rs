//! What of a CPU's stream must be looked at, to know whose the bytes of a window are.
//!
//! Matching can begin anywhere: at a PSB that tells the time, who ran is known from the switches up to then, but for those
//! within a record's delay. Each of these is followed until the pauses behind it tell; so the part begins some time before
//! the first unit that the window needs, and ends as much behind its last.

use super::matching::LATEST;
use crate::config::PtConfig;
use crate::plan::{self, Unit, Window, time_of};
use crate::reader::{Position, Reader};
use crate::stream::TraceStream;
use crate::units::Tsc;

/// What comes before and behind is looked at for so many times what a record may be late.
const AROUND: u64 = 40;

/// A part of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Part {
    pub from: Position,
    pub to: Position,
    /// The time that the PSB at `from` tells; `None` where the part begins as the stream does.
    pub since: Option<Tsc>,
}

impl Part {
    /// All of it.
    pub fn whole(stream: &TraceStream<'_>) -> Self {
        let last = stream.pieces.len().saturating_sub(1);
        let to = Position { piece: last, byte: stream.pieces.last().map_or(0, |piece| piece.bytes.len()) };
        Self { from: Position { piece: 0, byte: 0 }, to, since: None }
    }

    /// The part from the first to the last of the units that the windows need; `None` where they need none.
    pub fn of(
        stream: &TraceStream<'_>,
        config: &PtConfig,
        windows: &[Window],
        unit_bytes: usize,
    ) -> Option<Self> {
        if windows.contains(&Window::ALL) {
            return Some(Self::whole(stream));
        }
        let time = |unit: &Unit| time_of(Reader::new(stream, unit.from), config);
        let mut needed = plan::plan([stream], unit_bytes);
        let units = needed.units.clone();
        needed.narrow(windows, time);
        let place = |unit: &Unit| units.partition_point(|other| other.from < unit.from);
        let (mut first, mut last) = (place(needed.units.first()?), place(needed.units.last()?));
        let around = LATEST.ticks(config).saturating_mul(AROUND);
        let reached = |at: usize, far: &dyn Fn(Tsc) -> bool| units.get(at).and_then(time).is_some_and(far);
        if let Some(begin) = units.get(first).and_then(time) {
            let is_far = |time: Tsc| time.0.saturating_add(around) <= begin.0;
            while first > 0 && !reached(first, &is_far) {
                first -= 1;
            }
        } else {
            first = 0;
        }
        // The last unit reaches up to where the next begins.
        let end = units.get(last + 1).and_then(time);
        let is_far = |time: Tsc| end.is_some_and(|end| time.0 >= end.0.saturating_add(around));
        while last + 1 < units.len() && !reached(last + 1, &is_far) {
            last += 1;
        }
        let whole = Self::whole(stream);
        let from = units.get(first).filter(|_| first > 0);
        let to = units.get(last).filter(|_| last + 1 < units.len());
        Some(Self {
            from: from.map_or(whole.from, |unit| unit.from),
            to: to.map_or(whole.to, |unit| unit.end),
            since: from.and_then(time),
        })
    }
}
