//! Random programs, run by a small simulated CPU that traces itself: what libipt must find is known from the run.
//!
//! The walkers of this crate are held to the same, so that all three agree or one is wrong.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::Session;
use crate::config::PtConfig;
use crate::image::{AddressSpace, AddressSpaces, CodeImage, CodeRegion, Images, Mapping};
use crate::packet::encoder::encode;
use crate::packet::{ExecMode, IpPayload, LastIp, Packet, TntBits};
use crate::profile::{CodeAddr, EdgeKind, EdgeRow};
use crate::run::{Options, count};
use crate::stream::{Break, Piece, TraceStream};
use crate::units::{AuxOffset, Ip, Svma};
use crate::walk::{Context, Engine};

const BASE: u64 = 0x7f12_3456_7000;
const SVMA: u64 = 0x1000;
/// Bytes of each instruction's slot: more than any instruction, so that no branch goes to its own next instruction.
const SLOT: u64 = 8;

/// An instruction at the start of its slot, behind it nops; targets are slots.
#[derive(Clone, Copy, Debug)]
enum Op {
    Nop,
    Jcc(u64),
    Jmp(u64),
    Call(u64),
    JmpInd,
    CallInd,
    Ret,
    Syscall,
}

/// An instruction for a slot. Direct jumps and calls go forward only: a loop without a branch in the trace could be
/// left by an event in any of its turns, and no decoder could tell which.
fn op(slot: u64, slots: u64) -> impl Strategy<Value = Op> {
    let forward = slot + 1..slots;
    prop_oneof![
        3 => Just(Op::Nop),
        5 => (0..slots).prop_map(Op::Jcc),
        2 => forward.clone().prop_map(Op::Jmp),
        3 => forward.prop_map(Op::Call),
        1 => Just(Op::JmpInd),
        1 => Just(Op::CallInd),
        3 => Just(Op::Ret),
        1 => Just(Op::Syscall),
    ]
}

fn program() -> impl Strategy<Value = Vec<Op>> {
    (4u64..40).prop_flat_map(|slots| {
        let ops: Vec<_> = (0..slots - 1).map(|slot| op(slot, slots)).collect();
        ops.prop_map(|mut ops| {
            ops.push(Op::JmpInd); // nothing lies behind
            ops
        })
    })
}

fn address(slot: u64) -> u64 {
    BASE + slot * SLOT
}

/// Machine code of all slots, each filled up with one-byte nops.
fn assemble(ops: &[Op]) -> Vec<u8> {
    let mut code = Vec::new();
    for (slot, op) in (0..).zip(ops) {
        let relative = |target: u64, len: u64| {
            (address(target).wrapping_sub(address(slot) + len) as u32).to_le_bytes().to_vec()
        };
        let start = code.len();
        code.extend(match *op {
            Op::Nop => vec![0x90],
            Op::Jcc(target) => [vec![0x0f, 0x84], relative(target, 6)].concat(),
            Op::Jmp(target) => [vec![0xe9], relative(target, 5)].concat(),
            Op::Call(target) => [vec![0xe8], relative(target, 5)].concat(),
            Op::JmpInd => vec![0xff, 0xe0],
            Op::CallInd => vec![0xff, 0xd0],
            Op::Ret => vec![0xc3],
            Op::Syscall => vec![0x0f, 0x05],
        });
        code.resize(start + SLOT as usize, 0x90);
    }
    code
}

/// Length of the instruction that begins a slot.
fn op_len(op: Op) -> u64 {
    match op {
        Op::Nop | Op::Ret => 1,
        Op::Jcc(_) => 6,
        Op::Jmp(_) | Op::Call(_) => 5,
        Op::JmpInd | Op::CallInd | Op::Syscall => 2,
    }
}

/// Kind, from, to.
type Edge = (EdgeKind, Option<u64>, Option<u64>);

/// A CPU that traces itself (SDM, "Trace Packets and Data Types"), user code only.
struct Cpu<'p> {
    ops: &'p [Op],
    ip: u64,
    stack: Vec<u64>,
    /// Decides what the program leaves open.
    choices: std::vec::IntoIter<u32>,
    trace: Vec<u8>,
    last_ip: LastIp,
    tnt: TntBits,
    /// The return stack of the encoder: cleared at a PSB, 64 deep.
    compressible: Vec<u64>,
    /// True rows: times taken, times not.
    rows: BTreeMap<Edge, (u64, u64)>,
    /// Instructions up to the last one that the trace can prove.
    instructions: u64,
    unproven: u64,
}

impl<'p> Cpu<'p> {
    fn run(ops: &'p [Op], choices: Vec<u32>) -> Self {
        let mut cpu = Self {
            ops,
            ip: BASE,
            stack: Vec::new(),
            choices: choices.into_iter(),
            trace: Vec::new(),
            last_ip: LastIp(0),
            tnt: TntBits { bits: 0, count: 0 },
            compressible: Vec::new(),
            rows: BTreeMap::new(),
            instructions: 0,
            unproven: 0,
        };
        cpu.psb();
        while cpu.step().is_some() {}
        // A last transfer that proves all before it.
        cpu.interrupt();
        cpu
    }

    fn choose(&mut self, of: u64) -> Option<u64> {
        self.choices.next().map(|choice| u64::from(choice) % of)
    }

    fn row(&mut self, kind: EdgeKind, from: Option<u64>, to: Option<u64>, taken: bool) {
        let (yes, no) = self.rows.entry((kind, from, to)).or_default();
        *(if taken { yes } else { no }) += 1;
    }

    fn send(&mut self, packet: Packet) {
        encode(&packet, &mut self.trace);
    }

    fn flush(&mut self) {
        if self.tnt.count > 0 {
            self.send(Packet::ShortTnt(self.tnt));
            self.tnt = TntBits { bits: 0, count: 0 };
        }
    }

    fn send_bit(&mut self, taken: bool) {
        self.tnt = TntBits { bits: self.tnt.bits << 1 | u64::from(taken), count: self.tnt.count + 1 };
        if self.tnt.count == 6 {
            self.flush();
        }
    }

    fn send_ip(&mut self, kind: fn(IpPayload) -> Packet, ip: u64) {
        self.flush();
        let payload = IpPayload::compress(self.last_ip, ip);
        self.last_ip.update(payload);
        self.send(kind(payload));
    }

    fn psb(&mut self) {
        self.flush();
        self.send(Packet::Psb);
        self.last_ip = LastIp(0);
        self.compressible.clear();
        self.send(Packet::Tsc { tsc: 0x1000 });
        self.send(Packet::ModeExec { mode: ExecMode::Bits64, interrupt_flag: false });
        self.send_ip(Packet::Fup, self.ip);
        self.send(Packet::PsbEnd);
    }

    fn prove(&mut self) {
        self.instructions += std::mem::take(&mut self.unproven);
    }

    /// A signal: tracing goes off here and on again somewhere.
    fn interrupt(&mut self) {
        self.send_ip(Packet::Fup, self.ip);
        self.send(Packet::TipPgd(IpPayload::SUPPRESSED));
        self.row(EdgeKind::Async, Some(self.ip), None, true);
        self.prove();
    }

    fn resume(&mut self) -> Option<()> {
        self.ip = self.any_slot()?;
        self.send_ip(Packet::TipPge, self.ip);
        self.row(EdgeKind::Resume, None, Some(self.ip), true);
        Some(())
    }

    fn any_slot(&mut self) -> Option<u64> {
        self.choose(self.ops.len() as u64).map(address)
    }

    /// One instruction, perhaps with an event before it; `None` when there are no more choices.
    fn step(&mut self) -> Option<()> {
        match self.choose(40)? {
            0 => self.psb(),
            1 => {
                self.interrupt();
                // Off, so there must be a way on: choices may end here.
                if self.resume().is_none() {
                    self.ip = BASE;
                    self.send_ip(Packet::TipPge, BASE);
                    self.row(EdgeKind::Resume, None, Some(BASE), true);
                    return None;
                }
            }
            2 => {
                // An interrupt whose handler is traced.
                let to = self.any_slot()?;
                self.send_ip(Packet::Fup, self.ip);
                self.send_ip(Packet::Tip, to);
                self.row(EdgeKind::Async, Some(self.ip), Some(to), true);
                self.prove();
                self.ip = to;
            }
            3 => {
                self.flush();
                self.send(Packet::Mtc { ctc: 7 });
            }
            _ => {}
        }
        let slot = (self.ip - BASE) / SLOT;
        let op = match self.ops[slot as usize] {
            op if (self.ip - BASE).is_multiple_of(SLOT) => op,
            _ => Op::Nop,
        };
        // What is left open is chosen first, so that running out of choices leaves no half an instruction.
        let choice = match op {
            Op::Jcc(_) => self.choose(2)?,
            Op::JmpInd | Op::CallInd => self.any_slot()?,
            Op::Ret if self.stack.is_empty() => self.any_slot()?,
            Op::Syscall => self.any_slot()?,
            _ => 0,
        };
        let (from, next) = (self.ip, self.ip + op_len(op));
        self.unproven += 1;
        let (kind, to) = match op {
            Op::Nop => {
                self.ip = next; // the last slot is no nop
                return Some(());
            }
            Op::Jcc(target) => {
                let taken = choice == 1;
                self.row(EdgeKind::Jcc, Some(from), Some(address(target)), taken);
                self.send_bit(taken);
                self.prove();
                self.ip = if taken { address(target) } else { next };
                return Some(());
            }
            Op::Jmp(target) => (EdgeKind::Jmp, address(target)),
            Op::Call(target) => (EdgeKind::Call, address(target)),
            Op::JmpInd => (EdgeKind::JmpInd, choice),
            Op::CallInd => (EdgeKind::CallInd, choice),
            Op::Ret => (EdgeKind::Ret, self.stack.pop().unwrap_or(choice)),
            Op::Syscall => {
                self.row(EdgeKind::Syscall, Some(from), None, true);
                self.flush();
                self.send(Packet::TipPgd(IpPayload::SUPPRESSED));
                self.prove();
                self.row(EdgeKind::Resume, None, Some(next), true);
                self.ip = next;
                self.send_ip(Packet::TipPge, next);
                return Some(());
            }
        };
        self.row(kind, Some(from), Some(to), true);
        self.ip = to;
        match op {
            Op::Call(_) | Op::CallInd => {
                self.stack.push(next);
                self.compressible.push(next);
                if self.compressible.len() > 64 {
                    self.compressible.remove(0);
                }
            }
            _ => {}
        }
        match op {
            Op::JmpInd | Op::CallInd => {
                self.send_ip(Packet::Tip, to);
                self.prove();
            }
            Op::Ret => {
                if self.compressible.pop() == Some(to) {
                    self.send_bit(true);
                } else {
                    self.send_ip(Packet::Tip, to);
                }
                self.prove();
            }
            _ => {}
        }
        Some(())
    }

    fn rows(&self, addr: impl Fn(u64) -> CodeAddr) -> Vec<EdgeRow> {
        let row = |(&(kind, from, to), &(taken, not_taken)): (&Edge, &(u64, u64))| EdgeRow {
            kind,
            from: from.map(&addr),
            to: to.map(&addr),
            taken,
            not_taken,
            mispredicted: 0,
        };
        self.rows.iter().map(row).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn libipt_and_the_walkers_find_what_was_executed(
        ops in program(),
        choices in prop::collection::vec(any::<u32>(), 1..3000),
    ) {
        let code = assemble(&ops);
        let cpu = Cpu::run(&ops, choices);
        let mut images = Images::default();
        let image = images.push(CodeImage::new(vec![CodeRegion { start: Svma(SVMA), bytes: &code }]));
        let mapping = Mapping { start: Ip(BASE), end: Ip(BASE + code.len() as u64), image, svma: Svma(SVMA) };
        let space = AddressSpace::new([mapping]);
        let config = PtConfig::default();

        let edges = Session::new(&cpu.trace, &images, &space, &config).edges().unwrap();
        prop_assert_eq!(&edges.failures, &[]);
        prop_assert_eq!((&edges.odd[..], &edges.untold[..]), (&[][..], &[][..]));
        prop_assert_eq!(edges.rows, cpu.rows(|addr| CodeAddr::bare(Ip(addr))));
        prop_assert_eq!(edges.instructions, cpu.instructions);

        let piece =
            Piece { offset: AuxOffset(0), bytes: &cpu.trace, break_before: Some(Break::Start), reference: None };
        let stream = TraceStream { pieces: vec![piece] };
        let spaces = AddressSpaces::constant(space);
        let context = Context { stream: &stream, images: &images, spaces: &spaces, config: &config, owners: &[] };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let in_image = cpu.rows(|addr| CodeAddr { image: Some(image), addr: addr - BASE + SVMA });
        for engine in [Engine::Careful, Engine::Fast, Engine::Interrupted(3)] {
            for unit_bytes in [1, 1 << 20] {
                let counts = count(&[context], &Options { pool: &pool, engine, unit_bytes, progress: &|_| {} });
                prop_assert_eq!(&counts.rows, &in_image, "{:?}, units of {}", engine, unit_bytes);
                prop_assert_eq!(counts.instructions, cpu.instructions, "{:?}, units of {}", engine, unit_bytes);
                prop_assert_eq!(counts.ledgers[0].decoded, cpu.trace.len() as u64);
            }
        }
    }

}

proptest! {
    // Where damage leads into a loop, some 100,000 instructions are walked before that is noticed.
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Damage ends in failures, never in a hang, and what libipt finds stays within the bounds of the code.
    #[test]
    fn damage_is_survived(
        ops in program(),
        choices in prop::collection::vec(any::<u32>(), 1..300),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let code = assemble(&ops);
        let mut trace = Cpu::run(&ops, choices).trace;
        for (at, byte) in damage {
            *at.get_mut(&mut trace) = byte;
        }
        let mut images = Images::default();
        let image = images.push(CodeImage::new(vec![CodeRegion { start: Svma(SVMA), bytes: &code }]));
        let end = Ip(BASE + code.len() as u64);
        let space = AddressSpace::new([Mapping { start: Ip(BASE), end, image, svma: Svma(SVMA) }]);
        let config = PtConfig::default();
        let session = Session::new(&trace, &images, &space, &config);
        let edges = session.edges().unwrap();
        prop_assert!(edges.rows.iter().all(|row| row.from.is_none_or(|from| (BASE..end.0).contains(&from.addr))
            || row.kind == EdgeKind::Async));
        session.walk().unwrap();
    }
}
