//! libipt's packet decoder, its packets put as ours.

use std::marker::PhantomData;
use std::mem;
use std::ptr::NonNull;

use libipt_sys as pt;

use super::PtError;
use super::blocks::pt_config;
use crate::config::PtConfig;
use crate::packet::{ExecMode, IpBytes, IpPayload, Packet, TntBits};

/// A packet as libipt reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OraclePacket {
    /// Where it begins, in bytes from the start of the trace.
    pub offset: u64,
    /// Its length in bytes.
    pub size: usize,
    /// What it is; `None` for what this crate has no word for.
    pub packet: Option<Packet>,
}

/// libipt's packets, from the first byte of a trace to its end or the first error.
#[derive(Debug)]
pub struct Packets<'t> {
    raw: NonNull<pt::pt_packet_decoder>,
    done: bool,
    _trace: PhantomData<&'t [u8]>,
}

impl<'t> Packets<'t> {
    /// A decoder at the first byte.
    ///
    /// # Errors
    /// When libipt cannot be set up.
    pub fn new(trace: &'t [u8], config: &PtConfig) -> Result<Self, PtError> {
        let config = pt_config(trace, config);
        // SAFETY: the configuration is copied; the trace it points to is borrowed for 't, and only read.
        let raw = NonNull::new(unsafe { pt::pt_pkt_alloc_decoder(&config) }).ok_or(PtError::INVALID)?;
        let packets = Self { raw, done: false, _trace: PhantomData };
        // SAFETY: the decoder is alive.
        PtError::check(unsafe { pt::pt_pkt_sync_set(raw.as_ptr(), 0) })?;
        Ok(packets)
    }

    fn read(&mut self) -> Result<OraclePacket, PtError> {
        let mut offset = 0;
        // SAFETY: the decoder is alive.
        PtError::check(unsafe { pt::pt_pkt_get_offset(self.raw.as_ptr(), &mut offset) })?;
        // SAFETY: a struct and unions of integers and pointers.
        let mut packet: pt::pt_packet = unsafe { mem::zeroed() };
        // SAFETY: the decoder is alive; the packet is as large as said.
        PtError::check(unsafe {
            pt::pt_pkt_next(self.raw.as_ptr(), &mut packet, size_of::<pt::pt_packet>())
        })?;
        Ok(OraclePacket { offset, size: usize::from(packet.size), packet: translate(&packet) })
    }
}

impl Iterator for Packets<'_> {
    type Item = Result<OraclePacket, PtError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let result = self.read();
        self.done = result.is_err();
        if result == Err(PtError::EOS) { None } else { Some(result) }
    }
}

impl Drop for Packets<'_> {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`, freed once.
        unsafe { pt::pt_pkt_free_decoder(self.raw.as_ptr()) };
    }
}

fn translate(packet: &pt::pt_packet) -> Option<Packet> {
    let payload = &packet.payload;
    // SAFETY: the type says which variant of the union is set, and each arm reads that one; all are integers, and the
    // memory was zero before.
    Some(unsafe {
        match packet.type_ {
            pt::pt_packet_type_ppt_pad => Packet::Pad,
            pt::pt_packet_type_ppt_psb => Packet::Psb,
            pt::pt_packet_type_ppt_psbend => Packet::PsbEnd,
            pt::pt_packet_type_ppt_ovf => Packet::Ovf,
            pt::pt_packet_type_ppt_stop => Packet::TraceStop,
            pt::pt_packet_type_ppt_tnt_8 => Packet::ShortTnt(tnt(payload.tnt)),
            pt::pt_packet_type_ppt_tnt_64 => Packet::LongTnt(tnt(payload.tnt)),
            pt::pt_packet_type_ppt_tip => Packet::Tip(ip(payload.ip)?),
            pt::pt_packet_type_ppt_tip_pge => Packet::TipPge(ip(payload.ip)?),
            pt::pt_packet_type_ppt_tip_pgd => Packet::TipPgd(ip(payload.ip)?),
            pt::pt_packet_type_ppt_fup => Packet::Fup(ip(payload.ip)?),
            pt::pt_packet_type_ppt_mode if payload.mode.leaf == pt::pt_mode_leaf_pt_mol_exec => {
                let exec = payload.mode.bits.exec;
                let mode = match (exec.csl(), exec.csd()) {
                    (0, 0) => ExecMode::Bits16,
                    (0, _) => ExecMode::Bits32,
                    (_, 0) => ExecMode::Bits64,
                    _ => return None,
                };
                Packet::ModeExec { mode, interrupt_flag: exec.iflag() != 0 }
            }
            pt::pt_packet_type_ppt_mode => {
                let tsx = payload.mode.bits.tsx;
                Packet::ModeTsx { in_tx: tsx.intx() != 0, abort: tsx.abrt() != 0 }
            }
            pt::pt_packet_type_ppt_pip => {
                Packet::Pip { cr3: payload.pip.cr3, non_root: payload.pip.nr() != 0 }
            }
            pt::pt_packet_type_ppt_vmcs => Packet::Vmcs { base: payload.vmcs.base },
            pt::pt_packet_type_ppt_tsc => Packet::Tsc { tsc: payload.tsc.tsc },
            pt::pt_packet_type_ppt_tma => Packet::Tma { ctc: payload.tma.ctc, fast: payload.tma.fc },
            pt::pt_packet_type_ppt_mtc => Packet::Mtc { ctc: payload.mtc.ctc },
            pt::pt_packet_type_ppt_cyc => Packet::Cyc { cycles: payload.cyc.value },
            pt::pt_packet_type_ppt_cbr => Packet::Cbr { ratio: payload.cbr.ratio },
            pt::pt_packet_type_ppt_mnt => Packet::Mnt { payload: payload.mnt.payload },
            pt::pt_packet_type_ppt_ptw => {
                let ptw = payload.ptw;
                Packet::Ptw { payload: ptw.payload, wide: ptw.plc != 0, ip: ptw.ip() != 0 }
            }
            pt::pt_packet_type_ppt_exstop => Packet::ExStop { ip: payload.exstop.ip() != 0 },
            pt::pt_packet_type_ppt_mwait => {
                Packet::Mwait { hints: payload.mwait.hints as u8, ext: payload.mwait.ext as u8 & 0x03 }
            }
            pt::pt_packet_type_ppt_pwre => {
                let pwre = payload.pwre;
                Packet::Pwre { hw: pwre.hw() != 0, state: pwre.state, sub_state: pwre.sub_state }
            }
            pt::pt_packet_type_ppt_pwrx => {
                let pwrx = payload.pwrx;
                let wake = pwrx.interrupt() | pwrx.store() << 2 | pwrx.autonomous() << 3;
                Packet::Pwrx { last: pwrx.last, deepest: pwrx.deepest, wake: wake as u8 }
            }
            pt::pt_packet_type_ppt_cfe => {
                let cfe = payload.cfe;
                Packet::Cfe { kind: cfe.type_ as u8, vector: cfe.vector, ip: cfe.ip() != 0 }
            }
            pt::pt_packet_type_ppt_evd => {
                Packet::Evd { kind: payload.evd.type_ as u8, payload: payload.evd.payload }
            }
            _ => return None,
        }
    })
}

fn tnt(tnt: pt::pt_packet_tnt) -> TntBits {
    TntBits { bits: tnt.payload, count: tnt.bit_size }
}

fn ip(ip: pt::pt_packet_ip) -> Option<IpPayload> {
    Some(IpPayload { form: IpBytes::from_code(ip.ipc as u8)?, raw: ip.ip })
}
