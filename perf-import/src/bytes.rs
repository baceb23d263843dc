//! Little-endian reads that never go out of bounds, and the writes that mirror them.
//!
//! Records are not aligned in every file (compressed ones have odd sizes), so everything is read by bytes.

/// Reads fields one after another; `None` where there are not enough bytes.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    /// As many bytes as a field says; `None` where there are fewer.
    pub fn take_u64(&mut self, n: u64) -> Option<&'a [u8]> {
        self.take(usize::try_from(n).ok()?)
    }

    /// The next byte.
    pub fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    /// A list of `n` words.
    pub fn words(&mut self, n: u64) -> Option<Words<'a>> {
        Some(Words(self.take_u64(n.checked_mul(8)?)?))
    }

    /// A feature string: a length, then that many bytes, of which those up to the first NUL count.
    pub fn string(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()?;
        Some(until_nul(self.take(len as usize)?))
    }
}

/// A list of 64-bit words as it lies in the file, aligned or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Words<'a>(&'a [u8]);

impl<'a> Words<'a> {
    /// Over bytes; what is left over at the end is no word.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(&bytes[..bytes.len() / 8 * 8])
    }

    /// How many.
    pub fn len(self) -> usize {
        self.0.len() / 8
    }

    /// True where there is none.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// One of them.
    pub fn get(self, index: usize) -> Option<u64> {
        Fields(self.0.get(index.checked_mul(8)?..)?).u64()
    }

    /// All of them.
    pub fn iter(self) -> impl ExactSizeIterator<Item = u64> + 'a {
        (0..self.len()).map(move |index| self.get(index).unwrap_or(0))
    }

    /// As bytes.
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }
}

/// The bytes up to the first NUL.
pub fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.iter().position(|byte| *byte == 0).map_or(bytes, |end| &bytes[..end])
}

/// Writes fields one after another: the mirror of [`Fields`].
pub trait Put {
    /// Bytes as they are.
    fn bytes(&mut self, bytes: &[u8]);

    /// One byte.
    fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    /// Two bytes.
    fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    /// Four bytes.
    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    /// Eight bytes.
    fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    /// Bytes and a NUL.
    fn c_string(&mut self, text: &[u8]) {
        self.bytes(text);
        self.u8(0);
    }

    /// A feature string: its length, padded as perf pads it (`NAME_ALIGN` of 64), then the bytes with at least one NUL.
    fn string(&mut self, text: &[u8]) {
        let len = (text.len() + 1).next_multiple_of(64);
        self.u32(len as u32);
        self.bytes(text);
        for _ in text.len()..len {
            self.u8(0);
        }
    }
}

impl Put for Vec<u8> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_written_and_not_beyond() {
        let mut out = Vec::new();
        out.u8(1);
        out.u16(0x0203);
        out.u32(0x0405_0607);
        out.u64(8);
        out.string(b"name");
        let mut f = Fields(&out);
        assert_eq!((f.u8(), f.u16(), f.u32(), f.u64()), (Some(1), Some(0x0203), Some(0x0405_0607), Some(8)));
        assert_eq!(f.0.len(), 68);
        assert_eq!(f.string(), Some(&b"name"[..]));
        assert_eq!((f.u8(), f.u64(), f.words(1), f.words(u64::MAX)), (None, None, None, None));
    }

    #[test]
    fn words_need_no_alignment() {
        let bytes = [0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9];
        let words = Words::new(&bytes[1..]);
        assert_eq!(words.iter().collect::<Vec<_>>(), [1, 2]);
        assert_eq!((words.len(), words.get(2), words.get(usize::MAX)), (2, None, None));
    }
}
