//! `ptflow profile`.

use crate::args::{EngineChoice, ProfileArgs, ProfileFormat, Usage};
use crate::binary::{Binary, Unfit};
use crate::llvm_tools;
use crate::load;
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
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tempfile::NamedTempFile;

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
    if args.via.is_some() && !matches!(args.format, ProfileFormat::Llvm | ProfileFormat::LlvmExtbinary) {
        return Err(Usage("--via is for --format llvm and llvm-extbinary".to_owned()).into());
    }
    if args.is_to_folder() && !args.format.is_of_binary() {
        let usage = "-o DIR/ is for formats of one binary; this one has all in one file";
        return Err(Usage(usage.to_owned()).into());
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
        _ if args.is_to_folder() => of_binaries(args, sources)?,
        _ => {
            let binary = sources.binary.take().context("the format is of one binary")?;
            of_binary(args, &mut sources, &binary, &args.output)?;
        }
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
    write(&args.output, |out| ptflow_exporters::edges::write(out, rows, &table))
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
    write(&args.output, |out| match args.format {
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

/// A file for each binary, in a folder.
fn of_binaries(args: &ProfileArgs, mut sources: Sources) -> anyhow::Result<()> {
    if args.check.is_some() {
        return Err(
            Usage("--check is for a profile of one binary; -o DIR/ writes one for each".to_owned()).into()
        );
    }
    std::fs::create_dir_all(&args.output)
        .with_context(|| format!("cannot make {}", args.output.display()))?;
    let mut files: BTreeSet<PathBuf> = BTreeSet::new();
    for binary in sources.binaries() {
        let own = sources.table.image(&binary.name);
        if sources.flow(&binary, own).is_empty() {
            continue;
        }
        let mut file = args.output.join(&binary.file_name);
        if files.contains(&file) {
            // Of two binaries of one name, the second has its build id behind it.
            let mut name = file.into_os_string();
            name.push(format!(".{}", binary.name.replace('/', "_")));
            file = PathBuf::from(name);
        }
        match of_binary(args, &mut sources, &binary, &file) {
            Ok(()) => {}
            Err(error) if error.is::<Unfit>() => {
                if !args.common.quiet {
                    eprintln!("ptflow: {} is left out: {error}", binary.file_name);
                }
                continue;
            }
            Err(error) => return Err(error),
        }
        if !args.common.quiet {
            eprintln!("ptflow: wrote {}, of {}", file.display(), binary.path.display());
        }
        files.insert(file);
    }
    if files.is_empty() {
        bail!("no binary that ran in the trace is fit for it; see which ran: ptflow profile");
    }
    Ok(())
}

fn of_binary(
    args: &ProfileArgs,
    sources: &mut Sources,
    binary: &Binary,
    output: &Path,
) -> anyhow::Result<()> {
    let own = sources.table.image(&binary.name);
    let flow = sources.flow(binary, own);
    if flow.is_empty() {
        bail!("no code of {} ran in the trace; see what did: ptflow profile", binary.name);
    }
    if flow.unexplained() > 0 && !args.common.quiet {
        let times = flow.unexplained();
        eprintln!("ptflow: flow was cut off by losses {times} times; what it ran just before is not counted");
    }
    let code = binary.code();
    match args.format {
        format @ (ProfileFormat::Llvm | ProfileFormat::LlvmExtbinary) if args.via.is_some() => {
            let counts = temporary(|out| counted_lines::write_unsymbolized(out, &flow, &code))?;
            let made = temporary(|_| Ok(()))?;
            let is_binary = format == ProfileFormat::LlvmExtbinary;
            llvm_tools::llvm_profgen(counts.path(), &binary.path, made.path(), is_binary)?;
            let made = std::fs::read(made.path()).context("cannot read what llvm-profgen wrote")?;
            write(output, |out| out.write_all(&made))?;
        }
        ProfileFormat::Llvm | ProfileFormat::LlvmExtbinary | ProfileFormat::Go => {
            let sections = DebugSections::of(binary.bytes());
            let lines = DwarfLines::read(&sections);
            if lines.map.is_empty() {
                let path = binary.path.display();
                let why = "has no line tables; build it with -g (clang: -fdebug-info-for-profiling)";
                return Err(Unfit(format!("{path} {why}")).into());
            }
            let sections = ProbeSections::of(binary.bytes());
            let probes = PseudoProbes::read(&sections);
            // A program that was built with probes is to be built with them again, and then lines mean nothing.
            let samples = || match probes.is_empty() {
                true => SampleProfile::new(&flow, &code, &lines),
                false => SampleProfile::of_probes(&flow, &code, &lines, &Probes(&probes)),
            };
            match args.format {
                ProfileFormat::Llvm => write(output, |out| llvm_text::write(out, &samples()))?,
                ProfileFormat::LlvmExtbinary => write(output, |out| llvm_extbinary::write(out, &samples()))?,
                _ => write(output, |out| pprof::write_calls(out, &flow, &lines))?,
            }
        }
        ProfileFormat::Bolt => {
            if output.as_os_str() == "-" {
                return Err(Usage("perf2bolt writes a file: -o FILE".to_owned()).into());
            }
            let counts = temporary(|out| bolt::write(out, &flow))?;
            llvm_tools::perf2bolt(counts.path(), &binary.path, output)?;
        }
        ProfileFormat::LlvmUnsymbolized => {
            write(output, |out| counted_lines::write_unsymbolized(out, &flow, &code))?;
        }
        ProfileFormat::Gcc => write(output, |out| counted_lines::write_autofdo(out, &flow, &code))?,
        _ if args.traces => {
            write(output, |out| bolt::write_traces(out, &sources.traces, |image| image == own))?;
        }
        _ => write(output, |out| bolt::write(out, &flow))?,
    }
    let is_exact = sources.table.sampled().is_empty();
    check(args, &flow, binary, is_exact)
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

/// A file for another tool to read.
fn temporary(
    content: impl FnOnce(&mut BufWriter<&mut File>) -> std::io::Result<()>,
) -> anyhow::Result<NamedTempFile> {
    let mut file = NamedTempFile::new().context("cannot make a temporary file")?;
    let mut out = BufWriter::new(file.as_file_mut());
    content(&mut out).and_then(|()| out.flush()).context("cannot write a temporary file")?;
    drop(out);
    Ok(file)
}

pub(super) fn write(
    output: &Path,
    content: impl FnOnce(&mut BufWriter<Output>) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {}", output.display());
    let mut out = BufWriter::new(Output::create(output).with_context(cannot)?);
    content(&mut out).with_context(cannot)?;
    out.flush().with_context(cannot)?;
    let out = out.into_inner().map_err(std::io::IntoInnerError::into_error).with_context(cannot)?;
    out.commit().with_context(cannot)
}
