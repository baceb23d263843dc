//! Where to look for the files of a capture, and what was found.

use super::elf::{Elf, hex};
use crate::process::MappedFile;
use std::path::{Path, PathBuf};

/// Where to look for images.
///
/// For a mapped file `/usr/bin/x` with build id `abcd…` the places are, best first: `DIR/usr/bin/x` for each folder of
/// `roots` (as perf's `--symfs`), `DIR/x`, `DIR/.build-id/ab/cd…/elf`; then `CACHE/.build-id/ab/cd…/elf`; then
/// `/usr/bin/x` itself. The first file that is a 64-bit ELF of the right build is taken. Where the capture tells no build
/// id, the first ELF is, and [`ImageFile::verified`](super::ImageFile::verified) is false.
#[derive(Clone, Debug, Default)]
pub struct ImageSearch {
    /// Folders that stand for the traced machine's root, looked through first; a file directly in one counts too.
    pub roots: Vec<PathBuf>,
    /// Files to take for what is mapped, before any other: by build id, and where the capture tells none by name.
    pub files: Vec<PathBuf>,
    /// perf's build-id cache, normally `~/.debug`.
    pub build_id_cache: Option<PathBuf>,
    /// Nowhere else: not at the recorded path, and no installed debug files.
    pub only_roots: bool,
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
    /// A file is there, but it is another build; it is not used.
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Its build id; the one wanted is [`MappedFile::build_id`].
        found: String,
    },
    /// Code that is in no file: `[vdso]`, anonymous memory, the kernel.
    NoFile,
}

/// perf's suffix for a file that was deleted or replaced while it was mapped.
const DELETED: &str = " (deleted)";

impl ImageSearch {
    /// Those folders, and the cache in the home folder.
    pub fn new(roots: Vec<PathBuf>) -> Self {
        let cache = std::env::var_os("HOME").map(|home| Path::new(&home).join(".debug"));
        Self { roots, files: Vec::new(), build_id_cache: cache, only_roots: false }
    }

    /// The places for a file, best first; none for what is in no file.
    pub(super) fn places(&self, file: &MappedFile) -> Vec<PathBuf> {
        let in_file = match kind(file) {
            Kind::NoFile => return Vec::new(),
            Kind::Vdso => "vdso",
            Kind::File => "elf",
        };
        let deleted = file.path.ends_with(DELETED);
        let path = Path::new(file.path.strip_suffix(DELETED).unwrap_or(&file.path));
        let below_root = path.strip_prefix("/").unwrap_or(path);
        let by_id = file.build_id.as_deref().map(hex).and_then(|id| {
            let (head, tail) = id.split_at_checked(2)?;
            Some(Path::new(".build-id").join(head).join(tail).join(in_file))
        });
        let mut places = Vec::new();
        places.extend(self.roots.iter().map(|root| root.join(below_root)));
        let name = path.file_name().map(Path::new);
        places.extend(self.roots.iter().flat_map(|root| name.map(|name| root.join(name))));
        let id_roots = self.roots.iter().chain(&self.build_id_cache);
        places.extend(id_roots.flat_map(|root| by_id.as_ref().map(|by_id| root.join(by_id))));
        // What is there now under the name of a deleted file is another file, unless its build id says otherwise.
        if kind(file) == Kind::File && !self.only_roots && (!deleted || file.build_id.is_some()) {
            places.push(path.to_owned());
        }
        let mut seen = std::collections::HashSet::new();
        places.retain(|place| seen.insert(place.clone()));
        places
    }

    /// Where below a root to keep a file so that it is found there before any other, and only for what it is.
    pub(super) fn place_below_root(file: &MappedFile) -> Option<PathBuf> {
        let search = Self { roots: vec![PathBuf::new()], only_roots: true, ..Self::default() };
        let mut places = search.places(file);
        match file.build_id {
            Some(_) => places.pop(),
            None => places.into_iter().next(),
        }
    }

    /// Finds and maps a file of the right build.
    pub(super) fn find(&self, file: &MappedFile) -> (Status, Option<Elf>) {
        let places = self.places(file);
        let wanted = file.build_id.as_deref().map(hex);
        let name = Path::new(&file.path).file_name();
        for path in &self.files {
            let is_it = |elf: &Elf| match &wanted {
                Some(wanted) => elf.build_id.as_ref() == Some(wanted),
                None => kind(file) == Kind::File && path.file_name() == name,
            };
            if let Some(elf) = Elf::open(path).filter(is_it) {
                return (Status::Found(path.clone()), Some(elf));
            }
        }
        let mut mismatch = None;
        for path in &places {
            let Some(elf) = Elf::open(path) else { continue };
            if wanted.is_none() || elf.build_id == wanted {
                return (Status::Found(path.clone()), Some(elf));
            }
            let found = elf.build_id.unwrap_or_else(|| "none".to_owned());
            mismatch.get_or_insert(Status::Mismatch { path: path.clone(), found });
        }
        let nowhere = match kind(file) {
            Kind::File => Status::Missing { looked: places },
            Kind::Vdso | Kind::NoFile => Status::NoFile,
        };
        (mismatch.unwrap_or(nowhere), None)
    }

    /// The debug file of an image: its symbols, not its code. By build id, below the roots, in perf's cache and where the
    /// distributions install them; else by the name in the image's `.gnu_debuglink`, as GDB does ("Separate Debug Files").
    pub(super) fn debug_file(&self, image: &Elf, found: &Path) -> Option<(PathBuf, Elf)> {
        let open = |path: PathBuf| Some((Elf::open(&path)?, path)).map(|(elf, path)| (path, elf));
        let installed = (!self.only_roots).then(|| Path::new("/usr/lib/debug"));
        if let Some(id) = image.build_id.as_deref()
            && let Some((head, tail)) = id.split_at_checked(2)
        {
            let by_id = |root: &Path| root.join(".build-id").join(head).join(tail);
            let caches = self.roots.iter().map(PathBuf::as_path).chain(self.build_id_cache.as_deref());
            let cached = caches.map(|root| by_id(root).join("debug"));
            let below_roots = self.roots.iter().map(|root| root.join("usr/lib/debug"));
            let folders = below_roots.chain(installed.map(Path::to_owned));
            let placed =
                folders.map(|folder| folder.join(".build-id").join(head).join(format!("{tail}.debug")));
            let same = |elf: &Elf| elf.build_id.as_deref() == Some(id);
            if let Some(debug) = cached.chain(placed).filter_map(open).find(|(_, elf)| same(elf)) {
                return Some(debug);
            }
        }
        let (name, crc) = image.debug_link()?;
        let folder = found.parent()?;
        let places = [
            Some(folder.join(&name)),
            Some(folder.join(".debug").join(&name)),
            installed.map(|root| root.join(folder.strip_prefix("/").unwrap_or(folder)).join(&name)),
        ];
        let others = places.into_iter().flatten().filter(|place| place != found);
        others.filter_map(open).find(|(_, elf)| match (&elf.build_id, &image.build_id) {
            (Some(debug), Some(image)) => debug == image,
            _ => crc32(&elf.map) == crc,
        })
    }
}

/// The checksum that `.gnu_debuglink` holds of the debug file: CRC-32 as in gzip.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 != 0 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    })
}

/// What a mapped name stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    File,
    /// The kernel's page of user code; perf's cache may have a copy.
    Vdso,
    NoFile,
}

/// Names as the kernel gives them to what is no file, or no file that could be opened again (linux
/// `tools/perf/util/map.c`, `is_anon_memory`, `is_no_dso_memory`).
pub(super) fn kind(file: &MappedFile) -> Kind {
    const NO_FILE: [&str; 5] = ["//anon", "/anon_hugepage", "/dev/zero", "/memfd:", "/SYSV"];
    // Kernel code changes while it runs: only a copy of the running one would do.
    if file.kernel {
        return Kind::NoFile;
    }
    match file.path.as_str() {
        "[vdso]" => Kind::Vdso,
        path if !path.starts_with('/') => Kind::NoFile,
        path if NO_FILE.iter().any(|name| path.starts_with(name)) => Kind::NoFile,
        _ => Kind::File,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_gzips() {
        // The check value of CRC-32/ISO-HDLC.
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
    }

    #[test]
    fn a_place_of_its_own() {
        let place = |path: &str, id: Option<&[u8]>| {
            let file = MappedFile { path: path.to_owned(), build_id: id.map(<[u8]>::to_vec), kernel: false };
            ImageSearch::place_below_root(&file).map(|place| place.display().to_string())
        };
        let by_id = Some(".build-id/01/02ff/elf".to_owned());
        assert_eq!(place("/usr/bin/x", Some(&[1, 2, 255])), by_id);
        assert_eq!(place("/usr/bin/x (deleted)", Some(&[1, 2, 255])), by_id);
        assert_eq!(place("[vdso]", Some(&[1, 2])), Some(".build-id/01/02/vdso".to_owned()));
        assert_eq!(place("/usr/bin/x", None), Some("usr/bin/x".to_owned()));
        assert_eq!(place("//anon", None), None);
    }
}
