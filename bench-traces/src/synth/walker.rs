//! The walk of one thread: a seeded way through the program, to packets on one side and to counts on the other.

use super::blocks::End;
use super::counts::Counts;
use super::program::{Node, Program};
use super::rng::Rng;
use crate::log::{Entry, LogWriter};
use crate::options::PtOptions;
use crate::pt::PtEncoder;
use ptflow_decoder::profile::EdgeKind;
use std::fs::File;
use std::io::{self, BufWriter};

/// Steps between two looks at how long the walk has been at what it does.
const BATCH: u32 = 256;
/// After so many batches in one function, which may be stuck in a circle, the walk goes to its end.
const PATIENCE: u32 = 16;

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
    batches_in_function: u32,
    batches_in_errand: u32,
    /// After so many batches below one function that nobody called, the walk goes back and begins with another one.
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
            batches_in_function: 0,
            batches_in_errand: 0,
            errand: ERRAND / BATCH,
            instructions: 0,
            log,
        }
    }

    /// Goes elsewhere after about so many branches.
    pub fn with_errand(self, branches: u32) -> Self {
        Self { errand: branches / BATCH, ..self }
    }

    /// Tracing begins.
    pub fn start(&mut self, counts: &mut Counts) -> io::Result<()> {
        counts.begin_thread();
        self.at = self.errand();
        let at = self.node(self.at).start;
        self.pt.enable(at);
        counts.resume(at);
        self.note(EdgeKind::Resume, None, Some(at), true)
    }

    /// Walks until so many bytes of trace are pending.
    pub fn walk(&mut self, counts: &mut Counts, bytes: usize) -> io::Result<()> {
        while self.pt.pending() < bytes {
            if self.log.is_some() {
                (0..BATCH).try_for_each(|_| self.step::<true>(counts))?;
            } else {
                (0..BATCH).try_for_each(|_| self.step::<false>(counts))?;
            }
            self.batches_in_function += 1;
            self.batches_in_errand += 1;
            if self.batches_in_errand > self.errand {
                self.home = Some(0);
            } else if self.batches_in_function > PATIENCE && self.home.is_none() {
                self.home = Some(self.stack.len().saturating_sub(1));
            }
        }
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
        self.batches_in_errand = 0;
        let entries = &self.program.entries;
        let part = (self.rng.next() >> 11) as f64 / (1u64 << 53) as f64;
        entries[((part * part * part) * entries.len() as f64) as usize]
    }

    /// One block and its branch.
    #[inline]
    fn step<const LOG: bool>(&mut self, counts: &mut Counts) -> io::Result<()> {
        let at = self.at;
        let node = self.node(at);
        self.pt.psb_if_due(node.start);
        self.pt.pass(u64::from(node.cycles));
        self.pt.tick();
        self.instructions += u64::from(node.insns);
        match node.end {
            End::Jcc => {
                let counter = counts.at(at);
                let taken = self.decide(node, &mut counter.turn);
                counter.direct[usize::from(taken)] += 1;
                self.pt.jcc(taken);
                self.at = if taken { node.taken } else { node.fall };
                if LOG {
                    self.note_direct(at, taken)?;
                }
            }
            End::Jmp => {
                counts.at(at).direct[1] += 1;
                self.at = node.taken;
                if LOG {
                    self.note_direct(at, true)?;
                }
            }
            End::Call => {
                counts.at(at).direct[1] += 1;
                self.at = node.taken;
                // A call of the next instruction only asks where it is.
                if node.taken != node.fall {
                    self.call(node.fall);
                }
                if LOG {
                    self.note_direct(at, true)?;
                }
            }
            End::JmpInd | End::CallInd | End::Ret => {
                self.at = match node.end {
                    End::Ret => self.ret(),
                    _ => self.pick(node, &mut counts.at(at).turn),
                };
                counts.indirect(at, self.at);
                let target = self.node(self.at).start;
                match node.end {
                    End::Ret => self.pt.ret(target),
                    End::JmpInd => self.pt.indirect(target),
                    _ => {
                        self.pt.indirect(target);
                        self.call(node.fall);
                    }
                }
                if LOG {
                    let kind = match node.end {
                        End::Ret => EdgeKind::Ret,
                        End::JmpInd => EdgeKind::JmpInd,
                        _ => EdgeKind::CallInd,
                    };
                    let from = self.program.blocks[at as usize].last;
                    self.note(kind, Some(from), Some(target), true)?;
                }
            }
            End::Dead => {
                let message = format!("the walk entered code that it cannot leave, at {:#x}", node.start);
                return Err(io::Error::other(message));
            }
        }
        Ok(())
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
        self.pt.call(self.node(returns_to).start);
        self.stack.push(returns_to);
        self.batches_in_function = 0;
        if self.stack.len() >= self.depth && self.home.is_none() {
            self.home = Some(self.depth / 2);
        }
    }

    #[inline]
    fn ret(&mut self) -> u32 {
        self.batches_in_function = 0;
        let to = self.stack.pop();
        if self.home.is_some_and(|home| self.stack.len() <= home) {
            self.home = None;
        }
        to.unwrap_or_else(|| self.errand())
    }

    #[cold]
    fn note_direct(&mut self, at: u32, taken: bool) -> io::Result<()> {
        let block = &self.program.blocks[at as usize];
        let kind = match block.end {
            End::Jcc => EdgeKind::Jcc,
            End::Jmp => EdgeKind::Jmp,
            _ => EdgeKind::Call,
        };
        self.note(kind, Some(block.last), Some(block.target), taken)
    }

    fn note(&mut self, kind: EdgeKind, from: Option<u64>, to: Option<u64>, taken: bool) -> io::Result<()> {
        let (cycles, instructions) = (self.pt.cycles(), self.instructions);
        let Some(log) = &mut self.log else { return Ok(()) };
        log.push(&Entry { kind, from, to, taken, cycles, instructions })
    }
}
