//! `bench-traces bench CAPTURE`: this project and its peers, on the same capture in the same run.
//!
//! Answers are compared first, and nothing is timed if they differ. Then the contenders take turns, so that a noisy machine
//! disturbs all alike; medians of CPU seconds count. Every turn is a process of its own: its CPU time and its peak of resident
//! memory are the kernel's figures of it. The peers decode and count only, with their files open and their caches warm as
//! they like it, and only their decoding is timed; ptflow is timed from its first instruction to its last.

mod child;
mod grow;
mod inside;
mod iptr;
mod plot;
mod roofline;

pub use grow::{GrowArgs, run as grow};
pub use inside::{StepArgs, step};
pub use roofline::{RooflineArgs, run as roofline};

use anyhow::{Context as _, bail, ensure};
use child::Ran;
use clap::{Args, ValueEnum};
use inside::Inside;
use ptflow_perf_import::{Capture, PerfFile};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What takes part.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Contender {
    /// libipt's block decoder, decoding only
    Libipt,
    /// iptr's edge analyzer, decoding only; no RET compression, no long TNT
    Iptr,
    /// Cutting the trace into units at PSBs
    Plan,
    /// Finding every PSB
    Psbs,
    /// `ptflow profile --format edges`
    Profile,
    /// Calls and returns of all functions with their times, handed to nobody
    Clocked,
    /// `ptflow calls --function`, of the function named by --function
    Calls,
    /// `ptflow convert`, to a .pftrace
    Convert,
    /// `perf script --itrace=b -F ip,addr`: minutes; one round
    PerfBranches,
    /// `perf script`: minutes; one round
    PerfScript,
}

#[derive(Args, Debug)]
pub struct BenchArgs {
    /// A perf.data file of one process
    capture: PathBuf,
    /// Look for images below this folder first
    #[arg(long, value_name = "DIR")]
    images: Vec<PathBuf>,
    /// Rounds
    #[arg(long, default_value_t = 5, value_name = "N")]
    rounds: usize,
    /// Who takes part
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "WHO,WHO",
        default_value = "libipt,iptr,plan,psbs,profile,clocked,convert"
    )]
    only: Vec<Contender>,
    /// A function for `calls`, which takes part then; if it does without, the function that is called most
    #[arg(long, value_name = "NAME")]
    function: Option<String>,
    /// perf takes part, if the trace is not longer than this: it needs a second for a megabyte or two
    #[arg(long, value_name = "BYTES", value_parser = ptflow_bench_traces::synth::parse_size)]
    perf: Option<u64>,
}

/// One line of the table.
struct Line {
    who: Contender,
    threads: usize,
    name: String,
    command: Vec<String>,
    rounds: usize,
    ran: Vec<Ran>,
    /// Why it has no figures.
    failure: Option<String>,
}

/// Runs the bench and prints a table.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let bytes = {
        let file = PerfFile::open(&args.capture)?;
        Capture::read(&file)?.trace_bytes()
    };
    let folder = tempfile::tempdir()?;
    println!("{}: {}", args.capture.display(), compare(args, folder.path())?);
    let function = match &args.function {
        None if args.only.contains(&Contender::Calls) => Some(most_called(args, folder.path())?),
        function => function.clone(),
    };
    let mut lines = lines(args, function.as_deref(), bytes, folder.path());
    for round in 0..args.rounds.max(1) {
        for line in &mut lines {
            if round >= line.rounds || line.failure.is_some() {
                continue;
            }
            match turn(args, line, folder.path()) {
                Ok(ran) => line.ran.push(ran),
                // A peer may not be able to read a capture; we must.
                Err(error) if matches!(line.who, Contender::Iptr | Contender::Libipt) => {
                    line.failure = Some(format!("{error:#}"));
                }
                Err(error) => return Err(error.context(line.name.clone())),
            }
        }
    }
    print(args, bytes, &mut lines);
    Ok(())
}

/// The contenders, in the order in which they take turns.
fn lines(args: &BenchArgs, function: Option<&str>, bytes: u64, folder: &Path) -> Vec<Line> {
    let capture = args.capture.display().to_string();
    let mut lines = Vec::new();
    let mut add = |who: Contender,
                   name: &str,
                   threads: usize,
                   command: Vec<String>,
                   failure: Option<String>| {
        let rounds =
            if matches!(who, Contender::PerfBranches | Contender::PerfScript) { 1 } else { usize::MAX };
        lines.push(Line { who, threads, name: name.to_owned(), command, rounds, ran: Vec::new(), failure });
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let inside = |inside: Inside, threads: usize| {
        let name = inside.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        words(&["bench-traces", "bench-step", &name, &capture, "--threads", &threads.to_string()])
    };
    let wanted = |who: Contender| {
        args.only.contains(&who)
            || (who == Contender::Calls && args.function.is_some())
            || (matches!(who, Contender::PerfBranches | Contender::PerfScript) && args.perf.is_some())
    };
    let verb = |verb: &str, more: &[&str], threads: usize| {
        let threads = threads.to_string();
        words(&[&["ptflow", verb, &capture, "--quiet", "--threads", &threads], more].concat())
    };
    let timeline = folder.join("out.pftrace").display().to_string();
    for who in Contender::value_variants().iter().copied().filter(|who| wanted(*who)) {
        match who {
            Contender::Libipt => add(who, "libipt block decoder", 1, inside(Inside::Libipt, 1), None),
            Contender::Iptr => {
                add(who, "iptr edge analyzer, counting blocks", 1, inside(Inside::Iptr, 1), None)
            }
            Contender::Plan => add(who, "cut at PSBs", 1, inside(Inside::Plan, 1), None),
            Contender::Psbs => add(who, "find every PSB", 1, inside(Inside::Psbs, 1), None),
            Contender::Clocked => {
                for threads in [1, 2] {
                    add(who, "clocked pass", threads, inside(Inside::Clocked, threads), None);
                }
            }
            Contender::Profile => {
                for threads in [1, 2] {
                    let command = verb("profile", &["--addresses", "runtime", "-o", "/dev/null"], threads);
                    add(who, "ptflow profile", threads, command, None);
                }
            }
            Contender::Calls => {
                let Some(function) = function else { continue };
                for threads in [1, 2] {
                    let command = verb("calls", &["--function", function, "-o", "/dev/null"], threads);
                    add(who, &format!("ptflow calls {function}"), threads, command, None);
                }
            }
            Contender::Convert => {
                for threads in [1, 2] {
                    add(who, "ptflow convert", threads, verb("convert", &["-o", &timeline], threads), None);
                }
            }
            Contender::PerfBranches | Contender::PerfScript => {
                let fields: &[&str] =
                    if who == Contender::PerfBranches { &["--itrace=b", "-F", "ip,addr"] } else { &[] };
                let command = words(&[&["perf", "script", "-i", &capture], fields].concat());
                let limit = args.perf.unwrap_or(u64::MAX);
                let failure = (bytes > limit).then(|| format!("not run: the limit is {} MiB", limit >> 20));
                add(who, &format!("perf script {}", fields.join(" ")), 1, command, failure);
            }
        }
    }
    lines
}

/// The function with the most calls, of those that have a name.
fn most_called(args: &BenchArgs, folder: &Path) -> anyhow::Result<String> {
    let out = folder.join("functions");
    let mut command = Command::new(child::beside("ptflow")?);
    command.arg("profile").arg(&args.capture).args(["--quiet", "--format", "functions", "-o"]).arg(&out);
    for folder in &args.images {
        command.arg("--images").arg(folder);
    }
    child::run(command)?;
    let table = std::fs::read_to_string(&out)?;
    let rows = table.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let mut fields = line.split('\t');
        let (name, calls) = (fields.next()?, fields.next()?.parse::<u64>().ok()?);
        // A function without a symbol is called by its image and address.
        (!name.contains("+0x")).then_some((calls, name))
    });
    let most = rows.max_by_key(|(calls, _)| *calls).context("no function has a name: give --function")?;
    Ok(most.1.to_owned())
}

/// One turn.
fn turn(args: &BenchArgs, line: &Line, folder: &Path) -> anyhow::Result<Ran> {
    let (program, arguments) = line.command.split_first().context("a command")?;
    let mut command = match program.as_str() {
        "perf" => Command::new("perf"),
        own => Command::new(child::beside(own)?),
    };
    command.args(arguments);
    if program != "perf" {
        for folder in &args.images {
            command.arg("--images").arg(folder);
        }
    }
    let ran = child::run(command)?;
    // What convert wrote is not kept for the next one to find.
    let _ = std::fs::remove_file(folder.join("out.pftrace"));
    Ok(ran)
}

fn print(args: &BenchArgs, bytes: u64, lines: &mut [Line]) {
    let mib = bytes as f64 / f64::from(1 << 20);
    let libipt = lines.iter_mut().find(|line| line.who == Contender::Libipt && !line.ran.is_empty());
    let alone = |ran: &Ran| ran.decode.unwrap_or(ran.cpu);
    let libipt = libipt.map(|line| alone(&child::medians(&line.ran)));
    println!(
        "{mib:.1} MiB of trace; medians of {} rounds; CPU s of libipt, iptr, cut, find: theirs alone",
        args.rounds
    );
    println!("| who | threads | CPU s | wall s | MiB/s of CPU | × libipt | peak MB | |");
    println!("| --- | --: | --: | --: | --: | --: | --: | --- |");
    for Line { name, threads, ran, failure, .. } in lines {
        if let Some(failure) = failure {
            println!("| {name} | {threads} | – | – | – | – | – | {failure} |");
            continue;
        }
        let ran = child::medians(ran);
        let cpu = alone(&ran);
        let wall = if ran.decode.is_some() { "–".to_owned() } else { format!("{:.3}", ran.wall) };
        let ratio = libipt.map_or("–".to_owned(), |libipt| format!("{:.2}", libipt / cpu));
        let (peak, note, speed) = (ran.peak as f64 / 1e6, &ran.note, mib / cpu);
        println!("| {name} | {threads} | {cpu:.3} | {wall} | {speed:.1} | {ratio} | {peak:.0} | {note} |");
    }
}

/// The same edges from one thread, from two, from libipt if it takes part, and in the truth beside the capture; or nothing is
/// timed. Says what was compared.
fn compare(args: &BenchArgs, folder: &Path) -> anyhow::Result<String> {
    let profile = |name: &str, more: &[&str]| -> anyhow::Result<Vec<u8>> {
        let out = folder.join(name);
        let mut command = Command::new(child::beside("ptflow")?);
        command.arg("profile").arg(&args.capture).args(["--quiet", "--addresses", "runtime"]).args(more);
        command.arg("-o").arg(&out);
        for folder in &args.images {
            command.arg("--images").arg(folder);
        }
        child::run(command)?;
        std::fs::read(&out).with_context(|| format!("no {}", out.display()))
    };
    let ours = profile("one", &["--threads", "1"])?;
    ensure!(ours == profile("two", &["--threads", "2"])?, "one thread and two differ: nothing is timed");
    let mut same = vec!["1 thread", "2 threads"];
    if args.only.contains(&Contender::Libipt) {
        if ours != profile("libipt", &["--engine", "libipt"])? {
            bail!("ptflow and libipt differ on {}: nothing is timed", args.capture.display());
        }
        same.push("libipt");
    }
    if let Ok(truth) = std::fs::read(args.capture.with_file_name("truth.edges")) {
        ensure!(ours == truth, "the edges differ from the truth beside the capture: nothing is timed");
        same.push("the truth");
    }
    Ok(format!("same edges: {}", same.join(", ")))
}

/// A number in a report.
fn number(json: &str, key: &str) -> Option<u64> {
    let (_, rest) = json.split_once(&format!("\"{key}\":"))?;
    rest.trim_start().split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
