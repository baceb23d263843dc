//! Stretches of a thread from one marker to the next: requests of programs that have no function which is the request.

use super::calls::{Cut, FrameName, FrameSink};
use super::invocations::{Begin, End, Invocation, Untraced, flags, passed};
use crate::image::FunctionId;
use crate::ledger::LossReason;
use crate::plan::Unit;
use crate::reader::Position;
use crate::units::Ns;

/// What begins or ends a stretch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Marker {
    /// Control enters one of these functions.
    Functions(Vec<FunctionId>),
    /// A PTWRITE, of this value or of any.
    Value(Option<u64>),
}

impl Marker {
    /// The functions that it is about.
    pub fn functions(&self) -> &[FunctionId] {
        match self {
            Self::Functions(functions) => functions,
            Self::Value(_) => &[],
        }
    }
}

/// Finds the stretches and hands each on when it ends. A beginning inside a stretch is passed over; where one event is both,
/// the end comes first.
pub struct Between<T> {
    begin: Flags,
    end: Flags,
    stacks: Vec<Stack>,
    take: T,
}

enum Flags {
    Functions(Vec<bool>),
    Value(Option<u64>),
}

impl Flags {
    fn new(marker: &Marker) -> Self {
        match marker {
            Marker::Functions(functions) => Self::Functions(flags(functions)),
            Marker::Value(value) => Self::Value(*value),
        }
    }

    fn is_function(&self, function: FunctionId) -> bool {
        matches!(self, Self::Functions(flags) if flags.get(function.0 as usize) == Some(&true))
    }

    fn is_value(&self, value: u64) -> bool {
        matches!(self, Self::Value(wanted) if wanted.is_none_or(|wanted| wanted == value))
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Stack {
    now: Ns,
    executed: u64,
    cycles: Option<u64>,
    untraced: Untraced,
    unit: Option<(usize, Position)>,
    open: Option<Open>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    function: FunctionId,
    value: Option<u64>,
    start: Ns,
    executed: u64,
    cycles: Option<u64>,
    untraced: u64,
    unit: Option<(usize, Position)>,
}

impl<T, E> Between<T>
where
    T: FnMut(Invocation) -> Result<(), E>,
{
    /// From one marker to the other, on so many stacks.
    pub fn new(begin: &Marker, end: &Marker, stacks: usize, take: T) -> Self {
        let stacks = vec![Stack::default(); stacks];
        Self { begin: Flags::new(begin), end: Flags::new(end), stacks, take }
    }

    /// Hands on what was open as the trace ended.
    pub fn finish(mut self) -> Result<(), E> {
        (0..self.stacks.len()).try_for_each(|index| self.close(index, End::AfterTrace))
    }

    fn close(&mut self, index: usize, ended: End) -> Result<(), E> {
        let Some(stack) = self.stacks.get_mut(index) else { return Ok(()) };
        let Some(open) = stack.open.take() else { return Ok(()) };
        (self.take)(Invocation {
            stack: index,
            function: open.function,
            start: open.start,
            end: stack.now,
            instructions: stack.executed.saturating_sub(open.executed),
            cycles: passed(open.cycles, stack.cycles),
            untraced: Ns(stack.untraced.total.saturating_sub(open.untraced)),
            began: Begin::Seen,
            ended,
            unit: open.unit,
            value: open.value,
        })
    }

    fn begin(&mut self, index: usize, function: FunctionId, value: Option<u64>) {
        let Some(stack) = self.stacks.get_mut(index) else { return };
        let Stack { now: start, executed, cycles, unit, untraced: Untraced { total: untraced, .. }, .. } =
            *stack;
        stack.open.get_or_insert(Open { function, value, start, executed, cycles, untraced, unit });
    }

    fn at(&mut self, index: usize, now: Ns) {
        if let Some(stack) = self.stacks.get_mut(index) {
            stack.now = now;
            stack.untraced.end(now);
        }
    }
}

impl<T, E> FrameSink for Between<T>
where
    T: FnMut(Invocation) -> Result<(), E>,
{
    type Error = E;
    const CYCLES: bool = true;

    fn open(&mut self, index: usize, at: Ns, name: FrameName, inferred: bool) -> Result<(), E> {
        self.at(index, at);
        if let Some(stack) = self.stacks.get_mut(index) {
            stack.untraced.begin(at, name);
        }
        let FrameName::Function(function) = name else { return Ok(()) };
        if inferred {
            return Ok(());
        }
        if self.end.is_function(function) {
            self.close(index, End::Seen)?;
        }
        if self.begin.is_function(function) {
            self.begin(index, function, None);
        }
        Ok(())
    }

    fn close(&mut self, index: usize, at: Ns) -> Result<(), E> {
        self.at(index, at);
        Ok(())
    }

    fn cut(&mut self, index: usize, at: Ns, why: Cut) -> Result<(), E> {
        self.at(index, at);
        if why == Cut::Gap { self.close(index, End::InGap) } else { Ok(()) }
    }

    fn executed(&mut self, index: usize, instructions: u64) {
        if let Some(stack) = self.stacks.get_mut(index) {
            stack.executed = instructions;
        }
    }

    fn cycles(&mut self, index: usize, cycles: u64) {
        if let Some(stack) = self.stacks.get_mut(index) {
            stack.cycles = Some(cycles);
        }
    }

    fn unit(&mut self, index: usize, unit: &Unit) {
        if let Some(stack) = self.stacks.get_mut(index) {
            stack.unit = Some((unit.stream, unit.from));
        }
    }

    fn value(&mut self, index: usize, at: Ns, value: u64) -> Result<(), E> {
        self.at(index, at);
        if self.end.is_value(value) {
            self.close(index, End::Seen)?;
        }
        if self.begin.is_value(value) {
            self.begin(index, FunctionId(u32::MAX), Some(value));
        }
        Ok(())
    }

    fn gap(&mut self, index: usize, from: Ns, _: Ns, _: LossReason) -> Result<(), E> {
        // Its frames were cut off already, unless there were none.
        if self.stacks.get(index).is_some_and(|stack| stack.open.is_some()) {
            self.at(index, from);
        }
        self.close(index, End::InGap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(id: u32) -> FrameName {
        FrameName::Function(FunctionId(id))
    }

    /// Start, end, instructions and how it ended, of what comes of frames opened and values written, in this order.
    fn run(begin: &Marker, end: &Marker, script: &[(u64, Do)]) -> Vec<(u64, u64, u64, End)> {
        let mut found = Vec::new();
        let mut job = Between::new(begin, end, 1, |i: Invocation| {
            found.push((i.start.0, i.end.0, i.instructions, i.ended));
            Ok::<(), ()>(())
        });
        for (at, step) in script {
            job.executed(0, at * 10);
            match step {
                Do::Open(id) => job.open(0, Ns(*at), function(*id), false),
                Do::Inferred(id) => job.open(0, Ns(*at), function(*id), true),
                Do::Close => FrameSink::close(&mut job, 0, Ns(*at)),
                Do::Gap => job.gap(0, Ns(*at), Ns(at + 1), LossReason::Overflow),
                Do::Value(value) => job.value(0, Ns(*at), *value),
            }
            .expect("nothing fails");
        }
        job.finish().expect("nothing fails");
        found
    }

    enum Do {
        Open(u32),
        Inferred(u32),
        Close,
        Gap,
        Value(u64),
    }

    #[test]
    fn from_a_call_of_one_to_the_next_of_the_other() {
        use Do::*;
        let (a, b) = (Marker::Functions(vec![FunctionId(1)]), Marker::Functions(vec![FunctionId(2)]));
        let script = [
            (1, Inferred(1)),
            (2, Open(2)),
            (3, Open(1)),
            (4, Close),
            (5, Open(1)),
            (9, Open(2)),
            (10, Open(1)),
            (12, Gap),
            (13, Open(2)),
            (14, Open(1)),
            (15, Close),
        ];
        let expected = [(3, 9, 60, End::Seen), (10, 12, 20, End::InGap), (14, 15, 10, End::AfterTrace)];
        assert_eq!(run(&a, &b, &script), expected);
        let every = [(3, Open(1)), (5, Open(1)), (8, Open(1))];
        assert_eq!(
            run(&a, &a, &every),
            [(3, 5, 20, End::Seen), (5, 8, 30, End::Seen), (8, 8, 0, End::AfterTrace)]
        );
    }

    #[test]
    fn from_a_value_to_the_next() {
        let script = [(1, Do::Value(7)), (4, Do::Value(8)), (6, Do::Value(7)), (9, Do::Value(0))];
        let all = run(&Marker::Value(None), &Marker::Value(None), &script);
        assert_eq!(all.iter().map(|i| (i.0, i.1)).collect::<Vec<_>>(), [(1, 4), (4, 6), (6, 9), (9, 9)]);
        let sevens = run(&Marker::Value(Some(7)), &Marker::Value(None), &script);
        assert_eq!(sevens.iter().map(|i| (i.0, i.1)).collect::<Vec<_>>(), [(1, 4), (6, 9)]);
    }
}
