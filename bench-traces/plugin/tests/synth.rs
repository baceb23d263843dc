//! Synthetic captures: three decoders give back what was walked, in every form of trace.

mod kit;

use kit::synthesize;
use ptflow_bench_traces::options::{IpForm, PtOptions, TntForm};

const PYTHON: &str = "/usr/bin/python3";
const BASH: &str = "/bin/bash";
const PERL: &str = "/usr/bin/perl";

#[test]
fn every_decoder_gives_back_the_walk() {
    synthesize(&[PYTHON], 200_000, |_| {}).0.check();
}

#[test]
fn in_every_form_of_trace() {
    let base = PtOptions::default();
    let variants = [
        PtOptions { cyc: true, psb_period: 0, ..base },
        PtOptions { no_tsc: true, noretcomp: true, ..base },
        PtOptions { tnt: TntForm::Mixed, ip: IpForm::Mixed, defer_tips: true, mtc_period: 0, ..base },
    ];
    for (seed, options) in variants.into_iter().enumerate() {
        let walk = synthesize(&[BASH], 150_000, |args| {
            args.options = options;
            args.seed = seed as u64;
        });
        walk.0.check();
    }
}

#[test]
fn stretches_send_what_their_blocks_would() {
    let base = PtOptions::default();
    let variants = [
        base,
        PtOptions { no_tsc: true, ..base },
        PtOptions { mtc_period: 0, psb_period: 0, ..base },
        PtOptions { noretcomp: true, no_mtc: true, ..base },
    ];
    for (seed, options) in variants.into_iter().enumerate() {
        // A log wants every block, one by one, and each outcome on its own.
        let [whole, blocks] = [false, true].map(|log| {
            synthesize(&[PERL], 400_000, |args| {
                (args.log, args.options, args.seed, args.threads) = (log, options, seed as u64, 2);
            })
            .0
        });
        for name in ["perf.data", "truth.edges", "totals.json"] {
            let bytes = [&whole, &blocks].map(|walk| std::fs::read(walk.folder().join(name)).expect("there"));
            assert!(bytes[0] == bytes[1], "{name}, {options:?}");
        }
        blocks.check();
    }
}

#[test]
fn a_made_up_program_is_walked_nearly_whole() {
    let (walk, made) = synthesize(&[], 400_000, |args| (args.made_up, args.random) = (100_000, 30));
    walk.check();
    assert!((85_000..115_000).contains(&made.walked.1), "{made:?}");
}

#[test]
fn decided_anew() {
    synthesize(&[BASH], 150_000, |args| args.afresh = true).0.check();
}

#[test]
fn threads_files_and_behaviour() {
    let walk = synthesize(&[BASH, PERL], 300_000, |args| {
        (args.threads, args.first) = (7, 60);
        (args.depth, args.trips, args.random, args.targets) = (150, 3, 60, 16);
    });
    walk.0.check();
    assert!(walk.0.total("jmp_ind") > 0 && walk.0.total("call_ind") > 0);
    let sizes = walk.0.stream_sizes();
    assert_eq!(sizes.len(), 7);
    assert!(sizes[0] > 170_000 && sizes[1..].iter().all(|size| (15_000..30_000).contains(size)), "{sizes:?}");
}

#[test]
fn the_seed_decides_everything() {
    let bytes = |seed: u64| {
        let walk = synthesize(&[BASH], 100_000, |args| (args.seed, args.threads) = (seed, 6)).0;
        ["perf.data", "truth.edges"].map(|name| std::fs::read(walk.folder().join(name)).expect("it is there"))
    };
    let first = bytes(5);
    assert!(first == bytes(5));
    let other = bytes(6);
    assert!(first[0] != other[0] && first[1] != other[1]);
}

#[test]
fn the_size_and_the_code_are_as_asked() {
    let (_, all) = synthesize(&[PERL], 1 << 20, |args| args.log = false);
    let (part, some) = synthesize(&[PERL], 1 << 20, |args| (args.log, args.code) = (false, 60_000));
    for made in [all, some] {
        assert!((1 << 20..(1 << 20) + 40_000).contains(&made.bytes), "{made:?}");
    }
    assert!(
        some.walked.1 <= 70_000 && some.walked.1 > 6_000 && all.walked.1 > 2 * some.walked.1,
        "{all:?} {some:?}"
    );
    part.libipt_equals_truth().expect("libipt agrees");
}

#[test]
fn copies_are_threads_of_their_own() {
    let (walk, made) = synthesize(&[PERL], 300_000, |args| {
        (args.log, args.threads, args.copies) = (false, 2, 3);
    });
    assert!((300_000..420_000).contains(&made.bytes), "{made:?}");
    let sizes = walk.stream_sizes();
    assert!(
        sizes.len() == 6 && sizes[0] == sizes[2] && sizes[3] == sizes[5] && sizes[0] != sizes[3],
        "{sizes:?}"
    );
    walk.perf_equals_truth().expect("perf agrees");
    walk.libipt_equals_truth().expect("libipt agrees");
}
