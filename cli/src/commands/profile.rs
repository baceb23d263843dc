//! `ptflow profile`.

use crate::args::{EngineChoice, ProfileArgs, ProfileFormat, Usage};
use crate::load;
use crate::report::Outcome;
use crate::sources::Sources;
use anyhow::{Context as _, bail};
use ptflow_decoder::profile::EdgeKind;
use ptflow_exporters::flow::Flow;
use ptflow_exporters::output::Output;
use ptflow_exporters::{bolt, counted_lines};
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
    let mut sources = Sources::read(args, &pool)?;
    let (ledgers, streams) = (std::mem::take(&mut sources.ledgers), std::mem::take(&mut sources.streams));
    let (bytes_in, instructions, segments) = (sources.bytes, sources.instructions, sources.units);
    let rows = sources.table.exact().iter().chain(sources.table.sampled());
    let branches = rows.filter(|row| is_branch(row.kind)).map(|row| row.taken.saturating_add(row.not_taken));
    let branches = branches.fold(0, u64::saturating_add);
    match args.format {
        ProfileFormat::Edges => edges(args, sources)?,
        ProfileFormat::BoltPreaggregated | ProfileFormat::LlvmUnsymbolized | ProfileFormat::Gcc => {
            of_binary(args, sources)?;
        }
    }
    Outcome {
        bytes_in,
        ledgers: &ledgers,
        streams: &streams,
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

fn edges(args: &ProfileArgs, sources: Sources) -> anyhow::Result<()> {
    let table = sources.into_table();
    let rows = if table.exact().is_empty() { table.sampled() } else { table.exact() };
    write(args, |out| ptflow_exporters::edges::write(out, rows, &table))
}

fn of_binary(args: &ProfileArgs, mut sources: Sources) -> anyhow::Result<()> {
    let binary = sources.binary.take().context("the format is of one binary")?;
    let own = sources.table.image(&binary.name);
    let mut flow = Flow::new(sources.table.exact(), |image| image == own, &binary.code());
    flow.sum(Flow::sampled(sources.table.sampled(), |image| image == own));
    if flow.is_empty() {
        bail!("no code of {} ran in the trace; see what did: ptflow profile", binary.name);
    }
    if flow.unexplained() > 0 && !args.common.quiet {
        let times = flow.unexplained();
        eprintln!("ptflow: flow was cut off by losses {times} times; what it ran just before is not counted");
    }
    write(args, |out| match args.format {
        ProfileFormat::LlvmUnsymbolized => counted_lines::write_unsymbolized(out, &flow),
        ProfileFormat::Gcc => counted_lines::write_autofdo(out, &flow),
        ProfileFormat::Edges | ProfileFormat::BoltPreaggregated => bolt::write(out, &flow),
    })
}

fn write(
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
