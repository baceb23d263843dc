//! A machine that runs a random program: outcomes are random, everything else is as the instructions say.

use super::program::{Op, Program};
use super::rng::Rng;

/// One executed instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retired {
    pub op: Op,
    pub from: u64,
    /// Address of the instruction behind it.
    pub next: u64,
    /// Where control went.
    pub to: u64,
    /// False for a conditional branch that fell through.
    pub taken: bool,
}

/// The machine's state: where it is, and what its stack holds.
#[derive(Clone, Debug)]
pub struct Machine<'p> {
    pub program: &'p Program,
    pub ip: u64,
    stack: Vec<u64>,
}

impl<'p> Machine<'p> {
    pub fn new(program: &'p Program, ip: u64) -> Self {
        Self { program, ip, stack: Vec::new() }
    }

    /// Another program takes the memory; the stack stays.
    pub fn go_on_in(&mut self, program: &'p Program, ip: u64) {
        (self.program, self.ip) = (program, ip);
    }

    pub fn op(&self) -> Op {
        self.program.insns[&self.ip].op
    }

    pub fn mode(&self) -> u8 {
        self.program.mode_of[&self.ip]
    }

    /// Executes the instruction here; not for those that end in an event.
    pub fn step(&mut self, rng: &mut Rng) -> Retired {
        let insn = &self.program.insns[&self.ip];
        let mut taken = true;
        let to = match insn.op {
            Op::Plain | Op::Ptwrite | Op::Syscall => insn.next(),
            Op::Jcc { target } => {
                taken = rng.percent(insn.bias);
                if taken { target } else { insn.next() }
            }
            Op::Jmp { target } | Op::Call { target } => target,
            Op::JmpInd | Op::CallInd | Op::Far => *rng.pick(&insn.targets),
            Op::Ret => {
                let top = self.stack.pop().filter(|top| self.program.mode_of.get(top) == Some(&self.mode()));
                match top {
                    Some(top) if rng.percent(97) => top,
                    _ => *rng.pick(&insn.targets),
                }
            }
            Op::Int | Op::Fault => panic!("{:?} at {:#x} ends in an event", insn.op, self.ip),
        };
        if let Op::Call { .. } | Op::CallInd = insn.op {
            self.stack.push(insn.next());
            if self.stack.len() > 1000 {
                self.stack.clear();
            }
        }
        self.ip = to;
        Retired { op: insn.op, from: insn.addr, next: insn.next(), to, taken }
    }
}
