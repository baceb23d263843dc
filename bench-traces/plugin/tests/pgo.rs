//! Profiles all the way to faster programs: what LLVM's tools make of them, and what the programs then do.

mod kit;

use kit::{Recording, counts, record};
use ptflow_bench_traces::log::{Entry, LogReader};
use ptflow_bench_traces::options::PtOptions;
use ptflow_bench_traces::stacks::{StackArgs, sample};
use ptflow_decoder::image::{AddressSpace, CodeImage, Images};
use ptflow_decoder::insn::InsnStream;
use ptflow_decoder::packet::ExecMode;
use ptflow_decoder::profile::{CodeAddr, EdgeKind, EdgeRow};
use ptflow_decoder::units::{ImageId, Ip, Svma};
use ptflow_exporters::check::check;
use ptflow_exporters::flow::Flow;
use ptflow_exporters::probe_profile::{Probe, ProbeFrame, ProbeSource};
use ptflow_exporters::ranges::{Entered, Ranges, StraightRange, derive};
use ptflow_exporters::sample_profile::{Frame, SampleProfile, SourceLines};
use ptflow_exporters::{bolt, counted_lines, llvm_extbinary, llvm_text};
use ptflow_perf_import::dwarf::{DebugSections, SourceMap};
use ptflow_perf_import::images::{BinaryFile, ImageSearch, ImageStore};
use ptflow_perf_import::pseudo_probes::{ProbeKind, ProbeSections, PseudoProbes};
use ptflow_perf_import::stacks::{Traces, resolve};
use ptflow_perf_import::{Capture, PerfFile};
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
            let mut truth = ranges_of_logs(recording.folder(), &images, space);
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

/// Branch stacks of a whole run: each begins with the branch that the one before ended with, so that each stretch between two
/// branches is in one of them. They come to the ranges that the recorder saw, and to its counts of taken branches.
#[test]
fn stacks_of_a_whole_run_are_the_run() {
    const DEPTH: u32 = 32;
    // No signals: their delivery leaves no entry, and what ran before and in the handler looks like one stretch.
    let recording = record(&["/usr/bin/gzip", "-9", "-c", "/bin/ls"], PtOptions::default());
    let output = recording.folder().join("stacks.data");
    let args = StackArgs {
        recording: recording.folder().to_owned(),
        output: output.clone(),
        every: DEPTH - 1,
        depth: DEPTH,
    };
    let sampled = sample(&args).expect("sampled");
    let file = PerfFile::open(&output).expect("our own file");
    let capture = Capture::read(&file).expect("our own file");
    assert_eq!(
        (capture.branch_stacks.samples, capture.branch_stacks.entries),
        (sampled.samples, sampled.entries)
    );
    let store = ImageStore::load(&capture, &ImageSearch::default());
    let images = store.images();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
    let profile = resolve(&Traces::count(&capture, &store, &pool, |_| true), &images);
    assert_eq!((profile.sums.impossible, profile.sums.outside, profile.sums.impossible_ranges), (0, 0, 0));
    // Of the last branches of each thread there is no sample.
    let threads = logs(recording.folder()).len() as u64;
    let most = threads * u64::from(DEPTH);
    recording.rows(|true_store, spaces, rows| {
        let taken = |rows: &[EdgeRow], name: &dyn Fn(ImageId) -> String| {
            let mut taken: BTreeMap<_, u64> = BTreeMap::new();
            for row in rows.iter().filter(|row| row.taken > 0 && is_branch(row.kind)) {
                let end = |addr: Option<CodeAddr>| addr.map(|addr| (addr.image.map(name), addr.addr));
                *taken.entry((row.kind, end(row.from), end(row.to))).or_default() += row.taken;
            }
            taken
        };
        let truth = taken(rows, &|image| true_store.image_name(image));
        let ours = taken(&profile.rows, &|image| store.image_name(image));
        let all: u64 = truth.values().sum();
        let counted: u64 = ours.values().sum();
        // The oldest entry of a stack is the youngest of the one before: it counts twice.
        let once = counted - (sampled.samples - threads);
        assert!(once <= all && all - once < most, "{once} of {all} branches");
        for edge in ours.keys() {
            assert!(truth.contains_key(edge), "{edge:x?} never ran");
        }
        let (_, space) = spaces.versions().last().expect("an address space");
        let logged = ranges_of_logs(recording.folder(), &true_store.images(), space);
        let (mut stretches, mut missing) = (0, 0);
        for (image, logged) in &logged {
            let name = true_store.image_name(*image);
            let Some(own) = (0..store.image_count()).map(ImageId).find(|own| store.image_name(*own) == name)
            else {
                continue;
            };
            let code = images.get(own).expect("an image");
            let (ours, theirs) = (steps(&counted_ranges(&profile.rows, own), code), steps(logged, code));
            for (step, count) in theirs.iter().filter(|(step, _)| matches!(step, Step::Behind(_))) {
                let found = ours.get(step).copied().unwrap_or(0);
                assert!(found <= *count && count - found <= most, "{name}: {step:x?} {found} of {count}");
                (stretches, missing) = (stretches + count, missing + count - found);
            }
            for step in ours.keys().filter(|step| matches!(step, Step::Behind(_))) {
                assert!(theirs.contains_key(step), "{name}: {step:x?} never ran");
            }
        }
        eprintln!(
            "{} samples: {once} of {all} branches, all but {missing} of {stretches} steps",
            sampled.samples
        );
        assert!(missing < stretches / 100);
    });
}

fn is_branch(kind: EdgeKind) -> bool {
    use EdgeKind::{Call, CallInd, Jcc, Jmp, JmpInd, Ret};
    matches!(kind, Jcc | Jmp | Call | JmpInd | CallInd | Ret)
}

/// The ranges that stacks tell of an image.
fn counted_ranges(rows: &[EdgeRow], image: ImageId) -> Ranges {
    ptflow_exporters::ranges::counted(rows, |other| other == image)
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

/// The ordered truth of each thread.
fn logs(folder: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder).expect("the folder").map(|file| file.expect("a file").path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "log")).collect()
}

/// The ranges that the recorder saw, of each image.
fn ranges_of_logs(folder: &Path, images: &Images<'_>, space: &AddressSpace) -> BTreeMap<ImageId, Ranges> {
    let place = |addr: u64| {
        let mapping = space.find(Ip(addr)).expect("mapped");
        (mapping.image, mapping.to_svma(Ip(addr)).0)
    };
    let insns = |addr: u64| {
        let (image, svma) = place(addr);
        let bytes = images.get(image).and_then(|image| image.code_at(Svma(svma))).expect("code");
        InsnStream::new(bytes, addr, ExecMode::Bits64)
    };
    let mut truth: BTreeMap<ImageId, Ranges> = BTreeMap::new();
    for path in logs(folder) {
        let log = LogReader::open(&path).expect("a log").map(|entry| entry.expect("an entry"));
        for ((start, end, entered), count) in ranges_of(log, insns) {
            let ((image, start), (_, end)) = (place(start), place(end));
            let ranges = truth.entry(image).or_default();
            *ranges.counts.entry(StraightRange { start, end, entered }).or_default() += count;
        }
    }
    truth
}

/// The straight stretches of one thread, by runtime address. Who is interrupted, or makes a system call, goes on with the
/// stretch that he was in when he comes back to where he would have gone on.
fn ranges_of<'c>(
    log: impl Iterator<Item = Entry>,
    insns: impl Fn(u64) -> InsnStream<'c>,
) -> BTreeMap<(u64, u64, Entered), u64> {
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

struct Probes<'p, 'd>(&'p PseudoProbes<'d>);

impl<'d> ProbeSource<'d> for Probes<'_, 'd> {
    fn probes_at(&self, addr: u64, each: &mut dyn FnMut(Probe<'_, 'd>)) {
        for probe in self.0.at(addr) {
            let mut found = Vec::new();
            self.0.frames(probe, &mut found);
            let frame = |frame: &ptflow_perf_import::pseudo_probes::ProbeFrame<'d>| ProbeFrame {
                function: frame.function,
                checksum: frame.checksum,
                probe: frame.probe,
            };
            let frames: Vec<_> = found.iter().map(frame).collect();
            let is_call = probe.kind == ProbeKind::Call;
            let Some(outermost) = self.0.outermost(probe) else { continue };
            each(Probe { outermost, frames: &frames, discriminator: probe.discriminator, is_call });
        }
    }
}

/// The flow through the program of that name, with ranges worked out from edges, and with those that the recorder saw.
fn flows(recording: &Recording, name: &str, code: &CodeImage<'_>) -> (Flow, Flow) {
    recording.rows(|store, spaces, rows| {
        let is_own = |image| store.file(image).is_some_and(|file| file.mapped.path.ends_with(name));
        let derived = Flow::new(rows, is_own, code);
        let (_, space) = spaces.versions().last().expect("an address space");
        let logged = ranges_of_logs(recording.folder(), &store.images(), space);
        let own = logged.into_iter().find(|(image, _)| is_own(*image));
        let (_, ranges) = own.expect("the program ran");
        (derived.clone(), Flow { ranges, ..derived })
    })
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

    /// Branches that the program takes. All programs run under one name: its length moves the stack, and with it what code for
    /// strings does, by more than what is to be compared.
    fn taken(&self, name: &str) -> u64 {
        std::fs::copy(self.path(name), self.path("program")).expect("copied");
        let command = self.command("program");
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
        let (flow, counted) = flows(&recording, "/base", &code);
        let verdict = check(&flow, &code, true);
        assert!(verdict.fits() && verdict.unequal.is_empty() && verdict.branches > 20, "{verdict}");

        let sections = DebugSections::of(binary.bytes());
        let lines = Lines(SourceMap::read(&sections));
        for (flow, preaggregated, unsymbolized, text) in [
            (&flow, "bolt.preagg", "unsymbolized", "ours.text"),
            (&counted, "logged.preagg", "logged.unsymbolized", "logged.text"),
        ] {
            self.write(preaggregated, |out| bolt::write(out, flow));
            self.write(unsymbolized, |out| counted_lines::write_unsymbolized(out, flow, &code));
            self.write(text, |out| llvm_text::write(out, &SampleProfile::new(flow, &code, &lines)));
        }
        self.write("ours.binary", |out| {
            llvm_extbinary::write(out, &SampleProfile::new(&flow, &code, &lines))
        });
        self.is_llvms("base", "unsymbolized", "ours");
        self.derived_is_counted();
        self.programs_are_faster();
        self.with_probes();
    }

    /// Ranges worked out from edges, and ranges counted one by one as they ran, come to the same profiles.
    fn derived_is_counted(&self) {
        let fdata = |preaggregated: &str, out: &str| {
            let told =
                tool("perf2bolt", self.folder.path(), &["--pa", "-p", preaggregated, "base", "-o", out]);
            assert!(told.contains("Out of range traces involving unknown regions: 0 "), "{told}");
            self.read(out)
        };
        let (derived, logged) = (fdata("bolt.preagg", "bolt.fdata"), fdata("logged.preagg", "logged.fdata"));
        let odd = derived.lines().zip(logged.lines()).find(|(derived, logged)| derived != logged);
        assert!(derived == logged, "derived, logged: {odd:?}");
        assert!(self.read("ours.text") == self.read("logged.text"), "the same sample profile");
        let ranges = |name: &str| self.read(name).lines().next().map(str::to_owned).expect("a number");
        eprintln!(
            "{} edges of perf2bolt and {} lines of sample profile, the same from {} derived and {} logged ranges",
            derived.lines().count(),
            self.read("ours.text").lines().count(),
            ranges("unsymbolized"),
            ranges("logged.unsymbolized")
        );
    }

    /// The program with pseudo-probes: profiles are by probe then.
    fn with_probes(&self) {
        const PROBES: &str = "-fpseudo-probe-for-profiling";
        self.build("probed", &[PROBES]);
        let recording = self.record("probed");
        let binary = BinaryFile::open(&self.path("probed")).expect("our program");
        let code: CodeImage<'_> = binary.code();
        let (flow, _) = flows(&recording, "/probed", &code);
        let sections = DebugSections::of(binary.bytes());
        let lines = Lines(SourceMap::read(&sections));
        let sections = ProbeSections::of(binary.bytes());
        let probes = PseudoProbes::read(&sections);
        let samples = SampleProfile::of_probes(&flow, &code, &lines, &Probes(&probes));
        self.write("probed.unsymbolized", |out| counted_lines::write_unsymbolized(out, &flow, &code));
        self.write("ours-probed.text", |out| llvm_text::write(out, &samples));
        self.write("ours-probed.binary", |out| llvm_extbinary::write(out, &samples));
        self.is_llvms("probed", "probed.unsymbolized", "ours-probed");
        let profile = |profile: &str| format!("-fprofile-sample-use={profile}");
        self.build("by-probes", &[PROBES, &profile("ours-probed.binary")]);
        self.build("by-probes-theirs", &[PROBES, &profile("ours-probed-theirs.binary")]);
        // The same code; clang 19 numbers what goes with the probes differently from one run to the next.
        let (ours, theirs) = (self.taken("by-probes"), self.taken("by-probes-theirs"));
        assert_eq!(ours, theirs, "the same profile makes the same program");
        assert!(ours < self.taken("probed"));
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("a profile")
    }

    /// llvm-profgen makes the same of the same ranges, to the byte; and llvm-profdata reads both forms alike.
    fn is_llvms(&self, program: &str, unsymbolized: &str, ours: &str) {
        let folder = self.folder.path();
        let theirs = format!("{ours}-theirs");
        for (kind, format) in [("text", "text"), ("binary", "extbinary")] {
            let args = [
                format!("--unsymbolized-profile={unsymbolized}"),
                "--use-offset=0".to_owned(),
                format!("--binary={program}"),
                format!("--output={theirs}.{kind}"),
                format!("--format={format}"),
            ];
            tool("llvm-profgen", folder, &args.each_ref().map(String::as_str));
        }
        let (our_text, their_text) =
            (self.read(&format!("{ours}.text")), self.read(&format!("{theirs}.text")));
        let odd = our_text.lines().zip(their_text.lines()).filter(|(ours, theirs)| ours != theirs);
        assert!(our_text == their_text, "ours, theirs: {:?}", odd.take(5).collect::<Vec<_>>());
        let show = |name: &str| {
            let name = format!("{name}.binary");
            tool(
                "llvm-profdata",
                folder,
                &["show", "--sample", "--all-functions", "--detailed-summary", &name],
            )
        };
        assert!(show(ours) == show(&theirs), "the binary form has the same in it");
    }

    fn programs_are_faster(&self) {
        let folder = self.folder.path();
        let base = self.taken("base");
        for (name, profile) in
            [("text", "ours.text"), ("binary", "ours.binary"), ("theirs", "ours-theirs.binary")]
        {
            self.build(name, &[&format!("-fprofile-sample-use={profile}")]);
        }
        let bytes = |name: &str| std::fs::read(self.path(name)).expect("a program");
        assert!(bytes("binary") == bytes("theirs"), "the same profile makes the same program");
        assert!(self.taken("text") < base && self.taken("binary") < base);

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

/// The sources of a crate, as cargo fetches them.
fn fetch(folder: &Path, name: &str, version: &str) -> String {
    let manifest = format!(
        "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\
         [lib]\npath = \"lib.rs\"\n[dependencies]\n{name} = \"={version}\"\n[workspace]\n"
    );
    std::fs::write(folder.join("Cargo.toml"), manifest).expect("written");
    std::fs::write(folder.join("lib.rs"), "").expect("written");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1"])
        .current_dir(folder)
        .output()
        .expect("cargo runs");
    let metadata = String::from_utf8_lossy(&output.stdout);
    let (source, file) = (format!("/{name}-{version}"), "/Cargo.toml");
    let end = metadata.find(&format!("{source}{file}")).unwrap_or_else(|| panic!("cargo fetches {name}"));
    let start = metadata[..end].rfind('"').expect("a path begins") + 1;
    format!("{}{source}", &metadata[start..end])
}

/// SQLite, as the crate libsqlite3-sys brings it.
#[test]
#[ignore = "builds SQLite eight times: minutes; run with ./test --all"]
fn sqlite_all_the_way() {
    let folder = TempDir::new().expect("a folder");
    let source = format!("{}/sqlite3", fetch(folder.path(), "libsqlite3-sys", "0.30.1"));
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

/// Lua, as the crate lua-src brings it, on a script of ours.
#[test]
#[ignore = "builds Lua eight times: minutes; run with ./test --all"]
fn lua_all_the_way() {
    let folder = TempDir::new().expect("a folder");
    let source = format!("{}/lua-5.4.7", fetch(folder.path(), "lua-src", "547.1.0"));
    let files = std::fs::read_dir(&source).expect("Lua's sources").map(|file| file.expect("a file").path());
    let mut sources: Vec<String> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "c"))
        .map(|path| path.to_str().expect("UTF-8").to_owned())
        .collect();
    sources.sort();
    sources.push(program("lua_load.c"));
    // BOLT 19 cannot move the code of an interpreter whose instructions jump to each other by computed addresses.
    // Hashes are seeded by the time of day and by addresses otherwise: no two runs would take as many branches.
    let seed = "-Dluai_makeseed(L)=20011";
    let flags = ["-DLUA_USE_JUMPTABLE=0", seed, "-lm", &format!("-I{source}")].map(str::to_owned).to_vec();
    let bed = Bed { folder, sources, flags, arguments: vec![program("load.lua")] };
    bed.all_the_way();
}
