//! `ptflow convert`.

use crate::args::{ConvertArgs, Usage};
use crate::call_stacks::Folded;
use crate::find_function::Functions;
use crate::frames::Frames;
use crate::load::{self, Loaded};
use crate::progress::Progress;
use crate::report::Outcome;
use crate::selection::Selection;
use crate::serve;
use anyhow::Context as _;
use ptflow_exporters::budget::{Budget, Limits};
use ptflow_exporters::chrome::ChromeWriter;
use ptflow_exporters::depth::DepthGuard;
use ptflow_exporters::gzip::Gzip;
use ptflow_exporters::output::{self, Output};
use ptflow_exporters::parts::Parts;
use ptflow_exporters::perfetto::PerfettoWriter;
use ptflow_exporters::survey::{Cuts, Seen, Survey};
use ptflow_exporters::text::TextWriter;
use ptflow_exporters::timeline::Timeline;
use ptflow_perf_import::symbols::FunctionNames;
use std::cell::RefCell;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
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
    if args.open && format == Format::Text {
        return Err(Usage(
            "--open is for timelines: name it .pftrace or .json, each perhaps with .gz".to_owned(),
        )
        .into());
    }
    let paths = match args.split {
        Some(parts) => part_paths(&args.output, parts)?,
        None => vec![args.output.clone()],
    };
    let file = load::open(&args.common)?;
    let loaded = Loaded::new(&file, &args.common)?;
    loaded.needs_trace()?;
    let pool = load::pool(&args.common)?;
    let (images, functions) = loaded.store.images_with_functions();
    let known = Functions { names: &functions, images: &images, store: &loaded.store };
    let selection = Selection::new(args, &loaded, &known, &pool)?;
    let cannot = || format!("cannot write {}", args.output.display());
    let outputs = paths.iter().map(|path| SharedOutput::create(path)).collect::<io::Result<Vec<_>>>();
    let outputs = outputs.with_context(cannot)?;
    let threads = NonZeroUsize::new(pool.current_num_threads()).unwrap_or(NonZeroUsize::MIN);
    let all = selection.is_all() && !loaded.capture.info.per_cpu;
    // Without a clock there is nothing to draw a curve over, and text has no curves.
    let curves = format != Format::Text && loaded.capture_first_pt().is_some();
    let fold = |timeline: Budget| -> io::Result<Folded<Frames<'_>>> {
        let mut frames = Frames::new(&loaded, &functions, timeline, all)?.with_inlined(selection.inlined());
        if curves {
            frames = frames.with_counters();
        }
        if args.args {
            frames = frames.with_work();
        }
        let silent = args.common.quiet || args.common.no_progress || !selection.is_all();
        let progress = Progress::new(loaded.bytes(), silent);
        selection.fold(&loaded, &images, &pool, &|bytes| progress.add(bytes), frames)
    };
    let mut limits = limits(args, format);
    let timeline: Box<dyn Timeline> = match &outputs[..] {
        [output] => timeline(format, gzip.then_some(threads), output.clone()),
        _ => {
            // Where to cut, and what there is room for, shows when all is seen: so it is looked at twice.
            let seen = Rc::new(RefCell::new(Seen::default()));
            let survey = Box::new(DepthGuard::new(Box::new(Survey::new(seen.clone()))));
            let survey = Budget::new(survey, Limits { slices: None, ..limits });
            fold(survey)?.sink.finish(&loaded)?;
            let Cuts { min_ns, at } = seen.borrow().cuts(outputs.len(), limits.slices);
            limits = Limits { slices: None, min_ns: limits.min_ns.max(min_ns), ..limits };
            let one_thread = gzip.then_some(NonZeroUsize::MIN);
            let parts = outputs.iter().map(|output| timeline(format, one_thread, output.clone()));
            Box::new(Parts::new(parts.collect(), at))
        }
    };
    let folded = fold(Budget::new(timeline, limits)).with_context(cannot)?;
    let frames = folded.sink;
    let threads = frames.threads();
    let folding = frames.finish(&loaded).with_context(cannot)?;
    commit(outputs).with_context(cannot)?;
    if !args.common.quiet {
        let slices = folding.slices;
        let files = match &paths[..] {
            [path] => path.display().to_string(),
            [first, .., last] => {
                format!("{} parts, {} to {}", paths.len(), first.display(), last.display())
            }
            [] => String::new(),
        };
        eprintln!("ptflow: {slices} slices of {threads} threads in {files}");
        if let Some(said) = folding.in_words() {
            eprintln!("ptflow: {said} (--full keeps all that viewers show)");
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
    .tell(started, args.common.report.as_deref(), args.common.quiet)?;
    if args.open { serve::serve(&args.output, args.port) } else { Ok(()) }
}

/// A timeline of frames that somebody else finds: those of one invocation, for `replay`. Gives back how many slices it has.
pub fn write_frames<'n>(
    path: &Path,
    loaded: &'n Loaded<'_>,
    functions: &'n FunctionNames,
    find: impl FnOnce(Frames<'n>) -> io::Result<Frames<'n>>,
) -> anyhow::Result<u64> {
    let cannot = || format!("cannot write {}", path.display());
    let (format, gzip) = format_of(path)?;
    let output = SharedOutput::create(path).with_context(cannot)?;
    let limits = Limits { slices: Some(MAX_SLICES), min_ns: 0, depth: None };
    let timeline = timeline(format, gzip.then_some(NonZeroUsize::MIN), output.clone());
    let timeline = Budget::new(timeline, limits);
    let frames = Frames::new(loaded, functions, timeline, false).and_then(find).with_context(cannot)?;
    let slices = frames.finish(loaded).with_context(cannot)?.slices;
    commit(vec![output]).with_context(cannot)?;
    Ok(slices)
}

/// What the files of a timeline in parts are called: `out.2-of-5.pftrace`. The set's size is in every name, so that a set
/// of another size beside it is not taken for more of it.
fn part_paths(path: &Path, parts: u16) -> anyhow::Result<Vec<PathBuf>> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let Some(at) = name.strip_suffix(".gz").unwrap_or(&name).rfind('.') else {
        return Err(Usage("--split writes files: name them with -o, as out.pftrace.gz".to_owned()).into());
    };
    let (stem, ending) = name.split_at(at);
    let digits = parts.to_string().len();
    let named = |part| path.with_file_name(format!("{stem}.{part:0digits$}-of-{parts}{ending}"));
    Ok((1..=parts).map(named).collect())
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
    fn create(path: &Path) -> io::Result<Self> {
        Ok(Self(Rc::new(RefCell::new(Output::create(path)?))))
    }
}

/// Gives the files their names; the formats' writers are gone by now.
fn commit(outputs: Vec<SharedOutput>) -> io::Result<()> {
    let written = outputs.into_iter().map(|output| match Rc::try_unwrap(output.0) {
        Ok(output) => Ok(output.into_inner()),
        Err(_) => Err(io::Error::other("the output is still being written")),
    });
    output::commit_all(written.collect::<io::Result<_>>()?)
}

impl Write for SharedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.borrow_mut().flush()
    }
}
