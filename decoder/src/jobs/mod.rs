//! The jobs: what a run makes of the flow, besides counting it.

pub mod between;
pub mod branches;
pub mod call_tree;
pub mod calls;
pub mod clip;
pub mod instructions;
pub mod invocations;
pub mod replay;
pub mod subtrees;
