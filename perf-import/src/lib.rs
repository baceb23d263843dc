//! perf.data to trace streams, address spaces, images and symbols: mapped, not copied.
//!
//! ```text
//! PerfFile ─► Capture{streams, config, processes} ─► ImageStore{images, address spaces, functions}
//! ```
//!
//! *Invariant*: this crate knows no packets; trace bytes pass through as slices of the map.
//! *Invariant*: every length and offset in a file is taken for hostile: nothing here panics or allocates by it.

pub mod attr;
mod aux_samples;
mod bytes;
pub mod capture;
pub mod dwarf;
pub mod events;
pub mod features;
pub mod file;
mod header;
pub mod images;
pub mod inlined;
pub mod lines;
pub mod process;
pub mod pseudo_probes;
pub mod record;
pub mod schedule;
mod settings;
pub mod sideband;
pub mod stacks;
pub mod streams;
pub mod symbols;
pub mod write;

pub use bytes::Words;
pub use capture::{Capture, CaptureError};
pub use file::{OpenError, PerfFile};
pub use record::PtInfo;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(pub u32);
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}
id!(
    /// A process id.
    Pid
);
id!(
    /// A thread id.
    Tid
);
id!(
    /// A CPU number.
    Cpu
);

/// A position in a perf.data file, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileOffset(pub u64);

impl std::fmt::Display for FileOffset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl std::fmt::Debug for FileOffset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileOffset({self})")
    }
}
