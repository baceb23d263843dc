//! A window: some bytes of trace, and what walking them does.
//!
//! Where the walk stands, the next bytes, the last IP and the return addresses that are popped say all that TNT and TIP
//! packets do. So code that repeats itself need be walked once; then a window is counted, and its packets are not even
//! told apart. What the window leads to is a pure function of [`Key`] and of the popped addresses.

use super::{Exit, Graph, NOWHERE, NodeId};
use crate::code::CodeView;
use crate::packet::peek::{ip_payload_at, long_tnt_at};
use crate::packet::{ExecMode, LastIp};
use crate::units::Ip;
use crate::walk::cursor::{ReturnAddress, ReturnStack};

/// Bytes that a window looks at. With 8 the look-ups double, with 32 they miss too often.
pub(crate) const WINDOW: usize = 16;
/// Return addresses that a window may pop and push, in all.
pub(super) const RETURNS: usize = 4;
/// Words of a path.
pub(super) const PATH: usize = 64;

/// The first byte of an MTC. Nothing of it, nor of what lies behind it, is in a window: its payload is another each time.
pub(crate) const MTC: u8 = 0x59;

/// What a window's effect depends on, besides the return addresses it pops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Key {
    /// The next bytes; those from the first that may be an MTC's head on are all such heads.
    pub bytes: [u64; 2],
    /// Where the walk stands.
    pub node: NodeId,
    /// The address space: targets of TIPs lie in it.
    pub space: u32,
    /// The last IP without its low 16 bits, which every TIP tells.
    pub last_ip: u32,
}

impl Key {
    /// The key at some bytes; `None` where the last IP is none of 48 bits.
    #[inline]
    pub fn new(bytes: [u64; 2], node: NodeId, space: u32, last_ip: LastIp) -> Option<Self> {
        let is_short = ((last_ip.0 << 16) as i64 >> 16) as u64 == last_ip.0;
        let key = Self { bytes: without_mtc(bytes), node, space, last_ip: (last_ip.0 >> 16) as u32 };
        is_short.then_some(key)
    }

    #[inline]
    pub(super) fn hash(&self) -> u64 {
        let state = u64::from(self.node.0).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let [low, high] = self.bytes;
        let product = u128::from(low ^ state) * u128::from(high ^ 0x9e37_79b9_7f4a_7c15);
        (product >> 64) as u64 ^ product as u64
    }

    /// Bytes that packets of the window may fill.
    fn limit(&self) -> usize {
        let bytes = self.bytes.map(u64::to_le_bytes);
        bytes.as_flattened().iter().position(|&byte| byte == MTC).unwrap_or(WINDOW)
    }
}

/// Makes all bytes from the first MTC's head on such heads.
#[inline]
fn without_mtc([low, high]: [u64; 2]) -> [u64; 2] {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HEADS: u64 = ONES * MTC as u64;
    // The bits below the lowest byte that is such a head; all bits where none is.
    let below = |bytes: u64| {
        let differing = bytes ^ HEADS;
        let found = differing.wrapping_sub(ONES) & !differing & (ONES << 7);
        (found & found.wrapping_neg()).wrapping_sub(1) >> 7
    };
    let low_kept = below(low);
    // `below` gives 57 bits where there is no head.
    let low_kept = if low_kept >> 56 != 0 { u64::MAX } else { low_kept };
    let high_kept = below(high);
    let high_kept = if high_kept >> 56 != 0 { u64::MAX } else { high_kept };
    let high_kept = if low_kept == u64::MAX { high_kept } else { 0 };
    [low & low_kept | HEADS & !low_kept, high & high_kept | HEADS & !high_kept]
}

/// What walking a window does: one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Window {
    pub(super) bytes: [u64; 2],
    pub(super) node: NodeId,
    pub(super) space: u32,
    pub(super) last_ip_before: u32,
    /// Where the walk stands behind it.
    pub next: NodeId,
    /// The last IP behind it.
    pub last_ip: LastIp,
    /// Walks not yet counted in the nodes.
    pub(super) count: u32,
    /// The addresses popped, youngest first ([`NOWHERE`]: whatever it is), then those pushed.
    returns: [NodeId; RETURNS],
    /// Bytes of its packets; 0 in a free slot.
    pub used: u8,
    pops: u8,
    pushes: u8,
    /// How much higher the stack was on the way than before.
    rise: u8,
}

/// The exits of a window's nodes, in order: `node << 2 | exit`, where exit 0 and 1 are the node's counters, and
/// [`TO`] an exit to the node in the next word. The first word is the number of those behind it.
pub(super) type Path = [u32; PATH];

/// An exit whose target is told.
pub(super) const TO: u32 = 2;

impl Window {
    pub(super) const FREE: Self = Self {
        bytes: [0; 2],
        node: NOWHERE,
        space: 0,
        last_ip_before: 0,
        next: NOWHERE,
        last_ip: LastIp(0),
        count: 0,
        returns: [NOWHERE; RETURNS],
        used: 0,
        pops: 0,
        pushes: 0,
        rise: 0,
    };

    /// Whether it is that of the key, as long as the return addresses are too.
    #[inline]
    pub(super) fn is_at(&self, key: &Key) -> bool {
        let differing = (self.bytes[0] ^ key.bytes[0])
            | (self.bytes[1] ^ key.bytes[1])
            | u64::from((self.node.0 ^ key.node.0) | (self.space ^ key.space))
            | u64::from(self.last_ip_before ^ key.last_ip);
        differing == 0 && self.used > 0
    }

    /// Does to the stack what the window does; false, and nothing done, where the stack does not fit.
    #[inline]
    pub(super) fn apply(&self, stack: &mut ReturnStack) -> bool {
        if self.pops | self.pushes | self.rise == 0 {
            return true;
        }
        let (pops, rest) = self.returns.split_at(usize::from(self.pops).min(RETURNS));
        if !stack.pop_all(pops, self.rise) {
            return false;
        }
        for node in &rest[..usize::from(self.pushes).min(rest.len())] {
            stack.push(ReturnAddress::Node(*node));
        }
        true
    }
}

/// A dry walk: nothing is counted.
#[derive(Clone, Copy)]
struct State {
    node: NodeId,
    last_ip: LastIp,
    at: usize,
    pops: [NodeId; RETURNS],
    popped: usize,
    pushes: [NodeId; 2 * RETURNS],
    pushed: usize,
    rise: usize,
    path_len: usize,
}

struct DryWalk<'g, 'c, 'a, 'm> {
    graph: &'g mut Graph,
    code: &'c CodeView<'a, 'm>,
    stack: &'c ReturnStack,
    mode: ExecMode,
    bytes: [u8; 2 * WINDOW],
    limit: usize,
    path: &'g mut Path,
    now: State,
}

/// Walks the window at `key` without counting; `None` where not even its first packet can be walked so. Its path comes
/// out in `path`.
pub(super) fn learn(
    graph: &mut Graph,
    code: &CodeView<'_, '_>,
    key: &Key,
    mode: ExecMode,
    last_ip: LastIp,
    stack: &ReturnStack,
    path: &mut Path,
) -> Option<Window> {
    let mut bytes = [0; 2 * WINDOW];
    bytes[..8].copy_from_slice(&key.bytes[0].to_le_bytes());
    bytes[8..WINDOW].copy_from_slice(&key.bytes[1].to_le_bytes());
    let start = State {
        node: key.node,
        last_ip,
        at: 0,
        pops: [NOWHERE; RETURNS],
        popped: 0,
        pushes: [NOWHERE; 2 * RETURNS],
        pushed: 0,
        rise: 0,
        path_len: 0,
    };
    let limit = key.limit();
    let mut walk = DryWalk { graph, code, stack, mode, bytes, limit, path, now: start };
    let mut done = start;
    while walk.now.at < limit && walk.packet().is_some() {
        if walk.now.popped + walk.now.pushed <= RETURNS {
            done = walk.now;
        }
    }
    path[0] = done.path_len as u32;
    let mut returns = [NOWHERE; RETURNS];
    returns[..done.popped].copy_from_slice(&done.pops[..done.popped]);
    returns[done.popped..done.popped + done.pushed].copy_from_slice(&done.pushes[..done.pushed]);
    (done.at > 0).then_some(Window {
        bytes: key.bytes,
        node: key.node,
        space: key.space,
        last_ip_before: key.last_ip,
        next: done.node,
        last_ip: done.last_ip,
        count: 0,
        returns,
        used: done.at as u8,
        pops: done.popped as u8,
        pushes: done.pushed as u8,
        rise: done.rise as u8,
    })
}

impl DryWalk<'_, '_, '_, '_> {
    fn packet(&mut self) -> Option<()> {
        let head = self.bytes[self.now.at];
        if head & 1 == 0 && head > 2 {
            let count = 6 - head.leading_zeros();
            self.now.at += 1;
            return self.outcomes(u64::from(head >> 1) & ((1 << count) - 1), count);
        }
        if head & 0x1f == 0x0d {
            return self.tip();
        }
        let (bits, count) = long_tnt_at(&self.bytes, self.now.at)?;
        self.now.at += 8;
        if self.now.at > self.limit {
            return None;
        }
        self.outcomes(bits, count)
    }

    fn outcomes(&mut self, bits: u64, count: u32) -> Option<()> {
        let mut left = count;
        while left > 0 {
            let node = self.now.node;
            let this = self.graph.nodes[node.0 as usize];
            match this.exit {
                Exit::Jcc => {
                    left -= 1;
                    let taken = bits >> left & 1;
                    self.record(node, taken as u32)?;
                    self.now.node = this.succ[taken as usize];
                }
                Exit::Ret => {
                    left -= 1;
                    if bits >> left & 1 == 0 {
                        return None;
                    }
                    let target = self.pop(true)?;
                    self.record_to(node, target)?;
                    self.now.node = target;
                }
                Exit::CallInd | Exit::JmpInd => self.tip()?,
                _ => self.free()?,
            }
        }
        Some(())
    }

    /// Takes the TIP at hand.
    fn tip(&mut self) -> Option<()> {
        let (payload, len) = ip_payload_at(&self.bytes, self.now.at)?;
        if self.bytes[self.now.at] & 0x1f != 0x0d || self.now.at + len > self.limit {
            return None;
        }
        self.now.at += len;
        let ip = self.now.last_ip.update(payload)?;
        let target = self.graph.node_at_ip(self.code, self.mode, Ip(ip));
        if target == NOWHERE {
            return None;
        }
        loop {
            let node = self.now.node;
            let this = self.graph.nodes[node.0 as usize];
            match this.exit {
                Exit::CallInd => self.push(this.ret)?,
                Exit::Ret => _ = self.pop(false)?,
                Exit::JmpInd => {}
                _ => {
                    self.free()?;
                    continue;
                }
            }
            self.record_to(node, target)?;
            self.now.node = target;
            return Some(());
        }
    }

    /// Goes on where nothing is consumed.
    fn free(&mut self) -> Option<()> {
        let node = self.now.node;
        let this = self.graph.nodes[node.0 as usize];
        match this.exit {
            Exit::Unbuilt => self.graph.build(self.code, node),
            Exit::Call | Exit::Link => {
                if this.exit == Exit::Call {
                    self.push(this.ret)?;
                }
                self.record(node, 0)?;
                self.now.node = this.succ[0];
            }
            _ => return None,
        }
        Some(())
    }

    fn push(&mut self, node: NodeId) -> Option<()> {
        let now = &mut self.now;
        *now.pushes.get_mut(now.pushed)? = node;
        now.pushed += 1;
        now.rise = now.rise.max(now.pushed.saturating_sub(now.popped));
        Some(())
    }

    /// Pops an address; where the window did not push it, it must be there, and be the same each time if it `counts`.
    fn pop(&mut self, counts: bool) -> Option<NodeId> {
        let now = &mut self.now;
        if now.pushed > 0 {
            now.pushed -= 1;
            return Some(now.pushes[now.pushed]);
        }
        let address = self.stack.below(now.popped, now.rise as u8)?;
        let slot = now.pops.get_mut(now.popped)?;
        now.popped += 1;
        if counts {
            *slot = match address {
                ReturnAddress::Node(node) => node,
                ReturnAddress::Ip(ip) => self.graph.node_at_ip(self.code, self.mode, ip),
            };
            return (*slot != NOWHERE).then_some(*slot);
        }
        *slot = NOWHERE;
        Some(NOWHERE)
    }

    fn record(&mut self, node: NodeId, exit: u32) -> Option<()> {
        let word = node.0.checked_mul(4)? | exit;
        self.now.path_len += 1;
        *self.path.get_mut(self.now.path_len)? = word;
        Some(())
    }

    fn record_to(&mut self, node: NodeId, to: NodeId) -> Option<()> {
        self.record(node, TO)?;
        self.now.path_len += 1;
        *self.path.get_mut(self.now.path_len)? = to.0;
        Some(())
    }
}

/// Counts a path in the nodes, so many times.
pub(super) fn count(graph: &mut Graph, path: &Path, times: u64) {
    let len = (path[0] as usize).min(PATH - 1);
    let mut words = path[1..=len].iter();
    while let Some(&word) = words.next() {
        let node = NodeId(word >> 2);
        if word & 3 == TO {
            let Some(&to) = words.next() else { break };
            graph.count_targets(node, NodeId(to), times);
        } else {
            graph.nodes[node.0 as usize].count[(word & 1) as usize] += times;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_from_an_mtc_on_is_looked_at(
            bytes in prop::array::uniform16(prop::sample::select(vec![0u8, 0x58, MTC, 0x5a, 0xd9, 0xff, 1])),
        ) {
            let mut expected = bytes;
            if let Some(first) = bytes.iter().position(|&byte| byte == MTC) {
                expected[first..].fill(MTC);
            }
            let words = |bytes: [u8; 16]| {
                let (low, high) = bytes.split_at(8);
                [low, high].map(|half| u64::from_le_bytes(half.try_into().expect("eight bytes")))
            };
            prop_assert_eq!(without_mtc(words(bytes)), words(expected));
        }
    }
}
