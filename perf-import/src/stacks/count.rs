//! Counts what stands in the stacks, by runtime address: one table a batch of samples, summed in the order of the file.

use super::StackSums;
use crate::attr::Attr;
use crate::images::ImageStore;
use crate::record::{BranchEntry, BranchStack, Record, Sample, branch_sample_type as bst, kind};
use crate::{Capture, Pid};
use ptflow_decoder::image::{AddressSpace, AddressSpaces};
use ptflow_decoder::units::Ip;
use rayon::prelude::*;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

/// So many different traces are told apart: a bound on memory, far above what a program has. It does not depend on the
/// number of threads which ones are left out.
pub const MOST_TRACES: usize = 1 << 23;

/// Records that are counted in one table before it is added to the others.
const BATCH: usize = 4096;

/// A branch, and the next one that was taken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Trace {
    /// Index of the address space.
    pub space: u32,
    /// The kind as the record tells it (`PERF_BR_*`); 0 where not told.
    pub told: u8,
    pub from: Ip,
    pub to: Ip,
    /// Where the next branch was; `None` where that is not known or no straight code leads there.
    pub next: Option<Ip>,
    /// The next branch was into the kernel: a system call, or an interruption of whatever stood there.
    pub leaves: bool,
}

/// How often.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Count {
    pub taken: u64,
    pub mispredicted: u64,
}

/// The kind of entries that are no branches: interrupts, exceptions and the like (`PERF_BR_IRQ`).
pub(super) const TOLD_IRQ: u8 = 12;

/// All traces of a capture.
#[derive(Debug, Default)]
pub struct Traces {
    pub(super) counts: FxHashMap<Trace, Count>,
    pub(super) sums: StackSums,
    /// The address spaces that traces name by index; what is in none has the index behind the last.
    pub(super) spaces: Vec<AddressSpace>,
}

impl Traces {
    /// Counts the samples that are wanted.
    pub fn count(
        capture: &Capture<'_>,
        store: &ImageStore,
        pool: &rayon::ThreadPool,
        wanted: impl Fn(&Sample<'_>) -> bool + Sync,
    ) -> Self {
        let counter = Counter::new(capture, store, &wanted);
        let mut all = Self::default();
        let mut records = capture.records().filter(|record| record.kind == kind::SAMPLE);
        let batches = 2 * pool.current_num_threads();
        let mut behind = capture.let_go();
        loop {
            let next = || -> Vec<Record<'_>> { records.by_ref().take(BATCH).collect() };
            let round: Vec<_> = std::iter::repeat_with(next).take(batches).collect();
            let Some(first) = round[0].first() else { break };
            behind.before(first.offset.0);
            let tables: Vec<Self> =
                pool.install(|| round.par_iter().map(|batch| counter.batch(batch)).collect());
            tables.into_iter().for_each(|table| all.add(table, MOST_TRACES));
        }
        all.spaces = counter.spaces;
        all
    }

    /// What became of the samples so far.
    pub fn sums(&self) -> &StackSums {
        &self.sums
    }

    pub(super) fn add(&mut self, table: Self, most: usize) {
        let full = self.counts.len() >= most;
        for (trace, count) in table.counts {
            let sum = match self.counts.get_mut(&trace) {
                Some(sum) => sum,
                None if full => {
                    self.sums.too_many += count.taken;
                    continue;
                }
                None => self.counts.entry(trace).or_default(),
            };
            sum.taken += count.taken;
            sum.mispredicted += count.mispredicted;
        }
        let StackSums { samples, entries, call_stacks, wrong_path, repeated, .. } = table.sums;
        self.sums.samples += samples;
        self.sums.entries += entries;
        self.sums.call_stacks += call_stacks;
        self.sums.wrong_path += wrong_path;
        self.sums.repeated += repeated;
    }
}

struct Counter<'c, 'm, W> {
    capture: &'c Capture<'m>,
    wanted: W,
    /// By process: its spaces, and the index of the first of them.
    processes: BTreeMap<Pid, (u32, AddressSpaces)>,
    spaces: Vec<AddressSpace>,
}

impl<'c, 'm, W: Fn(&Sample<'_>) -> bool + Sync> Counter<'c, 'm, W> {
    fn new(capture: &'c Capture<'m>, store: &ImageStore, wanted: W) -> Self {
        let mut spaces = Vec::new();
        let mut processes = BTreeMap::new();
        for (pid, _) in capture.processes.iter() {
            let versions = store.address_spaces(pid);
            let first = spaces.len() as u32;
            spaces.extend(versions.versions().iter().map(|(_, space)| space.clone()));
            processes.insert(pid, (first, versions));
        }
        Self { capture, wanted, processes, spaces }
    }

    fn batch(&self, records: &[Record<'_>]) -> Traces {
        let mut table = Traces::default();
        for record in records {
            let Some((event, sample)) = self.capture.sample(record) else { continue };
            if let Some(stack) = sample.branch_stack.filter(|_| (self.wanted)(&sample)) {
                table.sample(&stack, &event.attr, self.space(&sample));
            }
        }
        table
    }

    fn space(&self, sample: &Sample<'_>) -> u32 {
        let process = sample.task.and_then(|task| self.processes.get(&task.0));
        let Some((first, spaces)) = process.filter(|(_, spaces)| !spaces.versions().is_empty()) else {
            return self.spaces.len() as u32;
        };
        let time = self.capture.config.time;
        first + spaces.index_at(sample.time.and_then(|ns| time?.to_tsc(ns))) as u32
    }
}

/// Every taken branch is in the stacks.
fn is_complete(attr: &Attr) -> bool {
    const LEVELS: u64 = bst::USER | bst::KERNEL | bst::HV;
    // What is recorded of each entry; it filters none.
    const FORM: u64 =
        bst::NO_FLAGS | bst::NO_CYCLES | bst::TYPE_SAVE | bst::HW_INDEX | bst::PRIV_SAVE | bst::COUNTERS;
    attr.branch_sample_type & !(LEVELS | FORM) == bst::ANY
}

fn is_kernel(ip: Ip) -> bool {
    ip.0 >> 63 != 0
}

impl Traces {
    /// Youngest first: what was taken next is the entry before.
    pub(super) fn sample(&mut self, stack: &BranchStack<'_>, attr: &Attr, space: u32) {
        self.sums.samples += 1;
        self.sums.entries += stack.len() as u64;
        if attr.branch_sample_type & bst::CALL_STACK != 0 {
            self.sums.call_stacks += 1;
            return;
        }
        let is_complete = is_complete(attr);
        let mut next: Option<BranchEntry> = None;
        let mut youngest: Option<BranchEntry> = None;
        for (index, entry) in stack.iter().enumerate() {
            if entry.is_wrong_path() {
                // What ran around it is not told.
                self.sums.wrong_path += 1;
                next = None;
                continue;
            }
            let BranchEntry { from, to, .. } = entry;
            let is_same = |young: BranchEntry| (young.from, young.to) == (from, to);
            if index == 1 && youngest.is_some_and(is_same) {
                self.sums.repeated += 1;
            }
            youngest = Some(entry);
            // An aborted transaction leaves from wherever it was.
            let told = if entry.abort() { TOLD_IRQ } else { entry.kind() };
            let follows = next.filter(|next| is_complete && is_kernel(next.from) == is_kernel(to));
            let leaves = follows.is_some_and(|next| !is_kernel(next.from) && is_kernel(next.to));
            let trace = Trace { space, told, from, to, next: follows.map(|next| next.from), leaves };
            let count = self.counts.entry(trace).or_default();
            count.taken += 1;
            count.mispredicted += u64::from(entry.mispredicted());
            next = (told != TOLD_IRQ).then_some(entry);
        }
    }
}
