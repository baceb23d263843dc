use super::*;

fn config() -> PtConfig {
    PtConfig {
        mtc: true,
        mtc_period: 3,
        cyc: true,
        tsc_ctc_ratio: Some((80, 1)),
        max_nonturbo_ratio: 20,
        ..PtConfig::default()
    }
}

#[track_caller]
fn times(clock: Clock, ordinals: &[u64]) -> Vec<(u64, bool)> {
    let timeline = clock.finish();
    let mut reader = timeline.reader();
    ordinals
        .iter()
        .map(|ordinal| {
            let moment = reader.at(*ordinal).expect("a time");
            (moment.tsc.0, moment.exact)
        })
        .collect()
}

/// The manual's arithmetic, worked by hand: FC 17 TSC ticks and 5 crystal ticks since the last MTC edge; the next
/// edge is 8 crystal ticks of 80 TSC ticks behind that.
#[test]
fn mtc_lands_on_the_crystal_edge() {
    let mut clock = Clock::new(&config());
    clock.tsc(4_398_046_511_137, 0);
    clock.tma(0xccc8 + 5, 17);
    clock.mtc(((0xccc8u32 >> 3) + 1) as u8, 100);
    assert_eq!(times(clock, &[100]), [(4_398_046_511_137 - 17 - 5 * 80 + 8 * 80, false)]);
}

#[test]
fn cycles_fit_both_ends() {
    let mut clock = Clock::new(&config());
    clock.cyc(10);
    clock.tsc(1_000_000, 0);
    clock.tma(0, 0);
    clock.here(0);
    clock.cyc(100);
    clock.date(10);
    clock.cyc(300);
    clock.mtc(1, 50);
    // 640 ticks for 400 cycles: 100 cycles are 160 ticks.
    assert_eq!(
        times(clock, &[0, 5, 10, 30, 50]),
        [(1_000_000, false), (1_000_080, false), (1_000_160, true), (1_000_400, false), (1_000_640, false)]
    );
}

#[test]
fn untraced_time_takes_the_slack() {
    let mut clock = Clock::new(&config());
    clock.tsc(1_000, 0);
    clock.tsc(1_100, 100);
    clock.off(120);
    clock.tsc(900_000, 121);
    clock.tsc(900_079, 200);
    assert_eq!(
        times(clock, &[110, 120, 121, 160]),
        [(1_110, false), (1_120, false), (900_000, false), (900_039, false)]
    );
}

#[test]
fn the_upper_byte_comes_from_the_reference() {
    let mut clock = Clock::new(&config());
    clock.set_reference(Some(Tsc(0x0300_0000_0000_0010)));
    clock.tsc(0x00ff_ffff_ffff_fff0, 0);
    assert_eq!(clock.now(), Some(Tsc(0x02ff_ffff_ffff_fff0)));
    clock.tsc(0x20, 1);
    assert_eq!(clock.now(), Some(Tsc(0x0300_0000_0000_0020)));
}

#[test]
fn no_packet_no_time() {
    assert_eq!(Clock::new(&config()).finish().reader().at(5), None);
}

#[test]
fn long_mtc_periods_need_the_missing_bits() {
    let mut clock = Clock::new(&PtConfig { mtc_period: 9, ..config() });
    clock.tsc(10_000_000, 0);
    clock.tma(0xfe00, 0); // slice bits 0x7f of seven known bits
    clock.mtc(0x80, 10);
    assert_eq!(times(clock, &[10]), [(10_000_000 + 512 * 80, false)]);
}

/// Where between two transfers timing packets were sent is not known: they are spread evenly. A PSB+ says where.
#[test]
fn times_between_transfers() {
    let mut clock = Clock::new(&config());
    clock.tsc(1_000_000, 0);
    clock.tma(0, 0);
    clock.here(0);
    clock.date(100);
    for ctc in 1..=4 {
        clock.mtc(ctc, 100);
    }
    clock.date(200);
    clock.tsc(1_003_000, 200);
    clock.here(220);
    assert_eq!(
        times(clock, &[0, 60, 120, 140, 160, 180, 220]).iter().map(|time| time.0).collect::<Vec<_>>(),
        [1_000_000, 1_000_320, 1_000_640, 1_001_280, 1_001_920, 1_002_560, 1_003_000]
    );
}

/// A timing packet behind a branch is no word about that branch.
#[test]
fn a_branch_keeps_its_own_time() {
    let mut clock = Clock::new(&config());
    clock.cyc(0);
    clock.tsc(1_000_000, 0);
    clock.tma(0, 0);
    clock.cyc(100);
    clock.date(10);
    clock.cyc(300);
    clock.mtc(1, 10);
    clock.cyc(400);
    clock.mtc(2, 10);
    clock.cyc(400);
    clock.mtc(3, 20);
    // 640 ticks for each 400 cycles. The instruction behind begins when the second MTC was sent.
    assert_eq!(times(clock, &[10, 11, 20]), [(1_000_160, true), (1_001_280 + 64, false), (1_001_920, false)]);
}

/// The CYC counter runs on in what is lost, and the count is lost with it; the crystal clock's bits are not.
#[test]
fn after_an_overflow_the_crystal_goes_on() {
    let mut clock = Clock::new(&config());
    clock.cyc(0);
    clock.tsc(1_000_000, 0);
    clock.tma(0, 0);
    clock.cyc(400);
    clock.mtc(1, 10);
    clock.cyc(7);
    clock.overflow(10);
    clock.gap(10);
    clock.cyc(5);
    clock.mtc(9, 11); // eight periods on
    clock.cyc(100);
    clock.date(20);
    clock.date(30);
    clock.cyc(300);
    clock.mtc(10, 30);
    clock.date(40);
    clock.cyc(0);
    clock.tsc(1_006_500, 40);
    clock.cyc(10);
    clock.date(50);
    let timeline = clock.finish();
    let mut reader = timeline.reader();
    let mut at = |ordinal| reader.at(ordinal).map(|moment| (moment.tsc.0, moment.exact));
    assert_eq!(at(10), Some((1_000_640, false)));
    // Whole turns of the eight bits may be missing: the time is a good one, not a sure one.
    assert_eq!(at(20), Some((1_000_000 + 9 * 640 + 160, false)));
    // The MTC was sent somewhere from 30 to 40, say at 35.
    assert_eq!(at(30), Some((1_005_920 + 480 * 10 / 15, false)));
    assert_eq!(at(35), Some((1_000_000 + 10 * 640, false)));
    // The TSC makes it sure again; ten cycles at the last known rate of 1.6.
    assert_eq!(at(50), Some((1_006_516, true)));
}

/// Where tracing starts again the counter does too: no CYC stands before the TSC.
#[test]
fn cycles_start_again_with_tracing() {
    let mut clock = Clock::new(&PtConfig { mtc: false, ..config() });
    clock.cbr(20, 0);
    clock.cyc(0);
    clock.tsc(1_000, 0);
    clock.cyc(50);
    clock.date(10);
    clock.off(10);
    clock.tsc(90_000, 11);
    clock.cyc(7);
    clock.on(12);
    clock.cyc(40);
    clock.date(20);
    assert_eq!(times(clock, &[10, 12, 20]), [(1_050, true), (90_007, true), (90_047, true)]);
}

#[test]
fn a_cyc_in_front_of_no_transfer_dates_none() {
    let mut clock = Clock::new(&config());
    clock.cbr(20, 0);
    clock.cyc(0);
    clock.tsc(1_000, 0);
    clock.cyc(50);
    clock.pass(10);
    assert_eq!(times(clock, &[10]), [(1_050, false)]);
}

/// Twice the clock rate from the second CBR on.
#[test]
fn another_ratio_is_another_rate() {
    let mut clock = Clock::new(&PtConfig { mtc: false, ..config() });
    clock.cbr(20, 0);
    clock.cyc(0);
    clock.tsc(1_000, 0);
    clock.cyc(100);
    clock.cbr(40, 5);
    clock.cyc(100);
    clock.date(10);
    assert_eq!(times(clock, &[10]), [(1_150, true)]);
}

/// Three system calls of the same length between two times.
#[test]
fn interruptions_share_what_instructions_do_not_need() {
    let mut clock = Clock::new(&config());
    clock.tsc(1_000, 0);
    clock.tsc(1_100, 100);
    for off in [110, 120, 130] {
        clock.off(off);
    }
    clock.tsc(1_200 + 3_000, 200);
    assert_eq!(
        times(clock, &[100, 110, 111, 121, 131, 200]),
        [(1_100, false), (1_110, false), (2_111, false), (3_121, false), (4_131, false), (4_200, false)]
    );
}

/// Without a TMA an MTC tells nothing; TSC packets go on.
#[test]
fn no_tma_no_mtc() {
    let mut clock = Clock::new(&config());
    clock.tsc(1_000, 0);
    clock.mtc(77, 10);
    clock.tsc(3_000, 20);
    assert_eq!(times(clock, &[0, 10, 20]), [(1_000, false), (2_000, false), (3_000, false)]);
}

/// Behind the last packet instructions go on at the usual rate, but not past the time at which the trace was read; and
/// what the unit before reached is not undone.
#[test]
fn units_follow_each_other() {
    let mut clock = Clock::new(&config());
    clock.set_reference(Some(Tsc(2_150)));
    clock.tsc(1_000, 0);
    clock.here(0);
    clock.tsc(2_000, 100);
    clock.here(100);
    let timeline = clock.finish();
    let mut reader = timeline.reader();
    assert_eq!([110, 150].map(|at| reader.at(at).map(|moment| moment.tsc.0)), [Some(2_100), Some(2_150)]);
    assert_eq!(timeline.end(150), 2_150);
    let mut clock = Clock::new(&config());
    clock.tsc(2_140, 0);
    clock.here(0);
    clock.tsc(2_160, 10);
    clock.here(10);
    let mut next = clock.finish();
    next.not_before(2_150);
    let mut reader = next.reader();
    assert_eq!([0, 10].map(|at| reader.at(at).map(|moment| moment.tsc.0)), [Some(2_150), Some(2_160)]);
}

#[track_caller]
fn cycles(clock: Clock, ordinals: &[u64]) -> (Vec<Option<u64>>, Option<u64>) {
    let timeline = clock.finish();
    let mut reader = timeline.reader();
    (ordinals.iter().map(|ordinal| reader.cycles_at(*ordinal)).collect(), timeline.cycles())
}

/// CYCs before transfers count up to them; one before an MTC counts for the next transfer; in between they are spread over
/// instructions.
#[test]
fn cycles_are_counted_up_to_transfers() {
    let mut clock = Clock::new(&config());
    clock.here(0);
    clock.cyc(30);
    clock.date(10);
    clock.cyc(5);
    clock.mtc(1, 10);
    clock.date(20);
    clock.cyc(15);
    clock.date(30);
    clock.cyc(7);
    clock.seam(35);
    // The next unit's PSB+.
    clock.cyc(100);
    clock.here(35);
    assert_eq!(
        cycles(clock, &[0, 5, 10, 15, 20, 30, 32, 35, 40]),
        ([0, 15, 30, 35, 40, 50, 52, 57, 57].map(Some).to_vec(), Some(57))
    );
    let mut clock = Clock::new(&config());
    clock.tsc(1_000_000, 0);
    clock.date(100);
    clock.off(100);
    assert_eq!(cycles(clock, &[0, 100]), (vec![None, None], None));
}

/// The counter runs on while tracing is off, but those cycles are of no instruction that is known.
/// What passes behind a unit's last transfer, up to the PSB that ends the unit, is not that transfer's.
#[test]
fn the_last_transfer_keeps_its_count() {
    for stop in [Clock::seam, Clock::off] {
        let mut clock = Clock::new(&config());
        clock.here(0);
        clock.cyc(100);
        clock.date(10);
        clock.cyc(7);
        clock.pass(10);
        stop(&mut clock, 10);
        assert_eq!(cycles(clock, &[5, 10, 11]), (vec![Some(50), Some(100), Some(107)], Some(107)));
    }
}

#[test]
fn cycles_without_tracing_do_not_count() {
    let mut clock = Clock::new(&config());
    // Before TIP.PGE, in a unit that begins without tracing.
    clock.cyc(1000);
    clock.on(1);
    clock.cyc(30);
    clock.date(11);
    clock.cyc(4);
    clock.mtc(1, 11);
    // TIP.PGD and TIP.PGE, the second with a CYC.
    clock.off(16);
    clock.cyc(5000);
    clock.on(18);
    clock.cyc(20);
    clock.date(28);
    assert_eq!(cycles(clock, &[1, 11, 16, 18, 23, 28]).0, [0, 30, 34, 34, 44, 54].map(Some));
}

/// Lost packets had cycles, or hold instructions that nobody knows.
#[test]
fn cycles_of_what_is_lost_do_not_count() {
    let mut clock = Clock::new(&config());
    clock.here(0);
    clock.cyc(30);
    clock.date(10);
    // CYC, OVF, FUP.
    clock.cyc(999);
    clock.overflow(10);
    clock.gap(10);
    clock.found();
    clock.cyc(6);
    clock.date(15);
    // Code without an image.
    clock.gap(15);
    clock.cyc(999);
    clock.mtc(1, 16);
    clock.cyc(7);
    clock.found();
    clock.cyc(8);
    clock.date(21);
    assert_eq!(cycles(clock, &[10, 11, 15, 17, 21]), ([30, 31, 36, 38, 44].map(Some).to_vec(), Some(44)));
}

#[test]
fn ratios_are_told_where_they_change() {
    let mut clock = Clock::new(&config());
    for (ratio, ordinal) in [(20, 0), (20, 50), (30, 70), (30, 90), (20, 95)] {
        clock.cbr(ratio, ordinal);
    }
    assert_eq!(clock.finish().ratios(), [(0, 20), (70, 30), (95, 20)]);
}

/// Whatever a trace claims, a share is no more than the whole.
#[test]
fn shares() {
    assert_eq!(timeline::share(10, 1, 3), 3);
    assert_eq!(timeline::share(1 << 40, 1, 2), 1 << 39);
    assert_eq!(timeline::share(7, 0, 0), 0);
    assert_eq!(timeline::share(u64::MAX - 1, u64::MAX - 1, u64::MAX), u64::MAX - 1);
}
