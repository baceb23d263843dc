//! Executable files of a capture: found by path and build id, mapped, and placed in address spaces.

mod elf;
mod search;
mod spaces;

pub use search::{ImageSearch, Status};

use crate::inlined::InlinedImages;
use crate::lines::Lines;
use crate::process::{FileId, MappedFile};
use crate::symbols::{FunctionNames, SymbolTable};
use crate::{Capture, Pid};
use elf::{Elf, hex};
use ptflow_decoder::image::{AddressSpace, AddressSpaces, CodeImage, Images, Mapping};
use ptflow_decoder::units::{ImageId, Ip};
use spaces::Placing;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// A file of the capture.
#[derive(Debug)]
pub struct ImageFile {
    /// What the capture says of it.
    pub mapped: MappedFile,
    /// What was found.
    pub status: Status,
    /// The build id of the file found, in hex.
    pub build_id: Option<String>,
    /// The capture tells a build id, and the file found has it.
    pub verified: bool,
    elf: Option<Elf>,
    /// A file with more symbols of the same build, and where it is.
    debug: Option<(PathBuf, Elf)>,
}

/// An executable file on its own, whatever capture it is of.
#[derive(Debug)]
pub struct BinaryFile(Elf);

impl BinaryFile {
    /// Maps a file; `None` where it is not there or no 64-bit ELF.
    pub fn open(path: &Path) -> Option<Self> {
        Elf::open(path).map(Self)
    }

    /// Its build id, in hex.
    pub fn build_id(&self) -> Option<&str> {
        self.0.build_id.as_deref()
    }

    /// The code.
    pub fn code(&self) -> CodeImage<'_> {
        self.0.code()
    }

    /// The functions.
    pub fn symbols(&self) -> SymbolTable<'_> {
        SymbolTable::read(&self.0.map, None)
    }

    /// All its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0.map
    }
}

/// The files of a capture, mapped.
#[derive(Debug)]
pub struct ImageStore {
    files: Vec<ImageFile>,
    /// Image → file: a file that one process has at two load addresses is two images.
    images: Vec<FileId>,
    spaces: BTreeMap<Pid, AddressSpaces>,
    notes: Vec<String>,
}

impl ImageStore {
    /// Finds and maps every file that the capture's processes had mapped for execution.
    pub fn load(capture: &Capture<'_>, search: &ImageSearch) -> Self {
        let mapped = capture.processes.files();
        let files: Vec<ImageFile> = mapped.iter().map(|file| ImageFile::find(file, search)).collect();
        let mut placing = Placing::new(&files, capture.config.time);
        let spaces = capture
            .processes
            .iter()
            .map(|(pid, process)| (pid, placing.spaces(process, &capture.processes)))
            .collect();
        let Placing { images, merged, .. } = placing;
        let mut notes = Vec::new();
        if merged > 0 {
            notes.push(format!(
                "too many changes of address spaces: {merged} of them are not told apart in time, or not inherited"
            ));
        }
        Self { files, images, spaces, notes }
    }

    /// The files.
    pub fn files(&self) -> &[ImageFile] {
        &self.files
    }

    /// What could not be done, in words.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The parts of files that lie behind a space's mappings, as (file, offset in it, length, address).
    pub fn file_sections(&self, space: &AddressSpace) -> Vec<(&Path, u64, u64, Ip)> {
        let section = |mapping: &Mapping| {
            let file = self.file(mapping.image)?;
            let Status::Found(path) = &file.status else { return None };
            let len = mapping.end.0 - mapping.start.0;
            let offset = file.elf.as_ref()?.offset_of(mapping.svma.0, len)?;
            Some((path.as_path(), offset, len, mapping.start))
        };
        space.mappings().iter().filter_map(section).collect()
    }

    /// How many images there are; their ids are the numbers below.
    pub fn image_count(&self) -> u32 {
        self.images.len() as u32
    }

    /// The file of an image.
    pub fn file(&self, image: ImageId) -> Option<&ImageFile> {
        let file = self.images.get(image.0 as usize)?;
        self.files.get(file.0 as usize)
    }

    /// What to call an image in outputs: its build id, or its path where there is none.
    pub fn image_name(&self, image: ImageId) -> String {
        match self.file(image) {
            Some(file) => match file.build_id.clone().or_else(|| file.mapped.build_id.as_deref().map(hex)) {
                Some(id) => id,
                None => file.mapped.path.clone(),
            },
            None => format!("image-{}", image.0),
        }
    }

    /// A process's address spaces; empty where nothing is known of it.
    pub fn address_spaces(&self, pid: Pid) -> AddressSpaces {
        self.spaces.get(&pid).cloned().unwrap_or_default()
    }

    /// The code, without symbols.
    pub fn images(&self) -> Images<'_> {
        let mut images = Images::default();
        for file in &self.images {
            images.push(self.files[file.0 as usize].code());
        }
        images
    }

    /// The functions of an image; read anew at every call.
    pub fn symbols(&self, image: ImageId) -> SymbolTable<'_> {
        self.file(image).map(ImageFile::symbols).unwrap_or_default()
    }

    /// The source lines of an image; what is asked for is read then.
    pub fn lines(&self, image: ImageId) -> Lines<'_> {
        self.file(image).map(ImageFile::lines).unwrap_or_default()
    }

    /// The inlined functions of all images; a file's are read when they are asked for first.
    pub fn inlined(&self) -> InlinedImages {
        let files = self.files.iter().map(|file| {
            let elfs = file.elf.iter().chain(file.debug.iter().map(|(_, elf)| elf));
            elfs.map(|elf| elf.map.clone()).collect()
        });
        InlinedImages::new(files.collect(), self.images.iter().map(|file| file.0 as usize).collect())
    }

    /// The code with the functions in it, and their names. The images of one file share their functions.
    pub fn images_with_functions(&self) -> (Images<'_>, FunctionNames) {
        let mut names = FunctionNames::default();
        let mut images = Images::default();
        let mut known: HashMap<FileId, Vec<_>> = HashMap::new();
        for file in &self.images {
            let image = &self.files[file.0 as usize];
            let functions = known.entry(*file).or_insert_with(|| image.symbols().ranges_named(&mut names));
            images.push(image.code().with_functions(functions.clone()));
        }
        (images, names)
    }
}

impl ImageFile {
    fn find(file: &MappedFile, search: &ImageSearch) -> Self {
        let (status, elf) = search.find(file);
        let build_id = elf.as_ref().and_then(|elf| elf.build_id.clone());
        let debug = match (&elf, &status) {
            (Some(elf), Status::Found(path)) => search.debug_file(elf, path),
            _ => None,
        };
        let verified = elf.is_some() && file.build_id.is_some();
        Self { mapped: file.clone(), status, build_id, verified, elf, debug }
    }

    /// The files that it takes to decode and name this one on another machine: where each is, and where to keep it below
    /// a root of [`ImageSearch`].
    pub fn needed(&self) -> Vec<(PathBuf, PathBuf)> {
        let (Status::Found(path), Some(place)) = (&self.status, ImageSearch::place_below_root(&self.mapped))
        else {
            return Vec::new();
        };
        let debug = self.debug.as_ref().and_then(|(path, _)| {
            let id = self.build_id.as_deref().and_then(|id| id.split_at_checked(2));
            let place = match id {
                Some((head, tail)) => Path::new(".build-id").join(head).join(tail).join("debug"),
                // Beside the image, as its link names it.
                None => place.parent()?.join(".debug").join(path.file_name()?),
            };
            Some((path.clone(), place))
        });
        std::iter::once((path.clone(), place)).chain(debug).collect()
    }

    /// Where its symbols come from besides itself.
    pub fn debug_path(&self) -> Option<&Path> {
        self.debug.as_ref().map(|(path, _)| path.as_path())
    }

    /// The code; none where the file was not found.
    pub fn code(&self) -> CodeImage<'_> {
        self.elf.as_ref().map(Elf::code).unwrap_or_default()
    }

    /// The functions; none where the file was not found.
    pub fn symbols(&self) -> SymbolTable<'_> {
        let Some(elf) = &self.elf else { return SymbolTable::default() };
        SymbolTable::read(&elf.map, self.debug.as_ref().map(|(_, debug)| &debug.map[..]))
    }

    /// Its source lines; those of the debug file where it has none itself.
    pub fn lines(&self) -> Lines<'_> {
        let elfs = self.elf.iter().chain(self.debug.iter().map(|(_, elf)| elf));
        Lines::read(elfs.map(|elf| &elf.map[..]))
    }

    /// The stated address of a file offset; where the file is missing, the offset itself.
    fn svma_of(&self, offset: u64, len: u64) -> u64 {
        self.elf.as_ref().and_then(|elf| elf.svma_of(offset, len)).unwrap_or(offset)
    }

    /// True for code that is in no file and was not found elsewhere either.
    fn is_no_file(&self) -> bool {
        self.status == Status::NoFile
    }
}
