//! A sample profile by hand: a function with another one inlined, as text and in binary form.

use ptflow_decoder::image::{CodeImage, CodeRegion};
use ptflow_decoder::units::Svma;
use ptflow_exporters::flow::{Flow, Taken};
use ptflow_exporters::ranges::{Entered, StraightRange};
use ptflow_exporters::sample_profile::{Frame, SampleProfile, SourceLines};
use ptflow_exporters::{llvm_extbinary, llvm_text};

/// ```text
/// 1000  nop            outer, line 1
/// 1001  nop            inlined at line 2: inner, line 0
/// 1002  jne 1001       inner, line 1, block 1
/// 1004  call 1010      outer, line 3, of which there are two copies
/// 1009  ret            outer, line 4
/// 1010  ret            leaf, line 0
/// ```
const CODE: [u8; 0x11] =
    [0x90, 0x90, 0x75, 0xfd, 0xe8, 7, 0, 0, 0, 0xc3, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xc3];

struct Source;

fn frame(function: &'static str, line: u32, discriminator: u32) -> Frame<'static> {
    Frame { function, declared: 7, line, discriminator }
}

impl SourceLines<'static> for Source {
    fn frames(&self, addr: u64, frames: &mut Vec<Frame<'static>>) {
        *frames = match addr {
            0x1000 => vec![frame("outer", 1, 0)],
            0x1001 => vec![frame("outer", 2, 0), frame("inner", 0, 0)],
            0x1002 => vec![frame("outer", 2, 0), frame("inner", 1, 2)],
            0x1004 => vec![frame("outer", 3, 1 | 4 << 1)],
            0x1009 => vec![frame("outer", 4, 0)],
            0x1010 => vec![frame("leaf.llvm.7", 0, 0)],
            _ => Vec::new(),
        };
    }

    fn entered_at(&self, addr: u64) -> Option<&'static str> {
        [(0x1000, "outer"), (0x1010, "leaf.llvm.7")]
            .into_iter()
            .find(|entry| entry.0 == addr)
            .map(|entry| entry.1)
    }

    fn ranges_around(&self, addr: u64) -> Vec<(u64, u64)> {
        vec![if addr < 0x1010 { (0x1000, 0x100a) } else { (0x1010, 0x1011) }]
    }
}

fn profile() -> SampleProfile<'static> {
    let mut flow = Flow::default();
    for (from, to, count) in [(None, 0x1000, 3), (Some(0x1002), 0x1001, 30), (Some(0x1004), 0x1010, 2)] {
        flow.branches.insert((from, Some(to)), Taken { count, mispredicted: 0 });
    }
    let (jump, through) = (Entered::Jump, Entered::Through);
    for (start, end, entered, count) in [
        (0x1000, 0x1002, jump, 3),
        (0x1001, 0x1002, jump, 30),
        (0x1002, 0x1004, through, 2),
        (0x1010, 0x1010, jump, 2),
    ] {
        flow.ranges.counts.insert(StraightRange { start, end, entered }, count);
    }
    let code = CodeImage::new(vec![CodeRegion { start: Svma(0x1000), bytes: &CODE }]);
    SampleProfile::new(&flow, &code, &Source)
}

#[test]
fn as_text() {
    let mut out = Vec::new();
    llvm_text::write(&mut out, &profile()).expect("a Vec takes all");
    // Totals are by byte: 3 + 33 + 2 x 33 + 5 x 2. Line 4 never ran.
    let expected = "outer:112:3\n \
                    1: 3\n \
                    3: 4 leaf:2\n \
                    4: 0\n \
                    2: inner:99\n  \
                    0: 33\n  \
                    1.1: 33\n\
                    leaf:2:2\n \
                    0: 2\n";
    assert_eq!(String::from_utf8(out).expect("text"), expected);
}

#[test]
fn in_binary_form() {
    let mut out = Vec::new();
    llvm_extbinary::write(&mut out, &profile()).expect("a Vec takes all");
    // The magic number SPROF42 and 4 as ULEB128, and the version.
    assert_eq!(out[..10], [132, 228, 208, 177, 244, 201, 148, 168, 83, 103]);
    let word = |at: usize| u64::from_le_bytes(out[at..at + 8].try_into().expect("8 bytes"));
    let sections: Vec<[u64; 4]> =
        (0..word(10) as usize).map(|n| [0, 8, 16, 24].map(|at| word(18 + 32 * n + at))).collect();
    assert_eq!(sections.iter().map(|section| section[0]).collect::<Vec<_>>(), [1, 2, 4, 32]);
    assert!(sections.windows(2).all(|pair| pair[0][2] + pair[0][3] == pair[1][2]), "one behind the other");
    assert_eq!(sections[3][2] + sections[3][3], out.len() as u64);
    let bytes = |n: usize| &out[sections[n][2] as usize..][..sections[n][3] as usize];
    // Total, maximum, most calls, lines, functions: 3 + 4 + 0 + 33 + 33 + 2.
    assert_eq!(bytes(0)[..5], [75, 33, 3, 6, 2]);
    assert_eq!(bytes(1), b"\x03inner\0leaf\0outer\0");
    assert_eq!(bytes(2), [2, 2, 0, 1, 33]);
    let outer = [
        3, 2, 112, 3, 1, 0, 3, 0, 3, 0, 4, 1, 1, 2, 4, 0, 0, 0, // own lines
        1, 2, 0, 0, 99, 2, 0, 0, 33, 0, 1, 1, 33, 0, 0, // inner
    ];
    assert_eq!(bytes(3)[..outer.len()], outer);
    assert_eq!(bytes(3)[outer.len()..], [2, 1, 2, 1, 0, 0, 2, 0, 0]);
}
