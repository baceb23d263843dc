//! A case through every engine.

use super::case::Case;
use super::render::{Recorder, address};
use super::rows::{self, Rows};
use super::subject::{BIAS, IMAGE, memory, regions};
use ptflow_decoder::code::CodeView;
use ptflow_decoder::insn::Class;
use ptflow_decoder::ledger::Ledger;
use ptflow_decoder::profile::CodeAddr;
use ptflow_decoder::run::{self, Options};
use ptflow_decoder::stream::{Break, Piece, TraceStream};
use ptflow_decoder::units::{AuxOffset, Ip};
use ptflow_decoder::walk::{Context, Engine};
use std::fmt::Write as _;
use std::sync::LazyLock;

static POOL: LazyLock<rayon::ThreadPool> =
    LazyLock::new(|| rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread"));

/// Padding behind the trace, so that the fast walker sees its last packets too.
const ROOM: usize = 64;
const ONE_UNIT: usize = 1 << 20;

/// What came out.
#[derive(PartialEq, Debug)]
struct Outcome {
    flow: Vec<String>,
    times: Vec<String>,
    rows: Rows,
    instructions: u64,
    ledger: Ledger,
}

/// All complaints about a case.
pub fn check(case: &Case) -> String {
    let regions = regions(case);
    let (images, spaces) = memory(&regions);
    let subject = Subject { case, images: &images, spaces: &spaces };
    let (bare, mut padded) = (case.bytes(), case.bytes());
    padded.resize(bare.len() + if case.ends { 0 } else { ROOM }, 0);

    let mut complaint = String::new();
    let reference = subject.decode(&bare, &[], Engine::Careful, ONE_UNIT);
    compare(&mut complaint, "flow", &case.flow, &reference.flow);
    compare(&mut complaint, "losses", &case.losses, &losses(case, &reference.ledger));
    compare(&mut complaint, "times", &case.times, &reference.times);
    let code = CodeView { images: &images, space: &spaces.versions()[0].1 };
    let target = |from: u64| match code.insn(Ip(from), case.mode(from))?.class {
        Class::Jcc { target } => Some(target),
        _ => None,
    };
    let rows = rows::expected(case, target);
    if reference.rows != rows {
        let _ = writeln!(complaint, "rows: {:x?}\nexpected: {rows:x?}", reference.rows);
    }
    if !complaint.is_empty() {
        return complaint;
    }

    let with_room = subject.decode(&padded, &[], Engine::Careful, ONE_UNIT);
    compare(&mut complaint, "flow with padding behind", &case.flow, &with_room.flow);
    let engines = (1..=case.packets() as u32).map(Engine::Interrupted).chain([Engine::Fast]);
    for engine in engines {
        for (bytes, reference) in [(&bare, &reference), (&padded, &with_room)] {
            let outcome = subject.decode(bytes, &[], engine, ONE_UNIT);
            if outcome != *reference {
                let _ = writeln!(complaint, "{engine:?}, {} bytes:", bytes.len());
                compare(&mut complaint, "flow", &reference.flow, &outcome.flow);
                let _ = writeln!(complaint, "{outcome:?}\nby the careful walker:\n{reference:?}");
                return complaint;
            }
        }
    }
    for cut in 1..bare.len() {
        for engine in [Engine::Careful, Engine::Fast] {
            let outcome = subject.decode(&padded, &[cut], engine, ONE_UNIT);
            if outcome != with_room {
                let _ = writeln!(complaint, "{engine:?} with the stream in two pieces, cut at {cut:#x}:");
                compare(&mut complaint, "flow", &with_room.flow, &outcome.flow);
                return complaint;
            }
        }
    }
    // Each PSB begins a unit: the same is counted (a unit's start is no event of the program's).
    let units = subject.decode(&padded, &[], Engine::Fast, 1);
    let same = units.rows == with_room.rows && units.instructions == with_room.instructions;
    if !same {
        let _ = writeln!(complaint, "a unit at each PSB: {units:x?}\nexpected: {with_room:x?}");
    }
    complaint
}

/// As [`check`], with each byte of the trace changed in turn, and nothing expected but that all engines agree.
pub fn check_damaged(case: &Case) -> String {
    let regions = regions(case);
    let (images, spaces) = memory(&regions);
    let subject = Subject { case, images: &images, spaces: &spaces };
    let mut bytes = case.bytes();
    let len = bytes.len();
    bytes.resize(len + ROOM, 0);
    for at in 0..len {
        let sound = bytes[at];
        for damaged in [sound ^ 1 << (at % 8), sound ^ 0x20, 0x00, 0xff, 0x02] {
            bytes[at] = damaged;
            let reference = subject.decode(&bytes, &[], Engine::Careful, ONE_UNIT);
            for (engine, cuts) in
                [(Engine::Fast, &[][..]), (Engine::Interrupted(1), &[]), (Engine::Fast, &[at])]
            {
                let cuts = if at == 0 { &[] } else { cuts };
                let outcome = subject.decode(&bytes, cuts, engine, ONE_UNIT);
                if outcome != reference {
                    let mut complaint = format!("{engine:?}, cuts {cuts:?}, {damaged:#04x} at {at:#x}:\n");
                    compare(&mut complaint, "flow", &reference.flow, &outcome.flow);
                    let _ = writeln!(complaint, "{:x?}\n{:x?}", reference.ledger, outcome.ledger);
                    return complaint;
                }
            }
        }
        bytes[at] = sound;
    }
    String::new()
}

struct Subject<'a, 'm> {
    case: &'a Case,
    images: &'a ptflow_decoder::image::Images<'m>,
    spaces: &'a ptflow_decoder::image::AddressSpaces,
}

impl Subject<'_, '_> {
    fn decode(&self, bytes: &[u8], cuts: &[usize], engine: Engine, unit_bytes: usize) -> Outcome {
        let mut pieces = Vec::new();
        let mut from = 0;
        for to in cuts.iter().copied().chain([bytes.len()]) {
            pieces.push(Piece {
                offset: AuxOffset(from as u64),
                bytes: &bytes[from..to],
                break_before: (from == 0).then_some(Break::Start),
                reference: None,
            });
            from = to;
        }
        let stream = TraceStream { pieces };
        let contexts = [Context {
            stream: &stream,
            images: self.images,
            spaces: self.spaces,
            config: &self.case.config,
            owners: &[],
        }];
        let options = Options { pool: &POOL, engine, unit_bytes, progress: &|_| {} };
        let (mut flow, mut times, mut instructions) = (Vec::new(), Vec::new(), 0);
        let ledgers = run::in_order(
            &contexts,
            &options,
            |_| Recorder::default(),
            |_, recorder, result| {
                flow.extend(recorder.lines(self.case, instructions));
                instructions += result.end.instructions();
                let mut reader = result.timeline.reader();
                for line in &self.case.times {
                    let ordinal =
                        line.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0);
                    times.push(match reader.at(ordinal) {
                        None => format!("{ordinal} -"),
                        Some(moment) => {
                            let how = if moment.exact { "exact" } else { "about" };
                            format!("{ordinal} {:x} {how}", moment.tsc.0)
                        }
                    });
                }
                Ok::<_, std::convert::Infallible>(())
            },
        );
        flow.push(format!("{instructions} end"));
        let Ok(mut ledgers) = ledgers;
        let ledger = ledgers.remove(0);
        assert_eq!(ledger.decoded + ledger.lost(), bytes.len() as u64, "the ledger adds up");
        let counts = run::count(&contexts, &options);
        assert_eq!(counts.instructions, instructions, "{engine:?}: counted and reported");
        assert_eq!(counts.ledgers.first(), Some(&ledger), "{engine:?}: counted and reported");
        let ip =
            |addr: CodeAddr| if addr.image == Some(IMAGE) { addr.addr.wrapping_add(BIAS) } else { addr.addr };
        let rows = counts.rows.iter();
        let rows = rows.map(|row| {
            ((row.kind.name().to_owned(), row.from.map(ip), row.to.map(ip)), (row.taken, row.not_taken))
        });
        Outcome { flow, times, rows: rows.collect(), instructions, ledger }
    }
}

fn losses(case: &Case, ledger: &Ledger) -> Vec<String> {
    let line = |loss: &ptflow_decoder::ledger::Loss| {
        let at = loss.at.map(|at| format!(" at {}", address(case, at.0))).unwrap_or_default();
        format!("{} {:x}..{:x} {} bytes{at}", loss.reason.name(), loss.from.0, loss.to.0, loss.bytes)
    };
    ledger.losses.iter().map(line).collect()
}

fn compare(complaint: &mut String, what: &str, expected: &[String], found: &[String]) {
    if expected == found {
        return;
    }
    let _ = writeln!(complaint, "{what}: expected | found");
    for index in 0..expected.len().max(found.len()) {
        let get = |lines: &[String]| lines.get(index).cloned().unwrap_or_default();
        let (expected, found) = (get(expected), get(found));
        let mark = if expected == found { ' ' } else { '*' };
        let _ = writeln!(complaint, "{mark} {expected:40} | {found}");
    }
}
