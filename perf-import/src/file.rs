//! A mapped perf.data file: header, events, feature sections, records.
//!
//! Pipe streams, directories and compressed records are told apart here and refused or noted. When they come, they are
//! further stretches of records for [`Records`] and further events for [`Events`]; nothing behind these two changes.

use crate::attr::Attr;
use crate::bytes::Words;
use crate::events::{Event, Events};
use crate::features;
use crate::header::{Header, HeaderError, Section};
use crate::record::{Records, kind};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Why a file could not be opened. Each is one line: what, where, what to do.
#[derive(thiserror::Error, Debug)]
pub enum OpenError {
    /// The file system said no.
    #[error("cannot open {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A folder.
    #[error(
        "{0} is a directory; perf.data directories are not read yet: record without --kcore and --threads"
    )]
    Directory(PathBuf),
    /// A pipe, a device, a socket: it cannot be mapped.
    #[error("{0} is not a regular file; write the recording to one with perf record -o FILE")]
    NotAFile(PathBuf),
    /// Another kind of file.
    #[error("{0} is not a perf.data file: it does not begin with PERFILE2; make one with perf record")]
    NotPerfData(PathBuf),
    /// The layout of perf before Linux 2.6.36.
    #[error("{0} was written by a perf of before 2011, which knew no Intel PT; record again")]
    TooOld(PathBuf),
    /// From a big-endian machine.
    #[error("{0} was recorded on a big-endian machine, which has no Intel PT")]
    BigEndian(PathBuf),
    /// Written by `perf record -o -`.
    #[error("{0} is a perf pipe stream, which is not read yet; write it to a file with perf record -o FILE")]
    Pipe(PathBuf),
    /// Shorter than its header.
    #[error("{path} is cut short: {len} bytes do not hold a perf.data header; record again")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
    },
}

/// A mapped file.
#[derive(Debug)]
pub struct PerfFile {
    path: PathBuf,
    map: memmap2::Mmap,
    events: Events,
    data: std::ops::Range<usize>,
    features: BTreeMap<u8, std::ops::Range<usize>>,
    /// Where in `data` AUXTRACE records begin, rising: what the file's index says and the bytes there confirm.
    auxtrace: Vec<usize>,
    /// What was found wrong, in words.
    notes: Vec<String>,
}

impl PerfFile {
    /// Maps a file and reads its header. No record is looked at, but the headers of those in the file's AUXTRACE index.
    ///
    /// The file must not be cut while it is mapped: as with every tool that maps its input, touching bytes that are
    /// gone ends the process.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        // Asked before opening: opening a named pipe waits for a writer.
        let metadata = std::fs::metadata(path).map_err(io)?;
        if metadata.is_dir() {
            return Err(OpenError::Directory(path.to_owned()));
        }
        if !metadata.is_file() {
            return Err(OpenError::NotAFile(path.to_owned()));
        }
        let file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.len() == 0 {
            return Err(OpenError::Truncated { path: path.to_owned(), len: 0 });
        }
        // SAFETY: the map is read-only and private to this process; that nobody cuts the file is the contract above.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        let header = Header::read(&map).map_err(|error| {
            let path = path.to_owned();
            match error {
                HeaderError::NotPerfData => OpenError::NotPerfData(path),
                HeaderError::Version1 => OpenError::TooOld(path),
                HeaderError::BigEndian => OpenError::BigEndian(path),
                HeaderError::Pipe => OpenError::Pipe(path),
                HeaderError::Short => OpenError::Truncated { path, len: map.len() as u64 },
            }
        })?;
        Ok(Self::of_map(path, map, header))
    }

    fn of_map(path: &Path, map: memmap2::Mmap, header: Header) -> Self {
        let mut notes = Vec::new();
        let events = Events::new(read_events(&map, &header));
        let mut data = header.data;
        let mut features = BTreeMap::new();
        // perf fills the size in at the end; a recording that was killed has none, and no features behind it.
        if data.size == 0 {
            notes.push("the recording was not ended properly: no feature sections".to_owned());
            data.size = u64::MAX;
        } else {
            if data.end() > map.len() as u64 {
                let missing = data.end() - map.len() as u64;
                notes.push(format!("the file is cut short: {missing} bytes of records are missing"));
            }
            let table = Section { offset: data.end(), size: u64::MAX }.within(map.len());
            let mut table = crate::bytes::Fields(&map[table]);
            for bit in header.feature_bits() {
                let Some(section) = Section::read(&mut table) else { break };
                features.insert(bit, section.within(map.len()));
            }
        }
        let data = data.within(map.len());
        let index = features.get(&features::bit::AUXTRACE).map_or(&[][..], |section| &map[section.clone()]);
        let auxtrace = confirmed(&map[data.clone()], data.start, index);
        Self { path: path.to_owned(), map, events, data, features, auxtrace, notes }
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's length in bytes.
    pub fn len(&self) -> u64 {
        self.map.len() as u64
    }

    /// True where the file is empty; such a file cannot be opened.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The events.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// The bytes of a feature section, if the file has it ([`features::bit`]).
    pub fn feature(&self, bit: u8) -> Option<&[u8]> {
        Some(&self.map[self.features.get(&bit)?.clone()])
    }

    /// The feature sections that there are.
    pub fn feature_bits(&self) -> impl Iterator<Item = u8> + '_ {
        self.features.keys().copied()
    }

    /// The records, in file order.
    pub fn records(&self) -> Records<'_> {
        Records::new(&self.map[self.data.clone()], self.data.start as u64, &self.auxtrace)
    }

    /// What was found wrong with the file, in words.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// The events of the attrs section.
fn read_events(map: &[u8], header: &Header) -> Vec<Event> {
    /// The section of an event's ids, behind its attr.
    const IDS: usize = 16;
    /// `PERF_ATTR_SIZE_VER0`; no smaller attr was ever published.
    const SMALLEST_ATTR: usize = 64;
    let size = usize::try_from(header.attr_size).ok();
    let Some(step) = size.filter(|step| *step >= SMALLEST_ATTR + IDS) else {
        return Vec::new();
    };
    // Events may point at the same ids; together they never have more than the file could hold once.
    let mut budget = map.len() / 8;
    let event = |entry: &[u8]| {
        let (attr, ids) = entry.split_at(step - IDS);
        let ids = Section::read(&mut crate::bytes::Fields(ids)).unwrap_or_default().within(map.len());
        let ids: Vec<u64> = Words::new(&map[ids]).iter().take(budget).collect();
        budget -= ids.len();
        Event { attr: Attr::read(attr), ids }
    };
    map[header.attrs.within(map.len())].chunks_exact(step).map(event).collect()
}

/// The places of `data` that the AUXTRACE index names and where an AUXTRACE record does begin.
fn confirmed(data: &[u8], base: usize, index: &[u8]) -> Vec<usize> {
    let mut places: Vec<usize> = features::auxtrace_index(index)
        .filter_map(|offset| usize::try_from(offset.0).ok()?.checked_sub(base))
        .filter(|at| data.get(*at..).is_some_and(|rest| rest.starts_with(&kind::AUXTRACE.to_le_bytes())))
        .collect();
    places.sort_unstable();
    places.dedup();
    places
}
