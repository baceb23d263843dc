//! Stacks worked out by hand, on a program worked out by hand.

use super::*;
use crate::attr::{Attr, sample_type};
use crate::bytes::{Fields, Put};
use crate::record::{BranchStack, branch_sample_type as bst};
use ptflow_decoder::image::{AddressSpace, CodeImage, CodeRegion, Images, Mapping};
use ptflow_decoder::profile::{CodeAddr, EdgeKind, TraceRow};
use ptflow_decoder::units::{ImageId, Ip, Svma};

/// ```text
/// 1000  nop
/// 1001  call 1010
/// 1006  dec ecx
/// 1008  jne 1006
/// 100a  syscall
/// 100c  nop
/// 100d  ret
/// 1010  nop; nop
/// 1012  ret
/// ```
const CODE: [u8; 0x13] =
    [0x90, 0xe8, 0x0a, 0, 0, 0, 0xff, 0xc9, 0x75, 0xfc, 0x0f, 0x05, 0x90, 0xc3, 0xcc, 0xcc, 0x90, 0x90, 0xc3];
/// Where the program's address 0 is mapped.
const BIAS: u64 = 0x5600_0000_0000;
const KERNEL: u64 = 0xffff_ffff_8100_0000;

/// An entry: from, to, flags.
type Entry = (u64, u64, u64);

const MISPREDICTED: u64 = 1;
const ABORT: u64 = 1 << 3;
const IRQ: u64 = 12 << 20;
const WRONG_PATH: u64 = 1 << 24;

/// The edge table of stacks, written youngest first.
fn profile(kind: u64, stacks: &[&[Entry]]) -> StackProfile {
    let attr = Attr { sample_type: sample_type::BRANCH_STACK, branch_sample_type: kind, ..Attr::default() };
    let mut traces = Traces::default();
    for stack in stacks {
        let mut bytes = Vec::new();
        bytes.u64(stack.len() as u64);
        for (from, to, flags) in *stack {
            bytes.u64(runtime(*from));
            bytes.u64(runtime(*to));
            bytes.u64(*flags);
        }
        let stack = BranchStack::read(&mut Fields(&bytes), 0).expect("a stack");
        traces.sample(&stack, &attr, 0);
    }
    let mapping =
        Mapping { start: Ip(BIAS + 0x1000), end: Ip(BIAS + 0x2000), image: ImageId(0), svma: Svma(0x1000) };
    traces.spaces = vec![AddressSpace::new([mapping])];
    let mut images = Images::default();
    images.push(CodeImage::new(vec![CodeRegion { start: Svma(0x1000), bytes: &CODE }]));
    // A branch with the code behind it: each is in the edges, too.
    let mut rows = Vec::new();
    let profile = resolve_each(&traces, &images, |row| rows.push(row));
    let sum = |is: &dyn Fn(&EdgeRow) -> bool| -> u64 {
        profile.rows.iter().filter(|row| is(row)).map(|row| row.taken).sum()
    };
    let count = |is: &dyn Fn(&TraceRow) -> bool| -> u64 {
        rows.iter().filter(|row| is(row)).map(|row| row.count).sum()
    };
    assert_eq!(count(&|row| row.kind != EdgeKind::Range), sum(&|row| row.kind != EdgeKind::Range));
    assert_eq!(count(&|row| row.end.is_some()), sum(&|row| row.kind == EdgeKind::Range));
    profile
}

fn runtime(addr: u64) -> u64 {
    if addr >= KERNEL { addr } else { addr + BIAS }
}

/// Rows as text: kind, from, to, taken, not taken, mispredicted.
fn text(profile: &StackProfile) -> Vec<String> {
    let addr = |addr: Option<CodeAddr>| match addr {
        None => "-".to_owned(),
        Some(CodeAddr { image: Some(_), addr }) => format!("{addr:x}"),
        Some(CodeAddr { image: None, addr }) if addr >= KERNEL => "kernel".to_owned(),
        Some(CodeAddr { image: None, addr }) => format!("?{:x}", addr - BIAS),
    };
    let row = |row: &EdgeRow| {
        let (from, to) = (addr(row.from), addr(row.to));
        format!("{} {from} {to} {} {} {}", row.kind.name(), row.taken, row.not_taken, row.mispredicted)
    };
    profile.rows.iter().map(row).collect()
}

const ANY: u64 = bst::USER | bst::ANY;

#[test]
fn youngest_first() {
    // Call, return, one more round, out of the loop and back: the return ends the last stretch.
    let stack =
        [(0x100d, 0x9000, 0), (0x1008, 0x1006, MISPREDICTED), (0x1012, 0x1006, 0), (0x1001, 0x1010, 0)];
    let expected = [
        "jcc 1008 1006 1 1 1",
        "call 1001 1010 1 0 0",
        "ret 100d ?9000 1 0 0",
        "ret 1012 1006 1 0 0",
        "range 1006 1008 1 0 0",
        // Over the branch that fell through, and the system call, which user code alone does not show.
        "range 1006 100d 1 0 0",
        "range 1010 1012 1 0 0",
    ];
    assert_eq!(text(&profile(ANY, &[&stack])), expected);
    // Twice the same, and empty stacks between.
    let twice = profile(ANY | bst::HW_INDEX, &[&stack, &[], &stack]);
    assert_eq!(twice.sums.samples, 3);
    assert_eq!(text(&twice), expected.map(|row| row.replace(" 1 0 0", " 2 0 0").replace(" 1 1 1", " 2 2 2")));
    // Where not every branch is recorded, nothing is known of the code between.
    let calls = profile(bst::USER | 1 << 4, &[&stack]);
    assert_eq!((text(&calls).len(), calls.sums.ranges), (4, 0));
}

#[test]
fn a_youngest_entry_that_is_there_twice() {
    // No way leads from 1010 to 1001.
    let repeated = profile(ANY, &[&[(0x1001, 0x1010, 0), (0x1001, 0x1010, 0), (0x100d, 0x1000, 0)]]);
    assert_eq!(text(&repeated), ["call 1001 1010 2 0 0", "ret 100d 1000 1 0 0", "range 1000 1001 1 0 0"]);
    let StackSums { repeated, ranges, impossible_ranges, .. } = repeated.sums;
    assert_eq!((repeated, ranges, impossible_ranges), (1, 2, 1));
    // A loop's branch may well be.
    let round = profile(ANY, &[&[(0x1008, 0x1006, 0), (0x1008, 0x1006, 0)]]);
    assert_eq!(text(&round), ["jcc 1008 1006 2 0 0", "range 1006 1008 1 0 0"]);
}

#[test]
fn into_the_kernel_and_back() {
    // An interruption at 1006, and one for a system call; inside the kernel nothing is known.
    let stack = [
        (0x100d, 0x9000, 0),
        (KERNEL + 9, 0x100c, 0),
        (KERNEL + 4, KERNEL + 8, 0),
        (0x100a, KERNEL, 0),
        (KERNEL + 7, 0x1006, 0),
        (0x1006, KERNEL + 5, 0),
        (0x1012, 0x1006, 0),
    ];
    let profile = profile(ANY | bst::KERNEL, &[&stack]);
    let expected = [
        "jcc 1008 1006 0 1 0",
        "ret 100d ?9000 1 0 0",
        "ret 1012 1006 1 0 0",
        "syscall 100a - 1 0 0",
        "far kernel 1006 1 0 0",
        "far kernel 100c 1 0 0",
        "async 1006 kernel 1 0 0",
        "range 1006 100a 1 0 0",
        "range 100c 100d 1 0 0",
    ];
    assert_eq!(text(&profile), expected);
    // From the return to where it was interrupted is no stretch to a branch.
    let StackSums { entries, outside, impossible, impossible_ranges, .. } = profile.sums;
    assert_eq!((entries, outside, impossible, impossible_ranges), (7, 1, 0, 1));
}

#[test]
fn what_never_ran_is_a_barrier() {
    let wrong = [(0x1008, 0x1006, 0), (0x1001, 0x1010, WRONG_PATH), (0x1012, 0x1006, 0)];
    let wrong = profile(ANY, &[&wrong]);
    assert_eq!(text(&wrong), ["jcc 1008 1006 1 0 0", "ret 1012 1006 1 0 0"]);
    assert_eq!((wrong.sums.wrong_path, wrong.sums.ranges), (1, 0));
    for flag in [ABORT, IRQ] {
        let left = profile(ANY, &[&[(0x1008, 0x1006, 0), (0x1011, 0x1006, flag), (0x1001, 0x1010, 0)]]);
        let expected =
            ["jcc 1008 1006 1 0 0", "call 1001 1010 1 0 0", "async 1011 1006 1 0 0", "range 1006 1008 1 0 0"];
        assert_eq!(text(&left), expected);
    }
}

#[test]
fn the_code_decides() {
    // AMD names what a branch is fused with.
    let fused = profile(ANY, &[&[(0x1006, 0x1006, 0), (0x1012, 0x1006, 0)]]);
    assert_eq!(text(&fused), ["jcc 1008 1006 1 0 0", "ret 1012 1006 1 0 0", "range 1006 1008 1 0 0"]);
    // A call that goes elsewhere, a branch where there is none, an address inside an instruction.
    let other = profile(ANY, &[&[(0x1001, 0x1000, 0)], &[(0x1010, 0x1000, 0)], &[(0x1002, 0x1000, 0)]]);
    assert_eq!((text(&other).len(), other.sums.impossible), (0, 3), "{:?}", text(&other));
    // From code that is not known: behind a call it is a return.
    let unknown = profile(ANY, &[&[(0x9000, 0x1006, 0), (0x9004, 0x1000, 0), (0x9000, 0x9004, 0)]]);
    assert_eq!(text(&unknown), ["call_ind ?9004 1000 1 0 0", "ret ?9000 1006 1 0 0"]);
    assert_eq!(unknown.sums.outside, 1);
    // Flow does not run on behind a call.
    let over = profile(ANY, &[&[(0x1008, 0x1006, 0), (0x9000, 0x1000, 0)]]);
    assert_eq!((over.sums.ranges, over.sums.impossible_ranges), (1, 1));
}

#[test]
fn active_calls_are_no_flow() {
    let stack = [(0x1001, 0x1010, 0), (0x9000, 0x1000, 0)];
    let profile = profile(ANY | bst::CALL_STACK, &[&stack]);
    assert_eq!((profile.rows.len(), profile.sums.call_stacks, profile.sums.samples), (0, 1, 1));
}

#[test]
fn tables_do_not_grow_without_end() {
    let attr = Attr { sample_type: sample_type::BRANCH_STACK, branch_sample_type: ANY, ..Attr::default() };
    const MOST: u64 = 1 << 12;
    let mut all = Traces::default();
    for round in 0..3u64 {
        let mut table = Traces::default();
        for at in 0..MOST / 2 {
            let mut bytes = Vec::new();
            [1, round << 32 | at, 0, 0].into_iter().for_each(|word| bytes.u64(word));
            table.sample(&BranchStack::read(&mut Fields(&bytes), 0).expect("a stack"), &attr, 0);
        }
        all.add(table, MOST as usize);
    }
    assert_eq!((all.counts.len(), all.sums.too_many), (MOST as usize, MOST / 2));
}
