//! Whose code it was that no image holds, and how much of the trace went by in it.

use ptflow_decoder::image::AddressSpaces;
use ptflow_decoder::ledger::{Ledger, Loss, LossReason};
use ptflow_decoder::units::Ip;
use ptflow_decoder::walk::Context;
use ptflow_perf_import::images::{ImageStore, Status};
use serde::Serialize;
use std::collections::BTreeMap;

/// Code without an image. Flow that goes from one into another is put to the first; returns in known code whose calls are
/// not known, because code without an image ran before, are put to that.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Debug)]
pub struct UnknownCode {
    /// The mapped file, or what stands for one.
    pub image: String,
    /// Why there is no image.
    pub why: &'static str,
}

/// Bytes of trace, and how often flow was lost.
#[derive(Clone, Copy, Default, Serialize, Debug)]
pub struct Cost {
    /// Bytes.
    pub bytes: u64,
    /// Times.
    pub count: u64,
}

/// What each unknown code cost.
pub type UnknownCosts = BTreeMap<UnknownCode, Cost>;

/// Adds up what was lost in code without an image; the ledgers are those of the contexts.
pub fn costs(store: &ImageStore, contexts: &[Context<'_, '_>], ledgers: &[Ledger]) -> UnknownCosts {
    let mut costs = UnknownCosts::new();
    for (context, ledger) in contexts.iter().zip(ledgers) {
        let mut last = UnknownCode { image: "code".to_owned(), why: "its address is not known" };
        for loss in ledger.losses.iter().filter(|loss| loss.reason == LossReason::NoImage) {
            if let Some(code) = loss.at.and_then(|ip| code_at(store, spaces_of(context, loss), ip)) {
                last = code;
            }
            let cost = costs.entry(last.clone()).or_default();
            cost.bytes += loss.bytes;
            cost.count += 1;
        }
    }
    costs
}

/// The address spaces of whoever ran where the loss begins.
fn spaces_of<'a>(context: &Context<'a, '_>, loss: &Loss) -> &'a AddressSpaces {
    let begun = context.owners.partition_point(|owner| owner.from <= loss.from);
    begun.checked_sub(1).map_or(context.spaces, |index| context.owners[index].spaces)
}

/// The code at an address; `None` where an image has it.
fn code_at(store: &ImageStore, spaces: &AddressSpaces, ip: Ip) -> Option<UnknownCode> {
    if ip.0 >> 63 != 0 {
        return Some(UnknownCode { image: "[kernel]".to_owned(), why: "not decoded" });
    }
    // Which version held is not told; where they differ, the one without code is meant.
    let mut known = false;
    for file in spaces.versions().iter().filter_map(|(_, space)| store.file(space.find(ip)?.image)) {
        let why = match &file.status {
            Status::Missing { .. } => "not found",
            Status::Mismatch { .. } => "only another build of it found",
            Status::NoFile => "in no file",
            Status::Found(_) => {
                known = true;
                continue;
            }
        };
        return Some(UnknownCode { image: file.mapped.path.clone(), why });
    }
    (!known).then(|| UnknownCode { image: "code".to_owned(), why: "nothing is known to be mapped there" })
}
