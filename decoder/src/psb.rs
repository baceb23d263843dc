//! Packet stream boundaries: the places where decoding can begin with nothing known.

use memchr::memmem;

/// The PSB packet: the bytes 02 82 eight times. No other legal sequence of packets contains it
/// (SDM vol. 3C, "Packet Stream Boundary (PSB) Packet").
pub const PSB: [u8; 16] =
    [0x02, 0x82, 0x02, 0x82, 0x02, 0x82, 0x02, 0x82, 0x02, 0x82, 0x02, 0x82, 0x02, 0x82, 0x02, 0x82];

/// Offset of the first PSB at or after `from`; `None` where there is none, or `from` lies beyond the end.
///
/// The bytes before a PSB may end in 02 82 themselves (say, a CYC that ends in 02 and the TNT 82): a plain search then
/// hits too early. A PSB therefore is the *last* 16 bytes of a run of 02 82, of which every earlier pair belongs to
/// other packets. PSBs that follow one another without a byte between count as one, the last: those before it carry
/// nothing.
///
/// The search does not look before `from`: after a bad packet begin up to 15 bytes earlier, for the damage may end in a
/// PSB's first half. Where `bytes` end inside a run, only what is there counts; look again when more bytes have come.
pub fn next_psb(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from + memmem::find(bytes.get(from..)?, &PSB)?;
    while bytes.get(at + PSB.len()..at + PSB.len() + 2).is_some_and(|after| after == &PSB[..2]) {
        at += 2;
    }
    Some(at)
}
