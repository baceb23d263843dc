//! `ptflow profile`.

use crate::args::{EngineChoice, ProfileArgs, ProfileFormat, Usage};
use crate::binary::Binary;
use crate::load;
use crate::perf2bolt;
use crate::report::Outcome;
use crate::source_lines::{DwarfLines, Probes};
use crate::sources::Sources;
use anyhow::{Context as _, bail};
use ptflow_decoder::profile::{EdgeKind, EdgeRow};
use ptflow_exporters::bias::Branches;
use ptflow_exporters::flow::Flow;
use ptflow_exporters::output::Output;
use ptflow_exporters::sample_profile::SampleProfile;
use ptflow_exporters::{bolt, check, counted_lines, llvm_extbinary, llvm_text, pprof};
use ptflow_perf_import::dwarf::DebugSections;
use ptflow_perf_import::pseudo_probes::{ProbeSections, PseudoProbes};
use std::io::{BufWriter, Write};
use std::time::Instant;

/// Runs the verb.
pub fn run(args: &ProfileArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    if cfg!(not(feature = "oracle")) && args.engine == EngineChoice::Libipt {
        let usage = "this build has no libipt; make one: cargo build --release -p ptflow --features oracle";
        return Err(Usage(usage.to_owned()).into());
    }
    let pool = load::pool(&args.common)?;
    if args.traces && args.format != ProfileFormat::BoltPreaggregated {
        return Err(Usage("--traces is for --format bolt-preaggregated".to_owned()).into());
    }
    if args.format.is_of_stacks() {
        return super::stacks::run(args, &pool, started);
    }
    let mut sources = Sources::read(args, &pool)?;
    let (ledgers, streams) = (std::mem::take(&mut sources.ledgers), std::mem::take(&mut sources.streams));
    let unknown = std::mem::take(&mut sources.unknown);
    let (bytes_in, instructions, segments) = (sources.bytes, sources.instructions, sources.units);
    let rows = sources.table.exact().iter().chain(sources.table.sampled());
    let branches = rows.filter(|row| is_branch(row.kind)).map(|row| row.taken.saturating_add(row.not_taken));
    let branches = branches.fold(0, u64::saturating_add);
    match args.format {
        ProfileFormat::Edges => edges(args, sources)?,
        ProfileFormat::Branches | ProfileFormat::Bias => conditions(args, sources)?,
        _ => of_binary(args, sources)?,
    }
    Outcome {
        folding: None,
        bytes_in,
        ledgers: &ledgers,
        streams: &streams,
        unknown: &unknown,
        branches: Some(branches),
        instructions,
        segments,
        threads: pool.current_num_threads(),
    }
    .tell(started, args.common.report.as_deref(), args.common.quiet)
}

fn is_branch(kind: EdgeKind) -> bool {
    !matches!(kind, EdgeKind::Async | EdgeKind::Resume | EdgeKind::Range | EdgeKind::Syscall | EdgeKind::Far)
}

fn edges(args: &ProfileArgs, mut sources: Sources) -> anyhow::Result<()> {
    check_asked(args, &mut sources)?;
    let table = sources.into_table();
    let rows = if table.exact().is_empty() { table.sampled() } else { table.exact() };
    write(args, |out| ptflow_exporters::edges::write(out, rows, &table))
}

/// Which way conditional branches went.
fn conditions(args: &ProfileArgs, mut sources: Sources) -> anyhow::Result<()> {
    check_asked(args, &mut sources)?;
    let own = sources.binary.as_ref().map(|binary| sources.table.image(&binary.name));
    let rows = sources.table.exact().iter().chain(sources.table.sampled());
    let is_own = |row: &&EdgeRow| own.is_none() || row.from.is_some_and(|from| from.image == own);
    let function = |from| sources.functions.get(&from).map(String::as_str);
    let branches = Branches::new(rows.filter(is_own), &sources.table, function);
    if let Some(binary) = sources.binary.as_ref().filter(|_| branches.is_empty()) {
        bail!("no conditional branch of {} ran in the trace; see what did: ptflow profile", binary.name);
    }
    write(args, |out| match args.format {
        ProfileFormat::Branches => branches.write(out),
        _ => branches.write_bias(out),
    })
}

/// Checks a profile of any binaries against the one that was asked for.
fn check_asked(args: &ProfileArgs, sources: &mut Sources) -> anyhow::Result<()> {
    if let Some(path) = &args.check {
        let binary = Binary::open(path)?;
        let own = sources.table.image(&binary.name);
        let flow = sources.flow(&binary, own);
        if flow.is_empty() {
            bail!("nothing of {} ran: no image of the profile has its build id", path.display());
        }
        check(args, &flow, &binary, sources.table.sampled().is_empty())?;
    }
    Ok(())
}

fn of_binary(args: &ProfileArgs, mut sources: Sources) -> anyhow::Result<()> {
    let binary = sources.binary.take().context("the format is of one binary")?;
    let own = sources.table.image(&binary.name);
    let flow = sources.flow(&binary, own);
    if flow.is_empty() {
        bail!("no code of {} ran in the trace; see what did: ptflow profile", binary.name);
    }
    if flow.unexplained() > 0 && !args.common.quiet {
        let times = flow.unexplained();
        eprintln!("ptflow: flow was cut off by losses {times} times; what it ran just before is not counted");
    }
    let code = binary.code();
    match args.format {
        ProfileFormat::Llvm | ProfileFormat::LlvmExtbinary | ProfileFormat::Go => {
            let sections = DebugSections::of(binary.bytes());
            let lines = DwarfLines::read(&sections);
            if lines.map.is_empty() {
                bail!(
                    "{} has no line tables; build it with -g (clang: -fdebug-info-for-profiling)",
                    binary.name
                );
            }
            let sections = ProbeSections::of(binary.bytes());
            let probes = PseudoProbes::read(&sections);
            // A program that was built with probes is to be built with them again, and then lines mean nothing.
            let samples = || match probes.is_empty() {
                true => SampleProfile::new(&flow, &code, &lines),
                false => SampleProfile::of_probes(&flow, &code, &lines, &Probes(&probes)),
            };
            match args.format {
                ProfileFormat::Llvm => write(args, |out| llvm_text::write(out, &samples()))?,
                ProfileFormat::LlvmExtbinary => write(args, |out| llvm_extbinary::write(out, &samples()))?,
                _ => write(args, |out| pprof::write_calls(out, &flow, &lines))?,
            }
        }
        ProfileFormat::Bolt => {
            if args.output.as_os_str() == "-" {
                return Err(Usage("perf2bolt writes a file: -o FILE".to_owned()).into());
            }
            let mut file = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
            let mut out = BufWriter::new(file.as_file_mut());
            bolt::write(&mut out, &flow)
                .and_then(|()| out.flush())
                .context("cannot write a temporary file")?;
            drop(out);
            perf2bolt::convert(file.path(), &binary.path, &args.output)?;
        }
        ProfileFormat::LlvmUnsymbolized => {
            write(args, |out| counted_lines::write_unsymbolized(out, &flow, &code))?;
        }
        ProfileFormat::Gcc => write(args, |out| counted_lines::write_autofdo(out, &flow, &code))?,
        _ if args.traces => {
            write(args, |out| bolt::write_traces(out, &sources.traces, |image| image == own))?;
        }
        _ => write(args, |out| bolt::write(out, &flow))?,
    }
    let is_exact = sources.table.sampled().is_empty();
    check(args, &flow, &binary, is_exact)
}

/// Says in one line whether the profile fits; to the binary that is to be checked against, it must.
fn check(args: &ProfileArgs, flow: &Flow, binary: &Binary, is_exact: bool) -> anyhow::Result<()> {
    let other = args.check.as_ref().map(|path| Binary::open(path)).transpose()?;
    let verdict = check::check(flow, &other.as_ref().unwrap_or(binary).code(), is_exact);
    match &args.check {
        Some(path) if !verdict.fits() => bail!("{}: {verdict}", path.display()),
        _ if args.common.quiet => {}
        Some(path) => eprintln!("ptflow: {}: {verdict}", path.display()),
        None => eprintln!("ptflow: {verdict}"),
    }
    Ok(())
}

pub(super) fn write(
    args: &ProfileArgs,
    content: impl FnOnce(&mut BufWriter<Output>) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {}", args.output.display());
    let mut out = BufWriter::new(Output::create(&args.output).with_context(cannot)?);
    content(&mut out).with_context(cannot)?;
    out.flush().with_context(cannot)?;
    let out = out.into_inner().map_err(std::io::IntoInnerError::into_error).with_context(cannot)?;
    out.commit().with_context(cannot)
}
