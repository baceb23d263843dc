//! From a capture's path to what the decoder needs: streams chosen, images found, address spaces placed.

use crate::args::{Common, Moment};
use anyhow::{Context as _, bail};
use ptflow_decoder::clock::Clock;
use ptflow_decoder::config::PtConfig;
use ptflow_decoder::image::{AddressSpaces, Images};
use ptflow_decoder::owners::{Change, Owner, ThreadId, changes_within};
use ptflow_decoder::packet::Packet;
use ptflow_decoder::plan::{UNIT_BYTES, Window, plan};
use ptflow_decoder::reader::{Position, Reader};
use ptflow_decoder::run::Options;
use ptflow_decoder::units::{Ns, Tsc};
use ptflow_decoder::walk::{Context, Engine};
use ptflow_perf_import::images::{ImageFile, ImageSearch, ImageStore, Status};
use ptflow_perf_import::record::Sample;
use ptflow_perf_import::sideband::SwitchKind;
use ptflow_perf_import::streams::PtStream;
use ptflow_perf_import::{Capture, PerfFile, Pid, Tid};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// An opened capture.
pub struct Loaded<'m> {
    /// What the file says.
    pub capture: Capture<'m>,
    /// The code.
    pub store: ImageStore,
    /// The streams asked for, as indices into the capture's.
    chosen: Vec<usize>,
    spaces: BTreeMap<Option<Pid>, AddressSpaces>,
    nothing_mapped: AddressSpaces,
    wanted: Wanted,
    unit_bytes: usize,
}

/// What of a CPU's stream is asked for.
#[derive(Clone, PartialEq, Eq, Default)]
struct Wanted {
    thread: Option<u32>,
    process: Option<String>,
    cpu: Option<u32>,
}

impl Wanted {
    /// True where any thread of the CPUs' streams is asked for.
    fn is_of(&self, capture: &Capture<'_>) -> bool {
        let mut threads = capture.schedules.threads.iter();
        self.thread.is_none() && self.process.is_none()
            || threads.any(|(pid, tid)| self.holds(capture, *pid, *tid))
    }

    fn holds(&self, capture: &Capture<'_>, pid: Pid, tid: Tid) -> bool {
        self.thread.is_none_or(|wanted| wanted == tid.0)
            && self.process.as_ref().is_none_or(|wanted| is_process(capture, pid, wanted))
    }
}

impl<'m> Loaded<'m> {
    /// Reads a mapped file and finds its images.
    pub fn new(file: &'m PerfFile, args: &Common) -> anyhow::Result<Self> {
        let this = Self::silent(file, args)?;
        if !args.quiet {
            this.warn();
        }
        Ok(this)
    }

    /// As [`Self::new`], without a word of what is wrong with the file and its images: for who says it himself.
    pub fn silent(file: &'m PerfFile, args: &Common) -> anyhow::Result<Self> {
        let capture = Capture::read(file)?;
        let store = ImageStore::load(&capture, &search(args));
        let chosen: Vec<usize> = (0..capture.streams.len())
            .filter(|index| is_chosen(&capture, &capture.streams[*index], args))
            .collect();
        let wanted = Wanted { thread: args.thread, process: args.process.clone(), cpu: args.cpu };
        let nothing = match capture.streams.is_empty() {
            // Branch stacks: what is chosen is for each sample to say.
            true => false,
            false => chosen.is_empty() || capture.info.per_cpu && !wanted.is_of(&capture),
        };
        if nothing {
            bail!(
                "no trace in {} is of the thread, process or CPU asked for; see what there is: ptflow info",
                args.capture.display()
            );
        }
        // Branch stacks are of whoever has them: of all that had code.
        let sampled = capture.processes.iter().filter(|(_, process)| !process.space.is_empty());
        let sampled = sampled.map(|(pid, _)| Some(pid)).take_while(|_| capture.streams.is_empty());
        let spaces = chosen
            .iter()
            .map(|index| capture.streams[*index].pid)
            .chain(sampled)
            .chain(capture.schedules.threads.iter().map(|(pid, _)| Some(*pid)))
            .map(|pid| (pid, pid.map(|pid| store.address_spaces(pid)).unwrap_or_default()))
            .collect();
        let nothing_mapped = AddressSpaces::default();
        let unit_bytes = args.unit_bytes.unwrap_or(UNIT_BYTES);
        Ok(Self { capture, store, chosen, spaces, wanted, nothing_mapped, unit_bytes })
    }

    /// There is no Intel PT, only branch stacks.
    pub fn is_branch_stacks_only(&self) -> bool {
        self.capture.streams.is_empty()
    }

    /// Refuses branch stacks for a job that wants the whole flow.
    pub fn needs_trace(&self) -> anyhow::Result<()> {
        if self.is_branch_stacks_only() {
            bail!(
                "{} holds branch stacks and no Intel PT; of those there are: ptflow info, ptflow dump branches",
                self.capture.name()
            );
        }
        Ok(())
    }

    /// The sample is of a thread, process and CPU that is asked for.
    pub fn is_sample_wanted(&self, sample: &Sample<'_>) -> bool {
        sample.task.map_or(self.wanted == Wanted::default(), |task| self.is_wanted(task))
            && self.wanted.cpu.is_none_or(|cpu| sample.cpu.is_some_and(|own| own.0 == cpu))
    }

    /// Says what is wrong with the file and its images.
    fn warn(&self) {
        for note in &self.capture.notes {
            eprintln!("ptflow: {note}");
        }
        let complaints = self.store.files().iter().filter_map(complaint);
        let mut more = 0;
        for (index, complaint) in complaints.enumerate() {
            if index < MAX_COMPLAINTS {
                eprintln!("ptflow: {complaint}");
            } else {
                more += 1;
            }
        }
        if more > 0 {
            eprintln!("ptflow: {more} more images are missing; all of them: ptflow info");
        }
    }

    /// The decoder's options.
    pub fn options<'p>(
        &self,
        pool: &'p rayon::ThreadPool,
        engine: Engine,
        progress: &'p (dyn Fn(u64) + Sync),
    ) -> Options<'p> {
        Options { pool, engine, unit_bytes: self.unit_bytes, progress }
    }

    /// The streams to decode.
    pub fn streams(&self) -> impl Iterator<Item = &PtStream<'m>> {
        self.chosen.iter().map(|index| &self.capture.streams[*index])
    }

    /// The stream of a context.
    pub fn stream(&self, index: usize) -> &PtStream<'m> {
        &self.capture.streams[self.chosen[index]]
    }

    /// A position in a stream: the number of the stream and the offset in it, as the capture has them.
    pub fn offset(&self, index: usize, at: Position) -> (u32, u64) {
        let stream = self.stream(index);
        let piece = stream.trace.pieces.get(at.piece);
        (stream.idx, piece.map_or(0, |piece| piece.offset.0.wrapping_add(at.byte as u64)))
    }

    /// What the trace that is asked for is told from others by.
    pub fn told_by(&self) -> String {
        let lengths: Vec<String> =
            self.streams().map(|stream| format!("{}:{}", stream.name(), stream.trace.len())).collect();
        lengths.join(" ")
    }

    /// The streams' names.
    pub fn stream_names(&self) -> Vec<String> {
        self.streams().map(PtStream::name).collect()
    }

    /// Bytes of trace in them.
    pub fn bytes(&self) -> u64 {
        self.streams().map(|stream| stream.trace.len()).sum()
    }

    /// What the decoder needs of each stream; [`Self::owners`] says whose the streams of CPUs are.
    pub fn contexts<'a>(
        &'a self,
        images: &'a Images<'a>,
        owners: &'a [Vec<Owner<'a>>],
    ) -> Vec<Context<'a, 'a>> {
        let context = |(stream, owners): (&'a PtStream<'m>, &'a Vec<Owner<'a>>)| Context {
            stream: &stream.trace,
            images,
            spaces: &self.spaces[&stream.pid],
            config: &self.capture.config,
            owners,
        };
        self.streams().zip(owners).map(context).collect()
    }

    /// Whose each stream is, where it is a CPU's: this looks into the trace.
    pub fn owners(&self, pool: &rayon::ThreadPool) -> Vec<Vec<Owner<'_>>> {
        self.owners_within(pool, &[Window::ALL])
    }

    /// The same of what these windows need: no more of the trace is looked into.
    pub fn owners_within(&self, pool: &rayon::ThreadPool, windows: &[Window]) -> Vec<Vec<Owner<'_>>> {
        let streams: Vec<(usize, &PtStream<'m>)> = self.streams().enumerate().collect();
        let owners = |(index, stream): &(usize, &PtStream<'m>)| {
            let is_own = |window: &&Window| window.stream.is_none_or(|only| only == *index);
            let own = windows.iter().filter(is_own).map(|window| Window { stream: None, ..*window });
            self.owners_of(stream, &own.collect::<Vec<_>>())
        };
        pool.install(|| streams.par_iter().map(owners).collect())
    }

    fn owners_of(&self, stream: &PtStream<'m>, windows: &[Window]) -> Vec<Owner<'_>> {
        let schedules = &self.capture.schedules;
        let Some(schedule) = stream.cpu.and_then(|cpu| schedules.of(cpu)) else { return Vec::new() };
        let owner = |change: Change| {
            let Running { spaces, wanted, .. } = self.running(change.thread);
            Owner { from: change.from, thread: change.thread, spaces, wanted }
        };
        let changes = changes_within(&stream.trace, &self.capture.config, schedule, windows, self.unit_bytes);
        changes.into_iter().map(owner).collect()
    }

    /// What is known of a thread of a CPU's stream.
    pub fn running(&self, thread: Option<ThreadId>) -> Running<'_> {
        let task = thread.and_then(|thread| self.capture.schedules.thread(thread));
        Running {
            task,
            spaces: self.spaces.get(&task.map(|task| task.0)).unwrap_or(&self.nothing_mapped),
            wanted: task.map_or(self.wanted.thread.is_none() && self.wanted.process.is_none(), |task| {
                self.is_wanted(task)
            }),
        }
    }

    /// What a process had mapped.
    pub fn spaces_of(&self, pid: u32) -> &AddressSpaces {
        self.spaces.get(&Some(Pid(pid))).unwrap_or(&self.nothing_mapped)
    }

    /// The first time that a PSB of the streams asked for tells.
    pub fn first_pt(&self) -> Option<Tsc> {
        first_pt(self.streams(), &self.capture.config)
    }

    /// The same of all streams: what times with a `+` are counted from.
    pub fn capture_first_pt(&self) -> Option<Tsc> {
        first_pt(self.capture.streams.iter(), &self.capture.config)
    }

    /// Up to when the threads of the streams, and behind these those of CPUs' streams, are known to have gone on: by the last
    /// PSB of a stream that tells the time, and by the last switch to a thread.
    pub fn last_known(&self) -> Vec<Option<Ns>> {
        let config = &self.capture.config;
        let threads = &self.capture.schedules.threads;
        let of_stream = |stream: &PtStream<'m>| {
            let units = plan([&stream.trace], self.unit_bytes).units;
            let last = units.iter().rev().find_map(|unit| told_at(stream, unit.from, config))?;
            Some(config.time?.to_ns(last))
        };
        // A CPU is no thread.
        let streams = self.streams().map(|stream| of_stream(stream).filter(|_| threads.is_empty()));
        let mut came: BTreeMap<Tid, Ns> = BTreeMap::new();
        for switch in &self.capture.switches {
            if let (SwitchKind::In { .. }, Some((_, tid))) = (switch.what, switch.task) {
                came.insert(tid, switch.time);
            }
        }
        streams.chain(threads.iter().map(|(_, tid)| came.get(tid).copied())).collect()
    }

    /// A moment in perf's time.
    pub fn time_at(&self, moment: Moment) -> anyhow::Result<Ns> {
        match (moment, self.capture_first_pt(), self.capture.config.time) {
            (Moment::Clock(ns), Some(_), Some(_)) => Ok(Ns(ns)),
            (Moment::SinceFirst(ns), Some(first), Some(time)) => {
                Ok(Ns(time.to_ns(first).0.saturating_add(ns)))
            }
            _ => bail!("the trace tells no time: nothing of it can be found by a time"),
        }
    }

    /// The thread is asked for.
    fn is_wanted(&self, (pid, tid): (Pid, Tid)) -> bool {
        self.wanted.holds(&self.capture, pid, tid)
    }

    /// The address spaces of the processes asked for.
    pub fn chosen_spaces(&self) -> impl Iterator<Item = &AddressSpaces> {
        let is_wanted = |pid: &Option<Pid>| match (&self.wanted.process, pid) {
            (Some(process), Some(pid)) => is_process(&self.capture, *pid, process),
            _ => self.wanted.process.is_none(),
        };
        self.spaces.iter().filter(move |(pid, _)| is_wanted(pid)).map(|(_, spaces)| spaces)
    }

    /// The address spaces of the one process whose streams were chosen.
    pub fn only_spaces(&self) -> anyhow::Result<&AddressSpaces> {
        // Of CPUs' streams only the processes asked for count.
        let wanted = |pid: &Pid| match &self.wanted.process {
            Some(process) => is_process(&self.capture, *pid, process),
            None => true,
        };
        let of_processes: Vec<Pid> = self.spaces.keys().flatten().copied().filter(wanted).collect();
        match of_processes[..] {
            [pid] => Ok(&self.spaces[&Some(pid)]),
            _ => {
                let pids: Vec<String> = of_processes.iter().map(Pid::to_string).collect();
                let usage = format!(
                    "runtime addresses are of one process; choose it: --process {}",
                    pids.join(" | ")
                );
                Err(crate::args::Usage(usage).into())
            }
        }
    }
}

/// Times rise along a stream: the first that is told near the start of an unbroken stretch is its earliest. Nothing else
/// of the trace is touched.
fn first_pt<'s, 'm: 's>(streams: impl Iterator<Item = &'s PtStream<'m>>, config: &PtConfig) -> Option<Tsc> {
    let first_of = |stream: &PtStream<'m>| {
        let stretches = plan([&stream.trace], usize::MAX).units;
        stretches.iter().find_map(|stretch| told_at(stream, stretch.from, config))
    };
    streams.filter_map(first_of).min()
}

/// The time that the packets at a place tell, such as a PSB's.
fn told_at(stream: &PtStream<'_>, at: Position, config: &PtConfig) -> Option<Tsc> {
    let mut reader = Reader::new(&stream.trace, at);
    let mut clock = Clock::new(config);
    clock.set_reference(reader.reference());
    for _ in 0..64 {
        match reader.read()? {
            Ok((Packet::Tsc { tsc }, _)) => {
                clock.tsc(tsc, 0);
                return clock.now();
            }
            Ok((_, len)) => reader.skip(len),
            Err(_) => return None,
        };
    }
    None
}

/// A thread of a CPU's stream.
pub struct Running<'l> {
    /// Process and thread, where they are known.
    pub task: Option<(Pid, Tid)>,
    /// What the process had mapped.
    pub spaces: &'l AddressSpaces,
    /// It is asked for.
    pub wanted: bool,
}

/// So many missing images are named one by one.
const MAX_COMPLAINTS: usize = 5;

/// What is wrong with an image: what, where it was looked for, what to do.
fn complaint(file: &ImageFile) -> Option<String> {
    let path = &file.mapped.path;
    match &file.status {
        Status::Missing { looked } => {
            let looked: Vec<String> = looked.iter().map(|path| path.display().to_string()).collect();
            let looked = looked.join(", ");
            Some(format!("{path} is not found (looked for {looked}); say where it is: --images DIR"))
        }
        Status::Mismatch { path: found, .. } => Some(format!(
            "{} is another build than the {path} that was traced; say where that one is: --images DIR",
            found.display()
        )),
        Status::Found(_) | Status::NoFile => None,
    }
}

/// True where a stream may hold what is asked for. A CPU's may hold any thread's.
fn is_chosen(capture: &Capture<'_>, stream: &PtStream<'_>, args: &Common) -> bool {
    let is_shared = stream.cpu.is_some() && stream.tid.is_none();
    let by_thread = args.thread.is_none_or(|tid| is_shared || stream.tid.is_some_and(|own| own.0 == tid));
    let by_cpu = args.cpu.is_none_or(|cpu| stream.cpu.is_some_and(|own| own.0 == cpu));
    let by_process = args
        .process
        .as_ref()
        .is_none_or(|wanted| is_shared || stream.pid.is_some_and(|pid| is_process(capture, pid, wanted)));
    by_thread && by_cpu && by_process
}

/// The process has that id, or that name.
fn is_process(capture: &Capture<'_>, pid: Pid, wanted: &str) -> bool {
    wanted.parse() == Ok(pid.0) || capture.processes.get(pid).is_some_and(|process| process.comm == *wanted)
}

/// Opens the capture that the arguments name; `-` is standard input.
pub fn open(args: &Common) -> anyhow::Result<PerfFile> {
    if args.capture == Path::new("-") {
        return Ok(PerfFile::read(Path::new("standard input"), std::io::stdin().lock())?);
    }
    Ok(PerfFile::open(&bundled(&args.capture).map_or(args.capture.clone(), |bundle| bundle.capture))?)
}

/// The folders of a bundle.
pub struct Bundle {
    /// The capture in it.
    pub capture: PathBuf,
    /// Its images.
    pub images: PathBuf,
}

impl Bundle {
    /// Of that folder.
    pub fn at(folder: &Path) -> Self {
        Self { capture: folder.join("perf.data"), images: folder.join("images") }
    }
}

/// The bundle at a path, where there is one.
pub fn bundled(path: &Path) -> Option<Bundle> {
    let bundle = Bundle::at(path);
    (bundle.images.is_dir() && bundle.capture.exists()).then_some(bundle)
}

/// Where images are looked for. Those of a bundle are all there are, but for folders that are named: it is decoded as on
/// the machine that it comes from, whatever this one has.
fn search(args: &Common) -> ImageSearch {
    let mut roots = args.images.clone();
    match bundled(&args.capture) {
        Some(bundle) => {
            roots.push(bundle.images);
            ImageSearch { roots, only_roots: true, files: args.binaries.clone(), ..ImageSearch::default() }
        }
        None => ImageSearch { files: args.binaries.clone(), ..ImageSearch::new(roots) },
    }
}

/// The threads to work on.
pub fn pool(args: &Common) -> anyhow::Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads.map_or(0, usize::from))
        .build()
        .context("cannot start worker threads; try fewer: --threads N")
}
