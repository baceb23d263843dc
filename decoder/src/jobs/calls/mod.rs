//! Calls and returns: what a timeline is made of.
//!
//! Each unit's walk leaves a list of steps; [`CallStacks`] takes them in stream order and alone knows the stack
//! rules:
//!
//! - A call opens a frame; it ends when control returns to the address behind the call. A return ends every younger
//!   frame too.
//! - A jump to the first instruction of another function is a tail call: the frame ends and the other function's
//!   opens, with the same return address. A jump elsewhere (`.cold` parts, shared tails) opens nothing.
//! - A return or an indirect jump into the middle of a function, to where no frame waits, ends the frames above that
//!   function's (exceptions, longjmp).
//! - A return to a function's first instruction begins a stack of its own (fibers). When control comes back to a frame
//!   below it, it is put aside, and it opens again when control returns to where it waits (`aside.rs`).
//! - A PLT stub is no function: the frame appears when the stub jumps on.
//! - A return to an address that no frame waits for, in no function that is open, ends all frames: they were not opened by
//!   what is known. The function returned to is open from then on, marked as inferred.
//! - Tracing off opens a frame of its own kind (a syscall, say), tracing on ends it. If tracing goes on at another
//!   function's first instruction (a signal handler), that function opens on top, and its return leaves the others open;
//!   if in the middle of a function that has a frame below, the frames above it end.
//! - A gap ends all frames where flow was lost.
//!
//! Why, and what these rules cannot know: docs/STACKS.md.
//!
//! Inlined functions are slices within a frame, where somebody knows them (`inlined.rs`).
//!
//! A CPU's units are of several threads: `shared.rs` hands each thread its own steps, in order of time.

mod aside;
mod fold_unit;
mod inline_steps;
mod inlined;
mod loops;
mod outer;
mod shared;
mod steps;

pub use inline_steps::InlineSteps;
pub use inlined::{InlinedCode, InlinedId};
pub use loops::LoopSteps;
pub use steps::CallSteps;

use crate::config::TscConversion;
use crate::image::FunctionId;
use crate::ledger::LossReason;
use crate::plan::Unit;
use crate::profile::CodeAddr;
use crate::sink::{Mark, Off, Sink, Site};
use crate::units::{ImageId, Ns};
use aside::Aside;
use fold_unit::Young;
use outer::Outer;
pub use outer::OuterFrames;
use shared::Shared;
use std::sync::Arc;
use steps::Step;

/// What a frame stands for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FrameName {
    /// A function.
    Function(FunctionId),
    /// A function that was inlined there, as long as control is in its code.
    Inlined(InlinedId),
    /// A function that no symbol names, by its first instruction.
    Unnamed(CodeAddr),
    /// Code of an image that no symbol covers; where its function begins is not known.
    Image(ImageId),
    /// Code in no image.
    NoImage,
    /// Time in a system call.
    Syscall,
    /// Other time without tracing.
    Untraced,
}

/// Why a frame's end is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// Flow was lost, or a piece of the trace is missing.
    Gap,
    /// The trace ends.
    End,
}

/// A frame in which no other opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// When it opened.
    pub from: Ns,
    /// When it ended.
    pub to: Ns,
    /// What it stands for.
    pub name: FrameName,
    /// As [`FrameSink::executed`] and [`FrameSink::cycles`] tell it, at its end.
    pub executed: u64,
    /// Likewise; not always told.
    pub cycles: Option<u64>,
}

impl Leaf {
    /// Tells it as any other frame.
    pub fn open_and_close<F: FrameSink + ?Sized>(self, sink: &mut F, stream: usize) -> Result<(), F::Error> {
        sink.open(stream, self.from, self.name, false)?;
        sink.executed(stream, self.executed);
        if let Some(cycles) = self.cycles {
            sink.cycles(stream, cycles);
        }
        sink.close(stream, self.to)
    }
}

/// Takes the frames of all stacks, each stack's in order: a stack for each stream, or for each thread.
pub trait FrameSink {
    /// Why a frame could not be taken.
    type Error;
    /// Whether the job wants to know about core cycles.
    const CYCLES: bool = false;
    /// Whether the job wants to know where frames [return to](Self::returns_to).
    const RETURNS: bool = false;
    /// A frame opens; `inferred` = control was in it before, but its call was not seen.
    fn open(&mut self, stream: usize, at: Ns, name: FrameName, inferred: bool) -> Result<(), Self::Error>;
    /// The youngest open frame ends.
    fn close(&mut self, stream: usize, at: Ns) -> Result<(), Self::Error>;
    /// A frame opens and ends. What was executed before it is told already.
    #[inline]
    fn leaf(&mut self, stream: usize, leaf: Leaf) -> Result<(), Self::Error> {
        leaf.open_and_close(self, stream)
    }
    /// The youngest open frame is cut off: it may have gone on where nothing is known of it. Most jobs end it like any
    /// other.
    fn cut(&mut self, stream: usize, at: Ns, _: Cut) -> Result<(), Self::Error> {
        self.close(stream, at)
    }
    /// So many instructions were executed on this stack before what comes next. Most jobs do not care.
    fn executed(&mut self, _stream: usize, _instructions: u64) {}
    /// So many core cycles went by in this stack's traced code before what comes next. Never told where no CYC packets
    /// are, or where the job does not [want](Self::CYCLES) them; always behind [`Self::executed`].
    fn cycles(&mut self, _stream: usize, _cycles: u64) {}
    /// Whether a job that wants cycles needs them up to what comes next, at this time. They may be told all the same: between
    /// two CYCs they cost a division.
    fn needs_cycles(&self, _stream: usize, _at: Ns) -> bool {
        Self::CYCLES
    }
    /// How much was executed before what comes next is not known to the instruction: it happens between two moments of which
    /// that is known. Most jobs do not care.
    fn uncounted(&mut self, _stream: usize) {}
    /// From here on this stack's core runs at so many times its bus clock, as a CBR packet says: the first one, and every
    /// change. Most jobs do not care.
    fn ratio(&mut self, _stream: usize, _at: Ns, _ratio: u8) -> Result<(), Self::Error> {
        Ok(())
    }
    /// What comes next on this stack was found in this unit.
    fn unit(&mut self, _stream: usize, _unit: &Unit) {}
    /// The frame that opens next was called, and this is where it returns to. Told to jobs that [want](Self::RETURNS) it.
    fn returns_to(&mut self, _stream: usize, _: CodeAddr) {}
    /// In the youngest frame, control went back to the head of a loop so often ([`LoopSteps`]).
    fn rounds(&mut self, _stream: usize, _head: CodeAddr, _times: u64) {}
    /// The program wrote a value into the trace (PTWRITE). Most jobs do not care.
    fn value(&mut self, _stream: usize, _at: Ns, _value: u64) -> Result<(), Self::Error> {
        Ok(())
    }
    /// Flow was lost in between; no frame is open.
    fn gap(&mut self, stream: usize, from: Ns, to: Ns, reason: LossReason) -> Result<(), Self::Error>;
}

/// No thread's stack is deeper: its memory has not room for more frames. Where it seems to be, returns are missed, and what
/// is open is not known; memory is bounded.
const MOST_FRAMES: usize = 1 << 20;

#[derive(Clone, Copy, Debug)]
struct Frame {
    name: FrameName,
    returns_to: Option<CodeAddr>,
    /// Frames of PLT stubs are not shown.
    shown: bool,
    kind: Kind,
    /// The inlined function that it is in.
    inlined: Option<InlinedId>,
}

/// What a frame does to those around it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Plain,
    /// The first of a stack of its own.
    Base,
    /// Opened by the kernel (a signal's handler) where this instruction was next, if that is known. It returns to nothing
    /// that is open.
    Handler(Option<CodeAddr>),
    /// Without tracing, from where this instruction was next.
    Off(Option<CodeAddr>),
    /// Ends its caller, too ([`crate::image::FunctionRole::Resume`]).
    Resume,
}

/// The stack of one stream.
#[derive(Clone, Debug, Default)]
struct Stack {
    frames: Vec<Frame>,
    now: Ns,
    /// Instructions before the current unit (of a CPU: before the thread's current stretch). Time, where the trace has
    /// none.
    instructions: u64,
    /// Cycles before that, too; and before the current unit.
    cycles: u64,
    /// The core:bus ratio that was told last.
    ratio: Option<u8>,
    aside: Aside,
    outer: Outer,
    /// Of several stretches of a CPU's trace, the one that the frames are of.
    complete: Option<usize>,
    /// Where the handler that ended last had interrupted the thread.
    interrupted: Option<CodeAddr>,
}

/// Folds the steps of all units into frames.
pub struct CallStacks<F> {
    sink: F,
    time: Option<TscConversion>,
    stacks: Vec<Stack>,
    shared: Shared,
    young: Young,
    inlined: Option<Arc<dyn InlinedCode>>,
}

/// What a unit's walk leaves for [`CallStacks`].
pub trait UnitSteps: Sink {
    /// The walk is done, and ended there.
    fn end(&mut self, _end: Mark) {}

    /// The steps.
    fn steps(&self) -> &CallSteps;
}

impl UnitSteps for CallSteps {
    fn steps(&self) -> &CallSteps {
        self
    }
}

impl<F: FrameSink> CallStacks<F> {
    /// So many stacks: one for each stream, unless [`Self::take_shared`] is told otherwise. Without a conversion, times are TSC ticks; without any timing packet they are
    /// instructions.
    pub fn new(stacks: usize, time: Option<TscConversion>, sink: F) -> Self {
        let stacks = vec![Stack::default(); stacks];
        let (shared, young) = (Shared::default(), Young::default());
        Self { sink, time, stacks, shared, young, inlined: None }
    }

    /// Shows inlined functions, as [`InlineSteps`] tell.
    pub fn with_inlined(mut self, inlined: Arc<dyn InlinedCode>) -> Self {
        self.inlined = Some(inlined);
        self
    }

    /// Knows what was open before what comes now.
    pub fn with_outer(mut self, outer: OuterFrames) -> Self {
        for (stack, known) in self.stacks.iter_mut().zip(outer.0) {
            stack.outer = Outer::known(known);
        }
        self
    }

    /// Gives up, and says what must have been open before it began: every function that was returned to though nothing
    /// known had called from there.
    pub fn into_outer(self) -> OuterFrames {
        OuterFrames(self.stacks.into_iter().map(|stack| stack.outer.into_frames()).collect())
    }

    /// Nothing more comes of a stack's thread, but it is known to have gone on until then: so did what is open.
    pub fn goes_on(&mut self, stack: usize, until: Ns) -> Result<(), F::Error> {
        self.hand_out(None)?;
        if let Some(stack) = self.stacks.get_mut(stack) {
            stack.now = stack.now.max(until);
        }
        Ok(())
    }

    /// Ends all frames and gives the sink back.
    pub fn finish(mut self) -> Result<F, F::Error> {
        self.hand_out(None)?;
        for (stream, stack) in self.stacks.iter_mut().enumerate() {
            let inlined = self.inlined.as_deref();
            Fold { stack, sink: &mut self.sink, stream, inlined }.cut_all(Cut::End)?;
        }
        Ok(self.sink)
    }
}

/// One stream's stack at work.
struct Fold<'f, F> {
    stack: &'f mut Stack,
    sink: &'f mut F,
    stream: usize,
    inlined: Option<&'f dyn InlinedCode>,
}

impl<F: FrameSink> Fold<'_, F> {
    fn step(&mut self, step: Step, gap_from: Option<Ns>) -> Result<(), F::Error> {
        match step {
            Step::Call { to, returns_to } => self.open(to, Some(returns_to), false),
            Step::Return { to } => self.ret(to),
            Step::Jump { to, indirect } => self.jump(to, indirect),
            Step::Off { why, interrupted } => {
                let name = if why == Off::Syscall { FrameName::Syscall } else { FrameName::Untraced };
                let kind = Kind::Off(interrupted);
                self.push(Frame { name, returns_to: None, shown: true, kind, inlined: None }, false)
            }
            Step::On { at } => self.on(at),
            Step::Sync { at } => self.settle(at),
            Step::Owner(_) => Ok(()),
            Step::Inlined(to) => self.enter_inlined(to),
            Step::Value(value) => self.sink.value(self.stream, self.stack.now, value),
            Step::Rounds { head, times } => {
                self.sink.rounds(self.stream, head, times);
                Ok(())
            }
            Step::Ratio(ratio) if self.stack.ratio == Some(ratio) => Ok(()),
            Step::Ratio(ratio) => {
                self.stack.ratio = Some(ratio);
                self.sink.ratio(self.stream, self.stack.now, ratio)
            }
            Step::Gap { reason, .. } => {
                self.sink.gap(self.stream, gap_from.unwrap_or(self.stack.now), self.stack.now, reason)
            }
        }
    }

    fn push(&mut self, frame: Frame, inferred: bool) -> Result<(), F::Error> {
        if self.stack.frames.len() >= MOST_FRAMES {
            self.cut_all(Cut::Gap)?;
        }
        if frame.shown {
            if F::RETURNS
                && let Some(returns_to) = frame.returns_to
            {
                self.sink.returns_to(self.stream, returns_to);
            }
            self.sink.open(self.stream, self.stack.now, frame.name, inferred)?;
            if frame.inlined.is_some() {
                self.open_inlined(frame.inlined)?;
            }
        }
        self.stack.frames.push(frame);
        Ok(())
    }

    fn pop(&mut self) -> Result<(), F::Error> {
        match self.stack.frames.pop() {
            Some(frame) if frame.shown => {
                if frame.inlined.is_some() {
                    self.close_inlined(frame.inlined)?;
                }
                self.sink.close(self.stream, self.stack.now)
            }
            _ => Ok(()),
        }
    }

    fn close_all(&mut self) -> Result<(), F::Error> {
        while !self.stack.frames.is_empty() {
            self.pop()?;
        }
        Ok(())
    }

    /// The same, where it is not known that they were left.
    fn cut_all(&mut self, why: Cut) -> Result<(), F::Error> {
        if !self.stack.frames.is_empty() {
            self.stack.outer.end();
        }
        while let Some(frame) = self.stack.frames.pop() {
            if frame.shown {
                for _ in 0..=self.open_in(frame.inlined) {
                    self.sink.cut(self.stream, self.stack.now, why)?;
                }
            }
        }
        Ok(())
    }

    fn open(&mut self, at: Site, returns_to: Option<CodeAddr>, inferred: bool) -> Result<(), F::Error> {
        let name = if inferred { name(at) } else { name_of_entered(at) };
        let kind = if at.function.resume { Kind::Resume } else { Kind::Plain };
        let shown = !at.function.stub;
        self.push(Frame { name, returns_to, shown, kind, inlined: None }, inferred)
    }

    fn ret(&mut self, to: Site) -> Result<(), F::Error> {
        if self.comes_back(to.addr)? {
            // What is below may be unknown: then this is it.
            return self.settle(to);
        }
        // A return that nothing called: it may enter a function (a fiber's first, or a return used as a jump), ...
        if to.function.entry {
            self.jump(to, true)?;
            if let Some(top) = self.stack.frames.last_mut().filter(|top| top.kind == Kind::Plain) {
                top.kind = Kind::Base;
            }
            return Ok(());
        }
        // ... leave a handler for the code that leads back into the kernel, ...
        if let Some(Frame { kind: Kind::Handler(interrupted), .. }) = self.stack.frames.last() {
            self.stack.interrupted = *interrupted;
            return self.pop();
        }
        // ... be the unwinder's way to a landing pad, or leave what is known.
        if self.unwind_below(name(to))? { Ok(()) } else { self.close_all().and_then(|()| self.settle(to)) }
    }

    /// Goes on where a frame waits, or a stack that was put aside. False where nothing waits for that address.
    fn comes_back(&mut self, to: CodeAddr) -> Result<bool, F::Error> {
        let waits = |frame: &Frame| frame.returns_to == Some(to);
        if let Some(index) = self.stack.frames.iter().rposition(waits) {
            if index + 1 < self.stack.frames.len() {
                self.stack.aside.put(&self.stack.frames[index..]);
            }
            while self.stack.frames.len() > index {
                self.pop()?;
            }
            return Ok(true);
        }
        let Some(frames) = self.stack.aside.take(to) else { return Ok(false) };
        // It lies on top of what switched to it, in the place of the function that did.
        let mut returns_to = self.stack.frames.last().and_then(|frame| frame.returns_to);
        self.pop()?;
        for frame in frames {
            let returns_to = if frame.kind == Kind::Base { returns_to.take() } else { frame.returns_to };
            self.push(Frame { returns_to, ..frame }, true)?;
        }
        Ok(true)
    }

    fn jump(&mut self, to: Site, indirect: bool) -> Result<(), F::Error> {
        let target = name(to);
        let top = self.stack.frames.last().copied();
        if to.function.entry || to.function.stub {
            let returns_to = top.and_then(|frame| frame.returns_to);
            let kind = top.map(|frame| frame.kind);
            if top.is_some() {
                self.pop()?;
            }
            self.open(to, returns_to, false)?;
            // What takes a frame's place ends as that would have.
            if let (Some(top), Some(kind @ (Kind::Base | Kind::Handler(_)))) =
                (self.stack.frames.last_mut(), kind)
            {
                top.kind = kind;
            }
            return Ok(());
        }
        if indirect && top.is_some_and(|frame| frame.name != target) && !self.comes_back(to.addr)? {
            self.unwind_below(target)?;
        }
        Ok(())
    }

    /// Ends the frames above the youngest one of that function that can have been unwound to; leaves all where there is
    /// none, or no symbol tells.
    fn unwind_below(&mut self, target: FrameName) -> Result<bool, F::Error> {
        // Who leaves is not who is left to; and who had the unwinder go on is not either.
        let leaving =
            if self.stack.frames.last().is_some_and(|top| top.kind == Kind::Resume) { 2 } else { 1 };
        let below = self.stack.frames.len().saturating_sub(leaving);
        self.unwind_to(target, below)
    }

    fn unwind_to(&mut self, target: FrameName, below: usize) -> Result<bool, F::Error> {
        if !matches!(target, FrameName::Function(_)) {
            return Ok(false);
        }
        let found = self.stack.frames[..below].iter().rposition(|frame| frame.name == target);
        if let Some(index) = found {
            while self.stack.frames.len() > index + 1 {
                self.pop()?;
            }
        }
        Ok(found.is_some())
    }

    fn on(&mut self, at: Site) -> Result<(), F::Error> {
        let mut left = None;
        if let Some(Frame { kind: Kind::Off(interrupted), .. }) = self.stack.frames.last() {
            left = *interrupted;
            self.pop()?;
        }
        let back = self.stack.interrupted.take() == Some(at.addr) || left == Some(at.addr);
        match self.stack.frames.last() {
            // It goes on where it was interrupted, be that a function's first instruction.
            Some(_) if back => Ok(()),
            Some(frame) if frame.name == name(at) && !at.function.entry => Ok(()),
            Some(_) if at.function.entry => {
                self.open(at, None, false)?;
                if let Some(top) = self.stack.frames.last_mut() {
                    top.kind = Kind::Handler(left);
                }
                Ok(())
            }
            Some(_) => self.unwind_to(name(at), self.stack.frames.len()).map(drop),
            None => self.settle(at),
        }
    }

    /// Makes sure that some frame is open.
    fn settle(&mut self, at: Site) -> Result<(), F::Error> {
        if !self.stack.frames.is_empty() {
            return Ok(());
        }
        let outer = self.stack.outer.take();
        let above = outer.iter().skip(1).map(|(above, _)| above.returns_to).chain([None]);
        for (&(frame, inferred), above) in outer.iter().zip(above) {
            let inlined = self.inlined_before(above);
            self.push(Frame { inlined, ..frame }, inferred)?;
        }
        if self.stack.frames.is_empty() {
            let inferred = !at.function.entry;
            self.open(at, None, inferred)?;
            if let Some(frame) = self.stack.frames.last() {
                self.stack.outer.learn(*frame, inferred, at.addr);
            }
        }
        Ok(())
    }
}

fn name(at: Site) -> FrameName {
    match (at.function.function, at.addr.image) {
        (Some(function), _) => FrameName::Function(function),
        (None, Some(image)) => FrameName::Image(image),
        (None, None) => FrameName::NoImage,
    }
}

/// The name of a function that control came to the first instruction of.
fn name_of_entered(at: Site) -> FrameName {
    match name(at) {
        // That is what it can be called by.
        FrameName::Image(_) => FrameName::Unnamed(at.addr),
        name => name,
    }
}
