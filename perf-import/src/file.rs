//! A mapped perf.data file: header, attributes, feature sections, records.
//!
//! Layout: linux `tools/perf/Documentation/perf.data-file-format.txt` and `tools/perf/util/header.h`.

use crate::attr::Attr;
use crate::bytes::Fields;
use crate::record::Records;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Magic of the only layout that today's perf writes, read as a little-endian number.
const MAGIC: [u8; 8] = *b"PERFILE2";
const HEADER_SIZE: u64 = 104;

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
    /// Another kind of file.
    #[error("{0} is not a perf.data file: it does not begin with PERFILE2; make one with perf record")]
    NotPerfData(PathBuf),
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

/// One event of the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Its attributes.
    pub attr: Attr,
    /// The ids that samples and trailers name it by.
    pub ids: Vec<u64>,
}

/// A mapped file.
#[derive(Debug)]
pub struct PerfFile {
    path: PathBuf,
    map: memmap2::Mmap,
    events: Vec<Event>,
    data: std::ops::Range<usize>,
    features: BTreeMap<u8, std::ops::Range<usize>>,
    /// What was found wrong, in words.
    notes: Vec<String>,
}

impl PerfFile {
    /// Maps a file and reads its header. No record is looked at.
    ///
    /// The file must not be cut while it is mapped: as with every tool that maps its input, touching bytes that are
    /// gone ends the process.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if metadata.is_dir() {
            return Err(OpenError::Directory(path.to_owned()));
        }
        if metadata.len() == 0 {
            return Err(OpenError::Truncated { path: path.to_owned(), len: 0 });
        }
        // SAFETY: the map is read-only and private to this process; that nobody cuts the file is the contract above.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        let mut this = Self {
            path: path.to_owned(),
            map,
            events: Vec::new(),
            data: 0..0,
            features: BTreeMap::new(),
            notes: Vec::new(),
        };
        this.read_header()?;
        Ok(this)
    }

    fn read_header(&mut self) -> Result<(), OpenError> {
        let map = &self.map[..];
        let path = || self.path.clone();
        let short = || OpenError::Truncated { path: self.path.clone(), len: self.map.len() as u64 };
        let mut fields = Fields(map);
        let magic = fields.take(8).ok_or_else(|| OpenError::NotPerfData(path()))?;
        if magic != MAGIC {
            let reversed: Vec<u8> = magic.iter().rev().copied().collect();
            return Err(if reversed == MAGIC {
                OpenError::BigEndian(path())
            } else {
                OpenError::NotPerfData(path())
            });
        }
        let size = fields.u64().ok_or_else(short)?;
        if size == 16 {
            return Err(OpenError::Pipe(path()));
        }
        let attr_size = fields.u64().ok_or_else(short)?;
        let mut section = || Some((fields.u64()?, fields.u64()?));
        let attrs = section().ok_or_else(short)?;
        let data = section().ok_or_else(short)?;
        let _event_types = section().ok_or_else(short)?;
        let bits = match size {
            HEADER_SIZE.. => fields.take(32).ok_or_else(short)?,
            // The header of the first perf versions has no feature bits.
            _ => &[],
        };
        let mut notes = Vec::new();
        let clamp = |(offset, len): (u64, u64)| -> std::ops::Range<usize> {
            let start = offset.min(map.len() as u64) as usize;
            let end = offset.saturating_add(len).min(map.len() as u64) as usize;
            start..end.max(start)
        };
        let features_at = data.0.saturating_add(data.1);
        let killed = data.1 == 0;
        let data_range = if killed {
            notes.push("the recording was not ended properly: no feature sections".to_owned());
            clamp((data.0, u64::MAX))
        } else {
            if features_at > map.len() as u64 {
                notes.push(format!(
                    "the file is cut short: {} bytes of records are missing",
                    features_at - map.len() as u64
                ));
            }
            clamp(data)
        };
        let mut events = Vec::new();
        let attr_bytes = attr_size.saturating_sub(16) as usize;
        if let Some(step) = usize::try_from(attr_size).ok().filter(|step| *step > 16) {
            for entry in map[clamp(attrs)].chunks_exact(step) {
                let mut ids = Fields(&entry[attr_bytes..]);
                let ids = match (ids.u64(), ids.u64()) {
                    (Some(offset), Some(len)) => clamp((offset, len)),
                    _ => 0..0,
                };
                let ids = map[ids].chunks_exact(8).filter_map(|id| Fields(id).u64()).collect();
                events.push(Event { attr: Attr::read(&entry[..attr_bytes]), ids });
            }
        }
        let mut features = BTreeMap::new();
        if !killed && features_at <= map.len() as u64 {
            let mut sections = Fields(&map[features_at as usize..]);
            let set = (0..=255u8).filter(|bit| {
                bits.get(usize::from(bit / 8)).is_some_and(|byte| byte & (1 << (bit % 8)) != 0)
            });
            for bit in set {
                let (Some(offset), Some(len)) = (sections.u64(), sections.u64()) else { break };
                features.insert(bit, clamp((offset, len)));
            }
        }
        self.events = events;
        self.data = data_range;
        self.features = features;
        self.notes = notes;
        Ok(())
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
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The bytes of a feature section, if the file has it (`HEADER_*` in the kernel's `header.h`).
    pub fn feature(&self, bit: u8) -> Option<&[u8]> {
        Some(&self.map[self.features.get(&bit)?.clone()])
    }

    /// The records, in file order.
    pub fn records(&self) -> Records<'_> {
        Records::new(&self.map[self.data.clone()], self.data.start as u64)
    }

    /// What was found wrong with the file, in words.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}
