//! `ptflow profile`.

use crate::args::{Addresses, EngineChoice, ProfileArgs, ProfileFormat};
use crate::binary::Binary;
use crate::load::{self, Loaded};
use crate::progress::Progress;
use crate::report::Outcome;
use anyhow::Context as _;
use ptflow_decoder::image::AddressSpaces;
use ptflow_decoder::profile::{CodeAddr, EdgeKind};
use ptflow_decoder::run;
use ptflow_decoder::units::{ImageId, Svma};
use ptflow_decoder::walk::Engine;
use ptflow_exporters::address::AddressNames;
use ptflow_exporters::bolt::Preaggregated;
use ptflow_exporters::output::Output;
use std::io::{BufWriter, Write};
use std::time::Instant;

/// Runs the verb.
pub fn run(args: &ProfileArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    let file = load::open(&args.common)?;
    let loaded = Loaded::new(&file, &args.common)?;
    loaded.needs_trace()?;
    let binary = match args.format {
        ProfileFormat::Edges => None,
        ProfileFormat::BoltPreaggregated => Some(Binary::choose(&loaded, args.binary.as_deref())?),
    };
    if binary.is_some() && args.engine == EngineChoice::Libipt {
        let usage = "--engine libipt serves --format edges only";
        return Err(crate::args::Usage(usage.to_owned()).into());
    }
    let names: Box<dyn AddressNames> = match args.addresses {
        Addresses::Image => Box::new(ImageNames::new(&loaded)),
        Addresses::Runtime => Box::new(RuntimeNames { spaces: loaded.only_spaces()? }),
    };
    let engine = match args.engine {
        EngineChoice::Native => Engine::Fast,
        EngineChoice::Careful => Engine::Careful,
        EngineChoice::Libipt => return libipt(args, &loaded, names.as_ref()),
    };
    let pool = load::pool(&args.common)?;
    let images = loaded.store.images();
    let owners = loaded.owners(&pool);
    let contexts = loaded.contexts(&images, &owners);
    let progress = Progress::new(loaded.bytes(), args.common.quiet || args.common.no_progress);
    let add = |bytes| progress.add(bytes);
    let counts = run::count(&contexts, &load::options(&pool, engine, &add));
    drop(progress);
    match &binary {
        None => write(args, |out| ptflow_exporters::edges::write(out, &counts.rows, names.as_ref()))?,
        Some(binary) => {
            let profile = Preaggregated::new(&counts.rows, |image| binary.is(image), &binary.code);
            if profile.is_empty() {
                anyhow::bail!("no code of {} ran in the trace; see what did: ptflow profile", binary.name);
            }
            if profile.unexplained() > 0 && !args.common.quiet {
                let times = profile.unexplained();
                eprintln!(
                    "ptflow: flow was cut off by losses {times} times; what it ran just before is not counted"
                );
            }
            write(args, |out| profile.write(out))?;
        }
    }
    let branches = |kind| {
        !matches!(
            kind,
            EdgeKind::Async | EdgeKind::Resume | EdgeKind::Range | EdgeKind::Syscall | EdgeKind::Far
        )
    };
    Outcome {
        bytes_in: loaded.bytes(),
        ledgers: &counts.ledgers,
        streams: &loaded.stream_names(),
        branches: Some(
            counts.rows.iter().filter(|row| branches(row.kind)).map(|row| row.taken + row.not_taken).sum(),
        ),
        instructions: counts.instructions,
        segments: counts.units,
        threads: pool.current_num_threads(),
    }
    .tell(started, args.common.report.as_deref(), args.common.quiet)
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

#[cfg(not(feature = "oracle"))]
fn libipt(_: &ProfileArgs, _: &Loaded<'_>, _: &dyn AddressNames) -> anyhow::Result<()> {
    let usage = "this build has no libipt; make one: cargo build --release -p ptflow --features oracle";
    Err(crate::args::Usage(usage.to_owned()).into())
}

#[cfg(feature = "oracle")]
fn libipt(args: &ProfileArgs, loaded: &Loaded<'_>, names: &dyn AddressNames) -> anyhow::Result<()> {
    let rows = crate::oracle::edges(loaded)?;
    write(args, |out| ptflow_exporters::edges::write(out, &rows, names))
}

/// `IMAGE:0xSVMA`.
struct ImageNames(Vec<String>);

impl ImageNames {
    fn new(loaded: &Loaded<'_>) -> Self {
        Self((0..loaded.store.image_count()).map(|id| loaded.store.image_name(ImageId(id))).collect())
    }
}

impl AddressNames for ImageNames {
    fn name(&self, addr: CodeAddr) -> (Option<&str>, u64) {
        let image = addr.image.and_then(|image| self.0.get(image.0 as usize));
        (image.map(String::as_str), addr.addr)
    }
}

/// Plain runtime addresses of one process.
struct RuntimeNames<'s> {
    spaces: &'s AddressSpaces,
}

impl AddressNames for RuntimeNames<'_> {
    fn name(&self, addr: CodeAddr) -> (Option<&str>, u64) {
        let runtime = addr.image.and_then(|image| {
            self.spaces.versions().iter().find_map(|(_, space)| space.avma(image, Svma(addr.addr)))
        });
        (None, runtime.map_or(addr.addr, |ip| ip.0))
    }
}
