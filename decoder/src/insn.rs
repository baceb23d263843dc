//! Instructions as Intel PT sees them: which ones transfer control, and what each consumes from the trace.
//!
//! SDM vol. 3C, "Change of Flow Instruction (COFI) Tracing".

use crate::packet::ExecMode;
use crate::profile::EdgeKind;
use iced_x86::{Code, CodeSize, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};

/// What an instruction does to control flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Goes on to the next instruction and consumes nothing.
    Plain,
    /// Jcc, JCXZ, LOOPcc: one TNT bit.
    Jcc {
        /// Target when taken.
        target: u64,
    },
    /// Direct jump: consumes nothing.
    Jmp {
        /// Target.
        target: u64,
    },
    /// Direct near call: consumes nothing. One to its own next instruction pushes no return address
    /// (SDM, "Indirect Transfer Compression for Returns").
    Call {
        /// Target.
        target: u64,
    },
    /// Indirect near jump (and JMPABS): a TIP.
    JmpInd,
    /// Indirect near call: a TIP.
    CallInd,
    /// Near return: a TNT bit when compressed, else a TIP.
    Ret,
    /// SYSCALL: a TIP or TIP.PGD.
    Syscall,
    /// Other far transfers, VM entries and calls: a TIP or TIP.PGD.
    Far,
    /// INT n, INT3, INTO, INT1: FUP with the instruction's own address, then TIP or TIP.PGD.
    Int,
    /// MOV to CR3: nothing, or a TIP.PGD under a CR3 filter.
    MovCr3,
    /// PTWRITE: perhaps a PTW packet.
    Ptwrite,
    /// UD2 and the like: never completes.
    Fault,
}

impl Class {
    /// The row kind of a transfer by this instruction; `None` for those that make no row of their own.
    pub fn edge_kind(self) -> Option<EdgeKind> {
        match self {
            Self::Jcc { .. } => Some(EdgeKind::Jcc),
            Self::Jmp { .. } => Some(EdgeKind::Jmp),
            Self::Call { .. } => Some(EdgeKind::Call),
            Self::JmpInd => Some(EdgeKind::JmpInd),
            Self::CallInd => Some(EdgeKind::CallInd),
            Self::Ret => Some(EdgeKind::Ret),
            Self::Syscall => Some(EdgeKind::Syscall),
            Self::Far | Self::Int => Some(EdgeKind::Far),
            Self::Plain | Self::MovCr3 | Self::Ptwrite | Self::Fault => None,
        }
    }
}

/// One decoded instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Insn {
    /// Address of its first byte, in whatever address kind the caller decodes with.
    pub addr: u64,
    /// Length in bytes, 1..=15.
    pub len: u8,
    /// What it does.
    pub class: Class,
}

impl Insn {
    /// Address of the instruction behind it.
    #[inline]
    pub fn next(&self) -> u64 {
        self.addr.wrapping_add(u64::from(self.len))
    }
}

fn bitness(mode: ExecMode) -> u32 {
    match mode {
        ExecMode::Bits16 => 16,
        ExecMode::Bits32 => 32,
        ExecMode::Bits64 => 64,
    }
}

/// Decodes the instruction at the start of `code`; `None` where the bytes are none.
pub fn decode(code: &[u8], addr: u64, mode: ExecMode) -> Option<Insn> {
    let mut stream = InsnStream::new(code, addr, mode);
    stream.next()
}

/// Decodes instruction after instruction of straight code.
pub struct InsnStream<'c> {
    code: &'c [u8],
    decoder: Decoder<'c>,
    insn: Instruction,
}

impl<'c> InsnStream<'c> {
    /// Begins at the first byte of `code`, which lies at `addr`.
    pub fn new(code: &'c [u8], addr: u64, mode: ExecMode) -> Self {
        let decoder = Decoder::with_ip(bitness(mode), code, addr, DecoderOptions::NONE);
        Self { code, decoder, insn: Instruction::default() }
    }
}

impl Iterator for InsnStream<'_> {
    type Item = Insn;

    fn next(&mut self) -> Option<Insn> {
        if !self.decoder.can_decode() {
            return None;
        }
        let (at, addr) = (self.decoder.position(), self.decoder.ip());
        self.decoder.decode_out(&mut self.insn);
        if self.insn.is_invalid() {
            let len = jmpabs(self.code.get(at..)?).filter(|_| self.decoder.bitness() == 64)?;
            self.decoder.set_position(at + len).ok()?;
            self.decoder.set_ip(addr.wrapping_add(len as u64));
            return Some(Insn { addr, len: len as u8, class: Class::JmpInd });
        }
        Some(Insn { addr: self.insn.ip(), len: self.insn.len() as u8, class: classify(&self.insn) })
    }
}

/// The length of a JMPABS at the start of `code`: REX2 with map 0 and without W, opcode A1, an absolute address of 64 bits
/// (SDM vol. 2A, "JMPABS"). Where APX is off the first byte is no instruction of 64-bit mode.
fn jmpabs(code: &[u8]) -> Option<usize> {
    const LEN: usize = 11;
    const MAP: u8 = 0x80;
    const W: u8 = 0x08;
    (code.len() >= LEN && code[0] == 0xd5 && code[1] & (MAP | W) == 0 && code[2] == 0xa1).then_some(LEN)
}

/// Whether VMLAUNCH or VMRESUME stands at the start of `code`.
pub fn is_vm_entry(code: &[u8], mode: ExecMode) -> bool {
    let insn = Decoder::new(bitness(mode), code, DecoderOptions::NONE).decode();
    matches!(insn.mnemonic(), Mnemonic::Vmlaunch | Mnemonic::Vmresume)
}

fn classify(insn: &Instruction) -> Class {
    match insn.flow_control() {
        FlowControl::Next => classify_straight(insn),
        FlowControl::ConditionalBranch => Class::Jcc { target: near_target(insn) },
        FlowControl::UnconditionalBranch if insn.is_jmp_short_or_near() => {
            Class::Jmp { target: near_target(insn) }
        }
        FlowControl::UnconditionalBranch => Class::Far,
        FlowControl::IndirectBranch if insn.is_jmp_near_indirect() => Class::JmpInd,
        FlowControl::IndirectBranch => Class::Far,
        FlowControl::Call if insn.is_call_near() => Class::Call { target: near_target(insn) },
        FlowControl::Call if insn.mnemonic() == Mnemonic::Syscall => Class::Syscall,
        FlowControl::Call => Class::Far,
        FlowControl::IndirectCall if insn.is_call_near_indirect() => Class::CallInd,
        FlowControl::IndirectCall => Class::Far,
        FlowControl::Return => match insn.mnemonic() {
            Mnemonic::Ret => Class::Ret,
            _ => Class::Far,
        },
        FlowControl::Interrupt => Class::Int,
        FlowControl::XbeginXabortXend => Class::Plain,
        FlowControl::Exception => Class::Fault,
    }
}

/// The target of a direct near branch, as a linear address like those of the packets.
///
/// SDM vol. 1, "Near branches in 16-bit code": the offset within the code segment is cut off to 16 bits. Where the segment
/// begins is not known, so the displacement counts from the instruction's linear address.
fn near_target(insn: &Instruction) -> u64 {
    let target = insn.near_branch_target();
    if insn.code_size() != CodeSize::Code16 || insn.op0_kind() != OpKind::NearBranch16 {
        return target;
    }
    let displacement = (target as u16).wrapping_sub(insn.next_ip() as u16) as i16;
    insn.next_ip().wrapping_add_signed(i64::from(displacement))
}

fn classify_straight(insn: &Instruction) -> Class {
    match insn.code() {
        Code::Mov_cr_r64 | Code::Mov_cr_r32 if insn.op0_register() == iced_x86::Register::CR3 => {
            Class::MovCr3
        }
        Code::Ptwrite_rm32 | Code::Ptwrite_rm64 => Class::Ptwrite,
        _ => Class::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], class: Class) {
        let insn = decode(bytes, 0x1000, ExecMode::Bits64).expect("an instruction");
        assert_eq!(insn.class, class, "{bytes:02x?}");
        assert_eq!(usize::from(insn.len), bytes.len(), "{bytes:02x?}");
    }

    #[test]
    fn classes_of_the_manuals_table() {
        check(&[0x75, 0x10], Class::Jcc { target: 0x1012 });
        check(&[0x0f, 0x84, 0, 1, 0, 0], Class::Jcc { target: 0x1106 });
        check(&[0xe3, 0xfe], Class::Jcc { target: 0x1000 });
        check(&[0xe2, 0x00], Class::Jcc { target: 0x1002 });
        check(&[0xeb, 0xfe], Class::Jmp { target: 0x1000 });
        check(&[0xe9, 0, 0, 0, 0], Class::Jmp { target: 0x1005 });
        check(&[0xe8, 0, 0, 0, 0], Class::Call { target: 0x1005 });
        check(&[0xff, 0xe0], Class::JmpInd);
        check(&[0xff, 0xd0], Class::CallInd);
        check(&[0x3e, 0xff, 0xe0], Class::JmpInd); // notrack
        check(&[0xf2, 0xe9, 0, 0, 0, 0], Class::Jmp { target: 0x1006 }); // bnd
        check(&[0xc3], Class::Ret);
        check(&[0xf3, 0xc3], Class::Ret);
        check(&[0xc2, 8, 0], Class::Ret);
        check(&[0xcb], Class::Far);
        check(&[0x48, 0xcf], Class::Far);
        check(&[0xff, 0x28], Class::Far); // far jmp
        check(&[0xff, 0x18], Class::Far); // far call
        check(&[0x0f, 0x05], Class::Syscall);
        check(&[0x48, 0x0f, 0x07], Class::Far);
        check(&[0x0f, 0x34], Class::Far);
        check(&[0xcd, 0x80], Class::Int);
        check(&[0xcc], Class::Int);
        check(&[0xf1], Class::Int);
        check(&[0x0f, 0x01, 0xc2], Class::Far); // vmlaunch
        check(&[0x0f, 0x01, 0xc1], Class::Far); // vmcall
        check(&[0x0f, 0x22, 0xd8], Class::MovCr3);
        check(&[0x0f, 0x22, 0xe0], Class::Plain); // mov cr4
        check(&[0xf3, 0x0f, 0xae, 0xe0], Class::Ptwrite);
        check(&[0xc7, 0xf8, 0, 0, 0, 0], Class::Plain); // xbegin
        check(&[0x0f, 0x0b], Class::Fault);
        check(&[0xf3, 0xa4], Class::Plain); // rep movsb
        check(&[0xc5, 0xf8, 0x77], Class::Plain); // vzeroupper: shares bytes with a far pointer load
    }

    #[test]
    fn jmpabs_is_an_indirect_jump() {
        const CODE: [u8; 12] = [0xd5, 0x00, 0xa1, 1, 2, 3, 4, 5, 6, 7, 8, 0x90];
        check(&CODE[..11], Class::JmpInd);
        let insns: Vec<Insn> = InsnStream::new(&CODE, 0x1000, ExecMode::Bits64).collect();
        assert_eq!(insns[1], Insn { addr: 0x100b, len: 1, class: Class::Plain });
        assert_eq!(decode(&CODE[..10], 0, ExecMode::Bits64), None);
        let with = |at: usize, byte| {
            let mut code = CODE;
            code[at] = byte;
            decode(&code, 0, ExecMode::Bits64)
        };
        assert_eq!(with(1, 0x80), None); // another opcode map
        assert_eq!(with(1, 0x08), None); // W
        let aad = decode(&CODE, 0, ExecMode::Bits32).expect("AAD");
        assert_eq!((aad.len, aad.class), (2, Class::Plain));
    }

    #[test]
    fn invalid_in_64_bit_mode() {
        assert_eq!(decode(&[0x9a, 0, 0, 0, 0, 0, 0], 0, ExecMode::Bits64), None);
        assert!(decode(&[0x9a, 0, 0, 0, 0, 0, 0], 0, ExecMode::Bits32).is_some());
        assert_eq!(decode(&[], 0, ExecMode::Bits64), None);
    }
}
