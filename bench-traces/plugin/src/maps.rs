//! Which file the guest's code comes from: QEMU maps it, so the host's own map list tells.

use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{Endianness, Object};
use std::collections::BTreeMap;

/// An executable segment of a file in the guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mapped {
    /// First guest address.
    pub start: u64,
    /// One past the last guest address.
    pub end: u64,
    /// Offset in the file of the first byte.
    pub pgoff: u64,
    /// The file.
    pub path: String,
    /// Its build id.
    pub build_id: Option<Vec<u8>>,
}

/// What is known of the guest's code so far.
#[derive(Debug, Default)]
pub struct Maps {
    known: BTreeMap<u64, Mapped>,
    /// Ranges whose code went away, and when.
    gone: Vec<(u64, u64, u64)>,
}

const PAGE: u64 = 4096;

impl Maps {
    /// True where the address lies in a segment found before.
    pub fn knows(&self, addr: u64) -> bool {
        self.known.range(..=addr).next_back().is_some_and(|(_, mapped)| addr < mapped.end)
    }

    /// Forgets a range: at `now` the guest maps something else there.
    pub fn forget(&mut self, start: u64, len: u64, now: u64) {
        let end = start.saturating_add(len);
        let before = self.known.len();
        self.known.retain(|_, mapped| mapped.end <= start || mapped.start >= end);
        if self.known.len() < before {
            self.gone.push((start, end, now));
        }
    }

    /// When a segment was mapped: at the start, unless other code lay there before.
    pub fn mapped_at(&self, mapped: &Mapped) -> u64 {
        let overlaps = |gone: &&(u64, u64, u64)| gone.0 < mapped.end && mapped.start < gone.1;
        self.gone.iter().filter(overlaps).map(|gone| gone.2).max().unwrap_or(0)
    }

    /// Finds the segment at a guest address whose host address is `host`; `None` where no file lies there.
    pub fn find(&mut self, addr: u64, host: u64) -> Option<Mapped> {
        let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
        let (start, offset, path) = maps.lines().find_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (start, end) = range.split_once('-')?;
            let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
            if !(start..end).contains(&host) {
                return None;
            }
            let mut fields = rest.split_whitespace();
            let offset = u64::from_str_radix(fields.nth(1)?, 16).ok()?;
            let path = rest.get(rest.find('/')?..)?;
            Some((start, offset, path.to_owned()))
        })?;
        let file_offset = host - start + offset;
        let mapped = segment(&path, file_offset, addr)?;
        self.known.insert(mapped.start, mapped.clone());
        Some(mapped)
    }
}

/// The executable segment of an ELF file that holds a file offset, placed so that this offset lies at `addr`.
fn segment(path: &str, offset: u64, addr: u64) -> Option<Mapped> {
    let bytes = std::fs::read(path).ok()?;
    let file = ElfFile64::<Endianness>::parse(&bytes[..]).ok()?;
    let endian = file.endian();
    let segments = file.elf_header().program_headers(endian, &bytes[..]).ok()?;
    let segment = segments.iter().find(|segment| {
        let start = segment.p_offset(endian);
        segment.p_type(endian) == object::elf::PT_LOAD
            && segment.p_flags(endian).0 & object::elf::PF_X.0 != 0
            && (start..start + segment.p_filesz(endian)).contains(&offset)
    })?;
    let first = segment.p_offset(endian) / PAGE * PAGE;
    let end = (segment.p_offset(endian) + segment.p_filesz(endian)).next_multiple_of(PAGE);
    let start = addr - (offset - first);
    let build_id = file.build_id().ok().flatten().map(<[u8]>::to_vec);
    Some(Mapped { start, end: start + (end - first), pgoff: first, path: path.to_owned(), build_id })
}
