//! A real LBR recording through the binary: counted lines against the counts that came with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

fn folder(test: &str) -> Option<PathBuf> {
    let folder =
        std::env::var_os("PTFLOW_CAPTURES").map(|all| PathBuf::from(all).join("autofdo-propeller_sample_1"));
    if folder.is_none() {
        println!("skipped: {test} reads captures from outside; set PTFLOW_CAPTURES to their folder");
    }
    folder
}

fn ptflow(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ptflow"));
    command.args(args);
    command
}

#[track_caller]
fn succeed(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn every_branch_with_its_kind() {
    let Some(folder) = folder("every_branch_with_its_kind") else { return };
    // The executable under the name that was recorded.
    let images = TempDir::new().expect("a folder");
    let name = "propeller_sample_1.bin.gen";
    std::fs::copy(folder.join("propeller_sample_1.bin"), images.path().join(name)).expect("copied");
    let capture = folder.join("perf.data");
    let (capture, images) = (capture.to_str().expect("UTF-8"), images.path().to_str().expect("UTF-8"));
    let lines = succeed(
        ptflow(&["dump", "branches", "--quiet", "--images", images, capture]).output().expect("runs"),
    );
    let mut counts: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    let mut kinds: BTreeMap<u64, String> = BTreeMap::new();
    for line in lines.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [_, tid, kind, from, to] = fields[..] else { panic!("{line}") };
        assert_eq!(tid, "5595");
        let hex = |text: &str| u64::from_str_radix(&text[2..], 16).expect("an address");
        *counts.entry((hex(from), hex(to))).or_default() += 1;
        kinds.insert(hex(from), kind.to_owned());
    }
    let golden = std::fs::read_to_string(folder.join("branches.tsv")).expect("the counts");
    let golden: BTreeMap<(u64, u64), u64> = golden
        .lines()
        .map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            let hex = |text: &str| u64::from_str_radix(text, 16).expect("an address");
            ((hex(fields[0]), hex(fields[1])), fields[2].parse().expect("a count"))
        })
        .collect();
    // Five entries, four edges, come from code that no image holds.
    assert_eq!(counts, golden);
    // As objdump -d shows the program's branches.
    let image = 0x5629_ec74_1000u64;
    let expected = [(0x18e3, "jcc"), (0x18f4, "jmp"), (0x1905, "ret"), (0x1967, "call"), (0x1a6e, "jmp")];
    for (at, kind) in expected {
        assert_eq!(kinds[&(image + at)], kind, "at {at:#x}");
    }
    let info = succeed(ptflow(&["info", capture]).output().expect("runs"));
    assert!(info.contains("3740 samples, 119424 entries, at most 32 each"), "{info}");
    // The same from a pipe.
    let piped = ptflow(&["dump", "branches", "--quiet", "--images", images, "-"])
        .stdin(Stdio::from(std::fs::File::open(capture).expect("opened")))
        .output();
    assert!(succeed(piped.expect("runs")) == lines);
}

/// Lines of numbers: addresses first, then a count.
fn golden(path: &Path) -> BTreeMap<(u64, u64), Vec<u64>> {
    let lines = std::fs::read_to_string(path).expect("the counts");
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let hex = |text: &str| u64::from_str_radix(text, 16).expect("an address");
        let counts = fields[2..].iter().map(|text| text.parse().expect("a count"));
        ((hex(fields[0]), hex(fields[1])), counts.collect())
    };
    lines.lines().map(parse).collect()
}

/// The counts that came with the recording: branches, and straight code without what no way leads through.
#[test]
fn edges_and_ranges_are_those_that_came_with_it() {
    let Some(folder) = folder("edges_and_ranges_are_those_that_came_with_it") else { return };
    let (capture, binary) = (folder.join("perf.data"), folder.join("propeller_sample_1.bin"));
    let [capture, binary] = [&capture, &binary].map(|path| path.to_str().expect("UTF-8"));
    let profile = |args: &[&str]| {
        let mut command = ptflow(&["profile", "--quiet", "--binary", binary, "--process", "5595"]);
        succeed(command.args(args).output().expect("runs"))
    };
    let text = profile(&[capture, "--addresses", "runtime"]);
    assert_eq!(text, profile(&[capture, "--addresses", "runtime", "--threads", "3"]));
    let mut branches = BTreeMap::new();
    let mut ranges = BTreeMap::new();
    for row in ptflow_exporters::edges::read(text.as_bytes()).expect("a table") {
        let addr = |text: &Option<String>| {
            u64::from_str_radix(text.as_ref().expect("an address").trim_start_matches("0x"), 16).expect("hex")
        };
        let ends = (addr(&row.from), addr(&row.to));
        match row.kind.name() {
            "range" => assert_eq!(ranges.insert(ends, vec![row.taken]), None),
            _ if row.taken > 0 => assert_eq!(branches.insert(ends, vec![row.taken, row.mispredicted]), None),
            _ => {}
        }
    }
    assert_eq!(branches, golden(&folder.join("branches.tsv")));
    // Two of the golden ranges only pair a repeated entry with itself: as objdump -d shows, 18d0..1967 runs over the
    // return at 1905, and 1957..1a6e over the call at 1967.
    let mut straight = golden(&folder.join("ranges.tsv"));
    let image = 0x5629_ec74_1000u64;
    for (start, end) in [(0x18d0, 0x1967), (0x1957, 0x1a6e)] {
        assert!(straight.remove(&(image + start, image + end)).is_some());
    }
    assert_eq!(ranges, straight);
    assert_eq!(ranges.values().flatten().sum::<u64>(), 114_721);

    // Several captures are one: the same hundred times over, in no more memory; and tables are captures, too.
    let temp = TempDir::new().expect("a folder");
    let file = |name: &str| temp.path().join(name).to_str().expect("UTF-8").to_owned();
    let (report, once) = (file("report"), file("once"));
    std::fs::write(&once, profile(&[capture])).expect("written");
    let mut args = vec![capture; 100];
    args.extend(["--report", &report]);
    let hundred = profile(&args);
    assert_eq!(hundred, profile(&vec![once.as_str(); 100]));
    let times_100 = |text: &str| {
        let mut rows = ptflow_exporters::edges::read(text.as_bytes()).expect("a table");
        for row in &mut rows {
            row.taken *= 100;
            row.not_taken *= 100;
            row.mispredicted *= 100;
        }
        rows
    };
    let sum = ptflow_exporters::edges::read(hundred.as_bytes()).expect("a table");
    assert_eq!(sum, times_100(&std::fs::read_to_string(&once).expect("read")));
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&report).expect("a report")).expect("JSON");
    let peak = report["peak_rss_bytes"].as_u64().expect("a number");
    assert!(peak < 100 << 20, "{peak} bytes at the peak");
    let bolt = profile(&[&once, "--format", "bolt-preaggregated"]);
    assert_eq!(bolt, profile(&[capture, "--format", "bolt-preaggregated"]));
    // Its T records come to the golden counts: a branch, whatever ran behind it; a range, whatever led to it. What the kernel
    // came back to is a range without a branch.
    let traces = profile(&[capture, "--format", "bolt-preaggregated", "--traces"]);
    let (mut taken, mut ran) = (BTreeMap::new(), BTreeMap::new());
    for line in traces.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let hex = |text: &str| u64::from_str_radix(text, 16).expect("an address");
        let count: u64 = fields.last().and_then(|text| text.parse().ok()).expect("a count");
        let (to, end) = match fields[..] {
            ["T", from, to, end, _] => {
                *taken.entry((image + hex(from), image + hex(to))).or_insert(0) += count;
                (hex(to), hex(end))
            }
            ["F", start, end, _] => (hex(start), hex(end)),
            _ => panic!("{line}"),
        };
        if end != u64::MAX {
            *ran.entry((image + to, image + end)).or_insert(0) += count;
        }
    }
    let within = golden(&folder.join("branches.tsv")).into_iter().filter(|((from, _), _)| *from >> 63 == 0);
    assert_eq!(taken, within.map(|(ends, counts)| (ends, counts[0])).collect());
    assert_eq!(ran, ranges.into_iter().map(|(ends, counts)| (ends, counts[0])).collect());
}

/// perf2bolt 19 takes the program to lie a page off, finds all of this recording out of range and writes nothing. From the
/// counts that we give it, it makes a profile of both functions that ran.
#[test]
fn a_recording_that_perf2bolt_loses() {
    let Some(folder) = folder("a_recording_that_perf2bolt_loses") else { return };
    let perf2bolt = "/usr/lib/llvm-19/bin/perf2bolt";
    if !Path::new(perf2bolt).exists() || Command::new("perf").arg("version").output().is_err() {
        println!(
            "skipped: a_recording_that_perf2bolt_loses needs perf and {perf2bolt} (Debian's linux-perf, bolt-19)"
        );
        return;
    }
    let temp = TempDir::new().expect("a folder");
    // perf2bolt finds a binary by the name that was recorded.
    for (from, to) in [("perf.data", "perf.data"), ("propeller_sample_1.bin", "propeller_sample_1.bin.gen")] {
        std::fs::copy(folder.join(from), temp.path().join(to)).expect("copied");
    }
    let lines = |program: &str, args: &[&str], out: &str| {
        let run = Command::new(program).args(args).current_dir(temp.path()).output().expect("runs");
        let told = String::from_utf8_lossy(&run.stderr).into_owned() + &String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success(), "{program}: {told}");
        let fdata = std::fs::read_to_string(temp.path().join(out)).unwrap_or_default();
        (fdata.lines().map(str::to_owned).collect::<Vec<_>>(), told)
    };
    let (theirs, told) =
        lines(perf2bolt, &["-p", "perf.data", "propeller_sample_1.bin.gen", "-o", "theirs"], "theirs");
    assert!(told.contains("119419 LBR entries"), "it reads all entries: {told}");
    assert_eq!(theirs, Vec::<String>::new());
    let binary = "propeller_sample_1.bin.gen";
    let ours = [
        "profile",
        "--quiet",
        "perf.data",
        "--binary",
        binary,
        "--format",
        "bolt-preaggregated",
        "-o",
        "counts",
    ];
    lines(env!("CARGO_BIN_EXE_ptflow"), &ours, "counts");
    let (ours, _) = lines(perf2bolt, &["--pa", "-p", "counts", binary, "-o", "ours"], "ours");
    // The two jumps of `compute_flag` and the call of it, with the counts of branches.tsv.
    for line in [
        "1 compute_flag 13 1 compute_flag 29 5 9871",
        "1 compute_flag 24 1 compute_flag 31 0 5547",
        "1 main 47 1 compute_flag 0 0 15930",
    ] {
        assert!(ours.iter().any(|found| found == line), "{line} in {ours:?}");
    }
    assert_eq!(ours.len(), 13);
}
