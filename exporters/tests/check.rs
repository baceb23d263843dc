//! Records that a program can have made, and records that it cannot have.

use ptflow_decoder::image::{CodeImage, CodeRegion};
use ptflow_decoder::units::Svma;
use ptflow_exporters::check::{Reason, Verdict, check};
use ptflow_exporters::flow::{Flow, Taken};
use ptflow_exporters::ranges::{Entered, StraightRange};

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

type End = Option<u64>;

fn verdict(branches: &[(End, End, u64)], ranges: &[(u64, u64, u64)], is_exact: bool) -> Verdict {
    let mut flow = Flow::default();
    for (from, to, count) in branches {
        flow.branches.insert((*from, *to), Taken { count: *count, mispredicted: 0 });
    }
    for (start, end, count) in ranges {
        let entered = if *start == 0x1008 { Entered::Through } else { Entered::Jump };
        flow.ranges.counts.insert(StraightRange { start: *start, end: *end, entered }, *count);
    }
    check(&flow, &CodeImage::new(vec![CodeRegion { start: Svma(0x1000), bytes: &CODE }]), is_exact)
}

const BRANCHES: [(End, End, u64); 4] = [
    (None, Some(0x1000), 2),
    (Some(0x1001), Some(0x1010), 2),
    (Some(0x1008), Some(0x1006), 8),
    (Some(0x1012), Some(0x1006), 2),
];
const RANGES: [(u64, u64, u64); 4] =
    [(0x1000, 0x1001, 2), (0x1006, 0x1008, 10), (0x1008, 0x100d, 2), (0x1010, 0x1012, 2)];

#[test]
fn a_whole_run_fits() {
    let all = verdict(&BRANCHES, &RANGES, true);
    assert_eq!(all.to_string(), "all 8 records fit the binary; flow is conserved at all 2 branches");
    assert_eq!(verdict(&BRANCHES, &RANGES, false).to_string(), "all 8 records fit the binary");
}

#[test]
fn flow_that_comes_from_nowhere() {
    let mut ranges = RANGES;
    ranges[1].2 = 9;
    let verdict = verdict(&BRANCHES, &ranges, true);
    assert!(verdict.fits());
    assert_eq!(verdict.unequal, [(0x1008, 9, 10)]);
    assert!(
        verdict
            .to_string()
            .ends_with("flow differs at 1 of 2 branches by 1 in all, first 0x1008: 9 in, 10 out")
    );
}

#[test]
fn branches_that_there_are_not() {
    for (from, to, reason) in [
        (Some(0x2000), Some(0x1000), Reason::NoCode),
        (Some(0x1010), Some(0x1000), Reason::NoBranch),
        (Some(0x100a), Some(0x100c), Reason::NoBranch),
        (Some(0x1001), Some(0x1011), Reason::OtherTarget),
        (Some(0x1008), Some(0x100a), Reason::OtherTarget),
        (Some(0x1008), None, Reason::OtherTarget),
        (Some(0x1012), Some(0x1007), Reason::NoCall),
        (None, Some(0x3000), Reason::NoTarget),
    ] {
        let found = verdict(&[(from, to, 1)], &[], false);
        assert_eq!(
            found.misfits.iter().map(|misfit| misfit.1).collect::<Vec<_>>(),
            [reason],
            "{from:x?} {to:x?}"
        );
        assert!(found.to_string().starts_with("1 of 1 records do not fit the binary, first branch "));
    }
    assert!(verdict(&[(Some(0x1012), None, 1)], &[], false).fits());
}

#[test]
fn ranges_that_are_not_straight() {
    for (start, end, reason) in [
        (0x1000, 0x1008, Reason::NotStraight),
        (0x1006, 0x1007, Reason::NoEnd),
        (0x1008, 0x1006, Reason::NoEnd),
        (0x1010, 0x2000, Reason::NotStraight),
        (0x2000, 0x2000, Reason::NoCode),
    ] {
        let found = verdict(&[], &[(start, end, 1)], false);
        assert_eq!(
            found.misfits.iter().map(|misfit| misfit.1).collect::<Vec<_>>(),
            [reason],
            "{start:x}-{end:x}"
        );
    }
}
