//! Processes and threads over time: names, and what was mapped where.

use crate::record::{Comm, Mmap, Task};
use crate::{Pid, Tid};
use ptflow_decoder::units::Ns;
use std::collections::BTreeMap;

/// A file (or what stands for one) that some process had mapped for execution.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileId(pub u32);

/// A mapping as the file records it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MappedRange {
    /// perf time; 0 for what was there when the recording began.
    pub time: Ns,
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
        time: Ns,
    },
    /// The process began, with the mappings that its parent had. (A process id may begin more than once.)
    Fork {
        /// perf time.
        time: Ns,
        /// The parent.
        parent: Pid,
        /// How many events of the parent's address space there were by then.
        events: usize,
    },
}

/// A thread's life.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Thread {
    /// Its names, each with the perf time from which it held; rising.
    pub names: Vec<(Ns, String)>,
    /// When it began; `None` where it ran before the recording.
    pub started: Option<Ns>,
    /// When it ended; `None` where it outlived the recording.
    pub ended: Option<Ns>,
}

impl Thread {
    /// Its name at a time; before its first name that one.
    pub fn name_at(&self, time: Ns) -> Option<&str> {
        let known = self.names.partition_point(|(from, _)| *from <= time);
        self.names.get(known.saturating_sub(1)).map(|(_, name)| name.as_str())
    }
}

/// A process.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Process {
    /// Its last name.
    pub comm: String,
    /// Its threads with their last names.
    pub threads: BTreeMap<Tid, String>,
    /// Its threads' lives, with all their names.
    pub lives: BTreeMap<Tid, Thread>,
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
    /// The kernel's own code or a module of it.
    pub kernel: bool,
}

/// All processes of a capture.
#[derive(Clone, Debug, Default)]
pub struct Processes {
    processes: BTreeMap<Pid, Process>,
    by_tid: BTreeMap<Tid, Pid>,
    files: Vec<MappedFile>,
    file_ids: BTreeMap<MappedFile, FileId>,
    kernel: Vec<MappedRange>,
}

/// The kernel keeps 15 bytes of a name (`TASK_COMM_LEN`); a damaged file may say anything.
const LONGEST_NAME: usize = 64;

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

    /// What the kernel had mapped: itself and its modules.
    pub fn kernel(&self) -> &[MappedRange] {
        &self.kernel
    }

    /// The mappings that a process had after so many events of its address space, its ancestors' among them, in order of
    /// time, and what it cost to find them: a mapping or an ancestor each costs 1. `None` beyond `limit`. Later mappings
    /// may overlap earlier ones.
    pub(crate) fn live(&self, pid: Pid, events: usize, limit: usize) -> Option<(Vec<MappedRange>, usize)> {
        let mut parts = Vec::new();
        let (mut pid, mut count, mut cost) = (pid, events, 0);
        // Ends: every step leads to events that came before the fork.
        while let Some(process) = self.processes.get(&pid) {
            let mut start = count.min(process.space.len());
            let end = start;
            let mut origin = None;
            while origin.is_none() && start > 0 {
                match process.space[start - 1] {
                    SpaceEvent::Map(_) => start -= 1,
                    reset => origin = Some(reset),
                }
                if end - start > limit - cost {
                    return None;
                }
            }
            parts.push(&process.space[start..end]);
            cost += end - start + 1;
            if cost > limit {
                return None;
            }
            let Some(SpaceEvent::Fork { parent, events, .. }) = origin else { break };
            (pid, count) = (parent, events);
        }
        let maps = parts.into_iter().rev().flatten().filter_map(|event| match event {
            SpaceEvent::Map(range) => Some(*range),
            _ => None,
        });
        Some((maps.collect(), cost))
    }

    fn thread(&mut self, pid: Pid, tid: Tid) -> &mut Thread {
        self.by_tid.insert(tid, pid);
        let process = self.processes.entry(pid).or_default();
        process.threads.entry(tid).or_default();
        process.lives.entry(tid).or_default()
    }

    fn rename(&mut self, pid: Pid, tid: Tid, name: &str, time: Ns) {
        let thread = self.thread(pid, tid);
        if thread.names.last().is_none_or(|(_, last)| last != name) {
            thread.names.push((time, name.to_owned()));
        }
        if let Some(process) = self.processes.get_mut(&pid) {
            process.threads.insert(tid, name.to_owned());
        }
    }

    pub(crate) fn seen(&mut self, pid: Pid, tid: Tid) {
        if pid.0 != u32::MAX && tid.0 != u32::MAX {
            self.thread(pid, tid);
        }
    }

    pub(crate) fn comm(&mut self, comm: Comm<'_>, time: Ns) {
        let name = String::from_utf8_lossy(&comm.comm[..comm.comm.len().min(LONGEST_NAME)]);
        self.rename(comm.pid, comm.tid, &name, time);
        let process = self.processes.entry(comm.pid).or_default();
        if comm.exec {
            process.space.push(SpaceEvent::Exec { time });
        }
        if comm.exec || comm.pid.0 == comm.tid.0 {
            process.comm = name.into_owned();
        }
    }

    pub(crate) fn fork(&mut self, task: Task, time: Ns) {
        let parent = self.processes.get(&task.ppid);
        let name = parent
            .and_then(|parent| {
                parent.threads.get(&task.ptid).filter(|name| !name.is_empty()).or(Some(&parent.comm))
            })
            .cloned()
            .unwrap_or_default();
        let inherited = parent.map_or(0, |parent| parent.space.len());
        let thread = self.thread(task.pid, task.tid);
        // A thread id may come again; its names go on.
        thread.ended = None;
        if thread.names.is_empty() && time.0 != 0 {
            thread.started = Some(time);
        }
        if !name.is_empty() {
            self.rename(task.pid, task.tid, &name, time);
        }
        // A thread shares its process's mappings.
        if task.pid == task.ppid {
            return;
        }
        let process = self.processes.entry(task.pid).or_default();
        process.comm = name;
        process.space.push(match task.no_maps {
            true => SpaceEvent::Exec { time },
            false => SpaceEvent::Fork { time, parent: task.ppid, events: inherited },
        });
    }

    pub(crate) fn exit(&mut self, task: Task, time: Ns) {
        // Mappings stay: late records of the process may follow.
        self.thread(task.pid, task.tid).ended = Some(time);
    }

    pub(crate) fn mmap(&mut self, mmap: Mmap<'_>, time: Ns, known_build_id: Option<&[u8]>) {
        let path = String::from_utf8_lossy(mmap.filename).into_owned();
        let build_id = mmap.build_id.or(known_build_id).map(<[u8]>::to_vec);
        let file = MappedFile { path, build_id, kernel: mmap.is_kernel() };
        let id = match self.file_ids.get(&file) {
            Some(id) => *id,
            None => {
                let id = FileId(self.files.len() as u32);
                self.files.push(file.clone());
                self.file_ids.insert(file, id);
                id
            }
        };
        let range = MappedRange { time, addr: mmap.addr, len: mmap.len, pgoff: mmap.pgoff, file: id };
        if mmap.is_kernel() {
            self.kernel.push(range);
            return;
        }
        self.thread(mmap.pid, mmap.tid);
        self.processes.entry(mmap.pid).or_default().space.push(SpaceEvent::Map(range));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(processes: &mut Processes, pid: u32, addr: u64, time: u64) {
        let mmap = Mmap {
            pid: Pid(pid),
            tid: Tid(pid),
            addr,
            len: 0x1000,
            pgoff: 0,
            build_id: None,
            prot: Some((5, 2)),
            misc: 2,
            filename: b"/bin/x",
        };
        processes.mmap(mmap, Ns(time), None);
    }

    fn fork(processes: &mut Processes, parent: u32, child: u32, time: u64, no_maps: bool) {
        let task = Task {
            exit: false,
            pid: Pid(child),
            ppid: Pid(parent),
            tid: Tid(child),
            ptid: Tid(parent),
            time: Ns(time),
            no_maps,
        };
        processes.fork(task, Ns(time));
    }

    fn comm(processes: &mut Processes, pid: u32, tid: u32, name: &str, exec: bool, time: u64) {
        processes.comm(Comm { pid: Pid(pid), tid: Tid(tid), comm: name.as_bytes(), exec }, Ns(time));
    }

    fn live(processes: &Processes, pid: u32) -> Vec<u64> {
        let (ranges, _) = processes.live(Pid(pid), usize::MAX, usize::MAX).unwrap();
        ranges.iter().map(|range| range.addr).collect()
    }

    #[test]
    fn mappings_follow_fork_and_exec() {
        let mut p = Processes::default();
        map(&mut p, 1, 0x1000, 0);
        fork(&mut p, 1, 2, 10, false);
        map(&mut p, 1, 0x2000, 20);
        map(&mut p, 2, 0x3000, 30);
        fork(&mut p, 2, 3, 40, false);
        comm(&mut p, 3, 3, "child", true, 50);
        map(&mut p, 3, 0x4000, 60);
        fork(&mut p, 2, 4, 70, false);
        fork(&mut p, 2, 5, 70, true);
        assert_eq!(live(&p, 1), [0x1000, 0x2000]);
        assert_eq!(live(&p, 2), [0x1000, 0x3000]);
        assert_eq!(live(&p, 3), [0x4000]);
        assert_eq!(live(&p, 4), [0x1000, 0x3000]);
        assert_eq!(live(&p, 5), [0u64; 0]);
        // The process id comes again, from another parent.
        fork(&mut p, 1, 3, 80, false);
        assert_eq!(live(&p, 3), [0x1000, 0x2000]);
    }

    #[test]
    fn a_chain_of_forks_is_followed_without_copies() {
        let mut p = Processes::default();
        map(&mut p, 0, 0x1000, 0);
        for pid in 1..100_000 {
            fork(&mut p, pid - 1, pid, u64::from(pid), false);
        }
        assert_eq!(live(&p, 99_999), [0x1000]);
        assert_eq!(p.live(Pid(99_999), 1, 1000), None);
        assert!(p.iter().all(|(_, process)| process.space.len() == 1));
    }

    #[test]
    fn names_over_time() {
        let mut p = Processes::default();
        comm(&mut p, 1, 1, "sh", false, 0);
        fork(&mut p, 1, 2, 100, false);
        comm(&mut p, 2, 2, "server", true, 200);
        let thread = Task {
            exit: false,
            pid: Pid(2),
            ppid: Pid(2),
            tid: Tid(3),
            ptid: Tid(2),
            time: Ns(300),
            no_maps: false,
        };
        p.fork(thread, Ns(300));
        comm(&mut p, 2, 3, "worker", false, 400);
        p.exit(Task { exit: true, ..thread }, Ns(500));
        let server = p.get(Pid(2)).unwrap();
        assert_eq!(server.comm, "server");
        assert_eq!(server.lives[&Tid(2)].name_at(Ns(150)), Some("sh"));
        assert_eq!(server.lives[&Tid(2)].name_at(Ns(200)), Some("server"));
        let worker = &server.lives[&Tid(3)];
        assert_eq!(worker.names, [(Ns(300), "server".to_owned()), (Ns(400), "worker".to_owned())]);
        assert_eq!((worker.started, worker.ended), (Some(Ns(300)), Some(Ns(500))));
        assert_eq!(server.threads[&Tid(3)], "worker");
        assert_eq!(p.process_of(Tid(3)), Some(Pid(2)));
    }
}
