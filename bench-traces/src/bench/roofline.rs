//! `bench-traces roofline CAPTURE...`: what a capture consists of, what a profile of it costs for each, and what this machine
//! could not do faster: reading the bytes, telling the packets apart, a chain of loads each of which waits for the one before.
//!
//! There are no hardware counters in most virtual machines, so that cycles are time by a clock that a chain of dependent
//! multiplications tells (three cycles each on Intel's cores since 2008 and AMD's since Zen).

use super::child::{self, Ran};
use super::inside::thread_cpu;
use anyhow::Context as _;
use clap::Args;
use ptflow_decoder::packet::Packet;
use ptflow_decoder::reader::{Position, Reader};
use ptflow_perf_import::{Capture, PerfFile};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Args, Debug)]
pub struct RooflineArgs {
    /// Rounds of the profile
    #[arg(long, default_value_t = 3, value_name = "N")]
    rounds: usize,
    /// perf.data files, whose images are found where they were
    #[arg(required = true, value_name = "CAPTURE")]
    captures: Vec<PathBuf>,
}

/// Packets by what they are for.
#[derive(Default)]
struct Packets {
    tnt: u64,
    outcomes: u64,
    tip: u64,
    cyc: u64,
    other_time: u64,
    rest: u64,
}

/// Executed transfers.
#[derive(Default)]
struct Branches {
    conditional: u64,
    direct: u64,
    indirect: u64,
    returns: u64,
}

/// What the machine can do at best.
struct Machine {
    ghz: f64,
    /// A load that waits for the one before, in nanoseconds, by size of what is loaded from.
    loads: [(usize, f64); 3],
    /// A branch that was guessed wrong.
    miss: f64,
}

/// Runs it all and prints tables.
pub fn run(args: &RooflineArgs) -> anyhow::Result<()> {
    let machine = Machine::measured();
    let loads: Vec<String> =
        machine.loads.iter().map(|(bytes, ns)| format!("{ns:.1} ns in {} KiB", bytes >> 10)).collect();
    println!(
        "{:.2} GHz; a load that waits for the one before: {}; a branch guessed wrong: {:.1} ns\n",
        machine.ghz,
        loads.join(", "),
        machine.miss
    );
    println!(
        "| capture | trace MB | TNT | outcomes | TIP | CYC | other timing | rest | conditional | direct | indirect | returns | instructions |"
    );
    println!("| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |");
    let mut costs = Vec::new();
    for capture in &args.captures {
        costs.push(one(args, capture, &machine)?);
    }
    println!(
        "\n| capture | CPU s | ns a byte | ns a packet | ns a branch | cycles a branch | reading alone | packets alone | a load for each outcome and target |"
    );
    println!("| --- | --: | --: | --: | --: | --: | --: | --: | --: |");
    costs.iter().for_each(|line| println!("{line}"));
    Ok(())
}

/// One capture: prints what it consists of, and gives the line of what it costs.
fn one(args: &RooflineArgs, path: &Path, machine: &Machine) -> anyhow::Result<String> {
    let file = PerfFile::open(path)?;
    let capture = Capture::read(&file)?;
    let bytes = capture.trace_bytes();
    let reading = {
        // Once for the pages, once for the time.
        read_all(&capture);
        let before = thread_cpu();
        read_all(&capture);
        (thread_cpu() - before).as_secs_f64()
    };
    let before = thread_cpu();
    let packets = Packets::of(&capture);
    let telling = (thread_cpu() - before).as_secs_f64();
    let (branches, instructions, ran) = profile(args, path)?;
    let name = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let millions = |count: u64| format!("{:.2}", count as f64 / 1e6);
    let Packets { tnt, outcomes, tip, cyc, other_time, rest, .. } = packets;
    let Branches { conditional, direct, indirect, returns } = branches;
    let counts =
        [tnt, outcomes, tip, cyc, other_time, rest, conditional, direct, indirect, returns, instructions];
    println!("| {name} | {} | {} |", millions(bytes), counts.map(millions).join(" | "));
    let all_packets = tnt + tip + cyc + other_time + rest;
    let all_branches = conditional + direct + indirect + returns;
    let ns = |count: u64| ran.cpu * 1e9 / count as f64;
    // An outcome or a target says which node comes next, and the node what is asked next.
    let chain = (outcomes + tip) as f64 * machine.loads[0].1 * 1e-9;
    let bound = |seconds: f64| format!("{seconds:.3} s, {:.0} %", 100.0 * seconds / ran.cpu);
    Ok(format!(
        "| {name} | {:.3} | {:.2} | {:.2} | {:.2} | {:.1} | {} | {} | {} |",
        ran.cpu,
        ns(bytes),
        ns(all_packets),
        ns(all_branches),
        ns(all_branches) * machine.ghz,
        bound(reading),
        bound(telling),
        bound(chain)
    ))
}

/// Looks at every byte of the trace.
fn read_all(capture: &Capture<'_>) {
    let pieces = capture.streams.iter().flat_map(|stream| &stream.trace.pieces);
    let words = pieces.flat_map(|piece| piece.bytes.chunks_exact(8));
    black_box(words.fold(0u64, |sum, word| sum.wrapping_add(word.try_into().map_or(0, u64::from_le_bytes))));
}

impl Packets {
    fn of(capture: &Capture<'_>) -> Self {
        let mut sum = Self::default();
        for stream in &capture.streams {
            let pieces = stream.trace.pieces.iter().enumerate();
            // A reader goes on to the next break.
            for (piece, _) in pieces.filter(|(_, piece)| piece.break_before.is_some()) {
                let reader = Reader::new(&stream.trace, Position { piece, byte: 0 });
                sum.add(reader);
            }
        }
        sum
    }

    fn add(&mut self, mut reader: Reader<'_, '_>) {
        while let Some(read) = reader.read() {
            let Ok((packet, len)) = read else {
                // No packet: perhaps the next byte begins one.
                reader.skip(1);
                continue;
            };
            reader.skip(len);
            *match packet {
                Packet::ShortTnt(outcomes) | Packet::LongTnt(outcomes) => {
                    self.outcomes += u64::from(outcomes.count);
                    &mut self.tnt
                }
                Packet::Tip(_) => &mut self.tip,
                Packet::Cyc { .. } => &mut self.cyc,
                Packet::Tsc { .. } | Packet::Tma { .. } | Packet::Mtc { .. } | Packet::Cbr { .. } => {
                    &mut self.other_time
                }
                _ => &mut self.rest,
            } += 1;
        }
    }
}

/// ptflow's own counts, which the bench compares with others', and what it took.
fn profile(args: &RooflineArgs, capture: &Path) -> anyhow::Result<(Branches, u64, Ran)> {
    let folder = tempfile::tempdir()?;
    let (edges, report) = (folder.path().join("edges"), folder.path().join("report.json"));
    let mut ran = Vec::new();
    for _ in 0..args.rounds.max(1) {
        let mut command = Command::new(child::beside("ptflow")?);
        command.arg("profile").arg(capture).args(["--quiet", "--threads", "1", "-o"]).arg(&edges);
        command.arg("--report").arg(&report);
        ran.push(child::run(command)?);
    }
    let mut branches = Branches::default();
    for line in std::fs::read_to_string(&edges)?.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [kind, _, _, taken, not_taken, _] = fields[..] else { continue };
        let count = taken.parse::<u64>()? + not_taken.parse::<u64>()?;
        match kind {
            "jcc" => branches.conditional += count,
            "jmp" | "call" => branches.direct += count,
            "jmp_ind" | "call_ind" => branches.indirect += count,
            "ret" => branches.returns += count,
            _ => {}
        }
    }
    let report = std::fs::read_to_string(&report)?;
    let instructions = super::number(&report, "instructions").context("no instructions in the report")?;
    Ok((branches, instructions, child::medians(&ran)))
}

impl Machine {
    fn measured() -> Self {
        Self {
            ghz: 3.0
                / nanoseconds(200_000_000, |rounds| {
                    (0..rounds).fold(black_box(3u64), |product, _| product.wrapping_mul(black_box(5)))
                }),
            loads: [16 << 10, 512 << 10, 16 << 20].map(|bytes| (bytes, load(bytes))),
            miss: miss(),
        }
    }
}

/// Nanoseconds a round; the best of five, for what disturbs only adds.
fn nanoseconds(rounds: u64, mut work: impl FnMut(u64) -> u64) -> f64 {
    let once = |_| {
        let before = thread_cpu();
        black_box(work(black_box(rounds)));
        (thread_cpu() - before).as_secs_f64() * 1e9 / rounds as f64
    };
    (0..5).map(once).fold(f64::MAX, f64::min)
}

/// A load whose address is the one before's result, all over so many bytes.
fn load(bytes: usize) -> f64 {
    // One place in each cache line, in an order that visits all: a cycle by Sattolo's algorithm.
    let lines = bytes / 64;
    let mut order: Vec<u32> = (0..lines as u32).collect();
    let mut state = 1u64;
    for last in (1..lines).rev() {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        order.swap(last, (state >> 33) as usize % last);
    }
    let mut next = vec![[0u32; 16]; lines];
    for (place, to) in next.iter_mut().zip(&order) {
        place[0] = *to;
    }
    nanoseconds(5_000_000, |rounds| u64::from((0..rounds).fold(0u32, |at, _| next[at as usize][0])))
}

/// What a branch costs more that goes by chance, for each that was guessed wrong: half of them.
fn miss() -> f64 {
    let mut state = 1u64;
    let bits: Vec<u64> = (0..1 << 20)
        .map(|_| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            state >> 63
        })
        .collect();
    let walk = |bits: &[u64]| {
        nanoseconds(bits.len() as u64, |_| {
            // A call that is not inlined cannot be a conditional move.
            bits.iter().fold(0u64, |sum, bit| if *bit == 1 { one_way(sum) } else { other_way(sum) })
        })
    };
    2.0 * (walk(&bits) - walk(&vec![0; bits.len()]))
}

#[inline(never)]
fn one_way(sum: u64) -> u64 {
    black_box(sum.wrapping_add(1))
}

#[inline(never)]
fn other_way(sum: u64) -> u64 {
    black_box(sum.wrapping_add(3))
}
