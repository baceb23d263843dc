//! Tables of conditional branches worked out by hand.

use ptflow_decoder::profile::{CodeAddr, EdgeKind, EdgeRow};
use ptflow_exporters::bias::{BIAS_HEADER, BRANCHES_HEADER, Branches};
use ptflow_exporters::table::EdgeTable;

const COLUMNS: usize = 10;

fn tables(rows: Vec<(EdgeKind, u64, u64, u64, u64)>) -> (String, String) {
    let mut table = EdgeTable::default();
    let image = Some(table.image("program"));
    let addr = |addr| Some(CodeAddr { image: image.filter(|_| addr < 0x9000), addr });
    let row = |(kind, from, to, taken, not_taken)| EdgeRow {
        kind,
        from: addr(from),
        to: addr(to),
        taken,
        not_taken,
        mispredicted: 0,
    };
    let rows: Vec<EdgeRow> = rows.into_iter().map(row).collect();
    let function = |addr: CodeAddr| match addr.addr {
        0x1000..0x2000 => Some("first"),
        0x2000..0x3000 => Some("second\twith a tab"),
        _ => None,
    };
    let branches = Branches::new(&rows, &table, function);
    let (mut each, mut bias) = (Vec::new(), Vec::new());
    branches.write(&mut each).expect("a Vec takes all");
    branches.write_bias(&mut bias).expect("a Vec takes all");
    [each, bias].map(|text| String::from_utf8(text).expect("text")).into()
}

#[test]
fn each_branch_once_and_by_function() {
    use EdgeKind::{Call, Jcc, Jmp};
    let (each, bias) = tables(vec![
        (Jcc, 0x2000, 0x2100, 1, 0),
        (Jcc, 0x1010, 0x1000, 7, 3),
        (Jcc, 0x1000, 0x1040, 0, 9),
        (Jcc, 0x1020, 0x1040, 2, 100),
        // The code was overwritten: the same branch, to another place.
        (Jcc, 0x1020, 0x1080, 2, 0),
        (Jcc, 0x1030, 0x1040, 5, 0),
        // Never executed, and no conditional branches.
        (Jcc, 0x1034, 0x1040, 0, 0),
        (Jmp, 0x1038, 0x1040, 6, 0),
        (Call, 0x103c, 0x2000, 6, 0),
        (Jcc, 0x9000, 0x9010, 1, 1),
    ]);
    let expected = [
        BRANCHES_HEADER,
        "-\t0x9000\t1\t1",
        "first\tprogram:0x1000\t0\t9",
        "first\tprogram:0x1010\t7\t3",
        "first\tprogram:0x1020\t4\t100",
        "first\tprogram:0x1030\t5\t0",
        "second with a tab\tprogram:0x2000\t1\t0",
        "",
    ];
    assert_eq!(each, expected.join("\n"));
    // 4 times the rarer way is more than 3, although it is the smaller share.
    let expected = [
        BIAS_HEADER,
        "first\tprogram\t4\t1\t1\t16\t112\tprogram:0x1020\t4\t100",
        "-\t-\t1\t0\t0\t1\t1\t0x9000\t1\t1",
        "second with a tab\tprogram\t1\t0\t1\t1\t0\t-\t0\t0",
        "",
    ];
    assert_eq!(bias, expected.join("\n"));
    let columns = |line: &str| line.split('\t').count();
    assert!(bias.lines().skip(1).all(|line| columns(line) == COLUMNS));
}
