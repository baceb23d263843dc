//! Frames within some stretches of time only.
//!
//! What is open where a stretch begins opens there, marked as inferred: it was entered before. What is open where it ends
//! ends there.

use super::calls::{Cut, FrameName, FrameSink};
use crate::ledger::LossReason;
use crate::plan::Unit;
use crate::profile::CodeAddr;
use crate::units::Ns;

/// A stretch of time, its last moment included.
pub type Stretch = (Ns, Ns);

/// Hands on what lies in the stretches.
#[derive(Clone, Debug)]
pub struct Clip<S> {
    sink: S,
    stretches: Vec<Stretch>,
    stacks: Vec<Stack>,
}

#[derive(Clone, Debug, Default)]
struct Stack {
    /// Open frames.
    open: Vec<FrameName>,
    /// The stretch that time is in, or the next.
    next: usize,
    /// The open frames were handed on.
    inside: bool,
    /// The core's clock rate that was told last.
    ratio: Option<u8>,
    /// What was executed before what comes next.
    executed: Option<u64>,
    cycles: Option<u64>,
}

impl<S: FrameSink> Clip<S> {
    /// Stretches are in order of time and do not overlap.
    pub fn new(stretches: Vec<Stretch>, sink: S) -> Self {
        Self { sink, stretches, stacks: Vec::new() }
    }

    /// Gives the sink back.
    pub fn into_inner(self) -> S {
        self.sink
    }

    fn stack(&mut self, stack: usize) -> &mut Stack {
        if stack >= self.stacks.len() {
            self.stacks.resize_with(stack + 1, Stack::default);
        }
        &mut self.stacks[stack]
    }

    /// Time goes on to `at`. True where that is in a stretch.
    fn advance(&mut self, stack: usize, at: Ns) -> Result<bool, S::Error> {
        self.stack(stack);
        let Stack { open, next, inside, ratio, executed, cycles } = &mut self.stacks[stack];
        while let Some(&(from, to)) = self.stretches.get(*next) {
            if !*inside {
                if at < from {
                    return Ok(false);
                }
                if let Some(ratio) = *ratio {
                    self.sink.ratio(stack, from, ratio)?;
                }
                self.sink.uncounted(stack);
                for name in open.iter() {
                    self.sink.open(stack, from, *name, true)?;
                }
                if let Some(executed) = *executed {
                    self.sink.executed(stack, executed);
                }
                if let Some(cycles) = *cycles {
                    self.sink.cycles(stack, cycles);
                }
                *inside = true;
            }
            if at <= to {
                return Ok(true);
            }
            self.sink.uncounted(stack);
            for _ in open.iter() {
                self.sink.close(stack, to)?;
            }
            *inside = false;
            *next += 1;
        }
        Ok(false)
    }
}

impl<S: FrameSink> FrameSink for Clip<S> {
    type Error = S::Error;
    const CYCLES: bool = S::CYCLES;
    const RETURNS: bool = S::RETURNS;

    fn open(&mut self, stack: usize, at: Ns, name: FrameName, inferred: bool) -> Result<(), S::Error> {
        let inside = self.advance(stack, at)?;
        self.stacks[stack].open.push(name);
        if inside { self.sink.open(stack, at, name, inferred) } else { Ok(()) }
    }

    fn close(&mut self, stack: usize, at: Ns) -> Result<(), S::Error> {
        let inside = self.advance(stack, at)?;
        self.stacks[stack].open.pop();
        if inside { self.sink.close(stack, at) } else { Ok(()) }
    }

    fn cut(&mut self, stack: usize, at: Ns, why: Cut) -> Result<(), S::Error> {
        let inside = self.advance(stack, at)?;
        self.stacks[stack].open.pop();
        if inside { self.sink.cut(stack, at, why) } else { Ok(()) }
    }

    fn executed(&mut self, stack: usize, instructions: u64) {
        let state = self.stack(stack);
        (state.executed, state.cycles) = (Some(instructions), None);
        self.sink.executed(stack, instructions);
    }

    fn cycles(&mut self, stack: usize, cycles: u64) {
        self.stack(stack).cycles = Some(cycles);
        self.sink.cycles(stack, cycles);
    }

    fn uncounted(&mut self, stack: usize) {
        let state = self.stack(stack);
        (state.executed, state.cycles) = (None, None);
        self.sink.uncounted(stack);
    }

    fn ratio(&mut self, stack: usize, at: Ns, ratio: u8) -> Result<(), S::Error> {
        let inside = self.advance(stack, at)?;
        self.stacks[stack].ratio = Some(ratio);
        if inside { self.sink.ratio(stack, at, ratio) } else { Ok(()) }
    }

    fn unit(&mut self, stack: usize, unit: &Unit) {
        self.sink.unit(stack, unit);
    }

    fn returns_to(&mut self, stack: usize, to: CodeAddr) {
        self.sink.returns_to(stack, to);
    }

    fn value(&mut self, stack: usize, at: Ns, value: u64) -> Result<(), S::Error> {
        if self.advance(stack, at)? { self.sink.value(stack, at, value) } else { Ok(()) }
    }

    fn gap(&mut self, stack: usize, from: Ns, to: Ns, reason: LossReason) -> Result<(), S::Error> {
        let first = self.stretches.partition_point(|stretch| stretch.1 < from);
        for index in first..self.stretches.len() {
            let stretch = self.stretches[index];
            if stretch.0 > to {
                break;
            }
            let (from, to) = (from.max(stretch.0), to.min(stretch.1));
            self.advance(stack, from)?;
            self.sink.gap(stack, from, to, reason)?;
        }
        self.advance(stack, to).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::FunctionId;
    use std::convert::Infallible;

    #[derive(Default)]
    struct Lines(Vec<String>);

    fn letter(name: FrameName) -> char {
        match name {
            FrameName::Function(id) => char::from(b'a' + id.0 as u8),
            _ => '?',
        }
    }

    impl FrameSink for Lines {
        type Error = Infallible;

        fn open(&mut self, _: usize, at: Ns, name: FrameName, inferred: bool) -> Result<(), Infallible> {
            let mark = if inferred { "~" } else { "" };
            self.0.push(format!("{mark}{}{}", letter(name), at.0));
            Ok(())
        }
        fn close(&mut self, _: usize, at: Ns) -> Result<(), Infallible> {
            self.0.push(format!("-{}", at.0));
            Ok(())
        }
        fn gap(&mut self, _: usize, from: Ns, to: Ns, _: LossReason) -> Result<(), Infallible> {
            self.0.push(format!("!{}-{}", from.0, to.0));
            Ok(())
        }
    }

    /// `a` from 10 to 90, in it `b` from 20 to 30 and `c` from 40 to 80; a gap from 90 to 100; `d` from 100 to 110.
    fn clipped(stretches: &[(u64, u64)]) -> String {
        let stretches = stretches.iter().map(|(from, to)| (Ns(*from), Ns(*to))).collect();
        let mut clip = Clip::new(stretches, Lines::default());
        let function = |id| FrameName::Function(FunctionId(id));
        let all = (|| {
            clip.open(0, Ns(10), function(0), false)?;
            clip.open(0, Ns(20), function(1), false)?;
            clip.close(0, Ns(30))?;
            clip.open(0, Ns(40), function(2), false)?;
            clip.close(0, Ns(80))?;
            clip.cut(0, Ns(90), Cut::Gap)?;
            clip.gap(0, Ns(90), Ns(100), LossReason::Desync)?;
            clip.open(0, Ns(100), function(3), false)?;
            clip.cut(0, Ns(110), Cut::End)
        })();
        all.expect("infallible");
        clip.into_inner().0.join(" ")
    }

    #[test]
    fn stretches() {
        assert_eq!(clipped(&[(0, 200)]), "a10 b20 -30 c40 -80 -90 !90-100 d100 -110");
        assert_eq!(clipped(&[(15, 25)]), "~a15 b20 -25 -25");
        assert_eq!(clipped(&[(20, 30)]), "~a20 b20 -30 -30");
        assert_eq!(clipped(&[(30, 40)]), "~a30 ~b30 -30 c40 -40 -40");
        assert_eq!(clipped(&[(50, 60)]), "~a50 ~c50 -60 -60");
        assert_eq!(
            clipped(&[(22, 24), (25, 41), (95, 97)]),
            "~a22 ~b22 -24 -24 ~a25 ~b25 -30 c40 -41 -41 !95-97"
        );
        assert_eq!(clipped(&[(0, 9), (120, 130)]), "");
    }
}
