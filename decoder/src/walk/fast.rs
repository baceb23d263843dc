//! The fast walker: TNT and TIP packets over the block graph.
//!
//! It stops in front of any packet, and at any node, that it does not know, and leaves the cursor as the careful
//! walker would have it there.
//!
//! Direct calls are stepped through only when the trace shows that a later branch was reached: an event may have come
//! before the call.

use super::cursor::{Cursor, Place, ReturnAddress};
use super::lanes::Bulk;
use super::{Engine, Walker};
use crate::graph::window::{Key, MTC};
use crate::graph::{Exit, NOWHERE, Node, NodeId};
use crate::packet::peek::{ip_payload_at, long_tnt_at, u64_at};
use crate::reader::MAX_PACKET;
use crate::sink::{Leave, Run, Sink};
use crate::units::{AuxOffset, Ip};

/// Ways into other images that may be stepped through for one packet.
const MAX_CROSSINGS: u32 = 10_000;

/// Why the walk over the graph stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stop {
    /// All outcomes, or all bytes, are used up.
    Hungry,
    /// The careful walker must go on.
    Careful,
}

impl<S: Sink> Walker<'_, '_, '_, S> {
    /// Walks as far as it can. The cursor stands at a known address before and behind.
    pub(super) fn fast(&mut self) {
        let Place::At(ip) = self.cursor.place else { return };
        let here = self.reader.at();
        let data = self.reader.rest();
        // Packets are read without looking at the end of the data each time. In damaged trace one could reach into
        // the next unit.
        let mut len = data.len();
        if here.piece == self.end.piece {
            len = len.min(self.end.byte.saturating_sub(here.byte));
        }
        let mut limit = len.saturating_sub(MAX_PACKET);
        if let Bulk::After(bytes) = self.bulk {
            limit = limit.min(bytes);
        }
        if limit == 0 {
            return;
        }
        let mut node = self.graph.node_at_ip(&self.code, self.cursor.mode, ip);
        if node == NOWHERE {
            return;
        }
        let mut budget = if let Engine::Interrupted(packets) = self.engine { packets } else { u32::MAX };
        let start = node;
        let data = &data[..limit + MAX_PACKET];
        let mut used = 0;
        if (S::CLOCK || S::RUNS) && !S::WINDOWS {
            self.packets::<false>(data, &mut used, limit, &mut node, &mut budget);
        } else {
            self.stretches(data, &mut used, limit, &mut node, &mut budget);
        }
        if let Bulk::After(bytes) = self.bulk {
            self.bulk = if used < bytes { Bulk::After(bytes - used) } else { Bulk::Soon };
        }
        self.ledger.decoded += used as u64;
        if node != start || used > 0 {
            self.advance_to(node, used);
        }
    }

    fn advance_to(&mut self, node: NodeId, bytes: usize) {
        self.advance_bytes(bytes);
        self.cursor.place = match self.graph.ip_of(node) {
            Some(ip) => Place::At(ip),
            None => Place::Lost,
        };
    }

    /// Follows the outcomes that are left in the queue.
    pub(super) fn rest_of_packet(&mut self) {
        if let Place::At(ip) = self.cursor.place {
            let mut node = self.graph.node_at_ip(&self.code, self.cursor.mode, ip);
            let data = self.reader.rest();
            if node != NOWHERE && data.len() > MAX_PACKET {
                let mut pos = 0;
                self.outcomes(&mut node, data, &mut pos);
                self.ledger.decoded += pos as u64;
                self.advance_to(node, pos);
            }
        }
        self.consume_tnt();
    }

    /// As [`Self::packets`], with windows where they are worth it.
    fn stretches(&mut self, data: &[u8], pos: &mut usize, limit: usize, node: &mut NodeId, budget: &mut u32) {
        let mut stop = Stop::Hungry;
        while stop == Stop::Hungry && *pos < limit && *budget > 0 {
            let (windows, bytes) = self.graph.memo.stretch();
            let start = *pos;
            let end = limit.min(*pos + bytes);
            stop = if windows {
                self.graph.before_bytes(end - *pos);
                self.packets::<true>(data, pos, end, node, budget)
            } else {
                self.packets::<false>(data, pos, end, node, budget)
            };
            self.graph.memo.walked(*pos - start);
        }
    }

    /// Takes packets from `data` as long as they begin before `limit`, or up to the first that it does not know.
    fn packets<const WINDOWS: bool>(
        &mut self,
        data: &[u8],
        at: &mut usize,
        limit: usize,
        node: &mut NodeId,
        budget: &mut u32,
    ) -> Stop {
        let mut pos = *at;
        let mut stop = Stop::Hungry;
        let mut left = *budget;
        while pos < limit && left > 0 {
            left -= 1;
            let head = data[pos];
            if WINDOWS
                && (head & 1 == 0 || head & 0x1f == 0x0d)
                && let Some(len) = self.window(data, pos, node)
            {
                pos += len;
                continue;
            }
            if head & 1 == 0 && head > 2 {
                // Short TNT: the stop bit is the top one set, the outcomes lie between it and bit 0.
                let count = 6 - head.leading_zeros();
                self.cursor.tnt.load(u64::from(head >> 1) & ((1 << count) - 1), count);
                let packet = pos;
                pos += 1;
                if self.outcomes(node, data, &mut pos) == Stop::Careful {
                    stop = self.stopped_in(packet);
                    break;
                }
                continue;
            }
            stop = Stop::Careful;
            if head & 0x1f == 0x0d {
                let Some((payload, len)) = ip_payload_at(data, pos) else { break };
                let mut last_ip = self.cursor.last_ip;
                let Some(ip) = last_ip.update(payload) else { break };
                let Some(target) = self.target(node, Ip(ip)) else { break };
                self.cursor.last_ip = last_ip;
                pos += len;
                *node = target;
                stop = Stop::Hungry;
                continue;
            }
            match self.timing(data, pos) {
                Some(len) => pos += len,
                None => {
                    let Some((bits, count)) = long_tnt_at(data, pos) else { break };
                    self.cursor.tnt.load(bits, count);
                    let packet = pos;
                    pos += 8;
                    if self.outcomes(node, data, &mut pos) == Stop::Careful {
                        self.stopped_in(packet);
                        break;
                    }
                }
            }
            stop = Stop::Hungry;
        }
        (*at, *budget) = (pos, left);
        stop
    }

    /// Takes the packets at `pos` that a window holds; gives their length.
    #[inline]
    fn window(&mut self, data: &[u8], pos: usize, node: &mut NodeId) -> Option<usize> {
        let bytes = [u64_at(data, pos), u64_at(data, pos + 8)];
        let Cursor { mode, last_ip, stack, .. } = &mut self.cursor;
        let key = Key::new(bytes, *node, self.graph.space, *last_ip)?;
        let (len, next, ip, slot) = self.graph.window(&self.code, &key, *mode, *last_ip, stack)?;
        (*node, *last_ip) = (next, ip);
        if S::WINDOWS {
            self.tell_window(slot);
        }
        Some(len)
    }

    /// Reports a window that was walked. There is no timing packet in it: what is pending dates its first transfer.
    #[inline]
    fn tell_window(&mut self, slot: usize) {
        let learnt;
        let effect = match self.graph.memo.effect(slot) {
            Some(effect) => effect,
            None => {
                let Some(effect) = self.graph.learn_effect(slot, self.sink) else { return };
                learnt = effect;
                &learnt
            }
        };
        self.clock.date(self.mark.ordinal + u64::from(effect.first));
        self.sink.window(&effect.kept, self.mark);
        self.mark.ordinal += u64::from(effect.insns);
    }

    /// The careful walker goes on with the outcomes of the packet at `pos`.
    #[cold]
    fn stopped_in(&mut self, pos: usize) -> Stop {
        self.packet_at = AuxOffset(self.reader.offset().0.wrapping_add(pos as u64));
        Stop::Careful
    }

    /// Follows the outcomes in the queue.
    #[inline]
    fn outcomes(&mut self, at: &mut NodeId, data: &[u8], pos: &mut usize) -> Stop {
        let mut node = *at;
        let mut tnt = self.cursor.tnt;
        let mut crossings = 0;
        // Outside of the loop of conditional branches the ordinal is in the mark.
        let mut ordinal = self.mark.ordinal;
        // Only the first transfer of a packet can be the one behind timing packets.
        let mut is_dated = !self.clock.waits();
        let stop = loop {
            // Four of five exits: outside of the jump table below they save 6 % of a profile's time.
            let nodes = self.graph.nodes.as_mut_slice();
            let this = loop {
                if tnt.count == 0 {
                    break None;
                }
                let this = &mut nodes[node.0 as usize];
                if this.exit != Exit::Jcc || S::BRANCHES && (S::CLOCK || S::RUNS) || S::RUNS && this.crosses()
                {
                    break Some(this);
                }
                let taken = tnt.shift();
                if S::COUNTS {
                    this.count[taken] += 1;
                }
                node = this.succ[taken];
                if S::CLOCK || S::RUNS {
                    ordinal += u64::from(this.insns);
                    if !is_dated {
                        self.clock.date(ordinal);
                        is_dated = true;
                    }
                }
            };
            let Some(this) = this else { break Stop::Hungry };
            if S::CLOCK || S::RUNS {
                self.mark.ordinal = ordinal;
            }
            match this.exit {
                Exit::Jcc => {
                    let taken = tnt.shift();
                    if S::COUNTS {
                        this.count[taken] += 1;
                    }
                    let (next, insns) = (this.succ[taken], this.insns);
                    let leave = if taken == 1 { Leave::Taken } else { Leave::NotTaken };
                    self.ran(node, insns, Exit::Jcc, leave, true);
                    node = next;
                }
                Exit::Ret => {
                    if tnt.bits >> 63 == 0 {
                        break Stop::Careful;
                    }
                    let insns = this.insns;
                    let Some(target) = self.returned(node) else { break Stop::Careful };
                    tnt.shift();
                    self.ran(node, insns, Exit::Ret, Leave::To(target), true);
                    node = target;
                }
                Exit::Call | Exit::Link => node = self.step_free(node),
                Exit::Cross if crossings < MAX_CROSSINGS => {
                    crossings += 1;
                    let Some(target) = self.step_across(node) else { break Stop::Careful };
                    node = target;
                }
                Exit::Unbuilt => self.graph.build(&self.code, node),
                Exit::CallInd | Exit::JmpInd => {
                    // A deferred TIP; anything else here is the careful walker's to judge.
                    let head = data[*pos];
                    if *pos + MAX_PACKET > data.len() || head & 0x1f != 0x0d {
                        break Stop::Careful;
                    }
                    let Some((payload, len)) = ip_payload_at(data, *pos) else { break Stop::Careful };
                    let mut last_ip = self.cursor.last_ip;
                    let Some(ip) = last_ip.update(payload) else { break Stop::Careful };
                    let Some(target) = self.target(&mut node, Ip(ip)) else { break Stop::Careful };
                    self.cursor.last_ip = last_ip;
                    *pos += len;
                    node = target;
                }
                Exit::Stop | Exit::Endless | Exit::Cross => break Stop::Careful,
            }
            ordinal = self.mark.ordinal;
            is_dated = !self.clock.waits();
        };
        if S::CLOCK || S::RUNS {
            self.mark.ordinal = ordinal;
        }
        self.cursor.tnt = tnt;
        *at = node;
        stop
    }

    /// Reports a node that was left.
    #[inline(always)]
    fn ran(&mut self, node: NodeId, insns: u16, exit: Exit, leave: Leave, consumed: bool) {
        self.passed(insns, consumed);
        if S::RUNS {
            self.sink.run(Run { graph: self.graph, node, exit, leave }, self.mark);
        }
    }

    /// So many instructions were executed.
    #[inline(always)]
    fn passed(&mut self, insns: u16, consumed: bool) {
        if S::CLOCK || S::RUNS {
            self.mark.ordinal += u64::from(insns);
            if consumed {
                self.clock.date(self.mark.ordinal);
            }
        }
    }

    /// Counts a transfer for the graph's sums.
    #[inline(always)]
    fn count_target(&mut self, from: NodeId, to: NodeId) {
        if S::COUNTS {
            self.graph.count_target(from, to);
        }
    }

    /// Through a direct call or a link.
    #[inline]
    fn step_free(&mut self, node: NodeId) -> NodeId {
        let this = &mut self.graph.nodes[node.0 as usize];
        if S::COUNTS {
            this.count[0] += 1;
        }
        let (next, ret, insns) = (this.succ[0], this.ret, this.insns);
        if this.exit == Exit::Call {
            self.cursor.stack.push(ReturnAddress::Node(ret));
            self.ran(node, insns, Exit::Call, Leave::Direct, false);
        } else {
            self.ran(node, insns, Exit::Link, Leave::Direct, false);
        }
        next
    }

    /// Into another image, where the careful walker need not look.
    #[cold]
    fn step_across(&mut self, node: NodeId) -> Option<NodeId> {
        let target = self.graph.cross(&self.code, node);
        if target == NOWHERE {
            return None;
        }
        let Node { ret, insns, .. } = *self.graph.node(node);
        let by = self.graph.crossing_kind(node);
        // A call to the next instruction has none.
        if ret != NOWHERE {
            self.cursor.stack.push(ReturnAddress::Node(ret));
        }
        self.count_target(node, target);
        let leave = if by.is_some() { Leave::To(target) } else { Leave::Direct };
        self.ran(node, insns, Exit::Cross, leave, false);
        Some(target)
    }

    /// Pops the return address of a compressed RET and counts the return; `None` leaves the stack as it was.
    #[inline]
    fn returned(&mut self, node: NodeId) -> Option<NodeId> {
        let target = match self.cursor.stack.top()? {
            ReturnAddress::Node(target) => target,
            ReturnAddress::Ip(ip) => self.graph.node_at_ip(&self.code, self.cursor.mode, ip),
        };
        if target == NOWHERE {
            return None;
        }
        self.cursor.stack.pop();
        self.count_target(node, target);
        Some(target)
    }

    /// Takes a TIP: walks from `node` to the instruction that it belongs to, and through it. `None` where the careful
    /// walker must look; `node` is then as far as the walk is sure.
    #[inline]
    fn target(&mut self, node: &mut NodeId, ip: Ip) -> Option<NodeId> {
        // First, for an address that no CPU sends proves no step.
        let target = self.graph.node_at_ip(&self.code, self.cursor.mode, ip);
        if target == NOWHERE {
            return None;
        }
        let mut crossings = 0;
        loop {
            let this = &self.graph.nodes[node.0 as usize];
            match this.exit {
                Exit::JmpInd | Exit::CallInd | Exit::Ret => break,
                Exit::Call | Exit::Link => *node = self.step_free(*node),
                Exit::Cross if crossings < MAX_CROSSINGS => {
                    crossings += 1;
                    *node = self.step_across(*node)?;
                }
                Exit::Unbuilt => self.graph.build(&self.code, *node),
                _ => return None,
            }
        }
        let this = self.graph.nodes[node.0 as usize];
        match this.exit {
            Exit::CallInd => self.cursor.stack.push(ReturnAddress::Node(this.ret)),
            // SDM: every near RET pops, compressed or not.
            Exit::Ret => _ = self.cursor.stack.pop(),
            _ => {}
        }
        self.count_target(*node, target);
        self.ran(*node, this.insns, this.exit, Leave::To(target), true);
        Some(target)
    }

    /// Takes a timing packet or padding; gives its length, or `None` for any other packet.
    #[inline]
    fn timing(&mut self, data: &[u8], pos: usize) -> Option<usize> {
        let head = data[pos];
        if head & 3 == 3 {
            return self.cyc(data, pos);
        }
        match head {
            0 => Some(1),
            MTC => {
                if self.timed {
                    self.clock.mtc(data[pos + 1], self.mark.ordinal);
                    self.settle_clock();
                }
                Some(2)
            }
            0x19 => {
                if self.timed {
                    let payload = u64_at(data, pos) >> 8;
                    self.clock.tsc(payload, self.mark.ordinal);
                    self.settle_clock();
                }
                Some(8)
            }
            _ => None,
        }
    }

    #[inline]
    fn cyc(&mut self, data: &[u8], pos: usize) -> Option<usize> {
        let head = data[pos];
        let mut value = u64::from(head >> 3);
        let mut len = 1;
        let mut more = head & 4 != 0;
        while more {
            // Nine bytes hold 61 bits; of a longer one the lexer knows what fits in 64.
            if len == 9 {
                return None;
            }
            let byte = data[pos + len];
            value |= u64::from(byte >> 1) << (7 * len - 2);
            more = byte & 1 != 0;
            len += 1;
        }
        if len == 2 && self.errata.skd007 && data[pos + 1..pos + 3] == [0x02, 0xf3] {
            return None;
        }
        if self.timed {
            self.clock.cyc(value);
        }
        Some(len)
    }
}
