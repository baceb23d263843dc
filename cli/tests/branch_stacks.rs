//! A real LBR recording through the binary: counted lines against the counts that came with it.

use std::collections::BTreeMap;
use std::path::PathBuf;
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
    // The same from a pipe, and refused where the whole flow is asked for.
    let piped = ptflow(&["dump", "branches", "--quiet", "--images", images, "-"])
        .stdin(Stdio::from(std::fs::File::open(capture).expect("opened")))
        .output();
    assert!(succeed(piped.expect("runs")) == lines);
    let output = ptflow(&["profile", capture, "--quiet"]).output().expect("runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no Intel PT"));
}
