//! ID_INDEX, THREAD_MAP, CPU_MAP: perf's tables of what it recorded.

use super::{Record, WriteRecord, kind};
use crate::bytes::{Fields, Put, Words, until_nul};
use crate::{Cpu, Pid, Tid};

/// ID_INDEX: which event id belongs to which CPU and thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdIndex<'m> {
    entries: Words<'m>,
    /// Guest machine and virtual CPU of each entry, where the file has them.
    pub guests: Option<Words<'m>>,
}

/// An entry of ID_INDEX.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdIndexEntry {
    /// The event id.
    pub id: u64,
    /// Index of its ring buffer.
    pub idx: u64,
    /// CPU, where it belongs to one.
    pub cpu: Option<Cpu>,
    /// Thread, where it belongs to one.
    pub tid: Option<Tid>,
}

impl<'m> IdIndex<'m> {
    /// Reads the body.
    pub fn read(record: &Record<'m>) -> Option<Self> {
        let mut f = Fields(record.body);
        let count = f.u64()?;
        let entries = f.words(count.checked_mul(4)?)?;
        let guests = if f.0.is_empty() { None } else { f.words(count.checked_mul(2)?) };
        Some(Self { entries, guests })
    }

    /// How many entries.
    pub fn len(&self) -> usize {
        self.entries.len() / 4
    }

    /// True where there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entries.
    pub fn iter(&self) -> impl Iterator<Item = IdIndexEntry> + use<'m> {
        let words = self.entries;
        let word = move |at: usize| words.get(at).unwrap_or(0);
        // -1 as a 64-bit number, or as a 32-bit one.
        let known = |value: u64| u32::try_from(value).ok().filter(|value| *value != u32::MAX);
        (0..self.len()).map(move |n| IdIndexEntry {
            id: word(4 * n),
            idx: word(4 * n + 1),
            cpu: known(word(4 * n + 2)).map(Cpu),
            tid: known(word(4 * n + 3)).map(Tid),
        })
    }
}

impl WriteRecord for IdIndex<'_> {
    fn kind(&self) -> u32 {
        kind::ID_INDEX
    }

    fn body(&self, out: &mut Vec<u8>) {
        out.u64(self.len() as u64);
        out.bytes(self.entries.bytes());
        if let Some(guests) = self.guests {
            out.bytes(guests.bytes());
        }
    }
}

/// THREAD_MAP: the threads that were to be recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ThreadMap<'m> {
    entries: &'m [u8],
}

impl<'m> ThreadMap<'m> {
    /// Id and name of an entry: `struct perf_record_thread_map_entry`.
    const ENTRY: usize = 24;

    /// Reads the body.
    pub fn read(record: &Record<'m>) -> Option<Self> {
        let mut f = Fields(record.body);
        let count = f.u64()?;
        Some(Self { entries: f.take_u64(count.checked_mul(Self::ENTRY as u64)?)? })
    }

    /// Threads with their names.
    pub fn iter(&self) -> impl Iterator<Item = (Pid, &'m [u8])> + use<'m> {
        self.entries.chunks_exact(Self::ENTRY).filter_map(|entry| {
            let mut f = Fields(entry);
            Some((Pid(f.u64()? as u32), until_nul(f.0)))
        })
    }
}

impl WriteRecord for ThreadMap<'_> {
    fn kind(&self) -> u32 {
        kind::THREAD_MAP
    }

    fn body(&self, out: &mut Vec<u8>) {
        out.u64((self.entries.len() / Self::ENTRY) as u64);
        out.bytes(self.entries);
    }
}

/// CPU_MAP: the CPUs that were recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CpuMap<'m> {
    /// A list of 16-bit numbers.
    List(&'m [u8]),
    /// A bit each, in words of so many bytes.
    Mask(u16, &'m [u8]),
    /// From, to (inclusive), and whether "any CPU" is meant besides.
    Range(u16, u16, bool),
}

impl<'m> CpuMap<'m> {
    /// Reads the body.
    pub fn read(record: &Record<'m>) -> Option<Self> {
        let mut f = Fields(record.body);
        match f.u16()? {
            0 => {
                let count = usize::from(f.u16()?);
                Some(Self::List(f.take(2 * count)?))
            }
            1 => {
                let (count, word) = (usize::from(f.u16()?), f.u16()?);
                if word == 8 {
                    // Words of eight bytes are aligned to eight, behind the record's header.
                    f.u16()?;
                }
                matches!(word, 4 | 8).then_some(())?;
                Some(Self::Mask(word, f.take(count * usize::from(word))?))
            }
            2 => {
                let any = f.u8()? != 0;
                f.u8()?;
                Some(Self::Range(f.u16()?, f.u16()?, any))
            }
            _ => None,
        }
    }

    /// The CPUs, rising.
    pub fn cpus(&self) -> Vec<Cpu> {
        let mut cpus: Vec<Cpu> = match *self {
            Self::List(list) => list
                .chunks_exact(2)
                .map(|cpu| u16::from_le_bytes([cpu[0], cpu[1]]))
                .filter(|cpu| *cpu != u16::MAX)
                .map(|cpu| Cpu(u32::from(cpu)))
                .collect(),
            Self::Mask(_, mask) => (0..8 * mask.len())
                .filter(|bit| mask[bit / 8] & (1 << (bit % 8)) != 0)
                .map(|bit| Cpu(bit as u32))
                .collect(),
            Self::Range(from, to, _) => (u32::from(from)..=u32::from(to)).map(Cpu).collect(),
        };
        cpus.sort_unstable();
        cpus
    }
}

impl WriteRecord for CpuMap<'_> {
    fn kind(&self) -> u32 {
        kind::CPU_MAP
    }

    fn body(&self, out: &mut Vec<u8>) {
        match *self {
            Self::List(list) => {
                out.u16(0);
                out.u16((list.len() / 2) as u16);
                out.bytes(list);
            }
            Self::Mask(word, mask) => {
                out.u16(1);
                out.u16((mask.len() / usize::from(word.max(1))) as u16);
                out.u16(word);
                if word == 8 {
                    out.u16(0);
                }
                out.bytes(mask);
            }
            Self::Range(from, to, any) => {
                out.u16(2);
                out.u8(u8::from(any));
                out.u8(0);
                out.u16(from);
                out.u16(to);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{cut_everywhere, through_bytes};
    use super::*;

    #[test]
    fn id_index_with_and_without_guests() {
        let words = [1, 0, 3, u64::MAX, 2, 1, u64::from(u32::MAX), 77].map(u64::to_le_bytes).concat();
        let guests = [0u64, 0, 9, 1].map(u64::to_le_bytes).concat();
        for guests in [None, Some(Words::new(&guests))] {
            let index = IdIndex { entries: Words::new(&words), guests };
            through_bytes(&index, |record| assert_eq!(IdIndex::read(record), Some(index)));
            cut_everywhere(&index, |record| _ = IdIndex::read(record));
            let expected = [
                IdIndexEntry { id: 1, idx: 0, cpu: Some(Cpu(3)), tid: None },
                IdIndexEntry { id: 2, idx: 1, cpu: None, tid: Some(Tid(77)) },
            ];
            assert_eq!(index.iter().collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn thread_map() {
        let mut entries = Vec::new();
        entries.u64(7);
        entries.bytes(b"worker\0\0\0\0\0\0\0\0\0\0");
        let map = ThreadMap { entries: &entries };
        through_bytes(&map, |record| assert_eq!(ThreadMap::read(record), Some(map)));
        cut_everywhere(&map, |record| assert_eq!(ThreadMap::read(record), None));
        assert_eq!(map.iter().collect::<Vec<_>>(), [(Pid(7), &b"worker"[..])]);
    }

    #[test]
    fn cpu_maps_of_every_form_tell_the_same() {
        let maps = [
            CpuMap::List(&[2, 0, 0, 0, 1, 0]),
            CpuMap::Mask(8, &[7, 0, 0, 0, 0, 0, 0, 0]),
            CpuMap::Mask(4, &[7, 0, 0, 0]),
            CpuMap::Range(0, 2, false),
        ];
        for map in maps {
            through_bytes(&map, |record| assert_eq!(CpuMap::read(record), Some(map)));
            cut_everywhere(&map, |record| assert_eq!(CpuMap::read(record), None));
            assert_eq!(map.cpus(), [Cpu(0), Cpu(1), Cpu(2)]);
        }
    }
}
