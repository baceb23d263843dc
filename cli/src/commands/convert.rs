//! `ptflow convert`.

use crate::args::{ConvertArgs, Usage};
use crate::call_stacks::{self, StackOwner};
use crate::find_function::Functions;
use crate::load::{self, Loaded};
use crate::progress::Progress;
use crate::report::Outcome;
use crate::selection::Selection;
use anyhow::Context as _;
use ptflow_decoder::jobs::calls::{FrameName, FrameSink};
use ptflow_decoder::ledger::LossReason;
use ptflow_decoder::profile::CodeAddr;
use ptflow_decoder::units::{ImageId, Ns};
use ptflow_exporters::budget::{Budget, Limits};
use ptflow_exporters::chrome::ChromeWriter;
use ptflow_exporters::depth::DepthGuard;
use ptflow_exporters::gzip::Gzip;
use ptflow_exporters::output::Output;
use ptflow_exporters::perfetto::PerfettoWriter;
use ptflow_exporters::text::TextWriter;
use ptflow_exporters::timeline::{Category, Name, Timeline, Track};
use ptflow_perf_import::symbols::FunctionNames;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

/// The formats by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Protobuf.
    Perfetto,
    /// JSON.
    Chrome,
    /// Lines.
    Text,
}

/// Runs the verb.
pub fn run(args: &ConvertArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    let (format, gzip) = format_of(&args.output)?;
    let file = load::open(&args.common)?;
    let loaded = Loaded::new(&file, &args.common)?;
    loaded.needs_trace()?;
    let pool = load::pool(&args.common)?;
    let (images, functions) = loaded.store.images_with_functions();
    let known = Functions { names: &functions, images: &images, store: &loaded.store };
    let selection = Selection::new(args, &loaded, &known, &pool)?;
    let cannot = || format!("cannot write {}", args.output.display());
    let output = SharedOutput(Rc::new(RefCell::new(Output::create(&args.output).with_context(cannot)?)));
    let threads = NonZeroUsize::new(pool.current_num_threads()).unwrap_or(NonZeroUsize::MIN);
    let timeline = timeline(format, gzip.then_some(threads), output.clone());
    let timeline = Budget::new(timeline, limits(args, format));
    let all = selection.is_all() && !loaded.capture.info.per_cpu;
    let frames = Frames::new(&loaded, &functions, timeline, all).with_context(cannot)?;
    let silent = args.common.quiet || args.common.no_progress || !selection.is_all();
    let progress = Progress::new(loaded.bytes(), silent);
    let add = |bytes| progress.add(bytes);
    let folded = selection.fold(&loaded, &images, &pool, &add, frames).with_context(cannot)?;
    let frames = folded.sink;
    drop(progress);
    let threads = frames.tracks.iter().flatten().count();
    let folding = frames.timeline.finish().with_context(cannot)?;
    output.commit().with_context(cannot)?;
    if !args.common.quiet {
        eprintln!("ptflow: {} slices of {threads} threads in {}", folding.slices, args.output.display());
        if let Some(said) = folding.in_words() {
            eprintln!("ptflow: {said} (--full keeps all)");
        }
    }
    Outcome {
        bytes_in: loaded.bytes(),
        ledgers: &folded.ledgers,
        streams: &loaded.stream_names(),
        unknown: &folded.unknown,
        branches: None,
        instructions: folded.instructions,
        segments: folded.units,
        threads: pool.current_num_threads(),
        folding: Some(&folding),
    }
    .tell(started, args.common.report.as_deref(), args.common.quiet)
}

/// A timeline of frames that somebody else finds: those of one invocation, for `replay`. Gives back how many slices it has.
pub fn write_frames<'n>(
    path: &Path,
    loaded: &Loaded<'_>,
    functions: &'n FunctionNames,
    find: impl FnOnce(Frames<'n>) -> io::Result<Frames<'n>>,
) -> anyhow::Result<u64> {
    let cannot = || format!("cannot write {}", path.display());
    let (format, gzip) = format_of(path)?;
    let output = SharedOutput(Rc::new(RefCell::new(Output::create(path).with_context(cannot)?)));
    let limits = Limits { slices: Some(MAX_SLICES), min_ns: 0, depth: None };
    let timeline = timeline(format, gzip.then_some(NonZeroUsize::MIN), output.clone());
    let timeline = Budget::new(timeline, limits);
    let frames = Frames::new(loaded, functions, timeline, false).and_then(find).with_context(cannot)?;
    let slices = frames.timeline.finish().with_context(cannot)?.slices;
    output.commit().with_context(cannot)?;
    Ok(slices)
}

/// The format that a file's name asks for, and whether it is to be compressed.
pub fn format_of(path: &Path) -> anyhow::Result<(Format, bool)> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let (plain, gzip) = match name.strip_suffix(".gz") {
        Some(plain) => (plain, true),
        None => (name.as_str(), false),
    };
    let format = match plain.rsplit_once('.').map(|(_, ending)| ending) {
        Some("pftrace" | "perfetto-trace") => Format::Perfetto,
        Some("json") => Format::Chrome,
        Some("txt") => Format::Text,
        None if plain == "-" => Format::Text,
        _ => {
            let usage = format!("{name}: name it .pftrace, .json or .txt, each perhaps with .gz");
            return Err(Usage(usage).into());
        }
    };
    Ok((format, gzip))
}

/// Slices that Perfetto and Chrome open with comfort.
const MAX_SLICES: u64 = 2_000_000;

fn limits(args: &ConvertArgs, format: Format) -> Limits {
    let by_default = match format {
        Format::Perfetto | Format::Chrome if !args.full => MAX_SLICES,
        _ => 0,
    };
    let slices = args.max_slices.unwrap_or(by_default);
    Limits {
        slices: (slices > 0).then_some(slices),
        min_ns: args.min_duration.unwrap_or(0),
        depth: args.max_depth.map(|depth| depth as usize),
    }
}

/// `gzip`: compressed, on so many threads.
fn timeline(format: Format, gzip: Option<NonZeroUsize>, output: SharedOutput) -> Box<dyn Timeline> {
    fn of(format: Format, out: impl Write + 'static) -> Box<dyn Timeline> {
        match format {
            Format::Perfetto => Box::new(PerfettoWriter::new(out)),
            Format::Chrome => Box::new(ChromeWriter::new(out)),
            Format::Text => Box::new(TextWriter::new(out)),
        }
    }
    let inner = match gzip {
        Some(threads) => of(format, Gzip::with_threads(output, threads)),
        None => of(format, output),
    };
    Box::new(DepthGuard::new(inner))
}

/// The output, which the format's writer and the end of the run both need.
#[derive(Clone)]
struct SharedOutput(Rc<RefCell<Output>>);

impl SharedOutput {
    /// Gives the file its name; the format's writer is gone by now.
    fn commit(self) -> io::Result<()> {
        match Rc::try_unwrap(self.0) {
            Ok(output) => output.into_inner().commit(),
            Err(_) => Err(io::Error::other("the output is still being written")),
        }
    }
}

impl Write for SharedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.borrow_mut().flush()
    }
}

/// Frames as slices on the threads' tracks.
pub struct Frames<'n> {
    timeline: Budget,
    functions: &'n FunctionNames,
    /// What images are called, by id.
    images: Vec<String>,
    names: HashMap<(FrameName, bool), Name>,
    gap_names: HashMap<LossReason, Name>,
    /// One for each stack, made when its first frame comes.
    tracks: Vec<Option<Track>>,
    stacks: Vec<StackOwner>,
    /// The tracks of holes, made when the first one comes.
    gaps: Vec<Option<Track>>,
}

impl<'n> Frames<'n> {
    /// `all` = every stream has a track, even if nothing is in it.
    fn new(
        loaded: &Loaded<'_>,
        functions: &'n FunctionNames,
        mut timeline: Budget,
        all: bool,
    ) -> io::Result<Self> {
        let capture = &loaded.capture;
        let threads = &capture.schedules.threads;
        let of_threads = threads.iter().map(|(pid, _)| *pid);
        let pids: BTreeSet<_> = loaded.streams().filter_map(|stream| stream.pid).chain(of_threads).collect();
        for pid in &pids {
            let name = capture.processes.get(*pid).map_or("", |process| process.comm.as_str());
            timeline.process(pid.0, name)?;
        }
        let stacks = call_stacks::owners(loaded);
        let streams = loaded.streams().count();
        let mut tracks = vec![None; stacks.len()];
        // A thread's stream is a thread, even if nothing is in it; of CPUs only those tracks are made that are needed.
        if all {
            for (track, owner) in tracks.iter_mut().zip(&stacks).take(streams) {
                *track = Some(timeline.thread(owner.pid, owner.tid, &owner.name)?);
            }
        }
        let images = (0..loaded.store.image_count()).map(|id| {
            let file = loaded.store.file(ImageId(id)).map_or("?", |file| file.mapped.path.as_str());
            file.rsplit('/').next().unwrap_or(file).to_owned()
        });
        Ok(Self {
            functions,
            images: images.collect(),
            names: HashMap::new(),
            gap_names: HashMap::new(),
            gaps: vec![None; tracks.len()],
            tracks,
            stacks,
            timeline,
        })
    }

    fn track(&mut self, stack: usize) -> io::Result<Track> {
        if let Some(track) = self.tracks[stack] {
            return Ok(track);
        }
        let owner = &self.stacks[stack];
        let track = self.timeline.thread(owner.pid, owner.tid, &owner.name)?;
        self.tracks[stack] = Some(track);
        Ok(track)
    }

    fn name(&mut self, frame: FrameName, inferred: bool) -> Name {
        if let Some(name) = self.names.get(&(frame, inferred)) {
            return *name;
        }
        let image = |id: ImageId| self.images.get(id.0 as usize).map_or("?", String::as_str);
        let (text, category) = match frame {
            FrameName::Function(id) => (self.functions.get(id).to_owned(), Category::Function),
            FrameName::Unnamed(CodeAddr { image: Some(id), addr }) => {
                (format!("{}+{addr:#x}", image(id)), Category::Function)
            }
            FrameName::Unnamed(CodeAddr { image: None, addr }) => (format!("{addr:#x}"), Category::Function),
            FrameName::Image(id) => (format!("[{}]", image(id)), Category::Function),
            FrameName::NoImage => ("[no image]".to_owned(), Category::Untraced),
            FrameName::Syscall => ("[syscall]".to_owned(), Category::Untraced),
            FrameName::Untraced => ("[untraced]".to_owned(), Category::Untraced),
        };
        let category = if inferred && category == Category::Function { Category::Inferred } else { category };
        let name = self.timeline.name(&text, category);
        self.names.insert((frame, inferred), name);
        name
    }
}

impl FrameSink for Frames<'_> {
    type Error = io::Error;

    fn open(&mut self, stream: usize, at: Ns, name: FrameName, inferred: bool) -> io::Result<()> {
        let name = self.name(name, inferred);
        let track = self.track(stream)?;
        self.timeline.begin(track, at.0, name)
    }

    fn close(&mut self, stream: usize, at: Ns) -> io::Result<()> {
        let track = self.track(stream)?;
        self.timeline.end(track, at.0)
    }

    fn gap(&mut self, stream: usize, from: Ns, to: Ns, reason: LossReason) -> io::Result<()> {
        let track = match self.gaps[stream] {
            Some(track) => track,
            None => {
                let of = self.track(stream)?;
                let track = self.timeline.notes(of, "trace state")?;
                self.gaps[stream] = Some(track);
                track
            }
        };
        let name = match self.gap_names.get(&reason) {
            Some(name) => *name,
            None => {
                let name = self.timeline.name(&format!("gap: {}", reason.name()), Category::Gap);
                self.gap_names.insert(reason, name);
                name
            }
        };
        self.timeline.begin(track, from.0, name)?;
        self.timeline.end(track, to.0.max(from.0))
    }
}
