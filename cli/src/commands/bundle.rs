//! `ptflow bundle`: a folder that holds a capture and all that decoding it takes.
//!
//! ```text
//! DIR/perf.data                              the capture, byte for byte; a directory where it was one
//! DIR/images/.build-id/ab/cdef…/elf, debug   images and their symbol files, as in perf's own cache
//! DIR/images/usr/bin/x                       images that have no build id in the capture
//! ```

use crate::args::{BundleArgs, Usage};
use crate::load::{self, Bundle, Loaded};
use anyhow::Context as _;
use std::path::{Path, PathBuf};

/// Runs the verb.
pub fn run(args: &BundleArgs) -> anyhow::Result<()> {
    let output = &args.output;
    if output.exists() {
        return Err(Usage(format!("{} exists already; name a folder to be made", output.display())).into());
    }
    let file = load::open(&args.common)?;
    let loaded = Loaded::new(&file, &args.common)?;
    // It looks whole only when it is.
    let partial = with_ending(output, ".partial");
    // What an earlier run left over.
    let _ = std::fs::remove_dir_all(&partial);
    let made = fill(&partial, &file, &loaded);
    let made = made.and_then(|sizes| {
        std::fs::rename(&partial, output).with_context(|| format!("cannot make {}", output.display()))?;
        Ok(sizes)
    });
    if made.is_err() {
        // What is left over is of no use; the first error is what to tell.
        let _ = std::fs::remove_dir_all(&partial);
    }
    let (files, bytes) = made?;
    if !args.common.quiet {
        eprintln!("ptflow: {files} files, {bytes} bytes in {}", output.display());
    }
    Ok(())
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    path.with_file_name(name)
}

/// Fills a folder; how many files and bytes.
fn fill(
    folder: &Path,
    file: &ptflow_perf_import::PerfFile,
    loaded: &Loaded<'_>,
) -> anyhow::Result<(usize, u64)> {
    let cannot = |path: &Path| format!("cannot make {}", path.display());
    std::fs::create_dir_all(folder).with_context(|| cannot(folder))?;
    let bundle = Bundle::at(folder);
    std::fs::create_dir(&bundle.images).with_context(|| cannot(&bundle.images))?;
    let (mut files, mut bytes) = if file.path().is_dir() {
        copy_folder(file.path(), &bundle.capture)?
    } else {
        std::fs::write(&bundle.capture, file.bytes()).with_context(|| cannot(&bundle.capture))?;
        (1, file.bytes().len() as u64)
    };
    for (from, place) in loaded.store.files().iter().flat_map(|image| image.needed()) {
        let to = bundle.images.join(place);
        // Several paths may have led to one build.
        if to.exists() {
            continue;
        }
        bytes += copy(&from, &to)?;
        files += 1;
    }
    Ok((files, bytes))
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<u64> {
    let cannot = || format!("cannot copy {} to {}", from.display(), to.display());
    if let Some(folder) = to.parent() {
        std::fs::create_dir_all(folder).with_context(cannot)?;
    }
    std::fs::copy(from, to).with_context(cannot)
}

/// Copies a perf.data directory: its files, and those of `kcore_dir`.
fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<(usize, u64)> {
    let (mut files, mut bytes) = (0, 0);
    let entries = std::fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", from.display()))?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().with_context(|| format!("cannot read {}", path.display()))?;
        if kind.is_dir() {
            let (more_files, more_bytes) = copy_folder(&path, &to)?;
            (files, bytes) = (files + more_files, bytes + more_bytes);
        } else if kind.is_file() {
            (files, bytes) = (files + 1, bytes + copy(&path, &to)?);
        }
    }
    Ok((files, bytes))
}
