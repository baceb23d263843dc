//! What the instruction counts of `tests/instructions.rs` are taken of: `gate NAME` decodes one small synthetic trace in one
//! way. Everything that is not to be counted happens outside of `measured`; valgrind
//! counts inside only. `gate clocked prepare` does everything but the decoding.

mod kit;

use kit::{Recorded, measured};
use ptflow_bench_traces::options::PtOptions;
use ptflow_decoder::packet::lexer::{BlockContext, lex};
use ptflow_decoder::walk::Engine;
use std::hint::black_box;

fn main() {
    let name = std::env::args().nth(1).unwrap_or_default();
    let is_run = std::env::args().nth(2).is_none();
    let base = PtOptions::default();
    let cyc = PtOptions { cyc: true, ..base };
    let quiet = PtOptions { no_tsc: true, ..base };
    match name.as_str() {
        // Every kind of packet that is frequent, one by one.
        "lexer" => lexer(&Recorded::new(cyc, 30, 1 << 20)),
        "careful" => profile(&Recorded::new(base, 30, 1 << 15), Engine::Careful),
        // The same ways again and again: windows.
        "windows" => profile(&Recorded::new(base, 0, 1 << 20), Engine::Fast),
        // By chance, each CYC another: stripped and walked in bulk.
        "bulk" => profile(&Recorded::new(cyc, 60, 1 << 19), Engine::Fast),
        "bulk-no-timing" => profile(&Recorded::new(quiet, 60, 1 << 18), Engine::Fast),
        "clocked" => clocked(&Recorded::new(base, 30, 1 << 18), is_run),
        "clocked-cyc" => clocked(&Recorded::new(cyc, 30, 1 << 18), is_run),
        _ => {
            eprintln!("usage: gate lexer|careful|windows|bulk|bulk-no-timing|clocked|clocked-cyc [prepare]");
            std::process::exit(2);
        }
    }
}

fn lexer(recorded: &Recorded) {
    measured(|| {
        let (mut at, mut context) = (0, BlockContext::default());
        while let Ok((packet, len)) = lex(&recorded.trace[at..], &mut context) {
            black_box(packet);
            at += len;
        }
        assert_eq!(at, recorded.trace.len());
    });
}

fn profile(recorded: &Recorded, engine: Engine) {
    kit::profile(recorded, engine, |counts| {
        assert!(counts.ledgers.iter().all(|ledger| ledger.losses.is_empty()) && counts.rows.len() > 1000);
    });
}

fn clocked(recorded: &Recorded, is_run: bool) {
    let frames = kit::clocked(recorded, is_run);
    assert!(frames > 1000 || !is_run, "{frames} frames");
}
