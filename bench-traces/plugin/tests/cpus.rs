//! Threads that share CPUs: each thread's branches are those that the recorder counted for it.

mod kit;

use kit::{Recording, compile, record};
use ptflow_bench_traces::options::PtOptions;
use ptflow_decoder::image::AddressSpaces;
use ptflow_decoder::jobs::calls::{CallStacks, CallSteps, FrameName, FrameSink};
use ptflow_decoder::ledger::LossReason;
use ptflow_decoder::owners::{Change, Owner, ThreadId, changes};
use ptflow_decoder::profile::CodeAddr;
use ptflow_decoder::run::{self, Options, count};
use ptflow_decoder::units::{Ns, Svma};
use ptflow_decoder::walk::{Context, Engine};
use ptflow_exporters::address::AddressNames;
use ptflow_perf_import::images::{ImageSearch, ImageStore};
use ptflow_perf_import::symbols::FunctionNames;
use ptflow_perf_import::{Capture, PerfFile};
use std::collections::BTreeMap;

struct Runtime<'s>(&'s AddressSpaces);

impl AddressNames for Runtime<'_> {
    fn name(&self, addr: CodeAddr) -> (Option<&str>, u64) {
        let runtime = addr.image.and_then(|image| {
            self.0.versions().iter().find_map(|(_, space)| space.avma(image, Svma(addr.addr)))
        });
        (None, runtime.map_or(addr.addr, |ip| ip.0))
    }
}

/// The edges of every thread, by engine, as the recorder writes them; and how often threads changed.
fn check(recording: &Recording) -> usize {
    recording.explained();
    let file = PerfFile::open(&recording.folder().join("perf.data")).expect("our own file");
    let capture = Capture::read(&file).expect("our own file");
    assert_eq!(capture.notes, [""; 0]);
    assert!(capture.streams.iter().all(|stream| stream.tid.is_none()));
    let store = ImageStore::load(&capture, &ImageSearch::default());
    let images = store.images();
    let schedules = &capture.schedules;
    let spaces = store.address_spaces(schedules.threads[0].0);
    let changes: Vec<_> = capture
        .streams
        .iter()
        .map(|stream| {
            let schedule = schedules.of(stream.cpu.expect("a CPU's")).expect("somebody ran");
            changes(&stream.trace, &capture.config, schedule)
        })
        .collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
    let mut of_threads = String::new();
    for &(_, tid) in &schedules.threads {
        let truth = recording.folder().join(format!("truth.{tid}.edges"));
        let truth = std::fs::read_to_string(truth).expect("the recorder wrote it");
        for (engine, unit_bytes) in [(Engine::Fast, 1 << 20), (Engine::Fast, 1), (Engine::Careful, 1 << 16)] {
            let owners: Vec<Vec<Owner<'_>>> = changes
                .iter()
                .map(|changes| {
                    let owner = |change: &Change| {
                        let task = change.thread.and_then(|thread| schedules.thread(thread));
                        let wanted = task.is_some_and(|task| task.1 == tid);
                        Owner { from: change.from, thread: change.thread, spaces: &spaces, wanted }
                    };
                    changes.iter().map(owner).collect()
                })
                .collect();
            let nothing = AddressSpaces::default();
            let contexts: Vec<Context<'_, '_>> = capture
                .streams
                .iter()
                .zip(&owners)
                .map(|(stream, owners)| Context {
                    stream: &stream.trace,
                    images: &images,
                    spaces: &nothing,
                    config: &capture.config,
                    owners,
                })
                .collect();
            let counts = count(&contexts, &Options { pool: &pool, engine, unit_bytes, progress: &|_| {} });
            for ledger in &counts.ledgers {
                assert!(ledger.losses.is_empty(), "{tid}, {engine:?}: {:?}", ledger.losses);
            }
            let mut text = Vec::new();
            ptflow_exporters::edges::write(&mut text, &counts.rows, &Runtime(&spaces)).expect("a Vec");
            let text = String::from_utf8(text).expect("text");
            if text != truth {
                let difference = |a: &str, b: &str| {
                    let known: std::collections::BTreeSet<&str> = b.lines().collect();
                    let more: Vec<&str> = a.lines().filter(|line| !known.contains(line)).take(8).collect();
                    more.join("\n")
                };
                let (ours, theirs) = (difference(&text, &truth), difference(&truth, &text));
                panic!("thread {tid}, {engine:?}, units of {unit_bytes}; found:\n{ours}\ntruth:\n{theirs}");
            }
        }
        of_threads.push_str(&format!("{tid}: {} edges\n", truth.lines().count()));
    }
    let changes = changes.iter().map(Vec::len).sum();
    println!("{changes} changes\n{of_threads}");
    changes
}

/// Counts the frames of each stack by name.
struct Frames<'n> {
    names: &'n FunctionNames,
    opened: BTreeMap<(usize, String), u32>,
    open: Vec<i64>,
    executed: Vec<u64>,
}

impl FrameSink for Frames<'_> {
    type Error = std::convert::Infallible;

    fn open(&mut self, stack: usize, _: Ns, name: FrameName, _: bool) -> Result<(), Self::Error> {
        if let FrameName::Function(id) = name {
            *self.opened.entry((stack, self.names.get(id).to_owned())).or_default() += 1;
        }
        self.open[stack] += 1;
        Ok(())
    }

    fn close(&mut self, stack: usize, _: Ns) -> Result<(), Self::Error> {
        self.open[stack] -= 1;
        assert!(self.open[stack] >= 0);
        Ok(())
    }

    fn executed(&mut self, stack: usize, instructions: u64) {
        assert!(self.executed[stack] <= instructions);
        self.executed[stack] = instructions;
    }

    fn gap(&mut self, stack: usize, _: Ns, _: Ns, reason: LossReason) -> Result<(), Self::Error> {
        panic!("a gap of stack {stack}: {reason:?}")
    }
}

/// What the recorder counted of one thread.
fn instructions_of(recording: &Recording, tid: u32) -> u64 {
    let totals =
        std::fs::read_to_string(recording.folder().join("totals.json")).expect("the recorder wrote it");
    let head = format!("{{\"tid\": {tid}, \"instructions\": ");
    let (_, rest) = totals.split_once(&head).expect("the thread is there");
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

/// A thread that moves between CPUs has one call stack: the frames of `sharing.c` by thread, as its source says.
fn check_calls(recording: &Recording) {
    let file = PerfFile::open(&recording.folder().join("perf.data")).expect("our own file");
    let capture = Capture::read(&file).expect("our own file");
    let store = ImageStore::load(&capture, &ImageSearch::default());
    let (images, names) = store.images_with_functions();
    let schedules = &capture.schedules;
    let (spaces, nothing) = (store.address_spaces(schedules.threads[0].0), AddressSpaces::default());
    let owners: Vec<Vec<Owner<'_>>> = capture
        .streams
        .iter()
        .map(|stream| {
            let schedule = schedules.of(stream.cpu.expect("a CPU's")).expect("somebody ran");
            let owner = |change: Change| Owner {
                from: change.from,
                thread: change.thread,
                spaces: &spaces,
                wanted: true,
            };
            changes(&stream.trace, &capture.config, schedule).into_iter().map(owner).collect()
        })
        .collect();
    let contexts: Vec<Context<'_, '_>> = capture
        .streams
        .iter()
        .zip(&owners)
        .map(|(stream, owners)| Context {
            stream: &stream.trace,
            images: &images,
            spaces: &nothing,
            config: &capture.config,
            owners,
        })
        .collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
    for unit_bytes in [1, 1 << 20] {
        let count = schedules.threads.len();
        let frames =
            Frames { names: &names, opened: BTreeMap::new(), open: vec![0; count], executed: vec![0; count] };
        let mut stacks = CallStacks::new(count, capture.config.time, frames);
        let options = Options { pool: &pool, engine: Engine::Fast, unit_bytes, progress: &|_| {} };
        run::in_time_order(
            &contexts,
            &options,
            |_| CallSteps::default(),
            |unit, steps, result, horizon| {
                let stack = |thread: Option<ThreadId>| thread.map(|thread| thread.0 as usize);
                stacks.take_shared(unit, &steps, &result, stack, horizon)
            },
        )
        .expect("infallible");
        let frames = stacks.finish().expect("infallible");
        for (&(_, tid), executed) in schedules.threads.iter().zip(&frames.executed) {
            assert_eq!(*executed, instructions_of(recording, tid.0), "instructions of thread {tid}");
        }
        let opened = |name: &str| {
            let of = frames.opened.iter().filter(|((_, own), _)| own == name);
            of.map(|((stack, _), count)| (*stack, *count)).collect::<Vec<_>>()
        };
        let workers: Vec<usize> = opened("worker").iter().map(|(stack, _)| *stack).collect();
        assert_eq!(opened("worker").iter().map(|(_, count)| *count).collect::<Vec<_>>(), [1; 4]);
        assert_eq!(opened("work"), workers.iter().map(|stack| (*stack, 154)).collect::<Vec<_>>());
        // 150 rounds, and four long ones more; each function is one thread's.
        let mut own: Vec<(usize, u32)> = ["first", "second", "third", "fourth"]
            .iter()
            .flat_map(|name| {
                assert_eq!(opened(name).len(), 1, "{name}");
                opened(name)
            })
            .collect();
        own.sort_unstable();
        assert_eq!(own, opened("work"));
    }
}

#[test]
fn four_threads_on_two_cpus() {
    let program = compile("sharing.c", &[]);
    let base = PtOptions { per_cpu: 2, psb_period: 1, ..PtOptions::default() };
    for options in [
        base,
        PtOptions { cyc: true, psb_period: 3, ..base },
        PtOptions { per_cpu: 1, mtc_period: 6, ..base },
        PtOptions { per_cpu: 3, noretcomp: true, ..base },
    ] {
        eprintln!("{options:?}");
        let recording = record(&[program.path().to_str().expect("UTF-8")], options);
        let changes = check(&recording);
        check_calls(&recording);
        assert!(changes > 100, "{changes} changes are no sharing");
    }
}

#[test]
fn a_nasty_program_on_two_cpus() {
    let program = compile("nasty.c", &[]);
    let base = PtOptions { per_cpu: 2, psb_period: 2, ..PtOptions::default() };
    for options in [base, PtOptions { interrupts: 3_000, ..base }] {
        let recording = record(&[program.path().to_str().expect("UTF-8")], options);
        check(&recording);
    }
}
