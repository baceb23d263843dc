//! The one binary that a profile is of.

use crate::args::Usage;
use crate::load::Loaded;
use anyhow::bail;
use ptflow_decoder::image::CodeImage;
use ptflow_decoder::units::ImageId;
use ptflow_perf_import::images::{BinaryFile, Status};
use ptflow_perf_import::symbols::SymbolTable;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A binary by what captures and tables call it.
pub struct Binary {
    /// Its build id, or its path.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// The name of its file when it ran; where it was found may be a cache by build id.
    pub file_name: String,
    file: BinaryFile,
}

impl Binary {
    /// The binary of that path or build id, or the traced program.
    pub fn choose(loaded: &Loaded<'_>, wanted: Option<&str>) -> anyhow::Result<Self> {
        let mut all = (0..loaded.store.image_count()).map(ImageId);
        let first = match wanted {
            Some(wanted) => all.find(|image| is_called(loaded, *image, wanted)),
            None => Some(program(loaded)?),
        };
        let Some(first) = first else {
            let wanted = wanted.unwrap_or_default();
            bail!("{wanted} is no binary of this capture; those there are: ptflow info");
        };
        let name = loaded.store.image_name(first);
        let found = loaded.store.file(first).and_then(|file| match &file.status {
            Status::Found(path) => Self::found(&name, path, last_part(&file.mapped.path)),
            _ => None,
        });
        match found {
            Some(binary) => Ok(binary),
            None => bail!("the code of {name} is not found; say where it is: --images DIR"),
        }
    }

    /// A file, for edges that are in no capture at hand.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let Some(file) = BinaryFile::open(path) else {
            bail!("{} is no 64-bit ELF file", path.display());
        };
        let name = file.build_id().map_or_else(|| path.display().to_string(), str::to_owned);
        let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, path: path.to_owned(), file_name, file })
    }

    /// The file that was found for what captures and tables call by that name, and what it was called when it ran.
    pub fn found(name: &str, path: &Path, file_name: &str) -> Option<Self> {
        let file = BinaryFile::open(path)?;
        Some(Self { name: name.to_owned(), path: path.to_owned(), file_name: file_name.to_owned(), file })
    }

    /// All its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.file.bytes()
    }

    /// Its functions.
    pub fn symbols(&self) -> SymbolTable<'_> {
        self.file.symbols()
    }

    /// Its code.
    pub fn code(&self) -> CodeImage<'_> {
        self.file.code()
    }
}

/// The name of a file, behind all folders.
pub fn last_part(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Nothing of the format can be made of this binary; others may do.
#[derive(Debug)]
pub struct Unfit(pub String);

impl std::fmt::Display for Unfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unfit {}

/// The image has that build id, or that path: in the capture, or where it was found.
fn is_called(loaded: &Loaded<'_>, image: ImageId, wanted: &str) -> bool {
    let Some(file) = loaded.store.file(image) else { return false };
    let found = match &file.status {
        Status::Found(path) => path.canonicalize().ok(),
        _ => None,
    };
    loaded.store.image_name(image) == wanted
        || file.mapped.path == wanted
        || found.is_some_and(|found| Path::new(wanted).canonicalize().is_ok_and(|wanted| wanted == found))
}

/// What the chosen processes ran. Linux maps a program below the libraries that it loads.
fn program(loaded: &Loaded<'_>) -> anyhow::Result<ImageId> {
    let mut programs: Vec<ImageId> = Vec::new();
    let mut names = BTreeSet::new();
    for spaces in loaded.chosen_spaces() {
        let space = spaces.versions().last();
        if let Some(mapping) = space.and_then(|(_, space)| space.mappings().first())
            && names.insert(loaded.store.image_name(mapping.image))
        {
            programs.push(mapping.image);
        }
    }
    match programs[..] {
        [program] => Ok(program),
        [] => bail!("the capture names no program; say of which binary the profile is: --binary PATH"),
        _ => {
            let path = |image: &ImageId| loaded.store.file(*image).map_or("?", |file| &file.mapped.path);
            let paths: Vec<&str> = programs.iter().map(path).collect();
            Err(Usage(format!("the profile is of one program; choose it: --binary {}", paths.join(" | ")))
                .into())
        }
    }
}
