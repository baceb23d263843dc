//! Threads that share CPUs: each thread's branches are those that the recorder counted for it.

mod kit;

use kit::{Recording, compile, record};
use ptflow_bench_traces::options::{PtOptions, machine};
use ptflow_decoder::clock::Clock;
use ptflow_decoder::config::PtConfig;
use ptflow_decoder::image::AddressSpaces;
use ptflow_decoder::jobs::calls::{CallStacks, CallSteps, FrameName, FrameSink};
use ptflow_decoder::ledger::LossReason;
use ptflow_decoder::owners::{Change, Owner, ThreadId, changes};
use ptflow_decoder::packet::Packet;
use ptflow_decoder::profile::CodeAddr;
use ptflow_decoder::reader::{Position, Reader};
use ptflow_decoder::run::{self, Options, count};
use ptflow_decoder::stream::TraceStream;
use ptflow_decoder::units::{Ip, Ns, Svma, Tsc};
use ptflow_decoder::walk::{Context, Engine};
use ptflow_exporters::address::AddressNames;
use ptflow_exporters::edges::{self, TextRow};
use ptflow_perf_import::images::{ImageSearch, ImageStore};
use ptflow_perf_import::process::SpaceEvent;
use ptflow_perf_import::record::kind;
use ptflow_perf_import::sideband::SwitchKind;
use ptflow_perf_import::symbols::FunctionNames;
use ptflow_perf_import::write::{PerfWriter, TraceForm, Who, WriterConfig};
use ptflow_perf_import::{Capture, Cpu, PerfFile, Tid};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
    let path = recording.folder().join("perf.data");
    check_form(
        recording,
        &path,
        &[(Engine::Fast, 1 << 20), (Engine::Fast, 1), (Engine::Careful, 1 << 16)],
        |reason| panic!("{reason:?}"),
        |tid, text, truth| {
            if text != truth {
                let difference = |a: &str, b: &str| {
                    let known: std::collections::BTreeSet<&str> = b.lines().collect();
                    let more: Vec<&str> = a.lines().filter(|line| !known.contains(line)).take(8).collect();
                    more.join("\n")
                };
                let (ours, theirs) = (difference(text, truth), difference(truth, text));
                panic!("thread {tid}; found:\n{ours}\ntruth:\n{theirs}");
            }
        },
    )
}

/// The same of the recording in another form: what may be lost, and what to make of each thread's edges and the truth.
fn check_form(
    recording: &Recording,
    path: &Path,
    engines: &[(Engine, usize)],
    lost: impl Fn(LossReason),
    mut compare: impl FnMut(Tid, &str, &str),
) -> usize {
    let file = PerfFile::open(path).expect("our own file");
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
        for &(engine, unit_bytes) in engines {
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
                ledger.losses.iter().for_each(|loss| lost(loss.reason));
            }
            let mut text = Vec::new();
            edges::write(&mut text, &counts.rows, &Runtime(&spaces)).expect("a Vec");
            let text = String::from_utf8(text).expect("text");
            compare(tid, &text, &truth);
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
            |unit, steps, result, reach| {
                let stack = |thread: Option<ThreadId>| thread.map(|thread| thread.0 as usize);
                stacks.take_shared(unit, steps, result, stack, reach)
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

/// The same recording with SWITCH records only, as of a user who may not watch CPUs: nobody tells who comes next.
fn with_plain_switches(recording: &Recording) -> PathBuf {
    let path = recording.folder().join("perf.data");
    let file = PerfFile::open(&path).expect("our own file");
    let mut bytes = std::fs::read(&path).expect("our own file");
    // Both kinds end with the trailer; what stands before it is of no meaning in a SWITCH.
    let wide = file.records().filter(|record| record.kind == kind::SWITCH_CPU_WIDE);
    let places: Vec<usize> = wide.map(|record| record.offset.0 as usize).collect();
    assert!(places.len() > 100);
    places.iter().for_each(|at| bytes[*at..at + 4].copy_from_slice(&kind::SWITCH.to_le_bytes()));
    let path = recording.folder().join("switch.data");
    std::fs::write(&path, bytes).expect("written");
    path
}

/// The time at each packet of a stream that tells one, by offset.
fn times(stream: &TraceStream<'_>, config: &PtConfig) -> Vec<(u64, Tsc)> {
    let mut clock = Clock::new(config);
    let mut reader = Reader::new(stream, Position { piece: 0, byte: 0 });
    clock.set_reference(reader.reference());
    let mut times = Vec::new();
    while let Some(Ok((packet, len))) = reader.read() {
        match packet {
            Packet::Tsc { tsc } => clock.tsc(tsc, 0),
            Packet::Tma { ctc, fast } => clock.tma(ctc, fast),
            Packet::Mtc { ctc } => clock.mtc(ctc, 0),
            _ => {}
        }
        times.extend(clock.now().map(|now| (reader.offset().0, now)));
        reader.skip(len);
    }
    times
}

/// The same recording as AUX samples that overlap; each tells the thread that ran at its end, and nothing of those before.
fn as_aux_samples(recording: &Recording) -> PathBuf {
    const SIZE: usize = 24 << 10;
    const STEP: usize = 11 << 10;
    let path = recording.folder().join("perf.data");
    let file = PerfFile::open(&path).expect("our own file");
    let capture = Capture::read(&file).expect("our own file");
    let config = WriterConfig {
        cmdline: vec!["samples".to_owned()],
        cpuid: machine::CPUID.to_owned(),
        cpudesc: "software recorder (emulated)".to_owned(),
        cpus: 64,
        event_config: file.events().iter().next().expect("the event").attr.config,
        time: machine::TIME,
        tsc_ctc_ratio: machine::TSC_CTC_RATIO,
        max_nonturbo_ratio: machine::TSC_RATIO,
        per_cpu: true,
        form: TraceForm::Samples(SIZE as u32),
    };
    let path = recording.folder().join("samples.data");
    let mut w = PerfWriter::create(&path, config).expect("a file");
    let (pid, process) = capture.processes.iter().next().expect("a process");
    let begun = capture.time.expect("times").0;
    let who = |tid: Tid, cpu, time| Who { pid, tid, cpu, time };
    let main = who(Tid(pid.0), Cpu(0), begun);
    w.comm(main, &process.comm, true).expect("written");
    for event in &process.space {
        let SpaceEvent::Map(range) = event else { continue };
        let file = &capture.processes.files()[range.file.0 as usize];
        w.mmap2(main, range.addr, range.len, range.pgoff, &file.path).expect("written");
        w.build_id(pid, &file.path, file.build_id.as_deref().unwrap_or(&[]));
    }
    for (_, tid) in &capture.schedules.threads {
        w.fork(main, pid, *tid).expect("written");
    }
    for switch in &capture.switches {
        let (Some(cpu), Some((_, tid))) = (switch.cpu, switch.task) else { continue };
        let who = who(tid, cpu, switch.time.0);
        match switch.what {
            SwitchKind::In { previous: Some(other) } => w.switch_cpu_wide(who, false, other),
            SwitchKind::Out { next: Some(other), .. } => w.switch_cpu_wide(who, true, other),
            SwitchKind::TraceStart => w.itrace_start(who),
            _ => continue,
        }
        .expect("written");
    }
    for stream in &capture.streams {
        let cpu = stream.cpu.expect("a CPU's");
        let bytes: Vec<u8> = stream.trace.pieces.iter().flat_map(|piece| piece.bytes).copied().collect();
        let times = times(&stream.trace, &capture.config);
        let ends = &capture.schedules.of(cpu).expect("somebody ran").ends;
        let mut end = 0;
        while end < bytes.len() {
            end = (end + STEP).min(bytes.len());
            let ran = &ends[ends.partition_point(|ran| ran.end.0 < end as u64)];
            let (_, tid) = capture.schedules.thread(ran.thread).expect("a thread");
            let (_, now) = times[times.partition_point(|time| time.0 < end as u64) - 1];
            let time = machine::TIME.to_ns(now).0;
            let window = &bytes[end.saturating_sub(SIZE)..end];
            w.aux_sample(who(tid, cpu, time), Ip(0x40_1000), window).expect("written");
        }
    }
    w.finish().expect("written");
    path
}

/// Every branch is found once. Whose the shortest turns were, no AUX record tells: threads that ran for less time than
/// switch records are late may be taken for each other.
fn check_aux_samples(recording: &Recording) {
    let sums = |table: &str| -> BTreeMap<String, u64> {
        let rows = edges::read(table.as_bytes()).expect("an edge table");
        let name = |row: &TextRow| format!("{:?} {:?} {:?}", row.kind, row.from, row.to);
        rows.iter().map(|row| (name(row), row.taken + row.not_taken)).collect()
    };
    let (mut all, mut true_all) = (BTreeMap::new(), BTreeMap::new());
    let (mut wrong, mut right) = (0, 0);
    let lost = |reason| assert_eq!(reason, LossReason::Overlap);
    check_form(recording, &as_aux_samples(recording), &[(Engine::Fast, 1 << 20)], lost, |_, text, truth| {
        let (found, truth) = (sums(text), sums(truth));
        for (name, count) in &truth {
            let found = found.get(name).copied().unwrap_or(0);
            right += found.min(*count);
            wrong += count.saturating_sub(found);
            *true_all.entry(name.clone()).or_insert(0) += count;
        }
        found.into_iter().for_each(|(name, count)| *all.entry(name).or_insert(0) += count);
    });
    assert!(all == true_all, "some branches were not found, or found twice");
    println!("AUX samples: {right} branches found with their thread, {wrong} with another");
    assert!(wrong * 50 < right, "{wrong} branches are another thread's, {right} are right");
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
        assert!(changes > 40, "{changes} changes are no sharing");
        if options == base {
            let path = with_plain_switches(&recording);
            check_form(
                &recording,
                &path,
                &[(Engine::Fast, 1 << 20)],
                |reason| panic!("{reason:?}"),
                |tid, text, truth| {
                    assert!(text == truth, "thread {tid}, by SWITCH records");
                },
            );
            check_aux_samples(&recording);
        }
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
