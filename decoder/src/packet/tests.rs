//! Byte vectors from the manual's packet tables, and the identities between lexer and encoder.

use proptest::prelude::*;

use super::arbitrary;
use super::encoder::{MAX_PACKET_LEN, encode};
use super::lexer::{BlockContext, LexError, lex};
use super::{ExecMode, IpBytes, IpPayload, LastIp, Packet, TntBits};

fn tnt(outcomes: &str) -> TntBits {
    let bits = outcomes.bytes().fold(0, |bits, outcome| bits << 1 | u64::from(outcome == b'T'));
    TntBits { bits, count: outcomes.len() as u8 }
}

fn ip(form: IpBytes, raw: u64) -> IpPayload {
    IpPayload { form, raw }
}

fn encoded(packet: &Packet) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(packet, &mut bytes);
    bytes
}

type IpKind = fn(IpPayload) -> Packet;

/// Canonical bytes outside a block and the packet they are.
fn vectors() -> Vec<(Vec<u8>, Packet)> {
    use IpBytes::{Full, Sext48, Suppressed, Update16, Update32, Update48};
    use Packet::*;
    let mut vectors: Vec<(Vec<u8>, Packet)> = [
        (&[0x00][..], Pad),
        (&[0x02, 0x82].repeat(8), Psb),
        (&[0x02, 0x23], PsbEnd),
        // Short TNT: oldest outcome next to the stop bit.
        (&[0x04], ShortTnt(tnt("N"))),
        (&[0x06], ShortTnt(tnt("T"))),
        (&[0x0a], ShortTnt(tnt("NT"))),
        (&[0x0c], ShortTnt(tnt("TN"))),
        (&[0x80], ShortTnt(tnt("NNNNNN"))),
        (&[0xfe], ShortTnt(tnt("TTTTTT"))),
        (&[0xb4], ShortTnt(tnt("NTTNTN"))),
        (&[0x02, 0xa3, 0x02, 0, 0, 0, 0, 0], LongTnt(tnt("N"))),
        (&[0x02, 0xa3, 0x03, 0, 0, 0, 0, 0], LongTnt(tnt("T"))),
        (&[0x02, 0xa3, 0x16, 0, 0, 0, 0, 0], LongTnt(tnt("NTTN"))),
        (&[0x02, 0xa3, 0, 0, 0, 0, 0, 0x80], LongTnt(TntBits { bits: 0, count: 47 })),
        (
            &[0x02, 0xa3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            LongTnt(TntBits { bits: (1 << 47) - 1, count: 47 }),
        ),
        // CS.L = 1 is 64-bit, CS.D = 1 is 32-bit.
        (&[0x99, 0x00], ModeExec { mode: ExecMode::Bits16, interrupt_flag: false }),
        (&[0x99, 0x01], ModeExec { mode: ExecMode::Bits64, interrupt_flag: false }),
        (&[0x99, 0x02], ModeExec { mode: ExecMode::Bits32, interrupt_flag: false }),
        (&[0x99, 0x05], ModeExec { mode: ExecMode::Bits64, interrupt_flag: true }),
        (&[0x99, 0x20], ModeTsx { in_tx: false, abort: false }),
        (&[0x99, 0x21], ModeTsx { in_tx: true, abort: false }),
        (&[0x99, 0x22], ModeTsx { in_tx: false, abort: true }),
        // PIP: bit 0 is NR, bits 47:1 are CR3[51:5]. A CR3 that Linux gave on hardware.
        (&[0x02, 0x43, 0x00, 0x40, 0xd4, 0x3f, 0, 0], Pip { cr3: 0x3_fd44_0000, non_root: false }),
        (&[0x02, 0x43, 0x03, 0, 0, 0, 0, 0], Pip { cr3: 0x20, non_root: true }),
        (&[0x02, 0x43, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff], Pip { cr3: 0xf_ffff_ffff_ffe0, non_root: false }),
        (&[0x02, 0xc8, 1, 2, 3, 4, 5], Vmcs { base: 0x5040_3020_1000 }),
        (&[0x19, 1, 2, 3, 4, 5, 6, 7], Tsc { tsc: 0x07_0605_0403_0201 }),
        (&[0x02, 0x73, 0x34, 0x12, 0, 0xcd, 0x01], Tma { ctc: 0x1234, fast: 0x1cd }),
        (&[0x59, 0xa7], Mtc { ctc: 0xa7 }),
        (&[0x02, 0x03, 0x1c, 0], Cbr { ratio: 0x1c }),
        (&[0x02, 0xf3], Ovf),
        (&[0x02, 0x83], TraceStop),
        (&[0x02, 0xc3, 0x88, 1, 2, 3, 4, 5, 6, 7, 8], Mnt { payload: 0x0807_0605_0403_0201 }),
        // CYC: 5 bits, then 7 in each byte.
        (&[0x03], Cyc { cycles: 0 }),
        (&[0x0b], Cyc { cycles: 1 }),
        (&[0xfb], Cyc { cycles: 31 }),
        (&[0x07, 0x02], Cyc { cycles: 32 }),
        (&[0xff, 0xfe], Cyc { cycles: 0xfff }),
        (&[0x07, 0x01, 0x02], Cyc { cycles: 0x1000 }),
        (&[0x07, 1, 1, 1, 1, 1, 1, 1, 2], Cyc { cycles: 1 << 54 }),
        (&[0x07, 1, 1, 1, 1, 1, 1, 1, 1, 2], Cyc { cycles: 1 << 61 }),
        (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0e], Cyc { cycles: u64::MAX }),
        (&[0x02, 0x12, 1, 2, 3, 4], Ptw { payload: 0x0403_0201, wide: false, ip: false }),
        (
            &[0x02, 0x32, 1, 2, 3, 4, 5, 6, 7, 8],
            Ptw { payload: 0x0807_0605_0403_0201, wide: true, ip: false },
        ),
        (&[0x02, 0x92, 1, 2, 3, 4], Ptw { payload: 0x0403_0201, wide: false, ip: true }),
        (&[0x02, 0xb2, 1, 2, 3, 4, 5, 6, 7, 8], Ptw { payload: 0x0807_0605_0403_0201, wide: true, ip: true }),
        (&[0x02, 0x62], ExStop { ip: false }),
        (&[0x02, 0xe2], ExStop { ip: true }),
        (&[0x02, 0xc2, 0x21, 0, 0, 0, 0x01, 0, 0, 0], Mwait { hints: 0x21, ext: 1 }),
        // PWRE: HW in bit 7 of the first payload byte, the C-state in the high nibble of the second.
        (&[0x02, 0x22, 0x80, 0x34], Pwre { hw: true, state: 3, sub_state: 4 }),
        (&[0x02, 0x22, 0x00, 0x56], Pwre { hw: false, state: 5, sub_state: 6 }),
        (&[0x02, 0xa2, 0x63, 0x01, 0, 0, 0], Pwrx { last: 6, deepest: 3, wake: 1 }),
        (&[0x02, 0x33], Bep { ip: false }),
        (&[0x02, 0xb3], Bep { ip: true }),
        (&[0x02, 0x13, 0x01, 0x0e], Cfe { kind: 1, vector: 14, ip: false }),
        (&[0x02, 0x13, 0x9f, 0xff], Cfe { kind: 0x1f, vector: 0xff, ip: true }),
        (&[0x02, 0x53, 0x00, 1, 2, 3, 4, 5, 6, 7, 8], Evd { kind: 0, payload: 0x0807_0605_0403_0201 }),
        (&[0x02, 0x53, 0x3f, 0, 0, 0, 0, 0, 0, 0, 0x80], Evd { kind: 0x3f, payload: 1 << 63 }),
        (&[0xd9, 0x00, 0x05], Trig { ip: false, mult: false, bits: 5, count: None }),
        (&[0xd9, 0xa0, 0x80], Trig { ip: true, mult: true, bits: 0x80, count: None }),
        (&[0xd9, 0x40, 0x01, 0x34, 0x12], Trig { ip: false, mult: false, bits: 1, count: Some(0x1234) }),
    ]
    .into_iter()
    .map(|(bytes, packet)| (bytes.to_vec(), packet))
    .collect();
    let kinds: [(u8, IpKind); 4] = [(0x0d, Tip), (0x11, TipPge), (0x01, TipPgd), (0x1d, Fup)];
    for (opcode, kind) in kinds {
        for (code, payload, form, raw) in [
            (0x00, &[][..], Suppressed, 0),
            (0x20, &[1, 2], Update16, 0x0201),
            (0x40, &[1, 2, 3, 4], Update32, 0x0403_0201),
            (0x60, &[1, 2, 3, 4, 5, 6], Sext48, 0x0605_0403_0201),
            (0x80, &[1, 2, 3, 4, 5, 6], Update48, 0x0605_0403_0201),
            (0xc0, &[1, 2, 3, 4, 5, 6, 7, 8], Full, 0x0807_0605_0403_0201),
        ] {
            vectors.push(([&[opcode | code], payload].concat(), kind(ip(form, raw))));
        }
    }
    vectors
}

/// Packets of PEBS blocks: the context before, the bytes, the packet, the context after.
fn block_vectors() -> Vec<(BlockContext, Vec<u8>, Packet, BlockContext)> {
    use BlockContext::{Long, None, Short};
    let item = |id, value, short| Packet::Bip { id, value, short };
    vec![
        (None, vec![0x02, 0x63, 0x00], Packet::Bbp { short: false, kind: 0 }, Long),
        (None, vec![0x02, 0x63, 0x84], Packet::Bbp { short: true, kind: 4 }, Short),
        (Short, vec![0x02, 0x63, 0x1f], Packet::Bbp { short: false, kind: 0x1f }, Long),
        (Short, vec![0x04, 1, 2, 3, 4], item(0, 0x0403_0201, true), Short),
        (Short, vec![0xfc, 1, 2, 3, 4], item(31, 0x0403_0201, true), Short),
        (Long, vec![0x04, 1, 2, 3, 4, 5, 6, 7, 8], item(0, 0x0807_0605_0403_0201, false), Long),
        (Long, vec![0x8c, 1, 2, 3, 4, 5, 6, 7, 8], item(17, 0x0807_0605_0403_0201, false), Long),
        // The other TNT bytes stay what they are, and end the block.
        (Long, vec![0x06], Packet::ShortTnt(tnt("T")), None),
        (Short, vec![0x02, 0x33], Packet::Bep { ip: false }, None),
        (Long, vec![0x02, 0xb3], Packet::Bep { ip: true }, None),
    ]
}

#[test]
fn every_packet_reads_and_writes_as_the_manual_draws_it() {
    for (bytes, packet) in vectors() {
        let mut context = BlockContext::None;
        assert_eq!(lex(&bytes, &mut context), Ok((packet, bytes.len())), "{bytes:02x?}");
        assert_eq!(encoded(&packet), bytes, "{packet:?}");
    }
    for (before, bytes, packet, after) in block_vectors() {
        let mut context = before;
        assert_eq!(lex(&bytes, &mut context), Ok((packet, bytes.len())), "{bytes:02x?}");
        assert_eq!(context, after, "{packet:?}");
        assert_eq!(encoded(&packet), bytes, "{packet:?}");
    }
}

#[test]
fn what_follows_a_packet_does_not_change_it() {
    for (bytes, packet) in vectors() {
        for follower in [0x00, 0x02, 0x82, 0xff] {
            let longer = [&bytes[..], &[follower; 16]].concat();
            let got = lex(&longer, &mut BlockContext::None);
            assert_eq!(got, Ok((packet, bytes.len())), "{longer:02x?}");
        }
    }
}

#[test]
fn the_beginning_of_a_packet_is_truncated() {
    let outside = vectors().into_iter().map(|(bytes, _)| (BlockContext::None, bytes));
    let inside = block_vectors().into_iter().map(|(before, bytes, ..)| (before, bytes));
    for (before, bytes) in outside.chain(inside) {
        for len in 0..bytes.len() {
            let mut context = before;
            assert_eq!(lex(&bytes[..len], &mut context), Err(LexError::Truncated), "{:02x?}", &bytes[..len]);
            assert_eq!(context, before);
        }
    }
}

/// SDM, "Block Item Packet": timing, power and maintenance packets and FUP may stand in a block, all others end it.
#[test]
fn only_some_packets_may_stand_in_a_block() {
    for (bytes, packet) in vectors() {
        if bytes[0] & 0x07 == 0x04 {
            continue; // an item there
        }
        let stays = matches!(
            bytes[..],
            [0x00 | 0x19 | 0x59, ..] | [0x02, 0x73 | 0x03 | 0xc3 | 0x62 | 0xe2 | 0x22 | 0xa2, ..]
        ) || bytes[0] & 0x03 == 0x03
            || bytes[0] & 0x1f == 0x1d;
        for before in [BlockContext::Short, BlockContext::Long] {
            let mut context = before;
            assert_eq!(lex(&bytes, &mut context), Ok((packet, bytes.len())));
            assert_eq!(context, if stays { before } else { BlockContext::None }, "{packet:?}");
        }
    }
}

#[test]
fn reserved_forms_are_bad() {
    let mut bad: Vec<Vec<u8>> = [
        &[0x02, 0x00][..],
        &[0x02, 0x02],
        &[0x02, 0x82, 0x03],
        &[0x02, 0x82, 0x02, 0x82, 0x02, 0x82, 0x02, 0x82, 0x02, 0x82, 0x02, 0x82, 0x02, 0x82, 0x02, 0x83],
        // A long TNT without a stop bit, and without an outcome.
        &[0x02, 0xa3, 0, 0, 0, 0, 0, 0],
        &[0x02, 0xa3, 1, 0, 0, 0, 0, 0],
        // PTW sizes 2 and 3.
        &[0x02, 0x52],
        &[0x02, 0x72],
        &[0x02, 0xd2],
        &[0x02, 0xf2],
        &[0x02, 0xc3, 0x87],
        // TMA with reserved bits, seen as soon as they are there.
        &[0x02, 0x73, 0, 0, 1],
        &[0x02, 0x73, 0, 0, 0, 0, 2],
        // CYC of more than 64 bits, and of more than ten bytes.
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x10],
        &[0x07, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        // CS.L and CS.D; InTX and Abort; the leaves 2 and 7.
        &[0x99, 0x03],
        &[0x99, 0x23],
        &[0x99, 0x40],
        &[0x99, 0xe0],
        &[0x39],
        &[0x79],
        &[0xb9],
        &[0xf9],
        &[0xc9],
        &[0x05],
        &[0x09],
        &[0x15],
    ]
    .map(<[u8]>::to_vec)
    .to_vec();
    for opcode in [0x0d, 0x11, 0x01, 0x1d] {
        bad.extend([vec![opcode | 5 << 5], vec![opcode | 7 << 5]]);
    }
    for bytes in bad {
        for before in [BlockContext::None, BlockContext::Short, BlockContext::Long] {
            for more in [&[][..], &[0; 16]] {
                let mut context = before;
                let bytes = [&bytes[..], more].concat();
                assert_eq!(lex(&bytes, &mut context), Err(LexError::BadPacket), "{bytes:02x?}");
                assert_eq!(context, before);
            }
        }
    }
}

/// The first column reads as the packet whose canonical bytes are the second.
#[test]
fn spare_bits_are_ignored_and_written_as_zero() {
    for (bytes, canonical) in [
        (&[0x02, 0x03, 0x1c, 0xff][..], &[0x02, 0x03, 0x1c, 0][..]),
        (&[0x99, 0x1d], &[0x99, 0x05]),
        (&[0x99, 0x3d], &[0x99, 0x21]),
        (
            &[0x02, 0xc2, 0x21, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0x02, 0xc2, 0x21, 0, 0, 0, 3, 0, 0, 0],
        ),
        (&[0x02, 0x22, 0x7f, 0x34], &[0x02, 0x22, 0, 0x34]),
        (&[0x02, 0xa2, 0x63, 0xf1, 0xff, 0xff, 0xff], &[0x02, 0xa2, 0x63, 0x01, 0, 0, 0]),
        (&[0x02, 0x63, 0x64], &[0x02, 0x63, 0x04]),
        (&[0x02, 0x13, 0x61, 0x0e], &[0x02, 0x13, 0x01, 0x0e]),
        (&[0x02, 0x53, 0xc1, 1, 2, 3, 4, 5, 6, 7, 8], &[0x02, 0x53, 0x01, 1, 2, 3, 4, 5, 6, 7, 8]),
        (&[0xd9, 0x1f, 0x05], &[0xd9, 0x00, 0x05]),
        (&[0x0f, 0x00], &[0x0b]),
        (&[0x0f, 0x01, 0x01, 0x00], &[0x0b]),
    ] {
        let (packet, len) = lex(bytes, &mut BlockContext::None).unwrap();
        assert_eq!(len, bytes.len());
        assert_eq!(encoded(&packet), canonical, "{packet:?}");
    }
}

#[test]
fn packets_as_text() {
    for (packet, line) in [
        (Packet::Psb, "psb"),
        (Packet::ShortTnt(tnt("TTNT")), "tnt.8      !!.!"),
        (Packet::LongTnt(tnt("NT")), "tnt.64     .!"),
        (Packet::Tip(ip(IpBytes::Update16, 0xabcd)), "tip        1: ????????????abcd"),
        (Packet::TipPgd(IpPayload::SUPPRESSED), "tip.pgd    0: ????????????????"),
        (Packet::TipPge(ip(IpBytes::Update48, 0x40_1000)), "tip.pge    4: ????000000401000"),
        (Packet::Fup(ip(IpBytes::Sext48, 0x8123_4567_89ab)), "fup        3: ffff8123456789ab"),
        (Packet::ModeExec { mode: ExecMode::Bits64, interrupt_flag: true }, "mode.exec  64-bit, if"),
        (Packet::Pip { cr3: 0x3_fd43_4000, non_root: true }, "pip        00000003fd434000, nr"),
        (Packet::Tma { ctc: 0x1234, fast: 0x1cd }, "tma        1234, 1cd"),
        (Packet::Ptw { payload: 0x2a, wide: false, ip: true }, "ptw        0000002a, ip"),
        (Packet::Pwre { hw: true, state: 3, sub_state: 4 }, "pwre       c3.4, hw"),
        (Packet::Cfe { kind: 1, vector: 14, ip: true }, "cfe        intr, vector 14, ip"),
        (Packet::Evd { kind: 0, payload: 0x10 }, "evd        cr2: 0000000000000010"),
        (Packet::Bep { ip: false }, "bep"),
    ] {
        assert_eq!(packet.to_string(), line);
    }
}

/// The manual's table "FUP/TIP IP Reconstruction", row by row.
#[test]
fn last_ip_is_rebuilt_as_the_table_says() {
    for (form, raw, want) in [
        (IpBytes::Update16, 0xffff, 0x1122_3344_5566_ffff),
        (IpBytes::Update32, 0xaabb_ccdd, 0x1122_3344_aabb_ccdd),
        (IpBytes::Sext48, 0x7fff_0000_0001, 0x0000_7fff_0000_0001),
        (IpBytes::Sext48, 0x8000_0000_0001, 0xffff_8000_0000_0001),
        (IpBytes::Update48, 0x8000_0000_0001, 0x1122_8000_0000_0001),
        (IpBytes::Full, 0xff01_0203_0405_0607, 0xff01_0203_0405_0607),
    ] {
        let mut last = LastIp(0x1122_3344_5566_7788);
        assert_eq!(last.update(ip(form, raw)), Some(want), "{form:?}");
        assert_eq!(last.0, want);
    }
    let mut last = LastIp(0x1234);
    assert_eq!(last.update(IpPayload::SUPPRESSED), None);
    assert_eq!(last.0, 0x1234);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn written_packets_read_back(packets in arbitrary::packets(60)) {
        let mut bytes = Vec::new();
        let mut lens = Vec::new();
        for packet in &packets {
            let start = bytes.len();
            encode(packet, &mut bytes);
            lens.push(bytes.len() - start);
        }
        let mut rest = &bytes[..];
        let mut context = BlockContext::None;
        for (packet, len) in packets.iter().zip(lens) {
            prop_assert_eq!(lex(rest, &mut context), Ok((*packet, len)));
            rest = &rest[len..];
        }
        prop_assert!(rest.is_empty());
    }

    /// On any bytes: a packet lies within them, is the same packet when written anew, and no longer than it was.
    #[test]
    fn any_bytes_read_or_fail(
        mut bytes in prop::collection::vec(any::<u8>(), 0..24),
        extended in any::<bool>(),
        before in prop::sample::select(vec![BlockContext::None, BlockContext::Short, BlockContext::Long]),
    ) {
        if extended && !bytes.is_empty() {
            bytes[0] = 0x02; // else one in 256
        }
        let mut context = before;
        match lex(&bytes, &mut context) {
            Ok((packet, len)) => {
                prop_assert!((1..=MAX_PACKET_LEN.min(bytes.len())).contains(&len));
                prop_assert_eq!(context, before.after(&packet));
                let canonical = encoded(&packet);
                prop_assert!(canonical.len() <= len);
                prop_assert_eq!(lex(&canonical, &mut before.clone()), Ok((packet, canonical.len())));
                for shorter in 0..len {
                    prop_assert_eq!(lex(&bytes[..shorter], &mut before.clone()), Err(LexError::Truncated));
                }
            }
            Err(LexError::BadPacket) => {
                bytes.extend([0; MAX_PACKET_LEN]);
                prop_assert_eq!(lex(&bytes, &mut before.clone()), Err(LexError::BadPacket));
                prop_assert_eq!(context, before);
            }
            Err(LexError::Truncated) => {
                prop_assert!(bytes.len() < MAX_PACKET_LEN);
                let psb = [0x02, 0x82].repeat(8);
                let ends = [&[0x00; 16][..], &[0x88; 16], &[0x02; 16], psb.get(bytes.len()..).unwrap_or(&[])];
                let legal = ends.into_iter().any(|end| {
                    let whole = [&bytes[..], end].concat();
                    lex(&whole, &mut before.clone()).is_ok()
                });
                prop_assert!(legal, "no end makes {:02x?} a packet", bytes);
                prop_assert_eq!(context, before);
            }
        }
    }

    /// The chosen form gives the address back, and no form with less payload does.
    #[test]
    fn compression_is_exact_and_shortest(last in any::<u64>(), other in any::<u64>(), shared in 0u32..=64) {
        let low = 1u64.checked_shl(shared).map_or(u64::MAX, |bit| bit - 1);
        let ip = (last & !low) | (other & low);
        let last = LastIp(last);
        let payload = IpPayload::compress(last, ip);
        prop_assert_eq!(last.clone().update(payload), Some(ip));
        for code in 1..7 {
            let Some(form) = IpBytes::from_code(code) else { continue };
            if form.payload_len() < payload.form.payload_len() {
                prop_assert_ne!(last.clone().update(IpPayload::with_form(form, ip)), Some(ip));
            }
        }
    }
}
