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
            Status::Found(path) => Some((path.clone(), BinaryFile::open(path)?)),
            _ => None,
        });
        let Some((path, file)) = found else {
            bail!("the code of {name} is not found; say where it is: --images DIR");
        };
        Ok(Self { name, path, file })
    }

    /// A file, for edges that are in no capture at hand.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let Some(file) = BinaryFile::open(path) else {
            bail!("{} is no 64-bit ELF file", path.display());
        };
        let name = file.build_id().map_or_else(|| path.display().to_string(), str::to_owned);
        Ok(Self { name, path: path.to_owned(), file })
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
