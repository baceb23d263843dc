//! `--engine libipt`: the same questions, asked of Intel's decoder.

use crate::load::Loaded;
use anyhow::Context as _;
use ptflow_decoder::image::Images;
use ptflow_decoder::oracle::{
    Block, Edges, Failure, FileSection, Flow, SectionCache, Session, Transfer, stretches,
};
use ptflow_decoder::profile::{EdgeRow, merge_rows};
use ptflow_decoder::units::Ip;
use ptflow_exporters::branches::{BranchWriter, Place};
use std::io::{self, Write};

/// The edge profile by libipt, with runtime addresses.
pub fn edges(loaded: &Loaded<'_>) -> anyhow::Result<Vec<EdgeRow>> {
    let images = loaded.store.images();
    let mut rows = Vec::new();
    let mut failures: Vec<Failure> = Vec::new();
    each_session(loaded, &images, |session| {
        let Edges { rows: mut found, failures: mut failed, .. } =
            session.edges().map_err(|error| anyhow::anyhow!("libipt: {error}"))?;
        rows.append(&mut found);
        failures.append(&mut failed);
        Ok(())
    })?;
    for failure in failures.iter().take(10) {
        eprintln!("ptflow: libipt: {} at offset {:#x}", failure.error, failure.offset);
    }
    if !failures.is_empty() {
        eprintln!("ptflow: libipt gave up {} times", failures.len());
    }
    merge_rows(&mut rows);
    Ok(rows)
}

/// Every transfer by libipt, stream after stream.
pub fn branches<W: Write>(loaded: &Loaded<'_>, writer: &mut BranchWriter<W>) -> anyhow::Result<()> {
    let images = loaded.store.images();
    each_session(loaded, &images, |session| {
        let mut lines = Lines { writer, result: Ok(()) };
        session.flow(&mut lines).map_err(|error| anyhow::anyhow!("libipt: {error}"))?;
        Ok(lines.result?)
    })
}

/// Every instruction by libipt, stream after stream.
pub fn instructions<W: Write>(loaded: &Loaded<'_>, writer: &mut BranchWriter<W>) -> anyhow::Result<()> {
    let images = loaded.store.images();
    each_session(loaded, &images, |session| {
        let mut lines = Instructions { session: &session, writer, result: Ok(()) };
        session.flow(&mut lines).map_err(|error| anyhow::anyhow!("libipt: {error}"))?;
        Ok(lines.result?)
    })
}

/// libipt's blocks as a line for each instruction.
struct Instructions<'w, 's, W: Write> {
    session: &'w Session<'s>,
    writer: &'w mut BranchWriter<W>,
    result: io::Result<()>,
}

impl<W: Write> Flow for Instructions<'_, '_, W> {
    const TIMES: bool = false;

    fn block(&mut self, block: &Block) {
        for ip in self.session.instructions(block) {
            if self.result.is_ok() {
                let place = Place { address: (None, ip.0), symbol: None };
                self.result = self.writer.instruction(None, None, place, None);
            }
        }
    }

    fn odd(&mut self, ip: Ip) {
        eprintln!("ptflow: libipt and iced-x86 read the instruction at {ip} differently");
    }

    fn untold(&mut self, _: Ip) {}

    fn transfer(&mut self, _: &Transfer) {}

    fn failure(&mut self, failure: &Failure) {
        if self.result.is_ok() {
            self.result = self.writer.gap(None, None, &failure.error.to_string(), 0);
        }
    }
}

/// libipt's flow as lines; it knows no thread, and its times are not ours.
struct Lines<'w, W: Write> {
    writer: &'w mut BranchWriter<W>,
    result: io::Result<()>,
}

impl<W: Write> Flow for Lines<'_, W> {
    const TIMES: bool = false;

    fn block(&mut self, _: &Block) {}

    fn odd(&mut self, ip: Ip) {
        eprintln!("ptflow: libipt and iced-x86 read the instruction at {ip} differently");
    }

    fn untold(&mut self, _: Ip) {}

    fn transfer(&mut self, transfer: &Transfer) {
        if !transfer.taken || self.result.is_err() {
            return;
        }
        let place = |ip: Option<Ip>| ip.map(|ip| Place { address: (None, ip.0), symbol: None });
        self.result =
            self.writer.transfer(None, None, transfer.kind.name(), place(transfer.from), place(transfer.to));
    }

    fn failure(&mut self, failure: &Failure) {
        if self.result.is_ok() {
            self.result = self.writer.gap(None, None, &failure.error.to_string(), 0);
        }
    }
}

/// Hands a session for every stretch of every stream to `ask`. libipt knows one address space: the last one counts.
fn each_session(
    loaded: &Loaded<'_>,
    images: &Images<'_>,
    mut ask: impl FnMut(Session<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    // libipt is told of one address space a stream: those of CPUs are not for it.
    let owners = vec![Vec::new(); loaded.streams().count()];
    for context in loaded.contexts(images, &owners) {
        let Some((_, space)) = context.spaces.versions().last() else { continue };
        let sections: Vec<FileSection> = loaded
            .store
            .file_sections(space)
            .into_iter()
            .map(|(path, offset, size, address)| FileSection { path: path.to_owned(), offset, size, address })
            .collect();
        let cache = SectionCache::new(&sections)
            .map_err(|error| anyhow::anyhow!("{error}"))
            .context("libipt cannot read the images")?;
        for trace in stretches(context.stream) {
            ask(Session::new(&trace, images, space, context.config).with_sections(&cache))?;
        }
    }
    Ok(())
}
