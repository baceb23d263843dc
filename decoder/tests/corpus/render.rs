//! What a walk reports, as the lines of a text.

use super::case::Case;
use super::subject::{BIAS, IMAGE};
use ptflow_decoder::jobs::branches::{BranchList, Line};
use ptflow_decoder::profile::CodeAddr;
use ptflow_decoder::sink::{Branch, Event, Mark, Off, Run, Sink};

/// Something that happened.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Seen {
    Taken(ptflow_decoder::profile::EdgeKind, CodeAddr, Option<CodeAddr>),
    NotTaken(CodeAddr),
    Event(Event),
}

/// Records everything in order.
pub struct Recorder {
    list: BranchList,
    seen: Vec<(Mark, Seen)>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { list: BranchList { not_taken: true, ..BranchList::default() }, seen: Vec::new() }
    }
}

impl Sink for Recorder {
    const CLOCK: bool = true;
    const RUNS: bool = true;

    fn run(&mut self, run: Run<'_>, mark: Mark) {
        self.list.run(run, mark);
        for (mark, line) in self.list.lines.drain(..) {
            if let Line::Transfer { kind, from: Some(from), to, taken } = line {
                self.seen
                    .push((mark, if taken { Seen::Taken(kind, from, to) } else { Seen::NotTaken(from) }));
            }
        }
    }

    fn branch(&mut self, branch: &Branch, mark: Mark) {
        let from = branch.from.addr;
        self.seen.push((
            mark,
            match branch.taken {
                true => Seen::Taken(branch.kind, from, branch.to.map(|to| to.addr)),
                false => Seen::NotTaken(from),
            },
        ));
    }

    fn event(&mut self, event: Event, mark: Mark) {
        self.seen.push((mark, Seen::Event(event)));
    }
}

impl Recorder {
    /// The lines; `before` instructions ran in the units before.
    pub fn lines(&self, case: &Case, before: u64) -> Vec<String> {
        self.seen
            .iter()
            .map(|(mark, seen)| format!("{} {}", before + mark.instructions(), seen.text(case)))
            .collect()
    }
}

impl Seen {
    fn text(&self, case: &Case) -> String {
        let name = |addr: CodeAddr| name(case, addr);
        let place = |addr: Option<CodeAddr>| addr.map_or("-".to_owned(), name);
        let event = match *self {
            Self::Taken(ptflow_decoder::profile::EdgeKind::Syscall, from, None) => {
                return format!("syscall {}", name(from));
            }
            Self::Taken(kind, from, to) => return format!("{} {} -> {}", kind.name(), name(from), place(to)),
            Self::NotTaken(from) => return format!("jcc {} not taken", name(from)),
            Self::Event(event) => event,
        };
        match event {
            Event::Sync { at } => format!("sync {}", name(at.addr)),
            Event::Enabled { at, resumes } => {
                format!("on {}{}", name(at.addr), if resumes { " after overflow" } else { "" })
            }
            Event::Disabled { from, to, why } => {
                let why = match why {
                    Off::Async => "async",
                    Off::Syscall => "syscall",
                    Off::Branch => "branch",
                };
                format!("off {} -> {} by {why}", name(from.addr), place(to.map(|to| to.addr)))
            }
            Event::Async { from, to } => format!("async {} -> {}", name(from.addr), name(to.addr)),
            Event::Told { packet, at } => {
                let packet = packet.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
                format!("told {packet} @ {}", place(at.map(|at| at.addr)))
            }
            Event::Gap { reason, .. } => format!("gap {}", reason.name()),
            Event::Owner { thread } => format!("owner {thread:?}"),
        }
    }
}

/// An address as a text names it.
fn name(case: &Case, addr: CodeAddr) -> String {
    let addr = if addr.image == Some(IMAGE) { addr.addr.wrapping_add(BIAS) } else { addr.addr };
    address(case, addr)
}

/// As [`name`], of a runtime address.
pub fn address(case: &Case, addr: u64) -> String {
    let label = case.labels.iter().find(|(_, at)| *at == addr);
    label.map_or_else(|| format!("{addr:x}"), |(label, _)| label.clone())
}
