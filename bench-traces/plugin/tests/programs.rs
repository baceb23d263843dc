//! Real programs, recorded: what we decode is what the recorder saw, and perf and libipt see the same.

mod kit;

use kit::{compile, counts, record};
use ptflow_bench_traces::options::{IpForm, PtOptions, TntForm};
use std::process::Command;

#[test]
fn programs_of_the_system() {
    record(&["/bin/ls", "-la", "/"], PtOptions::default()).check();
    record(&["/usr/bin/gzip", "-9", "-c", "/bin/ls"], PtOptions { cyc: true, ..PtOptions::default() })
        .check();
    record(&["/bin/bash", "-c", "for i in 1 2 3; do echo $((i * 7)); done"], PtOptions::default()).check();
}

/// A program that closes standard output and error at its end is counted too.
#[test]
fn counts_are_those_of_a_recording() {
    let recording = record(&["/bin/true"], PtOptions::default());
    let counts = counts(&["/bin/true"]);
    assert_eq!(counts.instructions, recording.total("instructions"));
    let taken = ["jcc", "jmp", "call", "jmp_ind", "call_ind", "ret"];
    assert_eq!(counts.taken_branches, taken.map(|kind| recording.total(kind)).iter().sum::<u64>());
}

/// Every option of the trace, on a program that does everything at once.
#[test]
fn a_nasty_program_with_every_option() {
    let program = compile("nasty.c", &[]);
    let base = PtOptions::default();
    let variants = [
        base,
        PtOptions { cyc: true, psb_period: 0, ..base },
        PtOptions { cyc: true, cyc_thresh: 7, mtc_period: 0, ..base },
        PtOptions { no_tsc: true, psb_period: 5, ..base },
        PtOptions { no_mtc: true, noretcomp: true, ..base },
        PtOptions { tnt: TntForm::Long, mtc_period: 9, ..base },
        PtOptions { tnt: TntForm::Mixed, ip: IpForm::Mixed, psb_period: 1, ..base },
        PtOptions { ip: IpForm::Full, defer_tips: true, ..base },
        PtOptions { restarts: 400, cyc: true, ..base },
    ];
    for options in variants {
        eprintln!("{options:?}");
        record(&[program.path().to_str().expect("UTF-8")], options).check();
    }
}

/// A signal that comes right behind a RET is no return to the handler.
#[test]
fn signals_behind_returns() {
    let program = compile("returning.c", &["-static", "-no-pie"]);
    let path = program.path().to_str().expect("UTF-8");
    let symbols = Command::new("nm").arg(path).output().expect("nm runs: install Debian's package binutils");
    let symbols = String::from_utf8_lossy(&symbols.stdout).into_owned();
    let handler = symbols.lines().find_map(|line| line.strip_suffix(" T on_signal")).expect("a symbol");
    let handler = format!("0x{}", handler.trim_start_matches('0'));
    let recording = record(&[path], PtOptions::default());
    recording.check();
    let truth =
        std::fs::read_to_string(recording.folder().join("truth.edges")).expect("the recorder wrote it");
    let returns =
        truth.lines().filter(|row| row.starts_with("ret\t") && row.split('\t').nth(2) == Some(&*handler));
    assert_eq!(returns.collect::<Vec<_>>(), [""; 0]);
    assert!(recording.total("async") > 50);
}

#[test]
fn a_static_program() {
    let program = compile("nasty.c", &["-static", "-O2"]);
    record(&[program.path().to_str().expect("UTF-8")], PtOptions { cyc: true, ..PtOptions::default() })
        .check();
}

/// Interrupts at any instruction are no loss: all decoders see all.
#[test]
fn interrupts_at_any_instruction() {
    let program = compile("nasty.c", &["-static"]);
    let options = PtOptions { interrupts: 200, cyc: true, psb_period: 1, ..PtOptions::default() };
    let recording = record(&[program.path().to_str().expect("UTF-8")], options);
    recording.check();
}

/// Kernel code that no image holds, packets lost inside the CPU, buffers that were full.
#[test]
fn losses_are_told_and_nothing_is_invented() {
    let program = compile("nasty.c", &["-static"]);
    let base = PtOptions { psb_period: 2, ..PtOptions::default() };
    for options in [
        PtOptions { kernel: 500, ..base },
        PtOptions { overflows: 3_000, ..base },
        PtOptions { truncations: 20_000, ..base },
        PtOptions { kernel: 900, overflows: 7_000, truncations: 50_000, interrupts: 800, cyc: true, ..base },
    ] {
        eprintln!("{options:?}");
        let recording = record(&[program.path().to_str().expect("UTF-8")], options);
        recording.explained();
        let lacking = recording.native_lacks_only_the_unknowable();
        lacking.unwrap_or_else(|difference| panic!("{difference}"));
    }
}
