//! A capture: all that a perf.data says, but the code.

use crate::bytes::{Fields, until_nul};
use crate::file::PerfFile;
use crate::process::Processes;
use crate::record::{kind, misc};
use crate::streams::{PtStream, StreamBuilder};
use crate::trailer::Trailers;
use crate::{Pid, PtInfo, Tid};
use ptflow_decoder::config::PtConfig;
use std::collections::{BTreeMap, HashMap};

/// Feature sections (`HEADER_*` in the kernel's `tools/perf/util/header.h`).
mod feature {
    pub const BUILD_ID: u8 = 2;
    pub const HOSTNAME: u8 = 3;
    pub const OSRELEASE: u8 = 4;
    pub const CPUDESC: u8 = 8;
    pub const CPUID: u8 = 9;
    pub const CMDLINE: u8 = 11;
}

/// Why a perf.data is of no use here.
#[derive(thiserror::Error, Debug)]
pub enum CaptureError {
    /// Neither kind of branch trace.
    #[error("no Intel PT in {0}: record with perf record -e intel_pt//u")]
    NoTrace(String),
    /// Intel PT was on, but no byte of it is in the file.
    #[error(
        "{0} holds no Intel PT data, though it was recorded with Intel PT: the trace was stripped, or nothing ran"
    )]
    NoData(String),
}

/// What a capture says about the machine it was made on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Machine {
    /// Host name.
    pub hostname: Option<String>,
    /// Kernel release.
    pub osrelease: Option<String>,
    /// CPU in words.
    pub cpudesc: Option<String>,
    /// `GenuineIntel,family,model,stepping`.
    pub cpuid: Option<String>,
    /// perf's command line.
    pub cmdline: Option<String>,
}

/// All that a perf.data says, but the code.
#[derive(Debug)]
pub struct Capture<'m> {
    /// How Intel PT was set up.
    pub config: PtConfig,
    /// AUXTRACE_INFO.
    pub info: PtInfo,
    /// The trace.
    pub streams: Vec<PtStream<'m>>,
    /// Processes and threads.
    pub processes: Processes,
    /// The machine.
    pub machine: Machine,
    /// Records by type: how many.
    pub records: BTreeMap<u32, u64>,
    /// First and last time of any record.
    pub time: Option<(u64, u64)>,
    /// What was found wrong, in words.
    pub notes: Vec<String>,
}

impl<'m> Capture<'m> {
    /// Reads all records but no trace byte.
    pub fn read(file: &'m PerfFile) -> Result<Self, CaptureError> {
        let name = file.path().display().to_string();
        let machine = machine(file);
        let build_ids = build_ids(file);
        let trailers = Trailers::new(file.events());
        let mut records = BTreeMap::new();
        let mut streams = StreamBuilder::default();
        let mut info = None;
        let mut time: Option<(u64, u64)> = None;
        let mut sideband = Vec::new();
        let mut all = file.records();
        for record in &mut all {
            *records.entry(record.kind).or_insert(0) += 1;
            let trailer = trailers.read(&record);
            if let Some(at) = trailer.time.filter(|at| *at != 0) {
                time = Some(time.map_or((at, at), |(from, to)| (from.min(at), to.max(at))));
            }
            match record.kind {
                kind::AUXTRACE => streams.auxtrace(&record),
                kind::AUX => {
                    if let Some(aux) = record.aux() {
                        streams.aux(aux, trailer.tid, trailer.cpu);
                    }
                }
                kind::AUXTRACE_INFO if info.is_none() => info = PtInfo::read(record.body),
                kind::MMAP | kind::MMAP2 | kind::COMM | kind::FORK | kind::ITRACE_START => {
                    sideband.push((trailer.time.unwrap_or(0), record));
                }
                _ => {}
            }
        }
        let mut notes = file.notes().to_vec();
        if all.damaged() {
            notes.push("the records end in bytes that are none: the file is cut short or damaged".to_owned());
        }
        if streams.missing > 0 {
            notes.push(format!("{} bytes of trace are missing at the file's end", streams.missing));
        }
        let Some(info) = info else { return Err(CaptureError::NoTrace(name)) };
        // Records of different buffers are interleaved in the file; the sort is stable.
        sideband.sort_by_key(|(time, _)| *time);
        let mut processes = Processes::default();
        for (time, record) in sideband {
            match record.kind {
                kind::MMAP | kind::MMAP2 => {
                    let Some(mmap) = record.mmap() else { continue };
                    let executable = match mmap.prot {
                        Some(prot) => prot & PROT_EXEC != 0,
                        None => record.misc & misc::MMAP_DATA == 0,
                    };
                    if executable {
                        processes.mmap(mmap, time, build_ids.get(mmap.filename).map(Vec::as_slice));
                    }
                }
                kind::COMM => record.comm().into_iter().for_each(|comm| processes.comm(comm, time)),
                kind::FORK => record.task().into_iter().for_each(|task| processes.fork(task)),
                _ => record.itrace_start().into_iter().for_each(|(pid, tid)| processes.seen(pid, tid)),
            }
        }
        let event = file.events().iter().find(|event| event.attr.kind == info.pmu_type);
        let config = info.config(event.map_or(0, |event| event.attr.config), machine.cpuid.as_deref());
        let mut streams = streams.finish(info.per_cpu, info.snapshot);
        for stream in &mut streams {
            stream.pid = stream.tid.and_then(|tid| processes.process_of(tid));
        }
        if streams.iter().all(|stream| stream.trace.is_empty()) {
            return Err(CaptureError::NoData(name));
        }
        Ok(Self { config, info, streams, processes, machine, records, time, notes })
    }

    /// Bytes of trace.
    pub fn trace_bytes(&self) -> u64 {
        self.streams.iter().map(|stream| stream.trace.len()).sum()
    }

    /// A thread's name.
    pub fn thread_name(&self, pid: Pid, tid: Tid) -> &str {
        self.processes
            .get(pid)
            .and_then(|process| {
                process.threads.get(&tid).filter(|name| !name.is_empty()).or(Some(&process.comm))
            })
            .map_or("", String::as_str)
    }
}

const PROT_EXEC: u32 = 4;

fn machine(file: &PerfFile) -> Machine {
    let string = |bit: u8| {
        let text = Fields(file.feature(bit)?).string()?;
        Some(String::from_utf8_lossy(text).into_owned())
    };
    let cmdline = || {
        let mut f = Fields(file.feature(feature::CMDLINE)?);
        let count = f.u32()?;
        let words: Vec<_> =
            (0..count).map_while(|_| f.string()).map(|word| String::from_utf8_lossy(word)).collect();
        Some(words.join(" "))
    };
    Machine {
        hostname: string(feature::HOSTNAME),
        osrelease: string(feature::OSRELEASE),
        cpudesc: string(feature::CPUDESC),
        cpuid: string(feature::CPUID),
        cmdline: cmdline(),
    }
}

/// Build ids by file name, from the feature section.
fn build_ids(file: &PerfFile) -> HashMap<&[u8], Vec<u8>> {
    let mut ids = HashMap::new();
    let mut rest = Fields(file.feature(feature::BUILD_ID).unwrap_or(&[]));
    loop {
        let entry = (|| {
            let (_, misc, size) = (rest.u32()?, rest.u16()?, rest.u16()?);
            let mut body = Fields(rest.take(usize::from(size).checked_sub(8)?)?);
            body.u32()?;
            let mut id = Fields(body.take(24)?);
            let bytes = id.take(20)?;
            let len = if misc & misc::BUILD_ID_SIZE != 0 { usize::from(id.u8()?).min(20) } else { 20 };
            Some((until_nul(body.0), bytes[..len].to_vec()))
        })();
        let Some((name, id)) = entry else { return ids };
        ids.insert(name, id);
    }
}
