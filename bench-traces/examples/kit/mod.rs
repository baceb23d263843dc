//! What the programs that valgrind counts instructions of share: code, a trace, and decoding it.
#![allow(dead_code, reason = "each program uses a part of it")]

use ptflow_bench_traces::frames::Frames;
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
use ptflow_decoder::jobs::calls::{CallStacks, CallSteps};
use ptflow_decoder::plan::UNIT_BYTES;
use ptflow_decoder::run::{Counts as Profile, Options, count, in_order};
use ptflow_decoder::stream::{Break, Piece, TraceStream};
use ptflow_decoder::units::{AuxOffset, ImageId, Ip, Svma};
use ptflow_decoder::walk::{Context, Engine};
use std::convert::Infallible;

/// Where the code lies.
pub const START: u64 = 0x40_0000;

/// Valgrind counts what happens in here.
#[inline(never)]
pub fn measured<T>(work: impl FnOnce() -> T) -> T {
    work()
}

/// A program and a trace of it.
pub struct Recorded {
    pub code: MadeUp,
    pub config: PtConfig,
    pub trace: Vec<u8>,
}

impl Recorded {
    pub fn new(options: PtOptions, random: u8, bytes: usize) -> Self {
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
        Self { code, config: config(options), trace }
    }

    /// Calls `work` with all that a decoder wants.
    pub fn decode(&self, work: impl FnOnce(Context<'_, '_>)) {
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

/// What perf would say of such a trace.
pub fn config(options: PtOptions) -> PtConfig {
    PtConfig {
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
    }
}

fn one_thread() -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread can be started")
}

/// The edge profile.
pub fn profile(recorded: &Recorded, engine: Engine, check: impl FnOnce(Profile) + Send) {
    let pool = one_thread();
    recorded.decode(|context| {
        let options = Options { pool: &pool, engine, unit_bytes: UNIT_BYTES, progress: &|_| {} };
        // Valgrind tells threads apart: in the pool's own.
        check(pool.install(|| measured(|| count(&[context], &options))));
    });
}

/// Calls with their times, as jobs do it: on a thread of the pool, where [`measured`] would not count. The run without
/// it is to be taken off.
pub fn clocked(recorded: &Recorded, is_run: bool) -> u64 {
    let pool = one_thread();
    let mut frames = 0;
    recorded.decode(|context| {
        let options =
            Options { pool: &pool, engine: Engine::Fast, unit_bytes: UNIT_BYTES, progress: &|_| {} };
        let mut stacks = CallStacks::new(1, context.config.time, Frames::default());
        if is_run {
            let steps = |_: &_| CallSteps::default();
            let Ok(_) =
                in_order(&[context], &options, steps, |unit, steps, result| stacks.take(unit, steps, result));
        }
        let Ok(Frames(found)) = stacks.finish();
        frames = found;
    });
    frames
}
