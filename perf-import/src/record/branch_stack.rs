//! Branch stacks (LBR and its like): the last taken branches before a sample, youngest first.
//!
//! Layout: linux `include/uapi/linux/perf_event.h`, `struct perf_branch_entry`.

use crate::bytes::{Fields, Put, Words};
use ptflow_decoder::units::Ip;

/// What a branch stack holds, bits of an attr's `branch_sample_type` (`PERF_SAMPLE_BRANCH_*`).
pub mod branch_sample_type {
    #![allow(missing_docs, reason = "the kernel's names: PERF_SAMPLE_BRANCH_*")]
    pub const USER: u64 = 1 << 0;
    pub const KERNEL: u64 = 1 << 1;
    pub const HV: u64 = 1 << 2;
    pub const ANY: u64 = 1 << 3;
    pub const CALL_STACK: u64 = 1 << 11;
    pub const NO_FLAGS: u64 = 1 << 14;
    pub const NO_CYCLES: u64 = 1 << 15;
    pub const TYPE_SAVE: u64 = 1 << 16;
    pub const HW_INDEX: u64 = 1 << 17;
    pub const PRIV_SAVE: u64 = 1 << 18;
    pub const COUNTERS: u64 = 1 << 19;

    /// The names that perf's `-j` has for the bits (linux `tools/perf/util/parse-branch-options.c`), lowest bit first.
    pub fn names(bits: u64) -> Vec<&'static str> {
        const NAMES: [&str; 20] = [
            "u",
            "k",
            "hv",
            "any",
            "any_call",
            "any_ret",
            "ind_call",
            "abort_tx",
            "in_tx",
            "no_tx",
            "cond",
            "stack",
            "ind_jmp",
            "call",
            "no_flags",
            "no_cycles",
            "save_type",
            "hw_index",
            "priv",
            "counter",
        ];
        (0..).zip(NAMES).filter(|(bit, _)| bits >> bit & 1 != 0).map(|(_, name)| name).collect()
    }
}

/// One taken branch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BranchEntry {
    /// The branch instruction.
    pub from: Ip,
    /// Where it went.
    pub to: Ip,
    /// The rest, as the kernel packs it; read by the methods.
    pub flags: u64,
}

impl BranchEntry {
    fn bits(&self, from: u32, count: u32) -> u64 {
        self.flags >> from & ((1 << count) - 1)
    }

    /// It went another way than predicted.
    pub fn mispredicted(&self) -> bool {
        self.bits(0, 1) != 0
    }

    /// It went as predicted. Neither this nor the other: the CPU does not tell.
    pub fn predicted(&self) -> bool {
        self.bits(1, 1) != 0
    }

    /// In a memory transaction.
    pub fn in_tx(&self) -> bool {
        self.bits(2, 1) != 0
    }

    /// A memory transaction was aborted.
    pub fn abort(&self) -> bool {
        self.bits(3, 1) != 0
    }

    /// Core cycles since the older entry's branch; 0 where not known. Saturates at 65,535.
    pub fn cycles(&self) -> u16 {
        self.bits(4, 16) as u16
    }

    /// Kind of branch (`PERF_BR_*`); 0 where not known.
    pub fn kind(&self) -> u8 {
        self.bits(20, 4) as u8
    }

    /// Speculation: 0 not known, 1 wrong path, 2 retired without, 3 retired with.
    pub fn speculation(&self) -> u8 {
        self.bits(24, 2) as u8
    }

    /// It lies on a path that was predicted and not taken: no branch that ran.
    pub fn is_wrong_path(&self) -> bool {
        self.speculation() == 1
    }

    /// Further kinds (`PERF_BR_NEW_*`), where `kind` is 15.
    pub fn new_kind(&self) -> u8 {
        self.bits(26, 4) as u8
    }

    /// Privilege: 0 not known, 1 user, 2 kernel, 3 hypervisor.
    pub fn privilege(&self) -> u8 {
        self.bits(30, 3) as u8
    }
}

const ENTRY_WORDS: usize = 3;

/// The branch stack of a sample.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BranchStack<'m> {
    /// Position in the hardware's ring, where the event asks for it; -1 (as u64) where not known.
    pub hw_index: Option<u64>,
    entries: Words<'m>,
    /// Event counts of each entry, packed, where the event asks for them.
    pub counters: Option<Words<'m>>,
}

impl<'m> BranchStack<'m> {
    /// A stack of those entries, of three words each, and nothing beside them.
    pub(crate) fn new(entries: Words<'m>) -> Self {
        Self { hw_index: None, entries, counters: None }
    }

    /// Reads a stack as an event with that `branch_sample_type` records it.
    pub(crate) fn read(f: &mut Fields<'m>, branch_sample_type: u64) -> Option<Self> {
        let count = f.u64()?;
        let hw_index =
            if branch_sample_type & branch_sample_type::HW_INDEX != 0 { Some(f.u64()?) } else { None };
        let entries = f.words(count.checked_mul(ENTRY_WORDS as u64)?)?;
        let counters =
            if branch_sample_type & branch_sample_type::COUNTERS != 0 { Some(f.words(count)?) } else { None };
        Some(Self { hw_index, entries, counters })
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.u64(self.len() as u64);
        if let Some(index) = self.hw_index {
            out.u64(index);
        }
        out.bytes(self.entries.bytes());
        if let Some(counters) = self.counters {
            out.bytes(counters.bytes());
        }
    }

    /// How many entries.
    pub fn len(&self) -> usize {
        self.entries.len() / ENTRY_WORDS
    }

    /// True where there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// An entry; 0 is the youngest.
    pub fn get(&self, index: usize) -> Option<BranchEntry> {
        let word = |n: usize| self.entries.get(index.checked_mul(ENTRY_WORDS)? + n);
        Some(BranchEntry { from: Ip(word(0)?), to: Ip(word(1)?), flags: word(2)? })
    }

    /// All entries, youngest first.
    pub fn iter(&self) -> impl Iterator<Item = BranchEntry> + use<'m> {
        let this = *self;
        (0..this.len()).map_while(move |index| this.get(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_where_the_kernel_has_them() {
        // As a C compiler lays out struct perf_branch_entry with mispred, abort, cycles 0x1234, type 6 (ret), spec 2,
        // new_type 5, priv 1.
        let entry = BranchEntry { from: Ip(1), to: Ip(2), flags: 0x5661_2349 };
        assert!(entry.mispredicted() && !entry.predicted() && !entry.in_tx() && entry.abort());
        assert_eq!((entry.cycles(), entry.kind(), entry.speculation()), (0x1234, 6, 2));
        assert_eq!((entry.new_kind(), entry.privilege()), (5, 1));
    }

    #[test]
    fn parts_come_and_go_with_the_event() {
        for kind in 0..4u64 {
            let (index, counters) = (kind & 1 != 0, kind & 2 != 0);
            let mut out = Vec::new();
            out.u64(2);
            if index {
                out.u64(u64::MAX);
            }
            (1..=6).for_each(|word| out.u64(word));
            if counters {
                out.u64(11);
                out.u64(12);
            }
            let asked = if index { branch_sample_type::HW_INDEX } else { 0 }
                | if counters { branch_sample_type::COUNTERS } else { 0 };
            let mut f = Fields(&out);
            let stack = BranchStack::read(&mut f, asked).unwrap();
            assert!(f.0.is_empty());
            assert_eq!(stack.hw_index, index.then_some(u64::MAX));
            assert_eq!(
                stack.iter().map(|e| (e.from.0, e.to.0, e.flags)).collect::<Vec<_>>(),
                [(1, 2, 3), (4, 5, 6)]
            );
            assert_eq!(stack.counters.map(|words| words.iter().collect()), counters.then_some(vec![11, 12]));
            let mut again = Vec::new();
            stack.write(&mut again);
            assert_eq!(again, out);
            for len in 0..out.len() {
                assert_eq!(BranchStack::read(&mut Fields(&out[..len]), asked), None);
            }
        }
        for count in [u64::MAX, u64::MAX / 3, 1 << 61] {
            assert_eq!(BranchStack::read(&mut Fields(&count.to_le_bytes()), 0), None);
        }
    }
}
