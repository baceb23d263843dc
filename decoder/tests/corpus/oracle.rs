//! A case by libipt.

use super::case::Case;
use super::rows::{self, Rows};
use super::subject::{memory, regions};
use ptflow_decoder::code::CodeView;
use ptflow_decoder::insn::Class;
use ptflow_decoder::oracle::Session;
use ptflow_decoder::units::Ip;

/// Whether libipt counts what the text expects.
pub fn check(case: &Case) -> String {
    let regions = regions(case);
    let (images, spaces) = memory(&regions);
    let space = &spaces.versions()[0].1;
    let bytes = case.bytes();
    let session = Session::new(&bytes, &images, space, &case.config);
    let edges = match session.edges() {
        Ok(edges) => edges,
        Err(error) => return format!("{error}\n"),
    };
    let code = CodeView { images: &images, space };
    let target = |from: u64| match code.insn(Ip(from), case.mode(from))?.class {
        Class::Jcc { target } => Some(target),
        _ => None,
    };
    let expected = rows::expected(case, target);
    let found: Rows = edges
        .rows
        .iter()
        .map(|row| {
            let ip = |addr: Option<ptflow_decoder::profile::CodeAddr>| addr.map(|addr| addr.addr);
            ((row.kind.name().to_owned(), ip(row.from), ip(row.to)), (row.taken, row.not_taken))
        })
        .collect();
    let instructions = case.flow.last().and_then(|line| line.split(' ').next()?.parse().ok());
    let same = found == expected
        && Some(edges.instructions) == instructions
        && (edges.failures.is_empty() || case.flow.iter().any(|line| line.contains(" gap ")))
        && edges.odd.is_empty();
    match &case.libipt {
        None if !same => format!(
            "libipt: {found:x?}\nexpected: {expected:x?}\ninstructions {}, expected {instructions:?}\nfailures {:?}, odd {:x?}\n",
            edges.instructions, edges.failures, edges.odd
        ),
        Some(why) if same => format!("libipt agrees, though the text says: {why}\n"),
        _ => String::new(),
    }
}
