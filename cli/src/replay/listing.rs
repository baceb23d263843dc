//! Every instruction of an invocation, in order.

use super::loops::{Folder, Loop, Part, Shaped};
use super::tree::{AllLines, frame_name, symbol};
use super::{Decoded, Session};
use crate::call_stacks::stack_of;
use crate::commands::instructions::{Disassembler, steps};
use ptflow_decoder::jobs::instructions::{Entry, InstructionList, Stretch};
use ptflow_decoder::jobs::replay::Interruption;
use ptflow_decoder::owners::ThreadId;
use ptflow_decoder::plan::Unit;
use ptflow_decoder::profile::CodeAddr;
use ptflow_decoder::run;
use ptflow_decoder::units::{Ip, Ns, Svma};
use ptflow_decoder::walk::{Engine, UnitResult};
use ptflow_exporters::call_tree::{count, cut, duration};
use std::collections::BTreeMap;
use std::io::{self, Write};

/// So many parts are kept before they are written: a loop that goes on beyond is begun anew.
const PARTS: usize = 1 << 20;

/// Straight code, executed once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// What.
    pub stretch: Stretch,
    /// When its first and its last instruction ran.
    pub at: (Ns, Ns),
    /// Instructions of the invocation before it.
    pub before: u64,
}

/// A block, or what interrupts the flow.
#[derive(Clone, Copy, Debug)]
enum Line {
    Block(Block),
    Interruption(Interruption),
}

impl Shaped for Line {
    type Shape = (CodeAddr, u64);

    fn shape(&self) -> Option<Self::Shape> {
        match self {
            Self::Block(block) => Some((block.stretch.start, block.stretch.count)),
            Self::Interruption(_) => None,
        }
    }
}

/// Why a pass over the instructions ended early.
enum Stop<E> {
    Done,
    Failed(E),
}

/// Hands on the blocks of an invocation.
pub fn blocks<E>(
    session: &Session<'_>,
    decoded: &Decoded,
    take: impl FnMut(Block) -> Result<(), E>,
) -> Result<(), E> {
    let Decoded { stack, ref detail, window, .. } = *decoded;
    let loaded = session.loaded;
    let owners = loaded.owners_within(session.pool, &[window]);
    let contexts = loaded.contexts(session.images, &owners);
    let options = loaded.options(session.pool, Engine::Fast, &|_| {});
    let mut cutter = Cutter { range: detail.instructions, passed: 0, take };
    let is_own = |unit: &Unit, thread: Option<ThreadId>| {
        stack_of(loaded, contexts.len(), unit.stream, thread) == Some(stack)
    };
    let new_list = |_: &Unit| InstructionList::default();
    // What runs before the first owner is told is the stream's own.
    let pieces = |unit: &Unit, list: &mut InstructionList, result: &UnitResult| {
        list.finish(result.end);
        let mut own = owners.iter().all(Vec::is_empty) && unit.stream == stack;
        let mut pieces: Vec<Vec<Block>> = vec![Vec::new()];
        let mut times = result.timeline.reader();
        for entry in list.entries.drain(..) {
            match entry {
                Entry::Owner(thread) => {
                    own = is_own(unit, thread);
                    pieces.push(Vec::new());
                }
                Entry::Stretch(stretch) if own => {
                    let mut ns = |ordinal| match (times.at(ordinal), loaded.capture.config.time) {
                        (Some(moment), Some(time)) => time.to_ns(moment.tsc),
                        (Some(moment), None) => Ns(moment.tsc.0),
                        (None, _) => Ns(0),
                    };
                    let first = ns(stretch.ordinal.saturating_sub(stretch.count.saturating_sub(1)));
                    let at = (first, ns(stretch.ordinal));
                    if let Some(piece) = pieces.last_mut() {
                        piece.push(Block { stretch, at, before: 0 });
                    }
                }
                Entry::Stretch(_) | Entry::Gap { .. } => {}
            }
        }
        pieces
    };
    let result = if owners.iter().all(Vec::is_empty) {
        run::in_order_within(&contexts, &options, &[window], new_list, |unit, list, result| {
            pieces(unit, list, result).into_iter().flatten().try_for_each(|block| cutter.block(block))
        })
        .map(drop)
    } else {
        // Of several CPUs: what the thread ran on each, by time.
        let mut all: BTreeMap<(Ns, usize, usize), Vec<Block>> = BTreeMap::new();
        let until = detail.end;
        let gathered: Result<_, Stop<E>> =
            run::in_time_order_within(&contexts, &options, &[window], new_list, |unit, list, result, _| {
                for piece in pieces(unit, list, result) {
                    if let Some(first) = piece.first().filter(|first| first.at.0 <= until) {
                        let key = (first.at.0, unit.stream, all.len());
                        all.insert(key, piece);
                    }
                }
                Ok(())
            });
        gathered
            .map(drop)
            .and_then(|()| all.into_values().flatten().try_for_each(|block| cutter.block(block)))
    };
    match result {
        Err(Stop::Failed(error)) => Err(error),
        Ok(()) | Err(Stop::Done) => Ok(()),
    }
}

/// Leaves only what is in the invocation.
struct Cutter<T> {
    /// Instructions of the stack before the invocation and up to its end.
    range: (u64, u64),
    passed: u64,
    take: T,
}

impl<T, E> Cutter<T>
where
    T: FnMut(Block) -> Result<(), E>,
{
    fn block(&mut self, mut block: Block) -> Result<(), Stop<E>> {
        let (from, to) = self.range;
        let begin = self.passed;
        self.passed += block.stretch.count;
        if self.passed <= from {
            return Ok(());
        }
        if begin >= to {
            return Err(Stop::Done);
        }
        // A call in the middle of a stretch begins no invocation, but its end may be one.
        block.stretch.count -= self.passed.saturating_sub(to);
        block.stretch.ordinal -= self.passed.saturating_sub(to);
        block.before = begin.saturating_sub(from);
        (self.take)(block).map_err(Stop::Failed)
    }
}

/// Writes the list; no line is longer than the width, where one is given.
pub fn write(
    out: &mut impl Write,
    session: &Session<'_>,
    decoded: &Decoded,
    unfolded: bool,
    width: Option<usize>,
) -> io::Result<()> {
    let detail = &decoded.detail;
    let mut writer = Writer {
        session,
        lines: AllLines::new(session),
        printer: Disassembler::new(),
        start: detail.start,
        stack: decoded.stack,
        last_line: None,
        width,
        out,
    };
    let head = format!("{:>14}  {:<18}  {:<28}  {:<40}  source", "time", "address", "symbol", "instruction");
    writer.write(&head)?;
    let mut folder = Folder::new();
    let mut interruptions = detail.interruptions.iter().peekable();
    let mut push = |line: Line, writer: &mut Writer<'_, _>| -> io::Result<()> {
        if unfolded {
            return writer.line(&line, 0);
        }
        folder.push(line);
        if folder.len() > PARTS {
            writer.parts(&folder.take(), 0)?;
        }
        Ok(())
    };
    blocks(session, decoded, |block| {
        while let Some(first) = interruptions.next_if(|next| next.instructions <= block.before) {
            push(Line::Interruption(*first), &mut writer)?;
        }
        push(Line::Block(block), &mut writer)
    })?;
    for rest in interruptions {
        push(Line::Interruption(*rest), &mut writer)?;
    }
    writer.parts(&folder.take(), 0)
}

struct Writer<'w, W> {
    session: &'w Session<'w>,
    lines: AllLines<'w>,
    printer: Disassembler,
    start: Ns,
    stack: usize,
    last_line: Option<String>,
    width: Option<usize>,
    out: W,
}

impl<W: Write> Writer<'_, W> {
    /// A line, as far as there is room.
    fn write(&mut self, line: &str) -> io::Result<()> {
        let line = line.trim_end();
        match self.width {
            Some(width) if line.chars().count() > width => {
                let kept: String = line.chars().take(width - 1).collect();
                writeln!(self.out, "{kept}…")
            }
            _ => writeln!(self.out, "{line}"),
        }
    }

    fn since(&self, at: Ns) -> String {
        format!("+{}", duration(at.0.saturating_sub(self.start.0)))
    }

    fn parts(&mut self, parts: &[Part<Line>], depth: usize) -> io::Result<()> {
        parts.iter().try_for_each(|part| match part {
            Part::Block(line) => self.line(line, depth),
            Part::Loop(one) => self.fold(one, depth),
        })
    }

    fn fold(&mut self, one: &Loop<Line>, depth: usize) -> io::Result<()> {
        let times = match one.rounds {
            (least, most) if least == most => count(least),
            (least, most) => format!("{} to {}", count(least), count(most)),
        };
        let bars = "│ ".repeat(depth);
        writeln!(self.out, "{:>14}  {bars}┌ × {times}", "")?;
        self.last_line = None;
        self.parts(&one.body, depth + 1)?;
        let until = match &one.last {
            Line::Block(block) => self.since(block.at.1),
            Line::Interruption(interruption) => self.since(interruption.to),
        };
        self.last_line = None;
        writeln!(self.out, "{until:>14}  {bars}└")
    }

    fn line(&mut self, line: &Line, depth: usize) -> io::Result<()> {
        let bars = "│ ".repeat(depth);
        let block = match line {
            Line::Block(block) => block,
            Line::Interruption(interruption) => {
                let Interruption { what, from, to, .. } = *interruption;
                let took = duration(to.0.saturating_sub(from.0));
                let (at, name) = (self.since(from), frame_name(self.session, what));
                return writeln!(self.out, "{at:>14}  {bars}──── {name} for {took} ────");
            }
        };
        let spaces = self.session.spaces(self.stack);
        for (index, step) in steps(self.session.images, &block.stretch).enumerate() {
            // Those between the first and the last have no time of their own to tell.
            let at = match index as u64 + 1 {
                1 => self.since(block.at.0),
                last if last == block.stretch.count => self.since(block.at.1),
                _ => String::new(),
            };
            let ip = match step.addr.image {
                Some(image) => spaces
                    .versions()
                    .iter()
                    .find_map(|version| version.1.avma(image, Svma(step.addr.addr)))
                    .unwrap_or(Ip(step.addr.addr)),
                None => Ip(step.addr.addr),
            };
            // A name as long as C++ has them would push all else out of sight.
            let symbol = symbol(self.session, step.addr);
            let symbol = if self.width.is_some() { cut(&symbol, 28) } else { symbol };
            let source = self.lines.at(step.addr);
            let shown =
                source.as_deref().filter(|line| self.last_line.as_deref() != Some(*line)).unwrap_or("");
            let text = self.printer.text(&step, ip.0);
            let line =
                format!("{at:>14}  {bars}{:<18}  {symbol:<28}  {text:<40}  {shown}", format!("{:#x}", ip.0));
            self.write(&line)?;
            if source.is_some() {
                self.last_line = source;
            }
        }
        Ok(())
    }
}
