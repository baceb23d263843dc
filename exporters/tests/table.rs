//! Several captures as one: images by name, and both kinds of counts side by side.

use ptflow_decoder::image::{CodeImage, CodeRegion};
use ptflow_decoder::profile::{CodeAddr, EdgeKind, EdgeRow};
use ptflow_decoder::units::{ImageId, Svma};
use ptflow_exporters::edges;
use ptflow_exporters::ranges::derive;
use ptflow_exporters::table::EdgeTable;

fn row(kind: EdgeKind, from: u64, to: u64, taken: u64, not_taken: u64, image: u32) -> EdgeRow {
    let addr = |addr| Some(CodeAddr { image: Some(ImageId(image)), addr });
    EdgeRow { kind, from: addr(from), to: addr(to), taken, not_taken, mispredicted: 0 }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn text(table: &EdgeTable) -> String {
    let rows = if table.exact().is_empty() { table.sampled() } else { table.exact() };
    let mut out = Vec::new();
    edges::write(&mut out, rows, table).expect("a Vec takes all");
    String::from_utf8(out).expect("text")
}

/// dec ecx; jne 1000; nop; jmp 1000
const CODE: [u8; 7] = [0xff, 0xc9, 0x75, 0xfc, 0x90, 0xeb, 0xf9];

#[test]
fn images_are_known_by_name() {
    let mut table = EdgeTable::default();
    table.add(vec![row(EdgeKind::Jcc, 0x1002, 0x1000, 5, 1, 1)], &names(&["lib", "prog"]));
    table.add(vec![row(EdgeKind::Jcc, 0x1002, 0x1000, 7, 2, 0)], &names(&["prog", "lib"]));
    let read = edges::read(text(&table).as_bytes()).expect("a table");
    table.add_text(&read);
    let expected = "#ptflow-edges 1\njcc\tprog:0x1002\tprog:0x1000\t24\t6\t0\n";
    assert_eq!(text(&table), expected);
}

/// Of both, ranges are told: those of the samples as they were counted, those of the trace as they follow.
#[test]
fn traced_and_sampled() {
    let mut table = EdgeTable::default();
    let exact = [row(EdgeKind::Jcc, 0x1002, 0x1000, 5, 1, 0), row(EdgeKind::Jmp, 0x1005, 0x1000, 1, 0, 0)];
    table.add(exact.to_vec(), &names(&["prog"]));
    table.add(
        vec![row(EdgeKind::Range, 0x1000, 0x1002, 3, 0, 0), row(EdgeKind::Jcc, 0x1002, 0x1000, 4, 0, 0)],
        &names(&["prog"]),
    );
    let code = CodeImage::new(vec![CodeRegion { start: Svma(0x1000), bytes: &CODE }]);
    let derived = derive(table.exact(), |image| image == ImageId(0), &code);
    let both = table.into_sampled(derived.rows(ImageId(0)).collect());
    let expected = "#ptflow-edges 1\n\
                    range\tprog:0x1000\tprog:0x1002\t9\t0\t0\n\
                    jcc\tprog:0x1002\tprog:0x1000\t9\t1\t0\n\
                    range\tprog:0x1002\tprog:0x1005\t1\t0\t0\n\
                    jmp\tprog:0x1005\tprog:0x1000\t1\t0\t0\n";
    assert_eq!(text(&both), expected);
}
