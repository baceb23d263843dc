//! MMAP and MMAP2: what was mapped where.

use super::{Record, WriteRecord, kind, misc};
use crate::bytes::{Fields, Put, until_nul};
use crate::{Pid, Tid};

/// A mapping of a file, or of what stands for one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mmap<'m> {
    /// Process; -1 (as u32) for the kernel.
    pub pid: Pid,
    /// Thread.
    pub tid: Tid,
    /// First address.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
    /// Offset in the file of the first byte.
    pub pgoff: u64,
    /// The build id, where the record carries one: at most 20 bytes.
    pub build_id: Option<&'m [u8]>,
    /// Protection and flags as given to mmap(2). MMAP has none and means executable unless it says data.
    pub prot: Option<(u32, u32)>,
    /// The misc field: cpu mode, data mapping.
    pub misc: u16,
    /// The file, as the traced process saw it.
    pub filename: &'m [u8],
}

const PROT_EXEC: u32 = 4;

impl<'m> Mmap<'m> {
    /// Reads the body of either kind.
    pub fn read(record: &Record<'m>) -> Option<Self> {
        let mut f = Fields(record.body);
        let (pid, tid) = (Pid(f.u32()?), Tid(f.u32()?));
        let (addr, len, pgoff) = (f.u64()?, f.u64()?, f.u64()?);
        let (mut build_id, mut prot) = (None, None);
        if record.kind == kind::MMAP2 {
            // Device, inode and generation, or the build id.
            let mut id = Fields(f.take(24)?);
            if record.misc & misc::MMAP_BUILD_ID != 0 {
                let size = usize::from(id.u8()?).min(20);
                id.take(3)?;
                build_id = Some(id.take(size)?);
            }
            prot = Some((f.u32()?, f.u32()?));
        }
        let misc = record.misc & !misc::MMAP_BUILD_ID;
        Some(Self { pid, tid, addr, len, pgoff, build_id, prot, misc, filename: until_nul(f.0) })
    }

    /// True where code can run in the mapping.
    pub fn is_executable(&self) -> bool {
        match self.prot {
            Some((prot, _)) => prot & PROT_EXEC != 0,
            None => self.misc & misc::MMAP_DATA == 0,
        }
    }

    /// True for the kernel's own code and its modules.
    pub fn is_kernel(&self) -> bool {
        self.pid.0 == u32::MAX || self.misc & misc::CPUMODE_MASK == misc::KERNEL
    }
}

impl WriteRecord for Mmap<'_> {
    fn kind(&self) -> u32 {
        if self.prot.is_some() { kind::MMAP2 } else { kind::MMAP }
    }

    fn misc(&self) -> u16 {
        match self.build_id {
            Some(_) => self.misc | misc::MMAP_BUILD_ID,
            None => self.misc,
        }
    }

    fn body(&self, out: &mut Vec<u8>) {
        out.u32(self.pid.0);
        out.u32(self.tid.0);
        out.u64(self.addr);
        out.u64(self.len);
        out.u64(self.pgoff);
        if let Some((prot, flags)) = self.prot {
            let id = self.build_id.map_or(&[][..], |id| &id[..id.len().min(20)]);
            let mut union = [0; 24];
            union[0] = id.len() as u8;
            union[4..4 + id.len()].copy_from_slice(id);
            out.bytes(&union);
            out.u32(prot);
            out.u32(flags);
        }
        out.c_string(self.filename);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{cut_everywhere, through_bytes};
    use super::*;

    #[test]
    fn round_trips() {
        let mmap = Mmap {
            pid: Pid(7),
            tid: Tid(8),
            addr: 0x7f00_0000_1000,
            len: 0x2000,
            pgoff: 0x1000,
            build_id: None,
            prot: Some((5, 2)),
            misc: misc::USER,
            filename: b"/usr/lib/libc.so.6",
        };
        let others = [
            Mmap { build_id: Some(&[1, 2, 3, 4, 5, 6, 7, 8]), ..mmap },
            Mmap { build_id: Some(&[9; 20]), ..mmap },
            Mmap {
                prot: None,
                pid: Pid(u32::MAX),
                misc: misc::KERNEL,
                filename: b"[kernel.kallsyms]_text",
                ..mmap
            },
            Mmap { prot: None, misc: misc::MMAP_DATA, ..mmap },
        ];
        for mmap in others.into_iter().chain([mmap]) {
            through_bytes(&mmap, |record| assert_eq!(Mmap::read(record), Some(mmap)));
            cut_everywhere(&mmap, |record| _ = Mmap::read(record));
        }
        assert!(mmap.is_executable() && !mmap.is_kernel());
        assert!(!Mmap { prot: Some((3, 2)), ..mmap }.is_executable());
        assert!(others[2].is_kernel() && others[2].is_executable() && !others[3].is_executable());
    }
}
