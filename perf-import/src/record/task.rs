//! COMM, FORK, EXIT, NAMESPACES, CGROUP: the lives of processes and threads.

use super::{Record, WriteRecord, kind, misc};
use crate::bytes::{Fields, Put, Words, until_nul};
use crate::{Pid, Tid};
use ptflow_decoder::units::Ns;

/// COMM: a thread has a new name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Comm<'m> {
    /// Process.
    pub pid: Pid,
    /// Thread.
    pub tid: Tid,
    /// The new name.
    pub comm: &'m [u8],
    /// The name came by exec: all mappings are gone.
    pub exec: bool,
}

impl<'m> Comm<'m> {
    /// Reads the body.
    pub fn read(record: &Record<'m>) -> Option<Self> {
        let mut f = Fields(record.body);
        let (pid, tid) = (Pid(f.u32()?), Tid(f.u32()?));
        Some(Self { pid, tid, comm: until_nul(f.0), exec: record.misc & misc::COMM_EXEC != 0 })
    }
}

impl WriteRecord for Comm<'_> {
    fn kind(&self) -> u32 {
        kind::COMM
    }

    fn misc(&self) -> u16 {
        if self.exec { misc::COMM_EXEC } else { 0 }
    }

    fn body(&self, out: &mut Vec<u8>) {
        out.u32(self.pid.0);
        out.u32(self.tid.0);
        out.c_string(self.comm);
    }
}

/// FORK and EXIT: a thread began or ended; where the process is not its parent's, the process too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Task {
    /// EXIT, else FORK.
    pub exit: bool,
    /// Process.
    pub pid: Pid,
    /// Parent process.
    pub ppid: Pid,
    /// Thread.
    pub tid: Tid,
    /// Parent thread.
    pub ptid: Tid,
    /// When.
    pub time: Ns,
    /// A FORK that perf made up for a process that ran already: it has its own mappings, not its parent's
    /// (`PERF_RECORD_MISC_FORK_EXEC`).
    pub no_maps: bool,
}

impl Task {
    /// Reads the body of either kind.
    pub fn read(record: &Record<'_>) -> Option<Self> {
        let mut f = Fields(record.body);
        Some(Self {
            exit: record.kind == kind::EXIT,
            pid: Pid(f.u32()?),
            ppid: Pid(f.u32()?),
            tid: Tid(f.u32()?),
            ptid: Tid(f.u32()?),
            time: Ns(f.u64()?),
            no_maps: record.misc & misc::FORK_EXEC != 0,
        })
    }
}

impl WriteRecord for Task {
    fn kind(&self) -> u32 {
        if self.exit { kind::EXIT } else { kind::FORK }
    }

    fn misc(&self) -> u16 {
        if self.no_maps { misc::FORK_EXEC } else { 0 }
    }

    fn body(&self, out: &mut Vec<u8>) {
        for id in [self.pid.0, self.ppid.0, self.tid.0, self.ptid.0] {
            out.u32(id);
        }
        out.u64(self.time.0);
    }
}

/// NAMESPACES: which namespaces a thread is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Namespaces<'m> {
    /// Process.
    pub pid: Pid,
    /// Thread.
    pub tid: Tid,
    /// Device and inode of each, one after the other, in the kernel's order (net, uts, ipc, pid, user, mnt, cgroup).
    pub dev_inodes: Words<'m>,
}

impl<'m> Namespaces<'m> {
    /// Reads the body.
    pub fn read(record: &Record<'m>) -> Option<Self> {
        let mut f = Fields(record.body);
        let (pid, tid) = (Pid(f.u32()?), Tid(f.u32()?));
        let count = f.u64()?;
        Some(Self { pid, tid, dev_inodes: f.words(count.checked_mul(2)?)? })
    }
}

impl WriteRecord for Namespaces<'_> {
    fn kind(&self) -> u32 {
        kind::NAMESPACES
    }

    fn body(&self, out: &mut Vec<u8>) {
        out.u32(self.pid.0);
        out.u32(self.tid.0);
        out.u64(self.dev_inodes.len() as u64 / 2);
        out.bytes(self.dev_inodes.bytes());
    }
}

/// CGROUP: the path of a control group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cgroup<'m> {
    /// Its id in samples.
    pub id: u64,
    /// Its path.
    pub path: &'m [u8],
}

impl<'m> Cgroup<'m> {
    /// Reads the body.
    pub fn read(record: &Record<'m>) -> Option<Self> {
        let mut f = Fields(record.body);
        Some(Self { id: f.u64()?, path: until_nul(f.0) })
    }
}

impl WriteRecord for Cgroup<'_> {
    fn kind(&self) -> u32 {
        kind::CGROUP
    }

    fn body(&self, out: &mut Vec<u8>) {
        out.u64(self.id);
        out.c_string(self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{cut_everywhere, through_bytes};
    use super::*;

    #[test]
    fn round_trips() {
        for exec in [false, true] {
            let comm = Comm { pid: Pid(1), tid: Tid(2), comm: b"worker", exec };
            through_bytes(&comm, |record| assert_eq!(Comm::read(record), Some(comm)));
            cut_everywhere(&comm, |record| _ = Comm::read(record));
        }
        for (exit, no_maps) in [(false, false), (false, true), (true, false)] {
            let (pid, ppid, tid, ptid) = (Pid(1), Pid(2), Tid(3), Tid(4));
            let task = Task { exit, pid, ppid, tid, ptid, time: Ns(5), no_maps };
            through_bytes(&task, |record| assert_eq!(Task::read(record), Some(task)));
            cut_everywhere(&task, |record| assert_eq!(Task::read(record), None));
        }
        let words = [1u64, 2, 3, 4].map(u64::to_le_bytes).concat();
        let spaces = Namespaces { pid: Pid(1), tid: Tid(2), dev_inodes: Words::new(&words) };
        through_bytes(&spaces, |record| assert_eq!(Namespaces::read(record), Some(spaces)));
        cut_everywhere(&spaces, |record| assert_eq!(Namespaces::read(record), None));
        let cgroup = Cgroup { id: 9, path: b"/system.slice" };
        through_bytes(&cgroup, |record| assert_eq!(Cgroup::read(record), Some(cgroup)));
        cut_everywhere(&cgroup, |record| _ = Cgroup::read(record));
    }
}
