//! TNT and IP packets read in place, for the hot paths: the caller answers for [`MAX_PACKET`](crate::reader::MAX_PACKET)
//! bytes from the packet on. All others are the lexer's.

use super::{IpBytes, IpPayload};

/// Eight bytes.
#[inline]
pub(crate) fn u64_at(data: &[u8], pos: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&data[pos..pos + 8]);
    u64::from_le_bytes(bytes)
}

/// The address of an IP packet at `pos`, and the packet's length; `None` where suppressed or reserved.
#[inline]
pub(crate) fn ip_payload_at(data: &[u8], pos: usize) -> Option<(IpPayload, usize)> {
    let raw = u64_at(data, pos + 1);
    let (form, raw, len) = match data[pos] >> 5 {
        1 => (IpBytes::Update16, raw & 0xffff, 3),
        2 => (IpBytes::Update32, raw & 0xffff_ffff, 5),
        3 => (IpBytes::Sext48, raw & 0xffff_ffff_ffff, 7),
        4 => (IpBytes::Update48, raw & 0xffff_ffff_ffff, 7),
        6 => (IpBytes::Full, raw, 9),
        _ => return None,
    };
    Some((IpPayload { form, raw }, len))
}

/// The outcomes of a long TNT at `pos`.
#[inline]
pub(crate) fn long_tnt_at(data: &[u8], pos: usize) -> Option<(u64, u32)> {
    if data[pos] != 2 || data[pos + 1] != 0xa3 {
        return None;
    }
    let raw = u64_at(data, pos) >> 16;
    let count = 63u32.checked_sub(raw.leading_zeros())?;
    (count > 0).then(|| (raw & ((1 << count) - 1), count))
}
