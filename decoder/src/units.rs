//! Units and ids, each a type of its own, so that a time is never added to an address.

use std::fmt;

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);
        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }
    };
}

newtype!(
    /// A runtime (actual) virtual address of the traced code, "avma" in the words of the framehop family.
    Ip(u64)
);
newtype!(
    /// A stated virtual address: the address an ELF file gives its own code, before it is loaded anywhere.
    Svma(u64)
);
newtype!(
    /// Time in ticks of the time-stamp counter (the max non-turbo frequency), extended to 64 bits.
    Tsc(u64)
);
newtype!(
    /// Time in nanoseconds of perf's own clock (the one that every record of a perf.data carries).
    Ns(u64)
);
newtype!(
    /// A position in the endless AUX stream of one CPU or thread, in bytes.
    AuxOffset(u64)
);
newtype!(
    /// An executable image, as an index into [`crate::image::Images`].
    ImageId(u32)
);

impl Ip {
    /// True for an address that 5-level paging allows: bits 63:56 are equal.
    pub fn is_canonical(self) -> bool {
        ((self.0 << 7) as i64 >> 7) as u64 == self.0
    }
}

macro_rules! hex_debug {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:#x})", stringify!($name), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    )*};
}
macro_rules! decimal_debug {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    )*};
}
hex_debug!(Ip, Svma, AuxOffset);
decimal_debug!(Tsc, Ns, ImageId);
