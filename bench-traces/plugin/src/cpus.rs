//! CPUs that guest threads share: a thread runs only while it holds one, and its packets go to that CPU's encoder.
//!
//! As on a real machine with `perf record` on a command: tracing stops at every switch and starts anew, an AUX record of
//! the thread that left ends there, and the switch's records are written a little later than tracing starts. A thread in
//! a system call keeps its CPU as long as nobody else wants one; who runs for long while others wait is preempted.

use ptflow_bench_traces::options::{PtOptions, machine};
use ptflow_bench_traces::pt::PtEncoder;
use ptflow_bench_traces::truth::Totals;
use ptflow_decoder::units::Tsc;
use ptflow_perf_import::write::{PerfWriter, Who};
use ptflow_perf_import::{Cpu, Pid, Tid};
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Core cycles that a switch takes in the kernel.
const SWITCH_CYCLES: u64 = 3_000;
/// Core cycles after which a thread is preempted if another waits: 200 microseconds.
const QUANTUM: u64 = 600_000;
/// Switch records are written up to this many nanoseconds after tracing started.
const LATEST_RECORD: u64 = 10_000;
/// Who waits longer gets a CPU of his own: the emulator itself may wait for all its threads to come by.
const PATIENCE: Duration = Duration::from_millis(500);

/// One CPU.
#[derive(Debug)]
struct Core {
    /// Its encoder, while no thread has it.
    encoder: PtEncoder,
    /// The vCPU that holds it.
    holder: Option<u32>,
    /// The holder is in a system call: it may be taken away.
    idle: bool,
    /// The thread that stopped last could have run on.
    preempted: bool,
    /// The thread that ran last.
    last: Option<Tid>,
    /// Up to here AUX records were written.
    recorded: u64,
    /// The time of the last switch record.
    record_time: u64,
}

/// The CPUs.
#[derive(Debug)]
pub struct Cpus {
    options: PtOptions,
    pid: Pid,
    state: Mutex<State>,
    freed: Condvar,
    waiting: AtomicU32,
}

#[derive(Debug)]
struct State {
    cores: Vec<Core>,
    random: u64,
}

impl State {
    /// A random number (xorshift64, Marsaglia 2003).
    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// A CPU that may be taken: a free one, else one whose thread is in a system call; not always the same.
    fn available(&mut self) -> Option<usize> {
        let count = self.cores.len();
        let start = self.next() as usize % count;
        let order = move || (0..count).map(move |index| (start + index) % count);
        order()
            .find(|index| self.cores[*index].holder.is_none())
            .or_else(|| order().find(|index| self.cores[*index].idle))
    }
}

impl Core {
    fn new(options: PtOptions) -> Self {
        let encoder = PtEncoder::new(options, 0);
        Self { encoder, holder: None, idle: false, preempted: false, last: None, recorded: 0, record_time: 0 }
    }
}

/// A thread has a CPU.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// Which.
    pub cpu: Cpu,
    /// Cycles when it came.
    since: u64,
}

/// What a switch wants written.
pub struct Switched {
    cpu: Cpu,
    from: Option<Tid>,
    /// That one could have run on.
    preempted: bool,
    to: Tid,
    /// perf time of the records.
    time: u64,
    /// The AUX record that ended: offset, size, time.
    aux: Option<(u64, u64, u64)>,
}

fn ns(cycles: u64) -> u64 {
    machine::TIME.to_ns(Tsc(machine::tsc(cycles))).0
}

impl Cpus {
    /// So many CPUs.
    pub fn new(count: u32, options: PtOptions, pid: Pid) -> Self {
        let cores = (0..count.max(1)).map(|_| Core::new(options)).collect();
        let state = Mutex::new(State { cores, random: 0x9e37_79b9_7f4a_7c15 });
        Self { options, pid, state, freed: Condvar::new(), waiting: AtomicU32::new(0) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a CPU, and exchanges `encoder` with its own. `cycles` is the thread's clock; gives the time at which it
    /// runs. `None` where `stop` says that there is no need any more.
    pub fn take(
        &self,
        vcpu: u32,
        tid: Tid,
        cycles: u64,
        encoder: &mut PtEncoder,
        stop: impl Fn() -> bool,
    ) -> Option<(Held, u64, Option<Switched>)> {
        let begun = Instant::now();
        let mut state = self.state();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let index = loop {
            if stop() {
                self.waiting.fetch_sub(1, Ordering::SeqCst);
                return None;
            }
            if let Some(index) = state.available() {
                break index;
            }
            if begun.elapsed() > PATIENCE {
                state.cores.push(Core::new(self.options));
                break state.cores.len() - 1;
            }
            let waited = self.freed.wait_timeout(state, Duration::from_millis(1));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        let late = state.next() % (LATEST_RECORD + 1);
        let core = &mut state.cores[index];
        (core.holder, core.idle) = (Some(vcpu), false);
        std::mem::swap(&mut core.encoder, encoder);
        let stopped_at = encoder.cycles();
        let now = if core.last == Some(tid) { cycles } else { cycles + SWITCH_CYCLES }.max(stopped_at);
        encoder.pass(now - stopped_at);
        let cpu = Cpu(index as u32);
        let switched = (core.last != Some(tid)).then(|| {
            encoder.stop();
            core.record_time = (ns(now) + late).max(core.record_time);
            let end = encoder.offset() + encoder.pending() as u64;
            let aux = core.last.is_some().then_some((core.recorded, end - core.recorded, ns(stopped_at)));
            core.recorded = end;
            let (from, preempted) = (core.last.replace(tid), core.preempted);
            Switched { cpu, from, preempted, to: tid, time: core.record_time, aux }
        });
        Some((Held { cpu, since: now }, now, switched))
    }

    /// The thread goes into a system call, or is `preempted`: others may take its CPU.
    pub fn park(&self, held: Held, encoder: &mut PtEncoder, preempted: bool) {
        let mut state = self.state();
        let core = &mut state.cores[held.cpu.0 as usize];
        std::mem::swap(&mut core.encoder, encoder);
        (core.idle, core.preempted) = (true, preempted);
        self.freed.notify_one();
    }

    /// Back from a system call; false where the CPU was taken away.
    pub fn unpark(&self, vcpu: u32, held: Held, encoder: &mut PtEncoder) -> bool {
        let mut state = self.state();
        let core = &mut state.cores[held.cpu.0 as usize];
        let mine = core.holder == Some(vcpu) && core.idle;
        if mine {
            core.idle = false;
            std::mem::swap(&mut core.encoder, encoder);
        }
        mine
    }

    /// The thread has run long enough, and others wait.
    pub fn is_over(&self, held: Held, cycles: u64) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0 && cycles - held.since > QUANTUM
    }

    /// Gives a parked CPU up for good.
    pub fn leave(&self, vcpu: u32, held: Held) {
        let mut state = self.state();
        let core = &mut state.cores[held.cpu.0 as usize];
        if core.holder == Some(vcpu) {
            (core.holder, core.idle) = (None, false);
        }
        self.freed.notify_one();
    }

    /// Writes what a switch tells; `first`: the thread never ran before.
    pub fn write_switch(
        &self,
        writer: &mut PerfWriter<File>,
        switched: &Switched,
        first: bool,
    ) -> io::Result<()> {
        let Switched { cpu, from, preempted, to, time, aux } = *switched;
        let who = |tid, time| Who { pid: self.pid, tid, cpu, time };
        if let (Some(from), Some((offset, size, time))) = (from, aux)
            && size > 0
        {
            writer.aux(who(from, time), offset, size, 0)?;
        }
        if let Some(from) = from {
            if preempted {
                writer.preempted_cpu_wide(who(from, time), (self.pid, to))?;
            } else {
                writer.switch_cpu_wide(who(from, time), true, (self.pid, to))?;
            }
        }
        if first {
            writer.itrace_start(who(to, time))?;
        }
        let (pid, tid) = from.map_or((Pid(0), Tid(0)), |from| (self.pid, from));
        writer.switch_cpu_wide(who(to, time), false, (pid, tid))
    }

    /// Writes the trace bytes of a CPU's encoder, which some thread holds.
    pub fn write_bytes(
        &self,
        writer: &mut PerfWriter<File>,
        cpu: Cpu,
        encoder: &mut PtEncoder,
    ) -> io::Result<()> {
        let reference = Tsc(encoder.tsc());
        // perf names the command's first thread in the buffers of all CPUs.
        let tid = Some(Tid(self.pid.0));
        encoder.drain(|offset, bytes| writer.auxtrace(cpu.0, tid, Some(cpu), offset, reference, bytes))
    }

    /// An AUX record ends here, the thread's own doing.
    pub fn record_ends(&self, held: Held, encoder: &PtEncoder) -> (u64, u64) {
        let mut state = self.state();
        let core = &mut state.cores[held.cpu.0 as usize];
        let end = encoder.offset() + encoder.pending() as u64;
        (std::mem::replace(&mut core.recorded, end), end)
    }

    /// Writes what is left, when no thread runs any more; packets, compressed returns and bytes of all CPUs.
    pub fn finish(&self, writer: Option<&mut PerfWriter<File>>) -> io::Result<Totals> {
        let mut sums = Totals::default();
        let mut state = self.state();
        let mut writer = writer;
        for (index, core) in state.cores.iter_mut().enumerate() {
            let cpu = Cpu(index as u32);
            let end = core.encoder.offset() + core.encoder.pending() as u64;
            sums.packets += core.encoder.packets;
            sums.compressed_returns += core.encoder.compressed_returns;
            sums.bytes += end;
            if let (Some(writer), Some(last)) = (writer.as_deref_mut(), core.last) {
                let who = Who { pid: self.pid, tid: last, cpu, time: ns(core.encoder.cycles()) };
                writer.aux(who, core.recorded, end - core.recorded, 0)?;
                self.write_bytes(writer, cpu, &mut core.encoder)?;
            }
        }
        Ok(sums)
    }
}
