//! A timeline: slices of named work on the tracks of threads, and where the trace has holes.
//!
//! Every format implements [`Timeline`]. Slices of a track nest; times on a track never fall. Tracks are independent of
//! each other, so one track's events may be written long before another's.

use std::io;

/// A track that was made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Track(pub u32);

/// A name that was made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Name(pub u32);

/// What kind of slice a name is for; viewers filter and colour by it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Category {
    /// A function.
    Function,
    /// A function that was inlined into the one around it.
    Inlined,
    /// A function that was entered before its first event here.
    Inferred,
    /// Time without trace: a system call, for one.
    Untraced,
    /// A hole in the trace.
    Gap,
    /// Frames that are not shown one by one.
    Folded,
    /// Another thread's turn on the CPU.
    OffCpu,
    /// What began in the part of the timeline before this one.
    Continued,
}

impl Category {
    /// The name that files carry.
    pub fn name(self) -> &'static str {
        match self {
            Self::Function => "function",
            Self::Inlined => "inlined",
            Self::Inferred => "inferred",
            Self::Untraced => "untraced",
            Self::Gap => "gap",
            Self::Folded => "folded",
            Self::OffCpu => "off-cpu",
            Self::Continued => "continued",
        }
    }
}

/// Calls without a slice of their own, on the slice in which they happened.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Folded {
    /// How many.
    pub calls: u64,
    /// Their time, in nanoseconds: of each call with all that it called, once.
    pub ns: u64,
}

impl Folded {
    /// Takes a call of `ns` with what was folded into it; `direct` if it does not lie in another that is taken.
    pub fn take(&mut self, within: &Self, ns: u64, direct: bool) {
        self.calls = self.calls.saturating_add(within.calls).saturating_add(1);
        if direct {
            self.ns = self.ns.saturating_add(ns);
        }
    }

    /// Takes what was folded into something that is no call itself: an inlined function that is not shown is again what it
    /// was, a part of the one around it.
    pub fn take_over(&mut self, within: &Self, direct: bool) {
        self.calls = self.calls.saturating_add(within.calls);
        if direct {
            self.ns = self.ns.saturating_add(within.ns);
        }
    }
}

/// What a thread executed in a slice, on its CPU and in traced code, with all that the slice called, folded calls included.
/// What is not known is left out.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Work {
    /// Instructions.
    pub instructions: Option<u64>,
    /// Core cycles.
    pub cycles: Option<u64>,
}

impl Work {
    /// What came since an earlier sum, where both are known.
    pub fn since(self, earlier: Self) -> Self {
        let passed = |from: Option<u64>, to: Option<u64>| Some(to?.saturating_sub(from?));
        Self {
            instructions: passed(earlier.instructions, self.instructions),
            cycles: passed(earlier.cycles, self.cycles),
        }
    }

    /// What there is to say: nothing is said of a slice in which nothing was executed, such as a system call that was not
    /// traced.
    pub fn told(self) -> Option<Self> {
        (self.instructions.unwrap_or(0) > 0 || self.cycles.unwrap_or(0) > 0).then_some(self)
    }

    /// Instructions per cycle, to a thousandth.
    pub fn ipc(self) -> Option<f64> {
        let cycles = self.cycles.filter(|cycles| *cycles > 0)?;
        Some((self.instructions? as f64 / cycles as f64 * 1e3).round() / 1e3)
    }
}

/// What is said of a slice besides its name and times.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Args {
    /// What it has instead of slices of their own.
    pub folded: Folded,
    /// What was executed in it.
    pub work: Work,
}

impl From<Folded> for Args {
    fn from(folded: Folded) -> Self {
        Self { folded, ..Self::default() }
    }
}

/// A timeline that is being written.
pub trait Timeline {
    /// A process.
    fn process(&mut self, pid: u32, name: &str) -> io::Result<()>;

    /// A thread's track. Its process was named before.
    fn thread(&mut self, pid: u32, tid: u32, name: &str) -> io::Result<Track>;

    /// A track of notes on another track's trace: shown below it.
    fn notes(&mut self, of: Track, name: &str) -> io::Result<Track>;

    /// A curve below another track. Not every format has them.
    fn counter(&mut self, of: Track, name: &str) -> io::Result<Track>;

    /// A curve's value from a moment on. Later ones come later.
    fn value(&mut self, counter: Track, ns: u64, value: f64) -> io::Result<()>;

    /// A name for slices.
    fn name(&mut self, text: &str, category: Category) -> Name;

    /// A slice begins, inside the one that is open.
    fn begin(&mut self, track: Track, ns: u64, name: Name) -> io::Result<()>;

    /// The youngest open slice ends.
    fn end(&mut self, track: Track, ns: u64, args: Args) -> io::Result<()>;

    /// Something true of the whole timeline.
    fn metadata(&mut self, key: &str, value: &str) -> io::Result<()>;

    /// Writes what is left. All slices are ended: [`DepthGuard`](crate::depth::DepthGuard) sees to it.
    fn finish(self: Box<Self>) -> io::Result<()>;
}
