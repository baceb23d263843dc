//! The walk of one thread: a seeded way through the program, to packets on one side and to counts on the other.
//!
//! Block by block ([`Walker::step`]), or many at once where they were walked before ([`super::stretch`]).

use super::blocks::End;
use super::counts::Counts;
use super::program::{Node, Program};
use super::rng::Rng;
use super::stretch::Stretches;
use crate::log::{Entry, LogWriter};
use crate::options::PtOptions;
use crate::pt::PtEncoder;
use ptflow_decoder::profile::EdgeKind;
use std::fs::File;
use std::io::{self, BufWriter};

/// Steps between two looks at how long the walk has been at what it does.
const BATCH: u32 = 256;
/// After so many branches in one function, which may be stuck in a circle, the walk goes to its end.
const PATIENCE: u32 = 16 * BATCH;
/// Stretches between two looks at how much was sent.
const STRETCHES: u32 = 16;

/// Branches below one function that nobody called, before the walk goes to another one, unless it is told otherwise.
pub const ERRAND: u32 = 1 << 17;

/// A thread's walk.
#[derive(Debug)]
pub struct Walker<'p> {
    program: &'p Program,
    /// The packets.
    pub pt: PtEncoder,
    rng: Rng,
    /// The node that executes next.
    at: u32,
    /// Nodes that calls return to.
    stack: Vec<u32>,
    /// Deepest stack.
    depth: usize,
    /// The walk goes home until the stack is not deeper than this.
    home: Option<usize>,
    in_function: u32,
    in_errand: u32,
    /// After so many branches below one function that nobody called, the walk goes back and begins with another one.
    errand: u32,
    /// Instructions executed.
    pub instructions: u64,
    log: Option<LogWriter<BufWriter<File>>>,
}

impl<'p> Walker<'p> {
    /// A thread of its own; `log` takes the ordered truth.
    pub fn new(
        program: &'p Program,
        (seed, thread): (u64, u64),
        depth: usize,
        options: PtOptions,
        log: Option<LogWriter<BufWriter<File>>>,
    ) -> Self {
        Self {
            program,
            pt: PtEncoder::new(options, options.start),
            rng: Rng::new(seed, thread),
            at: 0,
            stack: Vec::new(),
            depth: depth.max(1),
            home: None,
            in_function: 0,
            in_errand: 0,
            errand: ERRAND,
            instructions: 0,
            log,
        }
    }

    /// Goes elsewhere after about so many branches.
    pub fn with_errand(self, branches: u32) -> Self {
        Self { errand: branches, ..self }
    }

    /// Tracing begins.
    pub fn start(&mut self, counts: &mut Counts) -> io::Result<()> {
        self.at = self.errand();
        let at = self.node(self.at).start;
        self.pt.enable(at);
        counts.resume(at);
        self.note(EdgeKind::Resume, None, Some(at), true)
    }

    /// Walks until so many bytes of trace are pending.
    pub fn walk(&mut self, counts: &mut Counts, bytes: usize) -> io::Result<()> {
        let mut stretches = counts.stretches.take();
        let mut walk = || {
            while self.pt.pending() < bytes {
                match (&mut stretches, self.log.is_some()) {
                    (Some(stretches), true) => {
                        (0..STRETCHES).try_for_each(|_| self.stretch::<true>(counts, stretches))?;
                    }
                    (Some(stretches), false) => {
                        (0..STRETCHES).try_for_each(|_| self.stretch::<false>(counts, stretches))?;
                    }
                    (None, true) => self.batch::<true>(counts)?,
                    (None, false) => self.batch::<false>(counts)?,
                }
            }
            Ok(())
        };
        let result = walk();
        counts.stretches = stretches;
        result
    }

    fn batch<const LOG: bool>(&mut self, counts: &mut Counts) -> io::Result<()> {
        (0..BATCH).try_for_each(|_| self.step::<LOG>(counts))?;
        self.walked(BATCH);
        Ok(())
    }

    /// Looks at how long the walk has been at what it does, so many blocks later.
    #[inline]
    fn walked(&mut self, blocks: u32) {
        self.in_function += blocks;
        self.in_errand += blocks;
        if self.in_errand > self.errand {
            self.home = Some(0);
        } else if self.in_function > PATIENCE && self.home.is_none() {
            self.home = Some(self.stack.len().saturating_sub(1));
        }
    }

    /// Many blocks at once, or one.
    #[inline]
    fn stretch<const LOG: bool>(&mut self, counts: &mut Counts, stretches: &mut Stretches) -> io::Result<()> {
        let (program, from, goes_home) = (self.program, self.at, self.home.is_some());
        let chance = self.rng.next();
        let way = stretches.choose(program, from, goes_home, chance, |at| self.draw(at, counts));
        let Some(way) = way else {
            self.walked(1);
            return self.step::<LOG>(counts);
        };
        if !goes_home && self.stack.len() + usize::from(way.deepest) >= self.depth {
            self.home = Some(self.depth / 2);
            return Ok(());
        }
        way.uses += 1;
        let way = *way;
        let mut end = way.end;
        if way.returns {
            end = self.ret();
            counts.indirect(way.end, end);
        }
        if !LOG && self.pt.is_plain(&way) {
            self.instructions += u64::from(way.insns);
            self.pt.stretch(&way, stretches.parts(&way), stretches.steps(&way));
            let start = |node: u32| program.nodes[node as usize].start;
            for node in stretches.calls(&way) {
                self.pt.call(start(*node));
                self.stack.push(*node);
            }
            if way.returns {
                self.pt.ret(start(end));
            }
        } else {
            for (at, taken, next) in stretches.branches(&way, end) {
                self.send(at, taken, next);
                if LOG {
                    self.note_block(at, taken, next)?;
                }
            }
            self.stack.extend(stretches.calls(&way));
        }
        self.at = end;
        if !way.is_flat {
            self.in_function = 0;
        }
        self.walked(way.blocks());
        Ok(())
    }

    /// Tracing ends.
    pub fn stop(&mut self, counts: &mut Counts) -> io::Result<()> {
        let at = self.node(self.at).start;
        self.pt.psb_if_due(at);
        self.pt.interrupt(at);
        counts.stop(at);
        self.note(EdgeKind::Async, Some(at), None, true)?;
        self.log.take().map_or(Ok(()), |log| log.finish().map(drop))
    }

    #[inline]
    fn node(&self, index: u32) -> &'p Node {
        &self.program.nodes[index as usize]
    }

    /// Where to begin when the stack is empty: at some functions far more often than at others.
    fn errand(&mut self) -> u32 {
        self.in_errand = 0;
        let entries = &self.program.entries;
        let part = (self.rng.next() >> 11) as f64 / (1u64 << 53) as f64;
        entries[((part * part * part) * entries.len() as f64) as usize]
    }

    /// One block and its branch.
    #[inline]
    fn step<const LOG: bool>(&mut self, counts: &mut Counts) -> io::Result<()> {
        let at = self.at;
        let node = self.node(at);
        let (taken, next) = match node.end {
            End::Ret => (true, self.ret()),
            End::Dead => {
                let message = format!("the walk entered code that it cannot leave, at {:#x}", node.start);
                return Err(io::Error::other(message));
            }
            _ => self.draw(at, counts),
        };
        match node.end {
            End::JmpInd | End::CallInd | End::Ret => counts.indirect(at, next),
            _ => counts.at(at).direct[usize::from(taken)] += 1,
        }
        self.send(at, taken, next);
        if node.calls() {
            self.call(node.fall);
        }
        self.at = next;
        if LOG { self.note_block(at, taken, next) } else { Ok(()) }
    }

    /// Whether a block's branch, which is no return, is taken, and the node that follows.
    #[inline]
    fn draw(&mut self, at: u32, counts: &mut Counts) -> (bool, u32) {
        let node = self.node(at);
        match node.end {
            End::Jcc => {
                let taken = self.decide(node, &mut counts.at(at).turn);
                (taken, if taken { node.taken } else { node.fall })
            }
            End::JmpInd | End::CallInd => (true, self.pick(node, &mut counts.at(at).turn)),
            _ => (true, node.taken),
        }
    }

    /// The block's packets.
    #[inline]
    fn send(&mut self, at: u32, taken: bool, next: u32) {
        let program = self.program;
        let start = |node: u32| program.nodes[node as usize].start;
        let node = &program.nodes[at as usize];
        self.pt.psb_if_due(node.start);
        self.pt.pass(u64::from(node.cycles));
        self.pt.tick();
        self.instructions += u64::from(node.insns);
        match node.end {
            End::Jcc => self.pt.jcc(taken),
            End::JmpInd | End::CallInd => self.pt.indirect(start(next)),
            End::Ret => self.pt.ret(start(next)),
            End::Jmp | End::Call | End::Dead => {}
        }
        if node.calls() {
            self.pt.call(start(node.fall));
        }
    }

    #[inline]
    fn decide(&mut self, node: &Node, turn: &mut u32) -> bool {
        if self.home.is_some() {
            return node.home;
        }
        if node.period == 0 {
            return self.rng.chance(node.chance);
        }
        // The unusual once in so many executions.
        *turn += 1;
        let over = *turn >= node.period;
        if over {
            *turn = 0;
        }
        node.usual ^ over
    }

    /// The target of an indirect branch: the first has half of the executions, and so on, in a pattern or by chance.
    #[inline]
    fn pick(&mut self, node: &Node, turn: &mut u32) -> u32 {
        let target = |index: u32| self.program.targets[(node.taken + index) as usize];
        if self.home.is_some() {
            return target(0);
        }
        let ordinal = if node.period == 0 {
            self.rng.next() >> 32
        } else {
            *turn = turn.wrapping_add(1);
            u64::from(*turn)
        };
        target(ordinal.trailing_zeros().min(u32::from(node.chance) - 1))
    }

    #[inline]
    fn call(&mut self, returns_to: u32) {
        self.stack.push(returns_to);
        self.in_function = 0;
        if self.stack.len() >= self.depth && self.home.is_none() {
            self.home = Some(self.depth / 2);
        }
    }

    #[inline]
    fn ret(&mut self) -> u32 {
        self.in_function = 0;
        let to = self.stack.pop();
        if self.home.is_some_and(|home| self.stack.len() <= home) {
            self.home = None;
        }
        to.unwrap_or_else(|| self.errand())
    }

    #[cold]
    fn note_block(&mut self, at: u32, taken: bool, next: u32) -> io::Result<()> {
        let block = &self.program.blocks[at as usize];
        let (kind, target) = match block.end {
            End::Jcc => (EdgeKind::Jcc, block.target),
            End::Jmp => (EdgeKind::Jmp, block.target),
            End::Call => (EdgeKind::Call, block.target),
            End::Ret => (EdgeKind::Ret, self.node(next).start),
            End::JmpInd => (EdgeKind::JmpInd, self.node(next).start),
            End::CallInd | End::Dead => (EdgeKind::CallInd, self.node(next).start),
        };
        self.note(kind, Some(block.last), Some(target), taken)
    }

    fn note(&mut self, kind: EdgeKind, from: Option<u64>, to: Option<u64>, taken: bool) -> io::Result<()> {
        let (cycles, instructions) = (self.pt.cycles(), self.instructions);
        let Some(log) = &mut self.log else { return Ok(()) };
        log.push(&Entry { kind, from, to, taken, cycles, instructions })
    }
}
