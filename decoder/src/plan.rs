//! Cutting streams into work units at PSBs.
//!
//! A PSB clears all packet state (SDM, "Packet Stream Boundary Packet"), and the status packets behind it say where
//! control is and in what mode, so what begins there needs nothing from before it. Units are cut near equal distances,
//! so only the bytes around each cut are searched.
//!
//! ```text
//! stream  ├─junk─┤PSB┄┄┄┄┄┄PSB┄┄┄┄┄┄┤ hole ├─junk─┤PSB┄┄┄┄┄┄┄┄┤
//! units           └─ unit ─┘└─ unit ─┘              └── unit ──┘
//! ```

use crate::clock::Clock;
use crate::config::PtConfig;
use crate::ledger::{Ledger, Loss, LossReason};
use crate::overlap::kept;
use crate::packet::Packet;
use crate::psb::{PSB, is_in_psb_plus, next_psb};
use crate::reader::{Position, Reader, bytes_between};
use crate::stream::{Break, Piece, TraceStream};
use crate::units::{AuxOffset, Tsc};

/// Bytes of trace in a unit, about: enough to keep a worker busy for milliseconds, few enough to keep the results of
/// the units in flight small.
pub const UNIT_BYTES: usize = 2 << 20;

/// A stretch of one stream that is decoded on its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unit {
    /// Index of the stream.
    pub stream: usize,
    /// Where its first PSB lies; behind a truncation, where tracing started again.
    pub from: Position,
    /// Where the next unit's PSB lies, or the end of the stretch.
    pub end: Position,
    /// True where the unit before does not lead up to this one: the stream begins here, or has a hole before.
    pub after_break: bool,
    /// Bytes from `from` to `end`.
    pub bytes: u64,
}

/// All units of some streams, in stream order, and what is lost before any decoding.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The units: stream after stream, each from its start to its end.
    pub units: Vec<Unit>,
    /// For each stream what lies outside all units.
    pub ledgers: Vec<Ledger>,
    /// Where the units were [narrowed](Plan::narrow): the stretches of time in which every stream has all its units.
    pub complete: Vec<(Tsc, Tsc)>,
}

/// A stretch of time, of all streams or of one. What lies outside of it need not be decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Window {
    /// Its first moment; without one it begins where the trace does.
    pub from: Option<Tsc>,
    /// Its last moment.
    pub to: Option<Tsc>,
    /// Only the stream of this index.
    pub stream: Option<usize>,
    /// No more than so many units of a stream.
    pub most: Option<usize>,
}

impl Window {
    /// Everything.
    pub const ALL: Self = Self { from: None, to: None, stream: None, most: None };
}

impl Plan {
    /// Leaves only the units that touch a window, and one before them in each stream: times at a unit's start depend on
    /// where the unit before ended. `time` tells when a unit starts; one that does not say it starts with the one before.
    /// Windows are in order of time.
    pub fn narrow(&mut self, windows: &[Window], time: impl Fn(&Unit) -> Option<Tsc>) {
        if windows.contains(&Window::ALL) {
            return;
        }
        let mut kept = Vec::new();
        let ends = |window: &Window| (Tsc(0), window.to.unwrap_or(Tsc(u64::MAX)));
        let mut complete: Vec<(Tsc, Tsc)> = windows.iter().map(ends).collect();
        for stream in self.units.chunk_by(|a, b| a.stream == b.stream) {
            let mut now = Tsc(0);
            let times = stream.iter().map(|unit| {
                now = time(unit).unwrap_or(now).max(now);
                now
            });
            let times: Vec<Tsc> = times.collect();
            let mut until = 0;
            for (window, (begin, _)) in windows.iter().zip(&mut complete) {
                if window.stream.is_some_and(|only| stream.iter().any(|unit| unit.stream != only)) {
                    continue;
                }
                let first = window.from.map_or(0, |from| times.partition_point(|time| *time <= from));
                let last = window.to.map_or(stream.len(), |to| times.partition_point(|time| *time <= to));
                let first = first.saturating_sub(2);
                if first > 0 && first < last {
                    *begin = times[first].max(*begin);
                }
                let last = window.most.map_or(last, |most| last.min(first.saturating_add(most)));
                let first = first.max(until);
                for (index, unit) in stream.iter().enumerate().take(last).skip(first) {
                    let joins = index == 0 || index == until && until > 0;
                    kept.push(Unit { after_break: unit.after_break || !joins, ..*unit });
                    until = index + 1;
                }
            }
            let wanted = kept
                .iter()
                .rev()
                .take_while(|unit| Some(unit.stream) == stream.first().map(|unit| unit.stream));
            let (wanted, all) = (wanted.map(|unit| unit.bytes), stream.iter().map(|unit| unit.bytes));
            let skipped = all.sum::<u64>() - wanted.sum::<u64>();
            if let Some(ledger) = stream.first().and_then(|unit| self.ledgers.get_mut(unit.stream)) {
                ledger.skipped += skipped;
            }
        }
        self.units = kept;
        for (begin, end) in complete {
            match self.complete.last_mut() {
                Some(before) if begin <= before.1 => before.1 = before.1.max(end),
                _ => self.complete.push((begin, end)),
            }
        }
    }
}

/// Cuts the streams.
pub fn plan<'m>(streams: impl IntoIterator<Item = &'m TraceStream<'m>>, unit_bytes: usize) -> Plan {
    let mut plan = Plan::default();
    for (index, stream) in streams.into_iter().enumerate() {
        plan.ledgers.push(Ledger::default());
        let kept = kept(&stream.pieces);
        let mut first = 0;
        while first < stream.pieces.len() {
            let behind = &stream.pieces[first + 1..];
            let count = 1 + behind.iter().take_while(|piece| piece.break_before.is_none()).count();
            let last = first + count - 1;
            let stretch = Stretch {
                start: Position { piece: first, byte: kept[first].from },
                end: Position { piece: last, byte: kept[last].to },
                joined: kept[first].joined,
            };
            cut_stretch(&mut plan, index, &stream.pieces, stretch, unit_bytes.max(1));
            first += count;
        }
    }
    plan
}

/// Pieces between two breaks, without what others repeat.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    start: Position,
    end: Position,
    /// It goes on where the stretch before ends.
    joined: bool,
}

fn cut_stretch(
    plan: &mut Plan,
    stream: usize,
    pieces: &[Piece<'_>],
    Stretch { start, end, joined }: Stretch,
    unit_bytes: usize,
) {
    let offset = |at: Position| AuxOffset(pieces[at.piece].offset.0.wrapping_add(at.byte as u64));
    let ledger = &mut plan.ledgers[stream].losses;
    let whole =
        (Position { piece: start.piece, byte: 0 }, Position { byte: pieces[end.piece].bytes.len(), ..end });
    for (from, to) in [(whole.0, start), (end.max(start), whole.1)] {
        let bytes = bytes_between(pieces, from, to) as u64;
        if bytes > 0 {
            let (from, to) = (offset(from), offset(to));
            ledger.push(Loss { reason: LossReason::Overlap, from, to, bytes, at: None });
        }
    }
    let reason = match pieces[start.piece].break_before {
        Some(Break::AuxTruncated) => Some(LossReason::AuxTruncated),
        Some(Break::AuxPartial) => Some(LossReason::AuxPartial),
        Some(Break::AuxCollision) => Some(LossReason::AuxCollision),
        Some(Break::Missing) => Some(LossReason::Missing),
        // A snapshot of which nothing is kept is no hole.
        Some(Break::Snapshot) if !joined && start < end => Some(LossReason::Missing),
        Some(Break::Start | Break::Snapshot) | None => None,
    };
    if let Some(reason) = reason {
        ledger.push(Loss { reason, from: offset(start), to: offset(start), bytes: 0, at: None });
    }
    // Behind a truncation the driver starts tracing again, on a whole packet but without a PSB. The walk looks for a TIP.PGE
    // with a whole address there.
    let restarts = pieces[start.piece].break_before.is_some_and(Break::restarts);
    let first = if restarts { start } else { find_psb(pieces, start, end).unwrap_or(end) };
    if first > start {
        ledger.push(Loss {
            reason: LossReason::BeforeFirstPsb,
            from: offset(start),
            to: offset(first),
            bytes: bytes_between(pieces, start, first) as u64,
            at: None,
        });
    }
    let mut from = first;
    while from < end {
        let next = find_whole(pieces, advance(pieces, from, end, unit_bytes), end).unwrap_or(end);
        plan.units.push(Unit {
            stream,
            from,
            end: next,
            after_break: from == first && !joined,
            bytes: bytes_between(pieces, from, next) as u64,
        });
        from = next;
    }
}

/// The time that a PSB+ tells, or the packets with which tracing starts.
pub(crate) fn time_of(mut reader: Reader<'_, '_>, config: &PtConfig) -> Option<Tsc> {
    let mut clock = Clock::new(config);
    clock.set_reference(reader.reference());
    loop {
        match reader.read()?.ok()? {
            (Packet::Tsc { tsc }, _) => {
                clock.tsc(tsc, 0);
                return clock.now();
            }
            (packet, len) if packet == Packet::Psb || is_in_psb_plus(packet) => _ = reader.skip(len),
            _ => return None,
        }
    }
}

/// The position some bytes on, or the end.
pub(crate) fn advance(pieces: &[Piece<'_>], mut at: Position, end: Position, mut bytes: usize) -> Position {
    loop {
        let left = pieces[at.piece].bytes.len() - at.byte;
        if bytes < left {
            at.byte += bytes;
            return at.min(end);
        }
        if at.piece == end.piece {
            return end;
        }
        bytes -= left;
        at = Position { piece: at.piece + 1, byte: 0 };
    }
}

/// The next PSB whose status packets are whole. Where an overflow took some of them, what is known from before (such
/// as the mode) must help: there is no place to cut.
fn find_whole(pieces: &[Piece<'_>], mut at: Position, end: Position) -> Option<Position> {
    loop {
        let psb = find_psb(pieces, at, end)?;
        let mut status = Reader::of(pieces, advance(pieces, psb, end, PSB.len()));
        loop {
            match status.read() {
                Some(Ok((Packet::PsbEnd, _))) => return Some(psb),
                Some(Ok((packet, len))) if is_in_psb_plus(packet) => _ = status.skip(len),
                _ => break,
            }
        }
        at = status.at();
    }
}

/// The next PSB at or behind `at` and before `end`, which may straddle pieces; there is no break between the two. What a
/// PSB is says [`next_psb`].
pub fn find_psb(pieces: &[Piece<'_>], mut at: Position, end: Position) -> Option<Position> {
    loop {
        let bytes = pieces[at.piece].bytes;
        // The last bytes of the piece may begin a PSB, or go on a run of which only the last 16 bytes are one.
        let tail = bytes.len().saturating_sub(PSB.len() - 1).max(at.byte);
        let found = next_psb(bytes, at.byte)
            .or_else(|| (tail..bytes.len()).find(|&byte| starts_psb(pieces, Position { byte, ..at }, end)));
        if let Some(byte) = found {
            let mut psb = Position { byte, ..at };
            if psb >= end {
                return None;
            }
            // Two bytes on is the same run, unless that is behind its last PSB.
            loop {
                let next = advance(pieces, psb, end, 2);
                if !starts_psb(pieces, next, end) {
                    return Some(psb);
                }
                if next == end {
                    return None;
                }
                psb = next;
            }
        }
        if at.piece == end.piece {
            return None;
        }
        at = Position { piece: at.piece + 1, byte: 0 };
    }
}

/// True where the 16 bytes from `at` on are a PSB's, in one piece or several.
fn starts_psb(pieces: &[Piece<'_>], at: Position, end: Position) -> bool {
    let pieces = &pieces[at.piece..=end.piece];
    let bytes = pieces
        .iter()
        .enumerate()
        .flat_map(|(index, piece)| piece.bytes.get(if index == 0 { at.byte } else { 0 }..).unwrap_or(&[]));
    bytes.take(PSB.len()).eq(PSB.iter())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PSBEND: [u8; 2] = [0x02, 0x23];

    fn piece(offset: u64, bytes: &[u8], break_before: Option<Break>) -> Piece<'_> {
        Piece { offset: AuxOffset(offset), bytes, break_before, reference: None }
    }

    #[test]
    fn units_and_losses_add_up() {
        let mut bytes = vec![4u8; 10];
        for _ in 0..8 {
            bytes.extend_from_slice(&PSB);
            bytes.extend_from_slice(&PSBEND);
            bytes.extend_from_slice(&[4; 82]);
        }
        let (a, b) = bytes.split_at(333);
        let stream = TraceStream {
            pieces: vec![
                piece(0, a, Some(Break::Start)),
                piece(333, b, None),
                piece(2000, &bytes, Some(Break::AuxTruncated)),
                piece(4000, &[4; 50], Some(Break::Missing)),
            ],
        };
        for unit_bytes in [1, 100, 150, 1 << 20] {
            let plan = plan([&stream], unit_bytes);
            let ledger = &plan.ledgers[0];
            let units: u64 = plan.units.iter().map(|unit| unit.bytes).sum();
            assert_eq!(units + ledger.lost(), stream.len(), "unit of {unit_bytes}");
            assert_eq!(ledger.lost(), 10 + 50);
            assert_eq!(plan.units.iter().filter(|unit| unit.after_break).count(), 2);
            for unit in plan.units.iter().filter(|unit| unit.from != Position { piece: 2, byte: 0 }) {
                assert!(stream.pieces[unit.from.piece].bytes[unit.from.byte..].starts_with(&PSB));
            }
        }
        assert_eq!(plan([&stream], 1).units.len(), 17);
        assert_eq!(plan([&stream], 1 << 20).units.len(), 2);
    }

    #[test]
    fn a_window_keeps_what_touches_it_and_one_before() {
        let at = Position { piece: 0, byte: 0 };
        let unit = |stream, bytes| Unit { stream, from: at, end: at, after_break: false, bytes };
        // Bytes stand for the unit's number; units start at ten times that, and the fourth does not say it.
        let units: Vec<Unit> = [0, 1].iter().flat_map(|s| (0..6).map(|n| unit(*s, n))).collect();
        let time = |unit: &Unit| (unit.bytes != 3).then_some(Tsc(unit.bytes * 10));
        let kept = |from: Option<u64>, to: Option<u64>| -> Vec<u64> {
            let mut plan =
                Plan { units: units.clone(), ledgers: vec![Ledger::default(); 2], ..Plan::default() };
            plan.narrow(&[Window { from: from.map(Tsc), to: to.map(Tsc), ..Window::ALL }], time);
            for (stream, ledger) in plan.ledgers.iter().enumerate() {
                let bytes = plan.units.iter().filter(|unit| unit.stream == stream).map(|unit| unit.bytes);
                assert_eq!(bytes.sum::<u64>() + ledger.skipped, 15);
            }
            let of = |stream| plan.units.iter().filter(move |u| u.stream == stream).map(|u| u.bytes);
            assert!(of(0).eq(of(1)));
            of(0).collect()
        };
        assert_eq!(kept(None, None), [0, 1, 2, 3, 4, 5]);
        assert_eq!(kept(Some(25), Some(29)), [2, 3]);
        assert_eq!(kept(Some(19), Some(20)), [0, 1, 2, 3]);
        assert_eq!(kept(Some(50), None), [4, 5]);
        assert_eq!(kept(None, Some(9)), [0]);
        assert_eq!(kept(Some(30), Some(5)), []);
        let mut plan = Plan { units: units.clone(), ..Plan::default() };
        plan.narrow(&[Window { stream: Some(1), ..Window::ALL }], time);
        assert!(plan.units.len() == 6 && plan.units.iter().all(|unit| unit.stream == 1));
        // Several, with a hole in between, and side by side.
        let window = |from, to| Window { from: Some(Tsc(from)), to: Some(Tsc(to)), ..Window::ALL };
        let several = |windows: &[Window]| {
            let mut plan = Plan { units: units.clone(), ..Plan::default() };
            plan.narrow(windows, time);
            let of = plan.units.iter().filter(|unit| unit.stream == 1);
            let kept: Vec<_> = of.map(|unit| (unit.bytes, unit.after_break)).collect();
            let complete: Vec<_> = plan.complete.iter().map(|(from, to)| (from.0, to.0)).collect();
            (kept, complete)
        };
        let (kept, complete) = several(&[window(5, 6), window(25, 29)]);
        assert_eq!((kept, complete), (vec![(0, false), (2, true), (3, false)], vec![(0, 6), (20, 29)]));
        let (kept, complete) = several(&[window(5, 6), window(50, 60)]);
        assert_eq!((kept, complete), (vec![(0, false), (4, true), (5, false)], vec![(0, 6), (40, 60)]));
        let few = Window { most: Some(2), ..window(25, 60) };
        assert_eq!(several(&[few]).0, [(2, true), (3, false)]);
        let (_, complete) = several(&[window(5, 22), window(25, 29)]);
        assert_eq!(complete, [(0, 29)]);
    }

    #[test]
    fn a_psb_may_straddle_pieces() {
        let bytes = [&[4u8; 10][..], &[0x02, 0x82], &PSB, &PSBEND, &[4; 5]].concat();
        for cuts in [[12, 13], [11, 25], [10, 27], [10, 12], [20, 28]] {
            let pieces = [0, cuts[0], cuts[1], bytes.len()];
            let stream = TraceStream {
                pieces: (pieces.windows(2))
                    .map(|range| {
                        let break_before = (range[0] == 0).then_some(Break::Start);
                        piece(range[0] as u64, &bytes[range[0]..range[1]], break_before)
                    })
                    .collect(),
            };
            let plan = plan([&stream], 1);
            assert_eq!(plan.ledgers[0].lost(), 12, "cut at {cuts:?}");
            assert_eq!(plan.units.len(), 1);
        }
    }

    #[test]
    fn a_torn_psb_is_no_place_to_cut() {
        const OVF: [u8; 2] = [0x02, 0xf3];
        let whole = [&PSB[..], &PSBEND, &[4; 5]].concat();
        let torn = [&PSB[..], &OVF, &[4; 5]].concat();
        let bytes = [&whole[..], &torn, &whole].concat();
        let stream = TraceStream { pieces: vec![piece(0, &bytes, Some(Break::Start))] };
        let units = plan([&stream], 1).units;
        assert_eq!(
            units.iter().map(|unit| unit.from.byte).collect::<Vec<_>>(),
            [0, whole.len() + torn.len()]
        );
    }
}
