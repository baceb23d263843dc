//! Packets as bytes, written from the manual's tables (SDM vol. 3C, "Trace Packets and Data Types") and sharing
//! nothing with the crate's own encoder.

/// The four packets that carry an address, by their opcode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IpKind {
    Tip = 0x0d,
    Pge = 0x11,
    Pgd = 0x01,
    Fup = 0x1d,
}

/// Bytes of payload by IPBytes; 5 and 7 are reserved.
const PAYLOAD: [usize; 8] = [0, 2, 4, 6, 6, 0, 8, 0];

/// What an IPBytes value makes of an address when the last one was `last`.
fn decompressed(ip_bytes: u8, last: u64, ip: u64) -> u64 {
    match ip_bytes {
        1 => last & !0xffff | ip & 0xffff,
        2 => last & !0xffff_ffff | ip & 0xffff_ffff,
        3 => ((ip << 16) as i64 >> 16) as u64,
        4 => last & !0xffff_ffff_ffff | ip & 0xffff_ffff_ffff,
        _ => ip,
    }
}

/// Writes packets.
#[derive(Clone, Debug, Default)]
pub struct Wire {
    pub bytes: Vec<u8>,
    /// Where each packet begins.
    pub starts: Vec<usize>,
    pub last_ip: u64,
}

impl Wire {
    /// The first bytes of a packet.
    fn head(&mut self, bytes: &[u8]) {
        self.starts.push(self.bytes.len());
        self.put(bytes);
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn number(&mut self, value: u64, len: usize) {
        self.bytes.extend_from_slice(&value.to_le_bytes()[..len]);
    }

    pub fn pad(&mut self) {
        self.head(&[0]);
    }

    pub fn psb(&mut self) {
        self.head(&[0x02, 0x82].repeat(8));
        self.last_ip = 0;
    }

    pub fn psbend(&mut self) {
        self.head(&[0x02, 0x23]);
    }

    pub fn ovf(&mut self) {
        self.head(&[0x02, 0xf3]);
    }

    pub fn trace_stop(&mut self) {
        self.head(&[0x02, 0x83]);
    }

    /// 1..=6 outcomes, oldest first.
    pub fn tnt8(&mut self, outcomes: &[bool]) {
        assert!((1..=6).contains(&outcomes.len()));
        let field = outcomes.iter().fold(1u8, |field, taken| field << 1 | u8::from(*taken));
        self.head(&[field << 1]);
    }

    /// 1..=47 outcomes, oldest first.
    pub fn tnt64(&mut self, outcomes: &[bool]) {
        assert!((1..=47).contains(&outcomes.len()));
        let field = outcomes.iter().fold(1u64, |field, taken| field << 1 | u64::from(*taken));
        self.head(&[0x02, 0xa3]);
        self.number(field, 6);
    }

    /// The IPBytes values in which `ip` can be sent now.
    pub fn forms(&self, ip: u64) -> Vec<u8> {
        [1, 2, 3, 4, 6].into_iter().filter(|form| decompressed(*form, self.last_ip, ip) == ip).collect()
    }

    /// An address packet with a given IPBytes; 0 sends none.
    pub fn ip(&mut self, kind: IpKind, ip_bytes: u8, ip: u64) {
        self.head(&[kind as u8 | ip_bytes << 5]);
        self.number(ip, PAYLOAD[usize::from(ip_bytes)]);
        if ip_bytes != 0 {
            self.last_ip = decompressed(ip_bytes, self.last_ip, ip);
        }
    }

    /// CS.L and CS.D as MODE.Exec has them.
    pub fn mode_exec(&mut self, bits: u8, interrupt_flag: bool) {
        let size = match bits {
            16 => 0,
            32 => 2,
            _ => 1,
        };
        self.head(&[0x99, size | u8::from(interrupt_flag) << 2]);
    }

    pub fn mode_tsx(&mut self, in_tx: bool, abort: bool) {
        self.head(&[0x99, 0x20 | u8::from(in_tx) | u8::from(abort) << 1]);
    }

    pub fn pip(&mut self, cr3: u64, non_root: bool) {
        self.head(&[0x02, 0x43]);
        self.number((cr3 >> 5) << 1 | u64::from(non_root), 6);
    }

    pub fn vmcs(&mut self, base: u64) {
        self.head(&[0x02, 0xc8]);
        self.number(base >> 12, 5);
    }

    pub fn tsc(&mut self, tsc: u64) {
        self.head(&[0x19]);
        self.number(tsc, 7);
    }

    pub fn tma(&mut self, ctc: u16, fast: u16) {
        self.head(&[0x02, 0x73]);
        self.number(u64::from(ctc), 2);
        self.put(&[0]);
        self.number(u64::from(fast & 0x1ff), 2);
    }

    pub fn mtc(&mut self, ctc: u8) {
        self.head(&[0x59, ctc]);
    }

    pub fn cyc(&mut self, cycles: u64) {
        let mut rest = cycles >> 5;
        self.head(&[0x03 | (cycles as u8 & 0x1f) << 3 | u8::from(rest != 0) << 2]);
        while rest != 0 {
            let part = (rest & 0x7f) as u8;
            rest >>= 7;
            self.put(&[part << 1 | u8::from(rest != 0)]);
        }
    }

    pub fn cbr(&mut self, ratio: u8) {
        self.head(&[0x02, 0x03, ratio, 0]);
    }

    pub fn mnt(&mut self, payload: u64) {
        self.head(&[0x02, 0xc3, 0x88]);
        self.number(payload, 8);
    }

    pub fn ptw(&mut self, payload: u64, wide: bool, ip: bool) {
        self.head(&[0x02, 0x12 | u8::from(wide) << 5 | u8::from(ip) << 7]);
        self.number(payload, if wide { 8 } else { 4 });
    }

    pub fn exstop(&mut self, ip: bool) {
        self.head(&[0x02, if ip { 0xe2 } else { 0x62 }]);
    }

    pub fn mwait(&mut self, hints: u8, ext: u8) {
        self.head(&[0x02, 0xc2, hints, 0, 0, 0, ext & 3, 0, 0, 0]);
    }

    pub fn pwre(&mut self, hw: bool, state: u8, sub_state: u8) {
        self.head(&[0x02, 0x22, u8::from(hw) << 7, state << 4 | sub_state]);
    }

    pub fn pwrx(&mut self, last: u8, deepest: u8, wake: u8) {
        self.head(&[0x02, 0xa2, deepest | last << 4, wake, 0, 0, 0]);
    }

    pub fn cfe(&mut self, kind: u8, vector: u8, ip: bool) {
        self.head(&[0x02, 0x13, kind | u8::from(ip) << 7, vector]);
    }

    pub fn evd(&mut self, kind: u8, payload: u64) {
        self.head(&[0x02, 0x53, kind]);
        self.number(payload, 8);
    }

    pub fn bbp(&mut self, short: bool, kind: u8) {
        self.head(&[0x02, 0x63, kind | u8::from(short) << 7]);
    }

    pub fn bip(&mut self, id: u8, value: u64, short: bool) {
        self.head(&[id << 3 | 0x04]);
        self.number(value, if short { 4 } else { 8 });
    }

    pub fn bep(&mut self, ip: bool) {
        self.head(&[0x02, if ip { 0xb3 } else { 0x33 }]);
    }
}
