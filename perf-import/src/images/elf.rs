//! ELF files: mapped, with what is needed of their headers.

use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{Endianness, Object, elf};
use ptflow_decoder::image::{CodeImage, CodeRegion};
use ptflow_decoder::units::Svma;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// A mapped ELF file.
#[derive(Debug)]
pub(super) struct Elf {
    pub map: Arc<memmap2::Mmap>,
    /// Its build id in hex.
    pub build_id: Option<String>,
    segments: Vec<Segment>,
}

/// A loadable segment.
#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    vaddr: u64,
    filesz: u64,
    executable: bool,
}

impl Segment {
    /// True where it shares bytes with that part of the file.
    fn meets(&self, offset: u64, len: u64) -> bool {
        self.offset < offset.saturating_add(len) && offset < self.offset.saturating_add(self.filesz)
    }
}

impl Elf {
    /// Maps a file; `None` where it is not there or no 64-bit ELF.
    pub fn open(path: &Path) -> Option<Self> {
        // Asked before opening: opening a named pipe waits for a writer.
        std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
        let file = File::open(path).ok()?;
        // SAFETY: read-only and private; that nobody cuts the file while it is mapped is the contract of
        // `PerfFile::open`, which holds for the images too.
        let map = unsafe { memmap2::Mmap::map(&file) }.ok()?;
        let parsed = ElfFile64::<Endianness>::parse(&map[..]).ok()?;
        let build_id = parsed.build_id().ok().flatten().map(hex);
        let endian = parsed.endian();
        let headers = parsed.elf_header().program_headers(endian, &map[..]).ok()?;
        let loads = headers.iter().filter(|header| header.p_type(endian) == elf::PT_LOAD);
        let segments = loads
            .map(|header| Segment {
                offset: header.p_offset(endian),
                vaddr: header.p_vaddr(endian),
                filesz: header.p_filesz(endian),
                executable: (header.p_flags(endian).0 & elf::PF_X.0) != 0,
            })
            .collect();
        Some(Self { map: Arc::new(map), build_id, segments })
    }

    /// Name and checksum of the file with its symbols, where it says.
    pub fn debug_link(&self) -> Option<(String, u32)> {
        let parsed = ElfFile64::<Endianness>::parse(&self.map[..]).ok()?;
        let (name, crc) = parsed.gnu_debuglink().ok()??;
        // A name, and no way out of the folder.
        let name = std::str::from_utf8(name).ok().filter(|name| !name.contains('/') && *name != "..")?;
        Some((name.to_owned(), crc))
    }

    /// The executable segments' bytes at their stated addresses.
    pub fn code(&self) -> CodeImage<'_> {
        let executable = self.segments.iter().filter(|segment| segment.executable);
        let regions = executable.filter_map(|segment| {
            let start = usize::try_from(segment.offset).ok()?;
            let end = usize::try_from(segment.offset.checked_add(segment.filesz)?).ok()?;
            let bytes = self.map.get(start..end.min(self.map.len()))?;
            Some(CodeRegion { start: Svma(segment.vaddr), bytes })
        });
        CodeImage::new(regions.collect())
    }

    /// The stated address of the file's byte at `offset`, by the segment that a mapping of `len` bytes shows; an
    /// executable one where there is a choice. A mapping begins at a page, a segment may begin within it.
    pub fn svma_of(&self, offset: u64, len: u64) -> Option<u64> {
        let shown = |segment: &&Segment| segment.meets(offset, len);
        let executable = self.segments.iter().filter(|segment| segment.executable).find(shown);
        let segment = executable.or_else(|| self.segments.iter().find(shown))?;
        Some(offset.wrapping_sub(segment.offset).wrapping_add(segment.vaddr))
    }

    /// The file offset of a stated address, by the segment that `len` bytes from it on meet.
    pub fn offset_of(&self, svma: u64, len: u64) -> Option<u64> {
        let shown = |segment: &&Segment| {
            segment.vaddr < svma.saturating_add(len) && svma < segment.vaddr.saturating_add(segment.filesz)
        };
        let executable = self.segments.iter().filter(|segment| segment.executable).find(shown);
        let segment = executable.or_else(|| self.segments.iter().find(shown))?;
        Some(svma.wrapping_sub(segment.vaddr).wrapping_add(segment.offset))
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
