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
    let len = (64 - number.leading_zeros()).div_ceil(4).max(1) as usize;
    let mut digits = [0; 16];
    for (place, digit) in digits[..len].iter_mut().rev().enumerate() {
        *digit = DIGITS[(number >> (4 * place) & 0xf) as usize];
    }
    out.extend_from_slice(&digits[..len]);
}

/// Appends `NAME:0x…` or `0x…`.
pub fn push_address(out: &mut Vec<u8>, (group, number): (Option<&str>, u64)) {
    if let Some(group) = group {
        out.extend_from_slice(group.as_bytes());
        out.push(b':');
    }
    push_hex(out, number);
}

/// Reads what [`push_address`] wrote. The name of a group may hold colons itself.
pub fn parse_address(text: &str) -> Option<(Option<&str>, u64)> {
    let (group, number) = match text.rsplit_once(':') {
        Some((group, number)) => (Some(group), number),
        None => (None, text),
    };
    let digits = number.strip_prefix("0x")?;
    // `from_str_radix` would take a sign, too.
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    Some((group, u64::from_str_radix(digits, 16).ok()?))
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

    #[test]
    fn addresses_are_read_back() {
        for address in [(None, 0), (Some("9f3c"), u64::MAX), (Some("/odd:path/0x1"), 0x4010)] {
            let mut out = Vec::new();
            push_address(&mut out, address);
            assert_eq!(parse_address(std::str::from_utf8(&out).expect("text")), Some(address));
        }
        for text in ["", "0x", "12", "-", "0x+1", "a:12", "a:", "0x1 ", "0x10000000000000000"] {
            assert_eq!(parse_address(text), None, "{text}");
        }
    }
}
