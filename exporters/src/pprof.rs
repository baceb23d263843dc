//! `profile --format pprof`: call stacks for pprof; and `go`: calls, as `go build -pgo` takes them.
//!
//! A profile is a message of protocol buffers, compressed with gzip (google/pprof's `proto/profile.proto`). Go's compiler looks
//! at pairs of frames next to each other: who calls whom from which line of the function, how often
//! (Go's `src/cmd/internal/pgo/pprof.go`). So a call is a sample of two frames.

use crate::call_profile::StackCosts;
use crate::flow::Flow;
use crate::gzip::Gzip;
use crate::sample_profile::{Frame, SourceLines};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

/// Writes stacks with their calls, instructions and time.
///
/// # Errors
/// Those of `out`.
pub fn write_stacks(out: &mut impl Write, costs: &StackCosts) -> io::Result<()> {
    let mut profile = Profile::new(&[("calls", "count"), ("instructions", "count"), ("time", "nanoseconds")]);
    let locations: Vec<u64> = costs
        .names
        .iter()
        .map(|name| {
            let function = profile.function(name, 0);
            profile.location(vec![(function, 0)])
        })
        .collect();
    for (index, frame) in costs.frames.iter().enumerate() {
        let values = [frame.calls, frame.instructions, frame.ns];
        if values != [0; 3] {
            let stack: Vec<u64> =
                costs.stack(index).filter_map(|frame| locations.get(frame.name).copied()).collect();
            profile.sample(&stack, &values);
        }
    }
    profile.write(out)
}

/// Writes the calls of a binary.
///
/// # Errors
/// Those of `out`.
pub fn write_calls<'n>(out: &mut impl Write, flow: &Flow, source: &impl SourceLines<'n>) -> io::Result<()> {
    let mut profile = Profile::new(&[("samples", "count"), ("cpu", "nanoseconds")]);
    let mut calls: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    for ((from, to), taken) in &flow.branches {
        if let (Some(from), Some(to)) = (from, to)
            && source.entered_at(*to).is_some()
        {
            calls.insert((*from, *to), taken.count);
        }
    }
    let mut frames: Vec<Frame<'n>> = Vec::new();
    for ((from, to), count) in calls {
        let mut stack = Vec::new();
        for addr in [to, from] {
            source.frames(addr, &mut frames);
            let lines = frames.iter().rev().map(|frame| {
                let declared = u64::from(frame.declared);
                (profile.function(frame.function, declared), declared + u64::from(frame.line))
            });
            let lines: Vec<(u64, u64)> = lines.collect();
            if !lines.is_empty() {
                stack.push(profile.location(lines));
            }
        }
        if stack.len() == 2 {
            profile.sample(&stack, &[count, count]);
        }
    }
    profile.write(out)
}

/// A profile in the making.
struct Profile {
    strings: HashMap<String, u64>,
    /// In order.
    string_table: Vec<String>,
    functions: HashMap<(u64, u64), u64>,
    locations: HashMap<Vec<(u64, u64)>, u64>,
    body: Vec<u8>,
}

/// Numbers of the fields in `profile.proto`.
mod field {
    pub const SAMPLE_TYPE: u64 = 1;
    pub const SAMPLE: u64 = 2;
    pub const LOCATION: u64 = 4;
    pub const FUNCTION: u64 = 5;
    pub const STRING: u64 = 6;
}

impl Profile {
    fn new(types: &[(&str, &str)]) -> Self {
        let mut this = Self {
            strings: HashMap::new(),
            string_table: Vec::new(),
            functions: HashMap::new(),
            locations: HashMap::new(),
            body: Vec::new(),
        };
        this.string("");
        for (name, unit) in types {
            let value_type = [this.string(name), this.string(unit)];
            this.message(field::SAMPLE_TYPE, &value_type);
        }
        this
    }

    /// Appends a message whose first fields are these numbers.
    fn message(&mut self, number: u64, fields: &[u64]) {
        let mut message = Vec::new();
        for (number, value) in (1..).zip(fields) {
            varint_field(&mut message, number, *value);
        }
        bytes_field(&mut self.body, number, &message);
    }

    fn string(&mut self, text: &str) -> u64 {
        if let Some(index) = self.strings.get(text) {
            return *index;
        }
        let index = self.string_table.len() as u64;
        self.string_table.push(text.to_owned());
        self.strings.insert(text.to_owned(), index);
        index
    }

    fn function(&mut self, name: &str, declared: u64) -> u64 {
        let name = self.string(name);
        let next = self.functions.len() as u64 + 1;
        if let Some(id) = self.functions.get(&(name, declared)) {
            return *id;
        }
        self.functions.insert((name, declared), next);
        // id, name, system name, file name, line of the declaration.
        self.message(field::FUNCTION, &[next, name, name, 0, declared]);
        next
    }

    /// A place: functions and lines, the innermost first.
    fn location(&mut self, lines: Vec<(u64, u64)>) -> u64 {
        let next = self.locations.len() as u64 + 1;
        if let Some(id) = self.locations.get(&lines) {
            return *id;
        }
        let mut message = Vec::new();
        varint_field(&mut message, 1, next);
        for (function, at) in &lines {
            let mut line = Vec::new();
            varint_field(&mut line, 1, *function);
            varint_field(&mut line, 2, *at);
            bytes_field(&mut message, 4, &line);
        }
        bytes_field(&mut self.body, field::LOCATION, &message);
        self.locations.insert(lines, next);
        next
    }

    /// Locations, the innermost first.
    fn sample(&mut self, stack: &[u64], values: &[u64]) {
        let mut message = Vec::new();
        for (number, numbers) in [(1, stack), (2, values)] {
            let mut packed = Vec::new();
            // Values are signed.
            numbers.iter().for_each(|value| varint(&mut packed, (*value).min(i64::MAX as u64)));
            bytes_field(&mut message, number, &packed);
        }
        bytes_field(&mut self.body, field::SAMPLE, &message);
    }

    fn write(mut self, out: &mut impl Write) -> io::Result<()> {
        for text in &self.string_table {
            bytes_field(&mut self.body, field::STRING, text.as_bytes());
        }
        let mut gzip = Gzip::new(out);
        gzip.write_all(&self.body)?;
        gzip.flush()
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint_field(out: &mut Vec<u8>, number: u64, value: u64) {
    varint(out, number << 3);
    varint(out, value);
}

fn bytes_field(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    varint(out, number << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
