//! A capture: all that a perf.data says, but the code.

use crate::attr::{TRACEPOINT, flag, sample_type};
use crate::aux_samples::AuxSamples;
use crate::events::Event;
use crate::features::{self, BuildId, bit};
use crate::file::{LetGo, PerfFile};
use crate::process::Processes;
use crate::record::{Aux, Lost, LostSamples, PtInfo, Record, Records, Sample, TimeConv, kind};
use crate::schedule::{self, Schedules};
use crate::settings;
use crate::sideband::{Sideband, SwitchEvent, SwitchKind};
use crate::streams::{AuxSums, PtStream, StreamBuilder};
use crate::{Pid, Tid};
use ptflow_decoder::config::{PtConfig, TscConversion};
use ptflow_decoder::units::Ns;
use std::collections::{BTreeMap, HashMap};

/// Why a perf.data is of no use here.
#[derive(thiserror::Error, Debug)]
pub enum CaptureError {
    /// Neither kind of branch trace.
    #[error(
        "no Intel PT and no branch stacks in {0}: record with perf record -e intel_pt//u, or with perf record -b"
    )]
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

/// The branch stacks of a capture, counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BranchStackSums {
    /// Samples with a branch stack, empty ones among them.
    pub samples: u64,
    /// Entries in all.
    pub entries: u64,
    /// Entries of the longest.
    pub depth: u64,
}

/// All that a perf.data says, but the code.
#[derive(Debug)]
pub struct Capture<'m> {
    file: &'m PerfFile,
    /// How Intel PT was set up.
    pub config: PtConfig,
    /// AUXTRACE_INFO; all zeros where there is no Intel PT.
    pub info: PtInfo,
    /// The trace.
    pub streams: Vec<PtStream<'m>>,
    /// What the AUX records say, summed.
    pub aux: AuxSums,
    /// Samples that brought trace (`--aux-sample`).
    pub aux_samples: u64,
    /// The branch stacks, counted; [`Capture::samples`] gives them.
    pub branch_stacks: BranchStackSums,
    /// Processes and threads.
    pub processes: Processes,
    /// Who came to a CPU and left it, in order of time.
    pub switches: Vec<SwitchEvent>,
    /// How many of them samples of the tracepoint sched:sched_switch tell.
    pub sched_switches: u64,
    /// For a trace by CPU: who ran when.
    pub schedules: Schedules,
    /// The machine.
    pub machine: Machine,
    /// Records by type: how many.
    pub records: BTreeMap<u32, u64>,
    /// Records, samples among them, that the kernel says it dropped.
    pub lost_records: u64,
    /// First and last time of any record, in nanoseconds of perf's clock.
    pub time: Option<(u64, u64)>,
    /// What was found wrong, in words.
    pub notes: Vec<String>,
}

impl<'m> Capture<'m> {
    /// Reads all records but no trace byte.
    pub fn read(file: &'m PerfFile) -> Result<Self, CaptureError> {
        let name = || file.path().display().to_string();
        let mut walk = Walk { sched_switch: sched_switch_config(file), ..Walk::default() };
        let mut records = file.records();
        let mut behind = LetGo::new(file);
        for record in &mut records {
            behind.before(record.offset.0);
            walk.record(file, &record);
        }
        let Walk { kinds, mut streams, info, time_conv, build_ids, lost, time, .. } = walk;
        let Walk { sideband, sched_switches, branch_stacks, aux_samples, .. } = walk;
        let mut notes = file.notes().to_vec();
        if let Some(at) = records.first_damage() {
            notes.push(match records.skipped() {
                0 => format!("the records end at offset {at} in the middle of one"),
                bytes => format!("{bytes} bytes from offset {at} on are no records and were stepped over"),
            });
        }
        if info.is_none() && branch_stacks.samples == 0 {
            return Err(CaptureError::NoTrace(name()));
        }
        let has_pt = info.is_some();
        let info = info.unwrap_or_default();
        streams.setup(info.per_cpu, info.snapshot);
        let (aux, missing) = (streams.sums, streams.missing);
        if missing > 0 {
            notes.push(format!("{missing} bytes of trace are missing: the file is cut short or damaged"));
        }
        let build_ids: HashMap<&[u8], &[u8]> = BuildId::read_all(file.feature(bit::BUILD_ID).unwrap_or(&[]))
            .chain(build_ids)
            .map(|entry| (entry.filename, entry.id))
            .collect();
        let (processes, mut switches) = sideband.finish(file.events(), &build_ids);
        let sched_switch_samples = sched_switches.len() as u64;
        switches.extend(sched_switches);
        switches.sort_by_key(|switch| switch.time);
        let machine = machine(file);
        let event = file.events().iter().find(|event| has_pt && event.attr.kind == info.pmu_type);
        let event_config = event.map_or(0, |event| event.attr.config);
        let mut config = settings::config(&info, time_conv.as_ref(), event_config, machine.cpuid.as_deref());
        if !has_pt {
            // Without a trace no TSC has to be told: any clock will do to say what was mapped when.
            config.time.get_or_insert(TscConversion { shift: 0, mult: 1, zero: 0 });
        }
        config.filters = settings::filters(&info.filter, &processes);
        // An event that threads inherit is theirs: it stops as they leave a CPU.
        let inherited = event.is_some_and(|event| event.attr.flags & flag::INHERIT != 0);
        let stops = streams.follows_threads() || aux_samples.len() > 0 && inherited;
        let mut taken = streams.taken();
        let mut streams = streams.finish();
        let first = streams.last().map_or(0, |last| last.idx.saturating_add(1));
        let sampled = aux_samples.len();
        let (of_samples, ends) = aux_samples.finish(info.per_cpu, config.time, first);
        streams.extend(of_samples);
        taken.extend(ends);
        let schedules = match info.per_cpu {
            true => schedule::schedules(&switches, &taken, &processes, config.time, stops),
            false => Schedules::default(),
        };
        for stream in &mut streams {
            stream.pid = stream.tid.and_then(|tid| processes.process_of(tid));
        }
        if has_pt && branch_stacks.samples == 0 && streams.iter().all(|stream| stream.trace.is_empty()) {
            return Err(CaptureError::NoData(name()));
        }
        Ok(Self {
            file,
            config,
            info,
            streams,
            aux,
            aux_samples: sampled,
            branch_stacks,
            processes,
            switches,
            sched_switches: sched_switch_samples,
            schedules,
            machine,
            records: kinds,
            lost_records: lost,
            time,
            notes,
        })
    }

    /// What to call the capture: where it is.
    pub fn name(&self) -> String {
        self.file.path().display().to_string()
    }

    /// Bytes of trace.
    pub fn trace_bytes(&self) -> u64 {
        self.streams.iter().map(|stream| stream.trace.len()).sum()
    }

    /// The records, in file order.
    pub fn records(&self) -> Records<'m> {
        self.file.records()
    }

    /// A sample with its event.
    pub fn sample(&self, record: &Record<'m>) -> Option<(&'m Event, Sample<'m>)> {
        self.file.events().sample(record)
    }

    /// Lets go of records that were read.
    pub(crate) fn let_go(&self) -> LetGo<'m> {
        LetGo::new(self.file)
    }

    /// The samples, in file order; none is kept.
    pub fn samples(&self) -> impl Iterator<Item = Sample<'m>> + use<'m> {
        let file = self.file;
        file.records().filter_map(|record| Some(file.events().sample(&record)?.1))
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

/// What is gathered while the records are walked once.
#[derive(Default)]
struct Walk<'m> {
    kinds: BTreeMap<u32, u64>,
    streams: StreamBuilder<'m>,
    info: Option<PtInfo>,
    time_conv: Option<TimeConv>,
    build_ids: Vec<BuildId<'m>>,
    sideband: Sideband<'m>,
    /// The config of the tracepoint sched:sched_switch, where it was recorded.
    sched_switch: Option<u64>,
    sched_switches: Vec<SwitchEvent>,
    branch_stacks: BranchStackSums,
    aux_samples: AuxSamples<'m>,
    lost: u64,
    time: Option<(u64, u64)>,
}

impl<'m> Walk<'m> {
    fn record(&mut self, file: &'m PerfFile, record: &Record<'m>) {
        *self.kinds.entry(record.kind).or_insert(0) += 1;
        match record.kind {
            kind::AUXTRACE => self.streams.auxtrace(record),
            kind::AUXTRACE_INFO if self.info.is_none() => self.info = PtInfo::read(record),
            kind::TIME_CONV if self.time_conv.is_none() => self.time_conv = TimeConv::read(record),
            kind::SAMPLE => self.sample(file, record),
            kind::ID_INDEX => self.aux_samples.id_index(record),
            kind::HEADER_BUILD_ID => self.build_ids.extend(BuildId::read(record.misc, record.body)),
            kind::USER_TYPE_START.. => {}
            _ => self.kernel_record(file, record),
        }
    }

    fn sample(&mut self, file: &'m PerfFile, record: &Record<'m>) {
        let Some((event, sample)) = file.events().sample(record) else { return };
        self.at(sample.time);
        if event.attr.kind == TRACEPOINT
            && self.sched_switch == Some(event.attr.config)
            && let (Some(time), Some(next)) = (sample.time, sample.raw.and_then(schedule::sched_switch))
        {
            // The process is not told.
            let what = SwitchKind::Out { preempted: false, next: Some((Pid(u32::MAX), next)) };
            self.sched_switches.push(SwitchEvent { time, cpu: sample.cpu, task: sample.task, what });
        }
        self.aux_samples.add(&sample);
        if event.attr.has(sample_type::BRANCH_STACK)
            && let Some(stack) = sample.branch_stack
        {
            let entries = stack.len() as u64;
            self.branch_stacks.samples += 1;
            self.branch_stacks.entries += entries;
            self.branch_stacks.depth = self.branch_stacks.depth.max(entries);
        }
    }

    fn kernel_record(&mut self, file: &'m PerfFile, record: &Record<'m>) {
        let trailer = file.events().trailer(record);
        self.at(trailer.time);
        let lost = match record.kind {
            kind::AUX => {
                if let Some(aux) = Aux::read(record) {
                    self.streams.aux(aux, trailer.task.map(|task| task.1), trailer.cpu);
                }
                None
            }
            kind::LOST => Lost::read(record).map(|lost| lost.lost),
            kind::LOST_SAMPLES => LostSamples::read(record).map(|lost| lost.lost),
            _ => None,
        };
        self.lost = self.lost.saturating_add(lost.unwrap_or(0));
        self.sideband.add(record, trailer.time.unwrap_or(Ns(0)));
    }

    /// Widens the span of times; 0 is no time.
    fn at(&mut self, time: Option<Ns>) {
        if let Some(Ns(at)) = time.filter(|time| time.0 != 0) {
            self.time = Some(self.time.map_or((at, at), |(from, to)| (from.min(at), to.max(at))));
        }
    }
}

fn sched_switch_config(file: &PerfFile) -> Option<u64> {
    let events = features::event_desc(file.feature(bit::EVENT_DESC)?)?;
    let named = |(attr, name, _): &(crate::attr::Attr, String, Vec<u64>)| {
        attr.kind == TRACEPOINT && name.starts_with("sched:sched_switch")
    };
    events.iter().find(|event| named(event)).map(|(attr, ..)| attr.config)
}

fn machine(file: &PerfFile) -> Machine {
    let string = |bit: u8| features::string(file.feature(bit)?);
    Machine {
        hostname: string(bit::HOSTNAME),
        osrelease: string(bit::OSRELEASE),
        cpudesc: string(bit::CPUDESC),
        cpuid: string(bit::CPUID),
        cmdline: file.feature(bit::CMDLINE).and_then(features::strings).map(|words| words.join(" ")),
    }
}
