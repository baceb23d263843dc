//! A call trace for reading: one line a call, indented.
//!
//! ```text
//!        12.345 us  1234  handle_request() {
//!        12.401 us  1234    parse() 0.210 us
//!        13.002 us  1234  } handle_request 0.657 us
//! ```

use crate::timeline::{Args, Category, Folded, Name, Timeline, Track, Work};
use std::io::{self, Write};

struct Thread {
    tid: u32,
    open: Vec<(u64, Name)>,
    /// The youngest open slice is not written yet: it may be a leaf.
    pending: bool,
}

/// Writes a `.txt`.
pub struct TextWriter<W: Write> {
    out: io::BufWriter<W>,
    threads: Vec<Thread>,
    names: Vec<String>,
    start: Option<u64>,
}

impl<W: Write> TextWriter<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self {
            out: io::BufWriter::with_capacity(1 << 18, out),
            threads: Vec::new(),
            names: Vec::new(),
            start: None,
        }
    }

    fn line(&mut self, ns: u64, tid: u32, depth: usize, rest: std::fmt::Arguments<'_>) -> io::Result<()> {
        let start = *self.start.get_or_insert(ns);
        // Another thread's first line may be of a later time.
        let sign = if ns < start { "-" } else { "" };
        let since = ns.abs_diff(start);
        let time = format!("{sign}{}.{:03}", since / 1000, since % 1000);
        // Deeper lines are indented no further: they would not be read.
        let indent = 2 * depth.min(60);
        writeln!(self.out, "{time:>14} us {tid:>7}  {:indent$}{rest}", "")
    }

    /// Writes the youngest open slice's head, which is no leaf after all.
    fn flush_pending(&mut self, track: Track) -> io::Result<()> {
        let thread = &mut self.threads[track.0 as usize];
        if !std::mem::take(&mut thread.pending) {
            return Ok(());
        }
        let Some((ns, name)) = thread.open.last().copied() else { return Ok(()) };
        let (tid, depth) = (thread.tid, thread.open.len() - 1);
        let text = std::mem::take(&mut self.names[name.0 as usize]);
        let result = self.line(ns, tid, depth, format_args!("{text} {{"));
        self.names[name.0 as usize] = text;
        result
    }
}

impl<W: Write> Timeline for TextWriter<W> {
    fn process(&mut self, pid: u32, name: &str) -> io::Result<()> {
        writeln!(self.out, "# process {pid} {name}")
    }

    fn thread(&mut self, _: u32, tid: u32, name: &str) -> io::Result<Track> {
        writeln!(self.out, "# thread {tid} {name}")?;
        self.threads.push(Thread { tid, open: Vec::new(), pending: false });
        Ok(Track(self.threads.len() as u32 - 1))
    }

    fn notes(&mut self, of: Track, _: &str) -> io::Result<Track> {
        let tid = self.threads[of.0 as usize].tid;
        self.threads.push(Thread { tid, open: Vec::new(), pending: false });
        Ok(Track(self.threads.len() as u32 - 1))
    }

    fn counter(&mut self, of: Track, name: &str) -> io::Result<Track> {
        self.notes(of, name)
    }

    fn value(&mut self, _: Track, _: u64, _: f64) -> io::Result<()> {
        Ok(())
    }

    fn name(&mut self, text: &str, category: Category) -> Name {
        let more = if category == Category::Continued { " (continued)" } else { "" };
        self.names.push(format!("{text}{more}"));
        Name(self.names.len() as u32 - 1)
    }

    fn begin(&mut self, track: Track, ns: u64, name: Name) -> io::Result<()> {
        self.flush_pending(track)?;
        let thread = &mut self.threads[track.0 as usize];
        thread.open.push((ns, name));
        thread.pending = true;
        Ok(())
    }

    fn end(&mut self, track: Track, ns: u64, args: Args) -> io::Result<()> {
        let thread = &mut self.threads[track.0 as usize];
        let leaf = std::mem::take(&mut thread.pending);
        let Some((begin, name)) = thread.open.pop() else { return Ok(()) };
        let (tid, depth, took) = (thread.tid, thread.open.len(), ns.saturating_sub(begin));
        let text = std::mem::take(&mut self.names[name.0 as usize]);
        let (us, rest) = (took / 1000, took % 1000);
        let more = in_words(args);
        let result = if leaf {
            self.line(begin, tid, depth, format_args!("{text} {us}.{rest:03} us{more}"))
        } else {
            self.line(ns, tid, depth, format_args!("}} {text} {us}.{rest:03} us{more}"))
        };
        self.names[name.0 as usize] = text;
        result
    }

    fn metadata(&mut self, key: &str, value: &str) -> io::Result<()> {
        writeln!(self.out, "# {key}: {value}")
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.out.flush()
    }
}

/// What else there is to say of a slice, to stand behind its duration.
fn in_words(Args { folded, work }: Args) -> String {
    let mut words = String::new();
    if let Some(Work { instructions, cycles }) = work.told() {
        for (count, what) in [(instructions, "instructions"), (cycles, "cycles")] {
            if let Some(count) = count {
                words.push_str(&format!(", {count} {what}"));
            }
        }
        if let Some(ipc) = work.ipc() {
            words.push_str(&format!(" ({ipc:.2} a cycle)"));
        }
    }
    match folded {
        Folded { calls: 0, .. } => {}
        Folded { calls, ns: 0 } => words.push_str(&format!(", {calls} calls not shown")),
        Folded { calls, ns } => {
            words.push_str(&format!(", {calls} calls of {}.{:03} us not shown", ns / 1000, ns % 1000));
        }
    }
    words
}
