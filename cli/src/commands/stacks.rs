//! `ptflow profile` of call stacks: by function, folded, for pprof.

use super::profile::write;
use crate::args::{ProfileArgs, ProfileFormat, StackWeight, Usage};
use crate::call_stacks::{self, StackOwner};
use crate::frame_names::frame_name;
use crate::load::{self, Loaded};
use crate::progress::Progress;
use crate::report::Outcome;
use crate::unknown_code::UnknownCosts;
use ptflow_decoder::jobs::call_tree::{CallNode, CallTree};
use ptflow_decoder::jobs::calls::FrameName;
use ptflow_decoder::ledger::Ledger;
use ptflow_exporters::call_profile::{StackCosts, StackFrame, Weight};
use ptflow_exporters::pprof;
use ptflow_perf_import::symbols::FunctionNames;
use std::collections::HashMap;
use std::time::Instant;

/// Sums the stacks of all captures.
pub fn run(args: &ProfileArgs, pool: &rayon::ThreadPool, started: Instant) -> anyhow::Result<()> {
    if args.check.is_some() || args.binary.is_some() {
        let usage = "--binary and --check are for formats of branches; these are of call stacks";
        return Err(Usage(usage.to_owned()).into());
    }
    let mut costs = Costs::default();
    let (mut ledgers, mut streams): (Vec<Ledger>, Vec<String>) = Default::default();
    let mut unknown = UnknownCosts::default();
    let (mut bytes_in, mut instructions, mut segments) = (0, 0, 0);
    for path in std::iter::once(&args.common.capture).chain(&args.more) {
        let mut common = args.common.clone();
        common.capture = path.to_owned();
        let file = load::open(&common)?;
        let loaded = Loaded::new(&file, &common)?;
        loaded.needs_trace()?;
        let (images, functions) = loaded.store.images_with_functions();
        let owners = call_stacks::owners(&loaded);
        let progress = Progress::new(loaded.bytes(), common.quiet || common.no_progress);
        let tree = CallTree::new(owners.len());
        let folded = call_stacks::fold(&loaded, &images, pool, &|bytes| progress.add(bytes), tree);
        let Ok(folded) = folded.map_err(|never| match never {});
        costs.add(&loaded, &functions, &owners, folded.sink.nodes());
        bytes_in += loaded.bytes();
        instructions += folded.instructions;
        segments += folded.units;
        ledgers.extend(folded.ledgers);
        for (code, cost) in folded.unknown {
            let sum = unknown.entry(code).or_default();
            (sum.bytes, sum.count) = (sum.bytes + cost.bytes, sum.count + cost.count);
        }
        streams.extend(loaded.stream_names());
    }
    let costs = costs.costs;
    let weight = match args.weight {
        StackWeight::Instructions => Weight::Instructions,
        StackWeight::Time => Weight::Time,
    };
    write(&args.output, |out| match args.format {
        ProfileFormat::Pprof => pprof::write_stacks(out, &costs),
        ProfileFormat::Functions => costs.write_functions(out),
        _ => costs.write_folded(out, weight),
    })?;
    Outcome {
        bytes_in,
        ledgers: &ledgers,
        streams: &streams,
        unknown: &unknown,
        branches: None,
        folding: None,
        instructions,
        segments,
        threads: pool.current_num_threads(),
    }
    .tell(started, args.common.report.as_deref(), args.common.quiet)
}

/// The stacks of the captures so far, with one number for each name.
#[derive(Default)]
struct Costs {
    costs: StackCosts,
    numbers: HashMap<String, usize>,
}

impl Costs {
    fn add(
        &mut self,
        loaded: &Loaded<'_>,
        functions: &FunctionNames,
        owners: &[StackOwner],
        nodes: &[CallNode],
    ) {
        let first = self.costs.frames.len();
        let mut known: HashMap<FrameName, usize> = HashMap::new();
        for (index, node) in nodes.iter().enumerate() {
            let name = match node.name {
                Some(name) => *known
                    .entry(name)
                    .or_insert_with(|| self.number(frame_name(&loaded.store, functions, name))),
                None => self.number(owners.get(index).map_or_else(String::new, |owner| owner.name.clone())),
            };
            self.costs.frames.push(StackFrame {
                parent: node.name.map(|_| first + node.parent as usize),
                name,
                calls: node.calls,
                instructions: node.instructions,
                ns: node.ns,
            });
        }
    }

    fn number(&mut self, name: String) -> usize {
        let next = self.numbers.len();
        *self.numbers.entry(name).or_insert_with_key(|name| {
            self.costs.names.push(name.clone());
            next
        })
    }
}
