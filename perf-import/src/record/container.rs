//! perf's own records that carry the file's own parts: TIME_CONV, HEADER_ATTR, HEADER_FEATURE, COMPRESSED.

use super::{Record, WriteRecord, kind};
use crate::bytes::{Fields, Put, Words};
use ptflow_decoder::config::TscConversion;

/// TIME_CONV: TSC to perf time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimeConv {
    /// Shift of the conversion.
    pub shift: u64,
    /// Multiplier.
    pub mult: u64,
    /// Nanoseconds at TSC 0.
    pub zero: u64,
    /// Newer files: cycles, mask, and whether `zero` and the two before are of use.
    pub short: Option<(u64, u64, bool, bool)>,
}

impl TimeConv {
    /// Reads the body.
    pub fn read(record: &Record<'_>) -> Option<Self> {
        let mut f = Fields(record.body);
        let (shift, mult, zero) = (f.u64()?, f.u64()?, f.u64()?);
        let short = (|| Some((f.u64()?, f.u64()?, f.u8()? != 0, f.u8()? != 0)))();
        Some(Self { shift, mult, zero, short })
    }

    /// The conversion; `None` where the numbers are of no use.
    pub fn conversion(&self) -> Option<TscConversion> {
        let usable = self.short.is_none_or(|(_, _, cap_zero, _)| cap_zero);
        conversion(self.shift, self.mult, self.zero).filter(|_| usable)
    }
}

/// A conversion of numbers as they stand in a file.
pub(crate) fn conversion(shift: u64, mult: u64, zero: u64) -> Option<TscConversion> {
    let mult = u32::try_from(mult).ok().filter(|mult| *mult != 0)?;
    let shift = u16::try_from(shift).ok().filter(|shift| *shift < 64)?;
    Some(TscConversion { shift, mult, zero })
}

impl WriteRecord for TimeConv {
    fn kind(&self) -> u32 {
        kind::TIME_CONV
    }

    fn body(&self, out: &mut Vec<u8>) {
        out.u64(self.shift);
        out.u64(self.mult);
        out.u64(self.zero);
        if let Some((cycles, mask, cap_zero, cap_short)) = self.short {
            out.u64(cycles);
            out.u64(mask);
            out.u64(u64::from(cap_zero) | u64::from(cap_short) << 8);
        }
    }
}

/// HEADER_ATTR: an event of a pipe stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeaderAttr<'m> {
    /// The bytes of the `perf_event_attr`.
    pub attr: &'m [u8],
    /// The ids of the event.
    pub ids: Words<'m>,
}

impl<'m> HeaderAttr<'m> {
    /// Reads the body; the attr says itself how long it is.
    pub fn read(record: &Record<'m>) -> Option<Self> {
        let size = Fields(record.body.get(4..)?).u32()? as usize;
        let (attr, ids) = record.body.split_at_checked(size)?;
        Some(Self { attr, ids: Words::new(ids) })
    }
}

impl WriteRecord for HeaderAttr<'_> {
    fn kind(&self) -> u32 {
        kind::HEADER_ATTR
    }

    fn body(&self, out: &mut Vec<u8>) {
        out.bytes(self.attr);
        out.bytes(self.ids.bytes());
    }
}

/// HEADER_FEATURE: a feature section of a pipe stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Feature<'m> {
    /// Which (`HEADER_*`).
    pub bit: u64,
    /// The section.
    pub data: &'m [u8],
}

impl<'m> Feature<'m> {
    /// Reads the body.
    pub fn read(record: &Record<'m>) -> Option<Self> {
        let mut f = Fields(record.body);
        Some(Self { bit: f.u64()?, data: f.0 })
    }
}

impl WriteRecord for Feature<'_> {
    fn kind(&self) -> u32 {
        kind::HEADER_FEATURE
    }

    fn body(&self, out: &mut Vec<u8>) {
        out.u64(self.bit);
        out.bytes(self.data);
    }
}

/// COMPRESSED and COMPRESSED2: a piece of the record stream as zstd bytes.
///
/// All pieces of a file are one zstd stream; its output is records again, and a record may be cut between two pieces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Compressed<'m> {
    /// The zstd bytes.
    pub data: &'m [u8],
}

impl<'m> Compressed<'m> {
    /// Reads the body of either kind; the second one has its length in front and padding behind.
    pub fn read(record: &Record<'m>) -> Option<Self> {
        let mut f = Fields(record.body);
        let data = match record.kind {
            kind::COMPRESSED2 => {
                let len = f.u64()?;
                f.take_u64(len)?
            }
            _ => f.0,
        };
        Some(Self { data })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{cut_everywhere, through_bytes};
    use super::*;
    use crate::FileOffset;

    #[test]
    fn round_trips() {
        let short = Some((5, u64::MAX, true, false));
        for short in [None, short] {
            let time = TimeConv { shift: 31, mult: 7, zero: u64::MAX, short };
            through_bytes(&time, |record| assert_eq!(TimeConv::read(record), Some(time)));
            cut_everywhere(&time, |record| _ = TimeConv::read(record));
            assert_eq!(time.conversion(), Some(TscConversion { shift: 31, mult: 7, zero: u64::MAX }));
        }
        let mut attr = [0; 64];
        attr[4] = 64;
        let ids = [1u64, 2].map(u64::to_le_bytes).concat();
        let header = HeaderAttr { attr: &attr, ids: Words::new(&ids) };
        through_bytes(&header, |record| assert_eq!(HeaderAttr::read(record), Some(header)));
        cut_everywhere(&header, |record| _ = HeaderAttr::read(record));
        let feature = Feature { bit: 9, data: b"GenuineIntel,6,1,1" };
        through_bytes(&feature, |record| assert_eq!(Feature::read(record), Some(feature)));
        cut_everywhere(&feature, |record| _ = Feature::read(record));
    }

    #[test]
    fn numbers_of_no_use_are_no_conversion() {
        for (shift, mult) in [(64, 1), (u64::MAX, 1), (1, 0), (1, 1 << 32)] {
            assert_eq!(conversion(shift, mult, 0), None);
        }
        let time = TimeConv { shift: 1, mult: 1, zero: 0, short: Some((0, 0, false, false)) };
        assert_eq!(time.conversion(), None);
    }

    #[test]
    fn compressed_bytes_of_both_kinds() {
        let body = [4, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0];
        let record =
            |kind, len| Record { kind, misc: 0, body: &body[..len], payload: &[], offset: FileOffset(0) };
        let data = |kind, len| Compressed::read(&record(kind, len)).map(|compressed| compressed.data);
        assert_eq!(data(kind::COMPRESSED, 16), Some(&body[..]));
        assert_eq!(data(kind::COMPRESSED2, 16), Some(&[1, 2, 3, 4][..]));
        assert_eq!(data(kind::COMPRESSED2, 11), None);
    }
}
