//! How addresses of traced code are written.

use ptflow_decoder::profile::CodeAddr;

/// Gives addresses the names that a file shows.
pub trait AddressNames {
    /// The group that an address is sorted and printed by (an image's name), and the number in it. Without a group the
    /// number stands alone.
    fn name(&self, addr: CodeAddr) -> (Option<&str>, u64);
}

/// Appends `0x` and the number in lower-case hexadecimal digits.
pub fn push_hex(out: &mut Vec<u8>, number: u64) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend_from_slice(b"0x");
    let digits = (64 - number.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        out.push(DIGITS[(number >> (4 * digit) & 0xf) as usize]);
    }
}

/// Appends `NAME:0x…` or `0x…`.
pub fn push_address(out: &mut Vec<u8>, (group, number): (Option<&str>, u64)) {
    if let Some(group) = group {
        out.extend_from_slice(group.as_bytes());
        out.push(b':');
    }
    push_hex(out, number);
}

/// Appends a decimal number.
pub fn push_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal() {
        for number in [0, 1, 0xf, 0x10, 0xabc, u64::MAX, 0x7fff_0000_1234] {
            let mut out = Vec::new();
            push_hex(&mut out, number);
            assert_eq!(String::from_utf8(out), Ok(format!("{number:#x}")));
        }
    }
}
