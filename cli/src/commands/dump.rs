//! `ptflow dump`.

use crate::args::{DumpArgs, DumpWhat, EngineChoice, Usage};
use crate::load::{self, Loaded};
use crate::progress::Progress;
use anyhow::Context as _;
use ptflow_decoder::image::{AddressSpaces, Images};
use ptflow_decoder::jobs::branches::{BranchList, Line};
use ptflow_decoder::plan::find_psb;
use ptflow_decoder::profile::CodeAddr;
use ptflow_decoder::psb::PSB;
use ptflow_decoder::reader::{Position, Reader, bytes_between};
use ptflow_decoder::run;
use ptflow_decoder::stream::{Break, TraceStream};
use ptflow_decoder::units::{ImageId, Ip, Svma};
use ptflow_decoder::walk::Engine;
use ptflow_exporters::branches::{BranchWriter, Place};
use ptflow_exporters::output::Output;
use ptflow_perf_import::symbols::FunctionNames;
use std::io::{BufWriter, Write};

/// Runs the verb.
pub fn run(args: &DumpArgs) -> anyhow::Result<()> {
    if args.disassemble && args.what != DumpWhat::Instructions {
        return Err(Usage("--disassemble is for: ptflow dump instructions".to_owned()).into());
    }
    let file = load::open(&args.common)?;
    let loaded = Loaded::new(&file, &args.common)?;
    if args.what != DumpWhat::Branches {
        loaded.needs_trace()?;
    }
    let cannot = || format!("cannot write {}", args.output.display());
    let output = Output::create(&args.output).with_context(cannot)?;
    let output = match args.what {
        DumpWhat::Packets => packets(&loaded, output),
        DumpWhat::Branches if loaded.is_branch_stacks_only() => {
            super::branch_stacks::dump(args, &loaded, output)
        }
        DumpWhat::Branches => branches(args, &loaded, output),
        DumpWhat::Instructions => super::instructions::dump(args, &loaded, output),
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
            stretch(&mut out, &stream.trace, index, broken)?;
        }
    }
    out.into_inner().map_err(|error| error.into_error().into())
}

/// The packets from a break up to the next. What is no packet, or lies before the first PSB, is one line.
fn stretch(
    out: &mut impl Write,
    trace: &TraceStream<'_>,
    first: usize,
    broken: Break,
) -> std::io::Result<()> {
    let pieces = &trace.pieces;
    let behind = pieces[first + 1..].iter().take_while(|piece| piece.break_before.is_none()).count();
    let last = first + behind;
    let end = Position { piece: last, byte: pieces[last].bytes.len() };
    let reader = |at| Reader::new(trace, at);
    let mut here = reader(Position { piece: first, byte: 0 });
    // Behind a truncation tracing starts again with a whole packet; else where packets begin only a PSB tells.
    if !broken.restarts() {
        let psb = find_psb(pieces, here.at(), end).unwrap_or(end);
        skipped(out, &here, bytes_between(pieces, here.at(), psb))?;
        here = reader(psb);
    }
    loop {
        match here.read() {
            None => return Ok(()),
            Some(Ok((packet, len))) => {
                writeln!(out, "{:016x}  {packet}", here.offset().0)?;
                here.skip(len);
            }
            Some(Err(_)) => {
                // What was taken for a packet may have held the PSB's first bytes.
                let psb = find_psb(pieces, here.back(PSB.len() - 1), end).unwrap_or(end);
                skipped(out, &here, bytes_between(pieces, here.at(), psb))?;
                here = reader(psb);
            }
        }
    }
}

fn skipped(out: &mut impl Write, here: &Reader<'_, '_>, bytes: usize) -> std::io::Result<()> {
    if bytes > 0 {
        writeln!(out, "{:016x}  no packet: {bytes} bytes up to the next PSB", here.offset().0)
    } else {
        Ok(())
    }
}

/// Units of these jobs hold every branch of theirs in memory: small ones.
pub(super) const UNIT_BYTES: usize = 256 << 10;

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
    let owners = loaded.owners(&pool);
    let contexts = loaded.contexts(&images, &owners);
    let progress = Progress::new(loaded.bytes(), args.common.quiet || args.common.no_progress);
    let add = |bytes| progress.add(bytes);
    let mut options = loaded.options(&pool, engine, &add);
    options.unit_bytes = UNIT_BYTES;
    let mut writer = BranchWriter::new(output);
    let names = Names { images: &images, functions: &functions, symbols: args.symbols };
    run::in_order(
        &contexts,
        &options,
        |_| BranchList::default(),
        |unit, list, result| {
            let stream = loaded.stream(unit.stream);
            let mut tid = stream.tid.map(|tid| tid.0);
            let mut spaces = contexts[unit.stream].spaces;
            let mut wanted = true;
            let mut times = result.timeline.reader();
            for (mark, line) in &list.lines {
                let ns = times
                    .at(mark.ordinal)
                    .and_then(|moment| loaded.capture.config.time.map(|time| time.to_ns(moment.tsc).0));
                match line {
                    Line::Owner(thread) => {
                        let running = loaded.running(*thread);
                        tid = running.task.map(|task| task.1.0);
                        (spaces, wanted) = (running.spaces, running.wanted);
                    }
                    _ if !wanted => {}
                    Line::Transfer { kind, from, to, .. } => {
                        let place = |addr: Option<CodeAddr>| addr.map(|addr| names.place(spaces, addr));
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
pub(super) fn libipt(_: &DumpArgs, _: &Loaded<'_>, _: Output) -> anyhow::Result<Output> {
    let usage = "this build has no libipt; make one: cargo build --release -p ptflow --features oracle";
    Err(Usage(usage.to_owned()).into())
}

#[cfg(feature = "oracle")]
pub(super) fn libipt(args: &DumpArgs, loaded: &Loaded<'_>, output: Output) -> anyhow::Result<Output> {
    if args.symbols || args.disassemble {
        let usage = "--engine libipt prints plain addresses; leave --symbols and --disassemble out";
        return Err(Usage(usage.to_owned()).into());
    }
    let mut writer = BranchWriter::new(output);
    if args.what == DumpWhat::Instructions {
        crate::oracle::instructions(loaded, &mut writer)?;
    } else {
        crate::oracle::branches(loaded, &mut writer)?;
    }
    Ok(writer.finish()?)
}

/// Addresses as lines show them: plain runtime addresses, with symbols on request.
pub(super) struct Names<'n> {
    pub images: &'n Images<'n>,
    pub functions: &'n FunctionNames,
    pub symbols: bool,
}

impl<'n> Names<'n> {
    pub fn place(&self, spaces: &AddressSpaces, addr: CodeAddr) -> Place<'n> {
        let Some(image) = addr.image else {
            return Place { address: (None, addr.addr), symbol: None };
        };
        let runtime = spaces.versions().iter().find_map(|version| version.1.avma(image, Svma(addr.addr)));
        let symbol = self.symbols.then(|| self.symbol(image, Svma(addr.addr))).flatten();
        Place { address: (None, runtime.unwrap_or(Ip(addr.addr)).0), symbol }
    }

    fn symbol(&self, image: ImageId, svma: Svma) -> Option<(&'n str, u64)> {
        let range = self.images.get(image)?.function_range(svma)?;
        Some((self.functions.get(range.function), svma.0 - range.start.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ptflow_decoder::stream::Piece;
    use ptflow_decoder::units::AuxOffset;

    /// What comes before the first PSB is no packet, even where it could be read as one; a packet that a PSB cut off has
    /// taken its first half.
    #[test]
    fn packets_begin_at_psbs() {
        let mut bytes = vec![0x04, 0x04];
        bytes.extend_from_slice(&PSB);
        bytes.extend_from_slice(&[0x02, 0x23, 0x02, 0xc3, 0x88]);
        bytes.extend_from_slice(&PSB);
        let (front, rear) = bytes.split_at(30);
        let piece = |offset, bytes, break_before| Piece {
            offset: AuxOffset(offset),
            bytes,
            break_before,
            reference: None,
        };
        let trace = TraceStream { pieces: vec![piece(0, front, Some(Break::Start)), piece(30, rear, None)] };
        let mut out = Vec::new();
        stretch(&mut out, &trace, 0, Break::Start).expect("memory");
        let expected = "\
0000000000000000  no packet: 2 bytes up to the next PSB
0000000000000002  psb
0000000000000012  psbend
0000000000000014  mnt        8202820282028202
0000000000000017  psb
";
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }
}
