//! Writing perf.data: the mirror of the reader, for recorders and tests.
//!
//! Records go to the file as they come, trace bytes first of all; only the header, and the index of the trace, are
//! written at the end. So a recording of any size needs no memory, and one that is killed can still be read.
//!
//! What perf insists on (tried with perf 6.1): a CPU number below the NRCPUS feature, a CPUID that begins with
//! GenuineIntel, the Intel PT event's type equal to AUXTRACE_INFO's, a reference time other than 0 in every AUXTRACE
//! record, and trace data padded to 8 bytes.
//!
//! ```
//! use ptflow_decoder::config::TscConversion;
//! use ptflow_decoder::units::Tsc;
//! use ptflow_perf_import::write::{PerfWriter, TraceForm, Who, WriterConfig};
//! use ptflow_perf_import::{Capture, Cpu, PerfFile, Pid, Tid};
//!
//! # let dir = std::env::temp_dir().join(format!("ptflow-write-{}", std::process::id()));
//! # std::fs::create_dir_all(&dir)?;
//! let path = dir.join("perf.data");
//! let config = WriterConfig {
//!     cmdline: vec!["recorder".to_owned()],
//!     cpuid: "GenuineIntel,6,158,10".to_owned(),
//!     cpudesc: "an example".to_owned(),
//!     cpus: 1,
//!     event_config: 0x2401, // pt, tsc, branch
//!     time: TscConversion { shift: 31, mult: 1 << 31, zero: 0 },
//!     tsc_ctc_ratio: (100, 2),
//!     max_nonturbo_ratio: 10,
//!     per_cpu: false,
//!     form: TraceForm::Full,
//! };
//! let mut writer = PerfWriter::create(&path, config)?;
//! let who = Who { pid: Pid(7), tid: Tid(7), cpu: Cpu(0), time: 1_000 };
//! writer.comm(who, "example", true)?;
//! writer.mmap2(who, 0x40_1000, 0x1000, 0x1000, "/bin/example")?;
//! writer.itrace_start(who)?;
//! let trace = [0x02, 0x82].repeat(8); // a PSB
//! writer.aux(who, 0, 16, 0)?;
//! writer.auxtrace(0, Some(Tid(7)), None, 0, Tsc(1_000), &trace)?;
//! writer.finish()?;
//!
//! let file = PerfFile::open(&path)?;
//! let capture = Capture::read(&file)?;
//! assert_eq!(capture.streams[0].trace.pieces[0].bytes, trace);
//! # std::fs::remove_dir_all(&dir)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::attr::{Attr, SOFTWARE, SOFTWARE_DUMMY, flag, read_format, sample_type as st};
use crate::bytes::{Put, Words};
use crate::events::Trailer;
use crate::features::{self, BuildId, bit};
use crate::header::{Header, Section};
use crate::record::{
    Aux, AuxTrace, BranchStack, Comm, ItraceStart, Mmap, PtInfo, Sample, Switch, Task, TimeConv, WriteRecord,
    misc,
};
use crate::{Cpu, FileOffset, Pid, Tid};
use ptflow_decoder::config::TscConversion;
use ptflow_decoder::units::{Ip, Ns, Tsc};
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

/// What trailers carry here.
const SAMPLE_TYPE: u64 = st::IP | st::TID | st::TIME | st::CPU | st::IDENTIFIER;
/// Ids of the two events.
const PT_ID: u64 = 1;
const SIDEBAND_ID: u64 = 2;
const SAMPLING_ID: u64 = 3;
/// `PERF_TYPE_HARDWARE`, and of that `PERF_COUNT_HW_BRANCH_MISSES` and `PERF_COUNT_HW_CPU_CYCLES`.
const HARDWARE: u32 = 0;
const BRANCH_MISSES: u64 = 5;
const CYCLES: u64 = 0;

/// An event of the recording: its id, its name, how it was recorded.
type Event = (u64, &'static str, Attr);

/// How the recording is described.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WriterConfig {
    /// The command line to note.
    pub cmdline: Vec<String>,
    /// `GenuineIntel,family,model,stepping`.
    pub cpuid: String,
    /// The CPU in words.
    pub cpudesc: String,
    /// Number of CPUs.
    pub cpus: u32,
    /// The Intel PT event's config word: the layout of IA32_RTIT_CTL.
    pub event_config: u64,
    /// TSC to perf time.
    pub time: TscConversion,
    /// TSC ticks per crystal tick: CPUID.15H EBX and EAX.
    pub tsc_ctc_ratio: (u32, u32),
    /// Max non-turbo ratio.
    pub max_nonturbo_ratio: u8,
    /// One stream a CPU instead of one a thread.
    pub per_cpu: bool,
    /// How the trace comes.
    pub form: TraceForm,
}

/// How a recording's trace comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TraceForm {
    /// All of it, in AUXTRACE records.
    #[default]
    Full,
    /// Snapshots of a ring, in AUXTRACE records.
    Snapshots,
    /// In samples of another event, of so many bytes at most ([`PerfWriter::aux_sample`]).
    Samples(u32),
    /// None: samples of cycles with the last branches instead ([`PerfWriter::branch_sample`]). The number says which
    /// (`branch_sample_type`); how Intel PT was set up is not written.
    BranchStacks(u64),
}

/// The PMU type that Intel PT has in files written here.
pub const PMU_TYPE: u32 = 8;

/// Who did something, where and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Who {
    /// Process.
    pub pid: Pid,
    /// Thread.
    pub tid: Tid,
    /// CPU.
    pub cpu: Cpu,
    /// perf time in nanoseconds; 0 for what was there before the recording.
    pub time: u64,
}

/// Writes a perf.data file.
#[derive(Debug)]
pub struct PerfWriter<W: Write + Seek> {
    out: BufWriter<W>,
    at: u64,
    config: WriterConfig,
    data_start: u64,
    /// Offset and size of each AUXTRACE record.
    index: Vec<(FileOffset, u64)>,
    build_ids: Vec<u8>,
    /// First and last time of any record.
    time: Option<(u64, u64)>,
    record: Vec<u8>,
}

impl PerfWriter<File> {
    /// Makes the file, or empties it.
    pub fn create(path: &Path, config: WriterConfig) -> io::Result<Self> {
        Self::new(File::create(path)?, config)
    }
}

impl<W: Write + Seek> PerfWriter<W> {
    /// Writes from the sink's start on. The header is written at once, with no size of the data yet: as perf does, so
    /// that a recording that is killed can be read.
    pub fn new(out: W, config: WriterConfig) -> io::Result<Self> {
        let mut this = Self {
            out: BufWriter::with_capacity(1 << 20, out),
            at: 0,
            config,
            data_start: 0,
            index: Vec::new(),
            build_ids: Vec::new(),
            time: None,
            record: Vec::new(),
        };
        let events = this.events();
        let mut start = vec![0; Header::SIZE as usize];
        events.iter().for_each(|(id, ..)| start.u64(*id));
        for (index, (.., attr)) in events.iter().enumerate() {
            attr.write(&mut start);
            Section { offset: Header::SIZE + 8 * index as u64, size: 8 }.write(&mut start);
        }
        this.data_start = start.len() as u64;
        start.splice(..Header::SIZE as usize, this.header(0, &[]));
        this.put(&start)?;
        this.time_conv()?;
        if !matches!(this.config.form, TraceForm::BranchStacks(_)) {
            this.auxtrace_info()?;
        }
        Ok(this)
    }

    fn header(&self, data_size: u64, features: &[(u8, Vec<u8>)]) -> Vec<u8> {
        const ENTRY: u64 = Attr::SIZE as u64 + 16;
        let events = self.events().len() as u64;
        let mut bits = [0; 32];
        for (bit, _) in features {
            bits[usize::from(bit / 8)] |= 1 << (bit % 8);
        }
        let header = Header {
            attr_size: ENTRY,
            attrs: Section { offset: Header::SIZE + 8 * events, size: events * ENTRY },
            data: Section { offset: self.data_start, size: data_size },
            features: bits,
        };
        let mut bytes = Vec::new();
        header.write(&mut bytes);
        bytes
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// The events: Intel PT or samples of branches, user space only, a dummy one that carries the sideband, and perhaps one
    /// that samples the trace.
    fn events(&self) -> Vec<Event> {
        let common = flag::EXCLUDE_KERNEL | flag::SAMPLE_ID_ALL;
        let sideband =
            flag::MMAP | flag::COMM | flag::TASK | flag::MMAP2 | flag::COMM_EXEC | flag::CONTEXT_SWITCH;
        let attr = |kind: u32, config: u64, flags: u64| Attr {
            kind,
            config,
            sample_period: 1,
            sample_type: SAMPLE_TYPE,
            read_format: read_format::ID,
            flags,
            ..Attr::default()
        };
        // Threads inherit the events of a command's buffers by CPU; a thread's own buffer is its own.
        let inherit = if self.config.per_cpu { flag::INHERIT } else { 0 };
        let sampling = |event: u64, what: u64| Attr {
            sample_type: SAMPLE_TYPE | what,
            sample_period: 100_003,
            ..attr(HARDWARE, event, common | inherit)
        };
        let sideband = (SIDEBAND_ID, "dummy:u", attr(SOFTWARE, SOFTWARE_DUMMY, common | sideband));
        let trace = || (PT_ID, "intel_pt//u", attr(PMU_TYPE, self.config.event_config, common | inherit));
        match self.config.form {
            TraceForm::Full | TraceForm::Snapshots => vec![trace(), sideband],
            TraceForm::Samples(size) => {
                let attr = Attr { aux_sample_size: size, ..sampling(BRANCH_MISSES, st::AUX) };
                vec![trace(), sideband, (SAMPLING_ID, "branch-misses:u", attr)]
            }
            TraceForm::BranchStacks(branch_sample_type) => {
                let attr = Attr { branch_sample_type, ..sampling(CYCLES, st::BRANCH_STACK) };
                vec![(SAMPLING_ID, "cycles:u", attr), sideband]
            }
        }
    }

    /// A record: header, body, and for kernel records a trailer with the event's id.
    fn emit(&mut self, record: &impl WriteRecord, trailer: Option<(Who, u64)>) -> io::Result<()> {
        let mut body = std::mem::take(&mut self.record);
        body.clear();
        // The header's place.
        body.u64(0);
        record.body(&mut body);
        body.resize(body.len().next_multiple_of(8), 0);
        if let Some((who, id)) = trailer {
            let trailer = Trailer {
                task: Some((who.pid, who.tid)),
                time: Some(Ns(who.time)),
                id: Some(id),
                stream_id: None,
                cpu: Some(who.cpu),
            };
            trailer.write(SAMPLE_TYPE, &mut body);
            if who.time != 0 {
                let time = self.time.get_or_insert((who.time, who.time));
                *time = (time.0.min(who.time), time.1.max(who.time));
            }
        }
        let size = u16::try_from(body.len()).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, "a record is longer than 65,535 bytes")
        })?;
        body[0..4].copy_from_slice(&record.kind().to_le_bytes());
        body[4..6].copy_from_slice(&record.misc().to_le_bytes());
        body[6..8].copy_from_slice(&size.to_le_bytes());
        let result = self.put(&body);
        self.record = body;
        result
    }

    fn time_conv(&mut self) -> io::Result<()> {
        let TscConversion { shift, mult, zero } = self.config.time;
        let short = Some((0, u64::MAX, true, false));
        self.emit(&TimeConv { shift: u64::from(shift), mult: u64::from(mult), zero, short }, None)
    }

    fn auxtrace_info(&mut self) -> io::Result<()> {
        let config = &self.config;
        let info = PtInfo {
            pmu_type: PMU_TYPE,
            time_shift: u64::from(config.time.shift),
            time_mult: u64::from(config.time.mult),
            time_zero: config.time.zero,
            cap_user_time_zero: true,
            tsc_bit: 0x400,
            noretcomp_bit: 0x800,
            // The records of a thread's own buffer need no switches.
            have_sched_switch: if config.per_cpu { 3 } else { 0 },
            snapshot: config.form == TraceForm::Snapshots,
            per_cpu: config.per_cpu,
            mtc_bit: 0x200,
            mtc_freq_bits: 0x3c000,
            tsc_ctc_ratio: config.tsc_ctc_ratio,
            cyc_bit: 0x2,
            max_nonturbo_ratio: u64::from(config.max_nonturbo_ratio),
            filter: String::new(),
            cap_event_trace: false,
        };
        self.emit(&info, None)
    }

    /// A thread's name; `exec` where it came by one.
    pub fn comm(&mut self, who: Who, name: &str, exec: bool) -> io::Result<()> {
        let comm = Comm { pid: who.pid, tid: who.tid, comm: name.as_bytes(), exec };
        self.emit(&comm, Some((who, SIDEBAND_ID)))
    }

    /// An executable mapping of a file: `[addr, addr + len)` shows the file from `pgoff` on.
    pub fn mmap2(&mut self, who: Who, addr: u64, len: u64, pgoff: u64, path: &str) -> io::Result<()> {
        const READ_EXEC: u32 = 5;
        const MAP_PRIVATE: u32 = 2;
        let mmap = Mmap {
            pid: who.pid,
            tid: who.tid,
            addr,
            len,
            pgoff,
            build_id: None,
            prot: Some((READ_EXEC, MAP_PRIVATE)),
            misc: misc::USER,
            filename: path.as_bytes(),
        };
        self.emit(&mmap, Some((who, SIDEBAND_ID)))
    }

    /// A new process or thread, made by `who`.
    pub fn fork(&mut self, who: Who, pid: Pid, tid: Tid) -> io::Result<()> {
        let (ppid, ptid) = (who.pid, who.tid);
        let task = Task { exit: false, pid, ppid, tid, ptid, time: Ns(who.time), no_maps: false };
        self.emit(&task, Some((who, SIDEBAND_ID)))
    }

    /// The end of a thread.
    pub fn exit(&mut self, who: Who) -> io::Result<()> {
        let (pid, tid) = (who.pid, who.tid);
        let task = Task { exit: true, pid, ppid: pid, tid, ptid: tid, time: Ns(who.time), no_maps: false };
        self.emit(&task, Some((who, SIDEBAND_ID)))
    }

    /// Tracing begins for a thread.
    pub fn itrace_start(&mut self, who: Who) -> io::Result<()> {
        self.emit(&ItraceStart { pid: who.pid, tid: who.tid }, Some((who, PT_ID)))
    }

    /// `who` comes to its CPU, or leaves it.
    pub fn switch(&mut self, who: Who, out: bool) -> io::Result<()> {
        self.emit(&Switch { out, preempted: false, other: None }, Some((who, SIDEBAND_ID)))
    }

    /// A context switch; `other` is the thread that comes, or that went.
    pub fn switch_cpu_wide(&mut self, who: Who, out: bool, other: (Pid, Tid)) -> io::Result<()> {
        self.emit(&Switch { out, preempted: false, other: Some(other) }, Some((who, SIDEBAND_ID)))
    }

    /// A context switch away from a thread that could have run on.
    pub fn preempted_cpu_wide(&mut self, who: Who, other: (Pid, Tid)) -> io::Result<()> {
        self.emit(&Switch { out: true, preempted: true, other: Some(other) }, Some((who, SIDEBAND_ID)))
    }

    /// Trace bytes were written to the AUX buffer.
    pub fn aux(&mut self, who: Who, offset: u64, size: u64, flags: u64) -> io::Result<()> {
        self.emit(&Aux { offset, size, flags }, Some((who, PT_ID)))
    }

    /// Trace bytes: stream `idx` from `offset` on. `reference` is a TSC value not far from their time, not 0.
    pub fn auxtrace(
        &mut self,
        idx: u32,
        tid: Option<Tid>,
        cpu: Option<Cpu>,
        offset: u64,
        reference: Tsc,
        bytes: &[u8],
    ) -> io::Result<()> {
        let padded = bytes.len().next_multiple_of(8);
        let at = self.at;
        self.emit(&AuxTrace { size: padded as u64, offset, reference, idx, tid, cpu }, None)?;
        self.index.push((FileOffset(at), self.at - at));
        self.put(bytes)?;
        self.put(&[0; 8][..padded - bytes.len()])
    }

    /// A sample with the trace up to it; for [`TraceForm::Samples`].
    pub fn aux_sample(&mut self, who: Who, ip: Ip, bytes: &[u8]) -> io::Result<()> {
        let padded = [bytes, &[0; 8][..bytes.len().next_multiple_of(8) - bytes.len()]].concat();
        let sample = Sample {
            misc: misc::USER,
            identifier: Some(SAMPLING_ID),
            ip: Some(ip),
            task: Some((who.pid, who.tid)),
            time: Some(Ns(who.time)),
            cpu: Some(who.cpu),
            aux: Some(&padded),
            ..Sample::default()
        };
        self.emit(&sample, None)
    }

    /// A sample with the branches before it, the youngest first: where from, where to, and the rest as the kernel packs it
    /// (`struct perf_branch_entry`). For [`TraceForm::BranchStacks`] with nothing else beside the entries.
    pub fn branch_sample(&mut self, who: Who, ip: Ip, entries: &[(Ip, Ip, u64)]) -> io::Result<()> {
        let words: Vec<u8> = entries
            .iter()
            .flat_map(|(from, to, rest)| [from.0, to.0, *rest])
            .flat_map(u64::to_le_bytes)
            .collect();
        let sample = Sample {
            misc: misc::USER,
            identifier: Some(SAMPLING_ID),
            ip: Some(ip),
            task: Some((who.pid, who.tid)),
            time: Some(Ns(who.time)),
            cpu: Some(who.cpu),
            branch_stack: Some(BranchStack::new(Words::new(&words))),
            ..Sample::default()
        };
        self.emit(&sample, None)
    }

    /// The build id of a file that was mapped.
    pub fn build_id(&mut self, pid: Pid, path: &str, id: &[u8]) {
        BuildId { kernel: false, pid, id, filename: path.as_bytes() }.write(&mut self.build_ids);
    }

    /// Writes the features and the header; the sink is given back, flushed.
    pub fn finish(mut self) -> io::Result<W> {
        let data_end = self.at;
        let features = self.features();
        let mut table = Vec::new();
        let mut at = data_end + 16 * features.len() as u64;
        for (_, bytes) in &features {
            Section { offset: at, size: bytes.len() as u64 }.write(&mut table);
            at += bytes.len() as u64;
        }
        self.put(&table)?;
        for (_, bytes) in &features {
            self.put(bytes)?;
        }
        let header = self.header(data_end - self.data_start, &features);
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(&header)?;
        self.out.flush()?;
        self.out.into_inner().map_err(io::IntoInnerError::into_error)
    }

    /// Feature sections in the order of their bits.
    fn features(&self) -> Vec<(u8, Vec<u8>)> {
        let config = &self.config;
        let events = self.events();
        let events: Vec<(Attr, &str, &[u64])> =
            events.iter().map(|(id, name, attr)| (*attr, *name, std::slice::from_ref(id))).collect();
        let (first, last) = self.time.unwrap_or_default();
        vec![
            (bit::BUILD_ID, self.build_ids.clone()),
            (bit::HOSTNAME, features::write_string("recorder")),
            (bit::OSRELEASE, features::write_string("6.1.0")),
            (bit::VERSION, features::write_string("6.1.0")),
            (bit::ARCH, features::write_string("x86_64")),
            (bit::NRCPUS, features::write_nrcpus(config.cpus, config.cpus)),
            (bit::CPUDESC, features::write_string(&config.cpudesc)),
            (bit::CPUID, features::write_string(&config.cpuid)),
            (bit::CMDLINE, features::write_strings(&config.cmdline)),
            (bit::EVENT_DESC, features::write_event_desc(&events)),
            (bit::PMU_MAPPINGS, features::write_pmu_mappings(&[(PMU_TYPE, "intel_pt")])),
            (bit::AUXTRACE, features::write_auxtrace_index(&self.index)),
            (bit::SAMPLE_TIME, features::write_sample_time(Ns(first), Ns(last))),
        ]
    }
}
