//! A contender's turn: a process, and what the kernel says that it took.

use anyhow::{Context as _, bail};
use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

/// What a turn took.
#[derive(Clone, Debug, Default)]
pub struct Ran {
    /// CPU seconds of the process, user and system.
    pub cpu: f64,
    /// CPU seconds of the decoding alone, where the process says so.
    pub decode: Option<f64>,
    /// Seconds.
    pub wall: f64,
    /// Most resident memory, in bytes.
    pub peak: u64,
    /// What it found, in words.
    pub note: String,
}

/// The path of a program that cargo puts beside this one.
pub fn beside(name: &str) -> anyhow::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}

/// Runs a command to its end. A line `decode SECONDS WORDS` of its output is taken apart; a single line of another kind is
/// the note, and more are counted.
pub fn run(mut command: Command) -> anyhow::Result<Ran> {
    let name = command.get_program().to_string_lossy().into_owned();
    let started = Instant::now();
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().with_context(
            || {
                format!(
                    "cannot run {name}: cargo build --release -p ptflow -p ptflow-bench-traces --features \
                 ptflow/oracle,ptflow-bench-traces/oracle"
                )
            },
        )?;
    let (mut stdout, mut stderr) =
        (child.stdout.take().context("a pipe")?, child.stderr.take().context("a pipe")?);
    let complaints = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stderr.by_ref().take(1 << 16).read_to_end(&mut text);
        let _ = std::io::copy(&mut stderr, &mut std::io::sink());
        text
    });
    let (mut lines, mut head, mut buffer) = (0u64, Vec::new(), vec![0; 1 << 16]);
    loop {
        let len = stdout.read(&mut buffer)?;
        if len == 0 {
            break;
        }
        lines += buffer[..len].iter().filter(|byte| **byte == b'\n').count() as u64;
        if head.len() < 1 << 12 {
            head.extend_from_slice(&buffer[..len]);
        }
    }
    let (mut status, pid) = (0, child.id() as libc::pid_t);
    // SAFETY: all-zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both are writable, and the process is our child, which nobody else waits for.
    if unsafe { libc::wait4(pid, &mut status, 0, &mut usage) } != pid {
        bail!("cannot wait for {name}");
    }
    let wall = started.elapsed().as_secs_f64();
    let complaints = complaints.join().unwrap_or_default();
    if status != 0 {
        let text = String::from_utf8_lossy(&complaints);
        bail!("{}", text.trim().lines().last().unwrap_or("failed without a word"));
    }
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 * 1e-6;
    let head = String::from_utf8_lossy(&head);
    let said = head.lines().find_map(|line| line.strip_prefix("decode ")?.split_once(' '));
    let (decode, note) = match said {
        Some((seconds, words)) => (seconds.parse().ok(), words.to_owned()),
        None if lines == 1 => (None, head.trim().to_owned()),
        None if lines > 0 => (None, format!("{lines} lines")),
        None => (None, String::new()),
    };
    let cpu = seconds(usage.ru_utime) + seconds(usage.ru_stime);
    Ok(Ran { cpu, decode, wall, peak: usage.ru_maxrss as u64 * 1024, note })
}

/// The median of each figure by itself.
pub fn medians(ran: &[Ran]) -> Ran {
    let median = |value: &dyn Fn(&Ran) -> f64| {
        let mut values: Vec<f64> = ran.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    };
    let decodes = ran.iter().all(|ran| ran.decode.is_some()) && !ran.is_empty();
    Ran {
        cpu: median(&|ran| ran.cpu),
        decode: decodes.then(|| median(&|ran| ran.decode.unwrap_or(f64::NAN))),
        wall: median(&|ran| ran.wall),
        peak: median(&|ran| ran.peak as f64) as u64,
        note: ran.last().map(|ran| ran.note.clone()).unwrap_or_default(),
    }
}
