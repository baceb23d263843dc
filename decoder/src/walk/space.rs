//! Whose code runs, and what is mapped: looked up where a packet says that control comes from elsewhere.

use super::Walker;
use crate::image::{AddressSpace, AddressSpaces};
use crate::packet::Packet;
use crate::sink::{Event, Sink};
use crate::units::Tsc;

/// So many packets are looked at for the next time.
const MAX_AHEAD: usize = 256;

impl<'a, S: Sink> Walker<'_, 'a, '_, S> {
    /// Chooses owner and address space, by the place and the time of the last packet.
    pub(super) fn choose_space(&mut self) {
        self.choose_owner();
        let versions = self.context.spaces.versions();
        if !self.timed || versions.len() < 2 {
            return;
        }
        let index = self.version(self.context.spaces);
        if index != self.space {
            self.space = index;
            self.enter_space(&versions[index].1);
        }
    }

    fn enter_space(&mut self, space: &'a AddressSpace) {
        self.cursor.stack.resolve(|node| self.graph.ip_of(node));
        self.code.space = space;
        self.graph.enter(space, self.cursor.mode);
    }

    /// Whose code the last packet is of. The CPU's own state (return stack, last IP, mode) goes on from thread to thread.
    pub(super) fn choose_owner(&mut self) {
        let owners = self.context.owners;
        let next = self.owner.map_or(0, |owner| owner + 1);
        let begun = owners.get(next..).map_or(0, |rest| match rest.first() {
            Some(first) if first.from <= self.packet_at => {
                rest.partition_point(|owner| owner.from <= self.packet_at)
            }
            _ => 0,
        });
        if begun == 0 {
            return;
        }
        let index = next + begun - 1;
        let was_wanted = self.owner.is_none_or(|owner| owners[owner].wanted);
        self.owner = Some(index);
        let owner = &owners[index];
        self.context.spaces = owner.spaces;
        self.space = 0;
        self.enter_space(first_space(owner.spaces));
        if owner.wanted != was_wanted
            && let Some(other) = &mut self.unwanted
        {
            std::mem::swap(&mut self.graph, other);
            self.graph.enter(self.code.space, self.cursor.mode);
        }
        self.sink.event(Event::Owner { thread: owner.thread }, self.mark);
    }

    /// Index of the version that holds here. A packet's time is that of the last timing packet, and what is mapped changes
    /// in the kernel, while tracing is off: a change between that time and the next that is told was before the packet,
    /// unless tracing goes off once more before then.
    fn version(&self, spaces: &AddressSpaces) -> usize {
        let now = self.clock.now();
        let index = spaces.index_at(now);
        if now.is_none() || spaces.versions().len() == index + 1 {
            return index;
        }
        self.next_time().map_or(index, |next| spaces.index_at(Some(next)))
    }

    /// The next time that a packet tells, if tracing stays on until then.
    fn next_time(&self) -> Option<Tsc> {
        let mut ahead = self.reader.clone();
        for _ in 0..MAX_AHEAD {
            let (packet, len) = ahead.read()?.ok()?;
            match packet {
                Packet::Tsc { tsc } => return self.clock.tsc_ahead(tsc),
                Packet::Mtc { ctc } => return self.clock.mtc_ahead(ctc),
                Packet::TipPgd(_) | Packet::Ovf | Packet::Psb | Packet::Tma { .. } => return None,
                _ => ahead.skip(len),
            };
        }
        None
    }
}

pub(super) fn first_space(spaces: &AddressSpaces) -> &AddressSpace {
    static NO_SPACE: AddressSpace = AddressSpace::empty();
    spaces.versions().first().map_or(&NO_SPACE, |version| &version.1)
}
