//! The trailer that every kernel record carries where `sample_id_all` is set: who, when, where.
//!
//! Read from the end: its length follows from the event's sample type (linux `tools/perf/util/evsel.c`,
//! `perf_evsel__parse_id_sample`).

use crate::attr::sample_type as st;
use crate::bytes::Fields;
use crate::file::Event;
use crate::record::Record;
use crate::{Cpu, Pid, Tid};
use std::collections::HashMap;

/// What a trailer says; fields that the event does not record are `None`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Trailer {
    /// Process.
    pub pid: Option<Pid>,
    /// Thread.
    pub tid: Option<Tid>,
    /// perf time; 0 in records that perf made up at the start.
    pub time: Option<u64>,
    /// Event id.
    pub id: Option<u64>,
    /// CPU.
    pub cpu: Option<Cpu>,
}

/// Reads trailers of one file.
#[derive(Clone, Debug, Default)]
pub struct Trailers {
    by_id: HashMap<u64, u64>,
    /// The sample type where no id tells.
    default: Option<u64>,
    /// Every event has an id as the trailer's last field.
    identified: bool,
}

impl Trailers {
    /// For the events of a file.
    pub fn new(events: &[Event]) -> Self {
        let with_trailer = || events.iter().filter(|event| event.attr.sample_id_all());
        let by_id = with_trailer()
            .flat_map(|event| event.ids.iter().map(|id| (*id, event.attr.sample_type)))
            .collect();
        Self {
            by_id,
            default: with_trailer().map(|event| event.attr.sample_type).next(),
            identified: with_trailer().all(|event| event.attr.sample_type & st::IDENTIFIER != 0),
        }
    }

    /// The trailer of a kernel record; empty where there is none.
    pub fn read(&self, record: &Record<'_>) -> Trailer {
        let Some(mut sample_type) = self.default.filter(|_| record.kind < 64) else {
            return Trailer::default();
        };
        let body = record.body;
        if self.identified
            && let Some(at) = body.len().checked_sub(8)
            && let Some(id) = Fields(&body[at..]).u64()
            && let Some(found) = self.by_id.get(&id)
        {
            sample_type = *found;
        }
        let parts = [st::TID, st::TIME, st::ID, st::STREAM_ID, st::CPU, st::IDENTIFIER];
        let len = 8 * parts.iter().filter(|part| sample_type & **part != 0).count();
        let Some(start) = body.len().checked_sub(len) else { return Trailer::default() };
        let mut f = Fields(&body[start..]);
        let mut trailer = Trailer::default();
        let has = |part: u64| sample_type & part != 0;
        if has(st::TID) {
            trailer.pid = f.u32().map(Pid);
            trailer.tid = f.u32().map(Tid);
        }
        if has(st::TIME) {
            trailer.time = f.u64();
        }
        if has(st::ID) {
            trailer.id = f.u64();
        }
        if has(st::STREAM_ID) {
            f.u64();
        }
        if has(st::CPU) {
            trailer.cpu = f.u32().map(Cpu);
            f.u32();
        }
        if has(st::IDENTIFIER) {
            trailer.id = f.u64();
        }
        trailer
    }
}
