//! The walk of one work unit: packets against code.
//!
//! Two walkers share one cursor. The careful one (`careful.rs`) knows every rule, takes one packet at a time and is
//! the reference. The fast one (`fast.rs`) knows TNT, TIP and skipped timing over the block graph; at anything else it hands
//! the cursor to the careful one, and takes it back at the next clean point.
//!
//! *Invariant*: rules are added to the careful walker only; stopping the fast one at any packet changes no result.

mod bound;
mod bulk;
mod careful;
pub(crate) mod cursor;
mod enable;
mod errata;
mod fast;
pub(crate) mod lanes;
mod psb_plus;
mod resync;
mod space;
mod steps;
mod strip;

use crate::clock::{Clock, Timeline};
use crate::code::CodeView;
use crate::config::PtConfig;
use crate::errata::Errata;
use crate::graph::Graph;
use crate::image::{AddressSpaces, Images};
use crate::insn::Insn;
use crate::ledger::{Ledger, Loss, LossReason};
use crate::owners::Owner;
use crate::packet::{ExecMode, Packet};
use crate::profile::EdgeKind;
use crate::reader::{Position, Reader};
use crate::sink::{Branch, Event, Mark, Sink};
use crate::stream::TraceStream;
use crate::units::{AuxOffset, Ip};
use cursor::{Cursor, Place};
use lanes::Bulk;
use space::first_space;

/// What a walk needs to know besides the bytes, of one stream.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a, 'm> {
    /// The trace.
    pub stream: &'a TraceStream<'m>,
    /// All images of the capture.
    pub images: &'a Images<'m>,
    /// What the process had mapped, over time.
    pub spaces: &'a AddressSpaces,
    /// How the trace was recorded.
    pub config: &'a PtConfig,
    /// Of a CPU's stream: whose it is, in stream order; their address spaces count. Empty for a thread's stream.
    pub owners: &'a [Owner<'a>],
}

/// Which walker does the work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Engine {
    /// The fast walker, with the careful one for the rest.
    #[default]
    Fast,
    /// The careful walker alone: the reference.
    Careful,
    /// The fast walker, stopped after every so many packets (or windows, of which it remembers few): tests that no hand-over
    /// changes a result.
    Interrupted(u32),
}

/// What came out of a unit, besides what the sink took.
#[derive(Clone, Debug, Default)]
pub struct UnitResult {
    /// Bytes decoded and lost.
    pub ledger: Ledger,
    /// Times of the unit's marks; empty where the sink asked for none.
    pub timeline: Timeline,
    /// The mark at the unit's end.
    pub end: Mark,
}

/// A loss that is still going on.
#[derive(Clone, Copy, Debug)]
struct OpenLoss {
    reason: LossReason,
    from: AuxOffset,
    bytes: u64,
    begin: Mark,
    at: Option<Ip>,
}

/// What the packets since the last clean point announced.
#[derive(Clone, Copy, Debug, Default)]
struct Pending {
    /// A FUP gave the source of an event; TIP or TIP.PGD will close it.
    fup: Option<Ip>,
    /// The next FUP belongs to a packet seen before (PTW, EXSTOP, MODE.TSX, BEP, CFE, TRIG) and is no event's source.
    fup_is_bound: bool,
    /// Mode at the next TIP or TIP.PGE.
    mode: Option<ExecMode>,
    /// Inside PSB+.
    psb: Option<PsbPlus>,
}

/// Status packets between PSB and PSBEND.
#[derive(Clone, Copy, Debug, Default)]
struct PsbPlus {
    ip: Option<Ip>,
    mode: Option<ExecMode>,
}

/// The walk of one unit.
pub(crate) struct Walker<'w, 'a, 'm, S: Sink> {
    context: Context<'a, 'm>,
    graph: &'w mut Graph,
    sink: &'w mut S,
    code: CodeView<'a, 'm>,
    space: usize,
    /// Whose code runs: the last owner, of [`Context::owners`], whose stretch began.
    owner: Option<usize>,
    /// Takes the counts of what is not wanted.
    unwanted: Option<&'w mut Graph>,
    cursor: Cursor,
    reader: Reader<'a, 'm>,
    end: Position,
    /// Where the packet in hand begins.
    packet_at: AuxOffset,
    pending: Pending,
    /// Packets that wait for the address in the next FUP.
    bound: Vec<Packet>,
    clock: Clock,
    /// Timing packets are read: the sink wants times, or the address space changes over time.
    timed: bool,
    mark: Mark,
    ledger: Ledger,
    loss: Option<OpenLoss>,
    engine: Engine,
    bulk: Bulk,
    errata: Errata,
    /// The last packet but padding was a TNT or a TIP: one more TIP may be a deferred one.
    after_branches: bool,
    /// Looks ahead that were in vain, in this unit.
    vain_looks: u32,
    /// Nothing was lost since the last PSB: what the CPU's return stack holds is known.
    is_whole: bool,
}

impl<'w, 'a, 'm, S: Sink> Walker<'w, 'a, 'm, S> {
    /// A walk from a PSB at `from` up to `end`, which is the next unit's PSB or the end of the stretch.
    pub fn new(
        context: Context<'a, 'm>,
        graph: &'w mut Graph,
        sink: &'w mut S,
        engine: Engine,
        from: Position,
        end: Position,
    ) -> Self {
        let owners_change = context.owners.iter().any(|owner| owner.spaces.versions().len() > 1);
        let changes = context.spaces.versions().len() > 1 || owners_change;
        let code = CodeView { images: context.images, space: first_space(context.spaces) };
        graph.enter(code.space, ExecMode::Bits64);
        let mut clock = Clock::new(context.config);
        if let Engine::Interrupted(packets) = engine {
            clock.set_batch(packets as usize);
        }
        Self {
            context,
            graph,
            sink,
            code,
            space: 0,
            owner: None,
            unwanted: None,
            cursor: Cursor::new(),
            reader: Reader::new(context.stream, from),
            end,
            packet_at: AuxOffset(0),
            pending: Pending::default(),
            bound: Vec::new(),
            clock,
            timed: S::CLOCK || changes,
            mark: Mark::default(),
            ledger: Ledger::default(),
            loss: None,
            engine,
            bulk: Bulk::Off,
            errata: Errata::of(context.config.cpu),
            after_branches: false,
            vain_looks: 0,
            is_whole: true,
        }
    }

    /// Counts what is not wanted apart.
    pub fn with_unwanted(mut self, graph: &'w mut Graph) -> Self {
        self.unwanted = Some(graph);
        self
    }

    /// Uses the memory of another unit's times.
    pub fn with_memory(mut self, times: Timeline) -> Self {
        self.clock.take_memory(times);
        self
    }

    /// Walks the unit.
    pub fn run(mut self) -> UnitResult {
        self.begin();
        self.advance();
        self.finish().0
    }

    /// Before anything else.
    fn begin(&mut self) {
        self.sink.start(self.graph);
        self.clock.set_reference(self.reader.reference());
        self.packet_at = self.reader.offset();
        self.choose_owner();
        if !matches!(self.reader.peek(), Some(Ok((Packet::Psb, _)))) {
            // Behind a truncation: nothing from before it holds.
            self.cursor.last_ip_known = false;
            self.is_whole = false;
            self.packet_at = self.reader.offset();
        }
    }

    /// Walks on; false at the unit's end, true where its lane is to go on.
    fn advance(&mut self) -> bool {
        if self.cursor.tnt.count > 0 {
            self.rest_of_packet();
        }
        while self.reader.at() < self.end {
            if self.can_run_fast() {
                if self.is_for_bulk() {
                    return true;
                }
                let before = self.bulk;
                self.fast();
                self.after_branches = true;
                if self.cursor.tnt.count > 0 {
                    // The fast walker gave up inside a TNT packet.
                    self.consume_tnt();
                }
                if self.reader.at() >= self.end {
                    break;
                }
                if before != self.bulk && self.bulk == Bulk::Soon {
                    // It went as far as it was to go.
                    continue;
                }
            }
            if !self.careful() {
                break;
            }
        }
        false
    }

    /// What came out; the graph and the sink are free again.
    fn finish(mut self) -> (UnitResult, &'w mut Graph, &'w mut S) {
        self.clock.seam(self.mark.ordinal);
        self.seam();
        self.packet_at = self.reader.offset();
        self.close_loss();
        self.sink.finish(self.graph);
        let result = UnitResult {
            ledger: self.ledger,
            timeline: if S::CLOCK { self.clock.finish() } else { Timeline::default() },
            end: self.mark,
        };
        (result, self.graph, self.sink)
    }

    /// Works out times as far as they are certain.
    #[inline]
    fn settle_clock(&mut self) {
        if self.clock.is_full() {
            if S::CLOCK {
                self.clock.settle(|from, marks| self.sink.marks(from, marks));
            } else {
                self.clock.forget();
            }
        }
    }

    fn can_run_fast(&self) -> bool {
        matches!(self.cursor.place, Place::At(_))
            && self.engine != Engine::Careful
            && self.pending.is_clean()
            && self.bound.is_empty()
            && !self.reader.in_block()
            // Too rare to be worth a graph: what a LIP is depends on the segment, too.
            && self.cursor.mode != ExecMode::Bits16
    }

    /// Flow is lost here.
    fn lose(&mut self, reason: LossReason, place: Place) {
        let at = match self.cursor.place {
            Place::At(ip) => Some(ip),
            _ => None,
        };
        self.cursor.place = place;
        self.cursor.tnt.clear();
        if matches!(place, Place::Lost | Place::Overflowed) {
            // What was called and returned from until flow is found again is not known.
            self.cursor.stack.clear();
            self.cursor.interrupted = None;
            self.is_whole &= reason != LossReason::BadPacket;
        }
        self.pending = Pending { psb: self.pending.psb, ..Pending::default() };
        if self.loss.is_some_and(|loss| loss.reason != reason) {
            self.close_loss();
        }
        if self.loss.is_none() {
            self.loss = Some(OpenLoss { reason, from: self.packet_at, bytes: 0, begin: self.mark, at });
            if self.timed {
                self.clock.gap(self.mark.ordinal);
            }
            self.mark.interrupt();
        }
    }

    /// Flow is known again: writes the loss down.
    fn close_loss(&mut self) {
        if let Some(loss) = self.loss.take() {
            self.ledger.losses.push(Loss {
                reason: loss.reason,
                from: loss.from,
                to: self.packet_at.max(loss.from),
                bytes: loss.bytes,
                at: loss.at,
            });
            self.mark.interrupt();
            self.clock.found();
            let event = Event::Gap { reason: loss.reason, begin: loss.begin, bytes: loss.bytes };
            self.sink.event(event, self.mark);
        }
    }

    /// Goes on at an address that the trace itself gave.
    fn arrive(&mut self, ip: Ip) {
        self.cursor.place = Place::At(ip);
        if !self.code.has_code(ip) {
            self.lose(LossReason::NoImage, Place::NoImage);
        }
    }

    /// Flow begins anew at an address: after a loss, or at the unit's start.
    fn resync(&mut self, ip: Ip) {
        self.cursor.stack.clear();
        self.cursor.unknown_below = false;
        self.resume(ip);
    }

    /// Code without an image led to known code at an address. The TIP is taken for the last branch's: a deferred one, the
    /// outcomes behind which went by before it, cannot be told from others there.
    ///
    /// What was called and returned from is not known, and known code may have run in between that only TNT bits told of.
    /// But where control goes back to what an event interrupted, the stack is as it was.
    fn resume_from_unknown(&mut self, ip: Ip) {
        if self.cursor.interrupted.take() != Some(ip) {
            self.forget_stack();
        }
        self.resume(ip);
    }

    /// Code without an image called and returned.
    fn forget_stack(&mut self) {
        self.cursor.stack.clear();
        self.cursor.unknown_below = true;
    }

    /// Flow goes on at an address.
    fn resume(&mut self, ip: Ip) {
        self.close_loss();
        self.cursor.tnt.clear();
        self.cursor.interrupted = None;
        self.arrive(ip);
        if let Place::At(ip) = self.cursor.place {
            self.sink.event(Event::Sync { at: self.code.site(ip) }, self.mark);
        }
    }

    /// Counts and reports one transfer; the instruction itself is counted already.
    fn transfer(&mut self, kind: EdgeKind, insn: &Insn, to: Option<Ip>, taken: bool) {
        if self.timed {
            self.clock.date(self.mark.ordinal);
        }
        self.pass(kind, insn, to, taken);
    }

    /// As [`Self::transfer`], of a branch that no packet tells of: a CYC dates the one behind it.
    fn pass(&mut self, kind: EdgeKind, insn: &Insn, to: Option<Ip>, taken: bool) {
        self.row(kind, Some(Ip(insn.addr)), to, taken);
        let then = if taken { to } else { Some(Ip(insn.next())) };
        self.branched(kind, insn, to, then, taken);
    }

    /// A SYSCALL into traced code. Its row of the profile has no target.
    fn system_call(&mut self, insn: &Insn, to: Ip) {
        if self.timed {
            self.clock.date(self.mark.ordinal);
        }
        self.row(EdgeKind::Syscall, Some(Ip(insn.addr)), None, true);
        self.branched(EdgeKind::Syscall, insn, None, Some(to), true);
    }

    fn branched(&mut self, kind: EdgeKind, insn: &Insn, to: Option<Ip>, then: Option<Ip>, taken: bool) {
        if S::RUNS {
            let from = Ip(insn.addr);
            let branch = Branch {
                kind,
                mode: self.cursor.mode,
                from: self.code.site(from),
                next: self.code.code_addr(Ip(insn.next())),
                to: to.map(|to| self.code.site(to)),
                then: then.map(|then| self.code.code_addr(then)),
                taken,
            };
            self.sink.branch(&branch, self.mark);
        }
    }

    /// Counts a row of the profile.
    fn row(&mut self, kind: EdgeKind, from: Option<Ip>, to: Option<Ip>, taken: bool) {
        if !S::COUNTS {
            return;
        }
        let addr = |ip: Ip| self.code.code_addr(ip);
        self.graph.count_single(kind, from.map(addr), to.map(addr), taken);
    }
}

impl Pending {
    fn is_clean(&self) -> bool {
        self.fup.is_none() && self.mode.is_none() && self.psb.is_none()
    }
}

#[cfg(test)]
mod tests;
