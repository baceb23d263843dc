//! Whatever stops a conversion, no file looks whole that is not.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench-traces/samples/requests")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn convert(out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ptflow"));
    command.arg("convert").arg(sample().join("perf.data")).arg("--images").arg(sample());
    command.arg("--full").arg("-o").arg(out);
    command
}

/// The same behind a line of shell.
fn convert_after(shell: &str, out: &Path) -> Output {
    let convert = convert(out);
    let script = format!("{shell}; exec \"$0\" \"$@\"");
    Command::new("sh")
        .args(["-c", &script])
        .arg(convert.get_program())
        .args(convert.get_args())
        .output()
        .expect("sh runs")
}

const OUTPUTS: [&str; 4] = ["out.pftrace", "out.pftrace.gz", "out.json", "out.txt"];

#[test]
fn a_full_disk_is_told() {
    for name in OUTPUTS {
        let folder = TempDir::new().expect("a folder");
        let out = folder.path().join(name);
        std::os::unix::fs::symlink("/dev/full", &out).expect("a link");
        let output = convert(&out).output().expect("ptflow runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(&format!("cannot write {}: No space left", out.display())), "{error}");
    }
}

/// The disk has room for some blocks: what was written is taken back.
#[test]
fn a_disk_that_becomes_full_keeps_nothing() {
    for name in OUTPUTS {
        let folder = TempDir::new().expect("a folder");
        let out = folder.path().join(name);
        fs::write(&out, "from before").expect("a file");
        let output = convert_after("trap '' XFSZ; ulimit -f 400", &out);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("cannot write"), "{error}");
        assert_eq!(names(folder.path()), [name]);
        assert_eq!(fs::read(&out).expect("a file"), b"from before");
        // The same, where the limit kills.
        let output = convert_after("ulimit -f 400", &out);
        assert!(output.status.signal().is_some() || output.status.code() > Some(128), "{:?}", output.status);
        assert_eq!(names(folder.path()), [name.to_owned(), format!("{name}.partial")]);
        assert_eq!(fs::read(&out).expect("a file"), b"from before");
    }
}

/// A set of files: none, or all.
#[test]
fn a_set_that_cannot_be_written_is_none() {
    let set = ["out.1-of-3.json", "out.2-of-3.json", "out.3-of-3.json"];
    // A full disk, which the limit of a file's size stands for; then one file that cannot be.
    let folder = TempDir::new().expect("a folder");
    let out = folder.path().join("out.json");
    for name in set {
        fs::write(folder.path().join(name), "from before").expect("a file");
    }
    let split = |out: &Path, shell: &str| {
        let mut command = convert(out);
        command.args(["--split", "3"]);
        let script = format!("{shell}; exec \"$0\" \"$@\"");
        let mut all = Command::new("sh");
        all.args(["-c", &script]).arg(command.get_program()).args(command.get_args());
        all.output().expect("sh runs")
    };
    let output = split(&out, "trap '' XFSZ; ulimit -f 400");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("cannot write"), "{error}");
    assert_eq!(names(folder.path()), set);
    for name in set {
        assert_eq!(fs::read(folder.path().join(name)).expect("a file"), b"from before");
    }
    fs::remove_file(folder.path().join(set[1])).expect("removed");
    std::os::unix::fs::symlink("/dev/full", folder.path().join(set[1])).expect("a link");
    let output = split(&out, "true");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(names(folder.path()), set);
    assert_eq!(fs::read(folder.path().join(set[0])).expect("a file"), b"from before");
    // A folder in the place of the last: what has its name already is of the new set alone.
    fs::remove_file(folder.path().join(set[1])).expect("removed");
    fs::remove_file(folder.path().join(set[2])).expect("removed");
    fs::create_dir(folder.path().join(set[2])).expect("a folder");
    fs::write(folder.path().join(set[2]).join("file"), "").expect("a file");
    let output = split(&out, "true");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!names(folder.path()).contains(&set[1].to_owned()), "{:?}", names(folder.path()));
    fs::remove_dir_all(folder.path().join(set[2])).expect("removed");
    assert!(split(&out, "true").status.success());
    assert_eq!(names(folder.path()), set);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = convert(Path::new("-"));
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("ptflow runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

/// Ctrl-C and `kill` leave at most a file whose name says that it is not whole; the next run replaces it.
#[test]
fn signals_leave_no_file_that_looks_whole() {
    for signal in ["INT", "TERM"] {
        let folder = TempDir::new().expect("a folder");
        let out = folder.path().join("out.pftrace");
        let partial = folder.path().join("out.pftrace.partial");
        let stopped = (0..50).any(|_| {
            let _ = fs::remove_file(&out);
            let mut child = convert(&out).stderr(Stdio::null()).spawn().expect("ptflow runs");
            while !partial.exists() && child.try_wait().expect("a status").is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let kill = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status();
            assert!(kill.is_ok());
            // Where it was done before the signal came, again.
            !child.wait().expect("it ends").success()
        });
        assert!(stopped, "{signal} comes too late each time");
        assert!(!out.exists(), "{:?}", names(folder.path()));
        assert!(convert(&out).output().expect("ptflow runs").status.success());
        assert_eq!(names(folder.path()), ["out.pftrace"]);
    }
}

/// The report, too.
#[test]
fn a_report_that_cannot_be_written_is_an_error() {
    let folder = TempDir::new().expect("a folder");
    let out = folder.path().join("out.pftrace");
    let output = convert(&out).args(["--report", "/dev/full"]).output().expect("ptflow runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("cannot write the report /dev/full"), "{error}");
}
