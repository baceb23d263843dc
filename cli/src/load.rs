//! From a capture's path to what the decoder needs: streams chosen, images found, address spaces placed.

use crate::args::Common;
use anyhow::{Context as _, bail};
use ptflow_decoder::image::{AddressSpaces, Images};
use ptflow_decoder::run::Options;
use ptflow_decoder::walk::{Context, Engine};
use ptflow_perf_import::images::{ImageFile, ImageSearch, ImageStore, Status};
use ptflow_perf_import::streams::PtStream;
use ptflow_perf_import::{Capture, PerfFile, Pid};
use std::collections::BTreeMap;
use std::path::Path;

/// An opened capture.
pub struct Loaded<'m> {
    /// What the file says.
    pub capture: Capture<'m>,
    /// The code.
    pub store: ImageStore,
    /// The streams asked for, as indices into the capture's.
    chosen: Vec<usize>,
    spaces: BTreeMap<Option<Pid>, AddressSpaces>,
}

impl<'m> Loaded<'m> {
    /// Reads a mapped file and finds its images.
    pub fn new(file: &'m PerfFile, args: &Common) -> anyhow::Result<Self> {
        let capture = Capture::read(file)?;
        let store = ImageStore::load(&capture, &ImageSearch::new(args.images.clone()));
        let chosen: Vec<usize> = (0..capture.streams.len())
            .filter(|index| is_chosen(&capture, &capture.streams[*index], args))
            .collect();
        if chosen.is_empty() {
            bail!(
                "no trace in {} is of the thread, process or CPU asked for; see what there is: ptflow info",
                args.capture.display()
            );
        }
        let spaces = chosen
            .iter()
            .map(|index| capture.streams[*index].pid)
            .map(|pid| (pid, pid.map(|pid| store.address_spaces(pid)).unwrap_or_default()))
            .collect();
        let this = Self { capture, store, chosen, spaces };
        if !args.quiet {
            this.warn();
        }
        Ok(this)
    }

    /// Says what is wrong with the file and its images.
    fn warn(&self) {
        for note in &self.capture.notes {
            eprintln!("ptflow: {note}");
        }
        let complaints = self.store.files().iter().filter_map(complaint);
        let mut more = 0;
        for (index, complaint) in complaints.enumerate() {
            if index < MAX_COMPLAINTS {
                eprintln!("ptflow: {complaint}");
            } else {
                more += 1;
            }
        }
        if more > 0 {
            eprintln!("ptflow: {more} more images are missing; all of them: ptflow info");
        }
    }

    /// The streams to decode.
    pub fn streams(&self) -> impl Iterator<Item = &PtStream<'m>> {
        self.chosen.iter().map(|index| &self.capture.streams[*index])
    }

    /// The stream of a context.
    pub fn stream(&self, index: usize) -> &PtStream<'m> {
        &self.capture.streams[self.chosen[index]]
    }

    /// The streams' names.
    pub fn stream_names(&self) -> Vec<String> {
        self.streams().map(PtStream::name).collect()
    }

    /// Bytes of trace in them.
    pub fn bytes(&self) -> u64 {
        self.streams().map(|stream| stream.trace.len()).sum()
    }

    /// What the decoder needs of each stream.
    pub fn contexts<'a>(&'a self, images: &'a Images<'a>) -> Vec<Context<'a, 'a>> {
        self.streams()
            .map(|stream| Context {
                stream: &stream.trace,
                images,
                spaces: &self.spaces[&stream.pid],
                config: &self.capture.config,
            })
            .collect()
    }

    /// The address spaces of the one process whose streams were chosen.
    pub fn only_spaces(&self) -> anyhow::Result<&AddressSpaces> {
        let mut spaces = self.spaces.values();
        match (spaces.next(), spaces.next()) {
            (Some(spaces), None) => Ok(spaces),
            _ => {
                let pids: Vec<String> = self.spaces.keys().flatten().map(Pid::to_string).collect();
                let usage = format!(
                    "runtime addresses are of one process; choose it: --process {}",
                    pids.join(" | ")
                );
                Err(crate::args::Usage(usage).into())
            }
        }
    }
}

/// So many missing images are named one by one.
const MAX_COMPLAINTS: usize = 5;

/// What is wrong with an image: what, where it was looked for, what to do.
fn complaint(file: &ImageFile) -> Option<String> {
    let path = &file.mapped.path;
    match &file.status {
        Status::Missing { looked } => {
            let looked: Vec<String> = looked.iter().map(|path| path.display().to_string()).collect();
            let looked = looked.join(", ");
            Some(format!("{path} is not found (looked for {looked}); say where it is: --images DIR"))
        }
        Status::Mismatch { path: found, .. } => Some(format!(
            "{} is another build than the {path} that was traced; say where that one is: --images DIR",
            found.display()
        )),
        Status::Found(_) | Status::NoFile => None,
    }
}

fn is_chosen(capture: &Capture<'_>, stream: &PtStream<'_>, args: &Common) -> bool {
    let by_thread = args.thread.is_none_or(|tid| stream.tid.is_some_and(|own| own.0 == tid));
    let by_cpu = args.cpu.is_none_or(|cpu| stream.cpu.is_some_and(|own| own.0 == cpu));
    let by_process = args.process.as_ref().is_none_or(|wanted| {
        let Some(pid) = stream.pid else { return false };
        wanted.parse() == Ok(pid.0)
            || capture.processes.get(pid).is_some_and(|process| process.comm == *wanted)
    });
    by_thread && by_cpu && by_process
}

/// Opens the capture that the arguments name; `-` is standard input.
pub fn open(args: &Common) -> anyhow::Result<PerfFile> {
    if args.capture == Path::new("-") {
        return Ok(PerfFile::read(Path::new("standard input"), std::io::stdin().lock())?);
    }
    Ok(PerfFile::open(&args.capture)?)
}

/// The threads to work on.
pub fn pool(args: &Common) -> anyhow::Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads.map_or(0, usize::from))
        .build()
        .context("cannot start worker threads; try fewer: --threads N")
}

/// The decoder's options.
pub fn options<'p>(
    pool: &'p rayon::ThreadPool,
    engine: Engine,
    progress: &'p (dyn Fn(u64) + Sync),
) -> Options<'p> {
    Options { pool, engine, unit_bytes: ptflow_decoder::plan::UNIT_BYTES, progress }
}
