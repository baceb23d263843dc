//! Profiles for BOLT of programs worked out by hand.

use ptflow_decoder::image::{CodeImage, CodeRegion};
use ptflow_decoder::profile::{CodeAddr, EdgeKind, EdgeRow, TraceRow};
use ptflow_decoder::units::{ImageId, Ip, Svma};
use ptflow_exporters::bolt;
use ptflow_exporters::flow::Flow;

const BINARY: ImageId = ImageId(3);
const LIBRARY: ImageId = ImageId(1);
const BASE: u64 = 0x1000;

fn own(addr: u64) -> Option<CodeAddr> {
    Some(CodeAddr { image: Some(BINARY), addr })
}

fn library(addr: u64) -> Option<CodeAddr> {
    Some(CodeAddr { image: Some(LIBRARY), addr })
}

fn row(kind: EdgeKind, from: Option<CodeAddr>, to: Option<CodeAddr>, taken: u64, not_taken: u64) -> EdgeRow {
    EdgeRow { kind, from, to, taken, not_taken, mispredicted: 0 }
}

/// The program, entered at 1000 by a call from a library:
///
/// ```text
/// 1000  nop
/// 1001  call 1010
/// 1006  dec ecx        ◄─ loop
/// 1008  jne 1006
/// 100a  syscall
/// 100c  nop
/// 100d  ret
/// 1010  nop; nop
/// 1012  ret
/// ```
const CODE: [u8; 0x13] =
    [0x90, 0xe8, 0x0a, 0, 0, 0, 0xff, 0xc9, 0x75, 0xfc, 0x0f, 0x05, 0x90, 0xc3, 0xcc, 0xcc, 0x90, 0x90, 0xc3];

fn profile(rows: &[EdgeRow]) -> Flow {
    let code = CodeImage::new(vec![CodeRegion { start: Svma(BASE), bytes: &CODE }]);
    Flow::new(rows, |image| image == BINARY, &code)
}

fn text(rows: &[EdgeRow]) -> String {
    let mut out = Vec::new();
    bolt::write(&mut out, &profile(rows)).expect("a Vec takes all");
    String::from_utf8(out).expect("text")
}

/// Called twice, five rounds each time.
fn whole_runs() -> Vec<EdgeRow> {
    vec![
        row(EdgeKind::CallInd, library(0x1008), own(0x1000), 2, 0),
        row(EdgeKind::Call, own(0x1001), own(0x1010), 2, 0),
        row(EdgeKind::Ret, own(0x1012), own(0x1006), 2, 0),
        row(EdgeKind::Jcc, own(0x1008), own(0x1006), 8, 2),
        row(EdgeKind::Syscall, own(0x100a), None, 2, 0),
        row(EdgeKind::Resume, None, own(0x100c), 2, 0),
        row(EdgeKind::Ret, own(0x100d), library(0x100a), 2, 0),
    ]
}

const WHOLE: &str = "B X:0 1000 2 0\n\
                     B 1001 1010 2 0\n\
                     B 1008 1006 8 0\n\
                     B 1012 1006 2 0\n\
                     F 1000 1001 2\n\
                     F 1006 1008 8\n\
                     f 1006 1008 2\n\
                     F 1008 100d 2\n\
                     F 1010 1012 2\n";

#[test]
fn system_calls_that_come_back_are_straight_code() {
    assert_eq!(text(&whole_runs()), WHOLE);
    let mut reversed = whole_runs();
    reversed.reverse();
    assert_eq!(text(&reversed), WHOLE, "the order of rows means nothing");
}

#[test]
fn interruptions_that_come_back_leave_no_trace() {
    let mut rows = whole_runs();
    let kernel = Some(CodeAddr::bare(Ip(0xffff_8000_0000_0000)));
    rows.push(row(EdgeKind::Async, own(0x1011), kernel, 3, 0));
    rows.push(row(EdgeKind::Far, kernel, own(0x1011), 2, 0));
    rows.push(row(EdgeKind::Resume, None, own(0x1011), 1, 0));
    assert_eq!(text(&rows), WHOLE);
}

#[test]
fn a_stretch_is_split_where_flow_does_not_come_back() {
    // A third call, which dies in the function that it calls.
    let mut rows = whole_runs();
    rows[0].taken = 3;
    rows[1].taken = 3;
    rows.push(row(EdgeKind::Async, own(0x1011), None, 1, 0));
    let split = WHOLE
        .replace("B X:0 1000 2", "B X:0 1000 3")
        .replace("B 1001 1010 2", "B 1001 1010 3")
        .replace("F 1000 1001 2", "F 1000 1001 3")
        .replace("F 1010 1012 2", "F 1010 1010 3\nF 1010 1012 2");
    assert_eq!(text(&rows), split);
    // One whose system call is the last: exit.
    let mut rows = whole_runs();
    rows[5].taken = 1;
    rows[6].taken = 1;
    let split = WHOLE.replace("F 1008 100d 2", "F 1008 100a 2\nF 100a 100d 1");
    assert_eq!(text(&rows), split);
}

#[test]
fn tracing_that_comes_on_enters_without_a_branch() {
    let mut rows = whole_runs();
    rows.push(row(EdgeKind::Resume, None, own(0x1011), 1, 0));
    rows[2].taken = 3;
    rows[3].not_taken = 3;
    rows[4].taken = 3;
    rows[5].taken = 3;
    rows[6].taken = 3;
    let more = WHOLE
        .replace("B 1012 1006 2", "B 1012 1006 3")
        .replace("f 1006 1008 2", "f 1006 1008 3")
        .replace("F 1008 100d 2", "F 1008 100d 3")
        + "F 1011 1012 1\n";
    assert_eq!(text(&rows), more);
}

#[test]
fn nothing_reaches_over_a_branch_without_a_row() {
    // The trace was lost after the call; nobody knows that the function returned.
    let rows = [row(EdgeKind::Call, own(0x1001), own(0x1010), 4, 0)];
    assert_eq!(text(&rows), "B 1001 1010 4 0\n");
    assert_eq!(profile(&rows).unexplained(), 4);
    // The same before the loop's branch, whose own row is further on.
    let rows = [
        row(EdgeKind::Ret, own(0x1012), own(0x1006), 1, 0),
        row(EdgeKind::Ret, own(0x100d), library(0x1), 1, 0),
    ];
    assert_eq!(text(&rows), "B 1012 1006 1 0\n");
}

#[test]
fn other_objects() {
    let rows = [
        // Calls from two places of libraries are one line, as are calls to two.
        row(EdgeKind::CallInd, library(0x1001), own(0x1010), 1, 0),
        row(EdgeKind::Call, Some(CodeAddr::bare(Ip(0x7000))), own(0x1010), 2, 0),
        row(EdgeKind::JmpInd, own(0x1001), library(0x10), 3, 0),
        row(EdgeKind::JmpInd, own(0x1001), library(0x20), 4, 0),
        // A return from a library enters a range, and is no branch; a longjmp to there is none either.
        row(EdgeKind::Ret, library(0x30), own(0x1006), 5, 0),
        row(EdgeKind::JmpInd, library(0x40), own(0x1006), 6, 0),
        row(EdgeKind::Ret, own(0x1012), library(0x50), 3, 0),
        row(EdgeKind::Jcc, own(0x1008), own(0x1006), 0, 11),
        row(EdgeKind::Call, library(0x60), library(0x70), 9, 0),
    ];
    let expected = "B X:0 1010 3 0\n\
                    B 1001 X:0 7 0\n\
                    F 1006 1008 6\n\
                    f 1006 1008 5\n\
                    F 1010 1012 3\n";
    assert_eq!(text(&rows), expected);
    assert_eq!(profile(&rows).unexplained(), 11);
}

#[test]
fn counts_stay_within_what_bolt_reads() {
    let rows = [row(EdgeKind::Call, own(0x1001), own(0x1010), u64::MAX, 0)].repeat(2);
    assert_eq!(text(&rows), "B 1001 1010 9223372036854775807 0\n");
}

/// What a branch stack has of the program above.
#[test]
fn traces() {
    let trace = |kind, from: Option<CodeAddr>, to, end, count| TraceRow {
        kind,
        from: from.expect("an address"),
        to,
        end,
        count,
    };
    let kernel = Some(CodeAddr::bare(Ip(0xffff_8000_0000_0000)));
    let rows = [
        // Called from a library: into the first function, to its call.
        trace(EdgeKind::CallInd, library(0x1008), own(0x1000), own(0x1001), 2),
        trace(EdgeKind::Call, own(0x1001), own(0x1010), own(0x1012), 2),
        trace(EdgeKind::Ret, own(0x1012), own(0x1006), own(0x1008), 2),
        // Rounds: one more, the last one to the return, and one that is the youngest of its stack.
        trace(EdgeKind::Jcc, own(0x1008), own(0x1006), own(0x1008), 5),
        trace(EdgeKind::Jcc, own(0x1008), own(0x1006), own(0x100d), 2),
        trace(EdgeKind::Jcc, own(0x1008), own(0x1006), None, 1),
        // Another process has the binary at another place.
        trace(EdgeKind::Jcc, own(0x1008), own(0x1006), own(0x1008), 4),
        // Back to the library: no branch that BOLT wants; a call of one is.
        trace(EdgeKind::Ret, own(0x100d), library(0x100a), library(0x1010), 2),
        trace(EdgeKind::Call, own(0x1001), library(0x2000), library(0x2004), 7),
        // Returned to from the library, interrupted and back, and after something that cannot be.
        trace(EdgeKind::Ret, library(0x2004), own(0x1006), own(0x100d), 7),
        trace(EdgeKind::Far, kernel, own(0x100c), own(0x100d), 3),
        trace(EdgeKind::Async, own(0x100c), kernel, None, 3),
        trace(EdgeKind::Range, own(0x1010), own(0x1010), own(0x1012), 1),
        trace(EdgeKind::Syscall, own(0x100a), None, None, 6),
    ];
    let mut out = Vec::new();
    bolt::write_traces(&mut out, &rows, |image| image == BINARY).expect("a Vec takes all");
    let expected = "\
        T X:0 1000 1001 2\n\
        T 1001 X:0 ffffffffffffffff 7\n\
        T 1001 1010 1012 2\n\
        T 1008 1006 1008 9\n\
        T 1008 1006 100d 2\n\
        T 1008 1006 ffffffffffffffff 1\n\
        T 1012 1006 1008 2\n\
        f 1006 100d 7\n\
        F 100c 100d 3\n\
        F 1010 1012 1\n";
    assert_eq!(String::from_utf8(out).expect("text"), expected);
}
