//! A perf.data directory (linux `tools/perf/util/data.c`; layout: `tools/perf/Documentation/perf.data-directory-format.txt`).

use std::path::{Path, PathBuf};

/// What is in a directory.
#[derive(Debug)]
pub(super) struct Directory {
    /// The file with the header.
    pub data: PathBuf,
    /// Bare records, by number: `data.0`, `data.1`, …
    pub more: Vec<PathBuf>,
    /// `kcore_dir`: the kernel's code, symbols and modules.
    pub kernel: Option<PathBuf>,
}

impl Directory {
    /// Looks into a folder. Where there is no file `data` in it, opening that one will say so.
    pub fn read(path: &Path) -> std::io::Result<Self> {
        let mut numbered = Vec::new();
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("data.")?.parse::<u32>().ok());
            // `perf record` keeps the one before as data.old.
            numbered.extend(number.map(|number| (number, entry.path())));
        }
        numbered.sort();
        let kernel = Some(path.join("kcore_dir")).filter(|kernel| kernel.is_dir());
        let more = numbered.into_iter().map(|(_, path)| path).collect();
        Ok(Self { data: path.join("data"), more, kernel })
    }
}
