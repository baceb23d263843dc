//! Writing perf.data: the mirror of the reader, for recorders and tests.
//!
//! Records go to the file as they come, trace bytes first of all; only the header, and the index of the trace, are
//! written at the end. So a recording of any size needs no memory.
//!
//! What perf insists on (tried with perf 6.1): a CPU number below the NRCPUS feature, a CPUID that begins with
//! GenuineIntel, the Intel PT event's type equal to AUXTRACE_INFO's, a reference time other than 0 in every AUXTRACE
//! record, and trace data padded to 8 bytes.

use crate::attr::{flag, sample_type as st};
use crate::record::{kind, misc};
use crate::{Cpu, Pid, Tid};
use ptflow_decoder::config::TscConversion;
use ptflow_decoder::units::Tsc;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

/// Size of `perf_event_attr` as perf 6.1 writes it.
const ATTR_SIZE: usize = 128;
const HEADER_SIZE: u64 = 104;
/// What trailers carry here.
const SAMPLE_TYPE: u64 = st::IP | st::TID | st::TIME | st::CPU | st::IDENTIFIER;
/// Ids of the two events.
const PT_ID: u64 = 1;
const SIDEBAND_ID: u64 = 2;

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
    /// perf time; 0 for what was there before the recording.
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
    index: Vec<(u64, u64)>,
    build_ids: Vec<(Pid, String, Vec<u8>)>,
    record: Vec<u8>,
}

impl PerfWriter<File> {
    /// Makes the file, or empties it.
    pub fn create(path: &Path, config: WriterConfig) -> io::Result<Self> {
        Self::new(File::create(path)?, config)
    }
}

impl<W: Write + Seek> PerfWriter<W> {
    /// Writes from the sink's start on.
    pub fn new(out: W, config: WriterConfig) -> io::Result<Self> {
        let mut this = Self {
            out: BufWriter::with_capacity(1 << 20, out),
            at: 0,
            config,
            data_start: 0,
            index: Vec::new(),
            build_ids: Vec::new(),
            record: Vec::new(),
        };
        let ids = [PT_ID, SIDEBAND_ID].map(u64::to_le_bytes).concat();
        this.put(&[0; HEADER_SIZE as usize])?;
        this.put(&ids)?;
        let attrs = this.attrs();
        for (index, attr) in attrs.iter().enumerate() {
            this.put(attr)?;
            this.put(&(HEADER_SIZE + 8 * index as u64).to_le_bytes())?;
            this.put(&8u64.to_le_bytes())?;
        }
        this.data_start = this.at;
        this.time_conv()?;
        this.auxtrace_info()?;
        Ok(this)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// The two events: Intel PT, user space only, and a dummy one that carries the sideband.
    fn attrs(&self) -> [[u8; ATTR_SIZE]; 2] {
        const MMAP: u64 = 1 << 8;
        const COMM: u64 = 1 << 9;
        const TASK: u64 = 1 << 13;
        const MMAP2: u64 = 1 << 23;
        const COMM_EXEC: u64 = 1 << 24;
        const CONTEXT_SWITCH: u64 = 1 << 26;
        let attr = |kind: u32, config: u64, flags: u64| {
            let mut attr = [0; ATTR_SIZE];
            attr[0..4].copy_from_slice(&kind.to_le_bytes());
            attr[4..8].copy_from_slice(&(ATTR_SIZE as u32).to_le_bytes());
            attr[8..16].copy_from_slice(&config.to_le_bytes());
            attr[16..24].copy_from_slice(&1u64.to_le_bytes());
            attr[24..32].copy_from_slice(&SAMPLE_TYPE.to_le_bytes());
            attr[32..40].copy_from_slice(&4u64.to_le_bytes());
            attr[40..48].copy_from_slice(&flags.to_le_bytes());
            attr
        };
        let common = flag::EXCLUDE_KERNEL | flag::SAMPLE_ID_ALL;
        let sideband = MMAP | COMM | TASK | MMAP2 | COMM_EXEC | CONTEXT_SWITCH;
        // PERF_TYPE_SOFTWARE, PERF_COUNT_SW_DUMMY.
        [attr(PMU_TYPE, self.config.event_config, common), attr(1, 9, common | sideband)]
    }

    /// A record: header, body, and for kernel records a trailer.
    fn emit(&mut self, kind: u32, misc: u16, id: u64, who: Option<Who>) -> io::Result<()> {
        let mut body = std::mem::take(&mut self.record);
        body.resize(body.len().next_multiple_of(8), 0);
        if let Some(who) = who {
            body.extend_from_slice(&who.pid.0.to_le_bytes());
            body.extend_from_slice(&who.tid.0.to_le_bytes());
            body.extend_from_slice(&who.time.to_le_bytes());
            body.extend_from_slice(&u64::from(who.cpu.0).to_le_bytes());
            body.extend_from_slice(&id.to_le_bytes());
        }
        let size = u16::try_from(body.len() + 8).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, "a record is longer than 65,535 bytes")
        })?;
        let mut header = [0; 8];
        header[0..4].copy_from_slice(&kind.to_le_bytes());
        header[4..6].copy_from_slice(&misc.to_le_bytes());
        header[6..8].copy_from_slice(&size.to_le_bytes());
        self.put(&header)?;
        self.put(&body)?;
        body.clear();
        self.record = body;
        Ok(())
    }

    fn words(&mut self, words: &[u64]) {
        for word in words {
            self.record.extend_from_slice(&word.to_le_bytes());
        }
    }

    fn ids(&mut self, ids: &[u32]) {
        for id in ids {
            self.record.extend_from_slice(&id.to_le_bytes());
        }
    }

    fn text(&mut self, text: &str) {
        self.record.extend_from_slice(text.as_bytes());
        self.record.push(0);
    }

    fn time_conv(&mut self) -> io::Result<()> {
        let time = self.config.time;
        self.words(&[u64::from(time.shift), u64::from(time.mult), time.zero, 0, u64::MAX, 1]);
        self.emit(kind::TIME_CONV, 0, 0, None)
    }

    fn auxtrace_info(&mut self) -> io::Result<()> {
        let WriterConfig { time, tsc_ctc_ratio: (n, d), max_nonturbo_ratio, per_cpu, .. } =
            self.config.clone();
        self.ids(&[1, 0]);
        self.words(&[
            u64::from(PMU_TYPE),
            u64::from(time.shift),
            u64::from(time.mult),
            time.zero,
            1,                           // cap_user_time_zero
            0x400,                       // tsc bit
            0x800,                       // noretcomp bit
            if per_cpu { 3 } else { 0 }, // switch records: system-wide kind, or none
            0,                           // snapshot mode
            u64::from(per_cpu),
            0x200,   // mtc bit
            0x3c000, // mtc period bits
            u64::from(n),
            u64::from(d),
            0x2, // cyc bit
            u64::from(max_nonturbo_ratio),
            0, // filter string length
        ]);
        self.emit(kind::AUXTRACE_INFO, 0, 0, None)
    }

    /// A thread's name; `exec` where it came by one.
    pub fn comm(&mut self, who: Who, name: &str, exec: bool) -> io::Result<()> {
        self.ids(&[who.pid.0, who.tid.0]);
        self.text(name);
        self.emit(kind::COMM, if exec { misc::COMM_EXEC } else { 0 }, SIDEBAND_ID, Some(who))
    }

    /// An executable mapping of a file: `[addr, addr + len)` shows the file from `pgoff` on.
    pub fn mmap2(&mut self, who: Who, addr: u64, len: u64, pgoff: u64, path: &str) -> io::Result<()> {
        const READ_EXEC: u32 = 5;
        const MAP_PRIVATE: u32 = 2;
        self.ids(&[who.pid.0, who.tid.0]);
        self.words(&[addr, len, pgoff, 0, 0, 0]);
        self.ids(&[READ_EXEC, MAP_PRIVATE]);
        self.text(path);
        self.emit(kind::MMAP2, misc::USER, SIDEBAND_ID, Some(who))
    }

    /// A new process or thread, made by `who`.
    pub fn fork(&mut self, who: Who, pid: Pid, tid: Tid) -> io::Result<()> {
        self.ids(&[pid.0, who.pid.0, tid.0, who.tid.0]);
        self.words(&[who.time]);
        self.emit(kind::FORK, 0, SIDEBAND_ID, Some(who))
    }

    /// The end of a thread.
    pub fn exit(&mut self, who: Who) -> io::Result<()> {
        self.ids(&[who.pid.0, who.pid.0, who.tid.0, who.tid.0]);
        self.words(&[who.time]);
        self.emit(kind::EXIT, 0, SIDEBAND_ID, Some(who))
    }

    /// Tracing begins for a thread.
    pub fn itrace_start(&mut self, who: Who) -> io::Result<()> {
        self.ids(&[who.pid.0, who.tid.0]);
        self.emit(kind::ITRACE_START, 0, PT_ID, Some(who))
    }

    /// A context switch; `other` is the thread that comes, or that went.
    pub fn switch_cpu_wide(&mut self, who: Who, out: bool, other: (Pid, Tid)) -> io::Result<()> {
        self.ids(&[other.0.0, other.1.0]);
        self.emit(kind::SWITCH_CPU_WIDE, if out { misc::SWITCH_OUT } else { 0 }, SIDEBAND_ID, Some(who))
    }

    /// Trace bytes were written to the AUX buffer.
    pub fn aux(&mut self, who: Who, offset: u64, size: u64, flags: u64) -> io::Result<()> {
        self.words(&[offset, size, flags]);
        self.emit(kind::AUX, 0, PT_ID, Some(who))
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
        self.words(&[padded as u64, offset, reference.0]);
        self.ids(&[idx, tid.map_or(u32::MAX, |tid| tid.0), cpu.map_or(u32::MAX, |cpu| cpu.0), 0]);
        self.emit(kind::AUXTRACE, 0, 0, None)?;
        self.index.push((at, self.at - at));
        self.put(bytes)?;
        self.put(&[0; 8][..padded - bytes.len()])
    }

    /// The build id of a file that was mapped.
    pub fn build_id(&mut self, pid: Pid, path: &str, id: &[u8]) {
        self.build_ids.push((pid, path.to_owned(), id.to_vec()));
    }

    /// Writes the features and the header; the sink is given back, flushed.
    pub fn finish(mut self) -> io::Result<W> {
        let data_end = self.at;
        let features = self.features();
        let mut at = data_end + 16 * features.len() as u64;
        for (_, bytes) in &features {
            let section = [at.to_le_bytes(), (bytes.len() as u64).to_le_bytes()].concat();
            at += bytes.len() as u64;
            self.put(&section)?;
        }
        for (_, bytes) in &features {
            self.put(bytes)?;
        }
        let attrs_at = HEADER_SIZE + 16;
        let attr_entry = ATTR_SIZE as u64 + 16;
        let mut header = b"PERFILE2".to_vec();
        let numbers = [
            HEADER_SIZE,
            attr_entry,
            attrs_at,
            2 * attr_entry,
            self.data_start,
            data_end - self.data_start,
            0,
            0,
        ];
        header.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        let mut bits = [0u8; 32];
        for (bit, _) in &features {
            bits[usize::from(bit / 8)] |= 1 << (bit % 8);
        }
        header.extend_from_slice(&bits);
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(&header)?;
        self.out.flush()?;
        self.out.into_inner().map_err(io::IntoInnerError::into_error)
    }

    /// Feature sections in the order of their bits.
    fn features(&self) -> Vec<(u8, Vec<u8>)> {
        let config = &self.config;
        let strings = |strings: &[String]| {
            let mut bytes = (strings.len() as u32).to_le_bytes().to_vec();
            strings.iter().for_each(|text| bytes.extend(string(text)));
            bytes
        };
        let mut event_desc = [2u32.to_le_bytes(), (ATTR_SIZE as u32).to_le_bytes()].concat();
        for (attr, (name, id)) in self.attrs().iter().zip([("intel_pt//u", PT_ID), ("dummy:u", SIDEBAND_ID)])
        {
            event_desc.extend_from_slice(attr);
            event_desc.extend_from_slice(&1u32.to_le_bytes());
            event_desc.extend(string(name));
            event_desc.extend_from_slice(&id.to_le_bytes());
        }
        let mut pmus = 1u32.to_le_bytes().to_vec();
        pmus.extend_from_slice(&PMU_TYPE.to_le_bytes());
        pmus.extend(string("intel_pt"));
        let mut index = (self.index.len() as u64).to_le_bytes().to_vec();
        for (offset, size) in &self.index {
            index.extend_from_slice(&offset.to_le_bytes());
            index.extend_from_slice(&size.to_le_bytes());
        }
        vec![
            (2, self.build_ids.iter().flat_map(|(pid, path, id)| build_id_entry(*pid, path, id)).collect()),
            (3, string("recorder")),
            (4, string("6.1.0")),
            (5, string("6.1.0")),
            (6, string("x86_64")),
            (7, [config.cpus.to_le_bytes(), config.cpus.to_le_bytes()].concat()),
            (8, string(&config.cpudesc)),
            (9, string(&config.cpuid)),
            (11, strings(&config.cmdline)),
            (12, event_desc),
            (16, pmus),
            (18, index),
        ]
    }
}

/// A feature string: its padded length, then the bytes with at least one NUL.
fn string(text: &str) -> Vec<u8> {
    let len = (text.len() + 1).next_multiple_of(64);
    let mut bytes = (len as u32).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes.resize(4 + len, 0);
    bytes
}

fn build_id_entry(pid: Pid, path: &str, id: &[u8]) -> Vec<u8> {
    let id = &id[..id.len().min(20)];
    let name_len = (path.len() + 1).next_multiple_of(64);
    let mut entry = 0u32.to_le_bytes().to_vec();
    entry.extend_from_slice(&(misc::USER | misc::BUILD_ID_SIZE).to_le_bytes());
    entry.extend_from_slice(&((8 + 4 + 24 + name_len) as u16).to_le_bytes());
    entry.extend_from_slice(&pid.0.to_le_bytes());
    entry.extend_from_slice(id);
    entry.resize(12 + 20, 0);
    entry.push(id.len() as u8);
    entry.resize(12 + 24, 0);
    entry.extend_from_slice(path.as_bytes());
    entry.resize(12 + 24 + name_len, 0);
    entry
}
