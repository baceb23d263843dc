//! Perfetto files, read back by a reader that knows protobuf's wire format and Perfetto's field numbers and nothing of the
//! writer.

mod model;

use model::{
    Format, Model, NOTES, Slice, Stack, assert_same, finish_stacks, gunzip, thousandths, track_name,
};
use ptflow_exporters::perfetto::PerfettoWriter;
use ptflow_exporters::timeline::{Args, Category, Timeline};
use std::collections::HashMap;

/// A message's fields: number and value.
type Fields<'b> = Vec<(u64, Value<'b>)>;

#[derive(Clone, Copy, Debug)]
enum Value<'b> {
    Number(u64),
    Bytes(&'b [u8]),
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let (byte, rest) = bytes.split_first().expect("a varint is not cut off");
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
    }
    panic!("a varint has at most ten bytes");
}

fn fields(mut bytes: &[u8]) -> Fields<'_> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let value = match tag & 7 {
            0 => Value::Number(varint(&mut bytes)),
            1 => {
                let (value, rest) = bytes.split_first_chunk::<8>().expect("eight bytes");
                bytes = rest;
                Value::Number(u64::from_le_bytes(*value))
            }
            2 => {
                let len = varint(&mut bytes) as usize;
                let (value, rest) = bytes.split_at(len);
                bytes = rest;
                Value::Bytes(value)
            }
            wire => panic!("wire type {wire} is not used"),
        };
        fields.push((tag >> 3, value));
    }
    fields
}

fn all<'b>(fields: &Fields<'b>, number: u64) -> impl Iterator<Item = Value<'b>> {
    fields.iter().filter(move |field| field.0 == number).map(|field| field.1)
}

fn number(fields: &Fields<'_>, field: u64) -> Option<u64> {
    all(fields, field).last().map(|value| match value {
        Value::Number(number) => number,
        Value::Bytes(_) => panic!("field {field} is a number"),
    })
}

fn messages<'b>(of: &Fields<'b>, field: u64) -> Vec<Fields<'b>> {
    let bytes = |value| match value {
        Value::Bytes(bytes) => fields(bytes),
        Value::Number(_) => panic!("field {field} is a message"),
    };
    all(of, field).map(bytes).collect()
}

fn text(of: &Fields<'_>, field: u64) -> Option<String> {
    all(of, field).last().map(|value| match value {
        Value::Bytes(bytes) => String::from_utf8(bytes.to_vec()).expect("UTF-8"),
        Value::Number(_) => panic!("field {field} is text"),
    })
}

/// A file's content.
#[derive(Default)]
struct Trace {
    slices: Vec<Slice>,
    processes: Vec<(u64, String)>,
    threads: Vec<(u64, u64, String)>,
    labels: Vec<String>,
    /// Of curves: track, time, value.
    values: Vec<(String, u64, f64)>,
    curves: Vec<u64>,
}

#[derive(Default)]
struct Sequence {
    /// Clock 64's time; clocks from 64 on are the sequence's own.
    clock: Option<u64>,
    default_clock: Option<u64>,
    default_track: Option<u64>,
    names: HashMap<u64, String>,
    categories: HashMap<u64, String>,
    annotations: HashMap<u64, String>,
}

fn read(bytes: &[u8]) -> Trace {
    let mut trace = Trace::default();
    let mut tracks: HashMap<u64, (String, Stack)> = HashMap::new();
    let mut sequences: HashMap<u64, Sequence> = HashMap::new();
    for packet in messages(&fields(bytes), 1) {
        let id = number(&packet, 10).expect("every packet names its sequence");
        for descriptor in messages(&packet, 60) {
            describe(&descriptor, &mut tracks, &mut trace);
        }
        // SEQ_INCREMENTAL_STATE_CLEARED.
        if number(&packet, 13).is_some_and(|flags| flags & 1 != 0) {
            sequences.insert(id, Sequence::default());
        }
        let sequence = sequences.entry(id).or_default();
        for defaults in messages(&packet, 59) {
            sequence.default_clock = number(&defaults, 58);
            sequence.default_track = messages(&defaults, 11).iter().find_map(|event| number(event, 11));
        }
        for snapshot in messages(&packet, 6) {
            let clocks = messages(&snapshot, 1);
            let find = |id| clocks.iter().find(|clock| number(clock, 1) == Some(id)).expect("the clock");
            assert_eq!(number(find(64), 3), Some(1), "incremental");
            assert_eq!(number(find(64), 2), number(find(6), 2), "tied to BOOTTIME one to one");
            sequence.clock = number(find(64), 2);
        }
        for interned in messages(&packet, 12) {
            for (field, table) in
                [(1, &mut sequence.categories), (2, &mut sequence.names), (3, &mut sequence.annotations)]
            {
                for entry in messages(&interned, field) {
                    let iid = number(&entry, 1).expect("iid");
                    assert!(iid > 0, "0 is no iid");
                    let old = table.insert(iid, text(&entry, 2).expect("name"));
                    assert_eq!(old, None, "interned once in a sequence");
                }
            }
        }
        for event in messages(&packet, 11) {
            assert_eq!(sequence.default_clock, Some(64));
            let clock = sequence.clock.as_mut().expect("a clock before the first event");
            *clock += number(&packet, 8).unwrap_or(0);
            let at = *clock;
            let uuid = number(&event, 11).or(sequence.default_track).expect("a track");
            let (track, stack) = tracks.get_mut(&uuid).expect("a track that was described");
            match number(&event, 9) {
                Some(1) => {
                    let category = number(&event, 3).map_or("function", |iid| &sequence.categories[&iid]);
                    let slice = Slice {
                        track: track.clone(),
                        begin: at,
                        dur: 0,
                        depth: 0,
                        name: sequence.names[&number(&event, 10).expect("an interned name")].clone(),
                        category: category.to_owned(),
                        folded: 0,
                        work: [None; 3],
                        parent: None,
                    };
                    stack.begin(&mut trace.slices, slice);
                }
                Some(2) => {
                    let (mut folded, mut work) = (0, [None; 3]);
                    for annotation in messages(&event, 4) {
                        let name = &sequence.annotations[&number(&annotation, 1).expect("an interned name")];
                        let count = number(&annotation, 3);
                        match name.as_str() {
                            "folded calls" => folded = count.expect("an unsigned number"),
                            "instructions" => work[0] = count,
                            "cycles" => work[1] = count,
                            "ipc" => work[2] = number(&annotation, 5).map(f64::from_bits).map(thousandths),
                            other => panic!("annotation {other}"),
                        }
                    }
                    stack.end(&mut trace.slices, at, folded, work);
                }
                Some(4) => {
                    assert!(trace.curves.contains(&uuid), "a curve's track is described as one");
                    let value = f64::from_bits(number(&event, 44).expect("a double"));
                    trace.values.push((track.clone(), at, value));
                }
                other => panic!("event type {other:?}"),
            }
        }
    }
    finish_stacks(tracks.values().map(|track| &track.1), &mut trace.slices);
    trace
}

fn describe(descriptor: &Fields<'_>, tracks: &mut HashMap<u64, (String, Stack)>, trace: &mut Trace) {
    let uuid = number(descriptor, 1).expect("uuid");
    let mut track = None;
    for process in messages(descriptor, 3) {
        let pid = number(&process, 1).expect("pid");
        trace.processes.extend(text(&process, 6).map(|name| (pid, name)));
        trace.labels.extend(all(&process, 8).map(|label| match label {
            Value::Bytes(label) => String::from_utf8(label.to_vec()).expect("UTF-8"),
            Value::Number(_) => panic!("a label is text"),
        }));
    }
    for thread in messages(descriptor, 4) {
        let (pid, tid) = (number(&thread, 1).expect("pid"), number(&thread, 2).expect("tid"));
        trace.threads.push((pid, tid, text(&thread, 5).expect("name")));
        track = Some(track_name(pid as u32, tid as u32, None));
    }
    trace.curves.extend(all(descriptor, 8).map(|_| uuid));
    if let Some(name) = text(descriptor, 2) {
        let parent = number(descriptor, 5).expect("a parent");
        track = Some(format!("{}/{name}", tracks[&parent].0));
    }
    if let Some(track) = track {
        assert!(tracks.insert(uuid, (track, Stack::default())).is_none(), "track {uuid} is described once");
    }
}

fn check(model: &Model) {
    let file = model.file(Format::Perfetto);
    let trace = read(&file);
    assert_same(trace.slices, model.slices());
    assert_eq!(
        trace.processes,
        model.processes.iter().map(|(pid, name)| (u64::from(*pid), name.clone())).collect::<Vec<_>>()
    );
    assert_eq!(
        trace.threads,
        model
            .threads()
            .into_iter()
            .map(|(pid, tid, name)| (u64::from(pid), u64::from(tid), name))
            .collect::<Vec<_>>()
    );
    assert_eq!(trace.labels, ["before: all processes", "command: record \"it\""]);
    assert_eq!(file, model.file(Format::Perfetto), "the same calls give the same bytes");
    assert_eq!(file, gunzip(&model.file(Format::PerfettoGzip)));
}

#[test]
fn random_calls() {
    for seed in 0..8 {
        check(&Model::random(seed, 5, 2000));
    }
}

#[test]
fn more_threads_than_one_byte_numbers() {
    let model = Model::random(100, 200, 30);
    assert!(model.slices().iter().any(|slice| slice.track.ends_with(NOTES)));
    check(&model);
}

#[test]
fn deep_calls_are_folded() {
    for depth in [510, 511, 512, 513, 3000] {
        let model = Model::deep(depth);
        check(&model);
        let deepest = read(&model.file(Format::Perfetto)).slices.iter().map(|slice| slice.depth).max();
        assert_eq!(deepest, Some(depth.min(512) as usize - 1));
    }
}

#[test]
fn open_calls_are_closed() {
    let cut = Model::random(8, 5, 2000).cut();
    assert!(cut.slices().len() > 1000);
    check(&cut);
    for depth in [100, 511, 512, 3000] {
        check(&Model::deep(depth).cut());
    }
}

#[test]
fn no_slices_no_processes() {
    let sink = model::Sink::default();
    let mut timeline: Box<dyn Timeline> = Box::new(PerfettoWriter::new(sink.clone()));
    timeline.metadata("empty", "indeed").expect("memory takes all");
    timeline.finish().expect("memory takes all");
    assert!(read(&sink.0.take()).slices.is_empty());
}

#[test]
fn curves_lie_below_their_thread() {
    let sink = model::Sink::default();
    let mut timeline: Box<dyn Timeline> = Box::new(PerfettoWriter::new(sink.clone()));
    let write = |timeline: &mut dyn Timeline| {
        timeline.process(1, "one")?;
        let track = timeline.thread(1, 7, "seven")?;
        let curve = timeline.counter(track, "calls/us")?;
        let name = timeline.name("f", Category::Function);
        timeline.begin(track, 100, name)?;
        timeline.value(curve, 50, 1.25)?;
        timeline.value(curve, 1 << 40, 0.0)?;
        timeline.end(track, 200, Args::default())
    };
    write(&mut *timeline).expect("memory takes all");
    timeline.finish().expect("memory takes all");
    let trace = read(&sink.0.take());
    let track = format!("{}/calls/us", track_name(1, 7, None));
    assert_eq!(trace.values, [(track.clone(), 50, 1.25), (track, 1 << 40, 0.0)]);
    assert_eq!(trace.slices.len(), 1);
}

/// The documentation's figure: what a slice costs in a file.
#[test]
fn slices_are_small() {
    let sink = model::Sink::default();
    let mut timeline: Box<dyn Timeline> = Box::new(PerfettoWriter::new(sink.clone()));
    let write = |timeline: &mut dyn Timeline| {
        timeline.process(1, "one")?;
        let track = timeline.thread(1, 1, "one")?;
        let name = timeline.name("f", Category::Function);
        for call in 0..10_000 {
            timeline.begin(track, call * 100, name)?;
            timeline.end(track, call * 100 + 50, Args::default())?;
        }
        Ok::<_, std::io::Error>(())
    };
    write(&mut *timeline).expect("memory takes all");
    timeline.finish().expect("memory takes all");
    let per_slice = sink.0.borrow().len() as f64 / 10_000.0;
    assert!(per_slice < 22.5, "{per_slice} bytes");
}
