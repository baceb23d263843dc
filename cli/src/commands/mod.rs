//! The verbs, one a file.

pub mod branch_stacks;
pub mod bundle;
pub mod calls;
mod calls_summary;
pub mod convert;
pub mod dump;
pub mod info;
pub mod instructions;
pub mod profile;
pub mod replay;
mod stacks;
