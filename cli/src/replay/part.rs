//! Where the control flow of two invocations parts.

use super::listing::blocks;
use super::tree::{AllLines, symbol};
use super::{Decoded, Session};
use crate::commands::instructions::{Step, steps};
use ptflow_decoder::insn::Class;
use ptflow_decoder::profile::CodeAddr;
use ptflow_exporters::call_tree::{count, cut};
use std::io::{self, Write};

/// So many instructions are compared: by then most have parted.
const COMPARED: usize = 1 << 20;

/// An executed instruction: where, and what it does to control flow.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Executed {
    addr: CodeAddr,
    class: Option<Class>,
}

fn executed(session: &Session<'_>, side: &Decoded) -> Vec<Executed> {
    let mut all = Vec::new();
    // An error, which there is none of, would end the pass: enough is enough.
    let _ = blocks(session, side, |block| {
        let of = |step: Step<'_>| Executed { addr: step.addr, class: step.class() };
        all.extend(steps(session.images, &block.stretch).map(of));
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
    width: usize,
) -> io::Result<()> {
    let [this, other] = sides.map(|side| executed(session, side));
    let same = this.iter().zip(&other).take_while(|(this, other)| this.addr == other.addr).count();
    let Some(branch) = same.checked_sub(1).and_then(|last| this.get(last)) else { return Ok(()) };
    let mut lines = AllLines::new(session);
    let at = place(session, &mut lines, branch.addr);
    match (this.get(same), other.get(same)) {
        (None, None) if same == COMPARED => {
            writeln!(out, "their first {} instructions are the same", count(same as u64))
        }
        (None, None) => writeln!(out, "their instructions are the same"),
        (here, there) => {
            let mut way =
                |to: Option<&Executed>| way(session, &mut lines, branch.class, to.map(|to| to.addr));
            let (here, there) = (way(here), way(there));
            writeln!(out, "control flow first parts after {} instructions:", count(same as u64))?;
            let head = titles.iter().map(|title| title.chars().count()).max().unwrap_or(0);
            for (title, text) in [("at", &at), (titles[0], &here), (titles[1], &there)] {
                writeln!(out, "  {title:<head$}  {}", cut(text, width.saturating_sub(head + 4)))?;
            }
            Ok(())
        }
    }
}

fn place(session: &Session<'_>, lines: &mut AllLines<'_>, addr: CodeAddr) -> String {
    let symbol = symbol(session, addr);
    lines.at(addr).map_or(symbol.clone(), |line| format!("{line} ({symbol})"))
}

/// What one of them does there.
fn way(session: &Session<'_>, lines: &mut AllLines<'_>, by: Option<Class>, to: Option<CodeAddr>) -> String {
    let Some(to) = to else { return "ends".to_owned() };
    let at = place(session, lines, to);
    match by {
        Some(Class::Call { .. } | Class::CallInd) => format!("calls {at}"),
        Some(Class::Ret) => format!("returns to {at}"),
        Some(Class::Jmp { .. } | Class::JmpInd) => format!("jumps to {at}"),
        Some(Class::Jcc { target }) if target == to.addr => format!("branches to {at}"),
        _ => format!("goes on to {at}"),
    }
}
