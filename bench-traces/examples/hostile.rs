//! What `tests/hostile.rs` takes its figures of: `hostile CASE profile|lanes|calls|nothing BYTES` makes a trace that means harm,
//! decodes it, and prints its peak of memory.

mod kit;

use kit::{Recorded, START, clocked, config, profile};
use ptflow_bench_traces::options::PtOptions;
use ptflow_bench_traces::synth::made_up::MadeUp;
use ptflow_decoder::packet::encoder::encode;
use ptflow_decoder::packet::{ExecMode, IpBytes, IpPayload, Packet, TntBits};
use ptflow_decoder::walk::Engine;

/// Bytes of code where addresses matter.
const CODE: u64 = 1 << 12;
/// Where each address leads a long way.
const LONG: u64 = 1 << 6;
/// Bytes to the next PSB: without any, a trace is one unit, and what is kept of a unit grows with it.
const PSB_PERIOD: usize = 64 << 10;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [case, job, bytes] = &arguments[..] else { panic!("hostile CASE profile|lanes|calls|nothing BYTES") };
    let bytes = bytes.parse().expect("a number of bytes");
    let recorded = make(case, bytes);
    match job.as_str() {
        "profile" => edges(&recorded, Engine::Fast),
        // Units side by side as soon as possible, and stopped after every few packets.
        "lanes" => edges(&recorded, Engine::Interrupted(7)),
        "calls" => drop(clocked(&recorded, true)),
        _ => {}
    }
    let status = std::fs::read_to_string("/proc/self/status").expect("this is Linux");
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).expect("the kernel tells");
    println!("{peak}");
}

fn edges(recorded: &Recorded, engine: Engine) {
    profile(recorded, engine, |counts| {
        let ledger = &counts.ledgers[0];
        assert_eq!(ledger.decoded + ledger.lost(), recorded.trace.len() as u64);
    });
}

fn make(case: &str, bytes: usize) -> Recorded {
    let no_time = PtOptions { no_tsc: true, psb_period: 0, ..PtOptions::default() };
    match case {
        // Every window is another.
        "windows" => Recorded::new(no_time, 100, bytes),
        // The same, and every so often it does not fit the code: what was walked ahead is taken back.
        "desyncs" => {
            let mut recorded = Recorded::new(no_time, 100, bytes);
            recorded.trace.iter_mut().skip(1300).step_by(1300).for_each(|byte| *byte ^= 0x30);
            recorded
        }
        "cycles" => Recorded::new(PtOptions { cyc: true, psb_period: 0, ..no_time }, 100, bytes),
        "psbs" => written(&returns(), bytes, |wire, _| wire.psb(START, |_| {})),
        "psbs-with-time" => written(&returns(), bytes, |wire, round| {
            wire.psb(START, |wire| {
                wire.put(Packet::Tsc { tsc: round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 8 });
                wire.put(Packet::Tma { ctc: round as u16, fast: 3 });
            });
            wire.tip(START + round % CODE);
        }),
        // A target at every byte of the code, in an order that has nothing to do with the addresses.
        "targets" => written(&returns(), bytes, |wire, round| {
            wire.tip(START + round.wrapping_mul(0x9e37_79b1) % CODE);
        }),
        // The same, and from each it is a long way to the next branch.
        "long-blocks" => written(&straight(), bytes, |wire, round| {
            wire.tip(START + round.wrapping_mul(0x9e37_79b1) % LONG);
        }),
        "nowhere" => written(&returns(), bytes, |wire, round| {
            wire.tip(round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 17);
            if round % 7 == 0 {
                wire.psb(START, |_| {});
            }
        }),
        // Code that jumps to itself.
        "circles" => written(&[0xeb, 0xfe].repeat(LONG as usize / 2), bytes, |wire, round| {
            wire.tip(START + round * 2 % LONG);
        }),
        // A function that calls itself and never returns: `je` to the next instruction, `call` to the first.
        "calls" => {
            let code = [&[0x0f, 0x84, 0, 0, 0, 0, 0xe8, 0xf5, 0xff, 0xff, 0xff][..], &[0x90; 64]].concat();
            written(&code, bytes, |wire, round| {
                wire.put(Packet::ShortTnt(TntBits {
                    bits: round.wrapping_mul(0x9e37_79b1) >> 7 & 63,
                    count: 6,
                }));
            })
        }
        "overflows" => written(&returns(), bytes, |wire, round| {
            wire.put(Packet::Ovf);
            wire.ip(Packet::Fup, START + round % CODE);
            wire.tip(START + round * 3 % CODE);
        }),
        // Tracing stops all the time, and only the first and the last packet tell when.
        "stops" => {
            let mut recorded = written(&returns(), bytes, |wire, round| {
                if round == 0 {
                    wire.put(Packet::Tsc { tsc: 1_000_000 });
                }
                wire.put(Packet::TipPgd(IpPayload::SUPPRESSED));
                wire.ip(Packet::TipPge, START);
            });
            encode(&Packet::Tsc { tsc: 1_000_000_000 }, &mut recorded.trace);
            recorded
        }
        // Time runs to and fro.
        "times" => written(&returns(), bytes, |wire, round| {
            wire.put(Packet::Tsc { tsc: round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 8 });
            wire.put(Packet::Cbr { ratio: round as u8 });
            wire.put(Packet::Mtc { ctc: (round * 31) as u8 });
            wire.put(Packet::Cyc { cycles: round % 1000 });
            wire.tip(START + round % CODE);
        }),
        "noise" => {
            let mut state = 1u64;
            let code = MadeUp::new(1, START, 100).bytes;
            written(&code, bytes, |wire, round| {
                if round % 16 == 0 {
                    wire.psb(START + round % 1000, |_| {});
                }
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                wire.0.extend_from_slice(&state.to_be_bytes()[..5]);
            })
        }
        _ => panic!("no case {case}"),
    }
}

/// `ret` at every byte.
fn returns() -> Vec<u8> {
    vec![0xc3; CODE as usize]
}

/// `nop` at every byte, up to a `ret`.
fn straight() -> Vec<u8> {
    let mut code = vec![0x90; LONG as usize];
    code.extend([0xc3; 16]);
    code
}

/// A trace of the same again and again, each time told how often it was there before.
fn written(code: &[u8], bytes: usize, mut again: impl FnMut(&mut Wire, u64)) -> Recorded {
    let mut wire = Wire(Vec::new());
    wire.psb(START, |_| {});
    let mut next_psb = PSB_PERIOD;
    for round in 0.. {
        if wire.0.len() >= bytes {
            break;
        }
        if wire.0.len() >= next_psb {
            next_psb += PSB_PERIOD;
            wire.psb(START, |_| {});
        }
        again(&mut wire, round);
    }
    let whole = START..START + code.len() as u64;
    let code = MadeUp { start: START, bytes: code.to_vec(), functions: vec![whole] };
    Recorded { code, config: config(PtOptions { cyc: true, ..PtOptions::default() }), trace: wire.0 }
}

struct Wire(Vec<u8>);

impl Wire {
    fn put(&mut self, packet: Packet) {
        encode(&packet, &mut self.0);
    }

    fn ip(&mut self, packet: impl FnOnce(IpPayload) -> Packet, ip: u64) {
        self.put(packet(IpPayload::with_form(IpBytes::Sext48, ip)));
    }

    fn tip(&mut self, ip: u64) {
        self.ip(Packet::Tip, ip);
    }

    fn psb(&mut self, ip: u64, within: impl FnOnce(&mut Self)) {
        self.put(Packet::Psb);
        within(self);
        self.put(Packet::ModeExec { mode: ExecMode::Bits64, interrupt_flag: false });
        self.ip(Packet::Fup, ip);
        self.put(Packet::PsbEnd);
    }
}
