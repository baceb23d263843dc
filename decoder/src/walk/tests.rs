//! Small programs, hand-made traces, expected flow; each run by every engine.

use super::{Context, Engine};
use crate::config::{CpuModel, PtConfig};
use crate::image::{AddressSpace, AddressSpaces, CodeImage, CodeRegion, Images, Mapping};
use crate::ledger::LossReason;
use crate::packet::encoder::encode;
use crate::packet::{IpBytes, IpPayload, Packet, TntBits};
use crate::run::{Counts, Options, count};
use crate::stream::{Break, Piece, TraceStream};
use crate::units::{AuxOffset, Ip, Svma, Tsc};

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
    decode_as(code, bytes, engine, &PtConfig::default(), 1 << 20)
}

fn decode_as(code: &[u8], bytes: &[u8], engine: Engine, config: &PtConfig, unit_bytes: usize) -> Counts {
    let mut images = Images::default();
    let image = images.push(CodeImage::new(vec![CodeRegion { start: Svma(0x1000), bytes: code }]));
    let mapping = Mapping { start: Ip(BASE), end: Ip(BASE + code.len() as u64), image, svma: Svma(0x1000) };
    let spaces = AddressSpaces::constant(AddressSpace::new([mapping]));
    let piece = Piece { offset: AuxOffset(0), bytes, break_before: Some(Break::Start), reference: None };
    let stream = TraceStream { pieces: vec![piece] };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
    let context = Context { stream: &stream, images: &images, spaces: &spaces, config, owners: &[] };
    let options = Options { pool: &pool, engine, unit_bytes, progress: &|_| {} };
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
    check_config(&PtConfig::default(), code, bytes, rows, losses);
}

#[track_caller]
fn check_cpu(model: u16, code: &[u8], packets: &[Packet], rows: &str, losses: &[LossReason]) {
    let cpu = Some(CpuModel { family: 6, model, stepping: 1 });
    check_config(&PtConfig { cpu, ..PtConfig::default() }, code, &encoded(packets), rows, losses);
}

#[track_caller]
fn check_config(config: &PtConfig, code: &[u8], bytes: &[u8], rows: &str, losses: &[LossReason]) {
    let careful = decode_as(code, bytes, Engine::Careful, config, 1 << 20);
    for engine in [Engine::Careful, Engine::Fast, Engine::Interrupted(1), Engine::Interrupted(2)] {
        let counts = decode_as(code, bytes, engine, config, 1 << 20);
        assert_eq!(counts.instructions, careful.instructions, "{engine:?}");
        assert_eq!(counts.ledgers[0].losses, careful.ledgers[0].losses, "{engine:?}");
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

#[test]
fn a_psb_whose_first_bytes_a_packet_took_still_counts() {
    let mut bytes = Vec::new();
    for packet in start(BASE).iter().chain(&[tnt("!")]) {
        encode(packet, &mut bytes);
    }
    bytes.extend_from_slice(&[0x02, 0xc3, 0x88]); // MNT, cut off before its payload
    for packet in start(BASE).iter().chain(&[tnt(".")]) {
        encode(packet, &mut bytes);
    }
    bytes.extend_from_slice(&[0; 32]);
    let rows = "jcc 12 10 1 1
                call 0 10 2 0";
    check_bytes(PROGRAM, &bytes, rows, &[LossReason::BadPacket]);
    // The same with a unit for each PSB: the packet may not reach into the next unit.
    for engine in [Engine::Careful, Engine::Fast] {
        let counts = decode_as(PROGRAM, &bytes, engine, &PtConfig::default(), 20);
        assert_eq!(counts.units, 2);
        assert_eq!(counts.rows, decode(PROGRAM, &bytes, engine).rows);
        assert_eq!(counts.ledgers[0].lost(), 3);
    }
}

#[test]
fn outcomes_that_run_out_of_code_are_lost_from_their_packet_on() {
    let code = [0x75, 0xfe, 0x90, 0xeb, 0x40]; // jnz to itself; nop; jmp where nothing is
    let mut packets = start(BASE);
    packets.extend([tnt("!!.!"), Packet::Tip(full(BASE))]);
    check(&code, &packets, "jcc 0 0 2 1\njmp 3 ?401045 1 0", &[LossReason::NoImage]);
    let counts = decode(&code, &encoded(&packets), Engine::Fast);
    let tnt_at = encoded(&start(BASE)).len() as u64 - 32;
    assert_eq!(counts.ledgers[0].losses[0].from, AuxOffset(tnt_at));
}

#[test]
fn an_event_that_no_way_leads_to_is_where_the_flow_is() {
    let mut packets = start(BASE + 5);
    packets.extend([
        Packet::Fup(full(BASE + 0x10)), // behind jmp rax
        Packet::Tip(full(BASE + 7)),
        Packet::TipPgd(none()),
    ]);
    check(PROGRAM, &packets, "syscall 8 - 1 0\nasync 10 7 1 0", &[LossReason::Desync]);
}

#[test]
fn the_address_of_a_bound_packet_ends_unknown_code() {
    let mut packets = start(BASE + 5);
    packets.extend([
        Packet::Tip(full(0x7f00_0000_0000)),
        Packet::Ptw { payload: 1, wide: false, ip: true },
        Packet::Fup(full(BASE + 7)),
        Packet::TipPgd(none()),
    ]);
    check(PROGRAM, &packets, "jmp_ind 5 ?7f0000000000 1 0\nsyscall 8 - 1 0", &[LossReason::NoImage]);
}

#[test]
fn the_tip_that_leaves_unknown_code_is_used() {
    let code = [0xeb, 0x40, 0x0f, 0x05]; // jmp where nothing is; syscall
    let mut packets = start(BASE);
    packets.extend([Packet::Tip(full(BASE + 2)), Packet::TipPgd(none())]);
    check(&code, &packets, "jmp 0 ?401042 1 0\nsyscall 2 - 1 0", &[LossReason::NoImage]);
}

#[test]
fn jmpabs_takes_a_tip() {
    let code = [0xd5, 0, 0xa1, 0x0c, 0x10, 0x40, 0, 0, 0, 0, 0, 0xf4, 0x0f, 0x05];
    let mut packets = start(BASE);
    packets.extend([Packet::Tip(full(BASE + 0xc)), Packet::TipPgd(none())]);
    check(&code, &packets, "jmp_ind 0 c 1 0\nsyscall c - 1 0", &[]);
}

#[test]
fn erratum_bdm64_a_wrong_branch_before_an_abort() {
    // 00 je 06; 02 nop; 03 je 00; 05 hlt; 06 hlt; 07 nop; 08 hlt
    let code = [0x74, 0x04, 0x90, 0x74, 0xfb, 0xf4, 0xf4, 0x90, 0xf4];
    let mut packets = start(BASE);
    packets.extend([
        tnt("."),
        Packet::ModeTsx { in_tx: false, abort: true },
        Packet::Fup(full(BASE + 6)),
        Packet::Tip(full(BASE + 7)),
        Packet::Fup(full(BASE + 8)),
        Packet::TipPgd(none()),
    ]);
    let rows = "jcc 0 6 0 1\nasync 6 7 1 0\nasync 8 - 1 0";
    check_cpu(0x4f, &code, &packets, rows, &[LossReason::Desync]);
    let cpu = Some(CpuModel { family: 6, model: 0x4f, stepping: 1 });
    let config = PtConfig { cpu, ..PtConfig::default() };
    // The je and the handler's nop; nothing that the wrong outcome leads to.
    assert_eq!(decode_as(&code, &encoded(&packets), Engine::Fast, &config, 1 << 20).instructions, 2);
}

#[test]
fn erratum_apl12_a_fup_after_an_overflow_while_tracing_is_off() {
    let mut packets = start(BASE);
    packets.extend([
        Packet::Ovf,
        Packet::Fup(full(BASE + 0x10)),
        Packet::Psb,
        Packet::PsbEnd,
        Packet::TipPge(full(BASE + 8)),
        Packet::TipPgd(none()),
    ]);
    check_cpu(0x5c, PROGRAM, &packets, "syscall 8 - 1 0\nresume - 8 1 0", &[LossReason::Overflow]);
    packets.truncate(5);
    packets.extend([tnt("."), Packet::Tip(full(BASE + 7))]);
    check_cpu(0x5c, PROGRAM, &packets, "jcc 12 10 0 1\nret 14 7 1 0", &[LossReason::Overflow]);
}

#[test]
fn erratum_skd022_a_vm_entry_is_no_event() {
    let code = [0x90, 0x0f, 0x01, 0xc2, 0xf4]; // nop; vmlaunch; hlt
    let mut packets = start(BASE);
    packets.extend([Packet::Fup(full(BASE + 1)), Packet::TipPgd(none())]);
    check_cpu(0x55, &code, &packets, "far 1 - 1 0", &[]);
    check_cpu(0x4f, &code, &packets, "async 1 - 1 0", &[]);
}

/// A library is unloaded and another loaded at its address, while the program goes on doing the same thing: nothing that
/// was learned of the first may be counted again.
#[test]
fn another_library_at_the_same_address_is_another_library() {
    const LIBRARY: u64 = 0x7f00_0000_2000;
    const CALLS: usize = 600;
    let mut images = Images::default();
    // call rax; jmp back to it
    let program = images
        .push(CodeImage::new(vec![CodeRegion { start: Svma(0x1000), bytes: &[0xff, 0xd0, 0xeb, 0xfc] }]));
    // ret; nop, ret
    let libraries = [&[0xc3, 0xcc][..], &[0x90, 0xc3]]
        .map(|bytes| images.push(CodeImage::new(vec![CodeRegion { start: Svma(0x1000), bytes }])));
    let with = |library| {
        let mapping =
            |start, len, image| Mapping { start: Ip(start), end: Ip(start + len), image, svma: Svma(0x1000) };
        AddressSpace::new([mapping(BASE, 4, program), mapping(LIBRARY, 2, library)])
    };
    let calls = |time: u64| {
        let mut packets =
            vec![Packet::Psb, Packet::Tsc { tsc: time }, Packet::Fup(full(BASE)), Packet::PsbEnd];
        for _ in 0..CALLS {
            packets.extend([Packet::Tip(full(LIBRARY)), tnt("!")]);
        }
        packets
    };
    let in_time = AddressSpaces::new(vec![
        (Tsc(0), with(libraries[0])),
        (Tsc(1000), with(libraries[1])),
        (Tsc(2000), with(libraries[0])),
        (Tsc(3000), with(libraries[1])),
    ]);
    let in_processes = libraries.map(|library| AddressSpaces::constant(with(library)));
    let bytes = encoded(&[500, 1500, 2500, 3500].map(calls).concat());
    let piece =
        Piece { offset: AuxOffset(0), bytes: &bytes, break_before: Some(Break::Start), reference: None };
    let stream = TraceStream { pieces: vec![piece] };
    let config = PtConfig::default();
    let context = |spaces| Context { stream: &stream, images: &images, spaces, config: &config, owners: &[] };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
    for engine in [
        Engine::Careful,
        Engine::Fast,
        Engine::Interrupted(1),
        Engine::Interrupted(2),
        Engine::Interrupted(7),
    ] {
        for unit_bytes in [1, 1 << 20] {
            let options = Options { pool: &pool, engine, unit_bytes, progress: &|_| {} };
            let of = |counts: &Counts, library: usize| -> u64 {
                let leads_there = |row: &&crate::profile::EdgeRow| {
                    row.to.is_some_and(|to| to.image == Some(libraries[library]))
                };
                counts.rows.iter().filter(leads_there).map(|row| row.taken).sum()
            };
            let half = 2 * CALLS as u64;
            let counts = count(&[context(&in_time)], &options);
            assert_eq!([of(&counts, 0), of(&counts, 1)], [half; 2], "{engine:?}, {unit_bytes}: over time");
            let counts = count(&[context(&in_processes[0]), context(&in_processes[1])], &options);
            assert_eq!(
                [of(&counts, 0), of(&counts, 1)],
                [2 * half; 2],
                "{engine:?}, {unit_bytes}: processes"
            );
        }
    }
}
