//! The edge table: against a model that sums and sorts in the plainest way, and against lines written by hand.

use ptflow_decoder::profile::{CodeAddr, EdgeKind, EdgeRow};
use ptflow_decoder::units::ImageId;
use ptflow_exporters::address::AddressNames;
use ptflow_exporters::edges::{HEADER, TextRow, read, write, write_text};
use std::collections::BTreeMap;

/// In an order that is not that of their names. One has a colon, two have the same.
const IMAGES: [&str; 5] = ["zlib", "9f3c", "libc", "/odd:path/0x1", "9f3c"];

struct Names;
impl AddressNames for Names {
    fn name(&self, addr: CodeAddr) -> (Option<&str>, u64) {
        (addr.image.map(|image| IMAGES[image.0 as usize]), addr.addr)
    }
}

fn at(image: u32, addr: u64) -> Option<CodeAddr> {
    Some(CodeAddr { image: Some(ImageId(image)), addr })
}

fn bare(addr: u64) -> Option<CodeAddr> {
    Some(CodeAddr { image: None, addr })
}

fn row(kind: EdgeKind, from: Option<CodeAddr>, to: Option<CodeAddr>, counts: [u64; 3]) -> EdgeRow {
    let [taken, not_taken, mispredicted] = counts;
    EdgeRow { kind, from, to, taken, not_taken, mispredicted }
}

fn table(rows: &[EdgeRow]) -> String {
    let mut out = Vec::new();
    write(&mut out, rows, &Names).expect("a Vec takes all");
    String::from_utf8(out).expect("text")
}

fn table_of_text(rows: &[TextRow]) -> String {
    let mut out = Vec::new();
    write_text(&mut out, rows).expect("addresses");
    String::from_utf8(out).expect("text")
}

#[test]
fn sorted_and_summed() {
    let text = table(&[
        row(EdgeKind::Jcc, at(0, 0x100), at(0, 0x20), [3, 4, 1]),
        row(EdgeKind::Call, at(2, 0x9000), at(0, 0x100), [1, 0, 0]),
        row(EdgeKind::Jcc, at(0, 0x100), at(0, 0x20), [1, 1, 1]),
        row(EdgeKind::Jmp, at(0, 0x100), at(0, 0x20), [u64::MAX, 0, 0]),
        row(EdgeKind::Jmp, at(0, 0x100), at(0, 0x20), [1, 0, 0]),
        row(EdgeKind::Async, at(0, 0x100), None, [6, 0, 0]),
        row(EdgeKind::Ret, at(0, 0xff), at(2, 0x9005), [9, 0, 0]),
        row(EdgeKind::Resume, None, at(0, 0x50), [7, 0, 0]),
        row(EdgeKind::Syscall, bare(0xffff), None, [2, 0, 0]),
        row(EdgeKind::Call, at(1, 0x8), at(4, 0x8), [1, 0, 0]),
        row(EdgeKind::Call, at(4, 0x8), at(1, 0x8), [1, 0, 0]),
    ]);
    assert_eq!(
        text,
        "#ptflow-edges 1\n\
         resume\t-\tzlib:0x50\t7\t0\t0\n\
         syscall\t0xffff\t-\t2\t0\t0\n\
         call\t9f3c:0x8\t9f3c:0x8\t2\t0\t0\n\
         call\tlibc:0x9000\tzlib:0x100\t1\t0\t0\n\
         ret\tzlib:0xff\tlibc:0x9005\t9\t0\t0\n\
         async\tzlib:0x100\t-\t6\t0\t0\n\
         jcc\tzlib:0x100\tzlib:0x20\t4\t5\t2\n\
         jmp\tzlib:0x100\tzlib:0x20\t18446744073709551615\t0\t0\n"
    );
}

/// Rows of few keys, so that many are equal, and of all kinds and address forms.
fn random_rows(seed: u64, count: usize) -> Vec<EdgeRow> {
    let mut state = seed;
    let mut below = |limit: u64| {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    };
    let mut rows = Vec::new();
    for _ in 0..count {
        let mut addr = || {
            let number = [0, 9, 0x10, 0xabc, 0x4010_00ff, u64::MAX][below(6) as usize];
            match below(7) {
                0 => None,
                1 => bare(number),
                image => at(image as u32 - 2, number),
            }
        };
        let (from, to) = (addr(), addr());
        let kind = EdgeKind::ALL[below(11) as usize];
        rows.push(row(kind, from, to, [below(1000), below(10), below(3)]));
    }
    rows
}

/// The table, by string keys and nothing clever.
fn model(rows: &[EdgeRow]) -> String {
    // None sorts before Some, and a missing image before a named one.
    type Key = (Option<(Option<&'static str>, u64)>, Option<(Option<&'static str>, u64)>, &'static str);
    let mut sums: BTreeMap<Key, [u64; 3]> = BTreeMap::new();
    for row in rows {
        let key = |addr: Option<CodeAddr>| {
            addr.map(|addr| (addr.image.map(|image| IMAGES[image.0 as usize]), addr.addr))
        };
        let sum = sums.entry((key(row.from), key(row.to), row.kind.name())).or_default();
        sum[0] += row.taken;
        sum[1] += row.not_taken;
        sum[2] += row.mispredicted;
    }
    let address = |addr| match addr {
        None => "-".to_owned(),
        Some((None, number)) => format!("{number:#x}"),
        Some((Some(image), number)) => format!("{image}:{number:#x}"),
    };
    let mut text = format!("{HEADER}\n");
    for ((from, to, kind), [taken, not_taken, mispredicted]) in sums {
        let (from, to) = (address(from), address(to));
        text += &format!("{kind}\t{from}\t{to}\t{taken}\t{not_taken}\t{mispredicted}\n");
    }
    text
}

#[test]
fn random_tables_are_the_models() {
    for (seed, count) in [(1, 0), (2, 1), (3, 100), (4, 3000), (5, 40_000)] {
        let rows = random_rows(seed, count);
        assert!(table(&rows) == model(&rows), "seed {seed}");
    }
}

#[test]
fn read_back_and_summed_over_files() {
    let (one, other) = (random_rows(6, 2000), random_rows(7, 2000));
    let (one_file, other_file) = (table(&one), table(&other));
    let mut rows = read(one_file.as_bytes()).expect("our own table");
    assert!(table_of_text(&rows) == one_file, "read and written again");
    rows.extend(read(other_file.as_bytes()).expect("our own table"));
    let both = [one, other].concat();
    assert!(table_of_text(&rows) == table(&both), "the tables' sum is the table of all rows");
}

#[test]
fn what_is_no_table_is_refused_by_line() {
    let refused = |text: &[u8]| read(text).expect_err("no table").to_string();
    let good = "jcc\t0x1\tlibc:0x2\t1\t2\t3";
    for first in ["", "\n", "jcc\t0x1\t0x2\t1\t0\t0\n", "#ptflow-edges 2\n", " #ptflow-edges 1\n"] {
        assert!(refused(first.as_bytes()).starts_with("line 1: "), "{first}");
    }
    for line in [
        "",
        "jcc",
        "jcc\t0x1",
        "jcc\t0x1\t0x2\t1\t0",
        "jcc\t0x1\t0x2\t1\t0\t0\t0",
        "jxx\t0x1\t0x2\t1\t0\t0",
        "jcc\t1\t0x2\t1\t0\t0",
        "jcc\t0x1\tlibc\t1\t0\t0",
        "jcc\t0x1\t0x2\t-1\t0\t0",
        "jcc\t0x1\t0x2\t+1\t0\t0",
        "jcc\t0x1\t0x2\t1\t0\t18446744073709551616",
        "jcc 0x1 0x2 1 0 0",
    ] {
        let error = refused(format!("{HEADER}\n{good}\n{line}\n{good}\n").as_bytes());
        assert!(error.starts_with("line 3: "), "{line}: {error}");
    }
    let error = refused(b"#ptflow-edges 1\njcc\t\xff:0x1\t0x2\t1\t0\t0\n");
    assert!(error.starts_with("line 2: "), "{error}");
}

#[test]
fn other_line_ends_are_read() {
    let rows =
        read(&b"#ptflow-edges 1\r\njcc\t0x1\t-\t1\t2\t3\r\nret\t-\tlibc:0x2\t1\t0\t0"[..]).expect("a table");
    assert_eq!(table_of_text(&rows), "#ptflow-edges 1\nret\t-\tlibc:0x2\t1\t0\t0\njcc\t0x1\t-\t1\t2\t3\n");
}

#[test]
fn rows_with_made_up_addresses_are_not_written() {
    let row = TextRow {
        kind: EdgeKind::Jmp,
        from: Some("main+4".to_owned()),
        to: None,
        taken: 1,
        not_taken: 0,
        mispredicted: 0,
    };
    let error = write_text(&mut Vec::new(), &[row]).expect_err("not an address");
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
}
