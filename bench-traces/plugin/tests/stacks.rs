//! The call stacks of a program that logs its own: calls, tail calls, exceptions, longjmp, signals, fibers (`stacks.cpp`).

mod kit;

use kit::record;
use ptflow_bench_traces::options::PtOptions;
use ptflow_decoder::jobs::calls::{CallStacks, CallSteps, FrameName, FrameSink};
use ptflow_decoder::ledger::LossReason;
use ptflow_decoder::run::{self, Options};
use ptflow_decoder::units::Ns;
use ptflow_decoder::walk::{Context, Engine};
use ptflow_perf_import::images::{ImageSearch, ImageStore};
use ptflow_perf_import::symbols::FunctionNames;
use ptflow_perf_import::{Capture, PerfFile};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::Path;
use std::process::Command;

/// What the log says, as a list of functions that open and close. A context that is switched to lies on top of the one that
/// switched, until control comes back to one that is open.
fn expected(log: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut stacks: BTreeMap<char, Vec<String>> = BTreeMap::from([('2', Vec::new())]);
    // The contexts that are open, and the one that runs.
    let mut open = vec!['2'];
    for line in log.lines() {
        let (what, name) = line.split_once(' ').expect("two words");
        let running = *open.last().expect("one runs");
        let frames = stacks.entry(running).or_default();
        match what.chars().next().expect("a letter") {
            'E' => {
                frames.push(name.to_owned());
                found.push(format!("open {name}"));
            }
            'X' => {
                assert_eq!(frames.pop().as_deref(), Some(name), "the log nests");
                found.push(format!("close {name}"));
            }
            // Control is in this function again.
            'J' => {
                while frames.last().is_some_and(|frame| frame != name) {
                    found.push(format!("close {}", frames.pop().expect("there is one")));
                }
            }
            to => match open.iter().position(|context| *context == to) {
                Some(below) => {
                    for left in open.drain(below + 1..).rev() {
                        found.extend(stacks[&left].iter().rev().map(|name| format!("close {name}")));
                    }
                }
                None => {
                    open.push(to);
                    found.extend(stacks.entry(to).or_default().iter().map(|name| format!("open {name}")));
                }
            },
        }
    }
    found
}

/// The same of the trace, of these functions.
struct Frames<'n> {
    names: &'n FunctionNames,
    logged: BTreeSet<String>,
    open: Vec<Option<String>>,
    found: Vec<String>,
}

impl FrameSink for Frames<'_> {
    type Error = Infallible;

    fn open(&mut self, _: usize, _: Ns, name: FrameName, _: bool) -> Result<(), Infallible> {
        let name = match name {
            FrameName::Function(id) => Some(self.names.get(id).to_owned()),
            _ => None,
        };
        let name = name.filter(|name| self.logged.contains(name));
        self.found.extend(name.iter().map(|name| format!("open {name}")));
        self.open.push(name);
        Ok(())
    }

    fn close(&mut self, _: usize, _: Ns) -> Result<(), Infallible> {
        let name = self.open.pop().expect("something is open");
        self.found.extend(name.map(|name| format!("close {name}")));
        Ok(())
    }

    fn gap(&mut self, _: usize, _: Ns, _: Ns, reason: LossReason) -> Result<(), Infallible> {
        panic!("a gap: {reason:?}")
    }
}

fn found(capture: &Path, log: &str, unit_bytes: usize) -> Vec<String> {
    let file = PerfFile::open(capture).expect("our own file");
    let capture = Capture::read(&file).expect("our own file");
    let store = ImageStore::load(&capture, &ImageSearch::default());
    let (images, names) = store.images_with_functions();
    let stream = &capture.streams[0];
    let spaces = store.address_spaces(stream.pid.expect("a process"));
    let context = Context {
        stream: &stream.trace,
        images: &images,
        spaces: &spaces,
        config: &capture.config,
        owners: &[],
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
    let options = Options { pool: &pool, engine: Engine::Fast, unit_bytes, progress: &|_| {} };
    let logged = log.lines().filter_map(|line| line.strip_prefix("E ")).map(str::to_owned).collect();
    let frames = Frames { names: &names, logged, open: Vec::new(), found: Vec::new() };
    let mut stacks = CallStacks::new(1, capture.config.time, frames);
    run::in_order(
        &[context],
        &options,
        |_| CallSteps::default(),
        |unit, steps, result| stacks.take(unit, steps, result),
    )
    .expect("infallible");
    stacks.finish().expect("infallible").found
}

#[test]
fn slices_are_what_the_program_logged() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let (program, log) = (folder.path().join("stacks"), folder.path().join("log"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/stacks.cpp");
    let compiler =
        Command::new("g++").args(["-O2", "-finstrument-functions", "-o"]).arg(&program).arg(source).status();
    assert!(compiler.expect("g++ runs: install Debian's package g++").success());
    let command = [program.to_str().expect("UTF-8"), log.to_str().expect("UTF-8")];
    for options in [
        PtOptions::default(),
        PtOptions { interrupts: 20, psb_period: 0, noretcomp: true, ..PtOptions::default() },
    ] {
        let recording = record(&command, options);
        recording.explained();
        let log = std::fs::read_to_string(&log).expect("the program wrote it");
        let expected = expected(&log);
        assert!(expected.len() > 300);
        for unit_bytes in [1, 1 << 20] {
            let mut found = found(&recording.folder().join("perf.data"), &log, unit_bytes);
            // The log is written before main ends.
            assert_eq!(found.pop().as_deref(), Some("close main"));
            let same = found.iter().zip(&expected).take_while(|(a, b)| a == b).count();
            let around =
                |list: &[String]| list[same.saturating_sub(8)..(same + 12).min(list.len())].join("\n  ");
            assert!(
                found == expected,
                "{options:?}, event {same} of {}: found\n  {}\nexpected\n  {}",
                expected.len(),
                around(&found),
                around(&expected)
            );
        }
    }
}
