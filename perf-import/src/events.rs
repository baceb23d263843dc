//! The events of a file, and what follows from them: how to read a sample, and the trailer of every other record.

use crate::attr::{Attr, sample_type as st};
use crate::bytes::{Fields, Put};
use crate::record::{Record, Sample, kind};
use crate::{Cpu, Pid, Tid};
use ptflow_decoder::units::Ns;
use std::collections::HashMap;

/// One event of the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Its attributes.
    pub attr: Attr,
    /// The ids that samples and trailers name it by.
    pub ids: Vec<u64>,
}

/// The trailer that every kernel record but SAMPLE carries where `sample_id_all` is set: who, when, where.
/// Fields that the event does not record are `None`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Trailer {
    /// Process and thread.
    pub task: Option<(Pid, Tid)>,
    /// perf time; 0 in records that perf made up at the start.
    pub time: Option<Ns>,
    /// Event id.
    pub id: Option<u64>,
    /// The event's stream.
    pub stream_id: Option<u64>,
    /// CPU.
    pub cpu: Option<Cpu>,
}

/// The parts of a trailer; each has eight bytes (`perf_event__output_id_sample` in linux `kernel/events/core.c`).
const TRAILER_PARTS: u64 = st::TID | st::TIME | st::ID | st::STREAM_ID | st::CPU | st::IDENTIFIER;

impl Trailer {
    /// Reads the end of a record's body; empty where the body is too short.
    fn read(body: &[u8], sample_type: u64) -> Self {
        let len = 8 * (sample_type & TRAILER_PARTS).count_ones() as usize;
        let Some(start) = body.len().checked_sub(len) else { return Self::default() };
        let mut f = Fields(&body[start..]);
        let mut part = |bit: u64| if sample_type & bit != 0 { f.u64() } else { None };
        let task = part(st::TID).map(|word| (Pid(word as u32), Tid((word >> 32) as u32)));
        let time = part(st::TIME).map(Ns);
        let id = part(st::ID);
        let stream_id = part(st::STREAM_ID);
        let cpu = part(st::CPU).map(|word| Cpu(word as u32));
        Self { task, time, id: part(st::IDENTIFIER).or(id), stream_id, cpu }
    }

    /// Appends the parts of a sample type; those that the trailer has not are 0.
    pub fn write(&self, sample_type: u64, out: &mut Vec<u8>) {
        let mut part = |bit: u64, value: u64| {
            if sample_type & bit != 0 {
                out.u64(value);
            }
        };
        let (pid, tid) = self.task.unwrap_or((Pid(0), Tid(0)));
        part(st::TID, u64::from(pid.0) | u64::from(tid.0) << 32);
        part(st::TIME, self.time.map_or(0, |time| time.0));
        part(st::ID, self.id.unwrap_or(0));
        part(st::STREAM_ID, self.stream_id.unwrap_or(0));
        part(st::CPU, self.cpu.map_or(0, |cpu| u64::from(cpu.0)));
        part(st::IDENTIFIER, self.id.unwrap_or(0));
    }
}

/// The events of a file.
#[derive(Clone, Debug, Default)]
pub struct Events {
    events: Vec<Event>,
    by_id: HashMap<u64, usize>,
    /// Every event has its id at the front of samples and the end of trailers (`PERF_SAMPLE_IDENTIFIER`).
    identified: bool,
    /// Where in a sample the id stands, where all events agree on it.
    sample_id_at: Option<usize>,
}

impl Events {
    /// Of a file.
    pub fn new(events: Vec<Event>) -> Self {
        let by_id = events
            .iter()
            .enumerate()
            .flat_map(|(index, event)| event.ids.iter().map(move |id| (*id, index)))
            .collect();
        let identified = events.iter().all(|event| event.attr.has(st::IDENTIFIER));
        let mut places = events.iter().map(|event| id_position(event.attr.sample_type));
        let first = places.next().flatten();
        let sample_id_at = first.filter(|first| places.all(|place| place == Some(*first)));
        Self { events, by_id, identified, sample_id_at }
    }

    /// The events in the order of the file.
    pub fn iter(&self) -> std::slice::Iter<'_, Event> {
        self.events.iter()
    }

    /// The event of that id.
    pub fn by_id(&self, id: u64) -> Option<&Event> {
        self.events.get(*self.by_id.get(&id)?)
    }

    /// The event that a sample is of: by the id in it, else the first one (`evlist__id2evsel` in perf does the same).
    pub fn of_sample(&self, record: &Record<'_>) -> Option<&Event> {
        let first = self.events.first()?;
        if self.events.len() == 1 {
            return Some(first);
        }
        let Some(at) = self.sample_id_at else { return Some(first) };
        let id = Fields(record.body.get(at..)?).u64()?;
        // Samples of id 0 are of the first event.
        if id == 0 { Some(first) } else { self.by_id(id) }
    }

    /// A sample with its event; `None` for other records and for those that cannot be read.
    pub fn sample<'m>(&self, record: &Record<'m>) -> Option<(&Event, Sample<'m>)> {
        if record.kind != kind::SAMPLE {
            return None;
        }
        let event = self.of_sample(record)?;
        Some((event, Sample::read(record, &event.attr)?))
    }

    /// The trailer of a record; empty where it has none.
    pub fn trailer(&self, record: &Record<'_>) -> Trailer {
        if record.kind >= kind::USER_TYPE_START || record.kind == kind::SAMPLE {
            return Trailer::default();
        }
        let named = || {
            let at = record.body.len().checked_sub(8).filter(|_| self.identified)?;
            self.by_id(Fields(&record.body[at..]).u64()?)
        };
        match named().or(self.events.first()).filter(|event| event.attr.sample_id_all()) {
            Some(event) => Trailer::read(record.body, event.attr.sample_type),
            None => Trailer::default(),
        }
    }
}

/// Where the id stands in a sample (`__evsel__calc_id_pos` in perf).
fn id_position(sample_type: u64) -> Option<usize> {
    if sample_type & st::IDENTIFIER != 0 {
        return Some(0);
    }
    let before = sample_type & (st::IP | st::TID | st::TIME | st::ADDR);
    (sample_type & st::ID != 0).then_some(8 * before.count_ones() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FileOffset;
    use crate::attr::flag;

    fn event(sample_type: u64, ids: &[u64]) -> Event {
        Event { attr: Attr { sample_type, flags: flag::SAMPLE_ID_ALL, ..Attr::default() }, ids: ids.to_vec() }
    }

    fn record(kind: u32, body: &[u8]) -> Record<'_> {
        Record { kind, misc: 0, body, payload: &[], offset: FileOffset(0) }
    }

    #[test]
    fn trailers_round_trip_in_every_combination() {
        let parts = [st::TID, st::TIME, st::ID, st::STREAM_ID, st::CPU, st::IDENTIFIER];
        for chosen in 0..1 << parts.len() {
            let sample_type: u64 = parts
                .iter()
                .enumerate()
                .filter(|(index, _)| chosen & (1 << index) != 0)
                .map(|(_, part)| part)
                .sum();
            let has = |bit: u64| sample_type & bit != 0;
            let trailer = Trailer {
                task: has(st::TID).then_some((Pid(1), Tid(2))),
                time: has(st::TIME).then_some(Ns(3)),
                id: has(st::ID | st::IDENTIFIER).then_some(4),
                stream_id: has(st::STREAM_ID).then_some(5),
                cpu: has(st::CPU).then_some(Cpu(6)),
            };
            let mut body = b"name\0\0\0\0".to_vec();
            trailer.write(sample_type, &mut body);
            let events = Events::new(vec![event(sample_type, &[4])]);
            assert_eq!(events.trailer(&record(kind::COMM, &body)), trailer);
            for other in [kind::SAMPLE, kind::AUXTRACE] {
                assert_eq!(events.trailer(&record(other, &body)), Trailer::default());
            }
            for len in 0..body.len() {
                events.trailer(&record(kind::COMM, &body[..len]));
            }
        }
    }

    #[test]
    fn events_of_different_shape_are_told_apart_by_identifier() {
        let events = Events::new(vec![
            event(st::IDENTIFIER | st::IP | st::TIME, &[10]),
            event(st::IDENTIFIER | st::TIME | st::CPU, &[20, 21]),
        ]);
        let body = [21u64, 500, 3].map(u64::to_le_bytes).concat();
        let (_, sample) = events.sample(&record(kind::SAMPLE, &body)).unwrap();
        assert_eq!((sample.time, sample.cpu, sample.ip), (Some(Ns(500)), Some(Cpu(3)), None));
        let body = [500u64, 3, 21].map(u64::to_le_bytes).concat();
        let trailer = events.trailer(&record(kind::SWITCH, &body));
        assert_eq!((trailer.time, trailer.cpu, trailer.id), (Some(Ns(500)), Some(Cpu(3)), Some(21)));
        // An id that no event has.
        let body = [99u64, 500, 3].map(u64::to_le_bytes).concat();
        assert_eq!(events.sample(&record(kind::SAMPLE, &body)), None);
    }

    #[test]
    fn without_identifier_the_id_is_at_its_place() {
        let shape = st::IP | st::TID | st::ID;
        let events = Events::new(vec![event(shape, &[1]), event(shape | st::PERIOD, &[2])]);
        let body = [0x1000u64, 0, 2, 77].map(u64::to_le_bytes).concat();
        let (event, sample) = events.sample(&record(kind::SAMPLE, &body)).unwrap();
        assert_eq!((event.ids[0], sample.period), (2, Some(77)));
    }
}
