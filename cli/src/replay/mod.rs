//! One invocation again, in full detail: which (`pick.rs`), its calls (`tree.rs`), its instructions (`listing.rs`, with loops
//! folded by `loops.rs`), and where two part (`part.rs`).

pub mod listing;
mod loops;
pub mod part;
pub mod pick;
pub mod tree;

use crate::call_stacks::{self, Part, StackOwner};
use crate::find_function::Functions;
use crate::load::Loaded;
use ptflow_decoder::image::{AddressSpaces, FunctionId, Images};
use ptflow_decoder::jobs::calls::FrameSink;
use ptflow_decoder::jobs::replay::{Detail, Replay, Stop, Which};
use ptflow_decoder::plan::Window;
use ptflow_decoder::units::{Ns, Tsc};
use ptflow_perf_import::symbols::FunctionNames;

/// What every step needs to know.
pub struct Session<'s> {
    /// The capture.
    pub loaded: &'s Loaded<'s>,
    /// Its images, with functions.
    pub images: &'s Images<'s>,
    /// Their names.
    pub functions: &'s FunctionNames,
    /// The stacks' threads.
    pub owners: Vec<StackOwner>,
    /// The threads to work on.
    pub pool: &'s rayon::ThreadPool,
    /// The functions asked for.
    pub wanted: Vec<FunctionId>,
}

/// An invocation that was decoded again, and how it is once more.
pub struct Decoded {
    /// Its stack.
    pub stack: usize,
    /// What is known of it; its counts begin where the window does.
    pub detail: Detail,
    /// The stretch of trace that was decoded.
    pub window: Window,
    /// How it was found in it.
    pub which: Which,
}

impl Session<'_> {
    /// How functions are found.
    pub fn known(&self) -> Functions<'_> {
        Functions { names: self.functions, images: self.images, store: &self.loaded.store }
    }

    /// What the process of a stack had mapped.
    fn spaces(&self, stack: usize) -> &AddressSpaces {
        self.loaded.spaces_of(self.owners.get(stack).map_or(0, |owner| owner.pid))
    }

    /// A time of the capture as a TSC, where it has any.
    fn tsc(&self, at: Ns) -> Option<Tsc> {
        match self.loaded.capture.config.time {
            Some(time) => time.to_tsc(at),
            None => None,
        }
    }

    /// The stretch of trace in which an invocation lies, for its stack.
    pub fn window(&self, stack: usize, from: Option<Ns>, to: Option<Ns>) -> Window {
        // A stack behind the streams' is a thread's of CPUs: it may be on any.
        let stream = (stack < self.loaded.streams().count()
            && self.loaded.capture.schedules.threads.is_empty())
        .then_some(stack);
        let (from, to) = (from.and_then(|at| self.tsc(at)), to.and_then(|at| self.tsc(at)));
        Window { from, to, stream, ..Window::ALL }
    }

    /// Decodes a window for one invocation, and hands its frames on.
    pub fn replay<S: FrameSink>(
        &self,
        stack: usize,
        which: Which,
        window: Window,
        sink: S,
    ) -> Result<(Option<Detail>, S), S::Error> {
        let mut replay = Replay::new(stack, &self.wanted, which, sink);
        if window.from.is_none() {
            replay = replay.from_the_start();
        }
        let part = Part { windows: vec![window], loops: true, ..Part::default() };
        match call_stacks::fold_part(self.loaded, self.images, self.pool, &|_| {}, &part, &mut replay) {
            Err(Stop::Sink(error)) => return Err(error),
            Ok(_) | Err(Stop::Found | Stop::Behind) => {}
        }
        Ok(replay.finish())
    }
}
