//! Times against the recorder's ordered truth: how far ours are off, with every way to record time, and that perf's are no
//! nearer.

mod kit;

use kit::{Recording, compile, record};
use ptflow_bench_traces::accuracy::{self, Accuracy};
use ptflow_bench_traces::options::{PtOptions, machine};
use ptflow_bench_traces::order::{self, Way};
use ptflow_decoder::walk::Engine;

/// A core cycle, the TSC's own step, and the nanosecond that perf's clock is told in.
fn quantum() -> f64 {
    let cycle = accuracy::true_ns(1);
    cycle + cycle * f64::from(machine::CORE_RATIO) / f64::from(machine::TSC_RATIO) + 1.0
}

/// One MTC period.
fn period(shift: u8) -> f64 {
    let tsc_ticks = u64::from(machine::TSC_CTC_RATIO.0) << shift;
    accuracy::true_ns(tsc_ticks * u64::from(machine::CORE_RATIO) / u64::from(machine::TSC_RATIO))
}

/// Our times, which are the same for every engine and number of threads, and in order. What is exact is exact in units of any
/// length; the shortest begin at each PSB.
fn measure(recording: &Recording) -> Accuracy {
    let way = |engine, threads, unit_bytes| Way { engine, threads, unit_bytes };
    let ours =
        |way| accuracy::ours(recording.folder(), way).unwrap_or_else(|error| panic!("{way:?}: {error:#}"));
    let found = ours(way(Engine::Fast, 2, 1 << 18));
    for other in [way(Engine::Careful, 1, 1 << 18), way(Engine::Interrupted(3), 7, 1 << 18)] {
        assert_eq!(ours(other), found, "{other:?}");
    }
    let mut short = ours(way(Engine::Fast, 2, 1));
    assert_eq!(short.cycles.1, found.cycles.1);
    assert!(short.exact.quantile(1.0) <= quantum());
    assert_eq!((short.backwards, found.backwards), (0, 0));
    found
}

/// Half of the branches, and all but one in a hundred, and all: no further off than perf's. With TSC packets alone the last
/// is a matter of luck: which of two waits between them was the long one, nothing tells either of us.
fn no_worse_than_perf(recording: &Recording, ours: &mut Accuracy, options: PtOptions) {
    let mut perf = accuracy::perf(recording.folder()).expect("perf lists what ran");
    assert_eq!(ours.ours.count(), perf.count());
    let all = if options.cyc || !options.no_mtc { 1.0 } else { 0.99 };
    for part in [0.5, 0.99, all] {
        let (ours, perf) = (ours.ours.quantile(part), perf.quantile(part));
        assert!(ours <= perf, "at {part}: {ours} ns, perf {perf} ns");
    }
}

#[test]
fn every_way_to_record_time() {
    let program = compile("nasty.c", &["-static"]);
    let base = PtOptions::default();
    // With the least share of branches whose time is exact, and the worst error.
    let variants = [
        (PtOptions { cyc: true, ..base }, 0.3, period(3)),
        (PtOptions { cyc: true, cyc_thresh: 7, mtc_period: 0, ..base }, 0.04, period(0)),
        (PtOptions { cyc: true, no_mtc: true, ..base }, 0.3, f64::INFINITY),
        (PtOptions { cyc: true, interrupts: 500, psb_period: 0, ..base }, 0.3, period(3)),
        (base, 0.0, period(3)),
        (PtOptions { mtc_period: 9, interrupts: 3_000, ..base }, 0.0, period(9)),
        (PtOptions { no_mtc: true, psb_period: 0, ..base }, 0.0, f64::INFINITY),
    ];
    for (options, exact, worst) in variants {
        eprintln!("{options:?}");
        let recording = record(&[program.path().to_str().expect("UTF-8")], options);
        recording.explained();
        let mut ours = measure(&recording);
        assert_eq!(ours.timeless, 0);
        assert!(ours.exact.quantile(1.0) <= quantum(), "exact: {} ns off", ours.exact.quantile(1.0));
        let share = ours.exact.count() as f64 / ours.ours.count() as f64;
        // The count of cycles is exact where the time is: the recorder's, but for what went by without tracing. Each time that
        // goes off, a threshold keeps back as many cycles as it has.
        let (counted, off) = ours.cycles;
        let kept_back = if options.cyc_thresh > 1 { ours.resumes << (options.cyc_thresh - 1) } else { 0 };
        assert!((counted > 0) == options.cyc && off <= kept_back, "{counted} counts of cycles, {off} off");
        assert!(share >= exact && (share > 0.0) == options.cyc, "{share} are exact");
        assert!(ours.worst <= worst + quantum(), "{} ns off, a period is {worst}", ours.worst);
        no_worse_than_perf(&recording, &mut ours, options);
    }
}

#[test]
fn without_tsc_there_is_no_time() {
    let program = compile("nasty.c", &["-static"]);
    let options = PtOptions { no_tsc: true, cyc: true, ..PtOptions::default() };
    let recording = record(&[program.path().to_str().expect("UTF-8")], options);
    let ours = measure(&recording);
    assert_eq!((ours.ours.count(), ours.exact.count()), (0, 0));
    assert!(ours.timeless > 1_000_000);
}

/// Whatever is lost, and however little is told of time.
#[test]
fn times_never_fall() {
    let program = compile("nasty.c", &["-static"]);
    let base = PtOptions {
        kernel: 2_000,
        overflows: 3_000,
        truncations: 10_000,
        psb_period: 0,
        ..PtOptions::default()
    };
    for options in [
        PtOptions { cyc: true, ..base },
        PtOptions { mtc_period: 9, ..base },
        PtOptions { no_mtc: true, restarts: 1_000, ..base },
    ] {
        let recording = record(&[program.path().to_str().expect("UTF-8")], options);
        for (engine, unit_bytes) in [(Engine::Fast, 1 << 12), (Engine::Careful, 1 << 18)] {
            let way = Way { engine, threads: 2, unit_bytes };
            let falls = order::falls(recording.folder(), way).expect("it decodes");
            assert_eq!(falls, 0, "{options:?} {way:?}");
        }
    }
}
