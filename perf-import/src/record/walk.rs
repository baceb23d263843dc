//! From bytes to records.

use super::{Record, kind};
use crate::FileOffset;
use crate::bytes::Fields;

/// Bytes of a file that are records one after another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch<'m> {
    pub data: &'m [u8],
    /// Position of the first byte.
    pub base: u64,
    /// Places of `data` where records certainly begin, rising.
    pub sure: &'m [usize],
}

/// Walks the records of a file, in file order; trace bytes are stepped over, never touched.
///
/// Where a header makes no sense, or a record reaches over the beginning of an AUXTRACE record that the file's own
/// index tells of, the walk goes on at that next AUXTRACE record: so a damaged spot costs what lies before it, not the
/// rest of the file.
#[derive(Clone, Debug)]
pub struct Records<'m> {
    current: Stretch<'m>,
    at: usize,
    more: std::vec::IntoIter<Stretch<'m>>,
    skipped: u64,
    first_damage: Option<FileOffset>,
}

/// Size of a record's header.
const HEADER: usize = 8;

impl<'m> Records<'m> {
    /// One stretch after the other; a record never reaches over the end of one.
    pub(crate) fn new(stretches: Vec<Stretch<'m>>) -> Self {
        let current = Stretch { data: &[], base: 0, sure: &[] };
        Self { current, at: 0, more: stretches.into_iter(), skipped: 0, first_damage: None }
    }

    fn place(&self, at: usize) -> FileOffset {
        FileOffset(self.current.base.saturating_add(at as u64))
    }

    /// Where the first bytes lie that are no record, if the walk has met any.
    pub fn first_damage(&self) -> Option<FileOffset> {
        self.first_damage
    }

    /// Bytes stepped over because they are no records.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    fn damage(&mut self, from: usize, to: usize) {
        self.skipped += (to - from) as u64;
        let position = self.place(from);
        self.first_damage.get_or_insert(position);
        self.at = to;
    }

    /// The next place where a record certainly begins, behind `at`; the end where there is none.
    fn next_sure(&mut self, at: usize) -> usize {
        let sure = &mut self.current.sure;
        *sure = &sure[sure.partition_point(|place| *place <= at)..];
        sure.first().copied().unwrap_or(self.current.data.len())
    }
}

/// Kind, misc and size, and how many bytes follow the record.
fn header(bytes: &[u8]) -> Option<(u32, u16, usize, u64)> {
    let mut f = Fields(bytes);
    let (kind, misc, size) = (f.u32()?, f.u16()?, usize::from(f.u16()?));
    let body = bytes.get(HEADER..size)?;
    let follows = match kind {
        kind::AUXTRACE => Fields(body).u64()?,
        kind::HEADER_TRACING_DATA => u64::from(Fields(body).u32()?).next_multiple_of(8),
        _ => 0,
    };
    Some((kind, misc, size, follows))
}

impl<'m> Iterator for Records<'m> {
    type Item = Record<'m>;

    fn next(&mut self) -> Option<Record<'m>> {
        loop {
            let data = self.current.data;
            let start = self.at;
            let Some(rest) = data.get(start..).filter(|rest| !rest.is_empty()) else {
                (self.current, self.at) = (self.more.next()?, 0);
                continue;
            };
            let limit = self.next_sure(start);
            let Some((kind, misc, size, follows)) = header(rest).filter(|found| start + found.2 <= limit)
            else {
                self.damage(start, limit);
                continue;
            };
            let behind = &data[start + size..limit];
            let follows = usize::try_from(follows).unwrap_or(usize::MAX);
            let payload = behind.get(..follows).unwrap_or(behind);
            self.at = start + size + payload.len();
            if payload.len() < follows {
                let position = self.place(self.at);
                self.first_damage.get_or_insert(position);
            }
            let offset = self.place(start);
            return Some(Record { kind, misc, body: &rest[HEADER..size], payload, offset });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::Put;

    fn record(out: &mut Vec<u8>, kind: u32, size: u16, body: &[u8]) {
        out.u32(kind);
        out.u16(0);
        out.u16(size);
        out.bytes(body);
    }

    fn walk(data: &[u8], sure: &[usize]) -> (Vec<(u32, usize, usize)>, u64, Option<FileOffset>) {
        let mut records = Records::new(vec![Stretch { data, base: 0, sure }]);
        let found = records.by_ref().map(|r| (r.kind, r.body.len(), r.payload.len())).collect();
        (found, records.skipped(), records.first_damage())
    }

    #[test]
    fn payload_follows_only_where_it_should() {
        let mut data = Vec::new();
        record(&mut data, kind::FINISHED_ROUND, 8, &[]);
        record(&mut data, kind::AUXTRACE, 16, &16u64.to_le_bytes());
        data.bytes(&[7; 16]);
        record(&mut data, kind::HEADER_TRACING_DATA, 12, &5u32.to_le_bytes());
        data.bytes(&[7; 8]);
        record(&mut data, 4711, 11, b"odd");
        let expected = vec![(68, 0, 0), (71, 8, 16), (66, 4, 8), (4711, 3, 0)];
        assert_eq!(walk(&data, &[]), (expected, 0, None));
    }

    #[test]
    fn goes_on_at_the_next_sure_place() {
        let mut data = Vec::new();
        record(&mut data, kind::COMM, 16, &[0; 8]);
        // A size below the header's own.
        record(&mut data, kind::COMM, 3, &[0; 40]);
        let sure = data.len();
        record(&mut data, kind::AUXTRACE, 16, &8u64.to_le_bytes());
        data.bytes(&[7; 8]);
        record(&mut data, kind::COMM, 16, &[0; 8]);
        let (found, skipped, at) = walk(&data, &[sure]);
        assert_eq!(found, [(3, 8, 0), (71, 8, 8), (3, 8, 0)]);
        assert_eq!((skipped, at), (48, Some(FileOffset(16))));
        let (found, skipped, _) = walk(&data, &[]);
        assert_eq!((found.len(), skipped), (1, data.len() as u64 - 16));
    }

    #[test]
    fn a_record_that_swallows_a_sure_place_is_cut() {
        let mut data = Vec::new();
        // Claims a megabyte of trace where there are eight bytes.
        record(&mut data, kind::AUXTRACE, 16, &(1u64 << 20).to_le_bytes());
        data.bytes(&[7; 8]);
        let sure = data.len();
        record(&mut data, kind::AUXTRACE, 16, &8u64.to_le_bytes());
        data.bytes(&[7; 8]);
        let (found, skipped, at) = walk(&data, &[0, sure]);
        assert_eq!(found, [(71, 8, 8), (71, 8, 8)]);
        assert_eq!((skipped, at), (0, Some(FileOffset(24))));
    }

    #[test]
    fn a_record_ends_with_its_stretch() {
        let mut data = Vec::new();
        record(&mut data, kind::COMM, 16, &[0; 8]);
        let stretch = |data, base| Stretch { data, base, sure: &[] };
        let stretches = vec![stretch(&data[..12], 100), stretch(&[], 112), stretch(&data[..], 200)];
        let mut records = Records::new(stretches);
        let found: Vec<_> = records.by_ref().map(|record| (record.kind, record.offset.0)).collect();
        assert_eq!((found, records.skipped()), (vec![(kind::COMM, 200)], 12));
        assert_eq!(records.first_damage(), Some(FileOffset(100)));
    }

    #[test]
    fn ends_at_a_cut() {
        let mut data = Vec::new();
        record(&mut data, kind::AUXTRACE, 16, &64u64.to_le_bytes());
        data.bytes(&[7; 30]);
        assert_eq!(walk(&data, &[]), (vec![(71, 8, 30)], 0, Some(FileOffset(46))));
        for len in 0..data.len() {
            assert!(walk(&data[..len], &[]).0.len() <= 1);
        }
    }
}
