//! The verbs, one a file.

pub mod branch_stacks;
pub mod bundle;
pub mod calls;
pub mod convert;
pub mod dump;
pub mod info;
pub mod instructions;
pub mod profile;
pub mod replay;
mod stacks;
