//! What the real world does to a trace: interrupts, kernel code, lost packets.
//!
//! Where packets are lost, the truth stays what ran; what no decoder can know of it is written down apart: the transfers
//! after the last packet that was sent.

use crate::block::{Block, End};
use crate::thread::{RecordEnd, Thread};
use crate::truth::Transfer;
use ptflow_bench_traces::options::PtOptions;
use ptflow_bench_traces::pt::KERNEL_CYCLES;

/// Core cycles that an interrupt takes in the kernel.
const INTERRUPT_CYCLES: u64 = 1_700;
/// Where the kernel's code would lie.
const KERNEL: u64 = 0xffff_ffff_8100_0000;
/// Blocks that an overflow lasts.
const OVERFLOW_BLOCKS: u32 = 50;

/// The plan of what goes wrong in one thread.
#[derive(Debug)]
pub struct Disturbance {
    options: PtOptions,
    random: u64,
    /// Blocks until an overflow ends.
    overflow_left: u32,
    /// Transfers since the last packet of flow that was sent.
    unsent: Vec<Transfer>,
}

impl Disturbance {
    /// The same for the same options and start.
    pub fn new(options: PtOptions, cycles: u64) -> Self {
        Self { options, random: 0x9e37_79b9_7f4a_7c15 ^ cycles, overflow_left: 0, unsent: Vec::new() }
    }

    /// A random number (xorshift64, Marsaglia 2003).
    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// True about once in so many times; never for 0.
    fn hits(&mut self, every: u32) -> bool {
        every > 0 && self.next().is_multiple_of(u64::from(every))
    }
}

impl Thread {
    /// Something may happen before, or in, the block that starts; `again`: it repeats a string instruction, which is
    /// counted already but not done.
    #[cold]
    pub(crate) fn disturb(&mut self, block: &'static Block, again: bool) {
        let Some(mut plan) = self.disturbance.take() else { return };
        if plan.overflow_left > 0 {
            plan.overflow_left -= 1;
            if plan.overflow_left == 0 {
                self.pt.end_overflow(block.start);
                self.forget(&mut plan);
            }
        } else if self.pt.is_on() {
            let index = plan.next() as usize % block.offsets.len().max(1);
            let ahead = index as i64 - i64::from(again);
            let at = block.start + u64::from(block.offsets.get(index).copied().unwrap_or(0));
            if plan.hits(plan.options.interrupts) {
                self.pt.interrupt(at);
                self.truth.interrupted_to(at, None, ahead);
                plan.unsent.clear();
                self.pass(INTERRUPT_CYCLES);
                self.pt.enable(at);
                self.truth.resume(at, ahead);
            } else if plan.hits(plan.options.kernel) {
                let entry = KERNEL + plan.next() % 0x10_0000;
                self.truth.interrupted_to(at, Some(entry), ahead);
                self.pt.kernel(at, entry);
                self.truth.pass(KERNEL_CYCLES);
                plan.unsent.clear();
            } else if plan.hits(plan.options.overflows) {
                self.pt.start_overflow();
                plan.overflow_left = OVERFLOW_BLOCKS;
            } else if plan.hits(plan.options.truncations) {
                self.pt.truncate();
                self.forget(&mut plan);
                self.ended =
                    Some(RecordEnd { truncated: true, at: block.start, left: i64::from(block.insns) });
            } else if plan.hits(plan.options.restarts) {
                self.pt.interrupt(at);
                self.truth.interrupted_to(at, None, ahead);
                plan.unsent.clear();
                let left = i64::from(block.insns) - index as i64;
                self.ended = Some(RecordEnd { truncated: false, at, left });
            }
        }
        self.disturbance = Some(plan);
    }

    /// The buffer has been emptied: tracing starts again.
    pub fn restart(&mut self, end: RecordEnd) {
        self.pass(INTERRUPT_CYCLES);
        self.pt.restart(end.at, end.truncated);
        self.truth.resume(end.at, -end.left);
    }

    /// PSB+ gave the address: all that came before is told.
    #[cold]
    pub(crate) fn all_told(&mut self) {
        if let Some(plan) = &mut self.disturbance {
            plan.unsent.clear();
        }
    }

    /// Outcomes were sent, and nothing of the direct branches behind the last.
    #[cold]
    pub(crate) fn packets_told(&mut self) {
        if let Some(plan) = &mut self.disturbance {
            let is_told = |transfer: &Transfer| !matches!(transfer.0, "jmp" | "call");
            let told = plan.unsent.iter().rposition(is_told).map_or(0, |last| last + 1);
            plan.unsent.drain(..told);
        }
    }

    /// Tracing is about to go off: an overflow ends before that.
    #[inline]
    pub(crate) fn settle(&mut self, at: u64) {
        if self.disturbance.is_some() {
            self.settle_now(at);
        }
    }

    #[cold]
    fn settle_now(&mut self, at: u64) {
        let Some(mut plan) = self.disturbance.take() else { return };
        if std::mem::take(&mut plan.overflow_left) > 0 {
            self.pt.end_overflow(at);
            self.forget(&mut plan);
        }
        self.disturbance = Some(plan);
    }

    /// What was not sent never will be.
    fn forget(&mut self, plan: &mut Disturbance) {
        for transfer in plan.unsent.drain(..) {
            *self.truth.unknowable.entry(transfer).or_insert(0) += 1;
        }
    }

    /// A transfer happened; its packet is out if the count of packets rose.
    #[cold]
    pub(crate) fn note_unsent(&mut self, block: &'static Block, to: u64, packets_before: u64) {
        let Some(plan) = &mut self.disturbance else { return };
        let kind = match block.end {
            End::Jcc => "jcc",
            End::Jmp => "jmp",
            End::Call => "call",
            End::JmpInd => "jmp_ind",
            End::CallInd => "call_ind",
            End::Ret => "ret",
            End::Straight | End::Rep | End::Syscall | End::Far => return,
        };
        let (target, taken) = match block.end {
            End::Jcc => (block.target, to != block.next),
            _ => (to, true),
        };
        plan.unsent.push((kind, block.last, Some(target), taken));
        if self.pt.packets != packets_before && !self.pt.has_unsent() {
            plan.unsent.clear();
        }
    }
}
