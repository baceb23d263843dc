//! Random programs, run and traced by a machine of these tests' own: what the walkers find is what was executed.

mod kit;

use kit::decode::{ENGINES, How, Subject, difference, expected_log, pieces};
use kit::program::{Program, Style};
use kit::rng::Rng;
use kit::scenario::{Scenario, Wants};
use kit::truth::Rows;

/// Records one run and holds the decoder to it.
#[track_caller]
fn check(seed: u64, wants: Wants) {
    check_recording(seed, wants, &Scenario::record(seed, wants));
}

/// Decodes one recording in many ways and holds each to the truth.
#[track_caller]
fn check_recording(seed: u64, wants: Wants, scenario: &Scenario) {
    let rng = &mut Rng::new(!seed);
    let subject = Subject::over_time(scenario);
    let (rows, instructions) = (scenario.truth.rows(), scenario.truth.instructions());
    let bytes = scenario.trace.len() as u64;
    for engine in ENGINES {
        let how = How::random(engine, rng);
        let cuts = cuts(scenario, rng);
        let stream = pieces(&scenario.trace, &cuts);
        let name = format!("seed {seed}, {wants:?}, {how:?}, cut at {cuts:?}");

        let profile = subject.profile(std::slice::from_ref(&stream), how);
        let wrong = difference(&profile.rows, &rows);
        assert!(wrong.is_empty(), "{name}: rows\n{wrong}{:?}", profile.ledgers);
        assert_eq!(profile.instructions, instructions, "{name}: instructions");
        let ledger = &profile.ledgers[0];
        assert_eq!((ledger.decoded, ledger.lost()), (bytes, 0), "{name}: {ledger:?}");

        let flow = subject.flow(&stream, how);
        let log = expected_log(&scenario.truth.log, &flow.units);
        if let Some(at) = (0..log.len().max(flow.log.len())).find(|at| log.get(*at) != flow.log.get(*at)) {
            panic!("{name}: event {at}\nfound {:x?}\ntrue  {:x?}", flow.log.get(at), log.get(at));
        }
        assert_eq!(flow.instructions, instructions, "{name}: instructions of the ordered run");
        assert_eq!(flow.ledgers, profile.ledgers, "{name}: ledgers of the two runs");
    }
}

/// Some places to cut the stream into pieces: anywhere, often next to PSBs or inside them.
fn cuts(scenario: &Scenario, rng: &mut Rng) -> Vec<usize> {
    let mut cuts = Vec::new();
    for _ in 0..*rng.pick(&[0, 0, 1, 3, 10]) {
        let mut cut = rng.below(scenario.trace.len());
        if rng.percent(50) {
            cut = rng.pick(&scenario.psbs).offset + rng.below(36);
            cut = cut.saturating_sub(10);
        }
        if rng.percent(20) && !scenario.restarts.is_empty() {
            cut = rng.pick(&scenario.restarts).offset;
        }
        if cut > 0 && cut < scenario.trace.len() {
            cuts.push(cut);
        }
    }
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let only = std::env::var("PTFLOW_SEED").ok().and_then(|seed| seed.parse().ok());
    let count = std::env::var("PTFLOW_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(count);
    only.map_or(0..count, |seed| seed..seed + 1)
}

#[test]
fn the_walkers_find_what_was_executed() {
    seeds(250).for_each(|seed| check(seed, Wants::default()));
}

#[test]
fn overflows_lose_what_they_cover_and_nothing_else() {
    seeds(120).for_each(|seed| check(seed, Wants { overflows: true, ..Wants::default() }));
}

#[test]
fn filters_end_and_begin_tracing_at_branches() {
    seeds(120).for_each(|seed| check(seed, Wants { filters: true, ..Wants::default() }));
}

#[test]
fn direct_branches_lead_from_image_to_image() {
    let style = Style { cross: true, ..Style::default() };
    seeds(120).for_each(|seed| check(seed, Wants { style, ..Wants::default() }));
}

#[test]
fn an_image_may_be_mapped_twice() {
    let style = Style { twice: true, ..Style::default() };
    seeds(120).for_each(|seed| check(seed, Wants { style, ..Wants::default() }));
}

#[test]
fn patches_lie_over_an_image() {
    let style = Style { patched: true, ..Style::default() };
    seeds(120).for_each(|seed| check(seed, Wants { style, ..Wants::default() }));
}

#[test]
fn an_overflow_may_cut_a_psb_short() {
    let wants = Wants { overflows: true, torn_psbs: true, ..Wants::default() };
    seeds(120).for_each(|seed| check(seed, wants));
}

#[test]
fn processes_share_what_was_learned_of_an_image() {
    for seed in seeds(80) {
        let rng = &mut Rng::new(seed);
        let patched = seed % 3 == 0;
        let style = Style { cross: seed % 2 == 0, twice: seed % 5 == 1, ..Style::default() };
        let wants = Wants { style, ..Wants::default() };
        let mut programs = vec![Program::random(Style { patched, ..style }, rng)];
        for process in 0..rng.between(1, 3) {
            programs.push(programs[process].elsewhere(0x1_0000, rng));
        }
        let processes: Vec<Scenario> = programs
            .into_iter()
            .map(|program| Scenario::record_of(program, Vec::new(), wants, rng))
            .collect();
        let subjects: Vec<Subject<'_>> = (processes.iter())
            .map(|process| Subject::new(&process.program, &process.config, |_| true))
            .collect();
        let streams: Vec<_> = processes.iter().map(|process| pieces(&process.trace, &[])).collect();
        let mut rows = Rows::new();
        for row in processes.iter().flat_map(|process| process.truth.rows()) {
            let sum = rows.entry(row.0).or_insert((0, 0));
            *sum = (sum.0 + row.1.0, sum.1 + row.1.1);
        }
        for engine in ENGINES {
            let how = How::random(engine, rng);
            let profile = Subject::profile_of(&subjects.iter().zip(&streams).collect::<Vec<_>>(), how);
            let wrong = difference(&profile.rows, &rows);
            assert!(wrong.is_empty(), "seed {seed}, {how:?}: rows\n{wrong}");
        }
    }
}

#[test]
fn memory_changes_over_time() {
    for seed in seeds(120) {
        let rng = &mut Rng::new(seed);
        let style =
            Style { cross: seed % 2 == 0, twice: seed % 5 == 1, patched: seed % 3 == 0, ..Style::default() };
        let wants = Wants { style, overflows: seed % 4 == 3, ..Wants::default() };
        let program = Program::random(style, rng);
        let mut later = vec![program.elsewhere(40, rng)];
        for turn in 0..rng.below(3) {
            later.push(later[turn].elsewhere(40, rng));
        }
        check_recording(seed, wants, &Scenario::record_of(program, later, wants, rng));
    }
}
