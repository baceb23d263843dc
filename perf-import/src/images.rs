//! Executable files of a capture: found by path and build id, mapped, and placed in address spaces.

use crate::process::{FileId, MappedFile, MappedRange, SpaceEvent};
use crate::symbols::{self, FunctionNames};
use crate::{Capture, Pid};
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{Endianness, Object, elf};
use ptflow_decoder::config::TscConversion;
use ptflow_decoder::image::{AddressSpace, AddressSpaces, CodeImage, CodeRegion, Images, Mapping};
use ptflow_decoder::units::{ImageId, Ip, Ns, Svma, Tsc};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Where to look for images.
#[derive(Clone, Debug, Default)]
pub struct ImageSearch {
    /// Folders that stand for the traced machine's root, looked through first; a file directly in one counts too.
    pub roots: Vec<PathBuf>,
    /// perf's build-id cache, normally `~/.debug`.
    pub build_id_cache: Option<PathBuf>,
}

impl ImageSearch {
    /// Those folders, and the cache in the home folder.
    pub fn new(roots: Vec<PathBuf>) -> Self {
        let cache = std::env::var_os("HOME").map(|home| Path::new(&home).join(".debug"));
        Self { roots, build_id_cache: cache }
    }

    /// The places for a file, best first: `--images DIR` with the whole path, then with the name alone, the build-id
    /// cache, the path itself.
    fn places(&self, file: &MappedFile) -> Vec<PathBuf> {
        let path = Path::new(&file.path);
        let below_root = path.strip_prefix("/").unwrap_or(path);
        let mut places: Vec<PathBuf> = self.roots.iter().map(|root| root.join(below_root)).collect();
        if let Some(name) = path.file_name() {
            places.extend(self.roots.iter().map(|root| root.join(name)));
        }
        if let (Some(cache), Some(id)) = (&self.build_id_cache, &file.build_id) {
            let hex = hex(id);
            if let Some((head, tail)) = hex.split_at_checked(2) {
                places.push(cache.join(".build-id").join(head).join(tail).join("elf"));
            }
        }
        places.push(path.to_owned());
        places
    }
}

/// What became of a file of the capture.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Status {
    /// Found and mapped.
    Found(PathBuf),
    /// Nowhere.
    Missing {
        /// Where it was looked for.
        looked: Vec<PathBuf>,
    },
    /// A file is there, but it is another build.
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Its build id.
        found: String,
    },
    /// Code that is in no file: `[vdso]`, anonymous memory, the kernel.
    NoFile,
}

/// A file of the capture.
#[derive(Debug)]
pub struct ImageFile {
    /// What the capture says of it.
    pub mapped: MappedFile,
    /// What was found.
    pub status: Status,
    /// The build id of the file found.
    pub build_id: Option<String>,
    map: Option<memmap2::Mmap>,
    segments: Vec<Segment>,
}

/// A loadable, executable segment.
#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    vaddr: u64,
    filesz: u64,
}

/// The files of a capture, mapped.
#[derive(Debug)]
pub struct ImageStore {
    files: Vec<ImageFile>,
    /// Image → file: a file that one process has at two load addresses is two images.
    images: Vec<FileId>,
    spaces: BTreeMap<Pid, AddressSpaces>,
}

impl ImageStore {
    /// Finds and maps every file that the capture's processes had mapped for execution.
    pub fn load(capture: &Capture<'_>, search: &ImageSearch) -> Self {
        let files: Vec<ImageFile> =
            capture.processes.files().iter().map(|file| ImageFile::find(file, search)).collect();
        let mut images: Vec<FileId> = (0..files.len() as u32).map(FileId).collect();
        let mut doubles = HashMap::new();
        let spaces = capture
            .processes
            .iter()
            .map(|(pid, process)| {
                let mut placing = Placing {
                    files: &files,
                    images: &mut images,
                    doubles: &mut doubles,
                    biases: HashMap::new(),
                    time: capture.config.time,
                };
                (pid, placing.spaces(&process.space))
            })
            .collect();
        Self { files, images, spaces }
    }

    /// The files.
    pub fn files(&self) -> &[ImageFile] {
        &self.files
    }

    /// The parts of files that lie behind a space's mappings, as (file, offset in it, length, address).
    pub fn file_sections(&self, space: &AddressSpace) -> Vec<(&Path, u64, u64, Ip)> {
        let section = |mapping: &Mapping| {
            let file = self.file(mapping.image)?;
            let Status::Found(path) = &file.status else { return None };
            let holds = |segment: &&Segment| {
                let end = segment.vaddr.saturating_add(segment.filesz);
                mapping.svma.0 < end && mapping.svma.0 + (mapping.end.0 - mapping.start.0) > segment.vaddr
            };
            let segment = file.segments.iter().find(holds)?;
            let offset = mapping.svma.0.wrapping_sub(segment.vaddr).wrapping_add(segment.offset);
            Some((path.as_path(), offset, mapping.end.0 - mapping.start.0, mapping.start))
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

    /// The code with the functions in it, and their names.
    pub fn images_with_functions(&self) -> (Images<'_>, FunctionNames) {
        let mut names = FunctionNames::default();
        let mut images = Images::default();
        let mut known: HashMap<FileId, Vec<_>> = HashMap::new();
        for file in &self.images {
            let image = &self.files[file.0 as usize];
            let functions = known.entry(*file).or_insert_with(|| match &image.map {
                Some(map) => symbols::functions(map, &mut names),
                None => Vec::new(),
            });
            images.push(image.code().with_functions(functions.clone()));
        }
        (images, names)
    }
}

impl ImageFile {
    fn find(file: &MappedFile, search: &ImageSearch) -> Self {
        let nothing =
            |status| Self { mapped: file.clone(), status, build_id: None, map: None, segments: Vec::new() };
        if !file.path.starts_with('/') || file.path.starts_with("//anon") {
            return nothing(Status::NoFile);
        }
        let places = search.places(file);
        let mut mismatch = None;
        for path in &places {
            let Some((map, build_id, segments)) = open(path) else { continue };
            let wanted = file.build_id.as_deref().map(hex);
            match (&wanted, &build_id) {
                (Some(wanted), found) if found.as_ref() != Some(wanted) => {
                    let found = found.clone().unwrap_or_else(|| "none".to_owned());
                    mismatch.get_or_insert(Status::Mismatch { path: path.clone(), found });
                }
                _ => {
                    return Self {
                        mapped: file.clone(),
                        status: Status::Found(path.clone()),
                        build_id,
                        map: Some(map),
                        segments,
                    };
                }
            }
        }
        nothing(mismatch.unwrap_or(Status::Missing { looked: places }))
    }

    fn code(&self) -> CodeImage<'_> {
        let Some(map) = &self.map else { return CodeImage::default() };
        let regions = self.segments.iter().filter_map(|segment| {
            let start = usize::try_from(segment.offset).ok()?;
            let end = usize::try_from(segment.offset.checked_add(segment.filesz)?).ok()?.min(map.len());
            Some(CodeRegion { start: Svma(segment.vaddr), bytes: map.get(start..end)? })
        });
        CodeImage::new(regions.collect())
    }

    /// The stated address of a file offset; where the file is missing, the offset itself.
    fn svma_of(&self, offset: u64, len: u64) -> u64 {
        let end = offset.saturating_add(len);
        let holds = |segment: &&Segment| {
            segment.offset < end && offset < segment.offset.saturating_add(segment.filesz)
        };
        match self.segments.iter().find(holds) {
            Some(segment) => offset.wrapping_sub(segment.offset).wrapping_add(segment.vaddr),
            None => offset,
        }
    }
}

/// Maps an ELF file; `None` where it is not there or no 64-bit ELF.
fn open(path: &Path) -> Option<(memmap2::Mmap, Option<String>, Vec<Segment>)> {
    let file =
        File::open(path).ok().filter(|file| file.metadata().is_ok_and(|metadata| metadata.is_file()))?;
    // SAFETY: read-only and private; that nobody cuts the file while it is mapped is the contract of `PerfFile::open`,
    // which holds for the images too.
    let map = unsafe { memmap2::Mmap::map(&file) }.ok()?;
    let parsed = ElfFile64::<Endianness>::parse(&map[..]).ok()?;
    let build_id = parsed.build_id().ok().flatten().map(hex);
    let endian = parsed.endian();
    let header = parsed.elf_header();
    let segments = header
        .program_headers(endian, &map[..])
        .ok()?
        .iter()
        .filter(|segment| {
            segment.p_type(endian) == elf::PT_LOAD && (segment.p_flags(endian).0 & elf::PF_X.0) != 0
        })
        .map(|segment| Segment {
            offset: segment.p_offset(endian),
            vaddr: segment.p_vaddr(endian),
            filesz: segment.p_filesz(endian),
        })
        .collect();
    Some((map, build_id, segments))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Places a process's mappings.
struct Placing<'a> {
    files: &'a [ImageFile],
    images: &'a mut Vec<FileId>,
    /// The further images of files that were seen at a second load address, third, …
    doubles: &'a mut HashMap<(FileId, usize), ImageId>,
    biases: HashMap<FileId, Vec<u64>>,
    time: Option<TscConversion>,
}

impl Placing<'_> {
    fn mapping(&mut self, range: &MappedRange) -> Mapping {
        let file = &self.files[range.file.0 as usize];
        let svma = file.svma_of(range.pgoff, range.len);
        let bias = range.addr.wrapping_sub(svma);
        let biases = self.biases.entry(range.file).or_default();
        let index = biases.iter().position(|known| *known == bias).unwrap_or_else(|| {
            biases.push(bias);
            biases.len() - 1
        });
        let image = match index {
            0 => ImageId(range.file.0),
            _ => *self.doubles.entry((range.file, index)).or_insert_with(|| {
                self.images.push(range.file);
                ImageId(self.images.len() as u32 - 1)
            }),
        };
        Mapping {
            start: Ip(range.addr),
            end: Ip(range.addr.saturating_add(range.len)),
            image,
            svma: Svma(svma),
        }
    }

    /// A new version begins where a mapping overlaps another one, or at an exec. Mappings that overlap nothing belong
    /// to the version from its start on: code is never walked before it is mapped, and records may be a little late.
    fn spaces(&mut self, events: &[SpaceEvent]) -> AddressSpaces {
        let mut versions: Vec<(u64, Vec<Mapping>)> = vec![(0, Vec::new())];
        for event in events {
            let Some((since, current)) = versions.last_mut() else { break };
            match event {
                SpaceEvent::Exec { .. } if current.is_empty() => {}
                // Without a clock only the last state can be had.
                SpaceEvent::Exec { time } if *time == *since || self.time.is_none() => current.clear(),
                SpaceEvent::Exec { time } => versions.push((*time, Vec::new())),
                SpaceEvent::Map(range) => {
                    let new = self.mapping(range);
                    let clashes = current.iter().any(|old| {
                        old.start < new.end
                            && new.start < old.end
                            && (old.image, old.bias()) != (new.image, new.bias())
                    });
                    if clashes && range.time > *since && self.time.is_some() {
                        let mut next = current.clone();
                        next.push(new);
                        versions.push((range.time, next));
                    } else {
                        current.push(new);
                    }
                }
            }
        }
        let versions = versions.into_iter().enumerate().map(|(index, (ns, mappings))| {
            let from = match (index, self.time) {
                (0, _) | (_, None) => Tsc(0),
                (_, Some(time)) => time.to_tsc(Ns(ns)).unwrap_or(Tsc(0)),
            };
            (from, AddressSpace::new(mappings))
        });
        let mut versions: Vec<(Tsc, AddressSpace)> = versions.collect();
        versions.sort_by_key(|(from, _)| *from);
        AddressSpaces::new(versions)
    }
}
