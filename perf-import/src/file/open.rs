//! Opening: the forms told apart, headers read, compressed records decompressed.

use super::directory::Directory;
use super::spool::Spool;
use super::{Part, PerfFile, zstd};
use crate::attr::Attr;
use crate::bytes::{Fields, Words};
use crate::events::{Event, Events};
use crate::features;
use crate::header::{Form, Header, HeaderError, Section};
use crate::record::{Compressed, Feature, HeaderAttr, Record, Records, Stretch, kind};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
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
        source: io::Error,
    },
    /// Pipes and compressed records need room.
    #[error(
        "cannot keep the records of {path} in a temporary file: {source}; choose another folder: TMPDIR=DIR"
    )]
    Spool {
        /// The capture.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another kind of file.
    #[error("{0} is not a perf.data file: it does not begin with PERFILE2; make one with perf record")]
    NotPerfData(PathBuf),
    /// The layout of perf before Linux 2.6.36.
    #[error("{0} was written by a perf of before 2011, which knew no Intel PT; record again")]
    TooOld(PathBuf),
    /// From a big-endian machine.
    #[error(
        "{0} was recorded on a big-endian machine; those have no Intel PT, and branch stacks of theirs are not read"
    )]
    BigEndian(PathBuf),
    /// Shorter than its header.
    #[error("{path} is cut short: {len} bytes do not hold a perf.data header; record again")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
    },
}

impl PerfFile {
    /// Maps a file, or the files of a directory, and reads the header. No record is looked at but the headers of those
    /// in the file's AUXTRACE index, unless the form asks for it: a pipe's stream is walked for events and features, and
    /// compressed records are decompressed.
    ///
    /// The file must not be cut while it is mapped: as with every tool that maps its input, touching bytes that are
    /// gone ends the process.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(io)?.is_dir() {
            let directory = Directory::read(path).map_err(io)?;
            let mut opening = Opening::new(path, map(&directory.data)?)?;
            for more in &directory.more {
                opening.bare(more)?;
            }
            return opening.finish(directory.kernel);
        }
        Opening::new(path, map(path)?)?.finish(None)
    }

    /// Reads a stream to its end, such as standard input; `name` is what to call it. A whole file that comes through a
    /// pipe is taken too.
    pub fn read(name: &Path, from: impl Read) -> Result<Self, OpenError> {
        Opening::new(name, spooled(name, from)?)?.finish(None)
    }
}

/// Maps a regular file; anything else that can be read is kept first.
fn map(path: &Path) -> Result<memmap2::Mmap, OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return spooled(path, file);
    }
    if metadata.len() == 0 {
        return Err(OpenError::Truncated { path: path.to_owned(), len: 0 });
    }
    // SAFETY: the map is read-only and private to this process; that nobody cuts the file is the contract of `open`.
    unsafe { memmap2::Mmap::map(&file) }.map_err(io)
}

/// Keeps a stream, if it begins as a capture does: others may have no end.
fn spooled(path: &Path, mut from: impl Read) -> Result<memmap2::Mmap, OpenError> {
    let mut start = Vec::new();
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    from.by_ref().take(Header::PIPE_SIZE).read_to_end(&mut start).map_err(io)?;
    Header::read(&start).map(drop).or_else(|error| match error {
        // More is to come.
        HeaderError::Short if start.len() as u64 == Header::PIPE_SIZE => Ok(()),
        error => Err(refusal(error, path, start.len())),
    })?;
    let spool = |source| OpenError::Spool { path: path.to_owned(), source };
    let mut kept = Spool::new().map_err(spool)?;
    kept.fill(&start[..]).and_then(|()| kept.fill(from)).map_err(spool)?;
    let none = || OpenError::Truncated { path: path.to_owned(), len: 0 };
    kept.map().map_err(spool)?.ok_or_else(none)
}

fn refusal(error: HeaderError, path: &Path, len: usize) -> OpenError {
    let path = path.to_owned();
    match error {
        HeaderError::NotPerfData => OpenError::NotPerfData(path),
        HeaderError::Version1 => OpenError::TooOld(path),
        HeaderError::BigEndian => OpenError::BigEndian(path),
        HeaderError::Short => OpenError::Truncated { path, len: len as u64 },
    }
}

/// A capture that is being put together.
struct Opening {
    file: PerfFile,
    /// There may be compressed records.
    maybe_compressed: bool,
}

impl Opening {
    fn new(path: &Path, map: memmap2::Mmap) -> Result<Self, OpenError> {
        let form = Header::read(&map).map_err(|error| refusal(error, path, map.len()))?;
        let mut this = Self {
            file: PerfFile {
                path: path.to_owned(),
                parts: Vec::new(),
                events: Events::default(),
                features: BTreeMap::new(),
                is_pipe: false,
                kernel: None,
                notes: Vec::new(),
            },
            maybe_compressed: true,
        };
        match form {
            Form::File(header) => this.file(map, &header),
            Form::Pipe => this.pipe(map),
        }
        Ok(this)
    }

    /// A file whose header names its sections.
    fn file(&mut self, map: memmap2::Mmap, header: &Header) {
        let file = &mut self.file;
        file.events = Events::new(read_events(&map, header));
        let mut data = header.data;
        // perf fills the size in at the end; a recording that was killed has none, and no features behind it.
        if data.size == 0 {
            file.notes.push("the recording was not ended properly: no feature sections".to_owned());
            data.size = u64::MAX;
        } else {
            if data.end() > map.len() as u64 {
                let missing = data.end() - map.len() as u64;
                file.notes.push(format!("the file is cut short: {missing} bytes of records are missing"));
            }
            let table = Section { offset: data.end(), size: u64::MAX }.within(map.len());
            let mut table = Fields(&map[table]);
            for bit in header.feature_bits() {
                let Some(section) = Section::read(&mut table) else { break };
                file.features.insert(bit, section.within(map.len()));
            }
            let whole = header.feature_bits().count() == file.features.len();
            self.maybe_compressed = !whole || file.features.contains_key(&features::bit::COMPRESSED);
        }
        let records = data.within(map.len());
        let index =
            file.features.get(&features::bit::AUXTRACE).map_or(&[][..], |section| &map[section.clone()]);
        let auxtrace = confirmed(&map[records.clone()], records.start, index);
        file.parts.push(Part { map, base: 0, records, auxtrace });
    }

    /// A pipe's stream: a short header, then nothing but records.
    fn pipe(&mut self, map: memmap2::Mmap) {
        let start = Header::PIPE_SIZE as usize;
        let mut events = Vec::new();
        let mut features = BTreeMap::new();
        let place = |part: &[u8]| {
            let from = part.as_ptr().addr() - map.as_ptr().addr();
            from..from + part.len()
        };
        for record in Records::new(vec![Stretch { data: &map[start..], base: start as u64, sure: &[] }]) {
            match record.kind {
                kind::HEADER_ATTR => events.extend(HeaderAttr::read(&record).map(event)),
                kind::HEADER_FEATURE => {
                    // The last one is empty and of no feature: it says that there are no more.
                    let feature = Feature::read(&record).filter(|feature| !feature.data.is_empty());
                    if let Some(Feature { bit, data }) = feature
                        && let Ok(bit) = u8::try_from(bit)
                    {
                        features.entry(bit).or_insert_with(|| place(data));
                    }
                }
                _ => {}
            }
        }
        self.file.is_pipe = true;
        self.file.events = Events::new(events);
        self.file.features = features;
        let records = start..map.len();
        self.file.parts.push(Part { map, base: 0, records, auxtrace: Vec::new() });
    }

    /// A further file of a directory: records and nothing else.
    fn bare(&mut self, path: &Path) -> Result<(), OpenError> {
        match map(path) {
            Ok(map) => {
                let records = 0..map.len();
                self.push(map, records);
                Ok(())
            }
            // A thread that recorded nothing.
            Err(OpenError::Truncated { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn push(&mut self, map: memmap2::Mmap, records: std::ops::Range<usize>) {
        let base = self.file.parts.last().map_or(0, |last| last.base.saturating_add(last.map.len() as u64));
        self.file.parts.push(Part { map, base, records, auxtrace: Vec::new() });
    }

    fn finish(mut self, kernel: Option<PathBuf>) -> Result<PerfFile, OpenError> {
        if self.maybe_compressed {
            self.decompress().map_err(|source| OpenError::Spool { path: self.file.path.clone(), source })?;
        }
        self.file.kernel = kernel;
        Ok(self.file)
    }

    /// Each file is a zstd stream of its own.
    fn decompress(&mut self) -> io::Result<()> {
        for index in 0..self.file.parts.len() {
            let records = Records::new(vec![self.file.parts[index].stretch()]);
            let payloads = records.filter_map(|record| compressed(&record));
            if payloads.clone().next().is_none() {
                continue;
            }
            let zstd::Decompressed { map, problem } = zstd::decompress(payloads)?;
            if let Some(problem) = problem {
                self.file.notes.push(format!("compressed records are damaged: {problem}"));
            }
            if let Some(map) = map {
                let records = 0..map.len();
                self.push(map, records);
            }
        }
        Ok(())
    }
}

fn compressed<'m>(record: &Record<'m>) -> Option<&'m [u8]> {
    match record.kind {
        kind::COMPRESSED | kind::COMPRESSED2 => Some(Compressed::read(record)?.data),
        _ => None,
    }
}

fn event(header: HeaderAttr<'_>) -> Event {
    Event { attr: Attr::read(header.attr), ids: header.ids.iter().collect() }
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
        let ids = Section::read(&mut Fields(ids)).unwrap_or_default().within(map.len());
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
