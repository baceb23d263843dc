//! Profiles all the way to faster programs: what LLVM's tools make of them, and what the programs then do.

mod kit;

use kit::{Recording, counts, record};
use ptflow_bench_traces::log::{Entry, LogReader};
use ptflow_bench_traces::options::PtOptions;
use ptflow_decoder::image::CodeImage;
use ptflow_decoder::insn::InsnStream;
use ptflow_decoder::packet::ExecMode;
use ptflow_decoder::profile::EdgeKind;
use ptflow_decoder::units::{ImageId, Ip, Svma};
use ptflow_exporters::check::check;
use ptflow_exporters::flow::Flow;
use ptflow_exporters::ranges::{Entered, Ranges, StraightRange, derive};
use ptflow_exporters::sample_profile::{Frame, SampleProfile, SourceLines};
use ptflow_exporters::{bolt, counted_lines, llvm_extbinary, llvm_text};
use ptflow_perf_import::dwarf::{DebugSections, SourceMap};
use ptflow_perf_import::images::BinaryFile;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Ranges worked out from edges are those that the recorder saw, one execution after the other.
#[test]
fn ranges_are_those_of_the_ordered_truth() {
    let nasty = kit::compile("nasty.c", &[]);
    let nasty = [nasty.path().to_str().expect("UTF-8")];
    for (command, options) in [
        (&["/usr/bin/gzip", "-9", "-c", "/bin/ls"][..], PtOptions::default()),
        (&nasty[..], PtOptions::default()),
        (&nasty[..], PtOptions { interrupts: 200, ..PtOptions::default() }),
    ] {
        let recording = record(command, options);
        recording.rows(|store, spaces, rows| {
            let (_, space) = spaces.versions().last().expect("an address space");
            let images = store.images();
            let place = |addr: u64| {
                let mapping = space.find(Ip(addr)).expect("mapped");
                (mapping.image, mapping.to_svma(Ip(addr)).0)
            };
            let mut truth: BTreeMap<ImageId, Ranges> = BTreeMap::new();
            for log in logs(recording.folder()) {
                let insns = |addr: u64| {
                    let (image, svma) = place(addr);
                    let bytes = images.get(image).and_then(|image| image.code_at(Svma(svma))).expect("code");
                    InsnStream::new(bytes, addr, ExecMode::Bits64)
                };
                for ((start, end, entered), count) in ranges_of(&log, insns) {
                    let ((image, start), (_, end)) = (place(start), place(end));
                    let ranges = truth.entry(image).or_default();
                    *ranges.counts.entry(StraightRange { start, end, entered }).or_default() += count;
                }
            }
            for image in (0..store.image_count()).map(ImageId) {
                let code = images.get(image).expect("an image");
                let derived = derive(rows, |other| other == image, code);
                assert_eq!(derived.unexplained, 0);
                let truth = truth.remove(&image).unwrap_or_default();
                let (ours, theirs) = (steps(&derived, code), steps(&truth, code));
                let name = store.image_name(image);
                let odd = ours.iter().filter(|(step, count)| theirs.get(step) != Some(count));
                let odd: Vec<_> =
                    odd.chain(theirs.iter().filter(|(step, _)| !ours.contains_key(step))).take(5).collect();
                assert!(odd.is_empty(), "{command:?} {name}: {odd:x?}");
                if !theirs.is_empty() {
                    eprintln!(
                        "{command:?}: {} steps in {} ranges of {name}",
                        theirs.len(),
                        truth.counts.len()
                    );
                }
            }
        });
    }
}

/// What ranges come to, however they are cut: how often flow came to an instruction by a jump, by a return, or from the
/// instruction before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Step {
    Jump(u64),
    Return(u64),
    Behind(u64),
}

fn steps(ranges: &Ranges, code: &CodeImage<'_>) -> BTreeMap<Step, u64> {
    let mut steps = BTreeMap::new();
    for (range, count) in &ranges.counts {
        let mut add = |step| *steps.entry(step).or_default() += count;
        match range.entered {
            Entered::Jump => add(Step::Jump(range.start)),
            Entered::Return => add(Step::Return(range.start)),
            Entered::Through => {}
        }
        let insns =
            InsnStream::new(code.code_at(Svma(range.start)).expect("code"), range.start, ExecMode::Bits64);
        insns.take_while(|insn| insn.addr < range.end).for_each(|insn| add(Step::Behind(insn.addr)));
    }
    steps
}

fn logs(folder: &Path) -> Vec<Vec<Entry>> {
    let files = std::fs::read_dir(folder).expect("the folder").map(|file| file.expect("a file").path());
    let logs = files.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    logs.map(|path| LogReader::open(&path).expect("a log").map(|entry| entry.expect("an entry")).collect())
        .collect()
}

/// The straight stretches of one thread, by runtime address. Who is interrupted, or makes a system call, goes on with the
/// stretch that he was in when he comes back to where he would have gone on.
fn ranges_of<'c>(log: &[Entry], insns: impl Fn(u64) -> InsnStream<'c>) -> BTreeMap<(u64, u64, Entered), u64> {
    let mut ranges = BTreeMap::new();
    let mut now: Option<(u64, Entered)> = None;
    let mut paused: Vec<(u64, (u64, Entered))> = Vec::new();
    for entry in log {
        match (entry.kind, entry.from, entry.to) {
            (EdgeKind::Async | EdgeKind::Syscall | EdgeKind::Far, Some(from), to) => {
                let back = match entry.kind {
                    EdgeKind::Async => from,
                    _ => insns(from).next().expect("an instruction").next(),
                };
                paused.extend(now.take().map(|start| (back, start)));
                now = to.map(|to| comes_back(&mut paused, to));
            }
            (EdgeKind::Resume, _, Some(to)) => now = Some(comes_back(&mut paused, to)),
            (kind, Some(from), to) => {
                if let Some((start, entered)) = now.take() {
                    *ranges.entry((start, from, entered)).or_default() += 1;
                }
                now = match (entry.taken, kind, to) {
                    (false, ..) => Some((from, Entered::Through)),
                    (true, EdgeKind::Ret, Some(to)) => Some((to, Entered::Return)),
                    (true, _, to) => to.map(|to| (to, Entered::Jump)),
                };
            }
            _ => {}
        }
    }
    // Who never came back got as far as the instruction before.
    for (back, (start, entered)) in paused {
        if let Some(last) = insns(start).take_while(|insn| insn.addr < back).last() {
            *ranges.entry((start, last.addr, entered)).or_default() += 1;
        }
    }
    ranges
}

fn comes_back(paused: &mut Vec<(u64, (u64, Entered))>, to: u64) -> (u64, Entered) {
    match paused.iter().rposition(|(back, _)| *back == to) {
        Some(at) => paused.remove(at).1,
        None => (to, Entered::Jump),
    }
}

/// LLVM's tools, from Debian's packages clang-19, lld-19, llvm-19, bolt-19 and libbolt-19-dev.
const LLVM: &str = "/usr/lib/llvm-19/bin";

/// Runs a tool; gives all that it prints.
fn tool(name: &str, folder: &Path, args: &[&str]) -> String {
    let program = if name.starts_with('.') { name.to_owned() } else { format!("{LLVM}/{name}") };
    let output = Command::new(&program).args(args).current_dir(folder).output().unwrap_or_else(|error| {
        panic!("{program} runs: {error}; install Debian's packages clang-19 lld-19 llvm-19 bolt-19 libbolt-19-dev")
    });
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let all = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {all}");
    all
}

struct Lines<'d>(SourceMap<'d>);

impl<'d> SourceLines<'d> for Lines<'d> {
    fn frames(&self, addr: u64, frames: &mut Vec<Frame<'d>>) {
        let mut found = Vec::new();
        self.0.frames(addr, &mut found);
        frames.clear();
        let frame = |frame: ptflow_perf_import::dwarf::SourceFrame<'d>| Frame {
            function: frame.function,
            declared: frame.declared,
            line: frame.line,
            discriminator: frame.discriminator,
        };
        frames.extend(found.into_iter().map(frame));
    }

    fn entered_at(&self, addr: u64) -> Option<&'d str> {
        self.0.function_entered_at(addr).map(|function| function.name)
    }

    fn ranges_around(&self, addr: u64) -> Vec<(u64, u64)> {
        self.0.function_at(addr).map(|function| function.parts.clone()).unwrap_or_default()
    }
}

/// A program in a folder of its own, with what it takes to build it and to run it.
struct Bed {
    folder: TempDir,
    sources: Vec<String>,
    flags: Vec<String>,
    arguments: Vec<String>,
}

impl Bed {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn build(&self, name: &str, more: &[&str]) {
        const FLAGS: [&str; 8] = [
            "-O2",
            "-g",
            "-fdebug-info-for-profiling",
            "-funique-internal-linkage-names",
            "-fuse-ld=lld",
            "-Wl,--emit-relocs",
            "-Wno-everything",
            "-o",
        ];
        let mut args = FLAGS.to_vec();
        args.push(name);
        args.extend(self.sources.iter().chain(&self.flags).map(String::as_str));
        args.extend(more);
        tool("clang", self.folder.path(), &args);
    }

    fn command(&self, name: &str) -> Vec<String> {
        let program = self.path(name).to_str().expect("UTF-8").to_owned();
        std::iter::once(program).chain(self.arguments.iter().cloned()).collect()
    }

    fn record(&self, name: &str) -> Recording {
        let command = self.command(name);
        record(&command.iter().map(String::as_str).collect::<Vec<_>>(), PtOptions::default())
    }

    /// Branches that the program takes.
    fn taken(&self, name: &str) -> u64 {
        let command = self.command(name);
        let taken = counts(&command.iter().map(String::as_str).collect::<Vec<_>>()).taken_branches;
        eprintln!("{name} takes {taken} branches");
        taken
    }

    fn write(&self, name: &str, content: impl FnOnce(&mut File) -> std::io::Result<()>) {
        content(&mut File::create(self.path(name)).expect("a file")).expect("written");
    }

    /// From the trace to profiles in all formats, judged by LLVM's tools; then to programs, judged by what they do.
    fn all_the_way(&self) {
        self.build("base", &[]);
        let recording = self.record("base");
        recording.native_equals_truth().unwrap_or_else(|difference| panic!("{difference}"));
        let binary = BinaryFile::open(&self.path("base")).expect("our program");
        let code: CodeImage<'_> = binary.code();
        let flow = recording.rows(|store, _, rows| {
            let is_own = |image| store.file(image).is_some_and(|file| file.mapped.path.ends_with("/base"));
            Flow::new(rows, is_own, &code)
        });
        let verdict = check(&flow, &code, true);
        assert!(verdict.fits() && verdict.unequal.is_empty() && verdict.branches > 20, "{verdict}");

        self.write("bolt.preagg", |out| bolt::write(out, &flow));
        self.write("unsymbolized", |out| counted_lines::write_unsymbolized(out, &flow, &code));
        let sections = DebugSections::of(binary.bytes());
        let samples = SampleProfile::new(&flow, &code, &Lines(SourceMap::read(&sections)));
        self.write("ours.text", |out| llvm_text::write(out, &samples));
        self.write("ours.binary", |out| llvm_extbinary::write(out, &samples));
        self.sample_profile_is_llvms();
        self.programs_are_faster();
    }

    /// llvm-profgen makes the same of the same ranges, to the byte; and llvm-profdata reads both forms alike.
    fn sample_profile_is_llvms(&self) {
        let folder = self.folder.path();
        let profgen = |name: &str, format: &str| {
            let format = format!("--format={format}");
            let output = format!("--output={name}");
            let args =
                ["--unsymbolized-profile=unsymbolized", "--use-offset=0", "--binary=base", &output, &format];
            tool("llvm-profgen", folder, &args);
        };
        profgen("theirs.text", "text");
        profgen("theirs.binary", "extbinary");
        let read = |name: &str| std::fs::read_to_string(self.path(name)).expect("a profile");
        let (ours, theirs) = (read("ours.text"), read("theirs.text"));
        let odd = ours.lines().zip(theirs.lines()).find(|(ours, theirs)| ours != theirs);
        assert!(ours == theirs, "ours, theirs: {odd:?}");
        let show = |name: &str| {
            tool(
                "llvm-profdata",
                folder,
                &["show", "--sample", "--all-functions", "--detailed-summary", name],
            )
        };
        assert!(show("ours.binary") == show("theirs.binary"), "the binary form has the same in it");
    }

    fn programs_are_faster(&self) {
        let folder = self.folder.path();
        let base = self.taken("base");
        for (name, profile) in [("text", "ours.text"), ("binary", "ours.binary"), ("theirs", "theirs.binary")]
        {
            self.build(name, &[&format!("-fprofile-sample-use={profile}")]);
        }
        let bytes = |name: &str| std::fs::read(self.path(name)).expect("a program");
        assert!(bytes("binary") == bytes("theirs"), "the same profile makes the same program");
        assert!(self.taken("text") < base && self.taken("binary") < base);

        let told = tool("perf2bolt", folder, &["--pa", "-p", "bolt.preagg", "base", "-o", "bolt.fdata"]);
        assert!(told.contains("Out of range traces involving unknown regions: 0 "), "{told}");
        let optimise = |profile: &str, out: &str| {
            let data = format!("-data={profile}");
            let args = [
                "base",
                "-o",
                out,
                &data,
                "-reorder-blocks=ext-tsp",
                "-reorder-functions=hfsort",
                "-split-functions",
            ];
            let told = tool("llvm-bolt", folder, &args);
            assert!(!told.contains("stale"), "{told}");
        };
        optimise("bolt.fdata", "bolted");
        let file = format!("-instrumentation-file={}", self.path("counted.fdata").display());
        tool("llvm-bolt", folder, &["base", "-o", "instrumented", "-instrument", &file]);
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        tool("./instrumented", folder, &arguments);
        optimise("counted.fdata", "bolted-by-instrumentation");
        let (ours, theirs) = (self.taken("bolted"), self.taken("bolted-by-instrumentation"));
        assert!(ours < base);
        assert!(ours as f64 <= 1.005 * theirs as f64, "{ours} branches, {theirs} with BOLT's own counts");
    }
}

fn program(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name);
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn a_small_program_all_the_way() {
    let bed = Bed {
        folder: TempDir::new().expect("a folder"),
        sources: vec![program("words.c")],
        flags: Vec::new(),
        arguments: Vec::new(),
    };
    bed.all_the_way();
}

/// SQLite, as the crate libsqlite3-sys brings it.
#[test]
#[ignore = "builds SQLite five times: minutes; run with ./test --all"]
fn sqlite_all_the_way() {
    let folder = TempDir::new().expect("a folder");
    let manifest = "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\
                    [lib]\npath = \"lib.rs\"\n[dependencies]\nlibsqlite3-sys = \"=0.30.1\"\n[workspace]\n";
    std::fs::write(folder.path().join("Cargo.toml"), manifest).expect("written");
    std::fs::write(folder.path().join("lib.rs"), "").expect("written");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1"])
        .current_dir(folder.path())
        .output()
        .expect("cargo runs");
    let metadata = String::from_utf8_lossy(&output.stdout);
    let end = metadata.find("/libsqlite3-sys-0.30.1/Cargo.toml").expect("cargo fetches libsqlite3-sys");
    let start = metadata[..end].rfind('"').expect("a path begins") + 1;
    let source = format!("{}/libsqlite3-sys-0.30.1/sqlite3", &metadata[start..end]);
    let flags = ["-DSQLITE_THREADSAFE=0", "-DSQLITE_OMIT_LOAD_EXTENSION", "-lm", &format!("-I{source}")]
        .map(str::to_owned);
    let bed = Bed {
        folder,
        sources: vec![format!("{source}/sqlite3.c"), program("sqlite_load.c")],
        flags: flags.to_vec(),
        arguments: vec!["5".to_owned()],
    };
    bed.all_the_way();
}
