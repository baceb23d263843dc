//! `ptflow calls`: every invocation of a function.

use crate::args::{CallsArgs, Usage};
use crate::call_stacks::{self, StackOwner};
use crate::find_function::Functions;
use crate::find_invocations::{What, find_invocations};
use crate::histogram;
use crate::index;
use crate::load::{self, Loaded};
use crate::off_cpu::OffCpu;
use crate::progress::Progress;
use crate::report::Outcome;
use anyhow::Context as _;
use ptflow_decoder::image::FunctionId;
use ptflow_decoder::jobs::between::Marker;
use ptflow_decoder::jobs::invocations::{Begin, Durations, End, Invocation, Recursion, Slowest};
use ptflow_decoder::units::Ns;
use ptflow_exporters::output::Output;
use ptflow_perf_import::symbols::FunctionNames;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
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
        writeln!(out, "function,tid,start_ns,duration_ns,instructions,begin,end,untraced_ns,off_cpu_ns")
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
    let summary = Summary::new(args, figures, &names, &known, &wanted, is_ns);
    if args.json {
        serde_json::to_writer_pretty(&mut out, &summary).with_context(cannot)?;
        writeln!(out).with_context(cannot)?;
    } else if !args.csv {
        summary.write(&mut out).with_context(cannot)?;
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
struct Names<'n> {
    loaded: &'n Loaded<'n>,
    functions: &'n FunctionNames,
    owners: Vec<StackOwner>,
    off_cpu: OffCpu,
}

impl Names<'_> {
    fn tid(&self, invocation: &Invocation) -> u32 {
        self.owners.get(invocation.stack).map_or(0, |owner| owner.tid)
    }

    fn thread(&self, invocation: &Invocation) -> &str {
        self.owners.get(invocation.stack).map_or("", |owner| &owner.name)
    }

    fn function(&self, invocation: &Invocation) -> String {
        match invocation.value {
            Some(value) => format!("PTWRITE {value:#x}"),
            None => self.functions.get(invocation.function).to_owned(),
        }
    }

    fn off_cpu(&self, invocation: &Invocation) -> Option<u64> {
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
        writeln!(out, "{name},{tid},{start},{duration},{instructions},{began},{ended},{untraced},{off_cpu}")
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

/// What is kept of all invocations.
struct Figures {
    /// Invocations that began, by function.
    begun: BTreeMap<FunctionId, u64>,
    threads: BTreeSet<usize>,
    durations: Durations,
    slowest: Slowest,
    cut: CutOff,
}

/// Invocations whose beginning or end is not known. One that spans its thread's whole trace is in two of these.
#[derive(Serialize, Clone, Copy, Default)]
struct CutOff {
    open_at_start: u64,
    open_at_end: u64,
    begin_in_gap: u64,
    end_in_gap: u64,
}

impl Figures {
    fn new(top: usize) -> Self {
        Self {
            begun: BTreeMap::new(),
            threads: BTreeSet::new(),
            durations: Durations::default(),
            slowest: Slowest::new(top),
            cut: CutOff::default(),
        }
    }

    fn add(&mut self, invocation: Invocation) {
        self.cut.open_at_start += u64::from(invocation.began == Begin::BeforeTrace);
        self.cut.begin_in_gap += u64::from(invocation.began == Begin::InGap);
        self.cut.open_at_end += u64::from(invocation.ended == End::AfterTrace);
        self.cut.end_in_gap += u64::from(invocation.ended == End::InGap);
        if invocation.began == Begin::Seen {
            *self.begun.entry(invocation.function).or_default() += 1;
            self.threads.insert(invocation.stack);
        }
        if invocation.is_complete() {
            self.durations.add(invocation.duration());
            self.slowest.add(invocation);
        }
    }
}

/// The result, as `--json` has it.
#[derive(Serialize)]
struct Summary {
    /// As it was asked for.
    function: String,
    /// Invocations that began in the trace.
    count: u64,
    /// Those whose end was seen, too: the figures are of these.
    complete: u64,
    #[serde(flatten)]
    cut: CutOff,
    threads: usize,
    /// What times are in: `ns`, or `ticks` where the capture does not say what a tick is.
    clock: &'static str,
    ns: Option<Ranks>,
    functions: Vec<OfFunction>,
    slowest: Vec<Slow>,
    #[serde(skip)]
    durations: Durations,
}

#[derive(Serialize)]
struct Ranks {
    min: u64,
    p50: u64,
    p90: u64,
    p99: u64,
    #[serde(rename = "p99.9")]
    p999: u64,
    max: u64,
}

impl Ranks {
    fn of(durations: &Durations) -> Option<Self> {
        let rank = |p| durations.permille(p).map(|ns| ns.0);
        let (min, p50, p90) = (rank(0)?, rank(500)?, rank(900)?);
        Some(Self { min, p50, p90, p99: rank(990)?, p999: rank(999)?, max: rank(1000)? })
    }
}

#[derive(Serialize)]
struct OfFunction {
    name: String,
    count: u64,
    /// Where it is, where several have the same name.
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<String>,
}

#[derive(Serialize)]
struct Slow {
    tid: u32,
    thread: String,
    function: String,
    start_ns: u64,
    duration_ns: u64,
    instructions: u64,
    /// Time in it without trace.
    untraced_ns: u64,
    /// Of that, time off CPU, where the capture tells it.
    off_cpu_ns: Option<u64>,
}

impl Summary {
    fn new(
        args: &CallsArgs,
        figures: Figures,
        names: &Names<'_>,
        known: &Functions<'_>,
        wanted: &[FunctionId],
        is_ns: bool,
    ) -> Self {
        let name = |id: FunctionId| names.functions.get(id).to_owned();
        let mut same_name: BTreeMap<&str, u32> = BTreeMap::new();
        wanted.iter().for_each(|id| *same_name.entry(names.functions.get(*id)).or_default() += 1);
        let ambiguous = same_name.values().any(|count| *count > 1);
        let homes = if ambiguous { known.homes() } else { HashMap::new() };
        let place = |id: &FunctionId| {
            let home = homes.get(id).filter(|_| same_name.get(names.functions.get(*id)) > Some(&1))?;
            Some(format!("{}+{}", home.file, home.start))
        };
        let count_of = |id: &FunctionId| figures.begun.get(id).copied().unwrap_or(0);
        let mut functions: Vec<OfFunction> = wanted
            .iter()
            .map(|id| OfFunction { name: name(*id), count: count_of(id), place: place(id) })
            .collect();
        functions.sort_by(|a, b| {
            b.count.cmp(&a.count).then_with(|| (&a.name, &a.place).cmp(&(&b.name, &b.place)))
        });
        let slow = |invocation: Invocation| Slow {
            tid: names.tid(&invocation),
            thread: names.thread(&invocation).to_owned(),
            function: names.function(&invocation),
            start_ns: invocation.start.0,
            duration_ns: invocation.duration().0,
            instructions: invocation.instructions,
            untraced_ns: invocation.untraced.0,
            off_cpu_ns: names.off_cpu(&invocation),
        };
        Self {
            function: title(args),
            count: figures.begun.values().sum(),
            complete: figures.durations.count(),
            cut: figures.cut,
            threads: figures.threads.len(),
            clock: if is_ns { "ns" } else { "ticks" },
            ns: Ranks::of(&figures.durations),
            functions,
            slowest: figures.slowest.into_sorted().into_iter().map(slow).collect(),
            durations: figures.durations,
        }
    }

    /// For people.
    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let time = |ns: Ns| if self.clock == "ns" { duration(ns.0) } else { format!("{} ticks", ns.0) };
        writeln!(out, "{}: {}", self.function, self.how_many())?;
        self.write_functions(out)?;
        for (count, what) in self.cut_off() {
            writeln!(out, "  not in the figures: {count} {what}")?;
        }
        let Some(ranks) = &self.ns else { return Ok(()) };
        writeln!(out)?;
        let ranks = [
            ("min", ranks.min),
            ("p50", ranks.p50),
            ("p90", ranks.p90),
            ("p99", ranks.p99),
            ("p99.9", ranks.p999),
            ("max", ranks.max),
        ];
        let heads: String = ranks.iter().map(|(head, _)| format!("{head:>12}")).collect();
        let values: String = ranks.iter().map(|(_, ns)| format!("{:>12}", time(Ns(*ns)))).collect();
        writeln!(out, "{heads}\n{values}\n")?;
        if self.complete > 1 {
            histogram::draw(out, &self.durations, |ns| bound(&time(ns)))?;
            writeln!(out)?;
        }
        self.write_slowest(out, time)
    }

    fn how_many(&self) -> String {
        let threads =
            if self.threads == 1 { "1 thread".to_owned() } else { format!("{} threads", self.threads) };
        match self.count {
            // What was inlined has no call: nothing tells it from its caller.
            0 if self.functions.is_empty() => "none in this trace".to_owned(),
            0 => "never entered in this trace (inlined copies cannot be counted)".to_owned(),
            1 => format!("1 invocation in {threads}"),
            count => format!("{count} invocations in {threads}"),
        }
    }

    fn write_functions(&self, out: &mut impl Write) -> io::Result<()> {
        const MOST: usize = 20;
        match &self.functions[..] {
            [only] if only.name == self.function => return Ok(()),
            _ => {}
        }
        let called = self.functions.iter().take_while(|function| function.count > 0).count();
        for OfFunction { name, count, place } in self.functions.iter().take(called.min(MOST)) {
            let place = place.as_ref().map_or(String::new(), |place| format!("  ({place})"));
            writeln!(out, "  {count:>10}  {name}{place}")?;
        }
        if called > MOST {
            writeln!(out, "  {:>10}  and {} more functions", "", called - MOST)?;
        }
        if called < self.functions.len() {
            writeln!(
                out,
                "  {:>10}  {} more functions of such a name",
                "never",
                self.functions.len() - called
            )?;
        }
        Ok(())
    }

    fn cut_off(&self) -> impl Iterator<Item = (u64, &'static str)> {
        let CutOff { open_at_start, open_at_end, begin_in_gap, end_in_gap } = self.cut;
        [
            (open_at_start, "going on when the thread's trace began"),
            (open_at_end, "going on when the thread's trace ended"),
            (begin_in_gap, "going on behind a gap in the trace"),
            (end_in_gap, "going on when a gap in the trace began"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
    }

    fn write_slowest(&self, out: &mut impl Write, time: impl Fn(Ns) -> String) -> io::Result<()> {
        if self.slowest.is_empty() {
            return Ok(());
        }
        // One function needs no column.
        let several = self.functions.iter().filter(|function| function.count > 0).count() > 1;
        let start = |ns: u64| match self.clock {
            "ns" => format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000),
            _ => ns.to_string(),
        };
        let width = self.slowest.iter().map(|slow| start(slow.start_ns).len()).max().unwrap_or(0).max(5);
        // What is nowhere needs no column.
        let untraced = self.slowest.iter().any(|slow| slow.untraced_ns > 0);
        let off_cpu = self.slowest.iter().any(|slow| slow.off_cpu_ns.is_some());
        let column = |shown: bool, text: String| if shown { format!("{text:>12}") } else { String::new() };
        let heads = column(untraced, "untraced".to_owned()) + &column(off_cpu, "off CPU".to_owned());
        writeln!(out, "  {:>width$}    duration{heads}  instructions  thread", "start")?;
        for slow in &self.slowest {
            let Slow { tid, thread, instructions, .. } = slow;
            let off = slow.off_cpu_ns.map_or("-".to_owned(), |ns| time(Ns(ns)));
            let more = column(untraced, time(Ns(slow.untraced_ns))) + &column(off_cpu, off);
            let (start, took) = (start(slow.start_ns), time(Ns(slow.duration_ns)));
            let function = if several { format!("  {}", slow.function) } else { String::new() };
            writeln!(out, "  {start:>width$}{took:>12}{more}  {instructions:>12}  {tid} {thread}{function}")?;
        }
        Ok(())
    }
}

/// A duration in the unit that suits it.
fn duration(ns: u64) -> String {
    let (unit, name) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (1_000, "µs"),
        1_000_000..1_000_000_000 => (1_000_000, "ms"),
        _ => (1_000_000_000, "s"),
    };
    // Whole thousandths, cut off: 999.9996 µs is not 1000.000 µs.
    format!("{}.{:03} {name}", ns / unit, ns % unit / (unit / 1000))
}

/// A bound of the histogram: a round number, without zeros behind the point.
fn bound(text: &str) -> String {
    match text.split_once(' ') {
        Some((number, unit)) if number.contains('.') => {
            format!("{} {unit}", number.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        let all = [0, 999, 1_000, 999_999, 1_000_000, 61_000_000_000].map(duration);
        assert_eq!(all, ["0 ns", "999 ns", "1.000 µs", "999.999 µs", "1.000 ms", "61.000 s"]);
        assert_eq!(["100 ns", "1.500 µs", "10.000 ms"].map(bound), ["100 ns", "1.5 µs", "10 ms"]);
    }
}
