//! BOLT's own converter, where it is installed: only it knows BOLT's blocks and names.

use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Turns a pre-aggregated profile of a binary into .fdata.
pub fn convert(preaggregated: &Path, binary: &Path, output: &Path) -> anyhow::Result<()> {
    let Some(program) = find() else {
        bail!(
            "perf2bolt is not installed (Debian's packages bolt-19, bolt-22); without it: --format bolt-preaggregated"
        );
    };
    let cannot = || format!("cannot run {}", program.display());
    let mut command = Command::new(&program);
    command.arg("--pa").arg("-p").arg(preaggregated).arg(binary).arg("-o").arg(output);
    let run = command.output().with_context(cannot)?;
    if !run.status.success() {
        let stderr = String::from_utf8_lossy(&run.stderr);
        let last = stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
        bail!("{}: {last}", program.display());
    }
    Ok(())
}

/// In PATH; else where LLVM's packages have it, the highest version.
fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path =
        std::env::split_paths(&path).map(|folder| folder.join("perf2bolt")).find(|file| file.is_file());
    in_path.or_else(|| {
        let folders =
            std::fs::read_dir("/usr/lib").ok()?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
        let version = |path: &Path| path.file_name()?.to_str()?.strip_prefix("llvm-")?.parse::<u32>().ok();
        let found = folders.filter_map(|folder| Some((version(&folder)?, folder.join("bin/perf2bolt"))));
        found.filter(|(_, file)| file.is_file()).max().map(|(_, file)| file)
    })
}
