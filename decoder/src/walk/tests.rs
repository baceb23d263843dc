//! Small programs, hand-made traces, expected flow; each run by every engine.

use super::{Context, Engine};
use crate::config::PtConfig;
use crate::image::{AddressSpace, AddressSpaces, CodeImage, CodeRegion, Images, Mapping};
use crate::ledger::LossReason;
use crate::packet::encoder::encode;
use crate::packet::{IpBytes, IpPayload, Packet, TntBits};
use crate::run::{Counts, Options, count};
use crate::stream::{Break, Piece, TraceStream};
use crate::units::{AuxOffset, Ip, Svma};

const BASE: u64 = 0x40_1000;

fn full(ip: u64) -> IpPayload {
    IpPayload { form: IpBytes::Full, raw: ip }
}

fn none() -> IpPayload {
    IpPayload { form: IpBytes::Suppressed, raw: 0 }
}

fn tnt(outcomes: &str) -> Packet {
    let bits = outcomes.bytes().fold(0, |bits, outcome| bits << 1 | u64::from(outcome == b'!'));
    Packet::ShortTnt(TntBits { bits, count: outcomes.len() as u8 })
}

fn start(ip: u64) -> Vec<Packet> {
    vec![Packet::Psb, Packet::Fup(full(ip)), Packet::PsbEnd]
}

fn encoded(packets: &[Packet]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for packet in packets {
        encode(packet, &mut bytes);
    }
    // Room behind, so that the fast walker gets to see the packets.
    bytes.extend_from_slice(&[0; 32]);
    bytes
}

fn decode(code: &[u8], bytes: &[u8], engine: Engine) -> Counts {
    let mut images = Images::default();
    let image = images.push(CodeImage::new(vec![CodeRegion { start: Svma(0x1000), bytes: code }]));
    let mapping = Mapping { start: Ip(BASE), end: Ip(BASE + code.len() as u64), image, svma: Svma(0x1000) };
    let spaces = AddressSpaces::constant(AddressSpace::new([mapping]));
    let piece = Piece { offset: AuxOffset(0), bytes, break_before: Some(Break::Start), reference: None };
    let stream = TraceStream { pieces: vec![piece] };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
    let config = PtConfig::default();
    let context = Context { stream: &stream, images: &images, spaces: &spaces, config: &config };
    let options = Options { pool: &pool, engine, unit_bytes: 1 << 20, progress: &|_| {} };
    let counts = count(&[context], &options);
    let ledger = &counts.ledgers[0];
    assert_eq!(ledger.decoded + ledger.lost(), stream.len(), "the ledger adds up");
    counts
}

#[track_caller]
fn check(code: &[u8], packets: &[Packet], rows: &str, losses: &[LossReason]) {
    check_bytes(code, &encoded(packets), rows, losses);
}

/// `rows`: lines of `kind from to taken not_taken`, addresses relative to the code's start.
#[track_caller]
fn check_bytes(code: &[u8], bytes: &[u8], rows: &str, losses: &[LossReason]) {
    for engine in [Engine::Careful, Engine::Fast, Engine::Interrupted(1), Engine::Interrupted(2)] {
        let counts = decode(code, bytes, engine);
        let found: Vec<String> = counts
            .rows
            .iter()
            .map(|row| {
                let addr = |addr: Option<crate::profile::CodeAddr>| match addr {
                    Some(addr) if addr.image.is_some() => format!("{:x}", addr.addr - 0x1000),
                    Some(addr) => format!("?{:x}", addr.addr),
                    None => "-".to_owned(),
                };
                format!(
                    "{} {} {} {} {}",
                    row.kind.name(),
                    addr(row.from),
                    addr(row.to),
                    row.taken,
                    row.not_taken
                )
            })
            .collect();
        let expected: Vec<&str> = rows.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        assert_eq!(found, expected, "{engine:?}");
        let lost: Vec<LossReason> = counts.ledgers[0].losses.iter().map(|loss| loss.reason).collect();
        assert_eq!(lost, losses, "{engine:?}");
    }
}

/// ```text
/// 00 call 10        10 dec ecx
/// 05 jmp rax        12 jnz 10
/// 07 nop            14 ret
/// 08 syscall
/// 0a jmp 00
/// ```
const PROGRAM: &[u8] = &[
    0xe8, 0x0b, 0, 0, 0, 0xff, 0xe0, 0x90, 0x0f, 0x05, 0xeb, 0xf4, 0, 0, 0, 0, 0xff, 0xc9, 0x75, 0xfc, 0xc3,
];

#[test]
fn loop_call_return_and_syscall() {
    let mut packets = start(BASE);
    packets.extend([
        tnt("!!.!"), // two turns, out, compressed return
        Packet::Tip(full(BASE + 7)),
        Packet::TipPgd(none()),
        Packet::TipPge(full(BASE + 0xa)),
        tnt(".!"),
        Packet::Tip(full(BASE + 8)),
        Packet::TipPgd(none()),
    ]);
    check(
        PROGRAM,
        &packets,
        "jcc 12 10 2 2
         jmp a 0 1 0
         call 0 10 2 0
         jmp_ind 5 7 1 0
         jmp_ind 5 8 1 0
         ret 14 5 2 0
         syscall 8 - 2 0
         resume - a 1 0",
        &[],
    );
}

#[test]
fn an_uncompressed_return_is_a_tip() {
    let mut packets = start(BASE);
    packets.extend([tnt("."), Packet::Tip(full(BASE + 5)), Packet::Tip(full(BASE + 8))]);
    check(
        PROGRAM,
        &packets,
        "jcc 12 10 0 1
         call 0 10 1 0
         jmp_ind 5 8 1 0
         ret 14 5 1 0",
        &[],
    );
}

#[test]
fn a_deferred_tip_stands_behind_later_outcomes() {
    let mut packets = start(BASE + 5);
    // jmp rax -> 0 (deferred), call, loop out, return, jmp rax -> 7
    packets.extend([tnt(".!"), Packet::Tip(full(BASE)), Packet::Tip(full(BASE + 7))]);
    check(
        PROGRAM,
        &packets,
        "jcc 12 10 0 1
         call 0 10 1 0
         jmp_ind 5 0 1 0
         jmp_ind 5 7 1 0
         ret 14 5 1 0",
        &[],
    );
}

#[test]
fn an_interrupt_before_the_call_leaves_the_call_uncounted() {
    let mut packets = start(BASE + 0xa);
    packets.extend([
        Packet::Fup(full(BASE)),
        Packet::TipPgd(none()),
        Packet::TipPge(full(BASE)),
        tnt(".!"),
        Packet::Tip(full(BASE + 7)),
    ]);
    check(
        PROGRAM,
        &packets,
        "jcc 12 10 0 1
         jmp a 0 1 0
         call 0 10 1 0
         jmp_ind 5 7 1 0
         ret 14 5 1 0
         async 0 - 1 0
         resume - 0 1 0",
        &[],
    );
}

#[test]
fn a_psb_in_the_middle_is_walked_to_and_empties_the_stack() {
    let mut packets = start(BASE + 0xa);
    packets.extend(start(BASE + 0x10));
    packets.extend([tnt("."), Packet::Tip(full(BASE + 5))]);
    check(
        PROGRAM,
        &packets,
        "jcc 12 10 0 1
         jmp a 0 1 0
         call 0 10 1 0
         ret 14 5 1 0",
        &[],
    );
    let mut packets = start(BASE);
    packets.extend(start(BASE + 0x10));
    packets.push(tnt(".!")); // compressed although the stack is empty
    check(PROGRAM, &packets, "jcc 12 10 0 1\ncall 0 10 1 0", &[LossReason::Desync]);
}

#[test]
fn overflow_goes_on_at_the_fup() {
    let mut packets = start(BASE);
    packets.extend([
        tnt("!"),
        Packet::Ovf,
        Packet::Fup(full(BASE + 0x10)),
        tnt("."),
        Packet::Tip(full(BASE + 7)),
        Packet::Ovf,
        Packet::TipPge(full(BASE + 8)),
        Packet::TipPgd(none()),
    ]);
    check(
        PROGRAM,
        &packets,
        "jcc 12 10 1 1
         call 0 10 1 0
         ret 14 7 1 0
         syscall 8 - 1 0",
        &[LossReason::Overflow, LossReason::Overflow],
    );
}

#[test]
fn code_without_an_image_is_skipped() {
    let mut packets = start(BASE + 5);
    packets.extend([
        Packet::Tip(full(0x7f00_0000_0000)),
        tnt("!.!"),
        Packet::Tip(full(0x7f00_0000_0100)),
        Packet::Tip(full(BASE + 0x10)),
        tnt("."),
        Packet::Tip(full(BASE + 8)),
    ]);
    check(
        PROGRAM,
        &packets,
        "jcc 12 10 0 1
         jmp_ind 5 ?7f0000000000 1 0
         ret 14 8 1 0",
        &[LossReason::NoImage],
    );
}

#[test]
fn endless_jumps_end() {
    let code = [0xeb, 0xfe];
    let mut packets = start(BASE);
    packets.push(tnt("!"));
    let counts = decode(&code, &encoded(&packets), Engine::Fast);
    assert_eq!(counts.ledgers[0].losses[0].reason, LossReason::EndlessLoop);
}

#[test]
fn bad_bytes_are_lost_up_to_the_next_psb() {
    let mut bytes = Vec::new();
    for packet in start(BASE).iter().chain(&[tnt("!")]) {
        encode(packet, &mut bytes);
    }
    bytes.extend_from_slice(&[0xc9, 0xff, 0x04, 0x04]);
    for packet in start(BASE).iter().chain(&[tnt(".")]) {
        encode(packet, &mut bytes);
    }
    bytes.extend_from_slice(&[0; 32]);
    check_bytes(
        PROGRAM,
        &bytes,
        "jcc 12 10 1 1
         call 0 10 2 0",
        &[LossReason::BadPacket],
    );
}
