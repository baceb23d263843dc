//! The file header: 104 bytes that say where everything else lies.
//!
//! Layout: linux `tools/perf/util/header.h` (`struct perf_file_header`) and
//! `tools/perf/Documentation/perf.data-file-format.txt`.

use crate::bytes::{Fields, Put};

/// A stretch of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Section {
    pub offset: u64,
    pub size: u64,
}

impl Section {
    pub fn read(f: &mut Fields<'_>) -> Option<Self> {
        Some(Self { offset: f.u64()?, size: f.u64()? })
    }

    pub fn write(self, out: &mut Vec<u8>) {
        out.u64(self.offset);
        out.u64(self.size);
    }

    pub fn end(self) -> u64 {
        self.offset.saturating_add(self.size)
    }

    /// The part of it that a file of `len` bytes has.
    pub fn within(self, len: usize) -> std::ops::Range<usize> {
        let clamp = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(len);
        clamp(self.offset)..clamp(self.end())
    }
}

/// The header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    /// Size of one entry of `attrs`: an attr and the section of its ids.
    pub attr_size: u64,
    pub attrs: Section,
    pub data: Section,
    /// One bit for each feature section; these lie behind the data, in the order of their bits.
    pub features: [u8; 32],
}

/// What a header says of what follows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    /// Sections where it says.
    File(Header),
    /// Records.
    Pipe,
}

/// Why bytes are no header that can be read here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HeaderError {
    /// Another kind of file.
    NotPerfData,
    /// The first layout, which perf wrote until 2010.
    Version1,
    BigEndian,
    Short,
}

/// Magic of the only layout that today's perf writes.
const MAGIC: [u8; 8] = *b"PERFILE2";
const MAGIC_VERSION_1: [u8; 8] = *b"PERFFILE";

impl Header {
    pub const SIZE: u64 = 104;
    /// Header size of a pipe stream, which has nothing behind it but records.
    pub const PIPE_SIZE: u64 = 16;

    pub fn read(bytes: &[u8]) -> Result<Form, HeaderError> {
        let mut f = Fields(bytes);
        let magic: [u8; 8] =
            f.take(8).and_then(|magic| magic.try_into().ok()).ok_or(HeaderError::NotPerfData)?;
        let mut reversed = magic;
        reversed.reverse();
        match () {
            () if magic == MAGIC => {}
            () if reversed == MAGIC => return Err(HeaderError::BigEndian),
            () if magic == MAGIC_VERSION_1 => return Err(HeaderError::Version1),
            () => return Err(HeaderError::NotPerfData),
        }
        let size = f.u64().ok_or(HeaderError::Short)?;
        if size == Self::PIPE_SIZE {
            return Ok(Form::Pipe);
        }
        let mut fields = || {
            let attr_size = f.u64()?;
            let (attrs, data) = (Section::read(&mut f)?, Section::read(&mut f)?);
            let _event_types = Section::read(&mut f)?;
            // The header of the first perf versions ends here.
            let features = if size >= Self::SIZE { f.take(32)?.try_into().ok()? } else { [0; 32] };
            Some(Self { attr_size, attrs, data, features })
        };
        fields().map(Form::File).ok_or(HeaderError::Short)
    }

    pub fn write(&self, out: &mut Vec<u8>) {
        out.bytes(&MAGIC);
        out.u64(Self::SIZE);
        out.u64(self.attr_size);
        self.attrs.write(out);
        self.data.write(out);
        Section::default().write(out);
        out.bytes(&self.features);
    }

    /// The features that there are, in the order of their sections.
    pub fn feature_bits(&self) -> impl Iterator<Item = u8> + use<> {
        let features = self.features;
        (0..=255u8).filter(move |bit| features[usize::from(bit / 8)] & (1 << (bit % 8)) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let mut features = [0; 32];
        features[0] = 0b1000_1100;
        features[31] = 0x80;
        Header {
            attr_size: 144,
            attrs: Section { offset: 120, size: 288 },
            data: Section { offset: 408, size: 1 << 40 },
            features,
        }
    }

    #[test]
    fn round_trips() {
        let mut bytes = Vec::new();
        header().write(&mut bytes);
        assert_eq!(bytes.len() as u64, Header::SIZE);
        assert_eq!(Header::read(&bytes), Ok(Form::File(header())));
        assert_eq!(header().feature_bits().collect::<Vec<_>>(), [2, 3, 7, 255]);
        for len in 0..bytes.len() {
            assert!(Header::read(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn other_files_are_told_apart() {
        let mut bytes = Vec::new();
        header().write(&mut bytes);
        let with_magic = |magic: &[u8; 8]| {
            let mut bytes = bytes.clone();
            bytes[..8].copy_from_slice(magic);
            Header::read(&bytes)
        };
        assert_eq!(with_magic(b"2ELIFREP"), Err(HeaderError::BigEndian));
        assert_eq!(with_magic(b"PERFFILE"), Err(HeaderError::Version1));
        assert_eq!(with_magic(b"\x7fELF\x02\x01\x01\0"), Err(HeaderError::NotPerfData));
        bytes[8] = 16;
        assert_eq!(Header::read(&bytes[..16]), Ok(Form::Pipe));
    }

    #[test]
    fn sections_beyond_the_file_are_cut() {
        let section = |offset, size| Section { offset, size }.within(100);
        assert_eq!(section(10, 20), 10..30);
        assert_eq!(section(10, u64::MAX), 10..100);
        assert_eq!(section(u64::MAX, u64::MAX), 100..100);
    }
}
