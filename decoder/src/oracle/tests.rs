//! libipt against the lexer, and against flows that are known because they were made by hand.

use proptest::prelude::*;

use super::{Edges, FileSection, Packets, PtError, SectionCache, Session, stretches};
use crate::config::PtConfig;
use crate::image::{AddressSpace, CodeImage, CodeRegion, Images, Mapping};
use crate::packet::encoder::encode;
use crate::packet::lexer::{BlockContext, lex};
use crate::packet::{ExecMode, IpPayload, LastIp, Packet, TntBits, arbitrary};
use crate::profile::EdgeKind::{self, *};
use crate::stream::{Break, Piece, TraceStream};
use crate::units::{AuxOffset, Ip, Svma};

/// The packet as libipt 2.1.2 reads it, where that is not as the manual draws it; `None` where it reads none.
fn as_libipt_reads(packet: Packet) -> Option<Packet> {
    Some(match packet {
        Packet::Bbp { .. } | Packet::Bip { .. } | Packet::Bep { .. } | Packet::Trig { .. } => return None,
        // It takes nine bytes at most.
        Packet::Cyc { cycles } if cycles >> 61 != 0 => return None,
        // Its mask for HW is a reserved bit.
        Packet::Pwre { state, sub_state, .. } => Packet::Pwre { hw: false, state, sub_state },
        // It takes five bits.
        Packet::Evd { kind, payload } => Packet::Evd { kind: kind & 0x1f, payload },
        // It knows three wake reasons.
        Packet::Pwrx { last, deepest, wake } => Packet::Pwrx { last, deepest, wake: wake & 0b1101 },
        packet => packet,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn libipt_and_the_lexer_read_the_same_packets(packets in prop::collection::vec(arbitrary::packet(), 1..60)) {
        let packets: Vec<Packet> =
            packets.into_iter().filter(|packet| as_libipt_reads(*packet).is_some()).collect();
        let mut bytes = Vec::new();
        packets.iter().for_each(|packet| encode(packet, &mut bytes));
        prop_assume!(!bytes.is_empty());
        let mut at = 0;
        let mut context = BlockContext::None;
        for theirs in Packets::new(&bytes, &PtConfig::default()).unwrap() {
            let theirs = theirs.unwrap();
            let (ours, len) = lex(&bytes[at..], &mut context).unwrap();
            prop_assert_eq!((theirs.offset, theirs.size), (at as u64, len), "{:?}", ours);
            prop_assert_eq!(theirs.packet, as_libipt_reads(ours));
            at += len;
        }
        prop_assert_eq!(at, bytes.len());
    }

    /// Where libipt finds no packet in random bytes the lexer finds none either, and the other way round, but for the
    /// differences known.
    #[test]
    fn libipt_and_the_lexer_refuse_the_same_bytes(mut bytes in prop::collection::vec(any::<u8>(), 16..24), extended in any::<bool>()) {
        if extended {
            bytes[0] = 0x02;
        }
        let theirs = Packets::new(&bytes, &PtConfig::default()).unwrap().next().unwrap();
        let ours = lex(&bytes, &mut BlockContext::None);
        match (theirs, ours) {
            (Ok(theirs), Ok((packet, len))) => prop_assert_eq!(theirs.size, len, "{:?}", packet),
            // MODE with both CS.L and CS.D, or InTX and Abort: libipt leaves the check to its caller.
            (Ok(_), Err(_)) => prop_assert!(bytes[0] == 0x99 && bytes[1] & 3 == 3, "{:02x?}", bytes),
            (Err(_), Ok((packet, _))) => prop_assert_eq!(as_libipt_reads(packet), None),
            (Err(_), Err(_)) => {}
        }
    }
}

/// A program of a few instructions at 0x40_1000; its addresses are stated in the tests as `AT + n`.
const AT: u64 = 0x40_1000;
const CODE: [u8; 0x40] = {
    let mut code = [0x90; 0x40];
    let bytes: &[u8] = &[
        0x90, // 00 nop
        0x75, 0x03, // 01 jnz 06
        0x90, // 03 nop
        0xeb, 0x03, // 04 jmp 09
        0xff, 0xe0, // 06 jmp *%rax
        0x90, // 08 nop
        0xe8, 0x12, 0x00, 0x00, 0x00, // 09 call 20
        0x0f, 0x05, // 0e syscall
        0xff, 0xd0, // 10 call *%rax
        0x74, 0xec, // 12 jz 00
        0xeb, 0xfa, // 14 jmp 10
    ];
    let mut at = 0;
    while at < bytes.len() {
        code[at] = bytes[at];
        at += 1;
    }
    code[0x21] = 0xc3; // 20 nop; 21 ret
    code
};

struct Case {
    trace: Vec<u8>,
    last_ip: LastIp,
}

impl Case {
    fn new() -> Self {
        Self { trace: Vec::new(), last_ip: LastIp(0) }
    }

    fn add(mut self, packet: Packet) -> Self {
        encode(&packet, &mut self.trace);
        self
    }

    fn ip(mut self, kind: fn(IpPayload) -> Packet, offset: u64) -> Self {
        let payload = IpPayload::compress(self.last_ip, AT + offset);
        self.last_ip.update(payload);
        self.add(kind(payload))
    }

    fn tnt(self, outcomes: &str) -> Self {
        let bits = outcomes.bytes().fold(0, |bits, outcome| bits << 1 | u64::from(outcome == b'T'));
        self.add(Packet::ShortTnt(TntBits { bits, count: outcomes.len() as u8 }))
    }

    /// PSB+ with the flow at an offset.
    fn psb(mut self, offset: u64) -> Self {
        self.last_ip = LastIp(0);
        self.add(Packet::Psb)
            .add(Packet::ModeExec { mode: ExecMode::Bits64, interrupt_flag: false })
            .ip(Packet::Fup, offset)
            .add(Packet::PsbEnd)
    }

    fn edges(&self) -> Edges {
        let images = images();
        let space = space();
        Session::new(&self.trace, &images, &space, &PtConfig::default()).edges().unwrap()
    }

    /// These rows, and nothing failed.
    #[track_caller]
    fn check(&self, want: &[Row], instructions: u64) {
        let edges = self.edges();
        assert_eq!(edges.failures, []);
        assert_eq!(rows(&edges), want);
        assert_eq!(edges.instructions, instructions);
        assert_eq!((edges.odd, edges.untold), (vec![], vec![]));
    }
}

/// Kind, from, to, taken, not taken; addresses as offsets.
type Row = (EdgeKind, Option<u64>, Option<u64>, u64, u64);

fn rows(edges: &Edges) -> Vec<Row> {
    let offset = |addr: Option<crate::profile::CodeAddr>| addr.map(|addr| addr.addr - AT);
    edges
        .rows
        .iter()
        .map(|row| (row.kind, offset(row.from), offset(row.to), row.taken, row.not_taken))
        .collect()
}

fn images() -> Images<'static> {
    let mut images = Images::default();
    images.push(CodeImage::new(vec![CodeRegion { start: Svma(0x1000), bytes: &CODE }]));
    images
}

fn space() -> AddressSpace {
    AddressSpace::new([Mapping {
        start: Ip(AT),
        end: Ip(AT + CODE.len() as u64),
        image: crate::units::ImageId(0),
        svma: Svma(0x1000),
    }])
}

#[test]
fn branches_calls_and_compressed_returns() {
    Case::new()
        .psb(0)
        // 01 not taken, jmp 09, call 20, ret compressed; syscall to user space only.
        .tnt("NT")
        .add(Packet::TipPgd(IpPayload::SUPPRESSED))
        .ip(Packet::TipPge, 0x10)
        // call *%rax to 20, ret uncompressed, 12 not taken, jmp 10.
        .ip(Packet::Tip, 0x20)
        .ip(Packet::Tip, 0x12)
        .tnt("N")
        .ip(Packet::Tip, 0x00)
        // 01 taken, jmp *%rax to the jz, which is taken; the nop behind it is not known to have run.
        .tnt("T")
        .ip(Packet::Tip, 0x12)
        .tnt("T")
        .check(
            &[
                (Jcc, Some(0x01), Some(0x06), 1, 1),
                (Jcc, Some(0x12), Some(0x00), 1, 1),
                (Jmp, Some(0x04), Some(0x09), 1, 0),
                (Jmp, Some(0x14), Some(0x10), 1, 0),
                (Call, Some(0x09), Some(0x20), 1, 0),
                (JmpInd, Some(0x06), Some(0x12), 1, 0),
                (CallInd, Some(0x10), Some(0x00), 1, 0),
                (CallInd, Some(0x10), Some(0x20), 1, 0),
                (Ret, Some(0x21), Some(0x0e), 1, 0),
                (Ret, Some(0x21), Some(0x12), 1, 0),
                (Syscall, Some(0x0e), None, 1, 0),
                (Resume, None, Some(0x10), 1, 0),
            ],
            // 00 01 03 04 09 20 21 0e | 10 20 21 12 14 10 | 00 01 06 12
            8 + 6 + 4,
        );
}

#[test]
fn events_cut_a_run_and_keep_its_branches() {
    Case::new()
        .psb(0)
        .tnt("N")
        // An interrupt in the callee, whose handler is traced: jmp 09 and call 20 were executed before.
        .ip(Packet::Fup, 0x21)
        .ip(Packet::Tip, 0x03)
        // The handler is left by a signal at once, and tracing goes off.
        .ip(Packet::Fup, 0x03)
        .add(Packet::TipPgd(IpPayload::SUPPRESSED))
        .ip(Packet::TipPge, 0x21)
        .ip(Packet::Tip, 0x0e)
        .check(
            &[
                (Jcc, Some(0x01), Some(0x06), 0, 1),
                (Jmp, Some(0x04), Some(0x09), 1, 0),
                (Call, Some(0x09), Some(0x20), 1, 0),
                (Ret, Some(0x21), Some(0x0e), 1, 0),
                (Async, Some(0x03), None, 1, 0),
                (Async, Some(0x21), Some(0x03), 1, 0),
                (Resume, None, Some(0x21), 1, 0),
            ],
            7, // 00 01 03 04 09 20 | 21
        );
}

#[test]
fn a_psb_hides_no_edge_and_makes_none() {
    // The PSB+ comes between the two halves of a run, before and behind a direct jump's and a conditional branch's
    // target.
    for (at, before) in [(0x03, "N"), (0x09, "N"), (0x20, "N"), (0x21, "N"), (0x06, "T")] {
        let cut = Case::new().psb(0).tnt(before).psb(at).ip(Packet::Tip, 0x0e).edges();
        let whole = Case::new().psb(0).tnt(before).ip(Packet::Tip, 0x0e).edges();
        assert_eq!(cut.failures, []);
        assert_eq!(cut, whole, "PSB at {at:x}");
    }
}

#[test]
fn an_overflow_is_a_gap_with_a_known_end() {
    let edges = Case::new()
        .psb(0)
        .tnt("N")
        .ip(Packet::Tip, 0x0e) // the ret
        .psb(0x0e)
        .add(Packet::Ovf)
        .add(Packet::Fup(IpPayload::with_form(crate::packet::IpBytes::Sext48, AT + 0x12)))
        .tnt("T")
        .edges();
    assert_eq!(edges.failures, []);
    assert_eq!(
        rows(&edges),
        [
            (Jcc, Some(0x01), Some(0x06), 0, 1),
            (Jcc, Some(0x12), Some(0x00), 1, 0),
            (Jmp, Some(0x04), Some(0x09), 1, 0),
            (Call, Some(0x09), Some(0x20), 1, 0),
            (Ret, Some(0x21), Some(0x0e), 1, 0),
        ]
    );
    // Without the status packets between, libipt does not say where the last branch led.
    let edges = Case::new().psb(0).tnt("N").add(Packet::Ovf).ip(Packet::TipPge, 0x10).edges();
    assert_eq!(rows(&edges), []);
    assert_eq!(edges.untold, [Ip(AT + 0x01)]);
}

#[test]
fn damage_ends_at_the_next_psb() {
    let edges = Case::new()
        .psb(0)
        .tnt("T")
        .ip(Packet::Tip, 0x1000) // jmp *%rax to where no code is
        .psb(0x12)
        .tnt("T")
        .add(Packet::Tip(IpPayload::SUPPRESSED))
        .psb(0x12)
        .tnt("N")
        .edges();
    let errors: Vec<_> = edges.failures.iter().map(|failure| (failure.error, failure.ip)).collect();
    assert_eq!(errors[0], (PtError::NOMAP, Some(Ip(AT + 0x1000))));
    assert_eq!(errors.len(), 2);
    assert_eq!(
        rows(&edges),
        [
            (Jcc, Some(0x01), Some(0x06), 1, 0),
            (Jcc, Some(0x12), Some(0x00), 1, 1),
            (JmpInd, Some(0x06), Some(0x1000), 1, 0),
        ]
    );
}

#[test]
fn a_loop_that_needs_no_trace_ends() {
    // 04 jmp 09, made a jmp 04.
    let mut code = CODE;
    code[0x05] = 0xfe;
    let mut images = Images::default();
    images.push(CodeImage::new(vec![CodeRegion { start: Svma(0x1000), bytes: &code }]));
    let case = Case::new().psb(0).tnt("N").ip(Packet::Fup, 0x09).ip(Packet::Tip, 0x10);
    let (space, config) = (space(), PtConfig::default());
    let session = Session::new(&case.trace, &images, &space, &config);
    let errors = |failures: Vec<super::Failure>| failures.into_iter().map(|it| it.error).collect::<Vec<_>>();
    assert_eq!(errors(session.edges().unwrap().failures), [PtError::ENDLESS_LOOP]);
    assert_eq!(errors(session.walk().unwrap().failures), [PtError::ENDLESS_LOOP]);
}

#[test]
fn file_sections_and_images_give_the_same() {
    let case = Case::new().psb(0).tnt("N").ip(Packet::Tip, 0x0e).add(Packet::TipPgd(IpPayload::SUPPRESSED));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, &[&[0; 24], &CODE[..]].concat()).unwrap();
    let section =
        FileSection { path: file.path().to_owned(), offset: 24, size: CODE.len() as u64, address: Ip(AT) };
    let cache = SectionCache::new(std::slice::from_ref(&section)).unwrap();
    // Classes of instructions come from the images, libipt's code from the file.
    let (images, space, config) = (images(), space(), PtConfig::default());
    let session = Session::new(&case.trace, &images, &space, &config).with_sections(&cache);
    assert_eq!(session.edges().unwrap(), case.edges());
    let (no_images, nothing) = (Images::default(), AddressSpace::new([]));
    let walk = Session::new(&case.trace, &no_images, &nothing, &config).with_sections(&cache).walk().unwrap();
    assert_eq!((walk.instructions, walk.failures), (8, vec![]));
    assert!(walk.blocks > 0);
    let missing = FileSection { path: "/nonexistent".into(), ..section };
    assert!(SectionCache::new(&[missing]).is_err());
}

#[test]
fn an_empty_trace_has_no_flow() {
    let (images, space, config) = (images(), space(), PtConfig::default());
    let session = Session::new(&[], &images, &space, &config);
    assert_eq!(session.edges(), Ok(Edges::default()));
    assert_eq!(session.walk().map(|walk| walk.blocks), Ok(0));
    assert_eq!(session.packets().unwrap().count(), 0);
}

#[test]
fn stretches_end_where_bytes_are_missing() {
    let piece = |bytes, break_before| Piece { offset: AuxOffset(0), bytes, break_before, reference: None };
    let stream = TraceStream {
        pieces: vec![
            piece(&[1, 2], Some(Break::Start)),
            piece(&[3], None),
            piece(&[4], Some(Break::Missing)),
        ],
    };
    assert_eq!(stretches(&stream), [&[1, 2, 3][..], &[4]]);
}
