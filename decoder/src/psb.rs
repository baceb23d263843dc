//! Packet stream boundaries: the places where decoding can begin with nothing known.

use crate::packet::Packet;
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

/// True for the packets that may stand between PSB and PSBEND (SDM, as above): status, time and padding.
pub(crate) fn is_in_psb_plus(packet: Packet) -> bool {
    matches!(
        packet,
        Packet::Fup(_)
            | Packet::ModeExec { .. }
            | Packet::ModeTsx { .. }
            | Packet::Pip { .. }
            | Packet::Vmcs { .. }
            | Packet::Cbr { .. }
            | Packet::Tsc { .. }
            | Packet::Tma { .. }
            | Packet::Mtc { .. }
            | Packet::Cyc { .. }
            | Packet::Mnt { .. }
            | Packet::Pad
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{PSB, next_psb};
    use crate::packet::encoder::encode;
    use crate::packet::{IpBytes, IpPayload, Packet, TntBits, arbitrary};

    /// What a PSB is by definition: 16 bytes of the pattern that no further pair follows.
    fn defined(bytes: &[u8], from: usize) -> Option<usize> {
        (from..bytes.len())
            .find(|&at| bytes[at..].starts_with(&PSB) && !bytes[at + 16..].starts_with(&[0x02, 0x82]))
    }

    fn bytes_of(packets: &[Packet]) -> Vec<u8> {
        let mut bytes = Vec::new();
        packets.iter().for_each(|packet| encode(packet, &mut bytes));
        bytes
    }

    /// Packets whose last bytes are the beginning of the pattern.
    fn deceptive_end() -> impl Strategy<Value = Vec<Packet>> {
        let pairs = 0x8202_8202_8202_8202;
        let tnt = Packet::ShortTnt(TntBits { bits: 1, count: 6 }); // the byte 82
        let cyc = Packet::Cyc { cycles: 32 }; // the bytes 07 02
        let tip = |form| Packet::Tip(IpPayload::with_form(form, pairs));
        prop::sample::select(vec![
            vec![],
            vec![cyc, tnt],
            vec![Packet::Mtc { ctc: 0x02 }, tnt],
            vec![Packet::Mtc { ctc: 0x82 }],
            vec![tip(IpBytes::Update16)],
            vec![tip(IpBytes::Update32)],
            vec![tip(IpBytes::Sext48)],
            vec![tip(IpBytes::Full)],
            vec![Packet::Mnt { payload: pairs }],
            vec![Packet::Ptw { payload: pairs << 8, wide: true, ip: false }, tnt],
            vec![Packet::Cbr { ratio: 0x02 }],
        ])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn finds_the_psb_between_any_packets(
            before in arbitrary::packets(20),
            end in deceptive_end(),
            after in arbitrary::packets(20),
        ) {
            let no_psb = |packets: Vec<Packet>| -> Vec<Packet> {
                packets.into_iter().filter(|packet| *packet != Packet::Psb).collect()
            };
            let head = bytes_of(&[no_psb(before), end].concat());
            let stream = [&head[..], &PSB, &bytes_of(&no_psb(after))].concat();
            prop_assert_eq!(next_psb(&stream, 0), Some(head.len()));
            prop_assert_eq!(next_psb(&stream, head.len()), Some(head.len()));
            prop_assert_eq!(next_psb(&stream, head.len() + 1), None);
        }

        #[test]
        fn agrees_with_the_definition(
            parts in prop::collection::vec(prop::sample::select(vec![
                &[0x02, 0x82][..], &[0x02, 0x82, 0x02, 0x82, 0x02, 0x82, 0x02, 0x82], &PSB, &[0x02], &[0x82], &[0x00],
            ]), 0..24),
            from in 0usize..64,
        ) {
            let bytes = parts.concat();
            prop_assert_eq!(next_psb(&bytes, from), defined(&bytes, from));
        }
    }

    #[test]
    fn beyond_the_end_there_is_none() {
        assert_eq!(next_psb(&PSB, 0), Some(0));
        assert_eq!(next_psb(&PSB, 16), None);
        assert_eq!(next_psb(&PSB, usize::MAX), None);
        assert_eq!(next_psb(&PSB[..15], 0), None);
    }
}
