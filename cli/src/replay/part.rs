//! Where the control flow of two invocations parts.

use super::listing::blocks;
use super::tree::{AllLines, symbol};
use super::{Decoded, Session};
use crate::commands::instructions::steps;
use ptflow_decoder::profile::CodeAddr;
use std::io::{self, Write};

/// So many instructions are compared: by then most have parted.
const COMPARED: usize = 1 << 20;

fn addresses(session: &Session<'_>, side: &Decoded) -> Vec<CodeAddr> {
    let mut all = Vec::new();
    // An error, which there is none of, would end the pass: enough is enough.
    let _ = blocks(session, side, |block| {
        all.extend(steps(session.images, &block.stretch).map(|step| step.addr));
        if all.len() < COMPARED { Ok(()) } else { Err(()) }
    });
    all.truncate(COMPARED);
    all
}

/// Says where they part first: the last instruction that both ran, and where each went from there.
pub fn write(
    out: &mut impl Write,
    session: &Session<'_>,
    sides: [&Decoded; 2],
    titles: [&str; 2],
) -> io::Result<()> {
    let [this, other] = sides.map(|side| addresses(session, side));
    let same = this.iter().zip(&other).take_while(|(this, other)| this == other).count();
    let Some(branch) = same.checked_sub(1).and_then(|last| this.get(last)) else { return Ok(()) };
    let mut lines = AllLines::new(session);
    let mut place = |addr: &CodeAddr| {
        let symbol = symbol(session, *addr);
        lines.at(*addr).map_or(symbol.clone(), |line| format!("{line} ({symbol})"))
    };
    let at = place(branch);
    match (this.get(same), other.get(same)) {
        (None, None) => writeln!(out, "their instructions are the same"),
        (here, there) => {
            let mut way = |to: Option<&CodeAddr>| to.map_or("its end".to_owned(), &mut place);
            let (here, there) = (way(here), way(there));
            writeln!(
                out,
                "control flow first parts after {same} instructions, at {at}:\n  {} goes on to {here}\n  {} goes on to {there}",
                titles[0], titles[1]
            )
        }
    }
}
