//! Control flow to file formats, one format a file.
//!
//! *Invariant*: nothing here knows packets, TSC or perf: times are nanoseconds, addresses are what the caller names.
//! *Invariant*: the same calls give the same bytes.

pub mod address;
pub mod bias;
pub mod bolt;
pub mod branches;
pub mod budget;
pub mod call_profile;
pub mod call_tree;
pub mod check;
pub mod chrome;
pub mod counted_lines;
pub mod depth;
pub mod durations;
pub mod edges;
pub mod flow;
pub mod gzip;
pub mod llvm_extbinary;
pub mod llvm_text;
pub mod output;
pub mod parts;
pub mod perfetto;
pub mod pprof;
pub mod probe_profile;
pub mod ranges;
pub mod rates;
pub mod sample_profile;
pub mod survey;
pub mod table;
pub mod text;
pub mod timeline;
