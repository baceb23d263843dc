//! What the tests of the walkers share: random programs, a machine that runs and traces them, and the truth.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod decode;
pub mod machine;
pub mod program;
pub mod rng;
pub mod scenario;
pub mod tracer;
pub mod truth;
pub mod wire;
