//! Where a walk stands: all the state that the two walkers hand to each other.

use crate::graph::{NOWHERE, NodeId};
use crate::packet::{ExecMode, LastIp};
use crate::units::Ip;

/// Branch outcomes that were read but not yet consumed; the oldest is the top bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct TntQueue {
    pub bits: u64,
    pub count: u32,
}

impl TntQueue {
    /// Takes in a packet's outcomes. The queue is empty before: a TNT packet follows only when all bits of the one
    /// before are consumed.
    #[inline]
    pub fn load(&mut self, bits: u64, count: u32) {
        debug_assert!(self.count == 0 && (1..=47).contains(&count));
        self.bits = bits << (64 - count);
        self.count = count;
    }

    /// The oldest outcome, which leaves the queue.
    #[inline]
    pub fn take(&mut self) -> Option<bool> {
        (self.count > 0).then(|| self.shift() != 0)
    }

    /// The same of a queue that is not empty: 1 = taken.
    #[inline]
    pub fn shift(&mut self) -> usize {
        debug_assert!(self.count > 0);
        let bit = self.bits >> 63;
        self.bits <<= 1;
        self.count -= 1;
        bit as usize
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// An address on the return stack. Each walker pushes what it has at hand and resolves the other's on the pop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ReturnAddress {
    Node(NodeId),
    Ip(Ip),
}

/// The CPU's return stack for RET compression: 64 deep; pushing on a full one drops the oldest.
///
/// SDM: "Indirect Transfer Compression for Returns". Popped at every near RET, compressed or not.
#[derive(Clone, Debug)]
pub(crate) struct ReturnStack {
    slots: [ReturnAddress; Self::DEPTH],
    top: u8,
    depth: u8,
}

impl ReturnStack {
    const DEPTH: usize = 64;

    pub fn new() -> Self {
        Self { slots: [ReturnAddress::Node(NOWHERE); Self::DEPTH], top: 0, depth: 0 }
    }

    #[inline]
    pub fn push(&mut self, address: ReturnAddress) {
        self.top = (self.top + 1) % Self::DEPTH as u8;
        self.slots[usize::from(self.top) % Self::DEPTH] = address;
        self.depth = (self.depth + 1).min(Self::DEPTH as u8);
    }

    #[inline]
    pub fn pop(&mut self) -> Option<ReturnAddress> {
        if self.depth == 0 {
            return None;
        }
        let address = self.slots[usize::from(self.top) % Self::DEPTH];
        self.top = self.top.wrapping_sub(1) % Self::DEPTH as u8;
        self.depth -= 1;
        Some(address)
    }

    /// The youngest address, which stays.
    #[inline]
    pub fn top(&self) -> Option<ReturnAddress> {
        (self.depth > 0).then(|| self.slots[usize::from(self.top) % Self::DEPTH])
    }

    /// How many addresses are on it.
    pub fn depth(&self) -> usize {
        usize::from(self.depth)
    }

    /// The address below so many others, after the stack was higher by `rise` on the way, which drops the oldest.
    pub fn below(&self, others: usize, rise: u8) -> Option<ReturnAddress> {
        let depth = usize::from(self.depth).min(Self::DEPTH.saturating_sub(usize::from(rise)));
        (others < depth).then(|| self.slots[usize::from(self.top).wrapping_sub(others) % Self::DEPTH])
    }

    /// Pops nodes, youngest first ([`NOWHERE`] stands for any address), after the stack was higher by `rise` on the
    /// way. False, and nothing done, where it does not hold them.
    #[inline]
    pub fn pop_all(&mut self, nodes: &[NodeId], rise: u8) -> bool {
        let depth = self.depth.min((Self::DEPTH as u8).saturating_sub(rise));
        if nodes.len() > usize::from(depth) {
            return false;
        }
        for (index, &node) in nodes.iter().enumerate() {
            let slot = self.slots[usize::from(self.top).wrapping_sub(index) % Self::DEPTH];
            if node != NOWHERE && slot != ReturnAddress::Node(node) {
                return false;
            }
        }
        self.top = self.top.wrapping_sub(nodes.len() as u8) % Self::DEPTH as u8;
        self.depth = depth - nodes.len() as u8;
        true
    }

    /// Tells stacks with different youngest addresses apart, mostly.
    pub fn top_hash(&self) -> u64 {
        let hash = |others| match self.below(others, 0) {
            Some(ReturnAddress::Node(node)) => u64::from(node.0),
            Some(ReturnAddress::Ip(ip)) => ip.0,
            None => 0,
        };
        (hash(0) << 32 ^ hash(1)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    pub fn clear(&mut self) {
        self.depth = 0;
    }

    /// Turns nodes into addresses: what they stand for is about to change.
    pub fn resolve(&mut self, ip_of: impl Fn(NodeId) -> Option<Ip>) {
        for slot in &mut self.slots {
            if let ReturnAddress::Node(node) = *slot
                && let Some(ip) = ip_of(node)
            {
                *slot = ReturnAddress::Ip(ip);
            }
        }
    }
}

/// Whether the walk knows where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// Tracing is off, or nothing was seen yet.
    Off,
    /// Tracing is on and the next instruction is here.
    At(Ip),
    /// Tracing is on, in code that no image holds.
    NoImage,
    /// Flow is lost: packets are skipped until one says where it goes on.
    Lost,
    /// Behind an OVF: a FUP or a TIP.PGE tells where it goes on.
    Overflowed,
}

/// The state of a walk between two packets.
#[derive(Clone, Debug)]
pub(crate) struct Cursor {
    pub place: Place,
    pub mode: ExecMode,
    pub last_ip: LastIp,
    /// False where bytes were skipped: compressed addresses mean nothing until one stands alone.
    pub last_ip_known: bool,
    pub tnt: TntQueue,
    pub stack: ReturnStack,
    /// Where an event interrupted known code, while code without an image runs.
    pub interrupted: Option<Ip>,
    /// Below the stack's last address lie some of code without an image: a return to them leads there.
    pub unknown_below: bool,
}

impl Cursor {
    pub fn new() -> Self {
        Self {
            place: Place::Off,
            mode: ExecMode::Bits64,
            last_ip: LastIp(0),
            last_ip_known: true,
            tnt: TntQueue::default(),
            stack: ReturnStack::new(),
            interrupted: None,
            unknown_below: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_stack_drops_the_oldest() {
        let mut stack = ReturnStack::new();
        for ip in 0..70 {
            stack.push(ReturnAddress::Ip(Ip(ip)));
        }
        for ip in (6..70).rev() {
            assert_eq!(stack.pop(), Some(ReturnAddress::Ip(Ip(ip))));
        }
        assert_eq!(stack.pop(), None);
        stack.push(ReturnAddress::Ip(Ip(1)));
        stack.clear();
        assert_eq!(stack.pop(), None);
    }

    /// A window's net effect against its pushes and pops one by one, whatever drops out of the full stack on the way.
    #[test]
    fn many_at_once_do_what_they_do_one_by_one() {
        for before in [0u32, 1, 3, 60, 62, 63, 64, 70] {
            for (first_pops, rise, pops) in [(0, 0, 1), (1, 0, 1), (0, 3, 2), (2, 3, 1), (1, 1, 3), (0, 5, 4)]
            {
                let mut stack = ReturnStack::new();
                (1..=before).for_each(|node| stack.push(ReturnAddress::Node(NodeId(node))));
                let mut one_by_one = stack.clone();
                let mut popped = Vec::new();
                popped.extend((0..first_pops).map(|_| one_by_one.pop()));
                (0..first_pops + rise).for_each(|_| one_by_one.push(ReturnAddress::Node(NodeId(1000))));
                (0..first_pops + rise).for_each(|_| _ = one_by_one.pop());
                popped.extend((0..pops).map(|_| one_by_one.pop()));
                let below: Vec<_> = (0..popped.len()).map(|others| stack.below(others, rise)).collect();
                let nodes: Option<Vec<_>> = (popped.iter())
                    .map(|address| match address {
                        Some(ReturnAddress::Node(node)) => Some(*node),
                        _ => None,
                    })
                    .collect();
                let Some(nodes) = nodes else {
                    assert!(!stack.pop_all(&vec![NOWHERE; popped.len()], rise));
                    continue;
                };
                assert_eq!(below, popped);
                let mut wrong = nodes.clone();
                wrong[0] = NodeId(999);
                assert!(!stack.pop_all(&wrong, rise));
                let mut loose = stack.clone();
                assert!(stack.pop_all(&nodes, rise) && loose.pop_all(&vec![NOWHERE; nodes.len()], rise));
                let rest =
                    |stack: &mut ReturnStack| -> Vec<_> { std::iter::from_fn(|| stack.pop()).collect() };
                let expected = rest(&mut one_by_one);
                assert_eq!((rest(&mut stack), rest(&mut loose)), (expected.clone(), expected));
            }
        }
    }

    #[test]
    fn outcomes_leave_oldest_first() {
        let mut queue = TntQueue::default();
        queue.load(0b110, 3);
        assert_eq!(
            [queue.take(), queue.take(), queue.take(), queue.take()],
            [Some(true), Some(true), Some(false), None]
        );
    }
}
