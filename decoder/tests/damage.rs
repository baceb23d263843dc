//! Damaged traces and wrong code: no panic, no hang, every byte accounted for, every engine of one mind, and nothing
//! invented where only packets are missing.

mod kit;

use kit::decode::{ENGINES, Flow, How, Profile, Subject, difference, pieces, show};
use kit::program::{Program, Style};
use kit::rng::Rng;
use kit::scenario::{RestartPlace, Scenario, Wants};
use kit::truth::{Rows, Truth, What, rows_of};
use ptflow_decoder::ledger::{Loss, LossReason};
use ptflow_decoder::profile::{CodeAddr, EdgeKind};
use ptflow_decoder::stream::{Break, Piece, TraceStream};
use ptflow_decoder::units::{AuxOffset, ImageId};

/// Decodes in many ways; all must agree, and every byte must be accounted for. Units of the same size give the same
/// ledger to the letter.
#[track_caller]
fn agree(subject: &Subject<'_>, stream: &TraceStream<'_>, rng: &mut Rng, name: &str) -> Profile {
    let unit_bytes = *rng.pick(&[1, 50, 2 << 20]);
    let mut first: Option<Profile> = None;
    let mut first_flow: Option<(Flow, Vec<String>)> = None;
    for engine in ENGINES {
        let how = How { engine, unit_bytes, pool: rng.below(3) };
        let streams = [stream.clone()];
        let profile = subject.profile(&streams, how);
        for ledger in &profile.ledgers {
            assert_eq!(ledger.decoded + ledger.lost(), stream.len(), "{name}, {how:?}: {ledger:?}");
        }
        let flow = subject.flow(stream, how);
        assert_eq!(flow.ledgers, profile.ledgers, "{name}, {how:?}: ledgers of the two runs");
        let calls = subject.calls(stream, how);
        match (&first, &first_flow) {
            (Some(first), Some((first_flow, first_calls))) => {
                let wrong = difference(&profile.rows, &first.rows);
                assert!(wrong.is_empty(), "{name}, {how:?}, not as the careful walker:\n{wrong}");
                assert_eq!(profile.instructions, first.instructions, "{name}, {how:?}");
                same(&profile.ledgers[0].losses, &first.ledgers[0].losses, name, how);
                assert_eq!(profile.ledgers, first.ledgers, "{name}, {how:?}");
                same(&flow.log, &first_flow.log, name, how);
                same(&flow.times, &first_flow.times, name, how);
                assert!(&flow == first_flow, "{name}, {how:?}");
                same(&calls, first_calls, name, how);
            }
            _ => (first, first_flow) = (Some(profile), Some((flow, calls))),
        }
    }
    first.expect("there are engines")
}

/// Holds two lists to be the same, and shows where they part.
#[track_caller]
fn same<T: PartialEq + std::fmt::Debug>(found: &[T], first: &[T], name: &str, how: How) {
    if let Some(at) = (0..found.len().max(first.len())).find(|at| found.get(*at) != first.get(*at)) {
        let (found, first) = (&found[at..found.len().min(at + 3)], &first[at..first.len().min(at + 3)]);
        panic!("{name}, {how:?}: from {at} on\nfound   {found:x?}\ncareful {first:x?}");
    }
}

/// Holds that nothing was found more often than it was executed.
#[track_caller]
fn nothing_invented(found: &Rows, executed: &Rows, name: &str) {
    for (row, (taken, not_taken)) in found {
        // Where tracing goes on after a loss was no new start for the machine.
        if row.0 == EdgeKind::Resume {
            continue;
        }
        let (true_taken, true_not_taken) = executed.get(row).copied().unwrap_or_default();
        assert!(
            *taken <= true_taken && *not_taken <= true_not_taken,
            "{name}: {} found {taken}/{not_taken}, executed {true_taken}/{true_not_taken}",
            show(row)
        );
    }
}

/// Code of all styles.
fn style(seed: u64) -> Style {
    Style { cross: seed % 4 == 1, twice: seed % 5 == 2, patched: seed % 7 == 3, ..Style::default() }
}

fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let only = std::env::var("PTFLOW_SEED").ok().and_then(|seed| seed.parse().ok());
    let count = std::env::var("PTFLOW_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(count);
    only.map_or(0..count, |seed| seed..seed + 1)
}

/// Stretches of a trace. Each ends anywhere, and begins anywhere or at one of the `restarts`: there the AUX buffer was
/// full.
fn with_holes<'m>(trace: &'m [u8], restarts: &[RestartPlace], rng: &mut Rng) -> TraceStream<'m> {
    let mut pieces = Vec::new();
    let (mut at, mut why) = (0, Some(Break::Start));
    while at < trace.len() {
        let end = (at + rng.between(1, 400)).min(trace.len());
        pieces.push(Piece {
            offset: AuxOffset(at as u64),
            bytes: &trace[at..end],
            break_before: why,
            reference: None,
        });
        (at, why) = match rng.below(3) {
            0 => (end, None),
            1 => (end + rng.below(200), Some(Break::Missing)),
            _ => match restarts.iter().find(|restart| restart.offset >= end) {
                Some(restart) => (restart.offset, Some(Break::AuxTruncated)),
                None => (end, None),
            },
        };
    }
    TraceStream { pieces }
}

/// A stream's pieces in short.
fn layout(stream: &TraceStream<'_>) -> String {
    let piece = |piece: &Piece<'_>| {
        let (from, why) = (piece.offset.0, piece.break_before);
        format!(
            "{from:x}..{:x} {}",
            from + piece.bytes.len() as u64,
            why.map_or(String::new(), |why| format!("{why:?}"))
        )
    };
    stream.pieces.iter().map(piece).collect::<Vec<_>>().join(", ")
}

/// What a decoder must find in the stretches that are left: all from the first PSB of each on that its packets prove,
/// and all from a restart on if its address stands alone.
fn certain(scenario: &Scenario, stream: &TraceStream<'_>) -> Rows {
    let mut certain = Vec::new();
    let mut pieces = stream.pieces.iter().peekable();
    while let Some(first) = pieces.next() {
        let (from, mut to) = (first.offset.0 as usize, first.offset.0 as usize + first.bytes.len());
        while let Some(next) = pieces.next_if(|next| next.break_before.is_none()) {
            to += next.bytes.len();
        }
        let Some(mut begin) = scenario.psbs.iter().find(|psb| psb.offset >= from).map(|psb| psb.log) else {
            continue;
        };
        // Without compressed returns nothing from before is needed.
        let restart = scenario.restarts.iter().find(|restart| restart.offset == from && restart.is_whole);
        if let Some(restart) = restart
            && !scenario.habits.ret_compression
        {
            begin = begin.min(restart.log);
        }
        let proofs = &scenario.proofs[..scenario.proofs.partition_point(|(end, _)| *end <= to)];
        let Some((_, proven)) = proofs.last() else { continue };
        let log = &scenario.truth.log[begin.min(scenario.truth.log.len())..];
        // What is no instruction's doing comes behind the instruction of its number: only a later one proves it.
        certain.extend(log.iter().filter(|(_, number, what)| match what {
            What::Branch { .. } => number <= proven,
            _ => number < proven,
        }));
    }
    rows_of(certain.iter().map(|entry| &entry.2))
}

#[test]
fn holes_hide_what_they_cover_and_invent_nothing() {
    for seed in seeds(150) {
        let scenario = Scenario::record(
            seed,
            Wants { overflows: seed % 2 == 0, style: style(seed), ..Wants::default() },
        );
        let rng = &mut Rng::new(!seed);
        let subject = Subject::new(&scenario.program, &scenario.config, |_| true);
        let stream = with_holes(&scenario.trace, &scenario.restarts, rng);
        let name = format!("seed {seed}, {}", layout(&stream));
        let profile = agree(&subject, &stream, rng, &name);
        nothing_invented(&profile.rows, &scenario.truth.executed, &name);
        for (row, (taken, not_taken)) in certain(&scenario, &stream) {
            let (found_taken, found_not_taken) = profile.rows.get(&row).copied().unwrap_or_default();
            assert!(
                found_taken >= taken && found_not_taken >= not_taken,
                "{name}: {} found {found_taken}/{found_not_taken}, proven {taken}/{not_taken}",
                show(&row)
            );
        }
        for piece in &stream.pieces {
            let reason = match piece.break_before {
                Some(Break::AuxTruncated) => LossReason::AuxTruncated,
                Some(Break::AuxPartial) => LossReason::AuxPartial,
                Some(Break::AuxCollision) => LossReason::AuxCollision,
                Some(Break::Missing) => LossReason::Missing,
                Some(Break::Start | Break::Snapshot) | None => continue,
            };
            let is_told = |loss: &Loss| loss.reason == reason && loss.from == piece.offset;
            assert!(profile.ledgers[0].losses.iter().any(is_told), "{name}: hole before {:?}", piece.offset);
        }
    }
}

#[test]
fn missing_files_hide_and_invent_nothing() {
    for seed in seeds(150) {
        // In code that is not there no one can tell which branch a TIP belongs to. The walker takes it for the last one's; of a
        // deferred TIP the outcomes behind it went by before.
        let wants = Wants { overflows: seed % 2 == 0, no_deferred_tips: true, ..Wants::default() };
        let scenario = Scenario::record(seed, wants);
        let rng = &mut Rng::new(!seed);
        let missing = rng.below(scenario.program.images.len());
        let subject = Subject::new(&scenario.program, &scenario.config, |image| image != missing);
        let stream = pieces(&scenario.trace, &[]);
        let name = format!("seed {seed}");
        let profile = agree(&subject, &stream, rng, &name);
        if !returns_by_chance(&scenario.truth, missing) {
            nothing_invented(&profile.rows, &scenario.truth.executed, &name);
        }
    }
}

/// Whether code without an image, which an event led to, jumped to where the event had interrupted the flow. A walker
/// takes that for the handler's return: no handler of sane code comes back with another call stack.
fn returns_by_chance(truth: &Truth, missing: usize) -> bool {
    let is_missing = |at: &CodeAddr| at.image == Some(ImageId(missing as u32));
    let mut interrupted: Option<CodeAddr> = None;
    for (_, _, what) in &truth.log {
        let (to, is_seen) = match what {
            What::Branch { to: Some(to), taken: true, kind, .. } => {
                (to, matches!(kind, EdgeKind::JmpInd | EdgeKind::CallInd | EdgeKind::Far))
            }
            What::Async { to, .. } => (to, true),
            What::Enabled { at, .. } | What::Sync { at, .. } => (at, true),
            _ => continue,
        };
        if interrupted == Some(*to) {
            return true;
        }
        if is_seen && !is_missing(to) {
            interrupted = None;
        }
        if let What::Async { from, to } = what
            && is_missing(to)
            && !is_missing(from)
        {
            interrupted = Some(*from);
        }
    }
    false
}

#[test]
fn any_damage_is_survived() {
    for seed in seeds(150) {
        let wants = Wants {
            overflows: seed % 2 == 0,
            filters: seed % 3 == 0,
            style: style(seed),
            ..Wants::default()
        };
        let mut scenario = Scenario::record(seed, wants);
        let rng = &mut Rng::new(!seed);
        let mut trace = std::mem::take(&mut scenario.trace);
        for _ in 0..rng.between(1, 6) {
            damage(&mut trace, rng);
        }
        if rng.percent(30) {
            spoil_code(&mut scenario.program, rng);
        }
        let missing = if rng.percent(20) { 0 } else { usize::MAX };
        let subject = Subject::new(&scenario.program, &scenario.config, |image| image != missing);
        let stream =
            if rng.percent(50) { with_holes(&trace, &scenario.restarts, rng) } else { pieces(&trace, &[]) };
        agree(&subject, &stream, rng, &format!("seed {seed}"));
    }
}

#[test]
fn damage_may_turn_back_the_clock() {
    for seed in seeds(80) {
        let wants = Wants { overflows: seed % 2 == 0, style: style(seed), ..Wants::default() };
        let rng = &mut Rng::new(seed);
        let program = Program::random(wants.style, rng);
        let mut later = vec![program.elsewhere(40, rng)];
        for turn in 0..rng.below(3) {
            later.push(later[turn].elsewhere(40, rng));
        }
        let mut scenario = Scenario::record_of(program, later, wants, rng);
        let mut trace = std::mem::take(&mut scenario.trace);
        for _ in 0..rng.between(1, 8) {
            damage(&mut trace, rng);
        }
        agree(&Subject::over_time(&scenario), &pieces(&trace, &[]), rng, &format!("seed {seed}"));
    }
}

#[test]
fn random_bytes_are_survived() {
    for seed in seeds(150) {
        let scenario = Scenario::record(seed, Wants { style: style(seed), ..Wants::default() });
        let rng = &mut Rng::new(!seed);
        let len = rng.between(1, 3000);
        let mut trace: Vec<u8> = Vec::new();
        while trace.len() < len {
            match rng.below(4) {
                0 => trace.extend_from_slice(&[0x02, 0x82].repeat(8)),
                1 => trace.extend((0..rng.below(20)).map(|_| rng.clone().next() as u8)),
                2 => trace.extend((0..rng.below(60)).map(|_| rng.next() as u8)),
                _ => {
                    // True packets, out of their places.
                    let from = rng.below(scenario.trace.len());
                    let to = (from + rng.below(40)).min(scenario.trace.len());
                    trace.extend_from_slice(&scenario.trace[from..to]);
                }
            }
        }
        let subject = Subject::new(&scenario.program, &scenario.config, |_| true);
        agree(&subject, &pieces(&trace, &[]), rng, &format!("seed {seed}"));
    }
}

/// Changes a trace somewhere.
fn damage(trace: &mut Vec<u8>, rng: &mut Rng) {
    if trace.is_empty() {
        return;
    }
    let at = rng.below(trace.len());
    let to = (at + rng.between(1, 60)).min(trace.len());
    match rng.below(6) {
        0 => trace[at] ^= 1 << rng.below(8),
        1 => trace[at] = rng.next() as u8,
        2 => drop(trace.drain(at..to)),
        3 => {
            let copy = trace[at..to].to_vec();
            let place = rng.below(trace.len());
            trace.splice(place..place, copy);
        }
        4 => trace[at..to].iter_mut().for_each(|byte| *byte = rng.next() as u8),
        _ => trace.truncate(at.max(20)),
    }
}

/// Makes the code another than the one that ran.
fn spoil_code(program: &mut Program, rng: &mut Rng) {
    for _ in 0..rng.between(1, 5) {
        let image = rng.below(program.images.len());
        let bytes = &mut program.images[image].bytes;
        let at = rng.below(bytes.len());
        bytes[at] = rng.next() as u8;
    }
}
