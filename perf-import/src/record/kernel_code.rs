//! KSYMBOL, BPF_EVENT, TEXT_POKE: kernel code that came, went or changed while recording.

use super::{Record, WriteRecord, kind};
use crate::bytes::{Fields, Put, until_nul};
use ptflow_decoder::units::Ip;

/// KSYMBOL: a stretch of kernel code got a name, or lost it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ksymbol<'m> {
    /// First address.
    pub addr: Ip,
    /// Bytes.
    pub len: u32,
    /// 1: BPF, 2: out of line (`PERF_RECORD_KSYMBOL_TYPE_*`).
    pub kind: u16,
    /// Bit 0: the code is gone.
    pub flags: u16,
    /// The name.
    pub name: &'m [u8],
}

impl<'m> Ksymbol<'m> {
    /// Reads the body.
    pub fn read(record: &Record<'m>) -> Option<Self> {
        let mut f = Fields(record.body);
        Some(Self {
            addr: Ip(f.u64()?),
            len: f.u32()?,
            kind: f.u16()?,
            flags: f.u16()?,
            name: until_nul(f.0),
        })
    }
}

impl WriteRecord for Ksymbol<'_> {
    fn kind(&self) -> u32 {
        kind::KSYMBOL
    }

    fn body(&self, out: &mut Vec<u8>) {
        out.u64(self.addr.0);
        out.u32(self.len);
        out.u16(self.kind);
        out.u16(self.flags);
        out.c_string(self.name);
    }
}

/// BPF_EVENT: a BPF program was loaded or unloaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BpfEvent {
    /// 1: loaded, 2: unloaded (`PERF_BPF_EVENT_*`).
    pub kind: u16,
    /// Flags.
    pub flags: u16,
    /// The program.
    pub id: u32,
    /// Its tag.
    pub tag: [u8; 8],
}

impl BpfEvent {
    /// Reads the body.
    pub fn read(record: &Record<'_>) -> Option<Self> {
        let mut f = Fields(record.body);
        Some(Self { kind: f.u16()?, flags: f.u16()?, id: f.u32()?, tag: f.take(8)?.try_into().ok()? })
    }
}

impl WriteRecord for BpfEvent {
    fn kind(&self) -> u32 {
        kind::BPF_EVENT
    }

    fn body(&self, out: &mut Vec<u8>) {
        out.u16(self.kind);
        out.u16(self.flags);
        out.u32(self.id);
        out.bytes(&self.tag);
    }
}

/// TEXT_POKE: the kernel changed its own code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TextPoke<'m> {
    /// First address.
    pub addr: Ip,
    /// The code before; empty where there was none.
    pub old: &'m [u8],
    /// The code after; empty where there is none.
    pub new: &'m [u8],
}

impl<'m> TextPoke<'m> {
    /// Reads the body.
    pub fn read(record: &Record<'m>) -> Option<Self> {
        let mut f = Fields(record.body);
        let addr = Ip(f.u64()?);
        let (old, new) = (usize::from(f.u16()?), usize::from(f.u16()?));
        Some(Self { addr, old: f.take(old)?, new: f.take(new)? })
    }
}

impl WriteRecord for TextPoke<'_> {
    fn kind(&self) -> u32 {
        kind::TEXT_POKE
    }

    fn body(&self, out: &mut Vec<u8>) {
        out.u64(self.addr.0);
        out.u16(self.old.len() as u16);
        out.u16(self.new.len() as u16);
        out.bytes(self.old);
        out.bytes(self.new);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{cut_everywhere, through_bytes};
    use super::*;

    #[test]
    fn round_trips() {
        let symbol = Ksymbol { addr: Ip(1 << 63), len: 64, kind: 1, flags: 1, name: b"bpf_prog" };
        through_bytes(&symbol, |record| assert_eq!(Ksymbol::read(record), Some(symbol)));
        cut_everywhere(&symbol, |record| _ = Ksymbol::read(record));
        let bpf = BpfEvent { kind: 1, flags: 2, id: 3, tag: *b"abcdefgh" };
        through_bytes(&bpf, |record| assert_eq!(BpfEvent::read(record), Some(bpf)));
        cut_everywhere(&bpf, |record| assert_eq!(BpfEvent::read(record), None));
        let poke = TextPoke { addr: Ip(1 << 63), old: &[0x0f, 0x1f, 0x44, 0, 0], new: &[0xe8, 1, 2, 3, 4] };
        through_bytes(&poke, |record| assert_eq!(TextPoke::read(record), Some(poke)));
        cut_everywhere(&poke, |record| assert_eq!(TextPoke::read(record), None));
    }
}
