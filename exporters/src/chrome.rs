//! Chrome's trace JSON: microseconds with three decimals.
//!
//! A slice is a begin ("B") and an end ("E"), and each thread's events stand in the order in which they happened: that is
//! how a viewer nests slices of equal times. Complete events ("X") would be shorter, but a viewer sorts them by time and
//! duration, and slices of no length would come to lie in their siblings.
//!
//! Viewers read times as doubles of microseconds: counted from the machine's start or the epoch they lose nanoseconds. So
//! times are counted from an origin, which stands in `otherData`.

use crate::address::push_number;
use crate::timeline::{Args, Category, Folded, Name, Timeline, Track};
use std::collections::BTreeMap;
use std::io::{self, Write};

const BUFFER: usize = 1 << 18;

/// The origin lies so many nanoseconds, an hour, before the first event that is written: other threads' events may be
/// earlier, and Perfetto drops events of negative time. A double still tells nanoseconds apart.
const EARLIER: u64 = 3_600_000_000_000;

#[derive(Clone, Copy)]
struct Thread {
    pid: u32,
    tid: u32,
}

/// Writes a `.json`.
pub struct ChromeWriter<W: Write> {
    out: W,
    buffer: Vec<u8>,
    threads: Vec<Thread>,
    /// Escaped names of tracks that are curves.
    counters: BTreeMap<u32, Vec<u8>>,
    /// Names with their categories, escaped.
    names: Vec<Vec<u8>>,
    metadata: Vec<(String, String)>,
    origin: Option<u64>,
    first: bool,
}

impl<W: Write> ChromeWriter<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            buffer: b"{\"displayTimeUnit\":\"ns\",\"traceEvents\":[".to_vec(),
            threads: Vec::new(),
            counters: BTreeMap::new(),
            names: Vec::new(),
            metadata: Vec::new(),
            origin: None,
            first: true,
        }
    }

    fn separate(&mut self) {
        if !std::mem::take(&mut self.first) {
            self.buffer.push(b',');
        }
        self.buffer.push(b'\n');
    }

    fn name_event(&mut self, what: &str, pid: u32, tid: u32, name: &str) -> io::Result<()> {
        self.separate();
        let head =
            format!("{{\"ph\":\"M\",\"name\":\"{what}\",\"pid\":{pid},\"tid\":{tid},\"args\":{{\"name\":");
        self.buffer.extend_from_slice(head.as_bytes());
        push_string(&mut self.buffer, name);
        self.buffer.extend_from_slice(b"}}");
        self.flush_if_full()
    }

    /// An event but for its closing brace.
    fn event(&mut self, phase: u8, track: Track, ns: u64, name: Option<Name>) {
        self.separate();
        let Thread { pid, tid } = self.threads[track.0 as usize];
        let origin = *self.origin.get_or_insert(ns.saturating_sub(EARLIER));
        let out = &mut self.buffer;
        out.extend_from_slice(b"{\"ph\":\"");
        out.extend_from_slice(&[phase, b'"', b',']);
        if let Some(name) = name {
            out.extend_from_slice(&self.names[name.0 as usize]);
            out.push(b',');
        }
        out.extend_from_slice(b"\"pid\":");
        push_number(out, u64::from(pid));
        out.extend_from_slice(b",\"tid\":");
        push_number(out, u64::from(tid));
        out.extend_from_slice(b",\"ts\":");
        push_micros(out, ns.saturating_sub(origin));
    }

    fn flush_if_full(&mut self) -> io::Result<()> {
        if self.buffer.len() >= BUFFER {
            self.out.write_all(&self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }
}

impl<W: Write> Timeline for ChromeWriter<W> {
    fn process(&mut self, pid: u32, name: &str) -> io::Result<()> {
        self.name_event("process_name", pid, pid, name)
    }

    fn thread(&mut self, pid: u32, tid: u32, name: &str) -> io::Result<Track> {
        self.threads.push(Thread { pid, tid });
        self.name_event("thread_name", pid, tid, name)?;
        Ok(Track(self.threads.len() as u32 - 1))
    }

    fn notes(&mut self, of: Track, name: &str) -> io::Result<Track> {
        // The format knows no tracks below a thread: a thread of its own, with a number that no real one has.
        let Thread { pid, tid } = self.threads[of.0 as usize];
        self.thread(pid, tid | 0x4000_0000, name)
    }

    fn counter(&mut self, of: Track, name: &str) -> io::Result<Track> {
        // Counters are a process's, and those of one name are one: the thread stands in it.
        let Thread { pid, tid } = self.threads[of.0 as usize];
        self.threads.push(Thread { pid, tid });
        let track = self.threads.len() as u32 - 1;
        let mut escaped = b"\"name\":".to_vec();
        push_string(&mut escaped, &format!("{tid} {name}"));
        self.counters.insert(track, escaped);
        Ok(Track(track))
    }

    fn value(&mut self, counter: Track, ns: u64, value: f64) -> io::Result<()> {
        let Some(name) = self.counters.get(&counter.0).cloned() else { return Ok(()) };
        self.separate();
        let Thread { pid, tid } = self.threads[counter.0 as usize];
        let origin = *self.origin.get_or_insert(ns.saturating_sub(EARLIER));
        let out = &mut self.buffer;
        out.extend_from_slice(b"{\"ph\":\"C\",");
        out.extend_from_slice(&name);
        out.extend_from_slice(format!(",\"pid\":{pid},\"tid\":{tid},\"ts\":").as_bytes());
        push_micros(out, ns.saturating_sub(origin));
        out.extend_from_slice(format!(",\"args\":{{\"value\":{value:.3}}}}}").as_bytes());
        self.flush_if_full()
    }

    fn name(&mut self, text: &str, category: Category) -> Name {
        let mut escaped = b"\"name\":".to_vec();
        push_string(&mut escaped, text);
        escaped.extend_from_slice(format!(",\"cat\":\"{}\"", category.name()).as_bytes());
        self.names.push(escaped);
        Name(self.names.len() as u32 - 1)
    }

    fn begin(&mut self, track: Track, ns: u64, name: Name) -> io::Result<()> {
        self.event(b'B', track, ns, Some(name));
        self.buffer.push(b'}');
        self.flush_if_full()
    }

    fn end(&mut self, track: Track, ns: u64, args: Args) -> io::Result<()> {
        self.event(b'E', track, ns, None);
        push_args(&mut self.buffer, args);
        self.buffer.push(b'}');
        self.flush_if_full()
    }

    fn metadata(&mut self, key: &str, value: &str) -> io::Result<()> {
        self.metadata.push((key.to_owned(), value.to_owned()));
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.buffer.extend_from_slice(b"\n],\"otherData\":{\"origin_ns\":\"");
        push_number(&mut self.buffer, self.origin.unwrap_or(0));
        self.buffer.push(b'"');
        for (key, value) in std::mem::take(&mut self.metadata) {
            self.buffer.push(b',');
            push_string(&mut self.buffer, &key);
            self.buffer.push(b':');
            push_string(&mut self.buffer, &value);
        }
        self.buffer.extend_from_slice(b"}}\n");
        self.out.write_all(&self.buffer)?;
        self.out.flush()
    }
}

/// An event's arguments, if there is something to say.
fn push_args(out: &mut Vec<u8>, Args { folded: Folded { calls, ns }, work }: Args) {
    let work = work.told();
    if calls == 0 && work.is_none() {
        return;
    }
    out.extend_from_slice(b",\"args\":{");
    let mut is_first = true;
    let mut key = |out: &mut Vec<u8>, name: &str| {
        if !std::mem::take(&mut is_first) {
            out.push(b',');
        }
        push_string(out, name);
        out.push(b':');
    };
    if calls > 0 {
        key(out, "folded calls");
        push_number(out, calls);
        if ns > 0 {
            key(out, "folded ns");
            push_number(out, ns);
        }
    }
    if let Some(work) = work {
        for (name, count) in [("instructions", work.instructions), ("cycles", work.cycles)] {
            if let Some(count) = count {
                key(out, name);
                push_number(out, count);
            }
        }
        if let Some(ipc) = work.ipc() {
            key(out, "ipc");
            out.extend_from_slice(format!("{ipc:.3}").as_bytes());
        }
    }
    out.push(b'}');
}

/// Nanoseconds as microseconds with three decimals.
fn push_micros(out: &mut Vec<u8>, ns: u64) {
    push_number(out, ns / 1000);
    let rest = ns % 1000;
    out.extend_from_slice(&[
        b'.',
        b'0' + (rest / 100) as u8,
        b'0' + (rest / 10 % 10) as u8,
        b'0' + (rest % 10) as u8,
    ]);
}

/// A JSON string (RFC 8259, section 7).
fn push_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0..=0x1f => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}
