//! Plain counted lines, by hand.

use ptflow_exporters::counted_lines::{write_autofdo, write_unsymbolized};
use ptflow_exporters::flow::{Flow, Taken};
use ptflow_exporters::ranges::StraightRange;

fn flow() -> Flow {
    let mut flow = Flow::default();
    let taken = |count| Taken { count, mispredicted: 1 };
    flow.branches.insert((None, Some(0x1000)), taken(2));
    flow.branches.insert((Some(0x1008), Some(0x1006)), taken(8));
    flow.branches.insert((Some(0x100d), None), taken(3));
    for (start, end, returned, count) in
        [(0x1006, 0x1008, false, 8), (0x1006, 0x1008, true, 2), (0xfff, 0x1001, false, 1)]
    {
        flow.ranges.counts.insert(StraightRange { start, end, returned }, count);
    }
    flow
}

#[test]
fn for_llvm_profgen() {
    let mut out = Vec::new();
    write_unsymbolized(&mut out, &flow()).expect("a Vec takes all");
    let expected = "2\nfff-1001:1\n1006-1008:10\n2\nfffffffffffff001->1000:2\n1008->1006:8\n";
    assert_eq!(String::from_utf8(out).expect("text"), expected);
}

#[test]
fn for_autofdo() {
    let mut out = Vec::new();
    write_autofdo(&mut out, &flow()).expect("a Vec takes all");
    let expected = "2\nfff-1001:1\n1006-1008:10\n0\n1\n1008->1006:8\n";
    assert_eq!(String::from_utf8(out).expect("text"), expected);
}
