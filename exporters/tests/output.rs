//! A file has its name when it is whole, and not before.

use ptflow_exporters::gzip::Gzip;
use ptflow_exporters::output::Output;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("trace.json");
    (folder, path)
}

#[test]
fn named_when_committed() -> io::Result<()> {
    let (folder, path) = folder();
    let mut output = Output::create(&path)?;
    output.write_all(b"all of it")?;
    assert_eq!(names(folder.path()), ["trace.json.partial"]);
    output.flush()?;
    assert_eq!(names(folder.path()), ["trace.json.partial"]);
    output.commit()?;
    assert_eq!(names(folder.path()), ["trace.json"]);
    assert_eq!(fs::read(path)?, b"all of it");
    Ok(())
}

#[test]
fn dropped_leaves_nothing() -> io::Result<()> {
    let (folder, path) = folder();
    let mut output = Output::create(&path)?;
    output.write_all(b"half of it")?;
    drop(output);
    assert!(names(folder.path()).is_empty());
    // A stream that ends itself when it is dropped does not make the file whole.
    let mut gzip = Gzip::new(Output::create(&path)?);
    gzip.write_all(b"half of it")?;
    drop(gzip);
    assert!(names(folder.path()).is_empty());
    Ok(())
}

#[test]
fn what_was_there_stays_until_the_new_is_whole() -> io::Result<()> {
    let (folder, path) = folder();
    fs::write(&path, "old")?;
    // Left by a run that was killed; longer than what comes.
    fs::write(folder.path().join("trace.json.partial"), "left over")?;
    let mut output = Output::create(&path)?;
    output.write_all(b"new")?;
    assert_eq!(fs::read(&path)?, b"old");
    drop(output);
    assert_eq!(fs::read(&path)?, b"old");
    let mut output = Output::create(&path)?;
    output.write_all(b"new")?;
    output.commit()?;
    assert_eq!(fs::read(&path)?, b"new");
    assert_eq!(names(folder.path()), ["trace.json"]);
    Ok(())
}

#[test]
fn devices_are_written_as_they_are() -> io::Result<()> {
    let mut output = Output::create(Path::new("/dev/null"))?;
    output.write_all(b"gone")?;
    output.commit()?;
    drop(Output::create(Path::new("/dev/null"))?);
    assert!(Path::new("/dev/null").exists());
    Ok(())
}

#[test]
fn errors_come_at_once() {
    let (folder, _) = folder();
    assert!(Output::create(folder.path()).is_err(), "a folder");
    assert!(Output::create(&folder.path().join("none/trace.json")).is_err(), "in no folder");
    assert!(names(folder.path()).is_empty());
}

#[test]
fn a_full_disk_is_an_error() {
    let mut output = Output::create(Path::new("/dev/full")).expect("a device");
    assert!(output.write_all(b"too much").is_err());
}
