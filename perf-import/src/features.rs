//! Feature sections: what perf notes of the machine and the recording (linux `tools/perf/util/header.c`).
//!
//! Reader and writer of a section stand side by side.

use crate::attr::Attr;
use crate::bytes::{Fields, Put, until_nul};
use crate::record::misc;
use crate::{FileOffset, Pid};
use ptflow_decoder::units::Ns;

/// The sections' bits.
pub mod bit {
    #![allow(missing_docs, reason = "perf's names: HEADER_*")]
    pub const TRACING_DATA: u8 = 1;
    pub const BUILD_ID: u8 = 2;
    pub const HOSTNAME: u8 = 3;
    pub const OSRELEASE: u8 = 4;
    pub const VERSION: u8 = 5;
    pub const ARCH: u8 = 6;
    pub const NRCPUS: u8 = 7;
    pub const CPUDESC: u8 = 8;
    pub const CPUID: u8 = 9;
    pub const TOTAL_MEM: u8 = 10;
    pub const CMDLINE: u8 = 11;
    pub const EVENT_DESC: u8 = 12;
    pub const PMU_MAPPINGS: u8 = 16;
    pub const AUXTRACE: u8 = 18;
    pub const SAMPLE_TIME: u8 = 21;
    pub const CLOCKID: u8 = 23;
    pub const DIR_FORMAT: u8 = 24;
    pub const COMPRESSED: u8 = 27;
    pub const CLOCK_DATA: u8 = 29;
}

/// A string: HOSTNAME, OSRELEASE, VERSION, ARCH, CPUDESC, CPUID.
pub fn string(section: &[u8]) -> Option<String> {
    Some(String::from_utf8_lossy(Fields(section).string()?).into_owned())
}

/// Writes a string section.
pub fn write_string(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    out.string(text.as_bytes());
    out
}

/// CMDLINE: the words of perf's command line.
pub fn strings(section: &[u8]) -> Option<Vec<String>> {
    let mut f = Fields(section);
    let count = f.u32()?;
    let words = (0..count).map_while(|_| f.string()).map(|word| String::from_utf8_lossy(word).into_owned());
    Some(words.collect())
}

/// Writes CMDLINE.
pub fn write_strings(words: &[String]) -> Vec<u8> {
    let mut out = Vec::new();
    out.u32(words.len() as u32);
    words.iter().for_each(|word| out.string(word.as_bytes()));
    out
}

/// NRCPUS: CPUs that could be there, and that were online.
pub fn nrcpus(section: &[u8]) -> Option<(u32, u32)> {
    let mut f = Fields(section);
    Some((f.u32()?, f.u32()?))
}

/// Writes NRCPUS.
pub fn write_nrcpus(available: u32, online: u32) -> Vec<u8> {
    let mut out = Vec::new();
    out.u32(available);
    out.u32(online);
    out
}

/// SAMPLE_TIME: times of the first and the last sample.
pub fn sample_time(section: &[u8]) -> Option<(Ns, Ns)> {
    let mut f = Fields(section);
    Some((Ns(f.u64()?), Ns(f.u64()?)))
}

/// Writes SAMPLE_TIME.
pub fn write_sample_time(first: Ns, last: Ns) -> Vec<u8> {
    let mut out = Vec::new();
    out.u64(first.0);
    out.u64(last.0);
    out
}

/// PMU_MAPPINGS: types of PMUs and their names.
pub fn pmu_mappings(section: &[u8]) -> Option<Vec<(u32, String)>> {
    let mut f = Fields(section);
    let count = f.u32()?;
    let mappings =
        (0..count).map_while(|_| Some((f.u32()?, String::from_utf8_lossy(f.string()?).into_owned())));
    Some(mappings.collect())
}

/// Writes PMU_MAPPINGS.
pub fn write_pmu_mappings(mappings: &[(u32, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    out.u32(mappings.len() as u32);
    for (kind, name) in mappings {
        out.u32(*kind);
        out.string(name.as_bytes());
    }
    out
}

/// EVENT_DESC: the events with their names and ids.
pub fn event_desc(section: &[u8]) -> Option<Vec<(Attr, String, Vec<u64>)>> {
    let mut f = Fields(section);
    let (count, attr_size) = (f.u32()?, f.u32()? as usize);
    let events = (0..count).map_while(|_| {
        let attr = Attr::read(f.take(attr_size)?);
        let ids = u64::from(f.u32()?);
        let name = String::from_utf8_lossy(f.string()?).into_owned();
        Some((attr, name, f.words(ids)?.iter().collect()))
    });
    Some(events.collect())
}

/// Writes EVENT_DESC.
pub fn write_event_desc(events: &[(Attr, &str, &[u64])]) -> Vec<u8> {
    let mut out = Vec::new();
    out.u32(events.len() as u32);
    out.u32(Attr::SIZE as u32);
    for (attr, name, ids) in events {
        attr.write(&mut out);
        out.u32(ids.len() as u32);
        out.string(name.as_bytes());
        ids.iter().for_each(|id| out.u64(*id));
    }
    out
}

/// AUXTRACE: where the AUXTRACE records' headers lie. Of hostile length, so it is not gathered but walked.
pub fn auxtrace_index(section: &[u8]) -> impl Iterator<Item = FileOffset> + '_ {
    let mut f = Fields(section);
    let count = f.u64().unwrap_or(0);
    // An entry: the header's offset, and its size (without the trace bytes).
    (0..count).map_while(move |_| f.u64().zip(f.u64())).map(|(offset, _)| FileOffset(offset))
}

/// Writes AUXTRACE from offsets and sizes of the records without their trace bytes.
pub fn write_auxtrace_index(records: &[(FileOffset, u64)]) -> Vec<u8> {
    let mut out = Vec::new();
    out.u64(records.len() as u64);
    for (offset, size) in records {
        out.u64(offset.0);
        out.u64(*size);
    }
    out
}

/// The length of a build id whose length is not told. perf before 5.10 pads shorter ones with zeros (as `ld
/// --build-id=fast` makes them); one of 20 bytes does not end in so many.
fn unpadded(id: &[u8]) -> usize {
    const MANY: usize = 4;
    let len = id.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    // Build ids have 8, 16 or 20 bytes: a short one may itself end in a zero.
    let len = [8, 16].into_iter().find(|usual| len <= *usual).unwrap_or(id.len());
    if id.len() - len >= MANY { len } else { id.len() }
}

/// An entry of BUILD_ID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BuildId<'m> {
    /// Of the kernel or a module of it, else of user space.
    pub kernel: bool,
    /// Process; -1 (as u32) for the host.
    pub pid: Pid,
    /// The build id, at most 20 bytes.
    pub id: &'m [u8],
    /// The file as it was mapped.
    pub filename: &'m [u8],
}

impl<'m> BuildId<'m> {
    /// The entries of the section.
    pub fn read_all(section: &'m [u8]) -> impl Iterator<Item = Self> + 'm {
        let mut rest = Fields(section);
        std::iter::from_fn(move || {
            // A record header each, whose type is 0 or HEADER_BUILD_ID.
            let (_, misc, size) = (rest.u32()?, rest.u16()?, rest.u16()?);
            Self::read(misc, rest.take(usize::from(size).checked_sub(8)?)?)
        })
    }

    /// An entry without its header: the body of a HEADER_BUILD_ID record, as streams to pipes have them.
    pub(crate) fn read(misc: u16, body: &'m [u8]) -> Option<Self> {
        let mut body = Fields(body);
        let pid = Pid(body.u32()?);
        let mut id = Fields(body.take(24)?);
        let bytes = id.take(20)?;
        let len = match misc & misc::BUILD_ID_SIZE {
            0 => unpadded(bytes),
            _ => usize::from(id.u8()?).min(20),
        };
        let kernel = misc & misc::CPUMODE_MASK == misc::KERNEL;
        Some(Self { kernel, pid, id: &bytes[..len], filename: until_nul(body.0) })
    }

    /// Appends the entry; names longer than the kernel's PATH_MAX are cut.
    pub fn write(&self, out: &mut Vec<u8>) {
        const PATH_MAX: usize = 4096;
        let id = &self.id[..self.id.len().min(20)];
        let name = &self.filename[..self.filename.len().min(PATH_MAX)];
        let name_len = (name.len() + 1).next_multiple_of(64);
        out.u32(0);
        out.u16(if self.kernel { misc::KERNEL } else { misc::USER } | misc::BUILD_ID_SIZE);
        out.u16((8 + 4 + 24 + name_len) as u16);
        out.u32(self.pid.0);
        let start = out.len();
        out.bytes(id);
        out.resize(start + 20, 0);
        out.u8(id.len() as u8);
        out.bytes(&[0; 3]);
        let start = out.len();
        out.bytes(name);
        out.resize(start + name_len, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        let words = ["perf".to_owned(), "record".to_owned(), String::new(), "x".repeat(200)];
        assert_eq!(string(&write_string(&words[3])).as_deref(), Some(&*words[3]));
        assert_eq!(strings(&write_strings(&words)).as_deref(), Some(&words[..]));
        assert_eq!(nrcpus(&write_nrcpus(8, 4)), Some((8, 4)));
        assert_eq!(sample_time(&write_sample_time(Ns(1), Ns(2))), Some((Ns(1), Ns(2))));
        let pmus = pmu_mappings(&write_pmu_mappings(&[(8, "intel_pt"), (4, "cpu")]));
        assert_eq!(pmus, Some(vec![(8, "intel_pt".to_owned()), (4, "cpu".to_owned())]));
        let attr = Attr { kind: 8, config: 0x300e601, ..Attr::default() };
        let events = event_desc(&write_event_desc(&[(attr, "intel_pt//u", &[1, 2]), (attr, "dummy:u", &[])]));
        let expected =
            vec![(attr, "intel_pt//u".to_owned(), vec![1, 2]), (attr, "dummy:u".to_owned(), vec![])];
        assert_eq!(events, Some(expected));
        let index = write_auxtrace_index(&[(FileOffset(5), 48), (FileOffset(1 << 40), 48)]);
        assert_eq!(auxtrace_index(&index).collect::<Vec<_>>(), [FileOffset(5), FileOffset(1 << 40)]);
    }

    #[test]
    fn build_ids_round_trip() {
        let entries = [
            BuildId { kernel: false, pid: Pid(u32::MAX), id: &[7; 20], filename: b"/bin/true" },
            BuildId { kernel: true, pid: Pid(u32::MAX), id: &[8; 16], filename: b"[kernel.kallsyms]" },
            BuildId { kernel: false, pid: Pid(3), id: &[9; 8], filename: &[b'a'; 100] },
        ];
        let mut section = Vec::new();
        entries.iter().for_each(|entry| entry.write(&mut section));
        assert_eq!(BuildId::read_all(&section).collect::<Vec<_>>(), entries);
        for len in 0..section.len() {
            assert!(BuildId::read_all(&section[..len]).count() < 3);
        }
    }

    #[test]
    fn counts_beyond_the_section_end_with_it() {
        let huge = u32::MAX.to_le_bytes();
        assert_eq!(strings(&huge), Some(vec![]));
        assert_eq!(pmu_mappings(&huge), Some(vec![]));
        assert_eq!(auxtrace_index(&u64::MAX.to_le_bytes()).count(), 0);
        assert_eq!(event_desc(&[255; 8]), Some(vec![]));
        // Events without attrs, names or ids would be as many as the section says, in no bytes.
        let mut section = Vec::new();
        section.u32(u32::MAX);
        section.u32(0);
        section.bytes(&[0; 16]);
        assert_eq!(event_desc(&section).map(|events| events.len()), Some(2));
    }
}
