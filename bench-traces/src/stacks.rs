//! Branch stacks (LBR) of a recording: what a CPU would have left of the same run, had it been sampled.
//!
//! From the ordered truth ([`crate::log`]) and never from the trace. As with `perf record -j any,u`, user code's taken
//! branches are recorded and nothing of the kernel: a system call or an interruption leaves no entry.

use crate::log::LogReader;
use crate::options::machine;
use anyhow::Context as _;
use clap::Args;
use ptflow_decoder::profile::EdgeKind;
use ptflow_decoder::units::{Ip, Tsc};
use ptflow_perf_import::process::SpaceEvent;
use ptflow_perf_import::record::branch_sample_type as bst;
use ptflow_perf_import::write::{PerfWriter, TraceForm, Who, WriterConfig};
use ptflow_perf_import::{Capture, Cpu, PerfFile};
use std::collections::VecDeque;
use std::fs::File;
use std::path::PathBuf;

/// What to make.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct StackArgs {
    /// The folder of a recording made with --log
    pub recording: PathBuf,
    /// The perf.data to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// A sample every so many taken branches
    #[arg(long, default_value_t = 1_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub every: u32,
    /// Entries of a stack, at most
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub depth: u32,
}

/// What was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sampled {
    /// Samples.
    pub samples: u64,
    /// Entries of their stacks.
    pub entries: u64,
}

/// `PERF_BR_*` of an entry is not told; it went as predicted.
const PREDICTED: u64 = 2;

/// Samples a recording.
pub fn sample(args: &StackArgs) -> anyhow::Result<Sampled> {
    let file = PerfFile::open(&args.recording.join("perf.data"))?;
    let capture = Capture::read(&file)?;
    let mut writer = PerfWriter::create(&args.output, config())
        .with_context(|| format!("cannot write {}", args.output.display()))?;
    mappings(&capture, &mut writer)?;
    let mut sampled = Sampled::default();
    for (pid, process) in capture.processes.iter() {
        for tid in process.threads.keys() {
            if !crate::log::path(&args.recording, tid.0).exists() {
                continue;
            }
            let mut stack: VecDeque<(Ip, Ip, u64)> = VecDeque::new();
            let mut until = args.every;
            for entry in LogReader::open(&crate::log::path(&args.recording, tid.0))? {
                let entry = entry?;
                let is_branch = !matches!(
                    entry.kind,
                    EdgeKind::Syscall | EdgeKind::Far | EdgeKind::Async | EdgeKind::Resume | EdgeKind::Range
                );
                let (Some(from), Some(to)) = (entry.from, entry.to) else { continue };
                if !entry.taken || !is_branch {
                    continue;
                }
                stack.truncate(args.depth as usize - 1);
                stack.push_front((Ip(from), Ip(to), PREDICTED));
                until -= 1;
                if until == 0 {
                    until = args.every;
                    let time = machine::TIME.to_ns(Tsc(machine::tsc(entry.cycles))).0;
                    let who = Who { pid, tid: *tid, cpu: Cpu(0), time };
                    writer.branch_sample(who, Ip(to), stack.make_contiguous())?;
                    sampled.samples += 1;
                    sampled.entries += stack.len() as u64;
                }
            }
        }
    }
    writer.finish()?;
    Ok(sampled)
}

fn config() -> WriterConfig {
    WriterConfig {
        cmdline: ["perf", "record", "-e", "cycles:u", "-j", "any,u"].map(str::to_owned).to_vec(),
        cpuid: machine::CPUID.to_owned(),
        cpudesc: "software recorder".to_owned(),
        cpus: 1,
        event_config: 0,
        time: machine::TIME,
        tsc_ctc_ratio: machine::TSC_CTC_RATIO,
        max_nonturbo_ratio: machine::TSC_RATIO,
        per_cpu: false,
        form: TraceForm::BranchStacks(bst::USER | bst::ANY),
    }
}

/// Names, mappings and build ids, as the recording has them.
fn mappings(capture: &Capture<'_>, writer: &mut PerfWriter<File>) -> anyhow::Result<()> {
    let files = capture.processes.files();
    for (pid, process) in capture.processes.iter() {
        for (tid, name) in &process.threads {
            writer.comm(Who { pid, tid: *tid, cpu: Cpu(0), time: 0 }, name, false)?;
        }
        for event in &process.space {
            let SpaceEvent::Map(range) = event else { continue };
            let Some(file) = files.get(range.file.0 as usize) else { continue };
            let who = Who { pid, tid: ptflow_perf_import::Tid(pid.0), cpu: Cpu(0), time: range.time.0 };
            writer.mmap2(who, range.addr, range.len, range.pgoff, &file.path)?;
            if let Some(id) = &file.build_id {
                writer.build_id(pid, &file.path, id);
            }
        }
    }
    Ok(())
}
