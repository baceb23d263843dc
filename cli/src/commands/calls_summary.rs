//! What `ptflow calls` says: figures of all invocations, for people and as JSON.

use super::calls::Names;
use crate::find_function::Functions;
use crate::histogram;
use crate::index;
use crate::terminal::Terminal;
use ptflow_decoder::image::FunctionId;
use ptflow_decoder::jobs::invocations::{Begin, Durations, End, Invocation, Slowest};
use ptflow_decoder::units::Ns;
use ptflow_exporters::call_tree::{count, cut, duration, ipc};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Write};

/// What is kept of all invocations.
pub struct Figures {
    /// Invocations that began, by function.
    begun: BTreeMap<FunctionId, u64>,
    threads: BTreeSet<usize>,
    durations: Durations,
    slowest: Slowest,
    cut: CutOff,
    /// Of those cut off, the ones that were seen longest.
    longest_cut: Slowest,
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
    /// Lists so many of the slowest, and of those cut off.
    pub fn new(top: usize) -> Self {
        Self {
            begun: BTreeMap::new(),
            threads: BTreeSet::new(),
            durations: Durations::default(),
            slowest: Slowest::new(top),
            cut: CutOff::default(),
            longest_cut: Slowest::new(top),
        }
    }

    /// One more.
    pub fn add(&mut self, invocation: Invocation) {
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
        } else {
            self.longest_cut.add(invocation);
        }
    }
}

/// The result, as `--json` has it.
#[derive(Serialize)]
pub struct Summary {
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
    /// Those that a gap or an end of the trace cuts off and that were seen longest: in no figure.
    cut_off: Vec<CutSlow>,
    /// Where nothing is: functions of names like this one's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    near: Vec<String>,
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
    /// Core cycles of traced code in it, and instructions per cycle, where the trace has cycles.
    cycles: Option<u64>,
    ipc: Option<f64>,
    /// Time in it without trace.
    untraced_ns: u64,
    /// Of that, time off CPU, where the capture tells it.
    off_cpu_ns: Option<u64>,
}

/// One that is cut off, as far as it was seen.
#[derive(Serialize)]
struct CutSlow {
    #[serde(flatten)]
    seen: Slow,
    begin: &'static str,
    end: &'static str,
}

impl Summary {
    /// Of all; `function` is what was asked for, in words.
    pub fn new(
        function: String,
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
            cycles: invocation.cycles,
            ipc: ipc(invocation.instructions, invocation.cycles).and_then(|ipc| ipc.parse().ok()),
            untraced_ns: invocation.untraced.0,
            off_cpu_ns: names.off_cpu(&invocation),
        };
        let cut_off = |invocation: Invocation| CutSlow {
            begin: index::began(invocation.began),
            end: index::ended(invocation.ended),
            seen: slow(invocation),
        };
        let any = figures.durations.count() > 0 || !figures.begun.is_empty();
        Self {
            near: if any { Vec::new() } else { known.near(wanted) },
            cut_off: figures.longest_cut.into_sorted().into_iter().map(cut_off).collect(),
            function,
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
    pub fn write(&self, out: &mut impl Write, terminal: Terminal) -> io::Result<()> {
        let Terminal { width, paint, .. } = terminal;
        let time = |ns: Ns| if self.clock == "ns" { duration(ns.0) } else { format!("{} ticks", ns.0) };
        writeln!(out, "{}: {}", paint.bold(&self.function), self.how_many())?;
        self.write_functions(out, width)?;
        for (count, what) in self.cut_off() {
            writeln!(out, "  not in the figures: {count} {what}")?;
        }
        if let Some(CutSlow { seen: Slow { tid, thread, start_ns, duration_ns, .. }, .. }) =
            self.cut_off.first()
        {
            let longest =
                if self.cut_off.len() == 1 { "seen for" } else { "the longest of these was seen for" };
            let (seen, start) = (time(Ns(*duration_ns)), self.start(*start_ns));
            writeln!(out, "    {longest} {seen}, from {start}, thread {tid} {thread}")?;
        }
        if !self.near.is_empty() {
            writeln!(out, "  names like it: {}", self.near.join(", "))?;
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
        writeln!(out, "{}\n{values}\n", paint.dim(&heads))?;
        if self.complete > 1 {
            histogram::draw(out, &self.durations, width, |ns| bound(&time(ns)))?;
            writeln!(out)?;
        }
        self.write_slowest(out, time, terminal)
    }

    /// A time as `replay --at` reads it.
    fn start(&self, ns: u64) -> String {
        match self.clock {
            "ns" => format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000),
            _ => ns.to_string(),
        }
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

    fn write_functions(&self, out: &mut impl Write, width: usize) -> io::Result<()> {
        const MOST: usize = 20;
        match &self.functions[..] {
            [only] if only.name == self.function => return Ok(()),
            _ => {}
        }
        let called = self.functions.iter().take_while(|function| function.count > 0).count();
        for OfFunction { name, count, place } in self.functions.iter().take(called.min(MOST)) {
            let place = place.as_ref().map_or(String::new(), |place| format!("  ({place})"));
            let name = cut(name, width.saturating_sub(14 + place.chars().count()).max(20));
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

    fn write_slowest(
        &self,
        out: &mut impl Write,
        time: impl Fn(Ns) -> String,
        terminal: Terminal,
    ) -> io::Result<()> {
        if self.slowest.is_empty() {
            return Ok(());
        }
        // One function needs no column.
        let several = self.functions.iter().filter(|function| function.count > 0).count() > 1;
        let start = |ns: u64| self.start(ns);
        let width = self.slowest.iter().map(|slow| start(slow.start_ns).len()).max().unwrap_or(0).max(5);
        // What is nowhere needs no column.
        let untraced = self.slowest.iter().any(|slow| slow.untraced_ns > 0);
        let off_cpu = self.slowest.iter().any(|slow| slow.off_cpu_ns.is_some());
        let cycles = self.slowest.iter().any(|slow| slow.cycles.is_some());
        let column = |shown: bool, text: String| if shown { format!("{text:>12}") } else { String::new() };
        let ratio = |text: &str| if cycles { format!("{text:>6}") } else { String::new() };
        let heads = column(untraced, "untraced".to_owned()) + &column(off_cpu, "off CPU".to_owned());
        let head = format!("  {:>width$}    duration{heads}  instructions{}  thread", "start", ratio("IPC"));
        writeln!(out, "{}", terminal.paint.dim(&head))?;
        for slow in &self.slowest {
            let Slow { tid, thread, instructions, .. } = slow;
            let off = slow.off_cpu_ns.map_or("-".to_owned(), |ns| time(Ns(ns)));
            let more = column(untraced, time(Ns(slow.untraced_ns))) + &column(off_cpu, off);
            let (start, took) = (start(slow.start_ns), time(Ns(slow.duration_ns)));
            let ipc = ratio(&ipc(*instructions, slow.cycles).unwrap_or_default());
            let figures = format!("  {start:>width$}{took:>12}{more}{:>14}{ipc}  ", count(*instructions));
            let function = if several { format!("  {}", slow.function) } else { String::new() };
            let room = terminal.width.saturating_sub(figures.chars().count()).max(20);
            writeln!(out, "{figures}{}", cut(&format!("{tid} {thread}{function}"), room))?;
        }
        Ok(())
    }
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
    fn bounds_are_round() {
        assert_eq!(["100 ns", "1.500 µs", "10.000 ms"].map(bound), ["100 ns", "1.5 µs", "10 ms"]);
    }
}
