//! No bytes make the walkers slow: traces of nothing but the dearest packets, over code of nothing but straight runs and
//! circles.

mod kit;

use kit::decode::{How, Subject, pieces};
use kit::program::{Image, Mapped, Program};
use kit::wire::{IpKind, Wire};
use ptflow_decoder::config::PtConfig;
use ptflow_decoder::walk::Engine;
use std::time::Instant;

type Packets<'a> = &'a dyn Fn(&mut Wire);

#[test]
fn no_trace_takes_long() {
    const BASE: u64 = 0x40_0000;
    const RUN: u64 = 5000;
    // Straight code; a jump to itself; calls that go round; a RET.
    let circle = [0xe8, 0, 0, 0, 0, 0xe8, 0xf6, 0xff, 0xff, 0xff];
    let bytes = [&vec![0x90; RUN as usize][..], &[0xeb, 0xfe], &circle, &[0xc3]].concat();
    let mapped = Mapped { image: 0, start: BASE, end: BASE + bytes.len() as u64, svma: 0 };
    let image = Image { svma: 0, bytes, mode: 64 };
    let program = Program { images: vec![image], mapped: vec![mapped], ..Program::default() };
    let subject = Subject::new(&program, &PtConfig::default(), |_| true);
    let to = |offset: u64| move |wire: &mut Wire, kind| wire.ip(kind, 3, BASE + offset);
    let (straight, itself, calls, ret) = (to(0), to(RUN), to(RUN + 2), to(RUN + 12));
    let psb_plus = |wire: &mut Wire| {
        wire.psb();
        straight(wire, IpKind::Fup);
        wire.mode_exec(64, true);
        wire.psbend();
    };
    let dear: [(&str, Packets<'_>); 13] = [
        ("psb", &Wire::psb),
        ("psb+", &psb_plus),
        ("psb+ without end", &|wire| {
            wire.psb();
            straight(wire, IpKind::Fup);
        }),
        ("ovf", &Wire::ovf),
        ("jump to itself", &|wire| {
            itself(wire, IpKind::Pge);
            wire.tnt8(&[true]);
        }),
        ("calls in a circle", &|wire| {
            calls(wire, IpKind::Pge);
            wire.tnt64(&[true; 47]);
        }),
        ("event out of a circle", &|wire| {
            calls(wire, IpKind::Fup);
            ret(wire, IpKind::Fup);
        }),
        ("tip from a straight run", &|wire| straight(wire, IpKind::Tip)),
        ("events in a straight run", &|wire| {
            ret(wire, IpKind::Fup);
            straight(wire, IpKind::Tip);
        }),
        ("modes", &|wire| {
            wire.mode_exec(32, true);
            straight(wire, IpKind::Tip);
            wire.mode_exec(64, true);
            straight(wire, IpKind::Tip);
        }),
        ("lost flow", &|wire| {
            ret(wire, IpKind::Tip);
            wire.tnt8(&[false]);
        }),
        ("ptwrite", &|wire| wire.ptw(1, false, false)),
        ("pebs", &|wire| {
            wire.bep(true);
            itself(wire, IpKind::Fup);
        }),
    ];
    for (name, packets) in dear {
        let mut wire = Wire::default();
        psb_plus(&mut wire);
        while wire.bytes.len() < 30_000 {
            packets(&mut wire);
        }
        let stream = pieces(&wire.bytes, &[]);
        for (engine, unit_bytes) in [(Engine::Careful, 2 << 20), (Engine::Fast, 1)] {
            let start = Instant::now();
            subject.flow(&stream, How { engine, unit_bytes, pool: 1 });
            // Of a walk that takes the square of this, days would pass.
            let seconds = start.elapsed().as_secs_f64();
            println!("{name}, {engine:?}: {seconds:.2} s");
            assert!(seconds < 10.0, "{name}, {engine:?}: {seconds} s");
        }
    }
}
