//! IP compression: how TIP, TIP.PGE, TIP.PGD and FUP carry an address.
//!
//! SDM vol. 3C, "IP Compression" and table "FUP/TIP IP Reconstruction": the IPBytes field says which bytes are in the
//! packet and where the others come from; all four packet kinds are compressed against one last IP.

/// How an IP packet carries its address (the IPBytes field).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IpBytes {
    /// 0: no address ("out of context"); the last IP stays.
    Suppressed,
    /// 1: 16 bits replace the low bits of the last IP.
    Update16,
    /// 2: 32 bits replace the low bits of the last IP.
    Update32,
    /// 3: 48 bits, sign-extended; needs no last IP.
    Sext48,
    /// 4: 48 bits replace the low bits of the last IP.
    Update48,
    /// 6: all 64 bits.
    Full,
}

impl IpBytes {
    /// The form with that IPBytes value; `None` for the reserved 5 and 7 and beyond.
    #[inline]
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Suppressed,
            1 => Self::Update16,
            2 => Self::Update32,
            3 => Self::Sext48,
            4 => Self::Update48,
            6 => Self::Full,
            _ => return None,
        })
    }

    /// The IPBytes value.
    #[inline]
    pub fn code(self) -> u8 {
        match self {
            Self::Suppressed => 0,
            Self::Update16 => 1,
            Self::Update32 => 2,
            Self::Sext48 => 3,
            Self::Update48 => 4,
            Self::Full => 6,
        }
    }

    /// Bytes of payload.
    #[inline]
    pub fn payload_len(self) -> usize {
        match self {
            Self::Suppressed => 0,
            Self::Update16 => 2,
            Self::Update32 => 4,
            Self::Sext48 | Self::Update48 => 6,
            Self::Full => 8,
        }
    }
}

/// The address of a TIP, TIP.PGE, TIP.PGD or FUP packet, still compressed against the last IP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IpPayload {
    /// The compression form.
    pub form: IpBytes,
    /// The payload's bits, zero-extended; 0 where suppressed.
    pub raw: u64,
}

impl IpPayload {
    /// No address: the target is out of context.
    pub const SUPPRESSED: Self = Self { form: IpBytes::Suppressed, raw: 0 };

    /// `ip` in a given form, cut to the form's width. Whether the form is a true one against the last IP is the
    /// caller's affair.
    #[inline]
    pub fn with_form(form: IpBytes, ip: u64) -> Self {
        let raw = match form {
            IpBytes::Suppressed => 0,
            IpBytes::Update16 => ip & 0xffff,
            IpBytes::Update32 => ip & 0xffff_ffff,
            IpBytes::Sext48 | IpBytes::Update48 => ip & 0xffff_ffff_ffff,
            IpBytes::Full => ip,
        };
        Self { form, raw }
    }

    /// `ip` in the shortest form that gives it back against `last`; [`LastIp::update`] with the result makes it the
    /// new last IP.
    ///
    /// The upper bytes that equal those of the last IP are left out, in the steps 2, 4, 6 and 8 bytes. Of the two
    /// six-byte forms the sign-extended one is preferred, which stands for itself: CPUs with 48-bit addresses send no
    /// other, and [`IpBytes::Update48`] is needed only for the wider addresses of 5-level paging. The last IP is 0 after a
    /// PSB, so compression against zero is legal there (SDM, "IP Compression").
    #[inline]
    pub fn compress(last: LastIp, ip: u64) -> Self {
        let differing = last.0 ^ ip;
        let form = if differing >> 16 == 0 {
            IpBytes::Update16
        } else if differing >> 32 == 0 {
            IpBytes::Update32
        } else if sign_extend_48(ip) == ip {
            IpBytes::Sext48
        } else if differing >> 48 == 0 {
            IpBytes::Update48
        } else {
            IpBytes::Full
        };
        Self::with_form(form, ip)
    }
}

/// The last IP: the one register against which all four IP packet kinds are compressed.
///
/// SDM: "IP Compression". Zero at PSB; kept across OVF.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LastIp(pub u64);

impl LastIp {
    /// Takes an IP packet's payload in; gives the full address, or `None` where the packet carries none.
    #[inline]
    pub fn update(&mut self, payload: IpPayload) -> Option<u64> {
        let raw = payload.raw;
        self.0 = match payload.form {
            IpBytes::Suppressed => return None,
            IpBytes::Update16 => (self.0 & !0xffff) | (raw & 0xffff),
            IpBytes::Update32 => (self.0 & !0xffff_ffff) | (raw & 0xffff_ffff),
            IpBytes::Sext48 => sign_extend_48(raw),
            IpBytes::Update48 => (self.0 & !0xffff_ffff_ffff) | (raw & 0xffff_ffff_ffff),
            IpBytes::Full => raw,
        };
        Some(self.0)
    }
}

#[inline]
fn sign_extend_48(raw: u64) -> u64 {
    ((raw << 16) as i64 >> 16) as u64
}
