//! The lines and the probes of a binary's source, as the exporters ask for them.

use ptflow_exporters::probe_profile::{self, ProbeFrame, ProbeSource};
use ptflow_exporters::sample_profile::{Frame, SourceLines};
use ptflow_perf_import::dwarf::{DebugSections, SourceFrame, SourceMap};
use ptflow_perf_import::pseudo_probes::{ProbeKind, PseudoProbes};
use std::cell::RefCell;

/// A binary's DWARF.
pub struct DwarfLines<'d> {
    /// The lines.
    pub map: SourceMap<'d>,
    scratch: RefCell<Vec<SourceFrame<'d>>>,
}

impl<'d> DwarfLines<'d> {
    /// Of those sections.
    pub fn read(sections: &'d DebugSections<'_>) -> Self {
        Self { map: SourceMap::read(sections), scratch: RefCell::default() }
    }
}

impl<'d> SourceLines<'d> for DwarfLines<'d> {
    fn frames(&self, addr: u64, frames: &mut Vec<Frame<'d>>) {
        let mut found = self.scratch.borrow_mut();
        self.map.frames(addr, &mut found);
        frames.clear();
        frames.extend(found.iter().map(|frame| Frame {
            function: frame.function,
            declared: frame.declared,
            line: frame.line,
            discriminator: frame.discriminator,
        }));
    }

    fn entered_at(&self, addr: u64) -> Option<&'d str> {
        self.map.function_entered_at(addr).map(|function| function.name)
    }

    fn ranges_around(&self, addr: u64) -> Vec<(u64, u64)> {
        self.map.function_at(addr).map(|function| function.parts.clone()).unwrap_or_default()
    }
}

/// A binary's pseudo-probes.
pub struct Probes<'p, 'd>(pub &'p PseudoProbes<'d>);

impl<'d> ProbeSource<'d> for Probes<'_, 'd> {
    fn probes_at(&self, addr: u64, each: &mut dyn FnMut(probe_profile::Probe<'_, 'd>)) {
        let (mut found, mut frames) = (Vec::new(), Vec::new());
        for probe in self.0.at(addr) {
            self.0.frames(probe, &mut found);
            frames.clear();
            frames.extend(found.iter().map(|frame| ProbeFrame {
                function: frame.function,
                checksum: frame.checksum,
                probe: frame.probe,
            }));
            let Some(outermost) = self.0.outermost(probe) else { continue };
            each(probe_profile::Probe {
                outermost,
                frames: &frames,
                discriminator: probe.discriminator,
                is_call: probe.kind == ProbeKind::Call,
            });
        }
    }
}
