//! Source lines behind addresses, from DWARF (DWARF 5, 6.2 "Line Number Information").

use addr2line::Context;
use gimli::{Dwarf, EndianSlice, LittleEndian, SectionId};
use object::{Object, ObjectSection};
use ptflow_decoder::units::Svma;
use std::fmt;

/// A line of a source file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SourceLine<'l> {
    /// The file, as the compiler was told it.
    pub file: &'l str,
    /// The line, from 1.
    pub line: u32,
}

impl SourceLine<'_> {
    /// The file's last part.
    pub fn file_name(&self) -> &str {
        self.file.rsplit('/').next().unwrap_or(self.file)
    }
}

/// The lines of one image; none where it has no line information.
#[derive(Default)]
pub struct Lines<'d> {
    context: Option<Context<EndianSlice<'d, LittleEndian>>>,
}

impl fmt::Debug for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("known", &self.context.is_some()).finish()
    }
}

impl<'d> Lines<'d> {
    /// Of the first of these ELF files that has any. What an address belongs to is read when it is asked for. Compressed
    /// sections are not read.
    pub fn read(files: impl IntoIterator<Item = &'d [u8]>) -> Self {
        Self { context: files.into_iter().find_map(context) }
    }

    /// The line of the instruction at an address.
    pub fn at(&self, svma: Svma) -> Option<SourceLine<'_>> {
        let location = self.context.as_ref()?.find_location(svma.0).ok().flatten()?;
        Some(SourceLine { file: location.file?, line: location.line.filter(|line| *line > 0)? })
    }
}

fn context(bytes: &[u8]) -> Option<Context<EndianSlice<'_, LittleEndian>>> {
    let file = object::File::parse(bytes).ok()?;
    file.section_by_name(SectionId::DebugLine.name())?;
    let section = |id: SectionId| {
        let section = file.section_by_name(id.name());
        let plain = section.filter(|section| {
            section.compressed_file_range().is_ok_and(|range| range.format == object::CompressionFormat::None)
        });
        let data = plain.and_then(|section| section.data().ok()).unwrap_or(&[]);
        Ok::<_, gimli::Error>(EndianSlice::new(data, LittleEndian))
    };
    Context::from_dwarf(Dwarf::load(section).ok()?).ok()
}
