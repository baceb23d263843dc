//! The code of an ELF file: its executable segment, and where functions lie in it by the unwind tables, which stripped
//! files have too.

use anyhow::{Context as _, bail};
use gimli::{BaseAddresses, CieOrFde, EhFrame, LittleEndian, UnwindSection as _};
use memmap2::Mmap;
use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _};
use object::{Endianness, Object as _, ObjectSection as _, elf};
use std::fs::File;
use std::ops::Range;
use std::path::Path;

const PAGE: u64 = 4096;

/// An ELF file's executable segment, mapped as the kernel's loader would.
#[derive(Debug)]
pub struct ElfCode {
    /// The file's full path.
    pub path: String,
    /// Its build id.
    pub build_id: Option<Vec<u8>>,
    /// Where the segment lies at run time, in whole pages.
    pub mapped: Range<u64>,
    /// Offset in the file of the first mapped byte.
    pub pgoff: u64,
    /// The functions' addresses at run time, sorted, without overlaps.
    pub functions: Vec<Range<u64>>,
    /// Sections of stubs that jump to other files' functions.
    pub stubs: Vec<Range<u64>>,
    file: Mmap,
}

impl ElfCode {
    /// Opens a file; `bias` is where it is loaded, unless it says itself where it belongs.
    pub fn open(path: &Path, bias: u64) -> anyhow::Result<Self> {
        let path = path.canonicalize().with_context(|| format!("cannot open {}", path.display()))?;
        let name = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?.to_owned();
        // SAFETY: read only; who changes the file meanwhile gets a capture of garbage, or an error.
        let file = unsafe { Mmap::map(&File::open(&path)?)? };
        let elf =
            ElfFile64::<Endianness>::parse(&file[..]).with_context(|| format!("{name} is no ELF file"))?;
        let endian = elf.endian();
        let header = elf.elf_header();
        if header.e_machine(endian) != elf::EM_X86_64 {
            bail!("{name} is not for x86-64");
        }
        let bias = if header.e_type(endian) == elf::ET_DYN { bias } else { 0 };
        let segments = header.program_headers(endian, &file[..])?;
        let segment = segments.iter().find(|segment| {
            segment.p_type(endian) == elf::PT_LOAD && segment.p_flags(endian).0 & elf::PF_X.0 != 0
        });
        let segment = segment.with_context(|| format!("{name} has no executable segment"))?;
        let (offset, vaddr) = (segment.p_offset(endian), segment.p_vaddr(endian));
        let code = vaddr + bias..vaddr + bias + segment.p_filesz(endian);
        let stubs = elf
            .sections()
            .filter(|section| section.name().is_ok_and(|name| name.starts_with(".plt")))
            .map(|section| section.address() + bias..section.address() + section.size() + bias)
            .collect();
        let mut this = Self {
            build_id: elf.build_id().ok().flatten().map(<[u8]>::to_vec),
            mapped: code.start / PAGE * PAGE..code.end.next_multiple_of(PAGE),
            pgoff: offset / PAGE * PAGE,
            functions: functions(&elf, bias)
                .with_context(|| format!("cannot read {name}'s unwind tables"))?,
            stubs,
            path: name,
            file,
        };
        this.functions.retain(|function| code.start <= function.start && function.end <= code.end);
        if this.functions.is_empty() {
            bail!("{} has no functions in its unwind tables", this.path);
        }
        Ok(this)
    }

    /// The bytes from an address up to another; none where that is not in the segment.
    pub fn bytes(&self, range: Range<u64>) -> &[u8] {
        let offset = |addr: u64| usize::try_from(addr.checked_sub(self.mapped.start)? + self.pgoff).ok();
        let range = offset(range.start).zip(offset(range.end));
        range.and_then(|(start, end)| self.file.get(start..end)).unwrap_or(&[])
    }
}

/// The ranges that the frame description entries describe.
fn functions(elf: &ElfFile64<'_>, bias: u64) -> anyhow::Result<Vec<Range<u64>>> {
    let section = elf.section_by_name(".eh_frame").context("no .eh_frame")?;
    let frames = EhFrame::new(section.data()?, LittleEndian);
    let bases = BaseAddresses::default().set_eh_frame(section.address());
    let mut entries = frames.entries(&bases);
    let mut functions = Vec::new();
    while let Some(entry) = entries.next()? {
        if let CieOrFde::Fde(entry) = entry {
            let entry = entry.parse(EhFrame::cie_from_offset)?;
            let start = entry.initial_address() + bias;
            functions.push(start..start + entry.len());
        }
    }
    functions.sort_unstable_by_key(|function| (function.start, function.end));
    let mut end = 0;
    functions.retain(|function| {
        let keep = function.start >= end && !function.is_empty();
        end = end.max(function.end);
        keep
    });
    Ok(functions)
}
