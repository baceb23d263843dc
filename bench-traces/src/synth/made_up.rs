//! Machine code that no compiler made, for measurements that must not depend on the machine's own programs.
//!
//! Opcodes: SDM vol. 2, appendix A.

use super::blocks::Function;
use super::rng::Rng;
use std::ops::Range;

/// Code and where functions lie in it.
#[derive(Clone, Debug, Default)]
pub struct MadeUp {
    /// Address of the first byte.
    pub start: u64,
    /// The code.
    pub bytes: Vec<u8>,
    /// Its functions.
    pub functions: Vec<Range<u64>>,
}

/// What ends a block, and where in its block's bytes a displacement is to be put.
enum Ending {
    Within(usize),
    Call(usize),
    None,
}

/// How blocks follow each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shape {
    /// As compilers' do.
    Tangled,
    /// From each block to one of the next three, and few calls: a walk comes by most of the code soon.
    Straight,
}

impl MadeUp {
    /// So many functions by seed, with as many blocks each as compilers' have on average, in the proportions that
    /// compilers' have.
    pub fn new(seed: u64, start: u64, functions: usize) -> Self {
        Self::shaped(seed, start, functions, Shape::Tangled)
    }

    /// So many functions without loops.
    pub fn straight(seed: u64, start: u64, functions: usize) -> Self {
        Self::shaped(seed, start, functions, Shape::Straight)
    }

    fn shaped(seed: u64, start: u64, functions: usize, shape: Shape) -> Self {
        let rng = &mut Rng::new(seed, u64::MAX - 2);
        let mut this = Self { start, ..Self::default() };
        let mut calls = Vec::new();
        for _ in 0..functions {
            this.function(rng, &mut calls, shape);
        }
        for at in calls {
            let target = this.functions[rng.below(functions as u64) as usize].start;
            this.patch(at, target);
        }
        this
    }

    /// The functions with their bytes.
    pub fn code(&self) -> Vec<Function<'_>> {
        let offset = |addr: u64| (addr - self.start) as usize;
        let function = |range: &Range<u64>| Function {
            bytes: &self.bytes[offset(range.start)..offset(range.end)],
            range: range.clone(),
        };
        self.functions.iter().map(function).collect()
    }

    fn here(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Writes the displacement whose four bytes begin at `at`.
    fn patch(&mut self, at: usize, target: u64) {
        let next = self.start + at as u64 + 4;
        let displacement = target.wrapping_sub(next) as u32;
        self.bytes[at..at + 4].copy_from_slice(&displacement.to_le_bytes());
    }

    fn function(&mut self, rng: &mut Rng, calls: &mut Vec<usize>, shape: Shape) {
        let begin = self.here();
        let count = 3 + rng.below(30) as usize;
        let (mut starts, mut within) = (Vec::new(), Vec::new());
        for number in 0..count {
            starts.push(self.here());
            // mov %rcx,%rax
            (0..1 + rng.below(6)).for_each(|_| self.bytes.extend([0x48, 0x89, 0xc8]));
            let last = number + 1 == count;
            match self.ending(rng, last, shape) {
                Ending::Within(at) => within.push((number, at)),
                Ending::Call(at) => calls.push(at),
                Ending::None => {}
            }
        }
        for (number, at) in within {
            // Two in three lead forwards.
            let to = match rng.below(3) {
                skip if shape == Shape::Straight => number + 1 + skip as usize,
                0 => rng.below(number as u64 + 1) as usize,
                _ => number + 1 + rng.below((count - number - 1).max(1) as u64) as usize,
            };
            self.patch(at, starts[to.min(count - 1)]);
        }
        self.functions.push(begin..self.here());
    }

    fn ending(&mut self, rng: &mut Rng, last: bool, shape: Shape) -> Ending {
        let kind = match (last, shape) {
            (true, _) => 99,
            (_, Shape::Tangled) => rng.below(95),
            (_, Shape::Straight) => [0, 70, 83][usize::from(rng.chance(17)) + usize::from(rng.chance(4))],
        };
        let opcode: &[u8] = match kind {
            0..62 => &[0x0f, 0x84],  // je
            62..70 => &[0xe9],       // jmp
            70..83 => &[0xe8],       // call
            83..87 => &[0xff, 0xd0], // call *%rax
            87..91 => &[0xff, 0xe0], // jmp *%rax
            _ => &[0xc3],            // ret
        };
        self.bytes.extend(opcode);
        if !matches!(kind, 0..83) {
            return Ending::None;
        }
        let at = self.bytes.len();
        self.bytes.extend([0; 4]);
        if kind < 70 { Ending::Within(at) } else { Ending::Call(at) }
    }
}
