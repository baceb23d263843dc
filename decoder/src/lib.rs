//! Intel PT trace bytes and executable images to exact control flow.
//!
//! This crate opens no file, knows no perf.data and no output format. Callers hand it the bytes of each trace
//! stream ([`stream::TraceStream`]), what is mapped where ([`image::Images`], [`image::AddressSpaces`]) and how
//! the trace was configured ([`config::PtConfig`]); it hands back counts or ordered events.
//!
//! *Invariant*: no input bytes make this crate panic, hang or use unbounded memory.
//! *Invariant*: nothing is guessed across a gap; every lost byte stands in the ledger with its reason.

pub mod clock;
pub mod code;
pub mod config;
pub mod errata;
pub mod graph;
pub mod image;
pub mod insn;
pub mod jobs;
pub mod ledger;
#[cfg(feature = "oracle")]
pub mod oracle;
mod overlap;
pub mod owners;
pub mod packet;
mod placement;
pub mod plan;
pub mod profile;
pub mod psb;
pub mod reader;
pub mod run;
pub mod sink;
pub mod stream;
pub mod units;
pub mod walk;
