//! The lines of a binary's source, as the exporters ask for them.

use ptflow_exporters::sample_profile::{Frame, SourceLines};
use ptflow_perf_import::dwarf::{DebugSections, SourceFrame, SourceMap};
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
