//! Random packets for tests: every kind, every field over its whole width.

use proptest::prelude::*;

use super::lexer::BlockContext;
use super::{ExecMode, IpBytes, IpPayload, Packet, TntBits};

/// Any packet but BIP, which is one only inside a block.
pub(crate) fn packet() -> impl Strategy<Value = Packet> {
    let common = prop_oneof![
        Just(Packet::Pad),
        Just(Packet::PsbEnd),
        tnt(6).prop_map(Packet::ShortTnt),
        tnt(47).prop_map(Packet::LongTnt),
        ip().prop_map(Packet::Tip),
        ip().prop_map(Packet::TipPge),
        ip().prop_map(Packet::TipPgd),
        ip().prop_map(Packet::Fup),
        (exec_mode(), any::<bool>())
            .prop_map(|(mode, interrupt_flag)| Packet::ModeExec { mode, interrupt_flag }),
        (0u8..3).prop_map(|bits| Packet::ModeTsx { in_tx: bits == 1, abort: bits == 2 }),
        (bits(47), any::<bool>()).prop_map(|(cr3, non_root)| Packet::Pip { cr3: cr3 << 5, non_root }),
        bits(40).prop_map(|base| Packet::Vmcs { base: base << 12 }),
    ];
    let timing = prop_oneof![
        bits(56).prop_map(|tsc| Packet::Tsc { tsc }),
        (any::<u16>(), 0u16..0x200).prop_map(|(ctc, fast)| Packet::Tma { ctc, fast }),
        any::<u8>().prop_map(|ctc| Packet::Mtc { ctc }),
        (0u32..64).prop_flat_map(|width| bits(width + 1)).prop_map(|cycles| Packet::Cyc { cycles }),
        any::<u8>().prop_map(|ratio| Packet::Cbr { ratio }),
    ];
    let rare = prop_oneof![
        Just(Packet::Psb),
        Just(Packet::Ovf),
        Just(Packet::TraceStop),
        any::<u64>().prop_map(|payload| Packet::Mnt { payload }),
        (any::<u64>(), any::<bool>(), any::<bool>()).prop_map(|(payload, wide, ip)| Packet::Ptw {
            payload: if wide { payload } else { payload >> 32 },
            wide,
            ip
        }),
        any::<bool>().prop_map(|ip| Packet::ExStop { ip }),
        (any::<u8>(), 0u8..4).prop_map(|(hints, ext)| Packet::Mwait { hints, ext }),
        (any::<bool>(), 0u8..16, 0u8..16).prop_map(|(hw, state, sub_state)| Packet::Pwre {
            hw,
            state,
            sub_state
        }),
        (0u8..16, 0u8..16, 0u8..16).prop_map(|(last, deepest, wake)| Packet::Pwrx { last, deepest, wake }),
        (0u8..32, any::<u8>(), any::<bool>()).prop_map(|(kind, vector, ip)| Packet::Cfe { kind, vector, ip }),
        (0u8..64, any::<u64>()).prop_map(|(kind, payload)| Packet::Evd { kind, payload }),
        any::<bool>().prop_map(|ip| Packet::Bep { ip }),
        (any::<bool>(), 0u8..32).prop_map(|(short, kind)| Packet::Bbp { short, kind }),
        (any::<bool>(), any::<bool>(), any::<u8>(), any::<Option<u16>>())
            .prop_map(|(ip, mult, bits, count)| Packet::Trig { ip, mult, bits, count }),
    ];
    prop_oneof![3 => common, 2 => timing, 2 => rare]
}

/// Packets as they may follow one another, blocks of items included.
pub(crate) fn packets(most: usize) -> impl Strategy<Value = Vec<Packet>> {
    // A token is a packet, and an item in its place where the context at that point has items.
    let token = (packet(), any::<bool>(), 0u8..32, any::<u64>());
    prop::collection::vec(token, 0..most).prop_map(|tokens| {
        let mut context = BlockContext::None;
        let mut packets = Vec::with_capacity(tokens.len());
        for (packet, item, id, value) in tokens {
            let packet = match (context, packet) {
                (BlockContext::Short, _) if item => Packet::Bip { id, value: value >> 32, short: true },
                (BlockContext::Long, _) if item => Packet::Bip { id, value, short: false },
                // In a block these bytes are an item.
                (BlockContext::Short | BlockContext::Long, Packet::ShortTnt(outcomes))
                    if reads_as_item(outcomes) =>
                {
                    Packet::Bep { ip: false }
                }
                (_, packet) => packet,
            };
            context = context.after(&packet);
            packets.push(packet);
        }
        packets
    })
}

fn reads_as_item(outcomes: TntBits) -> bool {
    let byte = ((1 << outcomes.count) | outcomes.bits) << 1;
    byte & 0x07 == 0x04
}

fn bits(width: u32) -> impl Strategy<Value = u64> {
    any::<u64>().prop_map(move |value| value >> (u64::BITS - width))
}

fn tnt(most: u8) -> impl Strategy<Value = TntBits> {
    (1..=most, any::<u64>()).prop_map(|(count, bits)| TntBits { bits: bits & ((1 << count) - 1), count })
}

fn ip() -> impl Strategy<Value = IpPayload> {
    let form = prop::sample::select(vec![
        IpBytes::Suppressed,
        IpBytes::Update16,
        IpBytes::Update32,
        IpBytes::Sext48,
        IpBytes::Update48,
        IpBytes::Full,
    ]);
    (form, any::<u64>()).prop_map(|(form, ip)| IpPayload::with_form(form, ip))
}

fn exec_mode() -> impl Strategy<Value = ExecMode> {
    prop::sample::select(vec![ExecMode::Bits16, ExecMode::Bits32, ExecMode::Bits64])
}
