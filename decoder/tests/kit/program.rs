//! Random programs as machine code: what each instruction does is known from how it was made, never from decoding.
//!
//! Opcodes: SDM vol. 2, appendix A.

use super::rng::Rng;
use std::collections::HashMap;

/// What an instruction does to control flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    Plain,
    Ptwrite,
    Jcc {
        target: u64,
    },
    Jmp {
        target: u64,
    },
    Call {
        target: u64,
    },
    JmpInd,
    CallInd,
    Ret,
    Syscall,
    /// IRET, SYSRET, far jumps and returns.
    Far,
    /// INT n and INT3: ends in an event at its own address.
    Int,
    /// UD2: ends in a fault at its own address.
    Fault,
}

/// One instruction where it is mapped.
#[derive(Clone, Debug)]
pub struct Insn {
    pub addr: u64,
    pub len: u64,
    pub op: Op,
    /// Where an indirect transfer may go.
    pub targets: Vec<u64>,
    /// Percent of executions that a conditional branch is taken.
    pub bias: u32,
}

impl Insn {
    pub fn next(&self) -> u64 {
        self.addr + self.len
    }
}

/// Code of one file.
#[derive(Clone, Debug)]
pub struct Image {
    pub svma: u64,
    pub bytes: Vec<u8>,
    /// 32 or 64.
    pub mode: u8,
}

/// An image, or a part of it, where it is mapped.
#[derive(Clone, Copy, Debug)]
pub struct Mapped {
    pub image: usize,
    pub start: u64,
    pub end: u64,
    /// Stated address at `start`.
    pub svma: u64,
}

/// What a random program may have besides the plain things.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// Direct branches may lead into another image.
    pub cross: bool,
    /// An image may be mapped at two addresses.
    pub twice: bool,
    /// Single instructions may be replaced by others of the same length, as the kernel patches its code: a small image
    /// of its own lies over the old bytes.
    pub patched: bool,
    /// Branches that cannot be traced to a traced address make no sense: INT, UD2, far transfers, several modes.
    pub plain_only: bool,
}

/// A program in memory.
#[derive(Clone, Debug, Default)]
pub struct Program {
    pub images: Vec<Image>,
    pub mapped: Vec<Mapped>,
    pub insns: HashMap<u64, Insn>,
    /// First bytes of all instructions in memory, by mode: `[32, 64]`.
    pub entries: [Vec<u64>; 2],
    pub mode_of: HashMap<u64, u8>,
}

/// Kinds of instructions to choose from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Plain,
    Ptwrite,
    Jcc,
    Loop,
    Jmp,
    Call,
    CallNext,
    JmpInd,
    CallInd,
    Ret,
    Syscall,
    Far,
    Int,
    Fault,
}

const KINDS: [Kind; 14] = [
    Kind::Plain,
    Kind::Ptwrite,
    Kind::Jcc,
    Kind::Loop,
    Kind::Jmp,
    Kind::Call,
    Kind::CallNext,
    Kind::JmpInd,
    Kind::CallInd,
    Kind::Ret,
    Kind::Syscall,
    Kind::Far,
    Kind::Int,
    Kind::Fault,
];

/// How often each kind stands in programs of different sorts.
const MIXES: [[u32; 14]; 4] = [
    //  plain ptw jcc loop jmp call next jmpi calli ret sysc far int fault
    [30, 1, 25, 3, 7, 10, 1, 4, 4, 12, 2, 1, 1, 1],
    // deep: calls and returns
    [10, 0, 20, 0, 2, 25, 2, 1, 8, 25, 1, 0, 0, 0],
    // branchy
    [10, 1, 60, 10, 10, 3, 0, 5, 1, 3, 1, 0, 0, 0],
    // jumps: long direct chains
    [5, 0, 5, 1, 60, 10, 3, 3, 1, 5, 0, 0, 1, 0],
];

/// An instruction before addresses are known: opcode bytes, then `displacement` bytes of a relative target, then more.
#[derive(Clone, Debug)]
struct Draft {
    kind: Kind,
    bytes: Vec<u8>,
    /// Width of the relative displacement at the end: 0, 1 or 4.
    displacement: usize,
}

impl Draft {
    fn len(&self) -> u64 {
        (self.bytes.len() + self.displacement) as u64
    }
}

/// Instructions that go on, in either mode; their bytes hold opcodes of branches where they are no such.
const FILLERS: [&[u8]; 14] = [
    &[0x90],
    &[0x66, 0x90],
    &[0x0f, 0x1f, 0x00],
    &[0x0f, 0x1f, 0x44, 0x00, 0x00],
    &[0xff, 0xc9],                         // dec ecx
    &[0xb8, 0xc3, 0xe8, 0xeb, 0x75],       // mov eax, imm32
    &[0xc5, 0xf8, 0x77],                   // vzeroupper
    &[0xf3, 0xa4],                         // rep movsb
    &[0x81, 0xc3, 0xff, 0xe0, 0x0f, 0x05], // add ebx, imm32
    &[0x6a, 0xc3],                         // push imm8
    &[0xc7, 0x00, 0xe9, 0xe8, 0xcd, 0x80], // mov dword [eax], imm32
    &[0xc7, 0xf8, 0x00, 0x00, 0x00, 0x00], // xbegin to the next instruction
    &[0x0f, 0x22, 0xd8],                   // mov cr3, eax
    &[0x62, 0xf1, 0x7c, 0x48, 0x28, 0xc3], // vmovaps zmm0, zmm3
];

fn draft(kind: Kind, mode: u8, rng: &mut Rng) -> Draft {
    let long = mode == 64;
    let (bytes, displacement): (Vec<u8>, usize) = match kind {
        Kind::Plain => (rng.pick(&FILLERS).to_vec(), 0),
        Kind::Ptwrite => (vec![0xf3, 0x0f, 0xae, 0xe0], 0),
        Kind::Jcc if rng.percent(50) => (vec![0x70 | rng.below(16) as u8], 1),
        Kind::Jcc => {
            let opcode = vec![0x0f, 0x80 | rng.below(16) as u8];
            // A branch hint or BND changes nothing.
            let prefix = rng.pick(&[&[][..], &[0x3e], &[0x2e], &[0xf2]]).to_vec();
            ([prefix, opcode].concat(), 4)
        }
        Kind::Loop => (rng.pick(&[vec![0xe0], vec![0xe1], vec![0xe2], vec![0xe3]]).clone(), 1),
        Kind::Jmp if rng.percent(50) => (vec![0xeb], 1),
        Kind::Jmp => (rng.pick(&[vec![0xe9], vec![0xf2, 0xe9]]).clone(), 4),
        Kind::Call => (rng.pick(&[vec![0xe8], vec![0xf2, 0xe8]]).clone(), 4),
        Kind::CallNext => (vec![0xe8, 0, 0, 0, 0], 0),
        Kind::JmpInd => {
            let mut forms =
                vec![vec![0xff, 0xe0], vec![0x3e, 0xff, 0xe2], vec![0xff, 0x25, 0xc3, 0xc3, 0, 0]];
            if long {
                forms.push(vec![0x41, 0xff, 0xe3]);
                forms.push(vec![0xff, 0x24, 0xc5, 0xe8, 0, 0, 0]);
            }
            (rng.pick(&forms).clone(), 0)
        }
        Kind::CallInd => {
            let mut forms = vec![vec![0xff, 0xd0], vec![0xff, 0x50, 0x18], vec![0xff, 0x15, 0, 0xeb, 0, 0]];
            if long {
                forms.push(vec![0x41, 0xff, 0xd4]);
            }
            (rng.pick(&forms).clone(), 0)
        }
        Kind::Ret => (rng.pick(&[vec![0xc3], vec![0xf3, 0xc3], vec![0xc2, 0x08, 0x00]]).clone(), 0),
        Kind::Syscall => (vec![0x0f, 0x05], 0),
        Kind::Far => {
            let mut forms =
                vec![vec![0xcf], vec![0xcb], vec![0xca, 4, 0], vec![0xff, 0x28], vec![0xff, 0x18]];
            if long {
                forms.push(vec![0x48, 0xcf]);
                forms.push(vec![0x48, 0x0f, 0x07]);
            }
            (rng.pick(&forms).clone(), 0)
        }
        Kind::Int => (rng.pick(&[vec![0xcd, 0x80], vec![0xcc], vec![0xf1]]).clone(), 0),
        Kind::Fault => (vec![0x0f, 0x0b], 0),
    };
    Draft { kind, bytes, displacement }
}

/// An image before its targets are chosen.
struct Plan {
    mode: u8,
    svma: u64,
    /// Where it is mapped, once or twice.
    bases: Vec<u64>,
    drafts: Vec<Draft>,
    offsets: Vec<u64>,
    len: u64,
}

fn plan_image(bases: Vec<u64>, mode: u8, style: Style, rng: &mut Rng) -> Plan {
    let mut mix = *rng.pick(&MIXES);
    if style.plain_only {
        for kind in [Kind::Far, Kind::Int, Kind::Fault] {
            mix[kind as usize] = 0;
        }
    }
    let count = rng.between(1, 40);
    let mut drafts: Vec<Draft> = (0..count).map(|_| draft(KINDS[rng.weighted(&mix)], mode, rng)).collect();
    if rng.permille(20) {
        // A straight run longer than any node of a block graph would like to be.
        let at = rng.below(drafts.len() + 1);
        let run = (0..rng.between(4000, 9000)).map(|_| draft(Kind::Plain, mode, rng));
        drafts.splice(at..at, run);
    }
    // Nothing lies behind.
    let last = *rng.pick(&[Kind::JmpInd, Kind::Ret, Kind::Jmp]);
    drafts.push(draft(last, mode, rng));
    let mut offsets = Vec::new();
    let mut len = 0;
    for draft in &drafts {
        offsets.push(len);
        len += draft.len();
    }
    Plan { mode, svma: 0x1000 + rng.below(0x5000) as u64, bases, drafts, offsets, len }
}

impl Program {
    /// A program out of a seed's numbers.
    pub fn random(style: Style, rng: &mut Rng) -> Self {
        let low = rng.percent(15);
        let clusters: &[u64] = if low {
            &[0x0804_8000, 0x0900_0000, 0xf7f0_0000]
        } else {
            &[0x40_0000, 0x5555_5555_4000, 0x7fff_f7dd_0000, 0xffff_ffff_8100_0000, 0x0080_1234_5678_9000]
        };
        let mut plans: Vec<Plan> = Vec::new();
        for index in 0..rng.between(1, 4) {
            let mode = if low && !(index > 0 && !style.plain_only && rng.percent(30)) { 32 } else { 64 };
            let mut place = || {
                let cluster = *rng.pick(clusters);
                cluster + index as u64 * 0x40_0000 + rng.below(0x10_0000) as u64
            };
            let mut bases = vec![place()];
            if style.twice {
                bases.push(place() + 0x20_0000);
            }
            plans.push(plan_image(bases, mode, style, rng));
        }
        Self::link(&plans, style, rng)
    }

    /// Chooses targets and lays the bytes down.
    fn link(plans: &[Plan], style: Style, rng: &mut Rng) -> Self {
        let mut program = Self::default();
        for plan in plans {
            for base in &plan.bases {
                let entries = &mut program.entries[usize::from(plan.mode == 64)];
                entries.extend(plan.offsets.iter().map(|offset| base + offset));
            }
        }
        for (image, plan) in plans.iter().enumerate() {
            let mut bytes = Vec::new();
            for (draft, offset) in plan.drafts.iter().zip(&plan.offsets) {
                let next = offset + draft.len();
                let target = direct_target(plan, plans, draft, next, style, rng);
                bytes.extend_from_slice(&draft.bytes);
                let relative = target.wrapping_sub(next).to_le_bytes();
                bytes.extend_from_slice(&relative[..draft.displacement]);
                let bias = *rng.pick(&[1, 2, 10, 50, 50, 90, 98, 99]);
                for base in &plan.bases {
                    let target = base.wrapping_add(target);
                    let op = match draft.kind {
                        Kind::Plain => Op::Plain,
                        Kind::Ptwrite => Op::Ptwrite,
                        Kind::Jcc | Kind::Loop => Op::Jcc { target },
                        Kind::Jmp => Op::Jmp { target },
                        Kind::Call => Op::Call { target },
                        Kind::CallNext => Op::Call { target: base + next },
                        Kind::JmpInd => Op::JmpInd,
                        Kind::CallInd => Op::CallInd,
                        Kind::Ret => Op::Ret,
                        Kind::Syscall => Op::Syscall,
                        Kind::Far => Op::Far,
                        Kind::Int => Op::Int,
                        Kind::Fault => Op::Fault,
                    };
                    let targets = if op == Op::Far {
                        (0..rng.between(1, 3)).map(|_| program.any_entry(rng)).collect()
                    } else {
                        let entries = &program.entries[usize::from(plan.mode == 64)];
                        (0..rng.between(1, 5)).map(|_| *rng.pick(entries)).collect()
                    };
                    let addr = base + offset;
                    program.insns.insert(addr, Insn { addr, len: draft.len(), op, targets, bias });
                    program.mode_of.insert(addr, plan.mode);
                }
            }
            for base in &plan.bases {
                program.map(image, *base, plan, rng);
            }
            program.images.push(Image { svma: plan.svma, bytes, mode: plan.mode });
        }
        if style.patched {
            for plan in plans.iter().filter(|plan| plan.bases.len() == 1) {
                program.patch(plan, rng);
            }
        }
        program
    }

    /// Replaces some instructions of an image: a nop becomes a jump or a call, others become nops.
    fn patch(&mut self, plan: &Plan, rng: &mut Rng) {
        // The last one stays: nothing lies behind it.
        for (offset, draft) in plan.offsets.iter().zip(&plan.drafts).take(plan.drafts.len() - 1) {
            if !rng.percent(20) {
                continue;
            }
            let addr = plan.bases[0] + offset;
            let next = addr + draft.len();
            let (op, bytes) = match (draft.len(), draft.kind) {
                (5, Kind::Plain) => {
                    let ahead: Vec<u64> =
                        plan.offsets.iter().map(|to| plan.bases[0] + to).filter(|to| *to > next).collect();
                    let Some(&target) = (!ahead.is_empty()).then(|| rng.pick(&ahead)) else { continue };
                    let relative = (target.wrapping_sub(next) as u32).to_le_bytes();
                    match rng.below(2) {
                        0 => (Op::Jmp { target }, [&[0xe9][..], &relative].concat()),
                        _ => (Op::Call { target }, [&[0xe8][..], &relative].concat()),
                    }
                }
                (2, Kind::Plain) => (Op::JmpInd, vec![0xff, 0xe0]),
                (2, _) => (Op::Plain, vec![0x66, 0x90]),
                (5, _) => (Op::Plain, vec![0x0f, 0x1f, 0x44, 0x00, 0x00]),
                _ => continue,
            };
            let insn = self.insns.get_mut(&addr).expect("it was linked");
            insn.op = op;
            let image = self.images.len();
            let svma = rng.below(0x10000) as u64;
            self.mapped.push(Mapped { image, start: addr, end: next, svma });
            self.images.push(Image { svma, bytes, mode: plan.mode });
        }
    }

    /// The same program in another process, or later: up to so many bytes on, in other parts, and perhaps with
    /// instructions replaced.
    pub fn elsewhere(&self, bytes: usize, rng: &mut Rng) -> Self {
        let delta = rng.below(bytes) as u64;
        let moved = |op: Op| match op {
            Op::Jcc { target } => Op::Jcc { target: target + delta },
            Op::Jmp { target } => Op::Jmp { target: target + delta },
            Op::Call { target } => Op::Call { target: target + delta },
            op => op,
        };
        let insn = |insn: &Insn| Insn {
            addr: insn.addr + delta,
            op: moved(insn.op),
            targets: insn.targets.iter().map(|target| target + delta).collect(),
            ..*insn
        };
        let mut there = Self {
            images: self.images.clone(),
            mapped: Vec::new(),
            insns: self.insns.values().map(|old| (old.addr + delta, insn(old))).collect(),
            entries: self.entries.clone().map(|entries| entries.iter().map(|at| at + delta).collect()),
            mode_of: self.mode_of.iter().map(|(at, mode)| (at + delta, *mode)).collect(),
        };
        for mapped in &self.mapped {
            let whole = Mapped { start: mapped.start + delta, end: mapped.end + delta, ..*mapped };
            let middle = whole.start + rng.below((whole.end - whole.start) as usize) as u64;
            if middle > whole.start && rng.percent(50) {
                there.mapped.push(Mapped { end: middle, ..whole });
                let svma = whole.svma + (middle - whole.start);
                there.mapped.push(Mapped { start: middle, svma, ..whole });
            } else {
                there.mapped.push(whole);
            }
        }
        if rng.percent(50) {
            there.replace_some(rng);
        }
        there
    }

    /// Replaces some straight instructions by jumps to others of their mode.
    fn replace_some(&mut self, rng: &mut Rng) {
        let mut straight: Vec<u64> = self
            .insns
            .values()
            .filter(|insn| insn.op == Op::Plain && insn.len == 5)
            .map(|insn| insn.addr)
            .collect();
        straight.sort_unstable();
        for addr in straight {
            let (mode, next) = (self.mode_of[&addr], addr + 5);
            let target = self.entry_in(mode, rng);
            let distance = target.wrapping_sub(next) as i64;
            if !rng.percent(20) || i64::from(distance as i32) != distance {
                continue;
            }
            let bytes = [&[0xe9][..], &(distance as i32).to_le_bytes()].concat();
            self.insns.get_mut(&addr).expect("it is there").op = Op::Jmp { target };
            self.mapped.push(Mapped { image: self.images.len(), start: addr, end: next, svma: 0x77 });
            self.images.push(Image { svma: 0x77, bytes, mode });
        }
    }

    /// Maps an image, perhaps in two parts and with room behind its end.
    fn map(&mut self, image: usize, base: u64, plan: &Plan, rng: &mut Rng) {
        let end = base + plan.len + rng.below(2) as u64 * 0x100;
        let mut start = base;
        if rng.percent(30) && plan.len > 1 {
            let middle = base + rng.between(1, plan.len as usize - 1) as u64;
            self.mapped.push(Mapped { image, start, end: middle, svma: plan.svma });
            start = middle;
        }
        self.mapped.push(Mapped { image, start, end, svma: plan.svma + (start - base) });
    }

    pub fn any_entry(&self, rng: &mut Rng) -> u64 {
        let count = self.entries[0].len() + self.entries[1].len();
        let index = rng.below(count);
        *self.entries[0].get(index).unwrap_or_else(|| &self.entries[1][index - self.entries[0].len()])
    }

    /// Any instruction of a mode that the program has code of.
    pub fn entry_in(&self, mode: u8, rng: &mut Rng) -> u64 {
        *rng.pick(&self.entries[usize::from(mode == 64)])
    }

    /// Where the code without an outcome leads from `ip`; `None` where the next instruction needs one.
    pub fn free_next(&self, ip: u64) -> Option<u64> {
        let insn = &self.insns[&ip];
        match insn.op {
            Op::Plain | Op::Ptwrite => Some(insn.next()),
            Op::Jmp { target } | Op::Call { target } => Some(target),
            _ => None,
        }
    }

    /// Of a way from `ip` on which no instruction ever needs an outcome: how many different instructions it has.
    pub fn endless(&self, ip: u64) -> Option<usize> {
        let mut seen = std::collections::HashSet::new();
        let mut at = ip;
        while seen.insert(at) {
            at = self.free_next(at)?;
        }
        Some(seen.len())
    }

    /// The image and stated address at an address.
    pub fn locate(&self, ip: u64) -> Option<(usize, u64)> {
        let mapped = self.mapped.iter().rev().find(|mapped| mapped.start <= ip && ip < mapped.end)?;
        Some((mapped.image, ip - mapped.start + mapped.svma))
    }
}

/// The target of a direct branch, relative to its image's start.
fn direct_target(plan: &Plan, plans: &[Plan], draft: &Draft, next: u64, style: Style, rng: &mut Rng) -> u64 {
    match draft.displacement {
        0 => next,
        1 => {
            let near: Vec<u64> = (plan.offsets.iter().copied())
                .filter(|offset| (-128..128).contains(&(offset.wrapping_sub(next) as i64)))
                .collect();
            // Most loops without an outcome are no fun: prefer what lies ahead.
            let ahead: Vec<u64> = near.iter().copied().filter(|offset| *offset >= next).collect();
            let choices =
                if draft.kind == Kind::Jmp && !ahead.is_empty() && rng.percent(80) { ahead } else { near };
            *rng.pick(&choices)
        }
        _ => {
            if style.cross && plan.bases.len() == 1 && rng.percent(40) {
                let other = rng.pick(plans);
                let from = plan.bases[0];
                let target = other.bases[0] + rng.pick(&other.offsets);
                let distance = target.wrapping_sub(from + next) as i64;
                if other.bases.len() == 1 && other.mode == plan.mode && i64::from(distance as i32) == distance
                {
                    return target.wrapping_sub(from);
                }
            }
            let ahead: Vec<u64> = plan.offsets.iter().copied().filter(|offset| *offset >= next).collect();
            let forward = draft.kind != Kind::Jcc && !ahead.is_empty() && rng.percent(80);
            *rng.pick(if forward { &ahead } else { &plan.offsets })
        }
    }
}
