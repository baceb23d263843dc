//! Captures of any size: a seeded walk through the code of real programs, with the truth.
//!
//! Nothing runs. The blocks are the machine code's own ([`blocks`]), what follows what is made up by seed ([`program`]), the
//! packets come from the recorder's encoder ([`crate::pt`]), and what was walked is counted apart from them ([`counts`]).
//! What the program would have computed does not matter to a decoder: any way through the code that the processor could
//! take is as good as another.

pub mod blocks;
pub mod counts;
pub mod elf;
mod made_elf;
pub mod made_up;
pub mod program;
mod rng;
pub mod stretch;
pub mod walker;

use crate::log::{self, LogWriter};
use crate::options::{PtOptions, machine};
use crate::truth::{Rows, Totals, write_totals};
use anyhow::{Context as _, bail};
use blocks::Function;
use clap::Args;
use counts::Counts;
use elf::ElfCode;
use program::{Behaviour, Program};
use ptflow_decoder::units::Tsc;
use ptflow_perf_import::write::{PerfWriter, TraceForm, Who, WriterConfig};
use ptflow_perf_import::{Cpu, Pid, Tid};
use rayon::prelude::*;
use rng::Rng;
use std::fs::File;
use std::io::{self, BufWriter};
use std::ops::Range;
use std::path::{Path, PathBuf};
use walker::{ERRAND, Walker};

/// Streams that are walked at the same time. The file depends on it, so it is no option.
const SIDE_BY_SIDE: usize = 4;
/// Trace bytes that go to the file at once.
const CHUNK: u64 = 1 << 20;
/// Where files lie that can lie anywhere, and how far from each other.
const FIRST_BIAS: u64 = 0x7f00_0000_0000;
const BIAS_STEP: u64 = 0x1_0000_0000;
/// The process.
const PID: Pid = Pid(10_000);

/// What to make.
#[derive(Args, Clone, Debug)]
pub struct SynthArgs {
    /// Where to put the capture and its truth; made if it is not there
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Bytes of trace, of all threads together; K, M and G are powers of 1024
    #[arg(long, default_value = "100M", value_parser = parse_size)]
    pub size: u64,
    /// Everything that is not said is decided by this
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Threads, each with a stream of its own
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub threads: u32,
    /// Each of them stands in the capture so many times, as so many threads that did the same at the same time: for captures
    /// larger than one has time to walk
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub copies: u32,
    /// The first thread has so many percent of the trace, the others share the rest; 0: all have the same
    #[arg(long, default_value_t = 0, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub first: u8,
    /// Make up a program of about so many bytes of code, DIR/made-up, and walk that
    #[arg(long, default_value = "0", value_name = "BYTES", value_parser = parse_size)]
    pub made_up: u64,
    /// Walk this much code only; 0: all of it
    #[arg(long, default_value = "0", value_name = "BYTES", value_parser = parse_size)]
    pub code: u64,
    /// Calls inside calls, at most about
    #[arg(long, default_value_t = 48, value_name = "N")]
    pub depth: u16,
    /// After about so many branches the walk begins anew with another function: fewer touch more code
    #[arg(long, default_value_t = ERRAND, value_name = "N")]
    pub errand: u32,
    /// Mean trip count of loops
    #[arg(long, default_value_t = 12, value_name = "N")]
    pub trips: u32,
    /// Branches that go by chance each time; the others repeat a pattern
    #[arg(long, default_value_t = 10, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub random: u8,
    /// Targets of an indirect branch: the first is taken in half of the cases, the next in a quarter, and so on
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub targets: u8,
    /// Decide every branch anew: nothing is walked again in stretches, which is some four times as slow
    #[arg(long)]
    pub afresh: bool,
    /// Write DIR/truth.TID.log too: every transfer of each thread in order
    #[arg(long)]
    pub log: bool,
    /// Options of the trace.
    #[command(flatten)]
    pub options: PtOptions,
    /// Programs and libraries whose code is walked
    #[arg(required_unless_present = "made_up", value_name = "ELF")]
    pub files: Vec<PathBuf>,
}

impl SynthArgs {
    /// So many bytes of trace, everything else as on the command line.
    pub fn new(output: &Path, files: Vec<PathBuf>, size: u64) -> Self {
        Self {
            output: output.to_owned(),
            size,
            seed: 1,
            threads: 1,
            copies: 1,
            first: 0,
            made_up: 0,
            code: 0,
            depth: 48,
            errand: ERRAND,
            trips: 12,
            random: 10,
            targets: 4,
            afresh: false,
            log: false,
            options: PtOptions::default(),
            files,
        }
    }
}

/// A number of bytes, perhaps with a K, M or G behind it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text} is no number of bytes"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} is too much"))
}

/// What was made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Made {
    /// Bytes of trace.
    pub bytes: u64,
    /// Branches: taken, and conditional ones not taken.
    pub branches: u64,
    /// Blocks walked, and their bytes of code.
    pub walked: (usize, u64),
}

/// Writes the capture and its truth.
pub fn synthesize(args: &SynthArgs) -> anyhow::Result<Made> {
    if args.log && args.copies > 1 {
        bail!("copies have no logs of their own");
    }
    if u64::from(args.threads) * u64::from(args.copies) > 4_000_000 {
        bail!("more threads than Linux has numbers for");
    }
    if args.options.disturbs() || args.options.per_cpu > 0 {
        bail!("interrupts, restarts, losses and streams by CPU can only be recorded, not made up");
    }
    std::fs::create_dir_all(&args.output)
        .with_context(|| format!("cannot make the folder {}", args.output.display()))?;
    let mut files = args.files.clone();
    if args.made_up > 0 {
        files.push(args.output.join("made-up"));
        made_elf::write(&files[files.len() - 1], args.seed, args.made_up)?;
    }
    let codes: Vec<ElfCode> = (files.iter().enumerate())
        .map(|(index, file)| ElfCode::open(file, FIRST_BIAS + BIAS_STEP * index as u64))
        .collect::<anyhow::Result<_>>()?;
    for (index, code) in codes.iter().enumerate() {
        let other = codes[..index]
            .iter()
            .find(|other| other.mapped.start < code.mapped.end && code.mapped.start < other.mapped.end);
        if let Some(other) = other {
            bail!("{} and {} are linked to the same addresses", other.path, code.path);
        }
    }
    let program = program(args, &codes)?;
    let (counts, threads) = write_capture(args, &codes, &program)?;
    let (mut rows, mut walked) = (Rows::default(), vec![false; program.nodes.len()]);
    for counts in &counts {
        counts.add_to(&mut rows, &program.blocks, u64::from(args.copies));
        counts.mark_walked(&mut walked);
    }
    let create = |name: &str| File::create(args.output.join(name)).map(BufWriter::new);
    let mut edges = create("truth.edges")?;
    rows.write(&mut edges)?;
    edges.into_inner()?;
    write_totals(&mut create("totals.json")?, &rows, &threads, Totals::default())?;
    let walked = walked.iter().zip(&program.blocks).filter(|(walked, _)| **walked);
    Ok(Made {
        bytes: threads.iter().map(|thread| thread.bytes).sum(),
        branches: rows.taken() + rows.of_kind("jcc").1,
        walked: walked.fold((0, 0), |sum, (_, block)| (sum.0 + 1, sum.1 + (block.next - block.start))),
    })
}

/// The program that is walked.
fn program(args: &SynthArgs, codes: &[ElfCode]) -> anyhow::Result<Program> {
    let functions = choose(codes, args.code, &mut Rng::new(args.seed, u64::MAX - 1));
    let blocks = blocks::find(&functions);
    let functions: Vec<Range<u64>> = functions.into_iter().map(|function| function.range).collect();
    let stubs: Vec<Range<u64>> = codes.iter().flat_map(|code| code.stubs.iter().cloned()).collect();
    let SynthArgs { seed, trips, random, targets, .. } = *args;
    Program::new(blocks, &functions, &stubs, Behaviour { seed, trips, random, targets })
        .context("no function of these files can be walked from its begin to a return")
}

/// Neighbouring functions of so many bytes together, of each file its share; and all stubs. Sorted by address.
fn choose<'c>(codes: &'c [ElfCode], bytes: u64, rng: &mut Rng) -> Vec<Function<'c>> {
    let mut order: Vec<usize> = (0..codes.len()).collect();
    order.sort_unstable_by_key(|index| codes[*index].mapped.start);
    let mut chosen = Vec::new();
    for index in order {
        let functions = &codes[index].functions;
        let is_stub =
            |function: &Range<u64>| codes[index].stubs.iter().any(|stub| stub.contains(&function.start));
        let mut left = if bytes == 0 { u64::MAX } else { bytes / codes.len() as u64 };
        let first = if bytes == 0 { 0 } else { rng.below(functions.len() as u64) as usize };
        let mut own: Vec<Range<u64>> = Vec::new();
        for function in functions[first..].iter().chain(&functions[..first]) {
            if left > 0 || is_stub(function) {
                left = left.saturating_sub(function.end - function.start);
                own.push(function.clone());
            }
        }
        own.sort_unstable_by_key(|function| function.start);
        chosen.extend(
            own.into_iter().map(|range| Function { bytes: codes[index].bytes(range.clone()), range }),
        );
    }
    chosen
}

/// A thread that is being walked, and its copies.
struct Stream<'p> {
    /// Its number and its copies'.
    numbers: Range<u32>,
    /// Bytes that are still to be made.
    left: u64,
    walker: Walker<'p>,
}

impl Stream<'_> {
    fn who(&self, number: u32) -> Who {
        let time = machine::TIME.to_ns(Tsc(self.walker.pt.tsc())).0;
        Who { pid: PID, tid: Tid(PID.0 + number), cpu: Cpu(number % CPUS), time }
    }

    /// The next chunk.
    fn walk(&mut self, counts: &mut Counts) -> anyhow::Result<()> {
        let bytes = self.left.min(CHUNK);
        self.walker.walk(counts, bytes as usize)?;
        self.left -= bytes;
        if self.left == 0 {
            self.walker.stop(counts)?;
        }
        Ok(())
    }
}

const CPUS: u32 = 64;

/// Walks all threads, a few at a time, and writes what they send in turns.
fn write_capture(
    args: &SynthArgs,
    codes: &[ElfCode],
    program: &Program,
) -> anyhow::Result<(Vec<Counts>, Vec<Totals>)> {
    let mut writer = open(args, codes)?;
    let side_by_side = SIDE_BY_SIDE.min(args.threads as usize);
    let mut counts: Vec<Counts> = (0..side_by_side).map(|_| new_counts(args, program)).collect();
    let mut running: Vec<Option<Stream<'_>>> = (0..side_by_side).map(|_| None).collect();
    let mut threads = Vec::with_capacity(args.threads as usize);
    let mut to_start = 0..args.threads;
    loop {
        for (place, counts) in running.iter_mut().zip(&mut counts).filter(|(place, _)| place.is_none()) {
            if let Some(index) = to_start.next() {
                *place = Some(start(args, program, index, counts, &mut writer)?);
            }
        }
        if running.iter().all(Option::is_none) {
            break;
        }
        running
            .par_iter_mut()
            .zip(&mut counts)
            .try_for_each(|(stream, counts)| stream.as_mut().map_or(Ok(()), |stream| stream.walk(counts)))?;
        for place in &mut running {
            let Some(stream) = place else { continue };
            let done = stream.left == 0;
            let whos: Vec<Who> = stream.numbers.clone().map(|number| stream.who(number)).collect();
            let reference = Tsc(stream.walker.pt.tsc());
            let numbers = stream.numbers.clone();
            stream.walker.pt.drain(|offset, bytes| {
                for (number, who) in numbers.zip(&whos) {
                    writer.aux(*who, offset, bytes.len() as u64, 0)?;
                    writer.auxtrace(number, Some(who.tid), None, offset, reference, bytes)?;
                }
                io::Result::Ok(())
            })?;
            if !done {
                continue;
            }
            for who in whos {
                writer.exit(who)?;
                let Walker { pt, instructions, .. } = &stream.walker;
                threads.push(Totals {
                    tid: who.tid.0,
                    instructions: *instructions,
                    unexplained: 0,
                    packets: pt.packets,
                    compressed_returns: pt.compressed_returns,
                    bytes: pt.offset(),
                });
            }
            *place = None;
        }
    }
    writer.finish()?;
    counts.iter_mut().for_each(|counts| counts.settle(program));
    threads.sort_unstable_by_key(|thread| thread.tid);
    Ok((counts, threads))
}

fn new_counts(args: &SynthArgs, program: &Program) -> Counts {
    let counts = Counts::new(program);
    if args.afresh { counts } else { counts.with_stretches(program) }
}

/// A thread begins.
fn start<'p>(
    args: &SynthArgs,
    program: &'p Program,
    index: u32,
    counts: &mut Counts,
    writer: &mut PerfWriter<File>,
) -> anyhow::Result<Stream<'p>> {
    let numbers = index * args.copies..(index + 1) * args.copies;
    let log =
        args.log.then(|| LogWriter::create(&log::path(&args.output, PID.0 + numbers.start))).transpose()?;
    let seed = (args.seed, u64::from(index));
    let walker =
        Walker::new(program, seed, usize::from(args.depth), args.options, log).with_errand(args.errand);
    let mut stream = Stream { numbers, left: share(args, index), walker };
    for number in stream.numbers.clone() {
        let who = stream.who(number);
        if number > 0 {
            writer.fork(Who { tid: Tid(PID.0), ..who }, PID, who.tid)?;
            writer.comm(who, "synth", false)?;
        }
        writer.itrace_start(who)?;
    }
    stream.walker.start(counts)?;
    Ok(stream)
}

/// Bytes of trace that a thread has, about.
fn share(args: &SynthArgs, index: u32) -> u64 {
    let (size, threads) = (args.size / u64::from(args.copies), u64::from(args.threads));
    let first =
        if args.first == 0 || threads == 1 { size / threads } else { size / 100 * u64::from(args.first) };
    let bytes = if index == 0 { first } else { (size - first) / (threads - 1) };
    bytes.max(1)
}

/// The capture, with the process and its code in it.
fn open(args: &SynthArgs, codes: &[ElfCode]) -> anyhow::Result<PerfWriter<File>> {
    let words = |path: &Path| path.display().to_string();
    let config = WriterConfig {
        cmdline: [vec!["synth".to_owned()], args.files.iter().map(|file| words(file)).collect()].concat(),
        cpuid: machine::CPUID.to_owned(),
        cpudesc: "synthetic walk".to_owned(),
        cpus: CPUS,
        event_config: args.options.event_config(),
        time: machine::TIME,
        tsc_ctc_ratio: machine::TSC_CTC_RATIO,
        max_nonturbo_ratio: machine::TSC_RATIO,
        per_cpu: false,
        form: TraceForm::Full,
    };
    let path = args.output.join("perf.data");
    let mut writer =
        PerfWriter::create(&path, config).with_context(|| format!("cannot write {}", path.display()))?;
    let time = machine::TIME.to_ns(Tsc(machine::tsc(args.options.start))).0;
    let who = Who { pid: PID, tid: Tid(PID.0), cpu: Cpu(0), time };
    writer.comm(who, "synth", true)?;
    for code in codes {
        writer.mmap2(who, code.mapped.start, code.mapped.end - code.mapped.start, code.pgoff, &code.path)?;
        if let Some(id) = &code.build_id {
            writer.build_id(PID, &code.path, id);
        }
    }
    Ok(writer)
}
