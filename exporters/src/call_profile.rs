//! What call stacks cost, in three forms: by function, as folded stacks for flame graphs, and for pprof.
//!
//! | format | lines | read by |
//! | --- | --- | --- |
//! | `functions` | `FUNCTION CALLS INSTRUCTIONS ALL_INSTRUCTIONS NS ALL_NS`, tab-separated, behind a header | people, scripts |
//! | `folded` | `THREAD;OUTER;INNER COUNT` | flamegraph.pl, inferno, speedscope |
//!
//! What is a function's own leaves out what it called; what is all its own is counted once where it called itself.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

/// A frame of a stack, with the one below it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StackFrame {
    /// Index of the frame below, which comes before this one; `None` for a thread.
    pub parent: Option<usize>,
    /// Index of its name.
    pub name: usize,
    /// Calls.
    pub calls: u64,
    /// Instructions of its own.
    pub instructions: u64,
    /// Nanoseconds of its own.
    pub ns: u64,
}

/// What stacks are weighed by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weight {
    /// Instructions.
    Instructions,
    /// Nanoseconds.
    Time,
}

/// All stacks of a capture.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StackCosts {
    /// Threads, functions.
    pub names: Vec<String>,
    /// The frames; each comes behind the one below it.
    pub frames: Vec<StackFrame>,
}

/// The first line of `functions`.
pub const HEADER: &str = "#ptflow-functions 1\n#FUNCTION\tCALLS\tINSTRUCTIONS\tALL_INSTRUCTIONS\tNS\tALL_NS";

/// Calls, instructions and time of a function: its own, and with all that it called.
#[derive(Clone, Copy, Default)]
struct Costs {
    calls: u64,
    own: (u64, u64),
    all: (u64, u64),
}

impl StackCosts {
    /// The frame and those below it, youngest first.
    pub(crate) fn stack(&self, frame: usize) -> impl Iterator<Item = &StackFrame> {
        std::iter::successors(self.frames.get(frame), |frame| self.frames.get(frame.parent?))
    }

    fn name(&self, frame: &StackFrame) -> &str {
        self.names.get(frame.name).map_or("?", String::as_str)
    }

    /// Writes `functions`: who ran the most instructions himself comes first.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_functions(&self, out: &mut impl Write) -> io::Result<()> {
        let mut all: Vec<(u64, u64)> =
            self.frames.iter().map(|frame| (frame.instructions, frame.ns)).collect();
        for (index, frame) in self.frames.iter().enumerate().rev() {
            let (instructions, ns) = all[index];
            if let Some(below) = frame.parent.filter(|parent| *parent < index) {
                all[below] = (all[below].0.saturating_add(instructions), all[below].1.saturating_add(ns));
            }
        }
        let mut costs: HashMap<&str, Costs> = HashMap::new();
        for (index, frame) in self.frames.iter().enumerate().filter(|(_, frame)| frame.parent.is_some()) {
            let costs = costs.entry(self.name(frame)).or_default();
            costs.calls += frame.calls;
            costs.own = (costs.own.0 + frame.instructions, costs.own.1 + frame.ns);
            if !self.stack(index).skip(1).any(|below| below.parent.is_some() && below.name == frame.name) {
                costs.all = (costs.all.0 + all[index].0, costs.all.1 + all[index].1);
            }
        }
        let mut costs: Vec<(&str, Costs)> = costs.into_iter().collect();
        costs.sort_unstable_by_key(|(name, costs)| (Reverse(costs.own.0), *name));
        writeln!(out, "{HEADER}")?;
        for (name, Costs { calls, own, all }) in costs {
            writeln!(out, "{name}\t{calls}\t{}\t{}\t{}\t{}", own.0, all.0, own.1, all.1)?;
        }
        Ok(())
    }

    /// Writes `folded`, in alphabetical order.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_folded(&self, out: &mut impl Write, weight: Weight) -> io::Result<()> {
        let mut lines: BTreeMap<String, u64> = BTreeMap::new();
        for (index, frame) in self.frames.iter().enumerate() {
            let count = match weight {
                Weight::Instructions => frame.instructions,
                Weight::Time => frame.ns,
            };
            if count > 0 {
                let names: Vec<String> =
                    self.stack(index).map(|frame| self.name(frame).replace(';', ":")).collect();
                let line = names.into_iter().rev().collect::<Vec<_>>().join(";");
                *lines.entry(line).or_insert(0) += count;
            }
        }
        lines.iter().try_for_each(|(line, count)| writeln!(out, "{line} {count}"))
    }
}
