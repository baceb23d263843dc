//! Processes and threads over time: names, and what was mapped where.

use crate::record::{Comm, Mmap, Task};
use crate::{Pid, Tid};
use std::collections::BTreeMap;

/// A file (or what stands for one) that some process had mapped for execution.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileId(pub u32);

/// A mapping as the file records it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MappedRange {
    /// perf time; 0 for what was there when the recording began.
    pub time: u64,
    /// First address.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
    /// Offset in the file of the first byte.
    pub pgoff: u64,
    /// The file.
    pub file: FileId,
}

/// Something that changed a process's address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SpaceEvent {
    /// A mapping was made.
    Map(MappedRange),
    /// exec: everything is gone.
    Exec {
        /// perf time.
        time: u64,
    },
}

impl SpaceEvent {
    /// perf time.
    pub fn time(&self) -> u64 {
        match self {
            Self::Map(range) => range.time,
            Self::Exec { time } => *time,
        }
    }
}

/// A process.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Process {
    /// Its last name.
    pub comm: String,
    /// Its threads with their last names.
    pub threads: BTreeMap<Tid, String>,
    /// What happened to its address space, in order of time.
    pub space: Vec<SpaceEvent>,
}

/// A file that was mapped: its path, and its build id where the capture has it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct MappedFile {
    /// The path as the traced process saw it, or a name such as `[vdso]`.
    pub path: String,
    /// Build id.
    pub build_id: Option<Vec<u8>>,
}

/// All processes of a capture.
#[derive(Clone, Debug, Default)]
pub struct Processes {
    processes: BTreeMap<Pid, Process>,
    by_tid: BTreeMap<Tid, Pid>,
    files: Vec<MappedFile>,
    file_ids: BTreeMap<MappedFile, FileId>,
}

impl Processes {
    /// All processes.
    pub fn iter(&self) -> impl Iterator<Item = (Pid, &Process)> {
        self.processes.iter().map(|(pid, process)| (*pid, process))
    }

    /// One process.
    pub fn get(&self, pid: Pid) -> Option<&Process> {
        self.processes.get(&pid)
    }

    /// The process of a thread.
    pub fn process_of(&self, tid: Tid) -> Option<Pid> {
        self.by_tid.get(&tid).copied()
    }

    /// The files that were mapped.
    pub fn files(&self) -> &[MappedFile] {
        &self.files
    }

    fn thread(&mut self, pid: Pid, tid: Tid) -> &mut String {
        self.by_tid.insert(tid, pid);
        self.processes.entry(pid).or_default().threads.entry(tid).or_default()
    }

    pub(crate) fn seen(&mut self, pid: Pid, tid: Tid) {
        if pid.0 != u32::MAX && tid.0 != u32::MAX {
            self.thread(pid, tid);
        }
    }

    pub(crate) fn comm(&mut self, comm: Comm<'_>, time: u64) {
        let name = String::from_utf8_lossy(comm.comm).into_owned();
        self.thread(comm.pid, comm.tid).clone_from(&name);
        let process = self.processes.entry(comm.pid).or_default();
        if comm.exec {
            process.space.push(SpaceEvent::Exec { time });
        }
        if comm.exec || comm.pid.0 == comm.tid.0 {
            process.comm = name;
        }
    }

    pub(crate) fn fork(&mut self, task: Task) {
        let name = self
            .processes
            .get(&task.ppid)
            .and_then(|parent| parent.threads.get(&task.ptid).or(Some(&parent.comm)))
            .cloned()
            .unwrap_or_default();
        self.thread(task.pid, task.tid).clone_from(&name);
        if task.pid == task.ppid {
            return;
        }
        // A new process begins with its parent's mappings; a thread shares them.
        let space = self.processes.get(&task.ppid).map(|parent| parent.space.clone()).unwrap_or_default();
        let process = self.processes.entry(task.pid).or_default();
        process.comm = name;
        process.space = space;
    }

    pub(crate) fn mmap(&mut self, mmap: Mmap<'_>, time: u64, known_build_id: Option<&[u8]>) {
        let path = String::from_utf8_lossy(mmap.filename).into_owned();
        let build_id = mmap.build_id.or(known_build_id).map(<[u8]>::to_vec);
        let file = MappedFile { path, build_id };
        let next = FileId(self.files.len() as u32);
        let id = *self.file_ids.entry(file.clone()).or_insert(next);
        if id == next {
            self.files.push(file);
        }
        let range = MappedRange { time, addr: mmap.addr, len: mmap.len, pgoff: mmap.pgoff, file: id };
        self.thread(mmap.pid, mmap.tid);
        self.processes.entry(mmap.pid).or_default().space.push(SpaceEvent::Map(range));
    }
}
