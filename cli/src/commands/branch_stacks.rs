//! `ptflow dump branches` of branch stacks (LBR and its like): each sample's branches, the oldest first.

use super::dump::Names;
use crate::args::DumpArgs;
use crate::load::Loaded;
use ptflow_decoder::code::CodeView;
use ptflow_decoder::image::{AddressSpace, AddressSpaces};
use ptflow_decoder::packet::ExecMode;
use ptflow_decoder::profile::{CodeAddr, EdgeKind};
use ptflow_decoder::units::Ip;
use ptflow_exporters::branches::{BranchWriter, Place};
use ptflow_exporters::output::Output;
use ptflow_perf_import::Pid;
use ptflow_perf_import::record::BranchEntry;
use std::collections::HashMap;

/// Writes every entry, sample after sample in file order. A branch has its sample's time: when it ran is not recorded.
/// Entries of a path that was predicted and not taken (AMD tells them) are no branches and are left out.
pub fn dump(args: &DumpArgs, loaded: &Loaded<'_>, output: Output) -> anyhow::Result<Output> {
    let (images, functions) = if args.symbols {
        loaded.store.images_with_functions()
    } else {
        (loaded.store.images(), Default::default())
    };
    let names = Names { images: &images, functions: &functions, symbols: args.symbols };
    let time = loaded.capture.config.time;
    let mut writer = BranchWriter::new(output);
    let mut spaces_of: HashMap<Option<Pid>, AddressSpaces> = HashMap::new();
    static NOTHING: AddressSpace = AddressSpace::empty();
    for sample in loaded.capture.samples() {
        let Some(stack) = sample.branch_stack.filter(|_| loaded.is_sample_wanted(&sample)) else { continue };
        let pid = sample.task.map(|task| task.0);
        let spaces = spaces_of
            .entry(pid)
            .or_insert_with(|| pid.map(|pid| loaded.store.address_spaces(pid)).unwrap_or_default());
        let at = sample.time.and_then(|ns| time?.to_tsc(ns));
        let space = spaces.versions().get(spaces.index_at(at)).map_or(&NOTHING, |version| &version.1);
        let code = CodeView { images: &images, space };
        let place = |ip: Ip| {
            let addr = code.code_addr(ip);
            let CodeAddr { image: Some(_), .. } = addr else {
                return Place { address: (None, ip.0), symbol: None };
            };
            Place { address: (None, ip.0), ..names.place(spaces, addr) }
        };
        let (ns, tid) = (sample.time.map(|time| time.0), sample.task.map(|task| task.1.0));
        let entries: Vec<BranchEntry> = stack.iter().collect();
        for entry in entries.iter().rev().filter(|entry| !entry.is_wrong_path()) {
            let kind = told(entry).or_else(|| code.insn(entry.from, ExecMode::Bits64)?.class.edge_kind());
            let kind = kind.map_or("-", EdgeKind::name);
            writer.transfer(ns, tid, kind, Some(place(entry.from)), Some(place(entry.to)))?;
        }
    }
    Ok(writer.finish()?)
}

/// The kind as the record tells it (`PERF_BR_*`, linux `include/uapi/linux/perf_event.h`), where it was asked to.
fn told(entry: &BranchEntry) -> Option<EdgeKind> {
    Some(match entry.kind() {
        1 => EdgeKind::Jcc,
        2 => EdgeKind::Jmp,
        3 => EdgeKind::JmpInd,
        4 => EdgeKind::Call,
        5 => EdgeKind::CallInd,
        6 => EdgeKind::Ret,
        7 => EdgeKind::Syscall,
        8 | 11 => EdgeKind::Far,
        12 => EdgeKind::Async,
        _ => return None,
    })
}
