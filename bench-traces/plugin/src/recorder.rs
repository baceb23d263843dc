//! The recording as a whole: threads, the capture file, the end.

use crate::block::Block;
use crate::cpus::{Cpus, Held};
use crate::maps::Maps;
use crate::thread::Thread;
use crate::truth::Sums;
use ptflow_bench_traces::log::{self, LogWriter};
use ptflow_bench_traces::options::{PtOptions, machine};
use ptflow_bench_traces::truth::{Totals, write_totals};
use ptflow_decoder::units::Tsc;
use ptflow_perf_import::record::Aux;
use ptflow_perf_import::write::{PerfWriter, TraceForm, Who, WriterConfig};
use ptflow_perf_import::{Cpu, Pid, Tid};
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// More guest threads at once are not recorded.
const MAX_VCPUS: usize = 4096;
/// Trace bytes that go to the file at once. They end with a packet: the kernel's driver stops tracing before it says how
/// far it got.
const CHUNK: usize = 1 << 20;

/// A guest thread's place. Only its own vCPU reaches into `thread`, but for the end of the recording.
#[derive(Debug)]
struct Slot {
    thread: Thread,
    tid: Tid,
    idx: u32,
    /// Trace bytes written to the file.
    written: u64,
    /// The CPU that it runs on, where threads share CPUs.
    held: Option<Held>,
    /// It is in a system call, or has stopped: its CPU may be gone.
    parked: bool,
    /// It has run.
    started: bool,
    /// Waits in a system call, or has stopped: the recording may end without asking it.
    quiet: AtomicBool,
}

/// What goes to the file, under one lock.
struct Output {
    writer: Option<PerfWriter<File>>,
    maps: Maps,
    blocks: Vec<&'static Block>,
    done: Vec<Done>,
    error: Option<io::Error>,
}

/// A thread that has ended.
struct Done {
    truth: crate::truth::Truth,
    totals: Totals,
}

/// The recording.
pub struct Recorder {
    dir: PathBuf,
    comm: String,
    options: PtOptions,
    /// The run is only counted; into this file.
    counts: Option<PathBuf>,
    log: bool,
    pid: Pid,
    cpus: Option<Cpus>,
    slots: Vec<AtomicPtr<Slot>>,
    next_idx: AtomicU32,
    /// The latest time that any thread reached at a system call: what happens after it is not before it.
    latest: AtomicU64,
    stopping: AtomicBool,
    finished: AtomicBool,
    child: AtomicBool,
    handlers: RwLock<HashSet<u64>>,
    /// Host address minus guest address.
    guest_base: AtomicU64,
    output: Mutex<Output>,
}

impl Recorder {
    /// Reads the options and opens the capture.
    pub fn new(words: &[(String, String)]) -> Result<Self, String> {
        let mut options = PtOptions::default();
        let (mut dir, mut counts, mut cmdline) = (PathBuf::new(), None, Vec::new());
        let mut log = false;
        let mut comm = String::new();
        for (name, value) in words {
            match name.as_str() {
                "dir" => dir = PathBuf::from(value),
                // The kernel keeps 15 bytes of a name.
                "comm" => comm = value.chars().take(15).collect(),
                "count" => counts = Some(PathBuf::from(value)),
                "log" => log = value == "1",
                "cmd" => cmdline.push(value.clone()),
                _ if options.take_word(name, value) => {}
                _ => return Err(format!("unknown option {name}")),
            }
        }
        let pid = Pid(std::process::id());
        let writer = if counts.is_some() {
            None
        } else {
            let config = WriterConfig {
                cmdline,
                cpuid: machine::CPUID.to_owned(),
                cpudesc: "software recorder (emulated)".to_owned(),
                cpus: 64,
                event_config: options.event_config(),
                time: machine::TIME,
                tsc_ctc_ratio: machine::TSC_CTC_RATIO,
                max_nonturbo_ratio: machine::TSC_RATIO,
                per_cpu: options.per_cpu > 0,
                form: TraceForm::Full,
            };
            let path = dir.join("perf.data");
            let who = Who { pid, tid: Tid(pid.0), cpu: Cpu(0), time: start_time(options.start) };
            let writer = PerfWriter::create(&path, config).and_then(|mut writer| {
                writer.comm(who, &comm, true)?;
                Ok(writer)
            });
            Some(writer.map_err(|error| format!("cannot write {}: {error}", path.display()))?)
        };
        Ok(Self {
            dir,
            comm,
            options,
            cpus: (options.per_cpu > 0 && counts.is_none()).then(|| Cpus::new(options.per_cpu, options, pid)),
            counts,
            log,
            pid,
            slots: (0..MAX_VCPUS).map(|_| AtomicPtr::default()).collect(),
            next_idx: AtomicU32::new(0),
            latest: AtomicU64::new(options.start),
            stopping: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            child: AtomicBool::new(false),
            handlers: RwLock::default(),
            guest_base: AtomicU64::new(0),
            output: Mutex::new(Output {
                writer,
                maps: Maps::default(),
                blocks: Vec::new(),
                done: Vec::new(),
                error: None,
            }),
        })
    }

    fn output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn who(&self, tid: Tid, cycles: u64) -> Who {
        Who { pid: self.pid, tid, cpu: Cpu(0), time: machine::TIME.to_ns(Tsc(machine::tsc(cycles))).0 }
    }

    /// A block was translated; `host` is where its first byte lies in this process.
    pub fn translate(&self, insns: &[(u64, &[u8])], host: u64) -> &'static Block {
        let start = insns.first().map_or(0, |insn| insn.0);
        self.guest_base.store(host.wrapping_sub(start), Ordering::Relaxed);
        let mut output = self.output();
        let block: &'static Block = Box::leak(Box::new(Block::new(output.blocks.len() as u32, insns)));
        output.blocks.push(block);
        if !self.child.load(Ordering::Relaxed) && !output.maps.knows(start) {
            self.note_mapping(&mut output, start, host);
        }
        block
    }

    /// Writes the mapping that holds a guest address.
    fn note_mapping(&self, output: &mut Output, addr: u64, host: u64) {
        let Some(mapped) = output.maps.find(addr, host) else { return };
        let Some(writer) = &mut output.writer else { return };
        // Threads' clocks run apart: the mapping must not be later than any thread that runs in it.
        let mapped_at = output.maps.mapped_at(&mapped).max(self.options.start);
        let who = self.who(Tid(self.pid.0), mapped_at);
        let len = mapped.end - mapped.start;
        let result = writer.mmap2(who, mapped.start, len, mapped.pgoff, &mapped.path);
        if let Some(id) = &mapped.build_id {
            writer.build_id(self.pid, &mapped.path, id);
        }
        output.note(result);
    }

    /// The thread of a vCPU, if it runs already.
    #[inline]
    #[allow(clippy::mut_from_ref, reason = "a slot belongs to its vCPU, which alone asks for it")]
    fn slot(&self, vcpu: u32) -> Option<&mut Slot> {
        let pointer = self.slots.get(vcpu as usize)?.load(Ordering::Acquire);
        // SAFETY: a slot is made by its own vCPU and from then on used by it alone, until the recording ends; then the
        // vCPU has said that it is quiet.
        unsafe { pointer.as_mut() }
    }

    /// A block starts.
    #[inline]
    pub fn execute(&self, vcpu: u32, block: &'static Block) {
        if self.child.load(Ordering::Relaxed) {
            return;
        }
        let slot = match self.slot(vcpu) {
            Some(slot) => slot,
            None => match self.start_thread(vcpu) {
                Some(slot) => slot,
                None => return,
            },
        };
        if !self.stopping.load(Ordering::Acquire) && !self.is_on_cpu(vcpu, slot, block) {
            // The recording ended meanwhile.
            slot.quiet.store(true, Ordering::Release);
            return;
        }
        if self.stopping.load(Ordering::Acquire) {
            if !slot.quiet.load(Ordering::Relaxed) {
                slot.thread.stop(block.start);
                self.park(slot, false);
                slot.quiet.store(true, Ordering::Release);
            }
            return;
        }
        slot.thread.execute(block, &|addr| self.is_handler(addr));
        if slot.thread.pt.pending() >= CHUNK || slot.thread.ended.is_some() {
            self.write_chunk(slot);
            if let Some(end) = slot.thread.ended.take() {
                slot.thread.restart(end);
            }
        }
    }

    /// Where threads share CPUs: the thread has one from here on. It waits for one, and gives it up where others wait and
    /// it has had it for long. False where the recording ends.
    #[inline]
    fn is_on_cpu(&self, vcpu: u32, slot: &mut Slot, block: &Block) -> bool {
        let Some(cpus) = &self.cpus else { return true };
        if let Some(held) = slot.held {
            if !cpus.is_over(held, slot.thread.truth.cycles) || self.is_handler(block.start) {
                return true;
            }
            slot.thread.stop(block.start);
            self.park(slot, true);
            cpus.leave(vcpu, held);
            slot.held = None;
            std::thread::yield_now();
        }
        self.take_cpu(cpus, vcpu, slot)
    }

    #[cold]
    fn take_cpu(&self, cpus: &Cpus, vcpu: u32, slot: &mut Slot) -> bool {
        let thread = &mut slot.thread;
        let stop = || self.stopping.load(Ordering::Acquire);
        let taken = cpus.take(vcpu, slot.tid, thread.truth.cycles, &mut thread.pt, stop);
        let Some((held, now, switched)) = taken else { return false };
        thread.truth.pass(now - thread.truth.cycles);
        (slot.held, slot.parked) = (Some(held), false);
        let mut output = self.output();
        if let Some(writer) = &mut output.writer {
            let first = !std::mem::replace(&mut slot.started, true);
            let result = switched.map_or(Ok(()), |switched| cpus.write_switch(writer, &switched, first));
            output.note(result);
        }
        true
    }

    /// The thread's CPU may be taken from here on.
    fn park(&self, slot: &mut Slot, preempted: bool) {
        if let (Some(cpus), Some(held), false) = (&self.cpus, slot.held, slot.parked) {
            slot.parked = true;
            cpus.park(held, &mut slot.thread.pt, preempted);
        }
    }

    #[cold]
    #[allow(clippy::mut_from_ref, reason = "a slot belongs to its vCPU, which alone asks for it")]
    fn start_thread(&self, vcpu: u32) -> Option<&mut Slot> {
        if self.stopping.load(Ordering::Acquire) {
            return None;
        }
        // SAFETY: gettid has no preconditions.
        let tid = Tid(unsafe { libc::gettid() } as u32);
        let cycles = self.latest.load(Ordering::Relaxed);
        let idx = self.next_idx.fetch_add(1, Ordering::Relaxed);
        let log = self.log.then(|| LogWriter::create(&log::path(&self.dir, tid.0))).transpose();
        let (log, error) = log.map_or_else(|error| (None, Some(error)), |log| (log, None));
        let slot = Slot {
            thread: Thread::new(self.options, cycles, log),
            tid,
            idx,
            written: 0,
            held: None,
            parked: false,
            started: false,
            quiet: AtomicBool::new(false),
        };
        let place = self.slots.get(vcpu as usize)?;
        place.store(Box::into_raw(Box::new(slot)), Ordering::Release);
        let mut output = self.output();
        output.error = output.error.take().or(error);
        let comm = self.comm.clone();
        let who = self.who(tid, cycles);
        let leader = self.who(Tid(self.pid.0), cycles);
        if let Some(writer) = &mut output.writer {
            let result = if tid.0 == self.pid.0 {
                Ok(())
            } else {
                writer.fork(leader, self.pid, tid).and_then(|()| writer.comm(who, &comm, false))
            };
            // Where threads share CPUs, it is not known yet on which one.
            let result = result.and_then(|()| match &self.cpus {
                Some(_) => Ok(()),
                None => writer.itrace_start(who),
            });
            output.note(result);
        }
        drop(output);
        self.slot(vcpu)
    }

    fn is_handler(&self, addr: u64) -> bool {
        self.handlers.read().unwrap_or_else(PoisonError::into_inner).contains(&addr)
    }

    /// A `struct sigaction` lies at a guest address: its first word is the handler.
    pub fn signal_handler_at(&self, guest: u64) {
        let host = guest.wrapping_add(self.guest_base.load(Ordering::Relaxed)) as *const u64;
        // The guest may hand over anything; the kernel's own copy fails cleanly where nothing is mapped.
        let mut handler = 0u64;
        let local = libc::iovec { iov_base: (&raw mut handler).cast(), iov_len: 8 };
        let remote = libc::iovec { iov_base: host.cast_mut().cast(), iov_len: 8 };
        // SAFETY: `local` is eight writable bytes; the kernel checks `remote`.
        let copied = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
        // SIG_DFL and SIG_IGN are 0 and 1.
        if copied == 8 && handler > 1 {
            self.handlers.write().unwrap_or_else(PoisonError::into_inner).insert(handler);
        }
    }

    /// The guest maps something else at a range.
    pub fn unmapped(&self, start: u64, len: u64) {
        let now = self.latest.load(Ordering::Relaxed);
        self.output().maps.forget(start, len, now);
    }

    /// A system call begins.
    pub fn syscall(&self, vcpu: u32, is_sigreturn: bool) {
        if self.child.load(Ordering::Relaxed) || self.stopping.load(Ordering::Acquire) {
            return;
        }
        if let Some(slot) = self.slot(vcpu) {
            slot.thread.syscall(is_sigreturn);
            self.latest.fetch_max(slot.thread.truth.cycles, Ordering::Relaxed);
            self.park(slot, false);
            slot.quiet.store(true, Ordering::Release);
        }
    }

    /// A system call ended.
    pub fn syscall_returned(&self, vcpu: u32) {
        if self.child.load(Ordering::Relaxed) {
            return;
        }
        if let Some(slot) = self.slot(vcpu) {
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            slot.quiet.store(false, Ordering::SeqCst);
            if let (Some(cpus), Some(held)) = (&self.cpus, slot.held) {
                match cpus.unpark(vcpu, held, &mut slot.thread.pt) {
                    true => slot.parked = false,
                    // Another thread has it: this one waits when it wants to run.
                    false => (slot.held, slot.parked) = (None, false),
                }
            }
            // It may have waited for another thread.
            slot.thread.not_before(self.latest.load(Ordering::Relaxed));
        }
    }

    /// A forked child is on its own: nothing of it is recorded, and it must not touch the file.
    pub fn leave_if_child(&self) {
        if std::process::id() != self.pid.0 {
            self.child.store(true, Ordering::Relaxed);
        }
    }

    fn write_chunk(&self, slot: &mut Slot) {
        let mut output = self.output();
        let Output { writer: Some(writer), .. } = &mut *output else {
            let _ = slot.thread.pt.drain(|_, _| io::Result::Ok(()));
            return;
        };
        let truncated = slot.thread.ended.is_some_and(|end| end.truncated);
        let flags = if truncated { Aux::TRUNCATED } else { 0 };
        let who = self.who(slot.tid, slot.thread.pt.cycles());
        if let (Some(cpus), Some(held)) = (&self.cpus, slot.held) {
            let mut result = Ok(());
            if slot.thread.ended.is_some() {
                let (from, to) = cpus.record_ends(held, &slot.thread.pt);
                result = writer.aux(Who { cpu: held.cpu, ..who }, from, to - from, flags);
            }
            let result = result.and_then(|()| cpus.write_bytes(writer, held.cpu, &mut slot.thread.pt));
            return output.note(result);
        }
        let reference = Tsc(slot.thread.pt.tsc());
        let (tid, idx) = (slot.tid, slot.idx);
        let len = slot.thread.pt.pending() as u64;
        let result = slot.thread.pt.drain(|offset, bytes| {
            writer.aux(who, offset, bytes.len() as u64, flags)?;
            writer.auxtrace(idx, Some(tid), None, offset, reference, bytes)
        });
        slot.written += len;
        output.note(result);
    }

    /// A guest thread ended.
    pub fn vcpu_exit(&self, vcpu: u32) {
        if self.child.load(Ordering::Relaxed) || self.finished.load(Ordering::Relaxed) {
            return;
        }
        let Some(place) = self.slots.get(vcpu as usize) else { return };
        let pointer = place.swap(std::ptr::null_mut(), Ordering::AcqRel);
        if pointer.is_null() {
            return;
        }
        // SAFETY: made by Box::into_raw in `start_thread`, and taken out of its place only once.
        let slot = unsafe { Box::from_raw(pointer) };
        self.end_thread(vcpu, slot);
    }

    fn end_thread(&self, vcpu: u32, mut slot: Box<Slot>) {
        if self.cpus.is_none() && slot.thread.pt.pending() > 0 {
            self.write_chunk(&mut slot);
        }
        // Two clocks, driven by the same blocks.
        let Thread { truth, pt, .. } = &mut slot.thread;
        truth.unexplained += u64::from(self.cpus.is_none() && truth.cycles != pt.cycles());
        let log_error = truth.finish_log().err();
        let who = self.who(slot.tid, slot.thread.truth.cycles);
        if let (Some(cpus), Some(held)) = (&self.cpus, slot.held) {
            self.park(&mut slot, false);
            cpus.leave(vcpu, held);
        }
        let mut output = self.output();
        output.error = output.error.take().or(log_error);
        if let Some(writer) = &mut output.writer {
            let result = writer.exit(who);
            output.note(result);
        }
        let Slot { thread, tid, written, .. } = *slot;
        // Where threads share CPUs, packets are the CPUs'.
        let own = self.cpus.is_none();
        let totals = Totals {
            tid: tid.0,
            instructions: thread.truth.instructions,
            unexplained: thread.truth.unexplained,
            packets: if own { thread.pt.packets } else { 0 },
            compressed_returns: if own { thread.pt.compressed_returns } else { 0 },
            bytes: written,
        };
        output.done.push(Done { truth: thread.truth, totals });
    }

    /// Ends the recording and writes everything down. The first call counts.
    pub fn finish(&self) {
        if self.child.load(Ordering::Relaxed) || self.finished.swap(true, Ordering::SeqCst) {
            return;
        }
        self.stopping.store(true, Ordering::SeqCst);
        // SAFETY: gettid has no preconditions.
        let own = Tid(unsafe { libc::gettid() } as u32);
        let deadline = Instant::now() + Duration::from_millis(500);
        for vcpu in 0..MAX_VCPUS as u32 {
            let Some(slot) = self.slot(vcpu) else { continue };
            // A running thread stops at its next block.
            while slot.tid != own && !slot.quiet.load(Ordering::Acquire) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_micros(200));
            }
            let pointer = self.slots[vcpu as usize].swap(std::ptr::null_mut(), Ordering::AcqRel);
            if !pointer.is_null() {
                // SAFETY: as in `vcpu_exit`.
                self.end_thread(vcpu, unsafe { Box::from_raw(pointer) });
            }
        }
        let mut output = self.output();
        let result = self.write_results(&mut output);
        output.note(result);
        if let Some(error) = &output.error {
            eprintln!("recorder: {error}");
        }
    }

    fn write_results(&self, output: &mut Output) -> io::Result<()> {
        let mut sums = Sums::default();
        for done in &output.done {
            sums.add(&done.truth, &output.blocks);
        }
        if let Some(file) = &self.counts {
            let instructions: u64 = output.done.iter().map(|done| done.totals.instructions).sum();
            let taken = sums.rows.taken();
            return std::fs::write(file, format!("instructions {instructions}\ntaken_branches {taken}\n"));
        }
        let shared = match &self.cpus {
            Some(cpus) => cpus.finish(output.writer.as_mut())?,
            None => Totals::default(),
        };
        if let Some(writer) = output.writer.take() {
            writer.finish()?;
        }
        if self.cpus.is_some() {
            self.write_edges_of_threads(output)?;
        }
        let mut edges = BufWriter::new(File::create(self.dir.join("truth.edges"))?);
        sums.rows.write(&mut edges)?;
        edges.flush()?;
        if self.options.loses() {
            let mut unknowable = BufWriter::new(File::create(self.dir.join("truth.unknowable"))?);
            sums.unknowable().write(&mut unknowable)?;
            unknowable.flush()?;
        }
        let threads: Vec<Totals> = output.done.iter().map(|done| done.totals).collect();
        let mut totals = BufWriter::new(File::create(self.dir.join("totals.json"))?);
        write_totals(&mut totals, &sums.rows, &threads, shared)
    }

    /// `truth.TID.edges`: whose the branches are is not for the streams to say.
    fn write_edges_of_threads(&self, output: &Output) -> io::Result<()> {
        for done in &output.done {
            let mut sums = Sums::default();
            sums.add(&done.truth, &output.blocks);
            let mut edges =
                BufWriter::new(File::create(self.dir.join(format!("truth.{}.edges", done.totals.tid)))?);
            sums.rows.write(&mut edges)?;
            edges.flush()?;
        }
        Ok(())
    }
}

/// perf time when the recording begins.
fn start_time(cycles: u64) -> u64 {
    machine::TIME.to_ns(Tsc(machine::tsc(cycles))).0
}

impl Output {
    /// Keeps the first error: the recording goes on without the file.
    fn note(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            self.error.get_or_insert(error);
            self.writer = None;
        }
    }
}
