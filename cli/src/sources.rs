//! Edges of captures and of tables, summed.

use crate::args::{Addresses, Common, EngineChoice, ProfileArgs, ProfileFormat, Usage};
use crate::binary::{Binary, last_part};
use crate::load::{self, Loaded};
use crate::progress::Progress;
use crate::unknown_code::{self, UnknownCosts};
use anyhow::{Context as _, bail};
use ptflow_decoder::image::AddressSpaces;
use ptflow_decoder::ledger::Ledger;
use ptflow_decoder::profile::{CodeAddr, EdgeKind, EdgeRow, TraceRow};
use ptflow_decoder::run;
use ptflow_decoder::units::{ImageId, Svma};
use ptflow_decoder::walk::Engine;
use ptflow_exporters::edges;
use ptflow_exporters::flow::Flow;
use ptflow_exporters::table::EdgeTable;
use ptflow_perf_import::images::{BinaryFile, Status};
use ptflow_perf_import::stacks::{StackSums, Traces, resolve_each};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

/// What the captures hold, and what became of it.
#[derive(Default)]
pub struct Sources {
    /// The edges.
    pub table: EdgeTable,
    /// The binary that the profile is of, where the format is of one.
    pub binary: Option<Binary>,
    /// Branches with the straight code behind them, where they are wanted.
    pub traces: Vec<TraceRow>,
    /// The functions of conditional branches, where the format names them.
    pub functions: HashMap<CodeAddr, String>,
    /// Where the images were found, by name, and what their files were called when they ran.
    files: BTreeMap<String, (PathBuf, String)>,
    /// Bytes of trace.
    pub bytes: u64,
    /// What became of them, by stream.
    pub ledgers: Vec<Ledger>,
    /// The streams' names.
    pub streams: Vec<String>,
    /// What code without an image cost.
    pub unknown: UnknownCosts,
    /// Instructions of traces.
    pub instructions: u64,
    /// Units of work.
    pub units: usize,
}

impl Sources {
    /// Reads all captures and tables, one after the other.
    pub fn read(args: &ProfileArgs, pool: &rayon::ThreadPool) -> anyhow::Result<Self> {
        let mut this = Self::default();
        for path in std::iter::once(&args.common.capture).chain(&args.more) {
            let cannot = || path.display().to_string();
            match is_table(path) {
                true => this.add_table(path, args).with_context(cannot)?,
                false => this.add_capture(path, args, pool)?,
            }
        }
        Ok(this)
    }

    fn add_table(&mut self, path: &Path, args: &ProfileArgs) -> anyhow::Result<()> {
        if args.traces {
            return Err(Usage(NO_TRACES.to_owned()).into());
        }
        let rows = edges::read(BufReader::new(File::open(path)?))?;
        self.table.add_text(&rows);
        if self.binary.is_none() && args.format != ProfileFormat::Edges {
            match &args.binary {
                Some(wanted) => self.binary = Some(Binary::open(Path::new(wanted))?),
                None if !args.format.is_of_binary() => {}
                None => {
                    let usage = "a table does not tell where its binary is: --binary PATH";
                    return Err(Usage(usage.to_owned()).into());
                }
            }
        }
        if args.format.is_of_conditions()
            && let Some(binary) = &self.binary
        {
            let image = self.table.image(&binary.name);
            let symbols = binary.symbols();
            for from in conditions(self.table.exact()).chain(conditions(self.table.sampled())) {
                let function = symbols.lookup(Svma(from.addr)).filter(|_| from.image == Some(image));
                if let Some((_, function)) = function {
                    self.functions.entry(from).or_insert_with(|| function.name());
                }
            }
        }
        Ok(())
    }

    fn add_capture(
        &mut self,
        path: &Path,
        args: &ProfileArgs,
        pool: &rayon::ThreadPool,
    ) -> anyhow::Result<()> {
        let mut common = args.common.clone();
        common.capture = path.to_owned();
        // A binary of the right build will do under any name.
        common.binaries.extend(args.binary.iter().map(PathBuf::from));
        let file = load::open(&common)?;
        let loaded = Loaded::new(&file, &common)?;
        let is_of_any = args.is_to_folder() || args.format.is_of_conditions();
        if self.binary.is_none()
            && (args.format.is_of_binary() || args.format.is_of_conditions())
            && (args.binary.is_some() || !is_of_any)
        {
            self.binary = Some(Binary::choose(&loaded, args.binary.as_deref())?);
        }
        let ids = (0..loaded.store.image_count()).map(ImageId);
        let names: Vec<String> = ids.clone().map(|id| loaded.store.image_name(id)).collect();
        for (id, name) in ids.zip(&names) {
            if let Some(file) = loaded.store.file(id)
                && let Status::Found(path) = &file.status
            {
                let found = || (path.clone(), last_part(&file.mapped.path).to_owned());
                self.files.entry(name.clone()).or_insert_with(found);
            }
        }
        let runtime = match args.addresses {
            Addresses::Image => None,
            Addresses::Runtime => Some(loaded.only_spaces()?),
        };
        let mut rows = match (loaded.is_branch_stacks_only(), args.engine) {
            (true, _) => self.stacks(&loaded, pool, args, &names)?,
            _ if args.traces => return Err(Usage(NO_TRACES.to_owned()).into()),
            (false, EngineChoice::Native) => self.traced(&loaded, &common, Engine::Fast, pool),
            (false, EngineChoice::Careful) => self.traced(&loaded, &common, Engine::Careful, pool),
            (false, EngineChoice::Libipt) => libipt(&loaded)?,
        };
        let functions = if args.format.is_of_conditions() { functions(&loaded, &rows) } else { Vec::new() };
        if let Some(spaces) = runtime {
            at_runtime(&mut rows, spaces);
        }
        for (from, function) in conditions(&rows).zip(functions) {
            let image = from.image.and_then(|image| names.get(image.0 as usize));
            let from = CodeAddr { image: image.map(|name| self.table.image(name)), addr: from.addr };
            if let Some(function) = function {
                self.functions.insert(from, function);
            }
        }
        self.table.add(rows, &names);
        Ok(())
    }

    fn traced(
        &mut self,
        loaded: &Loaded<'_>,
        common: &Common,
        engine: Engine,
        pool: &rayon::ThreadPool,
    ) -> Vec<EdgeRow> {
        let images = loaded.store.images();
        let owners = loaded.owners(pool);
        let contexts = loaded.contexts(&images, &owners);
        let progress = Progress::new(loaded.bytes(), common.quiet || common.no_progress);
        let add = |bytes| progress.add(bytes);
        let counts = run::count(&contexts, &loaded.options(pool, engine, &add));
        self.bytes += loaded.bytes();
        for (code, cost) in unknown_code::costs(&loaded.store, &contexts, &counts.ledgers) {
            let sum = self.unknown.entry(code).or_default();
            (sum.bytes, sum.count) = (sum.bytes + cost.bytes, sum.count + cost.count);
        }
        self.ledgers.extend(counts.ledgers);
        self.streams.extend(loaded.stream_names());
        self.instructions += counts.instructions;
        self.units += counts.units;
        counts.rows
    }

    fn stacks(
        &mut self,
        loaded: &Loaded<'_>,
        pool: &rayon::ThreadPool,
        args: &ProfileArgs,
        names: &[String],
    ) -> anyhow::Result<Vec<EdgeRow>> {
        let traces =
            Traces::count(&loaded.capture, &loaded.store, pool, |sample| loaded.is_sample_wanted(sample));
        let StackSums { samples, call_stacks, .. } = *traces.sums();
        if call_stacks > 0 && call_stacks == samples {
            bail!(
                "the branch stacks in {} are of active calls (--call-graph lbr), not of the last branches: \
                 record with perf record -j any,u",
                loaded.capture.name()
            );
        }
        let images = loaded.store.images();
        let mut rows = Vec::new();
        let profile = resolve_each(&traces, &images, |row| rows.extend(args.traces.then_some(row)));
        let ids: Vec<ImageId> = names.iter().map(|name| self.table.image(name)).collect();
        let renamed = |addr: CodeAddr| CodeAddr {
            image: addr.image.and_then(|image| ids.get(image.0 as usize).copied()),
            addr: addr.addr,
        };
        self.traces.extend(rows.into_iter().map(|row| TraceRow {
            from: renamed(row.from),
            to: row.to.map(renamed),
            end: row.end.map(renamed),
            ..row
        }));
        if !args.common.quiet {
            tell(&profile.sums);
        }
        Ok(profile.rows)
    }

    /// The binary that is asked for; else all whose files were found.
    pub fn binaries(&mut self) -> Vec<Binary> {
        match self.binary.take() {
            Some(binary) => vec![binary],
            None => {
                let found = self.files.iter();
                found.filter_map(|(name, (path, file))| Binary::found(name, path, file)).collect()
            }
        }
    }

    /// The flow through a binary, which is that image of the table.
    pub fn flow(&self, binary: &Binary, own: ImageId) -> Flow {
        let mut flow = Flow::new(self.table.exact(), |image| image == own, &binary.code());
        flow.sum(Flow::sampled(self.table.sampled(), |image| image == own));
        flow
    }

    /// The edges as one table. Where some were traced and some sampled, it tells the ranges of both.
    pub fn into_table(self) -> EdgeTable {
        let Self { table, files, .. } = self;
        if table.exact().is_empty() || table.sampled().is_empty() {
            return table;
        }
        let mut derived: Vec<EdgeRow> = Vec::new();
        for (id, name) in (0..).map(ImageId).zip(table.images()) {
            if let Some(file) = files.get(name).and_then(|(path, _)| BinaryFile::open(path)) {
                let ranges =
                    ptflow_exporters::ranges::derive(table.exact(), |image| image == id, &file.code());
                derived.extend(ranges.rows(id));
            }
        }
        table.into_sampled(derived)
    }
}

const NO_TRACES: &str = "--traces is for branch stacks (LBR), which say what ran behind each branch; of Intel PT, and in tables \
                         of edges, branches and straight code are counted apart: leave --traces out";

/// The file begins as a table does.
fn is_table(path: &Path) -> bool {
    // Asked before opening: opening a named pipe waits for a writer.
    let is_file = std::fs::metadata(path).is_ok_and(|found| found.is_file());
    let mut start = [0; edges::HEADER.len()];
    is_file
        && File::open(path).is_ok_and(|mut file| file.read_exact(&mut start).is_ok())
        && start == *edges::HEADER.as_bytes()
}

/// Where conditional branches are, row by row.
fn conditions(rows: &[EdgeRow]) -> impl Iterator<Item = CodeAddr> {
    rows.iter().filter(|row| row.kind == EdgeKind::Jcc).filter_map(|row| row.from)
}

/// The functions of all conditional branches of a capture, row by row.
fn functions(loaded: &Loaded<'_>, rows: &[EdgeRow]) -> Vec<Option<String>> {
    let (images, names) = loaded.store.images_with_functions();
    let name = |from: CodeAddr| {
        let range = images.get(from.image?)?.function_range(Svma(from.addr))?;
        Some(names.get(range.function).to_owned())
    };
    conditions(rows).map(name).collect()
}

/// Plain runtime addresses of the one process.
fn at_runtime(rows: &mut [EdgeRow], spaces: &AddressSpaces) {
    let runtime = |addr: CodeAddr| {
        let avma = addr.image.and_then(|image| {
            spaces.versions().iter().find_map(|(_, space)| space.avma(image, Svma(addr.addr)))
        });
        avma.map_or(addr, CodeAddr::bare)
    };
    for row in rows {
        (row.from, row.to) = (row.from.map(runtime), row.to.map(runtime));
    }
}

#[cfg(not(feature = "oracle"))]
fn libipt(_: &Loaded<'_>) -> anyhow::Result<Vec<EdgeRow>> {
    bail!("this build has no libipt")
}

#[cfg(feature = "oracle")]
fn libipt(loaded: &Loaded<'_>) -> anyhow::Result<Vec<EdgeRow>> {
    crate::oracle::edges(loaded)
}

/// What of the branch stacks is in no row, and why.
fn tell(sums: &StackSums) {
    let entries = sums.entries;
    let say = |count: u64, of: u64, what: &str| {
        if count > 0 {
            let share = 100.0 * count as f64 / of.max(1) as f64;
            eprintln!("ptflow: {count} of {of} {what} ({share:.1} %)");
        }
    };
    say(
        sums.call_stacks,
        sums.samples,
        "samples are of active calls, not of the last branches, and not used",
    );
    say(sums.wrong_path, entries, "entries are of paths that were predicted and never ran, and left out");
    say(sums.outside, entries, "entries lie in no image that was found");
    say(sums.impossible, entries, "entries are no branch of the code, and left out: is it another build?");
    say(sums.too_many, entries, "entries are left out: too many different branches");
    say(sums.impossible_ranges, sums.ranges, "stretches between entries are no straight code, and left out");
    // In a tight loop the two youngest are the same, too.
    if sums.impossible_ranges > 0 {
        let what = "samples tell their youngest branch twice, as Skylake does at times and tight loops do";
        say(sums.repeated, sums.samples, what);
    }
}
