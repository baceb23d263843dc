//! Running a program under the emulator with the recorder's plugin.

use crate::options::PtOptions;
use anyhow::{Context as _, bail};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// The emulator, from Debian's package qemu-user.
const QEMU: &str = "qemu-x86_64";
/// The plugin's file name, as cargo calls it.
pub const PLUGIN: &str = "libptflow_recorder.so";

/// A program and its arguments, and the plugin to run it with.
#[derive(Clone, Debug)]
pub struct Recorder {
    /// The plugin.
    pub plugin: PathBuf,
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// Write the ordered truth too ([`crate::log`]).
    pub log: bool,
}

/// What a run did.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    /// How the program ended.
    pub status: ExitStatus,
    /// Instructions executed by all threads.
    pub instructions: u64,
    /// Branches taken by all threads: jumps, calls and returns; no system calls.
    pub taken_branches: u64,
}

impl Recorder {
    /// Records a run into a folder, which is made if it is not there: `perf.data`, `truth.edges`, `totals.json`. Gives the
    /// program's own exit status.
    pub fn record(&self, folder: &Path, options: PtOptions) -> anyhow::Result<ExitStatus> {
        let (mut command, _) = self.recording(folder, options)?;
        command.status().with_context(no_qemu)
    }

    /// The command that records, for a caller who wants the program's output for himself; and the folder's full path.
    pub fn recording(&self, folder: &Path, options: PtOptions) -> anyhow::Result<(Command, PathBuf)> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let folder = folder.canonicalize()?;
        let mut words = vec![format!("dir={}", path_word(&folder)?)];
        words.push(format!("log={}", u8::from(self.log)));
        words.extend(options.to_words());
        words.extend(self.command.iter().map(|word| format!("cmd={}", word.to_string_lossy())));
        Ok((self.emulation(words)?, folder))
    }

    /// Counts a run's instructions and taken branches. They come by way of a file: by its end the program may have closed
    /// every descriptor that it was given.
    pub fn count(&self) -> anyhow::Result<Counts> {
        let folder = tempfile::tempdir().context("cannot make a folder for the counts")?;
        let file = folder.path().join("counts");
        let status =
            self.emulation(vec![format!("count={}", path_word(&file)?)])?.status().with_context(no_qemu)?;
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("the run left no counts: {status}"))?;
        let number = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
            value.with_context(|| format!("the run's counts have no {name}: {text:?}"))
        };
        let (instructions, taken_branches) = (number("instructions ")?, number("taken_branches ")?);
        Ok(Counts { status, instructions, taken_branches })
    }

    fn emulation(&self, mut words: Vec<String>) -> anyhow::Result<Command> {
        let Some((program, arguments)) = self.command.split_first() else { bail!("no program is given") };
        let program = find_program(Path::new(program))?;
        check_is_elf(&program)?;
        let name = program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        words.push(format!("comm={name}"));
        if !self.plugin.exists() {
            bail!(
                "{} is missing; build it: cargo build --release -p ptflow-recorder-plugin",
                self.plugin.display()
            );
        }
        // A comma ends a word for QEMU; two stand for one.
        words.insert(0, path_word(&self.plugin)?);
        let words: Vec<String> = words.iter().map(|word| word.replace(',', ",,")).collect();
        let mut command = Command::new(QEMU);
        command.arg("-plugin").arg(words.join(",")).arg(program).args(arguments);
        Ok(command)
    }
}

fn no_qemu() -> String {
    format!("cannot run {QEMU}: install Debian's package qemu-user")
}

fn path_word(path: &Path) -> anyhow::Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", path.display()))
}

/// QEMU says nothing of a program that it cannot load, a script with its `#!` for one.
fn check_is_elf(program: &Path) -> anyhow::Result<()> {
    let mut magic = Vec::new();
    let file = File::open(program).with_context(|| format!("cannot read {}", program.display()))?;
    file.take(4).read_to_end(&mut magic)?;
    if magic.starts_with(b"#!") {
        bail!(
            "{} is a script: give the program that runs it, and the script as its argument",
            program.display()
        );
    }
    if magic != *b"\x7fELF" {
        bail!("{} is no ELF program", program.display());
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::check_is_elf;

    #[test]
    fn what_the_emulator_cannot_load_is_refused_with_the_reason() {
        let folder = tempfile::tempdir().expect("a folder");
        let refusal = |bytes: &[u8]| {
            let path = folder.path().join("program");
            std::fs::write(&path, bytes).expect("written");
            check_is_elf(&path).map_err(|error| error.to_string())
        };
        assert!(refusal(b"#!/bin/sh\n").is_err_and(|text| text.contains("is a script")));
        assert!(refusal(b"\x7fE").is_err_and(|text| text.contains("no ELF program")));
        assert!(refusal(b"\x7fELF\x02").is_ok());
    }
}
