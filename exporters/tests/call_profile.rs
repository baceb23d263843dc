//! Costs of stacks by hand: a thread, a function that calls itself, another one.

use flate2::read::MultiGzDecoder;
use ptflow_exporters::call_profile::{HEADER, StackCosts, StackFrame, Weight};
use ptflow_exporters::flow::{Flow, Taken};
use ptflow_exporters::pprof;
use ptflow_exporters::sample_profile::{Frame, SourceLines};
use std::io::Read;

fn costs() -> StackCosts {
    let frame = |parent, name, calls, instructions, ns| StackFrame { parent, name, calls, instructions, ns };
    StackCosts {
        names: ["thread", "f", "g;h"].map(str::to_owned).to_vec(),
        frames: vec![
            frame(None, 0, 0, 1, 0),
            frame(Some(0), 1, 2, 10, 100),
            frame(Some(1), 1, 3, 20, 200),
            frame(Some(2), 2, 4, 40, 0),
            frame(Some(0), 2, 1, 5, 7),
        ],
    }
}

fn text(write: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) -> String {
    let mut out = Vec::new();
    write(&mut out).expect("a Vec takes all");
    String::from_utf8(out).expect("text")
}

#[test]
fn by_function() {
    let expected = format!("{HEADER}\ng;h\t5\t45\t45\t7\t7\nf\t5\t30\t70\t300\t300\n");
    assert_eq!(text(|out| costs().write_functions(out)), expected);
}

#[test]
fn folded() {
    let expected = "thread 1\nthread;f 10\nthread;f;f 20\nthread;f;f;g:h 40\nthread;g:h 5\n";
    assert_eq!(text(|out| costs().write_folded(out, Weight::Instructions)), expected);
    assert_eq!(
        text(|out| costs().write_folded(out, Weight::Time)),
        "thread;f 100\nthread;f;f 200\nthread;g:h 7\n"
    );
}

fn unpacked(packed: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    MultiGzDecoder::new(packed).read_to_end(&mut bytes).expect("gzip");
    bytes
}

#[test]
fn for_pprof() {
    let mut packed = Vec::new();
    let costs = StackCosts { frames: costs().frames[..2].to_vec(), ..costs() };
    pprof::write_stacks(&mut packed, &costs).expect("a Vec takes all");
    let mut expected: Vec<u8> = Vec::new();
    // Types of samples: strings 1 to 5, of which count stands twice.
    for [name, unit] in [[1, 2], [3, 2], [4, 5]] {
        expected.extend([0x0a, 4, 0x08, name, 0x10, unit]);
    }
    // Functions by id, with names 6 to 8, each with a place of its own at no line.
    for id in 1..=3 {
        expected.extend([0x2a, 10, 0x08, id, 0x10, id + 5, 0x18, id + 5, 0x20, 0, 0x28, 0]);
        expected.extend([0x22, 8, 0x08, id, 0x22, 4, 0x08, id, 0x10, 0]);
    }
    expected.extend([0x12, 8, 0x0a, 1, 1, 0x12, 3, 0, 1, 0]);
    expected.extend([0x12, 9, 0x0a, 2, 2, 1, 0x12, 3, 2, 10, 100]);
    for text in ["", "calls", "count", "instructions", "time", "nanoseconds", "thread", "f", "g;h"] {
        expected.extend([0x32, text.len() as u8]);
        expected.extend(text.as_bytes());
    }
    assert_eq!(unpacked(&packed), expected);
}

struct Source;

impl SourceLines<'static> for Source {
    fn frames(&self, addr: u64, frames: &mut Vec<Frame<'static>>) {
        let frame = |function, declared, line| Frame { function, declared, line, discriminator: 0 };
        *frames = match addr {
            0x10 => vec![frame("caller", 100, 4), frame("inlined", 20, 3)],
            0x20 => vec![frame("callee", 50, 0)],
            _ => Vec::new(),
        };
    }

    fn entered_at(&self, addr: u64) -> Option<&'static str> {
        (addr == 0x20).then_some("callee")
    }

    fn ranges_around(&self, _: u64) -> Vec<(u64, u64)> {
        Vec::new()
    }
}

/// The callee's first line, then the call's line in what was inlined and where that was; no jump, and no call from nowhere.
#[test]
fn calls_for_go() {
    let mut flow = Flow::default();
    for (from, to) in
        [(Some(0x10), Some(0x20)), (Some(0x18), Some(0x10)), (None, Some(0x20)), (Some(0x30), Some(0x20))]
    {
        flow.branches.insert((from, to), Taken { count: 9, mispredicted: 0 });
    }
    let mut packed = Vec::new();
    pprof::write_calls(&mut packed, &flow, &Source).expect("a Vec takes all");
    let bytes = unpacked(&packed);
    let has = |part: &[u8]| bytes.windows(part.len()).filter(|window| *window == part).count();
    // callee, then inlined at line 23 of the file and caller at 104.
    assert_eq!(has(&[0x22, 8, 0x08, 1, 0x22, 4, 0x08, 1, 0x10, 50]), 1);
    assert_eq!(has(&[0x22, 14, 0x08, 2, 0x22, 4, 0x08, 2, 0x10, 23, 0x22, 4, 0x08, 3, 0x10, 104]), 1);
    assert_eq!(has(&[0x12, 8, 0x0a, 2, 1, 2, 0x12, 2, 9, 9]), 1);
    assert_eq!(has(&[0x12, 8, 0x0a]), 1, "one sample");
}
