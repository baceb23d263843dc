//! Recording programs and asking several decoders about them.
#![allow(dead_code, reason = "each test program uses a part of it")]

#[path = "../../../tests/kit/release.rs"]
mod release;

use ptflow_bench_traces::options::PtOptions;
use ptflow_bench_traces::order::{self, Way};
use ptflow_bench_traces::recorder::{Counts, PLUGIN, Recorder};
use ptflow_bench_traces::synth::{Made, SynthArgs};
use ptflow_decoder::image::AddressSpaces;
use ptflow_decoder::profile::{CodeAddr, EdgeRow};
use ptflow_decoder::run::{Options, count};
use ptflow_decoder::units::Svma;
use ptflow_decoder::walk::{Context, Engine};
use ptflow_exporters::address::AddressNames;
use ptflow_perf_import::images::{ImageSearch, ImageStore};
use ptflow_perf_import::{Capture, PerfFile};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use tempfile::{NamedTempFile, TempDir, TempPath};

/// Compiles a program of `tests/programs`.
pub fn compile(name: &str, flags: &[&str]) -> NamedTempFile<()> {
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name);
    let path: TempPath = NamedTempFile::new().expect("a temporary file").into_temp_path();
    let status = Command::new("cc")
        .args(["-O1", "-g1", "-pthread"])
        .args(flags)
        .arg("-o")
        .arg(&path)
        .arg(source)
        .status()
        .expect("cc runs: install Debian's package gcc");
    assert!(status.success(), "{name} compiles");
    NamedTempFile::from_parts((), path)
}

/// What a decoder's answer is: the truth, or how it differs.
pub type Verdict = Result<(), String>;

/// A recorded run.
pub struct Recording {
    folder: TempDir,
}

/// The plugin, built: `cargo test` makes no dynamic libraries.
fn plugin() -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| release::build(&["-p", env!("CARGO_PKG_NAME")]).join(PLUGIN)).clone()
}

/// Records a run of a program.
pub fn record(command: &[&str], options: PtOptions) -> Recording {
    let folder = TempDir::new().expect("a temporary folder");
    let recorder =
        Recorder { plugin: plugin(), command: command.iter().map(Into::into).collect(), log: true };
    let (mut run, _) = recorder.recording(folder.path(), options).expect("the recorder is there");
    let output =
        run.stdout(Stdio::null()).output().expect("qemu-x86_64 runs: install Debian's package qemu-user");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Recording { folder }
}

/// Walks the code of some files by seed.
pub fn synthesize(files: &[&str], size: u64, change: impl FnOnce(&mut SynthArgs)) -> (Recording, Made) {
    let folder = TempDir::new().expect("a temporary folder");
    let mut args = SynthArgs::new(folder.path(), files.iter().map(Into::into).collect(), size);
    args.log = true;
    change(&mut args);
    let made = ptflow_bench_traces::synth::synthesize(&args).expect("the files are there");
    (Recording { folder }, made)
}

/// Counts a run of a program.
pub fn counts(command: &[&str]) -> Counts {
    let command = command.iter().map(Into::into).collect();
    Recorder { plugin: plugin(), command, log: false }.count().expect("the program runs")
}

/// Plain runtime addresses.
struct Runtime<'s>(&'s AddressSpaces);

impl AddressNames for Runtime<'_> {
    fn name(&self, addr: CodeAddr) -> (Option<&str>, u64) {
        let versions = self.0.versions();
        let runtime = addr
            .image
            .and_then(|image| versions.iter().find_map(|(_, space)| space.avma(image, Svma(addr.addr))));
        (None, runtime.map_or(addr.addr, |ip| ip.0))
    }
}

impl Recording {
    /// Where it lies.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("the recorder wrote it")
    }

    /// A number of `totals.json`, the sum over threads.
    pub fn total(&self, key: &str) -> u64 {
        let totals = self.text("totals.json");
        let (_, rest) = totals.split_once(&format!("\"{key}\": ")).expect("the total is there");
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().expect("a number")
    }

    /// Trace bytes of each stream.
    pub fn stream_sizes(&self) -> Vec<u64> {
        let file = PerfFile::open(&self.path("perf.data")).expect("our own file");
        let capture = Capture::read(&file).expect("our own file");
        capture.streams.iter().map(|stream| stream.trace.len()).collect()
    }

    /// The recorder could explain every step.
    pub fn explained(&self) {
        assert_eq!(self.total("unexplained"), 0);
    }

    /// Every decoder gives the truth.
    #[track_caller]
    pub fn check(&self) {
        self.explained();
        for verdict in [self.native_equals_truth(), self.perf_equals_truth(), self.libipt_equals_truth()] {
            verdict.unwrap_or_else(|difference| panic!("{difference}"));
        }
    }

    /// Our own decoder: the same counts by every engine and number of threads, and the same order.
    pub fn native_equals_truth(&self) -> Verdict {
        let truth = self.text("truth.edges");
        let engines = [
            (Engine::Fast, 1, 1 << 20),
            (Engine::Fast, 2, 1),
            (Engine::Fast, 7, 64 << 10),
            (Engine::Interrupted(3), 2, 1 << 20),
            (Engine::Careful, 2, 64 << 10),
        ];
        for (engine, threads, unit_bytes) in engines {
            let (text, instructions) = self.decode(engine, threads, unit_bytes)?;
            let what = format!("{engine:?}, {threads} threads, units of {unit_bytes}");
            same_lines(&text, &truth, &what)?;
            ensure(instructions == self.total("instructions"), || {
                format!("{what}: {instructions} instructions")
            })?;
        }
        let way = Way { engine: Engine::Fast, threads: 2, unit_bytes: 1 << 18 };
        order::compare(self.folder(), way, |_, _, _, _| {}).map_err(|error| format!("{error:#}"))
    }

    /// Our own decoder, on a trace with losses: no execution is invented, and none is missing but of transfers that nobody
    /// can know.
    pub fn native_lacks_only_the_unknowable(&self) -> Verdict {
        let (text, _) = self.decode(Engine::Fast, 2, 1 << 20)?;
        for (engine, threads, unit_bytes) in
            [(Engine::Careful, 1, 1 << 20), (Engine::Interrupted(2), 2, 1 << 16), (Engine::Fast, 7, 1)]
        {
            let (other, _) = self.decode(engine, threads, unit_bytes)?;
            same_lines(&other, &text, &format!("{engine:?} against the fast walker"))?;
        }
        let rows = |text: &str| -> BTreeMap<_, _> {
            let rows = ptflow_exporters::edges::read(text.as_bytes()).expect("an edge table");
            rows.into_iter().map(|row| ((row.from, row.to, row.kind), (row.taken, row.not_taken))).collect()
        };
        let (mut found, truth) = (rows(&text), rows(&self.text("truth.edges")));
        let unknowable = rows(&self.text("truth.unknowable"));
        for (key, (taken, not_taken)) in truth {
            let ours = found.remove(&key).unwrap_or((0, 0));
            let slack = unknowable.get(&key).copied().unwrap_or((0, 0));
            let truth = format!("{ours:?} of {taken} {not_taken}, unknowable {slack:?}");
            ensure(ours.0 <= taken && ours.1 <= not_taken, || format!("{key:?} is invented: {truth}"))?;
            ensure(ours.0 + slack.0 >= taken && ours.1 + slack.1 >= not_taken, || {
                format!("{key:?} is missing: {truth}")
            })?;
        }
        ensure(found.is_empty(), || format!("invented: {found:?}"))
    }

    /// Decodes, and hands over the code, where it was mapped, and the edges.
    pub fn rows<T>(&self, then: impl FnOnce(&ImageStore, &AddressSpaces, &[EdgeRow]) -> T) -> T {
        let file = PerfFile::open(&self.path("perf.data")).expect("our own file");
        let capture = Capture::read(&file).expect("our own file");
        let store = ImageStore::load(&capture, &ImageSearch::default());
        let images = store.images();
        let spaces = store.address_spaces(capture.streams[0].pid.expect("a process"));
        let context = |stream| Context {
            stream,
            images: &images,
            spaces: &spaces,
            config: &capture.config,
            owners: &[],
        };
        let contexts: Vec<Context<'_, '_>> =
            capture.streams.iter().map(|stream| context(&stream.trace)).collect();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
        let options = Options { pool: &pool, engine: Engine::Fast, unit_bytes: 1 << 20, progress: &|_| {} };
        then(&store, &spaces, &count(&contexts, &options).rows)
    }

    fn decode(&self, engine: Engine, threads: usize, unit_bytes: usize) -> Result<(String, u64), String> {
        let file = PerfFile::open(&self.path("perf.data")).expect("our own file");
        let capture = Capture::read(&file).expect("our own file");
        assert_eq!(capture.notes, Vec::<String>::new());
        let store = ImageStore::load(&capture, &ImageSearch::default());
        let images = store.images();
        let spaces = store.address_spaces(capture.streams[0].pid.expect("a process"));
        let contexts: Vec<Context<'_, '_>> = capture
            .streams
            .iter()
            .map(|stream| Context {
                stream: &stream.trace,
                images: &images,
                spaces: &spaces,
                config: &capture.config,
                owners: &[],
            })
            .collect();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        let counts = count(&contexts, &Options { pool: &pool, engine, unit_bytes, progress: &|_| {} });
        for (ledger, stream) in counts.ledgers.iter().zip(&capture.streams) {
            if !self.path("truth.unknowable").exists() {
                ensure(ledger.losses.is_empty(), || format!("something is lost: {:?}", ledger.losses))?;
            }
            let bytes = ledger.decoded + ledger.lost();
            ensure(bytes == stream.trace.len(), || format!("{bytes} bytes of {}", stream.trace.len()))?;
        }
        let mut text = Vec::new();
        ptflow_exporters::edges::write(&mut text, &counts.rows, &Runtime(&spaces)).expect("a Vec takes all");
        Ok((String::from_utf8(text).expect("text"), counts.instructions))
    }

    /// perf: no error, and the same taken branches. It knows no not-taken ones.
    pub fn perf_equals_truth(&self) -> Verdict {
        let output = Command::new("perf")
            .args(["script", "--itrace=be", "-F", "ip,addr,flags", "-i"])
            .arg(self.path("perf.data"))
            .output()
            .expect("perf runs: install Debian's package linux-perf");
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure(!stderr.contains("errors"), || format!("perf: {stderr}"))?;
        let mut found: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            ensure(!line.contains("error"), || format!("perf: {line}"))?;
            let Some((left, to)) = line.split_once("=>") else { continue };
            let hex = |word: &str| u64::from_str_radix(word.trim(), 16).expect("an address");
            let (flags, from) = left.trim().rsplit_once(' ').expect("flags and an address");
            // Trace on and off are no edges of the program.
            if !flags.contains("tr ") {
                *found.entry((hex(from), hex(to))).or_insert(0) += 1;
            }
        }
        let mut truth: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        for row in ptflow_exporters::edges::read(self.text("truth.edges").as_bytes()).expect("the truth") {
            let hex =
                |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("an address");
            if let (Some(from), Some(to)) = (&row.from, &row.to)
                && row.taken > 0
            {
                *truth.entry((hex(from), hex(to))).or_insert(0) += row.taken;
            }
        }
        let lines = |edges: &BTreeMap<(u64, u64), u64>| {
            edges.iter().map(|((from, to), count)| format!("{from:x} {to:x} {count}\n")).collect::<String>()
        };
        same_lines(&lines(&found), &lines(&truth), "perf")
    }

    /// libipt, where this build has it.
    #[cfg(feature = "oracle")]
    pub fn libipt_equals_truth(&self) -> Verdict {
        use ptflow_decoder::oracle::{Session, stretches};
        use ptflow_decoder::profile::merge_rows;
        let file = PerfFile::open(&self.path("perf.data")).expect("our own file");
        let capture = Capture::read(&file).expect("our own file");
        let store = ImageStore::load(&capture, &ImageSearch::default());
        let images = store.images();
        let spaces = store.address_spaces(capture.streams[0].pid.expect("a process"));
        let (_, space) = spaces.versions().last().expect("an address space");
        let mut rows = Vec::new();
        for stream in &capture.streams {
            for trace in stretches(&stream.trace) {
                let edges =
                    Session::new(&trace, &images, space, &capture.config).edges().expect("libipt runs");
                ensure(edges.failures.is_empty(), || format!("libipt: {:?}", edges.failures[0]))?;
                rows.extend(edges.rows);
            }
        }
        merge_rows(&mut rows);
        let mut text = Vec::new();
        ptflow_exporters::edges::write(&mut text, &rows, &Runtime(&spaces)).expect("a Vec takes all");
        same_lines(&String::from_utf8(text).expect("text"), &self.text("truth.edges"), "libipt")
    }

    /// Without the feature there is no libipt to ask; `./test` builds with it.
    #[cfg(not(feature = "oracle"))]
    pub fn libipt_equals_truth(&self) -> Verdict {
        Ok(())
    }
}

fn ensure(holds: bool, complaint: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(complaint()) }
}

/// Compares line by line, and tells the first few that differ.
fn same_lines(found: &str, truth: &str, what: &str) -> Verdict {
    if found == truth {
        return Ok(());
    }
    let set = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    let (ours, theirs) = (set(found), set(truth));
    let first = |a: &std::collections::BTreeSet<String>, b: &std::collections::BTreeSet<String>| {
        a.difference(b).take(5).cloned().collect::<Vec<_>>().join("\n")
    };
    let (found, truth) = (first(&ours, &theirs), first(&theirs, &ours));
    Err(format!("{what} differs from the truth; found:\n{found}\ntruth:\n{truth}"))
}
