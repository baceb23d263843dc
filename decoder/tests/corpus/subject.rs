//! A case as the decoder gets it.

use super::case::Case;
use ptflow_decoder::image::{AddressSpace, AddressSpaces, CodeImage, CodeRegion, Images, Mapping};
use ptflow_decoder::units::{ImageId, Ip, Svma};

/// The only image.
pub const IMAGE: ImageId = ImageId(0);
/// The listing's addresses are the runtime ones; the image states lower ones.
pub const BIAS: u64 = 0x800;

/// Code that lies in one go.
pub struct Region {
    pub start: u64,
    pub bytes: Vec<u8>,
}

/// The listing as regions.
pub fn regions(case: &Case) -> Vec<Region> {
    let mut regions: Vec<Region> = Vec::new();
    for line in &case.listing {
        match regions.last_mut() {
            Some(region) if region.start + region.bytes.len() as u64 == line.addr => {
                region.bytes.extend_from_slice(&line.bytes);
            }
            _ => regions.push(Region { start: line.addr, bytes: line.bytes.clone() }),
        }
    }
    regions
}

/// The one image, and where it is mapped.
pub fn memory(regions: &[Region]) -> (Images<'_>, AddressSpaces) {
    let stated = |addr: u64| Svma(addr.wrapping_sub(BIAS));
    let mut images = Images::default();
    let image = images.push(CodeImage::new(
        regions
            .iter()
            .map(|region| CodeRegion { start: stated(region.start), bytes: &region.bytes })
            .collect(),
    ));
    assert_eq!(image, IMAGE);
    let mappings = regions.iter().map(|region| Mapping {
        start: Ip(region.start),
        end: Ip(region.start + region.bytes.len() as u64),
        image,
        svma: stated(region.start),
    });
    (images, AddressSpaces::constant(AddressSpace::new(mappings)))
}
