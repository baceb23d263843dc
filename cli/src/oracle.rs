//! `--engine libipt`: the same questions, asked of Intel's decoder.

use crate::load::Loaded;
use anyhow::Context as _;
use ptflow_decoder::image::Images;
use ptflow_decoder::oracle::{Edges, Failure, FileSection, SectionCache, Session, stretches};
use ptflow_decoder::profile::{EdgeRow, merge_rows};

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

/// Hands a session for every stretch of every stream to `ask`. libipt knows one address space: the last one counts.
fn each_session(
    loaded: &Loaded<'_>,
    images: &Images<'_>,
    mut ask: impl FnMut(Session<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for context in loaded.contexts(images) {
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
