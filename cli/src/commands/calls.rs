//! `ptflow calls`: every invocation of a function.

use super::calls_summary::{Figures, Summary};
use crate::args::{CallsArgs, Usage};
use crate::call_stacks::{self, StackOwner};
use crate::find_function::Functions;
use crate::find_invocations::{What, find_invocations};
use crate::index;
use crate::load::{self, Loaded};
use crate::off_cpu::OffCpu;
use crate::progress::Progress;
use crate::report::Outcome;
use crate::terminal::Terminal;
use anyhow::Context as _;
use ptflow_decoder::image::FunctionId;
use ptflow_decoder::jobs::between::Marker;
use ptflow_decoder::jobs::invocations::{Invocation, Recursion};
use ptflow_exporters::output::Output;
use ptflow_perf_import::symbols::FunctionNames;
use std::io::{self, BufWriter, Write};
use std::time::Instant;

/// Runs the verb.
pub fn run(args: &CallsArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    let file = load::open(&args.common)?;
    let loaded = Loaded::new(&file, &args.common)?;
    loaded.needs_trace()?;
    let pool = load::pool(&args.common)?;
    let (images, functions) = loaded.store.images_with_functions();
    let known = Functions { names: &functions, images: &images, store: &loaded.store };
    let (what, wanted) = what(args, &known)?;
    if loaded.capture.config.time.is_none() && !args.common.quiet {
        eprintln!(
            "ptflow: the capture does not say how its clock becomes nanoseconds: times are ticks of the TSC, \
             or instructions where the trace has no time"
        );
    }
    let cannot = || format!("cannot write {}", args.output.display());
    let mut out = BufWriter::new(Output::create(&args.output).with_context(cannot)?);
    let names = Names {
        loaded: &loaded,
        functions: &functions,
        owners: call_stacks::owners(&loaded),
        off_cpu: OffCpu::of(&loaded.capture),
    };
    let cannot_index =
        || args.index.as_ref().map_or_else(String::new, |path| format!("cannot write {}", path.display()));
    let index = args.index.as_ref().map(|path| anyhow::Ok(BufWriter::new(Output::create(path)?)));
    let mut index = index.transpose().with_context(cannot_index)?;
    if let Some(index) = &mut index {
        index::head(index, &loaded.told_by()).with_context(cannot_index)?;
    }
    let mut figures = Figures::new(args.top);
    if args.csv {
        writeln!(
            out,
            "function,tid,start_ns,duration_ns,instructions,begin,end,untraced_ns,off_cpu_ns,cycles"
        )
        .with_context(cannot)?;
    }
    let take = |invocation: Invocation| {
        figures.add(invocation);
        if let Some(index) = &mut index {
            names.index(index, &invocation).with_context(cannot_index)?;
        }
        if args.csv { names.csv(&mut out, &invocation).with_context(cannot) } else { Ok(()) }
    };
    let progress = Progress::new(loaded.bytes(), args.common.quiet || args.common.no_progress);
    let add = |bytes| progress.add(bytes);
    let folded = find_invocations(&loaded, &images, &pool, &add, &what, take)?;
    drop(progress);
    let is_ns = loaded.capture.config.time.is_some();
    let summary = Summary::new(title(args), figures, &names, &known, &wanted, is_ns);
    if args.json {
        serde_json::to_writer_pretty(&mut out, &summary).with_context(cannot)?;
        writeln!(out).with_context(cannot)?;
    } else if !args.csv {
        summary.write(&mut out, Terminal::of(&args.output)).with_context(cannot)?;
    }
    for (out, cannot) in [(Some(out), &cannot as &dyn Fn() -> String), (index, &cannot_index)] {
        let Some(out) = out else { continue };
        let output = out.into_inner().map_err(io::IntoInnerError::into_error).with_context(cannot)?;
        output.commit().with_context(cannot)?;
    }
    Outcome {
        folding: None,
        bytes_in: loaded.bytes(),
        ledgers: &folded.ledgers,
        streams: &loaded.stream_names(),
        unknown: &folded.unknown,
        branches: None,
        instructions: folded.instructions,
        segments: folded.units,
        threads: pool.current_num_threads(),
    }
    .tell(started, args.common.report.as_deref(), args.common.quiet)
}

/// What is to be found, and the functions that begin it.
fn what(args: &CallsArgs, known: &Functions<'_>) -> anyhow::Result<(What, Vec<FunctionId>)> {
    let find = |names: &[String]| known.find_all(names, args.which.regex);
    if let [begin, end] = &args.between[..] {
        let begin = find(std::slice::from_ref(begin))?;
        let end = find(std::slice::from_ref(end))?;
        return Ok((What::Between(Marker::Functions(begin.clone()), Marker::Functions(end)), begin));
    }
    if let Some(value) = args.ptwrite {
        return Ok((What::Between(Marker::Value(value), Marker::Value(None)), Vec::new()));
    }
    if args.which.function.is_empty() {
        return Err(
            Usage("what is to be counted? --function NAME, --between A B or --ptwrite".to_owned()).into()
        );
    }
    let wanted = find(&args.which.function)?;
    let recursion = if args.which.recursive { Recursion::All } else { Recursion::Outermost };
    Ok((What::Functions(wanted.clone(), recursion), wanted))
}

/// What was asked for, in words.
fn title(args: &CallsArgs) -> String {
    match (&args.between[..], args.ptwrite) {
        ([begin, end], _) => format!("from {begin} to {end}"),
        (_, Some(None)) => "from PTWRITE to PTWRITE".to_owned(),
        (_, Some(Some(value))) => format!("from PTWRITE {value:#x} to the next PTWRITE"),
        _ => args.which.function.join(", "),
    }
}

/// What functions and threads are called.
pub struct Names<'n> {
    loaded: &'n Loaded<'n>,
    /// What functions are called.
    pub functions: &'n FunctionNames,
    owners: Vec<StackOwner>,
    off_cpu: OffCpu,
}

impl Names<'_> {
    /// Its thread.
    pub fn tid(&self, invocation: &Invocation) -> u32 {
        self.owners.get(invocation.stack).map_or(0, |owner| owner.tid)
    }

    /// Its thread's name.
    pub fn thread(&self, invocation: &Invocation) -> &str {
        self.owners.get(invocation.stack).map_or("", |owner| &owner.name)
    }

    /// What was called, or the value that began it.
    pub fn function(&self, invocation: &Invocation) -> String {
        match invocation.value {
            Some(value) => format!("PTWRITE {value:#x}"),
            None => self.functions.get(invocation.function).to_owned(),
        }
    }

    /// Time in it off CPU, where the capture tells it.
    pub fn off_cpu(&self, invocation: &Invocation) -> Option<u64> {
        self.off_cpu.between(self.tid(invocation), invocation.start.0, invocation.end.0)
    }

    /// One line; the words in it say whether begin and end were seen.
    fn csv(&self, out: &mut impl Write, invocation: &Invocation) -> io::Result<()> {
        let name = self.function(invocation);
        // RFC 4180: quotes where a name holds commas or quotes, as those of C++ do.
        let name =
            if name.contains([',', '"', '\n']) { format!("\"{}\"", name.replace('"', "\"\"")) } else { name };
        let (began, ended) = (index::began(invocation.began), index::ended(invocation.ended));
        let (tid, start, duration) = (self.tid(invocation), invocation.start.0, invocation.duration().0);
        let (instructions, untraced) = (invocation.instructions, invocation.untraced.0);
        let off_cpu = self.off_cpu(invocation).map_or(String::new(), |ns| ns.to_string());
        let cycles = invocation.cycles.map_or(String::new(), |cycles| cycles.to_string());
        write!(out, "{name},{tid},{start},{duration},{instructions},{began},{ended},{untraced},{off_cpu}")?;
        writeln!(out, ",{cycles}")
    }

    fn index(&self, out: &mut impl Write, invocation: &Invocation) -> io::Result<()> {
        let at = invocation.unit.map(|(stream, from)| self.loaded.offset(stream, from));
        let name = match invocation.value {
            Some(value) => format!("PTWRITE {value:#x}"),
            None => self.functions.raw(invocation.function).to_owned(),
        };
        index::write(out, &name, self.tid(invocation), invocation, at)
    }
}
