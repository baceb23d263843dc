//! `ptflow dump`.

use crate::args::{DumpArgs, DumpWhat, EngineChoice, Usage};
use crate::load::{self, Loaded};
use crate::progress::Progress;
use anyhow::Context as _;
use ptflow_decoder::image::{AddressSpace, Images};
use ptflow_decoder::jobs::branches::{BranchList, Line};
use ptflow_decoder::profile::CodeAddr;
use ptflow_decoder::reader::{Position, Reader};
use ptflow_decoder::run;
use ptflow_decoder::units::{ImageId, Ip, Svma};
use ptflow_decoder::walk::Engine;
use ptflow_exporters::branches::{BranchWriter, Place};
use ptflow_exporters::output::Output;
use ptflow_perf_import::symbols::FunctionNames;
use std::io::{BufWriter, Write};

/// Runs the verb.
pub fn run(args: &DumpArgs) -> anyhow::Result<()> {
    let file = load::open(&args.common)?;
    let loaded = Loaded::new(&file, &args.common)?;
    let cannot = || format!("cannot write {}", args.output.display());
    let output = Output::create(&args.output).with_context(cannot)?;
    let output = match args.what {
        DumpWhat::Packets => packets(&loaded, output),
        DumpWhat::Branches => branches(args, &loaded, output),
    }?;
    output.commit().with_context(cannot)
}

/// Every packet of every stream: stream offset, name, fields.
fn packets(loaded: &Loaded<'_>, output: Output) -> anyhow::Result<Output> {
    let mut out = BufWriter::with_capacity(1 << 17, output);
    for stream in loaded.streams() {
        writeln!(out, "# {}", stream.name())?;
        for (index, piece) in stream.trace.pieces.iter().enumerate() {
            let Some(broken) = piece.break_before else { continue };
            writeln!(out, "# {broken:?} at {:#x}", piece.offset.0)?;
            stretch(&mut out, Reader::new(&stream.trace, Position { piece: index, byte: 0 }))?;
        }
    }
    out.into_inner().map_err(|error| error.into_error().into())
}

/// The packets up to the next break.
fn stretch(out: &mut impl Write, mut reader: Reader<'_, '_>) -> std::io::Result<()> {
    let mut in_sync = false;
    loop {
        let at = reader.offset().0;
        match reader.read() {
            None => return Ok(()),
            Some(Ok((packet, len))) => {
                in_sync = true;
                writeln!(out, "{at:016x}  {packet}")?;
                reader.skip(len);
            }
            Some(Err(error)) => {
                // A single line for a stretch that is no packets.
                if in_sync {
                    writeln!(out, "{at:016x}  {error:?}")?;
                }
                in_sync = false;
                let rest = reader.rest();
                let skip = ptflow_decoder::psb::next_psb(rest, 0).unwrap_or(rest.len()).max(1);
                reader.reset_context();
                reader.skip(skip);
            }
        }
    }
}

/// Units of this job hold every branch of theirs in memory: small ones.
const UNIT_BYTES: usize = 256 << 10;

/// Every branch, stream after stream.
fn branches(args: &DumpArgs, loaded: &Loaded<'_>, output: Output) -> anyhow::Result<Output> {
    let engine = match args.engine {
        EngineChoice::Native => Engine::Fast,
        EngineChoice::Careful => Engine::Careful,
        EngineChoice::Libipt => return libipt(args, loaded, output),
    };
    let pool = load::pool(&args.common)?;
    let (images, functions) = if args.symbols {
        loaded.store.images_with_functions()
    } else {
        (loaded.store.images(), FunctionNames::default())
    };
    let contexts = loaded.contexts(&images);
    let progress = Progress::new(loaded.bytes(), args.common.quiet || args.common.no_progress);
    let add = |bytes| progress.add(bytes);
    let mut options = load::options(&pool, engine, &add);
    options.unit_bytes = UNIT_BYTES;
    let mut writer = BranchWriter::new(output);
    let names = Names { images: &images, functions: &functions, symbols: args.symbols };
    run::in_order(
        &contexts,
        &options,
        |_| BranchList::default(),
        |unit, list, result| {
            let stream = loaded.stream(unit.stream);
            let tid = stream.tid.map(|tid| tid.0);
            let spaces: Vec<&AddressSpace> =
                contexts[unit.stream].spaces.versions().iter().map(|version| &version.1).collect();
            let mut times = result.timeline.reader();
            for (mark, line) in &list.lines {
                let ns = times
                    .at(mark.ordinal)
                    .and_then(|moment| loaded.capture.config.time.map(|time| time.to_ns(moment.tsc).0));
                match line {
                    Line::Transfer { kind, from, to, .. } => {
                        let place = |addr: Option<CodeAddr>| addr.map(|addr| names.place(&spaces, addr));
                        writer.transfer(ns, tid, kind.name(), place(*from), place(*to))?;
                    }
                    Line::Gap { reason, bytes } => writer.gap(ns, tid, reason.name(), *bytes)?,
                }
            }
            anyhow::Ok(())
        },
    )?;
    Ok(writer.finish()?)
}

#[cfg(not(feature = "oracle"))]
fn libipt(_: &DumpArgs, _: &Loaded<'_>, _: Output) -> anyhow::Result<Output> {
    let usage = "this build has no libipt; make one: cargo build --release -p ptflow --features oracle";
    Err(Usage(usage.to_owned()).into())
}

#[cfg(feature = "oracle")]
fn libipt(args: &DumpArgs, loaded: &Loaded<'_>, output: Output) -> anyhow::Result<Output> {
    if args.symbols {
        return Err(Usage("--engine libipt prints plain addresses; leave --symbols out".to_owned()).into());
    }
    let mut writer = BranchWriter::new(output);
    crate::oracle::branches(loaded, &mut writer)?;
    Ok(writer.finish()?)
}

/// Addresses as lines show them: plain runtime addresses, with symbols on request.
struct Names<'n> {
    images: &'n Images<'n>,
    functions: &'n FunctionNames,
    symbols: bool,
}

impl<'n> Names<'n> {
    fn place(&self, spaces: &[&AddressSpace], addr: CodeAddr) -> Place<'n> {
        let Some(image) = addr.image else {
            return Place { address: (None, addr.addr), symbol: None };
        };
        let runtime = spaces.iter().find_map(|space| space.avma(image, Svma(addr.addr)));
        let symbol = self.symbols.then(|| self.symbol(image, Svma(addr.addr))).flatten();
        Place { address: (None, runtime.unwrap_or(Ip(addr.addr)).0), symbol }
    }

    fn symbol(&self, image: ImageId, svma: Svma) -> Option<(&'n str, u64)> {
        let range = self.images.get(image)?.function_range(svma)?;
        Some((self.functions.get(range.function), svma.0 - range.start.0))
    }
}
