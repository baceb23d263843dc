//! The verbs, one a file.

pub mod convert;
pub mod dump;
pub mod info;
pub mod instructions;
pub mod profile;
