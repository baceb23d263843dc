//! Which instructions are of inlined functions, by the images' DWARF (DWARF 5, 3.3.8.2 "Concrete Inlined Instances").

use crate::dwarf::{DebugSections, SourceMap};
use crate::symbols::demangle;
use memmap2::Mmap;
use ptflow_decoder::jobs::calls::{InlinedCode, InlinedId};
use ptflow_decoder::profile::CodeAddr;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// The inlined functions of a capture's images.
#[derive(Debug)]
pub struct InlinedImages {
    files: Vec<File>,
    /// Image → file.
    images: Vec<usize>,
}

#[derive(Debug)]
struct File {
    /// It, and a file of the same build with more symbols.
    maps: Vec<Arc<Mmap>>,
    inlined: OnceLock<Inlined>,
}

/// The inlined functions of one file.
#[derive(Debug, Default)]
struct Inlined {
    /// From each address on, the number of the innermost function that the code is of, if it is of any. Sorted.
    starts: Vec<(u64, Option<u32>)>,
    functions: Vec<Function>,
    names: Vec<String>,
}

#[derive(Clone, Copy, Default, Debug)]
struct Function {
    around: Option<u32>,
    /// An index of the names.
    name: u32,
}

/// What an inlined function is called whose name is in another file (`.gnu_debugaltlink`), or nowhere.
const UNNAMED: &str = "[inlined]";

impl InlinedImages {
    pub(crate) fn new(files: Vec<Vec<Arc<Mmap>>>, images: Vec<usize>) -> Self {
        let files = files.into_iter().map(|maps| File { maps, inlined: OnceLock::new() });
        Self { files: files.collect(), images }
    }

    fn of(&self, image: usize) -> Option<&Inlined> {
        let file = self.files.get(*self.images.get(image)?)?;
        Some(file.inlined.get_or_init(|| {
            let all = file.maps.iter().map(|map| Inlined::read(map));
            all.into_iter().find(|inlined| !inlined.functions.is_empty()).unwrap_or_default()
        }))
    }

    /// What the function is called in the source.
    pub fn name(&self, inlined: InlinedId) -> &str {
        let name = || {
            let of = self.of(inlined.image.0 as usize)?;
            of.names.get(of.functions.get(inlined.number as usize)?.name as usize)
        };
        name().map_or(UNNAMED, String::as_str)
    }
}

impl InlinedCode for InlinedImages {
    fn at(&self, code: CodeAddr) -> Option<InlinedId> {
        let image = code.image?;
        let starts = &self.of(image.0 as usize)?.starts;
        let after = starts.partition_point(|(start, _)| *start <= code.addr);
        let number = starts.get(after.checked_sub(1)?)?.1?;
        Some(InlinedId { image, number })
    }

    fn around(&self, inner: InlinedId) -> Option<InlinedId> {
        let of = self.of(inner.image.0 as usize)?;
        let number = of.functions.get(inner.number as usize)?.around?;
        Some(InlinedId { number, ..inner })
    }
}

impl Inlined {
    fn read(file: &[u8]) -> Self {
        let sections = DebugSections::of(file);
        let map = SourceMap::read_functions(&sections);
        Self::new(map.inlined())
    }

    /// Of stretches of code, each with the number of its function, of the one that it lies in, and its name.
    fn new<'d>(stretches: impl Iterator<Item = (Range<u64>, usize, Option<usize>, &'d str)>) -> Self {
        let mut this = Self::default();
        let mut names: HashMap<&str, u32> = HashMap::new();
        // Address, begins, depth, function: what is deeper counts, and of two that are as deep one.
        let mut ends: Vec<(u64, bool, u32)> = Vec::new();
        for (range, number, around, name) in stretches {
            let (Ok(number), Ok(around)) = (u32::try_from(number), around.map(u32::try_from).transpose())
            else {
                continue;
            };
            let index = number as usize;
            if index >= this.functions.len() {
                this.functions.resize(index + 1, Function::default());
            }
            let name = *names.entry(name).or_insert_with(|| {
                this.names.push(if name.is_empty() { UNNAMED.to_owned() } else { demangle(name) });
                this.names.len() as u32 - 1
            });
            // An entry comes behind the one that it lies in: no chain of them is a ring.
            this.functions[index] = Function { around: around.filter(|around| *around < number), name };
            ends.extend([(range.start, true, number), (range.end, false, number)]);
        }
        ends.sort_unstable();
        let mut depths: Vec<u32> = Vec::with_capacity(this.functions.len());
        for function in &this.functions {
            depths.push(function.around.map_or(0, |around| depths[around as usize] + 1));
        }
        let mut covering: BTreeSet<(u32, u32)> = BTreeSet::new();
        let mut ends = ends.into_iter().peekable();
        while let Some((addr, begins, number)) = ends.next() {
            let place = (depths[number as usize], number);
            if begins {
                covering.insert(place);
            } else {
                covering.remove(&place);
            }
            if ends.peek().is_some_and(|next| next.0 == addr) {
                continue;
            }
            let innermost = covering.last().map(|(_, number)| *number);
            if this.starts.last().map(|last| last.1) != Some(innermost) {
                this.starts.push((addr, innermost));
            }
        }
        this
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_counts() {
        let inlined = Inlined::new(
            [
                (10..30, 0, None, "outer"),
                (50..60, 0, None, "outer"),
                (15..20, 1, Some(0), "inner"),
                (20..25, 2, Some(0), "inner"),
                (30..40, 3, None, "next"),
                // A part outside of what it lies in, and an entry that names one behind it.
                (70..80, 1, Some(0), "inner"),
                (90..95, 4, Some(9), ""),
            ]
            .into_iter(),
        );
        let (outer, inner, again, next) = (Some(0), Some(1), Some(2), Some(3));
        assert_eq!(
            inlined.starts,
            [
                (10, outer),
                (15, inner),
                (20, again),
                (25, outer),
                (30, next),
                (40, None),
                (50, outer),
                (60, None),
                (70, inner),
                (80, None),
                (90, Some(4)),
                (95, None)
            ]
        );
        assert_eq!(inlined.functions[1].around, Some(0));
        assert_eq!(inlined.functions[4].around, None);
        assert_eq!(inlined.names, ["outer", "inner", "next", UNNAMED]);
    }
}
