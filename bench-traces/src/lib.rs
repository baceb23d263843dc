//! What the software recorder is made of, apart from the emulator: options, the model of time, the stream of packets
//! that a CPU would have sent.
//!
//! *Invariant*: nothing here decides what the truth is. The recorder counts the truth from executed blocks by code
//! that never sees a [`pt::PtEncoder`].

pub mod accuracy;
pub mod frames;
pub mod log;
pub mod options;
pub mod order;
pub mod pt;
pub mod recorder;
pub mod stacks;
pub mod synth;
pub mod truth;
