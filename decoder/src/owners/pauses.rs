//! The pauses of a CPU's stream: where no user code ran.

use super::matching::LATEST;
use super::part::Part;
use super::{RanUpTo, Schedule, ThreadId};
use crate::clock::Clock;
use crate::config::PtConfig;
use crate::overlap::{Kept, kept};
use crate::packet::{IpPayload, LastIp, Packet};
use crate::plan::{self, time_of};
use crate::reader::{Position, Reader};
use crate::stream::{Break, TraceStream};
use crate::units::{AuxOffset, Ip, Tsc};

/// No user code ran: tracing was off, the kernel ran, or packets were lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pause {
    /// Where user code goes on.
    pub at: AuxOffset,
    /// It did not begin before this time.
    pub after: Option<Tsc>,
    /// It ended before this time.
    pub before: Option<Tsc>,
    /// Tracing was started anew in it.
    pub restarted: bool,
    /// Bytes are missing in it: what else there was is not known.
    pub broken: bool,
    /// Who ran before, where the kernel ended an AUX record in it.
    pub ran: Option<ThreadId>,
    /// User code goes on behind it; the last one is the stream's end.
    pub ends: bool,
}

/// A pause that has not ended.
#[derive(Clone, Copy, Debug)]
struct Open {
    from: AuxOffset,
    after: Option<Tsc>,
    restarted: bool,
    broken: bool,
}

/// Hands over the pauses of a part in stream order.
pub(super) fn find(
    stream: &TraceStream<'_>,
    config: &PtConfig,
    schedule: &Schedule,
    part: &Part,
    take: &mut dyn FnMut(Pause),
) {
    let pieces = &stream.pieces;
    let kept = kept(pieces);
    // Where a piece ends that the next one repeats is somewhere within that one.
    let is_there = |end: &&RanUpTo| {
        let behind = pieces.partition_point(|piece| piece.offset < end.end);
        let Some(index) = behind.checked_sub(1) else { return true };
        let Kept { to, .. } = kept[index];
        to == pieces[index].bytes.len() || end.end.0.saturating_sub(pieces[index].offset.0) <= to as u64
    };
    let ends: Vec<RanUpTo> = schedule.ends.iter().filter(is_there).copied().collect();
    let mut scan = Scan {
        config,
        ends: &ends,
        take,
        clock: Clock::new(config),
        time: None,
        last_ip: LastIp(0),
        // In the midst of a stream, who runs is not a matter of a pause.
        open: part.since.is_none().then_some(Open {
            from: AuxOffset(0),
            after: None,
            restarted: true,
            broken: false,
        }),
        ended: Vec::new(),
        psb: None,
    };
    let mut first = 0;
    while first < pieces.len() {
        let count = 1 + pieces[first + 1..].iter().take_while(|piece| piece.break_before.is_none()).count();
        let last = first + count - 1;
        let whole = [
            Position { piece: first, byte: kept[first].from },
            Position { piece: last, byte: kept[last].to },
        ];
        let (start, end) = (whole[0].max(part.from), whole[1].min(part.to));
        first += count;
        if start >= end {
            continue;
        }
        let first = first - count;
        let is_begun = start > whole[0];
        if pieces[first].break_before != Some(Break::Start) && !kept[first].joined && !is_begun {
            scan.breaks(pieces[first].offset);
        }
        let psb = plan::find_psb(pieces, start, end);
        if pieces[first].break_before.is_some_and(Break::restarts) && !is_begun {
            // Tracing started again on a whole packet.
            scan.clock.set_reference(pieces[first].reference);
            scan.stretch(Reader::new(stream, start), psb.unwrap_or(end));
        }
        let mut psb = psb;
        while let Some(at) = psb {
            // Behind this PSB itself.
            let behind = plan::advance(pieces, at, end, crate::psb::PSB.len());
            let next = plan::find_psb(pieces, behind, end);
            let reader = Reader::new(stream, at);
            scan.begin_segment(&reader);
            let time = |at: Position| time_of(Reader::new(stream, at), config);
            if scan.is_of_interest(schedule, time(at), next.and_then(time)) {
                scan.stretch(reader, next.unwrap_or(end));
            } else {
                scan.skip(reader);
            }
            psb = next;
        }
    }
    scan.finish();
}

struct Scan<'s> {
    config: &'s PtConfig,
    ends: &'s [RanUpTo],
    take: &'s mut dyn FnMut(Pause),
    clock: Clock,
    /// The latest time that any packet told.
    time: Option<Tsc>,
    last_ip: LastIp,
    open: Option<Open>,
    /// Pauses that have ended, but it is not known yet before which time.
    ended: Vec<Pause>,
    /// In PSB+: where it began, and the address it gave.
    psb: Option<(AuxOffset, Option<Ip>)>,
}

impl Scan<'_> {
    fn is_of_interest(&self, schedule: &Schedule, from: Option<Tsc>, to: Option<Tsc>) -> bool {
        let (Some(from), Some(to)) = (from, to) else { return true };
        // The first pause of all is whose the stream begins with.
        if self.time.is_none() || self.open.is_some_and(|open| open.restarted) {
            return true;
        }
        let margin = LATEST.ticks(self.config) * 2;
        let first = schedule.turns.partition_point(|turn| turn.since.0.saturating_add(margin) < from.0);
        schedule.turns.get(first).is_some_and(|turn| turn.since.0 <= to.0.saturating_add(margin))
    }

    /// Bytes are missing.
    fn breaks(&mut self, at: AuxOffset) {
        let after = self.time;
        let open = self.open.get_or_insert(Open { from: at, after, restarted: true, broken: true });
        (open.restarted, open.broken) = (true, true);
        self.psb = None;
        self.clock = self.new_clock();
    }

    fn new_clock(&self) -> Clock {
        let mut clock = Clock::new(self.config);
        clock.set_reference(self.time);
        clock
    }

    fn begin_segment(&mut self, reader: &Reader<'_, '_>) {
        self.clock = self.new_clock();
        if self.time.is_none() {
            self.clock.set_reference(reader.reference());
        }
        self.psb = None;
    }

    /// A segment without a switch: only what its PSB+ tells is taken.
    fn skip(&mut self, mut reader: Reader<'_, '_>) {
        while let Some(Ok((packet, len))) = reader.read() {
            self.packet(packet, reader.offset());
            reader.skip(len);
            if packet == Packet::PsbEnd {
                break;
            }
        }
        // Whether a pause goes on to its end is not known: the next segment's PSB+ will say.
        self.open = None;
    }

    fn stretch(&mut self, mut reader: Reader<'_, '_>, end: Position) {
        while reader.at() < end {
            let at = reader.offset();
            match reader.read() {
                Some(Ok((packet, len))) => {
                    self.packet(packet, at);
                    reader.skip(len);
                }
                // No packet: up to the next PSB nothing is known.
                Some(Err(_)) => return self.breaks(at),
                None => return,
            }
        }
    }

    fn packet(&mut self, packet: Packet, at: AuxOffset) {
        match packet {
            Packet::Psb => {
                self.psb = Some((at, None));
                self.last_ip = LastIp(0);
            }
            Packet::PsbEnd => {
                if let Some((at, ip)) = self.psb.take() {
                    match ip {
                        Some(ip) => self.arrive(ip, at),
                        None => self.pause(at),
                    }
                }
            }
            Packet::Tsc { tsc } => {
                self.clock.tsc(tsc, 0);
                if let Some(open) = self.open.as_mut().filter(|_| self.psb.is_none()) {
                    // Outside PSB+ it tells that tracing was started (SDM vol. 3C, "TSC Packet").
                    open.restarted = true;
                }
                self.stamp();
            }
            Packet::Tma { ctc, fast } => self.clock.tma(ctc, fast),
            Packet::Mtc { ctc } => {
                self.clock.mtc(ctc, 0);
                self.stamp();
            }
            Packet::Fup(payload) => {
                let ip = self.ip(payload);
                if let Some(psb) = &mut self.psb {
                    psb.1 = ip;
                }
            }
            Packet::Tip(payload) | Packet::TipPge(payload) => {
                if let Some(ip) = self.ip(payload) {
                    self.arrive(ip, at);
                }
            }
            Packet::TipPgd(payload) => {
                self.ip(payload);
                self.pause(at);
            }
            Packet::Ovf => {
                self.psb = None;
                self.pause(at);
            }
            _ => {}
        }
    }

    fn ip(&mut self, payload: IpPayload) -> Option<Ip> {
        self.last_ip.update(payload).map(Ip)
    }

    /// A packet told the time: what ended before it, did so before that time.
    fn stamp(&mut self) {
        self.time = self.time.max(self.clock.now());
        for mut pause in self.ended.drain(..) {
            pause.before = self.time;
            (self.take)(pause);
        }
    }

    /// User code stops here.
    fn pause(&mut self, at: AuxOffset) {
        let after = self.time;
        self.open.get_or_insert(Open { from: at, after, restarted: false, broken: false });
    }

    /// Control is at an address.
    fn arrive(&mut self, ip: Ip, at: AuxOffset) {
        if ip.0 >> 63 != 0 {
            return self.pause(at);
        }
        let Some(open) = self.open.take() else { return };
        let pause = self.pause_to(open, at);
        self.ended.push(pause);
    }

    fn pause_to(&self, Open { from, after, restarted, broken }: Open, at: AuxOffset) -> Pause {
        let first = self.ends.partition_point(|end| end.end < from);
        let ran = self.ends.get(first).filter(|end| end.end <= at).map(|end| end.thread);
        Pause { at, after, before: None, restarted, broken, ran, ends: true }
    }

    fn finish(mut self) {
        // No packet tells before which time these ended: they did at about the time that they told last.
        self.stamp();
        let end = AuxOffset(u64::MAX);
        let open = self.open.unwrap_or(Open { from: end, after: self.time, restarted: false, broken: false });
        let last = self.pause_to(open, end);
        (self.take)(Pause { ends: false, restarted: false, ..last });
    }
}
