//! `bench-traces grow`: how the cost of an edge profile grows with the capture, on synthetic ones.
//!
//! One thing changes at a time. Each capture is made, checked against its truth, timed and deleted.

use super::child::{self, Ran};
use super::plot::{Panel, plot};
use anyhow::{Context as _, ensure};
use clap::Args;
use ptflow_bench_traces::options::PtOptions;
use ptflow_bench_traces::synth::{SynthArgs, parse_size, synthesize};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Args, Debug)]
pub struct GrowArgs {
    /// Where captures are made, one at a time
    #[arg(long, value_name = "DIR")]
    work: PathBuf,
    /// Bytes of trace where the size does not change; sizes go from a tenth of it to ten times of it
    #[arg(long, default_value = "64M", value_name = "BYTES", value_parser = parse_size)]
    size: u64,
    /// Rounds
    #[arg(long, default_value_t = 3, value_name = "N")]
    rounds: usize,
    /// Write the plot to this file
    #[arg(long, value_name = "SVG")]
    plot: Option<PathBuf>,
    /// The program or library whose code is walked; where the amount of code changes, it is made up
    #[arg(value_name = "ELF")]
    file: PathBuf,
}

/// A capture to be made and measured.
struct Point {
    name: String,
    x: f64,
    args: SynthArgs,
}

/// What changes, and what it is measured with.
struct Axis {
    title: &'static str,
    points: Vec<Point>,
}

/// Runs it all and prints tables.
pub fn run(args: &GrowArgs) -> anyhow::Result<()> {
    println!(
        "| what grows | | trace MiB | code MB | CPU s, 1 thread | ns a byte | wall s, 1 and 2 threads | ratio | peak MB beyond the file |"
    );
    println!("| --- | --- | --: | --: | --: | --: | --: | --: | --: |");
    let mut panels = Vec::new();
    for Axis { title, points } in axes(args) {
        let mut panel = Panel { title, values: Vec::new() };
        for Point { name, x, args: synth } in points {
            let made = synthesize(&synth).with_context(|| format!("{title}, {name}"))?;
            let [one, two] = measure(&synth.output, args.rounds)?;
            std::fs::remove_dir_all(&synth.output)?;
            let mib = made.bytes as f64 / f64::from(1 << 20);
            let ns = one.cpu * 1e9 / made.bytes as f64;
            let code = made.walked.1 as f64 / 1e6;
            let beyond = one.peak.saturating_sub(made.bytes) as f64 / 1e6;
            println!(
                "| {title} | {name} | {mib:.1} | {code:.2} | {:.3} | {ns:.2} | {:.3}, {:.3} | {:.2} | {beyond:.0} |",
                one.cpu,
                one.wall,
                two.wall,
                one.wall / two.wall
            );
            let x = if title == CODE { code } else { x };
            panel.values.push((x, ns, name));
        }
        panels.push(panel);
    }
    if let Some(path) = &args.plot {
        let mut svg = String::new();
        write!(svg, "{}", plot(&panels, "CPU nanoseconds a byte of trace"))?;
        std::fs::write(path, svg).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

const CODE: &str = "code, MB";

fn axes(args: &GrowArgs) -> Vec<Axis> {
    let capture = args.work.join("grow");
    let first = vec![args.file.clone()];
    let make = |change: &dyn Fn(&mut SynthArgs)| {
        let mut synth = SynthArgs::new(&capture, first.clone(), args.size);
        change(&mut synth);
        synth
    };
    let point = |name: String, x: f64, change: &dyn Fn(&mut SynthArgs)| Point { name, x, args: make(change) };
    let base = PtOptions::default();
    let timing = [
        ("no timing", PtOptions { no_tsc: true, ..base }),
        ("tsc, mtc", base),
        ("cyc, threshold 10", PtOptions { cyc: true, cyc_thresh: 10, ..base }),
        ("cyc, threshold 6", PtOptions { cyc: true, cyc_thresh: 6, ..base }),
        ("cyc", PtOptions { cyc: true, ..base }),
    ];
    let streams: [(&str, u32, u8); 4] =
        [("one", 1, 0), ("two of a size", 2, 0), ("one huge, 99 small", 100, 80), ("1,000 small", 1000, 0)];
    vec![
        Axis {
            title: "trace, MiB",
            points: [args.size / 10, args.size, args.size * 10]
                .map(|size| {
                    point(format!("{} MiB", size >> 20), (size >> 20) as f64, &|synth| synth.size = size)
                })
                .into(),
        },
        Axis {
            title: "threads",
            points: [1u32, 10, 100, 1000, 10_000]
                .map(|threads| {
                    point(threads.to_string(), f64::from(threads), &|synth| synth.threads = threads)
                })
                .into(),
        },
        Axis {
            title: CODE,
            // Made up, so that all of it can be reached: no program has so much that a walk comes by.
            points: [100_000u64, 1_000_000, 10_000_000, 110_000_000]
                .map(|code| {
                    point(format!("of {} made up", code as f64 / 1e6), code as f64, &|synth| {
                        (synth.files, synth.made_up) = (Vec::new(), code);
                        (synth.random, synth.errand) = (30, 500);
                    })
                })
                .into(),
        },
        Axis {
            title: "timing",
            points: (1..)
                .zip(timing)
                .map(|(x, (name, options))| {
                    point(name.to_owned(), f64::from(x), &|synth| synth.options = options)
                })
                .collect(),
        },
        Axis {
            title: "streams",
            points: (1..)
                .zip(streams)
                .map(|(x, (name, threads, first))| {
                    point(name.to_owned(), f64::from(x), &|synth| {
                        (synth.threads, synth.first) = (threads, first)
                    })
                })
                .collect(),
        },
    ]
}

/// Medians with one thread and with two, in turns; the edges are the truth.
fn measure(folder: &Path, rounds: usize) -> anyhow::Result<[Ran; 2]> {
    let out = folder.join("out.edges");
    let mut ran = [Vec::new(), Vec::new()];
    for _ in 0..rounds.max(1) {
        for (threads, ran) in ["1", "2"].into_iter().zip(&mut ran) {
            let mut command = Command::new(child::beside("ptflow")?);
            command.arg("profile").arg(folder.join("perf.data"));
            command.args(["--quiet", "--addresses", "runtime", "--threads", threads, "-o"]).arg(&out);
            let report = folder.join("report.json");
            command.arg("--report").arg(&report);
            let mut turn = child::run(command)?;
            // The kernel's peak of a child begins with what this process has, which made the capture.
            let report = std::fs::read_to_string(&report)?;
            turn.peak = super::number(&report, "peak_rss_bytes").context("no peak in the report")?;
            ran.push(turn);
            let same = std::fs::read(&out)? == std::fs::read(folder.join("truth.edges"))?;
            ensure!(same, "the edges of {} are not the truth", folder.display());
        }
    }
    Ok(ran.map(|ran| child::medians(&ran)))
}
