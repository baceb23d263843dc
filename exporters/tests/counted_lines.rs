//! Plain counted lines, by hand.

use ptflow_decoder::image::{CodeImage, CodeRegion};
use ptflow_decoder::units::Svma;
use ptflow_exporters::counted_lines::{write_autofdo, write_unsymbolized};
use ptflow_exporters::flow::{Flow, Taken};
use ptflow_exporters::ranges::{Entered, StraightRange};

/// dec ecx; jne 1006; nop; ret
const CODE: [u8; 6] = [0xff, 0xc9, 0x75, 0xfc, 0x90, 0xc3];

fn code() -> CodeImage<'static> {
    CodeImage::new(vec![CodeRegion { start: Svma(0x1006), bytes: &CODE }])
}

fn flow() -> Flow {
    let mut flow = Flow::default();
    let taken = |count| Taken { count, mispredicted: 1 };
    flow.branches.insert((None, Some(0x1006)), taken(2));
    flow.branches.insert((Some(0x1008), Some(0x1006)), taken(8));
    flow.branches.insert((Some(0x100b), None), taken(3));
    flow.came_back.insert(0x100a, 4);
    let ranges = [
        (0x1006, 0x1008, Entered::Jump, 8),
        (0x1006, 0x1008, Entered::Return, 2),
        (0x1008, 0x100b, Entered::Through, 2),
    ];
    for (start, end, entered, count) in ranges {
        flow.ranges.counts.insert(StraightRange { start, end, entered }, count);
    }
    flow
}

#[test]
fn for_llvm_profgen() {
    let mut out = Vec::new();
    write_unsymbolized(&mut out, &flow(), &code()).expect("a Vec takes all");
    let expected =
        "2\n1006-1008:10\n100a-100b:2\n3\n1008->1006:8\nfffffffffffff001->1006:2\nfffffffffffff001->100a:4\n";
    assert_eq!(String::from_utf8(out).expect("text"), expected);
}

#[test]
fn for_autofdo() {
    let mut out = Vec::new();
    write_autofdo(&mut out, &flow(), &code()).expect("a Vec takes all");
    let expected = "2\n1006-1008:10\n100a-100b:2\n0\n1\n1008->1006:8\n";
    assert_eq!(String::from_utf8(out).expect("text"), expected);
}
