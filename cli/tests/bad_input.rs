//! Bad input: one clear line and exit status 1, wrong usage 2, never a panic and never a silent empty result.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench-traces/samples/requests")
}

fn ptflow(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ptflow")).args(args).output().expect("ptflow runs")
}

#[track_caller]
fn refused(args: &[&str], status: i32, says: &[&str]) {
    let output = ptflow(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?} prints nothing");
    for words in says {
        assert!(stderr.contains(words), "{args:?} says {words:?}: {stderr}");
    }
    if status == 1 {
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.starts_with("ptflow: "), "{stderr}");
    }
}

#[test]
fn files_that_are_no_captures() {
    let folder = TempDir::new().expect("a folder");
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        path.to_str().expect("UTF-8").to_owned()
    };
    let nothing = folder.path().join("nothing");
    refused(&["info", nothing.to_str().expect("UTF-8")], 1, &["cannot open", "nothing"]);
    refused(&["info", folder.path().to_str().expect("UTF-8")], 1, &["directory"]);
    let text = write("text", b"this is no perf.data at all");
    refused(&["profile", &text], 1, &["is not a perf.data file", "text"]);
    refused(&["profile", &write("empty", b"")], 1, &["empty"]);
    refused(&["profile", &write("short", b"PERFILE2\x68\0\0\0")], 1, &["cut short"]);
    refused(&["profile", &write("big", b"2ELIFREP\0\0\0\0\0\0\0\x68")], 1, &["big-endian"]);
    refused(&["profile", &write("pipe", b"PERFILE2\x10\0\0\0\0\0\0\0")], 1, &["pipe"]);
    let capture = std::fs::read(sample().join("perf.data")).expect("the sample");
    // Only the header and the attributes: no trace in it.
    refused(&["profile", &write("headless", &capture[..500])], 1, &["Intel PT"]);
}

#[test]
fn wrong_usage() {
    refused(&["profile"], 2, &["CAPTURE"]);
    refused(&["frobnicate"], 2, &["frobnicate"]);
    let capture = sample().join("perf.data");
    let capture = capture.to_str().expect("UTF-8");
    refused(&["convert", capture, "-o", "/tmp/x.docx"], 2, &[".pftrace"]);
    refused(&["profile", capture, "--thread", "999999"], 1, &["no trace", "ptflow info"]);
    refused(&["convert", capture, "--quiet", "-o", "/no/such/folder/x.json"], 1, &["/no/such/folder/x.json"]);
}

/// A capture cut anywhere still gives what is there, and says what is missing.
#[test]
fn a_file_cut_short() {
    let folder = TempDir::new().expect("a folder");
    let capture = std::fs::read(sample().join("perf.data")).expect("the sample");
    let path = folder.path().join("cut");
    std::fs::write(&path, &capture[..capture.len() / 2]).expect("a file");
    let images = sample();
    let report = folder.path().join("report.json");
    let output = ptflow(&[
        "profile",
        path.to_str().expect("UTF-8"),
        "--images",
        images.to_str().expect("UTF-8"),
        "--report",
        report.to_str().expect("UTF-8"),
    ]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("cut short"), "{stderr}");
    assert!(output.stdout.iter().filter(|byte| **byte == b'\n').count() > 100, "most edges are there");
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(report).expect("a report")).expect("JSON");
    let lost: u64 = report["lost"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|loss| loss["bytes"].as_u64().expect("bytes"))
        .sum();
    assert_eq!(report["pt_bytes_in"].as_u64(), report["pt_bytes_decoded"].as_u64().map(|bytes| bytes + lost));
}

/// Without the program's image there is no flow, and the loss says so; another build of it counts as none.
#[test]
fn images_missing_or_of_another_build() {
    let folder = TempDir::new().expect("a folder");
    let capture = sample().join("perf.data");
    let run = |images: &Path| {
        let report = folder.path().join("report.json");
        let output = ptflow(&[
            "profile",
            capture.to_str().expect("UTF-8"),
            "--images",
            images.to_str().expect("UTF-8"),
            "--report",
            report.to_str().expect("UTF-8"),
        ]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{stderr}");
        let report: serde_json::Value =
            serde_json::from_slice(&std::fs::read(report).expect("a report")).expect("JSON");
        (stderr, report)
    };
    let (stderr, report) = run(folder.path());
    assert!(stderr.contains("/requests") && stderr.contains("not found"), "{stderr}");
    assert!(report["lost"].as_array().expect("a list").iter().any(|loss| loss["reason"] == "no_image"));
    let other = folder.path().join("other");
    std::fs::create_dir(&other).expect("a folder");
    let mut program = std::fs::read(sample().join("requests")).expect("the program");
    let id = program.windows(4).position(|bytes| bytes == b"GNU\0").expect("the build id's note") + 4;
    program[id] ^= 1;
    std::fs::write(other.join("requests"), program).expect("a file");
    let (stderr, report) = run(&other);
    assert!(stderr.contains("another build"), "{stderr}");
    assert_eq!(report["instructions"], 0);
}
