//! LLVM's own converters, where they are installed: only BOLT knows its blocks and names, and what llvm-profgen makes of our
//! counts is a second opinion on ours.

use crate::binary::Unfit;
use anyhow::{Context as _, bail};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Turns a pre-aggregated profile of a binary into .fdata.
pub fn perf2bolt(preaggregated: &Path, binary: &Path, output: &Path) -> anyhow::Result<()> {
    let Some(program) = find("perf2bolt") else {
        bail!(
            "perf2bolt is not installed (Debian's packages bolt-19, bolt-22); without it: --format bolt-preaggregated"
        );
    };
    let args: [&OsStr; 6] = [
        "--pa".as_ref(),
        "-p".as_ref(),
        preaggregated.as_ref(),
        binary.as_ref(),
        "-o".as_ref(),
        output.as_ref(),
    ];
    run(Command::new(&program).args(args))
}

/// Turns an unsymbolized profile of a binary into a sample profile, in LLVM's binary form or as text.
pub fn llvm_profgen(
    unsymbolized: &Path,
    binary: &Path,
    output: &Path,
    is_binary: bool,
) -> anyhow::Result<()> {
    let Some(program) = find("llvm-profgen") else {
        bail!(
            "llvm-profgen is not installed (Debian's packages llvm-19, llvm-22); without it: leave --via out"
        );
    };
    let option = |name: &str, path: &Path| {
        let mut option = std::ffi::OsString::from(name);
        option.push(path);
        option
    };
    // Offsets, the default, would be from the first segment with code.
    let mut command = Command::new(&program);
    command.arg("--use-offset=0").arg(if is_binary { "--format=extbinary" } else { "--format=text" }).args([
        option("--unsymbolized-profile=", unsymbolized),
        option("--binary=", binary),
        option("--output=", output),
    ]);
    run(&mut command)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = PathBuf::from(command.get_program());
    let run = command.output().with_context(|| format!("cannot run {}", program.display()))?;
    if !run.status.success() {
        let stderr = String::from_utf8_lossy(&run.stderr);
        let last = stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
        return Err(Unfit(format!("{}: {last}", program.display())).into());
    }
    Ok(())
}

/// In PATH; else where LLVM's packages have it, the highest version.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    in_path.or_else(|| {
        let folders =
            std::fs::read_dir("/usr/lib").ok()?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
        let version = |path: &Path| path.file_name()?.to_str()?.strip_prefix("llvm-")?.parse::<u32>().ok();
        let found = folders.filter_map(|folder| Some((version(&folder)?, folder.join("bin").join(name))));
        found.filter(|(_, file)| file.is_file()).max().map(|(_, file)| file)
    })
}
