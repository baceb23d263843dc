//! Running a program under the emulator with the recorder's plugin.

use anyhow::{Context as _, bail};
use clap::Args;
use ptflow_bench_traces::options::PtOptions;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The emulator, from Debian's package qemu-user.
const QEMU: &str = "qemu-x86_64";
/// The plugin, which cargo puts beside this program.
const PLUGIN: &str = "libptflow_recorder.so";

#[derive(Args, Debug)]
pub struct RecordArgs {
    /// Where to put the capture and its truth; made if it is not there
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    options: PtOptions,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM ARGS")]
    command: Vec<OsString>,
}

#[derive(Args, Debug)]
pub struct CountArgs {
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM ARGS")]
    command: Vec<OsString>,
}

/// Records a run; gives the program's own exit status.
pub fn record(args: &RecordArgs) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(&args.output)
        .with_context(|| format!("cannot make the folder {}", args.output.display()))?;
    let dir = args.output.canonicalize()?;
    let mut words = vec![format!("dir={}", path_word(&dir)?)];
    words.extend(args.options.to_words());
    words.extend(args.command.iter().map(|word| format!("cmd={}", word.to_string_lossy())));
    run(&args.command, words)
}

/// Counts a run.
pub fn count(args: &CountArgs) -> anyhow::Result<ExitCode> {
    run(&args.command, vec!["count=1".to_owned()])
}

fn run(command: &[OsString], mut words: Vec<String>) -> anyhow::Result<ExitCode> {
    let Some((program, arguments)) = command.split_first() else { bail!("no program is given") };
    let program = find_program(Path::new(program))?;
    let name = program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    words.push(format!("comm={name}"));
    let plugin = std::env::current_exe()?.with_file_name(PLUGIN);
    if !plugin.exists() {
        bail!("{} is missing; build it: cargo build --release -p ptflow-recorder-plugin", plugin.display());
    }
    // A comma ends a word for QEMU; two stand for one.
    let words = words.iter().map(|word| word.replace(',', ",,"));
    let plugin =
        std::iter::once(path_word(&plugin)?.replace(',', ",,")).chain(words).collect::<Vec<_>>().join(",");
    let status = Command::new(QEMU)
        .arg("-plugin")
        .arg(plugin)
        .arg(program)
        .args(arguments)
        .status()
        .with_context(|| format!("cannot run {QEMU}: install Debian's package qemu-user"))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

fn path_word(path: &Path) -> anyhow::Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", path.display()))
}

/// The program as a shell would find it.
fn find_program(name: &Path) -> anyhow::Result<PathBuf> {
    if name.components().count() > 1 {
        return name.canonicalize().with_context(|| format!("no program {}", name.display()));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("no program {} in PATH", name.display()))
}
