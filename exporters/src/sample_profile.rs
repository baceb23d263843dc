//! Sample profiles: counts by function and line of source, as `clang -fprofile-sample-use` takes them.
//!
//! Each instruction of a range ran as often as the range. A line's count is that of its most frequent instruction, as
//! llvm-profgen has it: a line is as hot as its hottest block. What was inlined counts in a profile of its own within its
//! caller's. All of a function that ran is in the profile, with 0 where nothing of it ran: the compiler takes what is not
//! mentioned for unknown, not for cold. (LLVM's `llvm/tools/llvm-profgen/ProfileGenerator.cpp`.)

use crate::flow::Flow;
use ptflow_decoder::image::CodeImage;
use ptflow_decoder::insn::{InsnStream, decode};
use ptflow_decoder::packet::ExecMode;
use ptflow_decoder::units::Svma;
use std::collections::BTreeMap;

/// A place in a function: the frame of an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'n> {
    /// The function's name as the linker has it.
    pub function: &'n str,
    /// The line of the function's declaration.
    pub declared: u32,
    /// Lines since the function's declaration.
    pub line: u32,
    /// The discriminator as DWARF has it.
    pub discriminator: u32,
}

/// What is known of a binary's source.
pub trait SourceLines<'n> {
    /// Puts the frames of an instruction into `frames`, outermost first; none where its source is not known.
    fn frames(&self, addr: u64, frames: &mut Vec<Frame<'n>>);
    /// The name of the function that is entered at an address.
    fn entered_at(&self, addr: u64) -> Option<&'n str>;
    /// The code of the function that holds an address: start and end of each part.
    fn ranges_around(&self, addr: u64) -> Vec<(u64, u64)>;
}

/// A line of a function, and which of its blocks; in a profile by probe, the number of the probe.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Place {
    /// Lines since the function's declaration.
    pub line: u32,
    /// Which block of the line.
    pub discriminator: u32,
}

/// What ran at a place.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Body<'n> {
    /// How often.
    pub count: u64,
    /// Functions called from there, and how often.
    pub calls: BTreeMap<&'n str, u64>,
}

/// The profile of a function, or of a copy of it that was inlined.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FunctionSamples<'n> {
    /// Counts of all its bytes, inlined ones among them.
    pub total: u64,
    /// How often it was called.
    pub head: u64,
    /// The checksum of its flow graph, in a profile by probe.
    pub checksum: Option<u64>,
    /// Its own lines.
    pub body: BTreeMap<Place, Body<'n>>,
    /// What was inlined where.
    pub inlined: BTreeMap<Place, BTreeMap<&'n str, FunctionSamples<'n>>>,
}

/// The profiles of a binary's functions, by name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SampleProfile<'n> {
    /// By name.
    pub functions: BTreeMap<&'n str, FunctionSamples<'n>>,
}

impl<'n> SampleProfile<'n> {
    /// Of the flow through a binary with that code.
    pub fn new(flow: &Flow, code: &CodeImage<'_>, source: &impl SourceLines<'n>) -> Self {
        let mut this = Self::default();
        let mut frames = Vec::new();
        for Stretch { start, end, count } in stretches(flow, code, source) {
            let Some(bytes) = code.code_at(Svma(start)) else { continue };
            for insn in InsnStream::new(bytes, start, MODE).take_while(|insn| insn.addr < end) {
                source.frames(insn.addr, &mut frames);
                let total = count.saturating_mul(insn.len.into());
                if let (Some(function), Some(last)) = (this.leaf(&frames, total), frames.last()) {
                    function.ran(last, count);
                }
            }
        }
        for ((from, to), taken) in &flow.branches {
            let Some(callee) = to.and_then(|to| source.entered_at(to)).map(canonical) else { continue };
            frames.clear();
            if let Some(from) = from {
                source.frames(*from, &mut frames);
            }
            if let (Some(function), Some(last)) = (this.leaf(&frames, 0), frames.last()) {
                let body = function.body.entry(place(last)).or_default();
                add(body.calls.entry(callee).or_insert(0), taken.count);
                // Copies of a call, of which the most frequent one was taken, make as many calls as all of them. In
                // inlined functions llvm-profgen leaves it at that, and so do we.
                if frames.len() == 1 {
                    let calls = body.calls.values().fold(0, |sum: u64, calls| sum.saturating_add(*calls));
                    body.count = body.count.max(calls);
                }
            }
            add(&mut this.functions.entry(callee).or_default().head, taken.count);
        }
        this
    }

    /// True where nothing ran whose source is known.
    pub fn is_empty(&self) -> bool {
        self.functions.is_empty()
    }

    /// True where counts are of probes, not of lines.
    pub fn is_of_probes(&self) -> bool {
        self.functions.values().any(|function| function.checksum.is_some())
    }

    /// The function that a stack of frames ends in; each of the stack gets so much more in total.
    fn leaf(&mut self, frames: &[Frame<'n>], total: u64) -> Option<&mut FunctionSamples<'n>> {
        let mut function = self.functions.entry(canonical(frames.first()?.function)).or_default();
        add(&mut function.total, total);
        for pair in frames.windows(2) {
            let inlined = function.inlined.entry(place(&pair[0])).or_default();
            function = inlined.entry(canonical(pair[1].function)).or_default();
            add(&mut function.total, total);
        }
        Some(function)
    }
}

impl FunctionSamples<'_> {
    fn ran(&mut self, frame: &Frame<'_>, count: u64) {
        // A loop that was unrolled is in the code so many times, each with its share of the rounds.
        let count = count.saturating_mul(copies(frame.discriminator).into());
        let body = self.body.entry(place(frame)).or_default();
        body.count = body.count.max(count);
    }
}

pub(crate) fn add(sum: &mut u64, count: u64) {
    *sum = sum.saturating_add(count);
}

fn place(frame: &Frame<'_>) -> Place {
    Place { line: frame.line, discriminator: first_component(frame.discriminator) }
}

/// The name that the compiler looks a profile up by: without what later passes append to the name of a copy
/// (LLVM's `FunctionSamples::getCanonicalFnName`, "selected").
pub(crate) fn canonical(name: &str) -> &str {
    [".llvm.", ".part."].into_iter().fold(name, |name, suffix| match name.rfind(suffix) {
        Some(at) if name.rfind('.') == Some(at + suffix.len() - 1) => &name[..at],
        _ => name,
    })
}

/// The first of the three numbers in a discriminator, which tells blocks of a line apart (LLVM's
/// `llvm/include/llvm/IR/DebugInfoMetadata.h`, `getBaseDiscriminatorFromDiscriminator`): a set lowest bit is a 0; else 5 bits
/// follow, and 7 more where the bit above them is set.
fn first_component(discriminator: u32) -> u32 {
    if discriminator & 1 != 0 {
        return 0;
    }
    let rest = discriminator >> 1;
    if rest & 0x20 != 0 { rest >> 1 & 0xfe0 | rest & 0x1f } else { rest & 0x1f }
}

/// The second one: into how many copies the code was unrolled (`getDuplicationFactorFromDiscriminator`).
fn copies(discriminator: u32) -> u32 {
    let width = match discriminator {
        first if first & 1 != 0 => 1,
        first if first & 0x40 != 0 => 14,
        _ => 7,
    };
    first_component(discriminator >> width).max(1)
}

pub(crate) const MODE: ExecMode = ExecMode::Bits64;

/// Code that ran so often, all of it.
pub(crate) struct Stretch {
    pub start: u64,
    pub end: u64,
    pub count: u64,
}

/// What begins and ends at an address.
#[derive(Clone, Copy, Default)]
struct Change {
    /// Counts of ranges.
    more: u64,
    less: u64,
    /// Ranges and functions.
    begin: u64,
    end: u64,
}

/// The ranges, cut into disjoint stretches, with the rest of each function that ran as stretches of 0.
pub(crate) fn stretches<'n>(
    flow: &Flow,
    code: &CodeImage<'_>,
    source: &impl SourceLines<'n>,
) -> Vec<Stretch> {
    let mut changes: BTreeMap<u64, Change> = BTreeMap::new();
    let mut cover = |start: u64, end: u64, count: u64| {
        let change = changes.entry(start).or_default();
        add(&mut change.more, count);
        change.begin += 1;
        let change = changes.entry(end).or_default();
        add(&mut change.less, count);
        change.end += 1;
    };
    let mut functions = BTreeMap::new();
    for ((start, end), count) in flow.ranges.executed(code) {
        let last = code.code_at(Svma(end)).and_then(|bytes| decode(bytes, end, MODE));
        let Some(last) = last else { continue };
        cover(start, last.next(), count);
        functions.entry(start).or_insert_with(|| source.ranges_around(start));
    }
    let mut whole: Vec<(u64, u64)> = functions.into_values().flatten().collect();
    whole.sort_unstable();
    whole.dedup();
    whole.into_iter().for_each(|(start, end)| cover(start, end, 0));
    let mut stretches = Vec::new();
    let (mut since, mut count, mut covers) = (0, 0u64, 0u64);
    for (at, change) in changes {
        if covers > 0 {
            stretches.push(Stretch { start: since, end: at, count });
        }
        count = count.saturating_add(change.more).saturating_sub(change.less);
        covers = covers + change.begin - change.end;
        since = at;
    }
    stretches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discriminators_as_llvm_packs_them() {
        // DILocation::encodeDiscriminator(BD, DF, CI): 1 -> 2; 31 -> 62; 32 -> 0xc0; with DF 3: 2 | 3 << 1 << 7.
        for (packed, first, second) in [
            (0, 0, 1),
            (2, 1, 1),
            (62, 31, 1),
            (0x40 | 1 << 7, 32, 1),
            (2 | 6 << 7, 1, 3),
            (1 | 6 << 1, 0, 3),
        ] {
            assert_eq!((first_component(packed), copies(packed)), (first, second), "{packed:#x}");
        }
    }

    #[test]
    fn names_without_what_passes_append() {
        for (name, expected) in [
            ("f", "f"),
            ("f.llvm.123", "f"),
            ("f.part.0", "f"),
            ("f.__uniq.17", "f.__uniq.17"),
            ("f.llvm.1.cold", "f.llvm.1.cold"),
        ] {
            assert_eq!(canonical(name), expected);
        }
    }
}
