//! What the instruction counts of `tests/instructions.rs` are taken of: `gate NAME` decodes one small synthetic trace in one
//! way. Everything that is not to be counted happens outside of `measured`; valgrind
//! counts inside only. `gate clocked prepare` does everything but the decoding.

use ptflow_bench_traces::options::{PtOptions, machine};
use ptflow_bench_traces::synth::blocks;
use ptflow_bench_traces::synth::counts::Counts;
use ptflow_bench_traces::synth::made_up::MadeUp;
use ptflow_bench_traces::synth::program::{Behaviour, Program};
use ptflow_bench_traces::synth::walker::Walker;
use ptflow_decoder::config::PtConfig;
use ptflow_decoder::image::{
    AddressSpace, AddressSpaces, CodeImage, CodeRegion, FunctionId, FunctionRange, FunctionRole, Images,
    Mapping,
};
use ptflow_decoder::jobs::calls::{CallStacks, CallSteps, FrameName, FrameSink};
use ptflow_decoder::ledger::LossReason;
use ptflow_decoder::packet::lexer::{BlockContext, lex};
use ptflow_decoder::plan::UNIT_BYTES;
use ptflow_decoder::run::{Options, count, in_order};
use ptflow_decoder::stream::{Break, Piece, TraceStream};
use ptflow_decoder::units::{AuxOffset, ImageId, Ip, Ns, Svma};
use ptflow_decoder::walk::{Context, Engine};
use std::convert::Infallible;
use std::hint::black_box;

const START: u64 = 0x40_0000;

/// Valgrind counts what happens in here.
#[inline(never)]
fn measured<T>(work: impl FnOnce() -> T) -> T {
    work()
}

fn main() {
    let name = std::env::args().nth(1).unwrap_or_default();
    let is_run = std::env::args().nth(2).is_none();
    let base = PtOptions::default();
    let cyc = PtOptions { cyc: true, ..base };
    let quiet = PtOptions { no_tsc: true, ..base };
    match name.as_str() {
        // Every kind of packet that is frequent, one by one.
        "lexer" => lexer(&Recorded::new(cyc, 30, 1 << 20)),
        "careful" => profile(&Recorded::new(base, 30, 1 << 15), Engine::Careful),
        // The same ways again and again: windows.
        "windows" => profile(&Recorded::new(base, 0, 1 << 20), Engine::Fast),
        // By chance, each CYC another: stripped and walked in bulk.
        "bulk" => profile(&Recorded::new(cyc, 60, 1 << 19), Engine::Fast),
        "bulk-no-timing" => profile(&Recorded::new(quiet, 60, 1 << 18), Engine::Fast),
        "clocked" => clocked(&Recorded::new(base, 30, 1 << 18), is_run),
        "clocked-cyc" => clocked(&Recorded::new(cyc, 30, 1 << 18), is_run),
        _ => {
            eprintln!("usage: gate lexer|careful|windows|bulk|bulk-no-timing|clocked|clocked-cyc [prepare]");
            std::process::exit(2);
        }
    }
}

/// A program and a trace of it.
struct Recorded {
    code: MadeUp,
    config: PtConfig,
    trace: Vec<u8>,
}

impl Recorded {
    fn new(options: PtOptions, random: u8, bytes: usize) -> Self {
        let code = MadeUp::new(1, START, 300);
        let behaviour = Behaviour { seed: 1, trips: 6, random, targets: 4 };
        let program = Program::new(blocks::find(&code.code()), &code.functions, &[], behaviour);
        let Some(program) = program else { panic!("made-up code has functions that come back") };
        let mut counts = Counts::new(&program);
        let mut walker = Walker::new(&program, (1, 0), 24, options, None);
        let walked = walker.start(&mut counts).and_then(|()| walker.walk(&mut counts, bytes));
        walked.and_then(|()| walker.stop(&mut counts)).expect("nothing is written");
        let mut trace = Vec::new();
        let Ok(()) = walker.pt.drain(|_, bytes| {
            trace.extend_from_slice(bytes);
            Ok::<(), Infallible>(())
        });
        let config = PtConfig {
            tsc: !options.no_tsc,
            mtc: !options.no_tsc,
            mtc_period: options.mtc_period,
            cyc: options.cyc,
            ret_compression: true,
            branches: true,
            tsc_ctc_ratio: Some(machine::TSC_CTC_RATIO),
            max_nonturbo_ratio: machine::TSC_RATIO,
            time: Some(machine::TIME),
            ..PtConfig::default()
        };
        Self { code, config, trace }
    }

    /// Calls `work` with all that a decoder wants.
    fn decode(&self, work: impl FnOnce(Context<'_, '_>)) {
        let end = START + self.code.bytes.len() as u64;
        let functions = (0..).zip(&self.code.functions).map(|(number, range)| FunctionRange {
            start: Svma(range.start),
            end: Svma(range.end),
            function: FunctionId(number),
            role: FunctionRole::Function,
        });
        let region = CodeRegion { start: Svma(START), bytes: &self.code.bytes };
        let mut images = Images::default();
        images.push(CodeImage::new(vec![region]).with_functions(functions.collect()));
        let mapping = Mapping { start: Ip(START), end: Ip(end), image: ImageId(0), svma: Svma(START) };
        let spaces = AddressSpaces::constant(AddressSpace::new([mapping]));
        let piece = Piece {
            offset: AuxOffset(0),
            bytes: &self.trace,
            break_before: Some(Break::Start),
            reference: None,
        };
        let stream = TraceStream { pieces: vec![piece] };
        work(Context {
            stream: &stream,
            images: &images,
            spaces: &spaces,
            config: &self.config,
            owners: &[],
        });
    }
}

fn lexer(recorded: &Recorded) {
    measured(|| {
        let (mut at, mut context) = (0, BlockContext::default());
        while let Ok((packet, len)) = lex(&recorded.trace[at..], &mut context) {
            black_box(packet);
            at += len;
        }
        assert_eq!(at, recorded.trace.len());
    });
}

fn profile(recorded: &Recorded, engine: Engine) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread can be started");
    recorded.decode(|context| {
        let options = Options { pool: &pool, engine, unit_bytes: UNIT_BYTES, progress: &|_| {} };
        // Valgrind tells threads apart: in the pool's own.
        let counts = pool.install(|| measured(|| count(&[context], &options)));
        assert!(counts.ledgers.iter().all(|ledger| ledger.losses.is_empty()) && counts.rows.len() > 1000);
    });
}

/// Counts frames.
#[derive(Default)]
struct Frames(u64);

impl FrameSink for Frames {
    type Error = Infallible;
    fn open(&mut self, _: usize, _: Ns, _: FrameName, _: bool) -> Result<(), Infallible> {
        self.0 += 1;
        Ok(())
    }
    fn close(&mut self, _: usize, _: Ns) -> Result<(), Infallible> {
        Ok(())
    }
    fn gap(&mut self, _: usize, _: Ns, _: Ns, _: LossReason) -> Result<(), Infallible> {
        Ok(())
    }
}

/// As jobs do it, on a thread of the pool, where [`measured`] would not count: the run without it is to be taken off.
fn clocked(recorded: &Recorded, is_run: bool) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread can be started");
    recorded.decode(|context| {
        let options =
            Options { pool: &pool, engine: Engine::Fast, unit_bytes: UNIT_BYTES, progress: &|_| {} };
        let mut stacks = CallStacks::new(1, context.config.time, Frames::default());
        if is_run {
            let steps = |_: &_| CallSteps::default();
            let Ok(_) =
                in_order(&[context], &options, steps, |unit, steps, result| stacks.take(unit, steps, result));
        }
        let Ok(Frames(frames)) = stacks.finish();
        assert!(frames > 1000 || !is_run, "{frames} frames");
    });
}
