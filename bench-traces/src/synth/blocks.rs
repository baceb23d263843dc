//! From machine code to blocks: straight code up to the first branch.

use ptflow_decoder::insn::{Class, InsnStream};
use ptflow_decoder::packet::ExecMode;
use rayon::prelude::*;
use std::ops::Range;

/// What ends a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
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
    /// What is not walked: system calls, traps, bytes that are no code.
    Dead,
}

/// Straight code and the branch at its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// First instruction.
    pub start: u64,
    /// The branch.
    pub last: u64,
    /// Behind the branch.
    pub next: u64,
    /// Target of a direct branch.
    pub target: u64,
    /// What ends it.
    pub end: End,
    /// Instructions.
    pub insns: u32,
    /// The function that it was found in, among all functions.
    pub function: u32,
    /// Nothing that is known leads here but an indirect jump of its function.
    pub is_case: bool,
}

/// A function's code.
#[derive(Clone, Debug)]
pub struct Function<'c> {
    /// Where it lies.
    pub range: Range<u64>,
    /// Its bytes.
    pub bytes: &'c [u8],
}

/// Finds all blocks of some functions: those that direct branches lead to, and those behind a branch that never falls
/// through, which are where `switch` statements lead. Sorted by address, as
/// the functions are.
pub fn find(functions: &[Function<'_>]) -> Vec<Block> {
    // First where blocks begin: a branch may lead into any function.
    let found: Vec<Leaders> = functions.par_iter().map(leaders).collect();
    let mut direct: Vec<u64> = found.iter().flat_map(|leaders| leaders.direct.iter().copied()).collect();
    direct.par_sort_unstable();
    direct.dedup();
    let blocks: Vec<Vec<Block>> = (functions.par_iter().zip(&found).enumerate())
        .map(|(index, (function, leaders))| {
            let range = &function.range;
            let own = direct.partition_point(|addr| *addr < range.start)
                ..direct.partition_point(|addr| *addr < range.end);
            let direct = &direct[own];
            let mut starts: Vec<(u64, bool)> = direct.iter().map(|addr| (*addr, false)).collect();
            let cases = leaders.behind.iter().filter(|addr| direct.binary_search(addr).is_err());
            starts.extend(cases.map(|addr| (*addr, true)));
            starts.sort_unstable();
            starts.iter().map(|(start, is_case)| block(function, *start, index as u32, *is_case)).collect()
        })
        .collect();
    blocks.concat()
}

#[derive(Debug, Default)]
struct Leaders {
    /// Where direct branches lead, and what lies behind branches that come back or fall through.
    direct: Vec<u64>,
    /// What lies behind branches that do neither.
    behind: Vec<u64>,
}

fn leaders(function: &Function<'_>) -> Leaders {
    let Function { range, bytes } = function;
    let mut leaders = Leaders { direct: vec![range.start], behind: Vec::new() };
    let mut is_behind = false;
    for insn in InsnStream::new(bytes, range.start, ExecMode::Bits64) {
        // Padding is no place to begin.
        let at = (insn.addr - range.start) as usize;
        if is_behind && !is_padding(&bytes[at..at + usize::from(insn.len)]) {
            leaders.behind.push(insn.addr);
            is_behind = false;
        }
        match insn.class {
            Class::Jcc { target } | Class::Call { target } => leaders.direct.extend([target, insn.next()]),
            Class::CallInd => leaders.direct.push(insn.next()),
            Class::Jmp { target } => {
                leaders.direct.push(target);
                is_behind = true;
            }
            Class::JmpInd | Class::Ret => is_behind = true,
            _ => {}
        }
    }
    leaders
}

/// The NOPs that compilers align code with.
fn is_padding(insn: &[u8]) -> bool {
    let skip = insn.iter().take_while(|byte| matches!(byte, 0x66 | 0x2e)).count();
    matches!(insn[skip..], [0x90] | [0x0f, 0x1f, ..])
}

fn block(function: &Function<'_>, start: u64, index: u32, is_case: bool) -> Block {
    let dead = Block {
        start,
        last: start,
        next: start,
        target: 0,
        end: End::Dead,
        insns: 0,
        function: index,
        is_case,
    };
    let bytes = function.bytes.get((start - function.range.start) as usize..).unwrap_or(&[]);
    let stream = InsnStream::new(bytes, start, ExecMode::Bits64);
    for (insns, insn) in (1..).zip(stream) {
        let (end, target) = match insn.class {
            Class::Plain => continue,
            Class::Jcc { target } => (End::Jcc, target),
            Class::Jmp { target } => (End::Jmp, target),
            Class::Call { target } => (End::Call, target),
            Class::JmpInd => (End::JmpInd, 0),
            Class::CallInd => (End::CallInd, 0),
            Class::Ret => (End::Ret, 0),
            _ => break,
        };
        return Block { last: insn.addr, next: insn.next(), target, end, insns, ..dead };
    }
    dead
}
