//! A perf.data in any of its forms: events, feature sections, records.
//!
//! | form | events and features | records |
//! | --- | --- | --- |
//! | a file | in sections that the header names | in its data section |
//! | a pipe's stream (`perf record -o -`) | records themselves | all that follows the 16 bytes of header |
//! | a directory (`--threads`, `--kcore`) | in the file `data` | in `data`, and bare in `data.0`, `data.1`, … |
//!
//! Each may hold COMPRESSED records: what comes out of them is a stretch of records of its own, behind the one that they
//! are in. Order among stretches means nothing: it is the times that count.

mod directory;
mod let_go;
mod open;
mod spool;
mod zstd;

pub(crate) use let_go::LetGo;
pub use open::OpenError;

use crate::events::Events;
use crate::record::{Records, Stretch};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A mapped capture.
#[derive(Debug)]
pub struct PerfFile {
    path: PathBuf,
    /// The file with the header first; at least that one.
    parts: Vec<Part>,
    events: Events,
    /// Where in the first part the feature sections are.
    features: BTreeMap<u8, std::ops::Range<usize>>,
    is_pipe: bool,
    kernel: Option<PathBuf>,
    /// What was found wrong, in words.
    notes: Vec<String>,
}

/// A stretch of records, mapped.
#[derive(Debug)]
struct Part {
    map: memmap2::Mmap,
    /// Position of the map's first byte: positions run on from part to part.
    base: u64,
    records: std::ops::Range<usize>,
    /// Where in `records` AUXTRACE records begin, rising: what the file's index says and the bytes there confirm.
    auxtrace: Vec<usize>,
}

impl Part {
    fn stretch(&self) -> Stretch<'_> {
        Stretch {
            data: &self.map[self.records.clone()],
            base: self.base + self.records.start as u64,
            sure: &self.auxtrace,
        }
    }
}

impl PerfFile {
    /// Where the capture is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes: of all files of a directory together, without what was compressed in them.
    pub fn len(&self) -> u64 {
        self.parts.iter().map(|part| part.map.len() as u64).sum()
    }

    /// True where the file is empty; such a file cannot be opened.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The events.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// The bytes of a feature section, if the file has it ([`features::bit`](crate::features::bit)).
    pub fn feature(&self, bit: u8) -> Option<&[u8]> {
        Some(&self.parts[0].map[self.features.get(&bit)?.clone()])
    }

    /// The feature sections that there are.
    pub fn feature_bits(&self) -> impl Iterator<Item = u8> + '_ {
        self.features.keys().copied()
    }

    /// The records, in file order. A compressed one comes as it is, and what was in it later.
    pub fn records(&self) -> Records<'_> {
        Records::new(self.parts.iter().map(Part::stretch).collect())
    }

    /// The bytes of the file with the header, as they were read: all that there is of a stream from a pipe.
    pub fn bytes(&self) -> &[u8] {
        &self.parts[0].map
    }

    /// A stream as perf writes it to a pipe.
    pub fn is_pipe(&self) -> bool {
        self.is_pipe
    }

    /// The folder with the kernel's code, symbols and modules as they were (`--kcore`).
    pub fn kernel(&self) -> Option<&Path> {
        self.kernel.as_deref()
    }

    /// What was found wrong with the file, in words.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}
