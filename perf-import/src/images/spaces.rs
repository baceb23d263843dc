//! From what a process mapped over time to the address spaces that the decoder looks addresses up in.

use super::ImageFile;
use crate::process::{FileId, MappedRange, Process, Processes, SpaceEvent};
use ptflow_decoder::config::TscConversion;
use ptflow_decoder::image::{AddressSpace, AddressSpaces, Mapping};
use ptflow_decoder::units::{ImageId, Ip, Ns, Svma, Tsc};
use std::collections::{BTreeMap, HashMap};

/// Mappings that all versions of all address spaces may have together, beyond those that the capture itself names: what
/// a process inherits by fork, and what a version takes over from the one before. Each has 32 bytes.
const MOST_COPIES: usize = 1 << 22;

/// Places the mappings of all processes.
pub(super) struct Placing<'a> {
    files: &'a [ImageFile],
    /// Image → file. The images of the files themselves come first, in their order.
    pub images: Vec<FileId>,
    /// The further images of files that were seen at a second load address, a third, …
    doubles: HashMap<(FileId, usize), ImageId>,
    time: Option<TscConversion>,
    copies_left: usize,
    /// How often a version was not made because there were too many.
    pub merged: u64,
}

/// The mappings of one version, disjoint, by their first address.
#[derive(Clone, Default)]
struct Layout(BTreeMap<u64, Mapping>);

impl Layout {
    /// The mappings that a new one overlaps.
    fn overlapped(&self, new: &Mapping) -> impl Iterator<Item = &Mapping> {
        let first = self.0.range(..new.start.0).next_back().filter(|(_, old)| old.end > new.start);
        first.into_iter().chain(self.0.range(new.start.0..new.end.0)).map(|(_, old)| old)
    }

    /// True where the new mapping shows something else than an old one does at the same place.
    fn clashes(&self, new: &Mapping) -> bool {
        self.overlapped(new).any(|old| (old.image, old.bias()) != (new.image, new.bias()))
    }

    /// The new mapping cuts what it overlaps.
    fn map(&mut self, new: Mapping) {
        if new.start >= new.end {
            return;
        }
        let old: Vec<Mapping> = self.overlapped(&new).copied().collect();
        for old in old {
            self.0.remove(&old.start.0);
            if old.start < new.start {
                self.0.insert(old.start.0, Mapping { end: new.start, ..old });
            }
            if new.end < old.end {
                self.0.insert(new.end.0, Mapping { start: new.end, svma: old.to_svma(new.end), ..old });
            }
        }
        self.0.insert(new.start.0, new);
    }

    fn into_space(self) -> AddressSpace {
        AddressSpace::new(self.0.into_values())
    }
}

impl<'a> Placing<'a> {
    pub fn new(files: &'a [ImageFile], time: Option<TscConversion>) -> Self {
        Self {
            files,
            images: (0..files.len() as u32).map(FileId).collect(),
            doubles: HashMap::new(),
            time,
            copies_left: MOST_COPIES,
            merged: 0,
        }
    }

    /// The mapping as the decoder sees it. `biases` are the load addresses at which the process had each file so far:
    /// at each one the file is an image of its own, so that an image's address is at one place in a space.
    fn mapping(&mut self, range: &MappedRange, biases: &mut HashMap<FileId, HashMap<u64, usize>>) -> Mapping {
        let file = &self.files[range.file.0 as usize];
        // Code in no file is known by its runtime address alone.
        let svma = if file.is_no_file() { range.addr } else { file.svma_of(range.pgoff, range.len) };
        let bias = range.addr.wrapping_sub(svma);
        let known = biases.entry(range.file).or_default();
        let next = known.len();
        let index = *known.entry(bias).or_insert(next);
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

    /// True where so many copies may be made. Once they may not, none are made any more: what follows is cheap.
    fn take(&mut self, copies: usize) -> bool {
        let left = self.copies_left.checked_sub(copies);
        self.copies_left = left.unwrap_or(0);
        self.merged += u64::from(left.is_none());
        left.is_some()
    }

    /// The versions of a process's address space. A new one begins where a mapping shows something else than an earlier
    /// one at the same place, and at an exec. Mappings that overlap nothing belong to the version from its start on: code
    /// is never walked before it is mapped, and records may be a little late. Without a clock there is one version.
    pub fn spaces(&mut self, process: &Process, processes: &Processes) -> AddressSpaces {
        let mut biases = HashMap::new();
        let mut versions: Vec<(Ns, Layout)> = vec![(Ns(0), Layout::default())];
        for event in &process.space {
            let Some((since, current)) = versions.last_mut() else { break };
            let (time, range) = match event {
                SpaceEvent::Map(range) => (range.time, Some(self.mapping(range, &mut biases))),
                SpaceEvent::Exec { time } | SpaceEvent::Fork { time, .. } => (*time, None),
            };
            let changes = match &range {
                Some(new) => current.clashes(new),
                None => !current.0.is_empty(),
            };
            // Without a clock, or at the same time, only the later state can be had.
            if changes && time > *since && self.time.is_some() {
                let copies = if range.is_some() { current.0.len() } else { 0 };
                if self.take(copies) {
                    let next = if range.is_some() { current.clone() } else { Layout::default() };
                    versions.push((time, next));
                }
            }
            let Some((_, current)) = versions.last_mut() else { break };
            match (range, event) {
                (Some(new), _) => current.map(new),
                (None, SpaceEvent::Fork { parent, events, .. }) => {
                    *current = Layout::default();
                    let inherited = processes.live(*parent, *events, self.copies_left);
                    if self.take(inherited.as_ref().map_or(usize::MAX, |(_, cost)| *cost)) {
                        for range in inherited.into_iter().flat_map(|(ranges, _)| ranges) {
                            let new = self.mapping(&range, &mut biases);
                            current.map(new);
                        }
                    }
                }
                (None, _) => *current = Layout::default(),
            }
        }
        let versions = versions.into_iter().enumerate().map(|(index, (since, layout))| {
            let from = match (index, self.time) {
                (0, _) | (_, None) => Tsc(0),
                (_, Some(time)) => time.to_tsc(since).unwrap_or(Tsc(0)),
            };
            (from, layout.into_space())
        });
        let mut versions: Vec<(Tsc, AddressSpace)> = versions.collect();
        versions.sort_by_key(|(from, _)| *from);
        AddressSpaces::new(versions)
    }
}
