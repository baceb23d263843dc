//! The decoder under test: every engine, any size of unit, any number of threads, the stream in any pieces.

use super::program::{Image, Program};
use super::rng::Rng;
use super::scenario::Scenario;
use super::truth::{Row, Rows, What};
use ptflow_decoder::config::PtConfig;
use ptflow_decoder::graph::Graph;
use ptflow_decoder::image::{
    AddressSpace, AddressSpaces, CodeImage, CodeRegion, FunctionId, FunctionRange, FunctionRole, Images,
    Mapping,
};
use ptflow_decoder::jobs::branches::{BranchList, Line};
use ptflow_decoder::jobs::calls::{
    CallStacks, CallSteps, Cut, FrameName, FrameSink, InlineSteps, InlinedCode, InlinedId, UnitSteps,
};
use ptflow_decoder::jobs::invocations::{Invocation, Invocations, Recursion};
use ptflow_decoder::ledger::{Ledger, LossReason};
use ptflow_decoder::profile::CodeAddr;
use ptflow_decoder::run::{self, Options};
use ptflow_decoder::sink::{Branch, Event, Leave, Mark, Run, Sink};
use ptflow_decoder::stream::{Break, Piece, TraceStream};
use ptflow_decoder::units::{AuxOffset, ImageId, Ip, Ns, Svma, Tsc};
use ptflow_decoder::walk::{Context, Engine};
use std::sync::{Arc, LazyLock};

/// Pools that all tests of a binary share.
static POOLS: LazyLock<[rayon::ThreadPool; 3]> = LazyLock::new(|| {
    [1, 2, 7].map(|threads| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started")
    })
});

/// Every engine.
pub const ENGINES: [Engine; 9] = [
    Engine::Careful,
    Engine::Fast,
    Engine::Interrupted(1),
    Engine::Interrupted(2),
    Engine::Interrupted(3),
    Engine::Interrupted(4),
    Engine::Interrupted(5),
    Engine::Interrupted(6),
    Engine::Interrupted(7),
];

/// How to decode.
#[derive(Clone, Copy, Debug)]
pub struct How {
    pub engine: Engine,
    pub unit_bytes: usize,
    /// Index of a pool: 1, 2 or 7 threads.
    pub pool: usize,
}

impl How {
    pub fn random(engine: Engine, rng: &mut Rng) -> Self {
        let unit_bytes = *rng.pick(&[1, 50, 300, 2000, 2 << 20]);
        Self { engine, unit_bytes, pool: rng.below(3) }
    }
}

/// Steps as they are, and every point in time that packets gave.
#[derive(Clone, Default)]
struct AllTimes(CallSteps);

impl Sink for AllTimes {
    const CLOCK: bool = true;
    const RUNS: bool = true;

    fn run(&mut self, run: Run<'_>, mark: Mark) {
        self.0.run(run, mark);
    }

    fn branch(&mut self, branch: &Branch, mark: Mark) {
        self.0.branch(branch, mark);
    }

    fn event(&mut self, event: Event, mark: Mark) {
        self.0.event(event, mark);
    }

    fn finish(&mut self, graph: &mut Graph) {
        self.0.finish(graph);
    }
}

/// Everything that a sink of frames is told.
#[derive(Default)]
struct FrameLog(Vec<Told>);

#[derive(PartialEq, Debug)]
enum Told {
    Open(Ns, FrameName, bool),
    Close(Ns),
    Cut(Ns, Cut),
    Executed(u64),
    Cycles(u64),
    Ratio(Ns, u8),
    Gap(Ns, Ns, LossReason),
}

impl FrameSink for FrameLog {
    type Error = ();
    const CYCLES: bool = true;

    fn open(&mut self, _: usize, at: Ns, name: FrameName, inferred: bool) -> Result<(), ()> {
        self.0.push(Told::Open(at, name, inferred));
        Ok(())
    }

    fn close(&mut self, _: usize, at: Ns) -> Result<(), ()> {
        self.0.push(Told::Close(at));
        Ok(())
    }

    fn cut(&mut self, _: usize, at: Ns, why: Cut) -> Result<(), ()> {
        self.0.push(Told::Cut(at, why));
        Ok(())
    }

    fn executed(&mut self, _: usize, instructions: u64) {
        self.0.push(Told::Executed(instructions));
    }

    fn cycles(&mut self, _: usize, cycles: u64) {
        self.0.push(Told::Cycles(cycles));
    }

    fn ratio(&mut self, _: usize, at: Ns, ratio: u8) -> Result<(), ()> {
        self.0.push(Told::Ratio(at, ratio));
        Ok(())
    }

    fn gap(&mut self, _: usize, from: Ns, to: Ns, reason: LossReason) -> Result<(), ()> {
        self.0.push(Told::Gap(from, to, reason));
        Ok(())
    }
}

/// Code of which every other stripe of some bytes is inlined, and every fourth within the one before it.
struct Stripes;

impl InlinedCode for Stripes {
    fn at(&self, code: CodeAddr) -> Option<InlinedId> {
        let number = (code.addr / 8) as u32;
        Some(InlinedId { image: code.image?, number }).filter(|_| number % 2 == 1)
    }

    fn around(&self, inner: InlinedId) -> Option<InlinedId> {
        let number = inner.number.checked_sub(2)?;
        (inner.number % 4 == 3).then_some(InlinedId { number, ..inner })
    }
}

/// What a profile run gave.
#[derive(Clone, PartialEq, Debug)]
pub struct Profile {
    pub rows: Rows,
    pub instructions: u64,
    pub ledgers: Vec<Ledger>,
}

/// What an ordered run gave.
#[derive(Clone, PartialEq, Debug)]
pub struct Flow {
    /// Ordinals from the stream's start on. A fall-through that the graph counted has no address.
    pub log: Vec<(u64, Seen)>,
    /// Offsets at which units begin.
    pub units: Vec<usize>,
    pub ledgers: Vec<Ledger>,
    pub instructions: u64,
    /// The timelines of all units, as text.
    pub times: Vec<String>,
}

/// Something that the walker reported.
#[derive(Clone, PartialEq, Debug)]
pub enum Seen {
    What(What),
    /// A conditional branch fell through.
    NotTaken,
}

/// One process' memory and how it was traced.
pub struct Subject<'m> {
    pub images: Images<'m>,
    pub spaces: AddressSpaces,
    pub config: PtConfig,
}

impl<'m> Subject<'m> {
    /// The program as it lies in memory; `keep` says whether an image's file is there.
    pub fn new(program: &'m Program, config: &PtConfig, keep: impl Fn(usize) -> bool) -> Self {
        let mut images = Images::default();
        for (index, image) in program.images.iter().enumerate() {
            let region = CodeRegion { start: Svma(image.svma), bytes: &image.bytes };
            let code = if keep(index) { CodeImage::new(vec![region]) } else { CodeImage::default() };
            images.push(code.with_functions(functions(image, index)));
        }
        Self { images, spaces: AddressSpaces::constant(space(program)), config: config.clone() }
    }

    /// All programs of a recording, one after the other in the same memory; the last one has all images.
    pub fn over_time(scenario: &'m Scenario) -> Self {
        let last = scenario.later.last().map_or(&scenario.program, |later| &later.1);
        let first = [(Tsc(0), space(&scenario.program))];
        let later = scenario.later.iter().map(|(since, program)| (Tsc(*since), space(program)));
        let spaces = AddressSpaces::new(first.into_iter().chain(later).collect());
        Self { spaces, ..Self::new(last, &scenario.config, |_| true) }
    }

    fn context<'a>(&'a self, stream: &'a TraceStream<'m>) -> Context<'a, 'm> {
        Context { stream, images: &self.images, spaces: &self.spaces, config: &self.config, owners: &[] }
    }

    /// The profile of some streams of this process.
    pub fn profile(&self, streams: &[TraceStream<'m>], how: How) -> Profile {
        let streams: Vec<_> = streams.iter().map(|stream| (self, stream)).collect();
        Self::profile_of(&streams, how)
    }

    /// The profile of streams of several processes, whose images are the same as far as both have them.
    pub fn profile_of(streams: &[(&Self, &TraceStream<'m>)], how: How) -> Profile {
        let contexts: Vec<_> = streams.iter().map(|(process, stream)| process.context(stream)).collect();
        let counts = run::count(&contexts, &options(how));
        let mut rows = Rows::new();
        for row in &counts.rows {
            assert!(rows.insert(row.key(), (row.taken, row.not_taken)).is_none(), "{row:?} stands twice");
            assert_eq!(row.mispredicted, 0);
        }
        Profile { rows, instructions: counts.instructions, ledgers: counts.ledgers }
    }

    /// What a call tree is made of, of one stream. Frames, times and cycles must be those that come out where no point in
    /// time is dropped, and a job that asks about some functions must find them in what is left for it.
    pub fn calls(&self, stream: &TraceStream<'m>, how: How) -> Vec<String> {
        let mut calls = Vec::new();
        let context = [self.context(stream)];
        let mut frames = CallStacks::new(1, None, FrameLog::default());
        let done = run::in_order::<CallSteps, ()>(
            &context,
            &options(how),
            |_| CallSteps::default(),
            |unit, steps, result| {
                calls.extend(format!("{steps:x?}").split(", (Mark").map(str::to_owned));
                frames.take(unit, steps, result)
            },
        );
        done.expect("the fold never fails");
        let mut all = CallStacks::new(1, None, FrameLog::default());
        let done = run::in_order::<AllTimes, ()>(
            &context,
            &options(how),
            |_| AllTimes::default(),
            |unit, steps, result| all.take(unit, &steps.0, result),
        );
        done.expect("the fold never fails");
        let (frames, all) = (frames.finish().expect("never fails"), all.finish().expect("never fails"));
        let differ = frames.0.iter().zip(&all.0).position(|(frames, all)| frames != all);
        let differ = differ.map(|at| (&frames.0[at.saturating_sub(4)..=at], &all.0[at..=at]));
        assert!(frames.0 == all.0, "{how:?}: times depend on what was dropped: {differ:?}");
        calls.extend(self.inlined(stream, how, &frames));
        let asked: Vec<bool> = (0..64).map(|id| id % 3 == 0).collect();
        let every = self.invocations(stream, how, &asked, CallSteps::default());
        let only = self.invocations(stream, how, &asked, CallSteps::only(asked.clone().into()));
        let differ = every.iter().zip(&only).find(|(every, only)| every != only);
        assert!(every == only, "{how:?}: invocations depend on what was left out: {differ:x?}");
        calls
    }

    /// Frames with inlined functions, of which there are some everywhere: without them, they are the others.
    fn inlined(&self, stream: &TraceStream<'m>, how: How, others: &FrameLog) -> Vec<String> {
        let stacks = CallStacks::new(1, None, FrameLog::default());
        let mut stacks = stacks.with_inlined(Arc::new(Stripes));
        let done = run::in_order::<InlineSteps<'_>, ()>(
            &[self.context(stream)],
            &options(how),
            |_| InlineSteps::new(&self.images, &Stripes),
            |unit, steps, result| {
                steps.end(result.end);
                stacks.take(unit, steps.steps(), result)
            },
        );
        done.expect("the fold never fails");
        let all = stacks.finish().expect("never fails").0;
        // What is open, and whether it is inlined.
        let mut open: Vec<bool> = Vec::new();
        let mut left = Vec::new();
        for told in &all {
            let is_inlined = match told {
                Told::Open(_, name, _) => {
                    open.push(matches!(name, FrameName::Inlined(_)));
                    open.last().copied()
                }
                Told::Close(_) | Told::Cut(..) => open.pop(),
                Told::Gap(..) => Some(false),
                _ => Some(true),
            };
            if !is_inlined.expect("what ends has begun") {
                left.push(told);
            }
        }
        let is_frame =
            |told: &&Told| matches!(told, Told::Open(..) | Told::Close(_) | Told::Cut(..) | Told::Gap(..));
        assert!(
            left.iter().copied().eq(others.0.iter().filter(is_frame)),
            "{how:?}: inlined functions change frames"
        );
        all.iter().filter(is_frame).map(|told| format!("{told:x?}")).collect()
    }

    fn invocations(
        &self,
        stream: &TraceStream<'m>,
        how: How,
        asked: &[bool],
        steps: CallSteps,
    ) -> Vec<Invocation> {
        let ids = (0..).zip(asked).filter(|(_, asked)| **asked).map(|(id, _)| FunctionId(id));
        let ids: Vec<FunctionId> = ids.collect();
        let mut found = Vec::new();
        let job = Invocations::new(&ids, Recursion::All, 1, |invocation| {
            found.push(invocation);
            Ok::<(), ()>(())
        });
        let mut stacks = CallStacks::new(1, None, job);
        let done = run::in_order(
            &[self.context(stream)],
            &options(how),
            |_| steps.clone(),
            |unit, steps, result| stacks.take(unit, steps, result),
        );
        done.expect("the fold never fails");
        stacks.finish().map(drop).expect("the fold never fails");
        found
    }

    /// Everything in order, of one stream.
    pub fn flow(&self, stream: &TraceStream<'m>, how: How) -> Flow {
        let (mut log, mut units, mut times) = (Vec::new(), Vec::new(), Vec::new());
        let mut instructions = 0;
        let ledgers = run::in_order::<Recorder, ()>(
            &[self.context(stream)],
            &options(how),
            |_| Recorder::default(),
            |unit, recorder, result| {
                let before: usize =
                    stream.pieces[..unit.from.piece].iter().map(|piece| piece.bytes.len()).sum();
                units.push(before + unit.from.byte);
                log.extend(recorder.log.drain(..).map(|(at, seen)| (instructions + at, seen)));
                instructions += result.end.instructions();
                times.push(format!("{:?}", result.timeline));
                Ok(())
            },
        );
        Flow { log, units, ledgers: ledgers.expect("the fold never fails"), instructions, times }
    }
}

/// A program as it lies in memory.
fn space(program: &Program) -> AddressSpace {
    AddressSpace::new(program.mapped.iter().map(|mapped| Mapping {
        start: Ip(mapped.start),
        end: Ip(mapped.end),
        image: ImageId(mapped.image as u32),
        svma: Svma(mapped.svma),
    }))
}

/// Functions of some bytes each, with room between.
fn functions(image: &Image, index: usize) -> Vec<FunctionRange> {
    let count = image.bytes.len() as u64 / 24;
    let function = |number: u64| FunctionRange {
        start: Svma(image.svma + number * 24),
        end: Svma(image.svma + number * 24 + 20 + number % 5),
        function: FunctionId(index as u32 * 1000 + number as u32 % 1000),
        role: if number % 7 == 3 { FunctionRole::Stub } else { FunctionRole::Function },
    };
    (0..count).map(function).collect()
}

fn options(how: How) -> Options<'static> {
    Options { pool: &POOLS[how.pool], engine: how.engine, unit_bytes: how.unit_bytes, progress: &|_| {} }
}

/// A stream of a trace that is cut into pieces at the given offsets.
pub fn pieces<'m>(trace: &'m [u8], cuts: &[usize]) -> TraceStream<'m> {
    let mut pieces = Vec::new();
    let mut from = 0;
    for to in cuts.iter().copied().chain([trace.len()]) {
        pieces.push(Piece {
            offset: AuxOffset(from as u64),
            bytes: &trace[from..to],
            break_before: (from == 0).then_some(Break::Start),
            reference: Some(Tsc(0x12_3456_0000)),
        });
        from = to;
    }
    TraceStream { pieces }
}

/// Records what a unit's walk reports.
#[derive(Default)]
struct Recorder {
    list: BranchList,
    log: Vec<(u64, Seen)>,
}

impl Recorder {
    fn see(&mut self, mark: Mark, what: What) {
        self.log.push((mark.instructions(), Seen::What(what)));
    }
}

impl Sink for Recorder {
    const CLOCK: bool = true;
    const RUNS: bool = true;

    fn run(&mut self, run: Run<'_>, mark: Mark) {
        self.list.run(run, mark);
        for (mark, line) in self.list.lines.drain(..) {
            if let Line::Transfer { kind, from: Some(from), to, .. } = line {
                self.log
                    .push((mark.instructions(), Seen::What(What::Branch { kind, from, to, taken: true })));
            }
        }
        if run.leave == Leave::NotTaken {
            self.log.push((mark.instructions(), Seen::NotTaken));
        }
    }

    fn branch(&mut self, branch: &Branch, mark: Mark) {
        if !branch.taken {
            self.log.push((mark.instructions(), Seen::NotTaken));
            return;
        }
        let to = branch.to.map(|to| to.addr);
        self.see(mark, What::Branch { kind: branch.kind, from: branch.from.addr, to, taken: true });
    }

    fn event(&mut self, event: Event, mark: Mark) {
        let what = match event {
            // Streams of these tests are one thread's.
            Event::Owner { .. } => return,
            Event::Sync { at } => What::Sync { at: at.addr, psb: None },
            Event::Enabled { at, resumes } => What::Enabled { at: at.addr, resumes },
            Event::Disabled { from, to, why } => {
                What::Disabled { from: from.addr, to: to.map(|to| to.addr), why }
            }
            Event::Async { from, to } => What::Async { from: from.addr, to: to.addr },
            Event::Told { packet, at } => {
                What::Told { packet: format!("{packet:?}"), at: at.map(|at| at.addr) }
            }
            Event::Gap { reason, .. } => What::Gap { reason },
        };
        self.see(mark, what);
    }
}

/// The true log in the words of a walk whose units begin at these offsets.
pub fn expected_log(truth: &[(u64, u64, What)], units: &[usize]) -> Vec<(u64, Seen)> {
    let mut log = Vec::new();
    for (ordinal, _, what) in truth {
        let seen = match what {
            What::Branch { taken: false, .. } => Seen::NotTaken,
            What::Sync { psb: Some(offset), .. } if !units.contains(offset) => continue,
            What::Sync { at, .. } => Seen::What(What::Sync { at: *at, psb: None }),
            what => Seen::What(what.clone()),
        };
        log.push((*ordinal, seen));
    }
    log
}

/// A row in short.
pub fn show(row: &Row) -> String {
    let addr = |addr: Option<CodeAddr>| match addr {
        None => "-".to_owned(),
        Some(CodeAddr { image: Some(image), addr }) => format!("{image}:{addr:x}"),
        Some(CodeAddr { image: None, addr }) => format!("{addr:x}"),
    };
    format!("{} {} {}", row.0.name(), addr(row.1), addr(row.2))
}

/// The rows in which two profiles differ, a line each: found against true.
pub fn difference(found: &Rows, truth: &Rows) -> String {
    let mut lines = String::new();
    for row in found.keys().chain(truth.keys().filter(|row| !found.contains_key(*row))) {
        let (found, truth) = (found.get(row), truth.get(row));
        if found != truth {
            lines += &format!("{}: found {found:?}, true {truth:?}\n", show(row));
        }
    }
    lines
}
