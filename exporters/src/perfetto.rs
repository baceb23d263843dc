//! Perfetto's protobuf trace: TrackEvents, each thread a packet sequence of its own.
//!
//! Field numbers are those of Perfetto's `protos/perfetto/trace/trace_packet.proto` and `track_event/*.proto`. The two
//! hot messages are written by hand, lengths first, with no buffer in between:
//!
//! ```text
//! Trace.packet ─► TracePacket { timestamp: delta, sequence id, track_event: { type, name_iid } }
//! ```
//!
//! A sequence begins with a clock of its own: 64, incremental, tied to BOOTTIME at the sequence's first event, so that a
//! time is a delta of one to three bytes; and with defaults, so that events need to name neither clock nor track. Names
//! are interned in the sequence on first use.

use crate::timeline::{Args, Category, Name, Timeline, Track};
use std::io::{self, Write};

mod field {
    #![allow(missing_docs, reason = "the names are Perfetto's")]
    pub const TRACE_PACKET: u32 = 1;
    pub mod packet {
        pub const CLOCK_SNAPSHOT: u32 = 6;
        pub const TIMESTAMP: u32 = 8;
        pub const SEQUENCE_ID: u32 = 10;
        pub const TRACK_EVENT: u32 = 11;
        pub const INTERNED_DATA: u32 = 12;
        pub const SEQUENCE_FLAGS: u32 = 13;
        pub const DEFAULTS: u32 = 59;
        pub const TRACK_DESCRIPTOR: u32 = 60;
    }
    pub mod event {
        pub const CATEGORY_IIDS: u32 = 3;
        pub const DEBUG_ANNOTATIONS: u32 = 4;
        pub const TYPE: u32 = 9;
        pub const NAME_IID: u32 = 10;
        pub const TRACK_UUID: u32 = 11;
        pub const DOUBLE_COUNTER_VALUE: u32 = 44;
    }
}

const CLOCK: u64 = 64;
const BOOTTIME: u64 = 6;
const BEGIN: u64 = 1;
const END: u64 = 2;
const COUNTER: u64 = 4;
/// SEQ_INCREMENTAL_STATE_CLEARED.
const CLEARED: u64 = 1;
/// So many bytes are gathered before they are written.
const BUFFER: usize = 1 << 18;

#[derive(Debug)]
struct Sequence {
    uuid: u64,
    /// Time of the last event; `None` before the first.
    last: Option<u64>,
    /// Which names were interned.
    known: Vec<u64>,
    /// Which of [`ANNOTATIONS`] were.
    annotations: u8,
}

/// Writes a `.pftrace`.
pub struct PerfettoWriter<W: Write> {
    out: W,
    buffer: Vec<u8>,
    sequences: Vec<Sequence>,
    names: Vec<(String, Category)>,
    processes: Vec<(u32, u64)>,
    /// Labels for the first process.
    metadata: Vec<String>,
    scratch: Vec<u8>,
}

impl<W: Write> PerfettoWriter<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            buffer: Vec::with_capacity(BUFFER + (1 << 12)),
            sequences: Vec::new(),
            names: Vec::new(),
            processes: Vec::new(),
            metadata: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Writes a packet whose body is in `body`.
    fn packet(&mut self, body: &[u8]) -> io::Result<()> {
        bytes(&mut self.buffer, field::TRACE_PACKET, body);
        self.flush_if_full()
    }

    fn flush_if_full(&mut self) -> io::Result<()> {
        if self.buffer.len() >= BUFFER {
            self.out.write_all(&self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }

    fn new_uuid(&self) -> u64 {
        1 + (self.sequences.len() + self.processes.len()) as u64
    }

    /// A track below another; `kind` adds what kind of track.
    fn below(&mut self, of: Track, name: &str, kind: impl FnOnce(&mut Vec<u8>)) -> io::Result<Track> {
        let uuid = self.new_uuid();
        let parent = self.sequences[of.0 as usize].uuid;
        let track = self.track(uuid);
        self.descriptor(uuid, |descriptor| {
            bytes(descriptor, 2, name.as_bytes());
            varint_field(descriptor, 5, parent);
            kind(descriptor);
        })?;
        Ok(track)
    }

    fn descriptor(&mut self, uuid: u64, fill: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut descriptor = Vec::new();
        varint_field(&mut descriptor, 1, uuid);
        fill(&mut descriptor);
        let mut body = Vec::new();
        bytes(&mut body, field::packet::TRACK_DESCRIPTOR, &descriptor);
        varint_field(&mut body, field::packet::SEQUENCE_ID, 1);
        self.packet(&body)
    }

    fn track(&mut self, uuid: u64) -> Track {
        self.sequences.push(Sequence { uuid, last: None, known: Vec::new(), annotations: 0 });
        Track(self.sequences.len() as u32 - 1)
    }

    /// The first packet of a sequence: its clock and defaults.
    #[cold]
    fn start(&mut self, track: Track, ns: u64) -> io::Result<()> {
        let sequence = &mut self.sequences[track.0 as usize];
        sequence.last = Some(ns);
        let mut snapshot = Vec::new();
        for (clock, incremental) in [(CLOCK, true), (BOOTTIME, false)] {
            let mut one = Vec::new();
            varint_field(&mut one, 1, clock);
            varint_field(&mut one, 2, ns);
            if incremental {
                varint_field(&mut one, 3, 1);
            }
            bytes(&mut snapshot, 1, &one);
        }
        let mut event_defaults = Vec::new();
        varint_field(&mut event_defaults, field::event::TRACK_UUID, sequence.uuid);
        let mut defaults = Vec::new();
        varint_field(&mut defaults, 58, CLOCK);
        bytes(&mut defaults, 11, &event_defaults);
        let mut categories = Vec::new();
        for category in CATEGORIES {
            let mut one = Vec::new();
            varint_field(&mut one, 1, category_iid(category));
            bytes(&mut one, 2, category.name().as_bytes());
            bytes(&mut categories, 1, &one);
        }
        let mut body = Vec::new();
        varint_field(&mut body, field::packet::SEQUENCE_ID, sequence_id(track));
        varint_field(&mut body, field::packet::SEQUENCE_FLAGS, CLEARED);
        bytes(&mut body, field::packet::CLOCK_SNAPSHOT, &snapshot);
        bytes(&mut body, field::packet::DEFAULTS, &defaults);
        bytes(&mut body, field::packet::INTERNED_DATA, &categories);
        self.packet(&body)
    }

    /// The time since the sequence's last event.
    fn delta(&mut self, track: Track, ns: u64) -> io::Result<u64> {
        if self.sequences[track.0 as usize].last.is_none() {
            self.start(track, ns)?;
        }
        let sequence = &mut self.sequences[track.0 as usize];
        let last = sequence.last.unwrap_or(ns);
        sequence.last = Some(last.max(ns));
        Ok(ns.saturating_sub(last))
    }

    fn event(&mut self, track: Track, delta: u64, event: &[u8], interned: &[u8]) -> io::Result<()> {
        let id = sequence_id(track);
        let len = 1 + varint_len(delta) + 1 + varint_len(id) + 2 + event.len() + interned.len();
        // The two lengths below are one byte each: what they count is short.
        debug_assert!(event.len() < 128);
        let out = &mut self.buffer;
        tag(out, field::TRACE_PACKET, 2);
        varint(out, len as u64);
        varint_field(out, field::packet::TIMESTAMP, delta);
        varint_field(out, field::packet::SEQUENCE_ID, id);
        bytes(out, field::packet::TRACK_EVENT, event);
        out.extend_from_slice(interned);
        self.flush_if_full()
    }
}

impl<W: Write> Timeline for PerfettoWriter<W> {
    fn process(&mut self, pid: u32, name: &str) -> io::Result<()> {
        let uuid = self.new_uuid();
        self.processes.push((pid, uuid));
        self.descriptor(uuid, |descriptor| {
            let mut process = Vec::new();
            varint_field(&mut process, 1, u64::from(pid));
            bytes(&mut process, 6, name.as_bytes());
            bytes(descriptor, 3, &process);
        })
    }

    fn thread(&mut self, pid: u32, tid: u32, name: &str) -> io::Result<Track> {
        let uuid = self.new_uuid();
        let parent = self.processes.iter().find(|process| process.0 == pid).map(|process| process.1);
        let track = self.track(uuid);
        self.descriptor(uuid, |descriptor| {
            if let Some(parent) = parent {
                varint_field(descriptor, 5, parent);
            }
            let mut thread = Vec::new();
            varint_field(&mut thread, 1, u64::from(pid));
            varint_field(&mut thread, 2, u64::from(tid));
            bytes(&mut thread, 5, name.as_bytes());
            bytes(descriptor, 4, &thread);
        })?;
        Ok(track)
    }

    fn notes(&mut self, of: Track, name: &str) -> io::Result<Track> {
        self.below(of, name, |_| {})
    }

    fn counter(&mut self, of: Track, name: &str) -> io::Result<Track> {
        // CounterDescriptor: all of it has defaults.
        self.below(of, name, |descriptor| bytes(descriptor, 8, &[]))
    }

    fn value(&mut self, counter: Track, ns: u64, value: f64) -> io::Result<()> {
        let delta = self.delta(counter, ns)?;
        let mut event = Vec::with_capacity(16);
        varint_field(&mut event, field::event::TYPE, COUNTER);
        tag(&mut event, field::event::DOUBLE_COUNTER_VALUE, 1);
        event.extend_from_slice(&value.to_le_bytes());
        self.event(counter, delta, &event, &[])
    }

    fn name(&mut self, text: &str, category: Category) -> Name {
        self.names.push((text.to_owned(), category));
        Name(self.names.len() as u32 - 1)
    }

    fn begin(&mut self, track: Track, ns: u64, name: Name) -> io::Result<()> {
        let delta = self.delta(track, ns)?;
        let index = name.0 as usize;
        let iid = index as u64 + 1;
        let category = self.names[index].1;
        let known = &mut self.sequences[track.0 as usize].known;
        if known.len() <= index / 64 {
            known.resize(index / 64 + 1, 0);
        }
        let mut interned = std::mem::take(&mut self.scratch);
        interned.clear();
        if known[index / 64] & (1 << (index % 64)) == 0 {
            known[index / 64] |= 1 << (index % 64);
            let mut one = Vec::new();
            varint_field(&mut one, 1, iid);
            bytes(&mut one, 2, self.names[index].0.as_bytes());
            let mut data = Vec::new();
            bytes(&mut data, 2, &one);
            bytes(&mut interned, field::packet::INTERNED_DATA, &data);
        }
        let mut event = Small::default();
        event.field(field::event::TYPE, BEGIN);
        event.field(field::event::NAME_IID, iid);
        if category != Category::Function {
            event.field(field::event::CATEGORY_IIDS, category_iid(category));
        }
        let result = self.event(track, delta, event.bytes(), &interned);
        self.scratch = interned;
        result
    }

    fn end(&mut self, track: Track, ns: u64, args: Args) -> io::Result<()> {
        let delta = self.delta(track, ns)?;
        let mut event = Small::default();
        event.field(field::event::TYPE, END);
        if args == Args::default() {
            return self.event(track, delta, event.bytes(), &[]);
        }
        let mut with = event.bytes().to_vec();
        let known = &mut self.sequences[track.0 as usize].annotations;
        let mut names = Vec::new();
        for (index, value) in annotations(args).into_iter().enumerate() {
            let Some(value) = value else { continue };
            if *known & (1 << index) == 0 {
                *known |= 1 << index;
                let mut name = Vec::new();
                varint_field(&mut name, 1, index as u64 + 1);
                bytes(&mut name, 2, ANNOTATIONS[index].as_bytes());
                bytes(&mut names, 3, &name);
            }
            // DebugAnnotation { name_iid, uint_value or double_value }.
            let mut annotation = Small::default();
            annotation.field(1, index as u64 + 1);
            match value {
                Value::Count(count) => annotation.field(3, count),
                Value::Ratio(ratio) => annotation.double(5, ratio),
            }
            bytes(&mut with, field::event::DEBUG_ANNOTATIONS, annotation.bytes());
        }
        let mut interned = Vec::new();
        if !names.is_empty() {
            bytes(&mut interned, field::packet::INTERNED_DATA, &names);
        }
        self.event(track, delta, &with, &interned)
    }

    fn metadata(&mut self, key: &str, value: &str) -> io::Result<()> {
        self.metadata.push(format!("{key}: {value}"));
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        // Perfetto has no free-form metadata; a process's labels are where people see it. A later descriptor's labels
        // would replace an earlier one's, so all stand in one.
        let labels = std::mem::take(&mut self.metadata);
        if let Some((pid, uuid)) = self.processes.first().copied()
            && !labels.is_empty()
        {
            self.descriptor(uuid, |descriptor| {
                let mut process = Vec::new();
                varint_field(&mut process, 1, u64::from(pid));
                for label in labels {
                    bytes(&mut process, 8, label.as_bytes());
                }
                bytes(descriptor, 3, &process);
            })?;
        }
        self.out.write_all(&self.buffer)?;
        self.out.flush()
    }
}

/// Names of debug annotations.
const ANNOTATIONS: [&str; 5] = ["folded calls", "folded ns", "instructions", "cycles", "ipc"];

#[derive(Clone, Copy)]
enum Value {
    Count(u64),
    Ratio(f64),
}

/// A slice's annotations, in the order of their names.
fn annotations(Args { folded, work }: Args) -> [Option<Value>; ANNOTATIONS.len()] {
    let count = |count: u64| (count > 0).then_some(Value::Count(count));
    let [instructions, cycles, ipc] = match work.told() {
        Some(work) => {
            [work.instructions.map(Value::Count), work.cycles.map(Value::Count), work.ipc().map(Value::Ratio)]
        }
        None => [None; 3],
    };
    [count(folded.calls), count(folded.ns), instructions, cycles, ipc]
}

const CATEGORIES: [Category; 8] = [
    Category::Function,
    Category::Inferred,
    Category::Untraced,
    Category::Gap,
    Category::Folded,
    Category::OffCpu,
    Category::Continued,
    Category::Inlined,
];

fn category_iid(category: Category) -> u64 {
    CATEGORIES.iter().position(|known| *known == category).map_or(0, |index| index as u64 + 1)
}

/// Sequence 1 is that of the descriptors.
fn sequence_id(track: Track) -> u64 {
    u64::from(track.0) + 2
}

/// A message of at most 32 bytes, on the stack.
#[derive(Default)]
struct Small {
    bytes: [u8; 32],
    len: usize,
}

impl Small {
    fn field(&mut self, field: u32, value: u64) {
        self.put(u64::from(field << 3));
        self.put(value);
    }

    fn double(&mut self, field: u32, value: f64) {
        self.put(u64::from(field << 3 | 1));
        self.bytes[self.len..self.len + 8].copy_from_slice(&value.to_le_bytes());
        self.len += 8;
    }

    fn put(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes[self.len] = value as u8 | 0x80;
            self.len += 1;
            value >>= 7;
        }
        self.bytes[self.len] = value as u8;
        self.len += 1;
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn tag(out: &mut Vec<u8>, field: u32, wire: u32) {
    varint(out, u64::from(field << 3 | wire));
}

fn varint_field(out: &mut Vec<u8>, field: u32, value: u64) {
    tag(out, field, 0);
    varint(out, value);
}

fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    tag(out, field, 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}
