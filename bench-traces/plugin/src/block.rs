//! Translated blocks: what the exec callback needs to know of each, worked out once.

use ptflow_decoder::insn::{Class, decode};
use ptflow_decoder::packet::ExecMode;

/// What ends a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Nothing: the emulator cut it off, and the next block goes on behind it.
    Straight,
    /// A `rep` string instruction: comes back as a block of its own until it is done.
    Rep,
    /// Conditional branch.
    Jcc,
    /// Direct jump.
    Jmp,
    /// Direct call.
    Call,
    /// Indirect jump.
    JmpInd,
    /// Indirect call.
    CallInd,
    /// Near return.
    Ret,
    /// SYSCALL.
    Syscall,
    /// INT n and other far transfers.
    Far,
}

/// A translated block. Blocks are made at translation and never freed: QEMU may run an old one at any time.
#[derive(Debug)]
pub struct Block {
    /// Index among all blocks.
    pub id: u32,
    /// First instruction.
    pub start: u64,
    /// Last instruction.
    pub last: u64,
    /// Behind the last instruction.
    pub next: u64,
    /// Target of a direct branch.
    pub target: u64,
    /// What ends it.
    pub end: End,
    /// Instructions.
    pub insns: u32,
    /// Core cycles that it takes, in the model of time.
    pub cycles: u32,
    /// Where each instruction begins, from `start`.
    pub offsets: Box<[u16]>,
}

impl Block {
    /// A block of these instructions: address and bytes of each.
    pub fn new(id: u32, insns: &[(u64, &[u8])]) -> Self {
        let (start, last, bytes) = match insns {
            [] => (0, 0, &[][..]),
            [(start, _), ..] => {
                let (last, bytes) = insns[insns.len() - 1];
                (*start, last, bytes)
            }
        };
        let decoded = decode(bytes, last, ExecMode::Bits64);
        let (end, target) = match decoded.map(|insn| insn.class) {
            Some(Class::Jcc { target }) => (End::Jcc, target),
            Some(Class::Jmp { target }) => (End::Jmp, target),
            Some(Class::Call { target }) => (End::Call, target),
            Some(Class::JmpInd) => (End::JmpInd, 0),
            Some(Class::CallInd) => (End::CallInd, 0),
            Some(Class::Ret) => (End::Ret, 0),
            Some(Class::Syscall) => (End::Syscall, 0),
            Some(Class::Far | Class::Int) => (End::Far, 0),
            _ if is_rep_string(bytes) => (End::Rep, 0),
            _ => (End::Straight, 0),
        };
        let count = insns.len() as u32;
        // Two instructions a cycle, one cycle a branch, and a stall in some blocks, always the same.
        let stall = if start.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61 == 0 { 9 } else { 0 };
        let cycles = count / 2 + 1 + stall;
        let offsets = insns.iter().map(|insn| (insn.0 - start) as u16).collect();
        Self { id, start, last, next: last + bytes.len() as u64, target, end, insns: count, cycles, offsets }
    }
}

/// REP, REPE or REPNE before a string instruction (SDM vol. 2, "REP/REPE/REPZ/REPNE/REPNZ").
fn is_rep_string(bytes: &[u8]) -> bool {
    let mut rep = false;
    for byte in bytes {
        match byte {
            0xf2 | 0xf3 => rep = true,
            0x66 | 0x67 | 0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65 | 0x40..=0x4f => {}
            0x6c..=0x6f | 0xa4..=0xa7 | 0xaa..=0xaf => return rep,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_instructions() {
        assert!(is_rep_string(&[0xf3, 0x48, 0xab]));
        assert!(is_rep_string(&[0xf2, 0xae]));
        assert!(!is_rep_string(&[0xab]));
        assert!(!is_rep_string(&[0xf3, 0x0f, 0x6f, 0x00]));
        let block = Block::new(3, &[(0x1000, &[0x90]), (0x1001, &[0x75, 0x02])]);
        assert_eq!((block.end, block.target, block.next, block.insns), (End::Jcc, 0x1005, 0x1003, 2));
    }
}
