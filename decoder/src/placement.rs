//! Where an image lies, seen from inside it.
//!
//! Nodes of the block graph know stated addresses only, so that processes share them. What they lead to depends on
//! more: on which parts of the image are mapped together. A *placement* is an image with exactly those parts (at one
//! load bias); code in it is walked without looking at the address space, and what leaves it is resolved at run time.

use crate::image::{AddressSpace, Mapping};
use crate::units::{ImageId, Ip, Svma};
use rustc_hash::FxHashMap;

/// An image with the parts of it that are mapped together.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct PlacementId(u32);

/// Not mapped anywhere.
pub(crate) const UNPLACED: PlacementId = PlacementId(0);

/// Stated addresses, `[start, end)`: sorted, disjoint, not adjacent.
type Parts = Vec<(Svma, Svma)>;

#[derive(Clone, Debug)]
struct Placement {
    image: ImageId,
    parts: Parts,
    /// Runtime minus stated address in the space at hand; `None` where the image does not lie like this there, or
    /// no walk came by yet.
    bias: Option<u64>,
}

/// The placements that a graph has met.
pub(crate) struct Placements {
    all: Vec<Placement>,
    /// Several where an image is mapped more than once in one space.
    by_parts: FxHashMap<(ImageId, Parts), Vec<PlacementId>>,
    /// Of the space at hand.
    here: Here,
    /// The number of the space at hand.
    space: u32,
    /// Of the other spaces, by their numbers: who comes back finds everything as it was, as what was learned of the space
    /// expects.
    others: FxHashMap<u32, Here>,
}

/// Image and bias to placement, in one space.
type Here = FxHashMap<(ImageId, u64), PlacementId>;

impl Placements {
    pub fn new() -> Self {
        let unplaced = Placement { image: ImageId(u32::MAX), parts: Parts::new(), bias: None };
        Self {
            all: vec![unplaced],
            by_parts: FxHashMap::default(),
            here: Here::default(),
            space: 0,
            others: FxHashMap::default(),
        }
    }

    /// Another space comes, or the same.
    pub fn enter_space(&mut self, number: u32) {
        if number == self.space {
            return;
        }
        for id in self.here.values() {
            self.all[id.0 as usize].bias = None;
        }
        let next = self.others.remove(&number).unwrap_or_default();
        for (&(_, bias), id) in &next {
            self.all[id.0 as usize].bias = Some(bias);
        }
        let left = std::mem::replace(&mut self.here, next);
        self.others.insert(std::mem::replace(&mut self.space, number), left);
    }

    /// The placement that a mapping belongs to.
    pub fn of(&mut self, space: &AddressSpace, mapping: &Mapping) -> PlacementId {
        let key = (mapping.image, mapping.bias());
        if let Some(id) = self.here.get(&key) {
            return *id;
        }
        let parts = parts(space, mapping);
        let ids = self.by_parts.entry((mapping.image, parts.clone())).or_default();
        let free = ids.iter().copied().find(|id| self.all[id.0 as usize].bias.is_none());
        let id = free.unwrap_or_else(|| {
            let id = PlacementId(self.all.len() as u32);
            self.all.push(Placement { image: mapping.image, parts, bias: None });
            ids.push(id);
            id
        });
        self.all[id.0 as usize].bias = Some(mapping.bias());
        self.here.insert(key, id);
        id
    }

    pub fn image(&self, id: PlacementId) -> ImageId {
        self.all[id.0 as usize].image
    }

    /// The end of the part that holds a stated address; `None` where none does.
    pub fn part_end(&self, id: PlacementId, svma: Svma) -> Option<Svma> {
        let parts = &self.all[id.0 as usize].parts;
        let after = parts.partition_point(|part| part.0 <= svma);
        parts[..after].last().map(|part| part.1).filter(|end| svma < *end)
    }

    /// The runtime address of a stated one in the space at hand.
    #[inline]
    pub fn ip(&self, id: PlacementId, svma: Svma) -> Option<Ip> {
        self.all[id.0 as usize].bias.map(|bias| Ip(svma.0.wrapping_add(bias)))
    }
}

/// All that is mapped together with a mapping.
fn parts(space: &AddressSpace, mapping: &Mapping) -> Parts {
    let mut parts = Parts::new();
    for part in space.mapped_together(mapping) {
        let end = Svma(part.svma.0.saturating_add(part.end.0 - part.start.0));
        match parts.last_mut() {
            Some(last) if last.1 == part.svma => last.1 = end,
            _ => parts.push((part.svma, end)),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: u64, end: u64, image: u32, svma: u64) -> Mapping {
        Mapping { start: Ip(start), end: Ip(end), image: ImageId(image), svma: Svma(svma) }
    }

    #[test]
    fn processes_share_what_lies_alike() {
        let mut placements = Placements::new();
        let mut number = 0;
        let mut place = |maps: &[Mapping], at: u64| {
            let space = AddressSpace::new(maps.iter().copied());
            number += 1;
            placements.enter_space(number);
            let id = placements.of(&space, space.find(Ip(at)).expect("it is mapped"));
            (id, placements.ip(id, Svma(0x10)))
        };
        let (alone, ip) = place(&[mapping(0x1000, 0x3000, 7, 0)], 0x1500);
        assert_eq!(ip, Some(Ip(0x1010)));
        // Elsewhere, and in two mappings that lie side by side: nothing that the code could see.
        let (moved, ip) = place(&[mapping(0x8000, 0x9000, 7, 0), mapping(0x9000, 0xa000, 7, 0x1000)], 0x9500);
        assert_eq!((moved, ip), (alone, Some(Ip(0x8010))));
        // Something lies over it, or it is another image.
        let patched = [mapping(0x1000, 0x3000, 7, 0), mapping(0x1100, 0x1105, 8, 0)];
        assert_ne!(place(&patched, 0x1500).0, alone);
        assert_ne!(place(&[mapping(0x1000, 0x3000, 9, 0)], 0x1500).0, alone);
    }

    #[test]
    fn who_comes_back_finds_all_as_it_was() {
        let twice = AddressSpace::new([mapping(0x1000, 0x3000, 7, 0), mapping(0x5000, 0x7000, 7, 0)]);
        let once = AddressSpace::new([mapping(0x9000, 0xb000, 7, 0)]);
        let mut placements = Placements::new();
        let mut of = |number, space: &AddressSpace, ip| {
            placements.enter_space(number);
            placements.of(space, space.find(Ip(ip)).expect("it is mapped"))
        };
        let (low, high) = (of(1, &twice, 0x1000), of(1, &twice, 0x5000));
        assert_eq!(of(2, &once, 0x9000), low);
        assert_eq!((of(1, &twice, 0x5000), of(1, &twice, 0x1000)), (high, low));
        of(2, &once, 0x9000);
        placements.enter_space(1);
        assert_eq!(placements.ip(high, Svma(4)), Some(Ip(0x5004)));
    }

    #[test]
    fn one_space_may_have_an_image_twice() {
        let space = AddressSpace::new([mapping(0x1000, 0x3000, 7, 0), mapping(0x5000, 0x7000, 7, 0)]);
        let mut placements = Placements::new();
        let mut of = |ip| placements.of(&space, space.find(Ip(ip)).expect("it is mapped"));
        let (low, high) = (of(0x1000), of(0x6000));
        assert_ne!(low, high);
        assert_eq!((of(0x2000), of(0x5000)), (low, high));
        assert_eq!(placements.ip(high, Svma(4)), Some(Ip(0x5004)));
        assert_eq!(placements.part_end(low, Svma(0x1fff)), Some(Svma(0x2000)));
        assert_eq!(placements.part_end(low, Svma(0x2000)), None);
    }
}
