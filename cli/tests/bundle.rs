//! A bundle decodes on another machine as the original does here, byte for byte.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench-traces/samples/requests")
}

/// Runs ptflow with a home folder of its own: nobody's build-id cache.
fn ptflow(home: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ptflow"));
    command.args(args).env("HOME", home).current_dir(home).output().expect("ptflow runs")
}

#[track_caller]
fn succeed(output: Output) -> Vec<u8> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// What each job says of a capture.
fn answers(home: &Path, capture: &Path, images: &Path) -> Vec<Vec<u8>> {
    let jobs: [&[&str]; 5] = [
        &["profile"],
        &["dump", "branches", "--symbols"],
        &["dump", "packets"],
        &["convert", "-o", "-"],
        &["profile", "--addresses", "runtime"],
    ];
    let answer = |job: &&[&str]| {
        let args = [*job, &["--quiet", "--images", utf8(images), utf8(capture)]].concat();
        let answer = succeed(ptflow(home, &args));
        assert!(answer.len() > 1000, "{job:?}");
        answer
    };
    jobs.iter().map(answer).collect()
}

#[test]
fn a_bundle_needs_nothing_else() {
    let folder = TempDir::new().expect("a folder");
    let (home, empty) = (folder.path().join("home"), folder.path().join("empty"));
    std::fs::create_dir(&home).expect("a folder");
    std::fs::create_dir(&empty).expect("a folder");
    let (sample, capture) = (sample(), sample().join("perf.data"));
    let bundle = folder.path().join("bundle");
    let args = ["bundle", utf8(&capture), "--images", utf8(&sample), "-o", utf8(&bundle)];
    succeed(ptflow(&home, &args));
    assert_eq!(std::fs::read(bundle.join("perf.data")).unwrap(), std::fs::read(&capture).unwrap());
    let expected = answers(&home, &capture, &sample);
    assert!(answers(&home, &bundle, &empty) == expected, "the bundle says something else");
    // A bundle of the bundle.
    let again = folder.path().join("again");
    succeed(ptflow(&home, &["bundle", utf8(&bundle), "-o", utf8(&again)]));
    assert!(answers(&home, &again, &empty) == expected, "the second bundle says something else");
    let info = String::from_utf8(succeed(ptflow(&home, &["info", utf8(&again)]))).expect("text");
    assert!(info.contains("bundle") && !info.contains("missing"), "{info}");
    // What this machine has at the recorded places does not count.
    let images = again.join("images");
    std::fs::remove_dir_all(&images).expect("removed");
    std::fs::create_dir(&images).expect("a folder");
    let info = String::from_utf8(succeed(ptflow(&home, &["info", utf8(&again)]))).expect("text");
    assert!(info.contains("missing"), "{info}");
}

#[test]
fn a_folder_that_is_there_is_left_alone() {
    let folder = TempDir::new().expect("a folder");
    let capture = sample().join("perf.data");
    let output = ptflow(folder.path(), &["bundle", utf8(&capture), "-o", utf8(folder.path())]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
