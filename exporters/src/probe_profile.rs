//! Sample profiles by pseudo-probe: counts by function and probe, as `clang -fpseudo-probe-for-profiling
//! -fprofile-sample-use` takes them.
//!
//! A probe ran as often as the instruction that it stands at, and copies of it add up. What tells functions apart that were
//! changed since is a checksum of each one's flow graph. (LLVM's `llvm/tools/llvm-profgen/ProfileGenerator.cpp`,
//! `generateProbeBasedProfile`.)

use crate::flow::Flow;
use crate::sample_profile::{
    FunctionSamples, MODE, Place, SampleProfile, SourceLines, Stretch, add, canonical, stretches,
};
use ptflow_decoder::image::CodeImage;
use ptflow_decoder::insn::InsnStream;
use ptflow_decoder::units::Svma;
use std::collections::BTreeSet;

/// A frame of a probe's place in the source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProbeFrame<'n> {
    /// The function's name as the linker has it.
    pub function: &'n str,
    /// The checksum of its flow graph.
    pub checksum: u64,
    /// The probe of the call of the next frame; in the last frame the probe itself.
    pub probe: u32,
}

/// A probe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe<'f, 'n> {
    /// The function whose code it is part of; where calls on the way are not known, the frames do not begin with it.
    pub outermost: &'n str,
    /// Where it is in the source, outermost function first.
    pub frames: &'f [ProbeFrame<'n>],
    /// Tells its copies apart; mostly 0.
    pub discriminator: u32,
    /// It stands for a call.
    pub is_call: bool,
}

/// What is known of a binary's probes.
pub trait ProbeSource<'n> {
    /// Tells each probe at an address.
    fn probes_at(&self, addr: u64, each: &mut dyn FnMut(Probe<'_, 'n>));
}

/// The probe at the entry of a function (LLVM's `PseudoProbeReservedId`: it is the first that is not reserved).
const ENTRY: u32 = 1;

impl<'n> SampleProfile<'n> {
    /// Of the flow through a binary with that code and those probes; its source tells where functions are.
    pub fn of_probes(
        flow: &Flow,
        code: &CodeImage<'_>,
        source: &impl SourceLines<'n>,
        probes: &impl ProbeSource<'n>,
    ) -> Self {
        let mut this = Self::default();
        let ran = functions_that_ran(flow, code, source);
        for Stretch { start, end, count } in stretches(flow, code, source) {
            let Some(bytes) = code.code_at(Svma(start)) else { continue };
            for insn in InsnStream::new(bytes, start, MODE).take_while(|insn| insn.addr < end) {
                probes.probes_at(insn.addr, &mut |probe| {
                    // As llvm-profgen, which reads no others' probes.
                    if ran.contains(probe.outermost) {
                        this.ran(&probe, count);
                    }
                });
            }
        }
        for ((from, to), taken) in &flow.branches {
            let Some(callee) = to.and_then(|to| source.entered_at(to)).map(canonical) else { continue };
            let mut is_found = false;
            let mut call = |probe: Probe<'_, 'n>| {
                if probe.is_call && ran.contains(probe.outermost) && !std::mem::replace(&mut is_found, true) {
                    this.called(&probe, callee, taken.count);
                }
            };
            if let Some(from) = from {
                probes.probes_at(*from, &mut call);
            }
        }
        this.functions.values_mut().for_each(calls_ran);
        this
    }

    fn ran(&mut self, probe: &Probe<'_, 'n>, count: u64) {
        let (Some(function), Some(last)) = (self.of_frames(probe.frames, count), probe.frames.last()) else {
            return;
        };
        let place = Place { line: last.probe, discriminator: probe.discriminator };
        add(&mut function.body.entry(place).or_default().count, count);
        if last.probe == ENTRY {
            add(&mut function.head, count);
        }
    }

    fn called(&mut self, probe: &Probe<'_, 'n>, callee: &'n str, count: u64) {
        if let (Some(function), Some(last)) = (self.of_frames(probe.frames, 0), probe.frames.last()) {
            let body = function.body.entry(Place { line: last.probe, discriminator: 0 }).or_default();
            add(body.calls.entry(callee).or_insert(0), count);
        }
    }

    /// The function that the frames end in; each of them gets so much more in total.
    fn of_frames(&mut self, frames: &[ProbeFrame<'n>], total: u64) -> Option<&mut FunctionSamples<'n>> {
        let first = frames.first()?;
        let mut function = self.functions.entry(first.function).or_default();
        function.checksum = Some(first.checksum);
        add(&mut function.total, total);
        for pair in frames.windows(2) {
            let inlined =
                function.inlined.entry(Place { line: pair[0].probe, discriminator: 0 }).or_default();
            function = inlined.entry(pair[1].function).or_default();
            function.checksum = Some(pair[1].checksum);
            add(&mut function.total, total);
        }
        Some(function)
    }
}

/// The functions with code of their own that ran.
fn functions_that_ran<'n>(
    flow: &Flow,
    code: &CodeImage<'_>,
    source: &impl SourceLines<'n>,
) -> BTreeSet<&'n str> {
    let starts = flow.ranges.executed(code).into_keys().map(|(start, _)| start);
    let sources = flow.branches.keys().filter_map(|(from, _)| *from);
    let mut frames = Vec::new();
    let mut function = |addr| {
        source.frames(addr, &mut frames);
        frames.first().map(|frame| frame.function)
    };
    starts.chain(sources).filter_map(&mut function).collect()
}

/// A call ran at least as often as what it called.
fn calls_ran(function: &mut FunctionSamples<'_>) {
    for body in function.body.values_mut() {
        body.count =
            body.count.max(body.calls.values().fold(0, |sum: u64, calls| sum.saturating_add(*calls)));
    }
}
