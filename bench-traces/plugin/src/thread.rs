//! One guest thread: from executed blocks to packets on one side and to the truth on the other.

use crate::block::{Block, End};
use crate::disturb::Disturbance;
use crate::truth::Truth;
use ptflow_bench_traces::log::LogWriter;
use ptflow_bench_traces::options::PtOptions;
use ptflow_bench_traces::pt::PtEncoder;
use std::fs::File;
use std::io::BufWriter;

/// Core cycles that a system call takes.
const SYSCALL_CYCLES: u64 = 900;
/// Core cycles that an interrupt or a signal takes in the kernel.
const INTERRUPT_CYCLES: u64 = 2_500;

/// A flow that a signal handler interrupted.
#[derive(Clone, Copy, Debug)]
struct Interrupted {
    /// The block whose last branch had not executed yet; `None` where tracing was off anyway (in a system call).
    block: Option<&'static Block>,
}

/// Where tracing stopped for the buffer's sake.
#[derive(Clone, Copy, Debug)]
pub struct RecordEnd {
    /// The buffer was full: the trace was cut in mid-packet.
    pub truncated: bool,
    /// The next instruction.
    pub at: u64,
    /// Instructions of the block that starts, from there on.
    pub left: i64,
}

/// What a guest thread did, so far.
#[derive(Debug)]
pub struct Thread {
    /// The packets.
    pub pt: PtEncoder,
    /// The counts.
    pub truth: Truth,
    /// The block executed last; its last branch is open until the next block starts.
    previous: Option<&'static Block>,
    interrupted: Vec<Interrupted>,
    /// A signal handler returned: the next block is where the flow was interrupted.
    resuming: Option<Interrupted>,
    pub(crate) disturbance: Option<Box<Disturbance>>,
    /// The AUX record ends here: what is pending is to be handed out, and then tracing restarts.
    pub ended: Option<RecordEnd>,
}

impl Thread {
    /// A thread that begins at a time; `log` takes the ordered truth.
    pub fn new(options: PtOptions, cycles: u64, log: Option<LogWriter<BufWriter<File>>>) -> Self {
        Self {
            pt: PtEncoder::new(options, cycles),
            truth: Truth::new(cycles, log),
            previous: None,
            interrupted: Vec::new(),
            resuming: None,
            disturbance: options.disturbs().then(|| Box::new(Disturbance::new(options, cycles))),
            ended: None,
        }
    }

    /// Time passes, on both sides.
    #[inline]
    pub(crate) fn pass(&mut self, cycles: u64) {
        self.pt.pass(cycles);
        self.truth.pass(cycles);
    }

    /// A block starts.
    #[inline]
    pub fn execute(&mut self, block: &'static Block, handlers: &dyn Fn(u64) -> bool) {
        if self.pt.is_on() {
            if let Some(previous) = self.previous
                && (self.is_interrupted_return(previous, block.start, handlers)
                    || !self.leave(previous, block.start))
            {
                self.unexpected(previous, block.start, handlers);
            }
        } else {
            if self.resuming.is_none() && self.previous.is_none() && handlers(block.start) {
                // A signal came during a system call.
                self.interrupted.push(Interrupted { block: None });
            }
            self.enter(block.start);
        }
        let told = self.pt.psb_if_due(block.start);
        let again = self.previous.is_some_and(|previous| {
            previous.end == End::Rep && previous.last == block.start && block.insns == 1
        });
        if self.disturbance.is_some() {
            if told {
                self.all_told();
            }
            self.disturb(block, again);
        }
        // A repeated string instruction is one instruction, however often it comes back.
        self.truth.instructions += u64::from(block.insns) - u64::from(again);
        self.pass(u64::from(block.cycles));
        let waiting = self.disturbance.is_some() && self.pt.has_unsent();
        self.pt.tick();
        if waiting && !self.pt.has_unsent() {
            self.packets_told();
        }
        self.previous = Some(block);
    }

    /// Control went to a signal handler where a RET was to come: no RET leads to a function's first instruction, but where
    /// a program put it on its stack, and then not to a handler. An indirect jump or call may lead to a handler by itself.
    #[inline]
    fn is_interrupted_return(&self, block: &Block, to: u64, handlers: &dyn Fn(u64) -> bool) -> bool {
        // Most return to where their call said, which need not ask.
        block.end == End::Ret && self.pt.returns_to() != Some(to) && handlers(to)
    }

    /// The last branch of `block` led to `to`; false where it cannot have.
    #[inline]
    fn leave(&mut self, block: &'static Block, to: u64) -> bool {
        let packets = self.pt.packets;
        let explained = self.follow(block, to);
        if self.disturbance.is_some() && explained {
            self.note_unsent(block, to, packets);
        }
        explained
    }

    #[inline]
    fn follow(&mut self, block: &'static Block, to: u64) -> bool {
        match block.end {
            End::Jcc => {
                let taken = if to == block.next {
                    false
                } else if to == block.target {
                    true
                } else {
                    return false;
                };
                self.truth.direct(block, taken);
                self.pt.jcc(taken);
            }
            End::Jmp => {
                if to != block.target {
                    return false;
                }
                self.truth.direct(block, true);
            }
            End::Call => {
                if to != block.target {
                    return false;
                }
                self.truth.direct(block, true);
                if to != block.next {
                    self.pt.call(block.next);
                }
            }
            End::Ret => {
                self.truth.indirect(block, to);
                self.pt.ret(to);
            }
            End::JmpInd => {
                self.truth.indirect(block, to);
                self.pt.indirect(to);
            }
            End::CallInd => {
                self.truth.indirect(block, to);
                self.pt.indirect(to);
                self.pt.call(block.next);
            }
            // QEMU lists an instruction that crosses into another page with the block before it, cut short, and then
            // leaves it to a block of its own.
            End::Straight if to == block.last => self.truth.instructions -= 1,
            End::Straight => return to == block.next,
            End::Rep => return to == block.next || to == block.last,
            End::Syscall | End::Far => return false,
        }
        true
    }

    /// The flow went where the block does not lead: a signal handler, or a mystery.
    #[cold]
    fn unexpected(&mut self, block: &'static Block, to: u64, handlers: &dyn Fn(u64) -> bool) {
        self.settle(block.start);
        if handlers(to) {
            // The signal came before the block's last instruction: nothing shows that it executed.
            self.truth.instructions -= 1;
            self.pt.interrupt(block.last);
            self.truth.interrupted(block.last);
            self.interrupted.push(Interrupted { block: Some(block) });
        } else {
            self.truth.unexplained += 1;
            self.pt.interrupt(block.last);
            self.truth.interrupted(block.last);
        }
        self.pass(INTERRUPT_CYCLES);
        self.pt.enable(to);
        self.truth.resume(to, 0);
    }

    /// Tracing goes on.
    #[cold]
    fn enter(&mut self, to: u64) {
        let Some(Interrupted { block: Some(block) }) = self.resuming.take() else {
            self.pt.enable(to);
            self.truth.resume(to, 0);
            return;
        };
        // Back from a signal handler: first the instruction that was interrupted.
        let in_block = block.start <= to && to < block.next && to != block.last;
        let leads_on = match block.end {
            End::Jcc => to == block.next || to == block.target,
            End::Jmp | End::Call => to == block.target,
            End::Straight => to == block.next,
            End::Rep => to == block.next,
            End::Ret | End::JmpInd | End::CallInd => !in_block && to != block.last,
            End::Syscall | End::Far => false,
        };
        if leads_on && !in_block {
            self.pt.enable(block.last);
            self.truth.resume(block.last, 0);
            self.truth.instructions += 1;
            self.leave(block, to);
        } else {
            self.pt.enable(to);
            self.truth.resume(to, 0);
        }
    }

    /// The block executed last ends in a SYSCALL, which begins now.
    pub fn syscall(&mut self, is_sigreturn: bool) {
        if !self.pt.is_on() {
            return;
        }
        if let Some(block) = self.previous.take() {
            self.settle(block.start);
            if block.end == End::Syscall {
                self.truth.direct(block, true);
            } else {
                self.truth.unexplained += 1;
            }
        }
        self.pt.disable();
        self.pass(SYSCALL_CYCLES);
        if is_sigreturn {
            self.resuming = self.interrupted.pop();
        }
    }

    /// Time passed elsewhere: this thread's clock is not behind it from now on.
    pub fn not_before(&mut self, cycles: u64) {
        self.pass(cycles.saturating_sub(self.truth.cycles));
    }

    /// The thread is stopped in front of `next`; the branch that leads there is still counted.
    pub fn stop(&mut self, next: u64) {
        if !self.pt.is_on() {
            return;
        }
        let mut repeats = false;
        if let Some(previous) = self.previous {
            self.settle(previous.start);
        }
        if let Some(previous) = self.previous.take() {
            repeats = previous.end == End::Rep && previous.last == next;
            if !self.leave(previous, next) {
                self.truth.unexplained += 1;
            }
        }
        if repeats {
            // A string instruction that is still repeating has not executed yet.
            self.truth.instructions -= 1;
        }
        self.pt.interrupt(next);
        self.truth.interrupted(next);
    }
}
