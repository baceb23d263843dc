//! Executable images and where they are mapped: address × time, as sorted immutable arrays.

use crate::units::{ImageId, Ip, Svma, Tsc};

/// A stretch of code bytes of an image.
#[derive(Clone, Copy, Debug)]
pub struct CodeRegion<'m> {
    /// Stated address of the first byte.
    pub start: Svma,
    /// The code.
    pub bytes: &'m [u8],
}

/// A function, as an index into whatever list of names the caller keeps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FunctionId(pub u32);

/// A stretch of an image that belongs to one function. A function split into parts (`.cold`) has several.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FunctionRange {
    /// First address.
    pub start: Svma,
    /// One past the last address.
    pub end: Svma,
    /// The function.
    pub function: FunctionId,
    /// What it is; decides how calls into it are shown.
    pub role: FunctionRole,
}

/// What a stretch of code is to a call tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FunctionRole {
    /// A function; it is entered at `start`.
    Function,
    /// Another part of a function: jumping to its start enters nothing.
    Part,
    /// A PLT stub: calls go through it, it is no function of its own.
    Stub,
    /// A function that never goes back to its caller, nor to a landing pad of it: `_Unwind_Resume` (Itanium C++ ABI:
    /// Exception Handling, section 1.5.3).
    Resume,
}

/// What is known of an address as part of a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FunctionAt {
    /// The function; `None` where no symbol covers the address.
    pub function: Option<FunctionId>,
    /// The address is the function's first instruction.
    pub entry: bool,
    /// The address lies in a PLT stub.
    pub stub: bool,
    /// The address lies in a function that ends its caller ([`FunctionRole::Resume`]).
    pub resume: bool,
}

/// Code bytes with stated addresses: an ELF file's executable segments, or whatever else holds code.
///
/// An image without regions is known by name only (its file is missing): code in it cannot be walked.
#[derive(Clone, Debug, Default)]
pub struct CodeImage<'m> {
    regions: Vec<CodeRegion<'m>>,
    functions: Vec<FunctionRange>,
}

impl<'m> CodeImage<'m> {
    /// Takes the regions in any order; of overlapping ones the later in the list loses its overlap.
    pub fn new(mut regions: Vec<CodeRegion<'m>>) -> Self {
        regions.sort_by_key(|region| region.start);
        let mut kept: Vec<CodeRegion<'m>> = Vec::with_capacity(regions.len());
        for mut region in regions {
            if let Some(last) = kept.last() {
                let end = last.start.0.saturating_add(last.bytes.len() as u64);
                if region.start.0 < end {
                    let cut = ((end - region.start.0).min(region.bytes.len() as u64)) as usize;
                    region.start = Svma(end);
                    region.bytes = &region.bytes[cut..];
                }
            }
            if !region.bytes.is_empty() {
                kept.push(region);
            }
        }
        Self { regions: kept, functions: Vec::new() }
    }

    /// Adds what functions there are; overlapping ranges are taken as they are sorted: the one that starts last
    /// before an address counts.
    pub fn with_functions(mut self, mut functions: Vec<FunctionRange>) -> Self {
        functions.sort_by_key(|function| (function.start, function.end));
        self.functions = functions;
        self
    }

    /// The range of the function at a stated address.
    pub fn function_range(&self, svma: Svma) -> Option<&FunctionRange> {
        let after = self.functions.partition_point(|function| function.start <= svma);
        self.functions[..after].last().filter(|function| svma < function.end)
    }

    /// The ranges of all functions, sorted by address.
    pub fn functions(&self) -> &[FunctionRange] {
        &self.functions
    }

    /// The function at a stated address.
    pub fn function_at(&self, svma: Svma) -> FunctionAt {
        match self.function_range(svma) {
            None => FunctionAt::default(),
            Some(range) => FunctionAt {
                function: Some(range.function),
                entry: svma == range.start
                    && matches!(range.role, FunctionRole::Function | FunctionRole::Resume),
                stub: range.role == FunctionRole::Stub,
                resume: range.role == FunctionRole::Resume,
            },
        }
    }

    /// The code from `svma` to the end of its region; `None` where there is none.
    #[inline]
    pub fn code_at(&self, svma: Svma) -> Option<&'m [u8]> {
        let after = self.regions.partition_point(|region| region.start <= svma);
        let region = self.regions[..after].last()?;
        let skip = usize::try_from(svma.0 - region.start.0).ok()?;
        region.bytes.get(skip..).filter(|bytes| !bytes.is_empty())
    }

    /// The regions, sorted by address, disjoint.
    pub fn regions(&self) -> &[CodeRegion<'m>] {
        &self.regions
    }
}

/// All images of a capture.
#[derive(Clone, Debug, Default)]
pub struct Images<'m> {
    images: Vec<CodeImage<'m>>,
}

impl<'m> Images<'m> {
    /// Adds an image.
    pub fn push(&mut self, image: CodeImage<'m>) -> ImageId {
        let id = ImageId(self.images.len() as u32);
        self.images.push(image);
        id
    }

    /// The image of that id, if there is one.
    #[inline]
    pub fn get(&self, id: ImageId) -> Option<&CodeImage<'m>> {
        self.images.get(id.0 as usize)
    }

    /// How many images there are.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// True where there is none.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }
}

/// An image mapped at `[start, end)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// First address.
    pub start: Ip,
    /// One past the last address.
    pub end: Ip,
    /// The image.
    pub image: ImageId,
    /// The image's stated address that lies at `start`.
    pub svma: Svma,
}

impl Mapping {
    /// The stated address of a runtime address inside the mapping.
    #[inline]
    pub fn to_svma(&self, ip: Ip) -> Svma {
        Svma(ip.0.wrapping_sub(self.start.0).wrapping_add(self.svma.0))
    }

    /// The difference runtime minus stated address, modulo 2^64.
    #[inline]
    pub fn bias(&self) -> u64 {
        self.start.0.wrapping_sub(self.svma.0)
    }

    /// Sorts what is mapped together.
    fn place(&self) -> (ImageId, u64, Svma) {
        (self.image, self.bias(), self.svma)
    }
}

/// What is mapped where at one time: disjoint mappings, sorted by address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressSpace {
    mappings: Vec<Mapping>,
    /// Indices of the mappings, by image, load bias and stated address.
    by_image: Vec<u32>,
}

impl AddressSpace {
    /// A space with nothing mapped.
    pub const fn empty() -> Self {
        Self { mappings: Vec::new(), by_image: Vec::new() }
    }

    /// Builds from mappings in order of time: a later one cuts what it overlaps of the earlier ones.
    pub fn new(in_time_order: impl IntoIterator<Item = Mapping>) -> Self {
        let mut space = Self::default();
        for mapping in in_time_order {
            space.map(mapping);
        }
        let mappings = &space.mappings;
        space.by_image = (0..mappings.len() as u32).collect();
        space.by_image.sort_by_key(|index| mappings[*index as usize].place());
        space
    }

    fn map(&mut self, new: Mapping) {
        if new.start >= new.end {
            return;
        }
        // Mappings that come in order of address overlap nothing: a million of them are no reason to wait.
        if self.mappings.last().is_none_or(|last| last.end <= new.start) {
            self.mappings.push(new);
            return;
        }
        let mut kept = Vec::with_capacity(self.mappings.len() + 2);
        for old in self.mappings.drain(..) {
            if old.end <= new.start || old.start >= new.end {
                kept.push(old);
                continue;
            }
            if old.start < new.start {
                kept.push(Mapping { end: new.start, ..old });
            }
            if old.end > new.end {
                kept.push(Mapping { start: new.end, svma: old.to_svma(new.end), ..old });
            }
        }
        let at = kept.partition_point(|mapping| mapping.start < new.start);
        kept.insert(at, new);
        self.mappings = kept;
    }

    /// The mapping that holds the address.
    #[inline]
    pub fn find(&self, ip: Ip) -> Option<&Mapping> {
        let after = self.mappings.partition_point(|mapping| mapping.start <= ip);
        self.mappings[..after].last().filter(|mapping| ip < mapping.end)
    }

    /// The runtime address of an image's stated address, if that part of the image is mapped; the first, if several.
    pub fn avma(&self, image: ImageId, svma: Svma) -> Option<Ip> {
        self.in_order_of_place(|mapping| mapping.image < image)
            .take_while(|mapping| mapping.image == image)
            .filter_map(|mapping| {
                let delta = svma.0.checked_sub(mapping.svma.0)?;
                (delta < mapping.end.0 - mapping.start.0).then(|| Ip(mapping.start.0 + delta))
            })
            .min()
    }

    /// All mappings of a mapping's image at its load bias, sorted by address.
    pub(crate) fn mapped_together(&self, with: &Mapping) -> impl Iterator<Item = &Mapping> {
        let group = (with.image, with.bias());
        self.in_order_of_place(move |mapping| (mapping.image, mapping.bias()) < group)
            .take_while(move |mapping| (mapping.image, mapping.bias()) == group)
    }

    /// The mappings by image, load bias and stated address, from the first on that is not `before`.
    fn in_order_of_place(&self, before: impl Fn(&Mapping) -> bool) -> impl Iterator<Item = &Mapping> {
        let from = self.by_image.partition_point(|index| before(&self.mappings[*index as usize]));
        self.by_image[from..].iter().map(|index| &self.mappings[*index as usize])
    }

    /// The mappings, sorted by address, disjoint.
    pub fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }
}

/// The address spaces of one process over time.
///
/// A version holds every mapping that lived in its interval, also those made later in it, as long as none
/// overlaps another: so most processes have one version for all their life, and no clock is needed to choose.
#[derive(Clone, Debug, Default)]
pub struct AddressSpaces {
    versions: Vec<(Tsc, AddressSpace)>,
}

impl AddressSpaces {
    /// Versions in rising order of the time from which they hold; the first one holds from the beginning.
    pub fn new(versions: Vec<(Tsc, AddressSpace)>) -> Self {
        debug_assert!(versions.is_sorted_by_key(|version| version.0));
        Self { versions }
    }

    /// One version for all time.
    pub fn constant(space: AddressSpace) -> Self {
        Self { versions: vec![(Tsc(0), space)] }
    }

    /// The versions with the time each begins at.
    pub fn versions(&self) -> &[(Tsc, AddressSpace)] {
        &self.versions
    }

    /// Index of the version at that time; 0 where the time is not known.
    pub fn index_at(&self, time: Option<Tsc>) -> usize {
        let Some(time) = time else { return 0 };
        self.versions.partition_point(|version| version.0 <= time).saturating_sub(1)
    }
}
