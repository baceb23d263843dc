//! Timelines made from a seed, and what a reader must find in their files.
#![allow(dead_code, reason = "each test uses its part")]

use ptflow_exporters::chrome::ChromeWriter;
use ptflow_exporters::depth::DepthGuard;
use ptflow_exporters::gzip::Gzip;
use ptflow_exporters::perfetto::PerfettoWriter;
use ptflow_exporters::timeline::{Args, Category, Folded, Timeline, Track, Work};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::rc::Rc;

/// A slice as a reader finds it. Of a model's slices, those of one track stand in the order in which they begin.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Slice {
    /// `PID/TID`, and for a track of notes `/NAME`.
    pub track: String,
    pub begin: u64,
    pub dur: u64,
    pub depth: usize,
    pub name: String,
    pub category: String,
    pub folded: u64,
    /// Instructions and cycles, and their ratio in thousandths, where they are told.
    pub work: Told,
    /// The slice around it: name, begin and duration.
    pub parent: Option<(String, u64, u64)>,
}

/// Instructions, cycles, thousandths of instructions per cycle.
pub type Told = [Option<u64>; 3];

/// A slice of the model.
#[derive(Clone, Debug)]
struct Call {
    name: usize,
    begin: u64,
    end: u64,
    folded: u64,
    work: Work,
    depth: usize,
    parent: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Begin(usize),
    End(usize),
}

#[derive(Debug)]
struct Thread {
    pid: u32,
    tid: u32,
    /// On the notes below the thread's track, not on the track itself.
    notes: bool,
    calls: Vec<Call>,
    events: Vec<Event>,
}

/// A timeline to be written.
#[derive(Debug)]
pub struct Model {
    pub processes: Vec<(u32, String)>,
    threads: Vec<Thread>,
    names: Vec<(String, Category)>,
    rng: Rng,
}

pub const NOTES: &str = "trace state";
/// Nanoseconds: some 50 days after the machine's start, where a double of microseconds is just exact.
const EPOCH: u64 = 4_320_000_000_000_123;

impl Model {
    /// Random calls: zero to three levels for some roots, hundreds for none; a quarter of them of no length.
    pub fn random(seed: u64, threads: usize, calls: usize) -> Self {
        let mut model = Self::empty(seed);
        for index in 0..threads as u32 {
            let pid = 100 + index / 3 * 100;
            let tid = pid + index % 3;
            if tid == pid {
                model.processes.push((pid, format!("process \"{pid}\"")));
            }
            // Later threads begin earlier.
            let start = EPOCH - u64::from(index) * 1_000_003;
            model.thread(pid, tid, false, |thread, rng| {
                let mut now = start;
                while thread.calls.len() < calls {
                    now += rng.below(1000);
                    let end = now + rng.below(100_000);
                    let budget = rng.below(calls as u64 / 4 + 1) as usize + 1;
                    thread.random_call(rng, None, now, end, budget);
                    now = end;
                }
            });
            if index % 2 == 0 {
                model.thread(pid, tid, true, |thread, rng| {
                    let mut now = start - 5000;
                    for _ in 0..5 {
                        let end = now + rng.below(3) * 100;
                        thread.leaf(GAP, now, end);
                        now = end + rng.below(5000);
                    }
                });
            }
        }
        model
    }

    /// One thread that nests `depth` calls, goes half the way back and down again, and then does it all once more.
    pub fn deep(depth: u64) -> Self {
        let mut model = Self::empty(1);
        model.processes.push((7, "deep".to_owned()));
        model.thread(7, 7, false, |thread, rng| {
            for round in 0..2 {
                let mut now = EPOCH + round * 1_000_000;
                let mut open = Vec::new();
                let mut down = |thread: &mut Thread, open: &mut Vec<usize>, now: &mut u64| {
                    while (open.len() as u64) < depth {
                        let name = FUNCTIONS + rng.below(100) as usize;
                        open.push(thread.begin(name, open.last().copied(), *now));
                        *now += rng.below(3);
                    }
                };
                let up = |thread: &mut Thread, open: &mut Vec<usize>, now: &mut u64, to: u64| {
                    while open.len() as u64 > to {
                        *now += 1;
                        let call = open.pop().expect("not empty");
                        thread.calls[call].folded = (call % 7) as u64;
                        thread.end(call, *now);
                    }
                };
                down(thread, &mut open, &mut now);
                up(thread, &mut open, &mut now, depth / 2);
                down(thread, &mut open, &mut now);
                up(thread, &mut open, &mut now, depth / 10);
                down(thread, &mut open, &mut now);
                up(thread, &mut open, &mut now, 0);
            }
        });
        model
    }

    /// The same, but each thread stops early, with calls open: they last until its last event.
    pub fn cut(mut self) -> Self {
        for thread in &mut self.threads {
            thread.events.truncate(thread.events.len() * 2 / 5);
            let begun = thread.events.iter().filter(|event| matches!(event, Event::Begin(_))).count();
            thread.calls.truncate(begun);
            let last = match thread.events.last() {
                Some(Event::Begin(call)) => thread.calls[*call].begin,
                Some(Event::End(call)) => thread.calls[*call].end,
                None => 0,
            };
            let mut open: BTreeSet<usize> = (0..begun).collect();
            for event in &thread.events {
                if let Event::End(call) = event {
                    open.remove(call);
                }
            }
            assert!(thread.notes || !open.is_empty(), "nothing is open");
            for call in open {
                let call = &mut thread.calls[call];
                (call.end, call.folded, call.work) = (last, 0, Work::default());
            }
        }
        self
    }

    fn empty(seed: u64) -> Self {
        let mut names = vec![
            ("gap: overflow".to_owned(), Category::Gap),
            ("x".repeat(300_000), Category::Function),
            ("operator<<\"quoted\\ \t\n\u{1}\u{7f}".to_owned(), Category::Function),
            ("größe::λ→🦀".to_owned(), Category::Inferred),
            ("[syscall]".to_owned(), Category::Untraced),
        ];
        names.extend((0..300).map(|number| (format!("ns::Type<{number}>::call()"), Category::Function)));
        // Names may be equal in two categories.
        names.extend((0..100).map(|number| (format!("ns::Type<{number}>::call()"), Category::Inferred)));
        Self { processes: Vec::new(), threads: Vec::new(), names, rng: Rng(seed) }
    }

    fn thread(&mut self, pid: u32, tid: u32, notes: bool, fill: impl FnOnce(&mut Thread, &mut Rng)) {
        let mut thread = Thread { pid, tid, notes, calls: Vec::new(), events: Vec::new() };
        fill(&mut thread, &mut self.rng);
        self.threads.push(thread);
    }

    /// Writes all, the threads' events mixed in an order of their own that keeps each thread's.
    pub fn write(&self, mut timeline: Box<dyn Timeline>) {
        let ok = "memory takes all";
        timeline.metadata("before", "all processes").expect(ok);
        for (pid, name) in &self.processes {
            timeline.process(*pid, name).expect(ok);
        }
        timeline.metadata("command", "record \"it\"").expect(ok);
        let names: Vec<_> =
            self.names.iter().map(|(text, category)| timeline.name(text, *category)).collect();
        let mut tracks: Vec<Track> = Vec::new();
        for thread in &self.threads {
            tracks.push(if thread.notes {
                timeline.notes(*tracks.last().expect("notes follow their thread"), NOTES).expect(ok)
            } else {
                timeline.thread(thread.pid, thread.tid, &thread_name(thread.tid)).expect(ok)
            });
        }
        let mut rng = Rng(self.rng.0);
        let mut left: Vec<_> = self.threads.iter().map(|thread| thread.events.iter()).collect();
        let mut unfinished: Vec<usize> = (0..left.len()).collect();
        while !unfinished.is_empty() {
            let at = rng.below(unfinished.len() as u64) as usize;
            let index = unfinished[at];
            for _ in 0..rng.below(50) {
                let calls = &self.threads[index].calls;
                match left[index].next() {
                    Some(Event::Begin(call)) => {
                        timeline.begin(tracks[index], calls[*call].begin, names[calls[*call].name])
                    }
                    Some(Event::End(call)) => timeline.end(
                        tracks[index],
                        calls[*call].end,
                        Args {
                            folded: Folded { calls: calls[*call].folded, ns: 0 },
                            work: calls[*call].work,
                        },
                    ),
                    None => {
                        unfinished.swap_remove(at);
                        break;
                    }
                }
                .expect(ok);
            }
        }
        timeline.finish().expect(ok);
    }

    /// The bytes of a file of this format.
    pub fn file(&self, format: Format) -> Vec<u8> {
        let sink = Sink::default();
        self.write(Box::new(DepthGuard::new(format.writer(sink.clone()))));
        sink.0.take()
    }

    /// What must be found: from level 511 on, one slice for all that lies below it, itself counted.
    pub fn slices(&self) -> Vec<Slice> {
        const LAST: usize = 511;
        let mut found = Vec::new();
        for thread in &self.threads {
            let frames = thread.sums(|_| 1);
            let calls = thread.sums(|call| 1 + call.folded);
            for (index, call) in thread.calls.iter().enumerate() {
                let named =
                    |call: &Call| (self.names[call.name].0.clone(), call.begin, call.end - call.begin);
                let (mut name, mut category) = self.names[call.name].clone();
                let mut folded = call.folded;
                if call.depth > LAST {
                    continue;
                }
                if call.depth == LAST {
                    (name, category) = (format!("[+{} deeper frames]", frames[index]), Category::Folded);
                    folded = calls[index];
                }
                found.push(Slice {
                    track: track_name(thread.pid, thread.tid, thread.notes.then_some(NOTES)),
                    begin: call.begin,
                    dur: call.end - call.begin,
                    depth: call.depth,
                    name,
                    category: category.name().to_owned(),
                    folded,
                    work: told(call.work),
                    parent: call.parent.map(|parent| named(&thread.calls[parent])),
                });
            }
        }
        found
    }

    /// Threads by number: process, name.
    pub fn threads(&self) -> Vec<(u32, u32, String)> {
        let threads = self.threads.iter().filter(|thread| !thread.notes);
        threads.map(|thread| (thread.pid, thread.tid, thread_name(thread.tid))).collect()
    }
}

/// What a file says of it: nothing, if nothing was executed.
fn told(Work { instructions, cycles }: Work) -> Told {
    if instructions.unwrap_or(0) + cycles.unwrap_or(0) == 0 {
        return [None; 3];
    }
    let ipc = match (instructions, cycles) {
        (Some(instructions), Some(cycles @ 1..)) => Some(instructions as f64 / cycles as f64),
        _ => None,
    };
    [instructions, cycles, ipc.map(thousandths)]
}

pub fn thousandths(ratio: f64) -> u64 {
    (ratio * 1e3).round() as u64
}

fn thread_name(tid: u32) -> String {
    format!("worker/{tid} ä")
}

/// How [`Slice::track`] is written.
pub fn track_name(pid: u32, tid: u32, notes: Option<&str>) -> String {
    match notes {
        Some(notes) => format!("{pid}/{tid}/{notes}"),
        None => format!("{pid}/{tid}"),
    }
}

// Positions in the names.
const GAP: usize = 0;
const LONG: usize = 1;
const FUNCTIONS: usize = 5;

impl Thread {
    fn begin(&mut self, name: usize, parent: Option<usize>, begin: u64) -> usize {
        let depth = parent.map_or(0, |parent| self.calls[parent].depth + 1);
        self.calls.push(Call { name, begin, end: begin, folded: 0, work: Work::default(), depth, parent });
        self.events.push(Event::Begin(self.calls.len() - 1));
        self.calls.len() - 1
    }

    fn end(&mut self, call: usize, end: u64) {
        self.calls[call].end = end;
        self.events.push(Event::End(call));
    }

    fn leaf(&mut self, name: usize, begin: u64, end: u64) {
        let call = self.begin(name, None, begin);
        self.end(call, end);
    }

    /// A call from `begin` to `end` with about `budget` calls in it.
    fn random_call(&mut self, rng: &mut Rng, parent: Option<usize>, begin: u64, end: u64, budget: usize) {
        // The long name is rare: each time it comes, the engine prints it for the slice and for those in it.
        let name = match rng.below(4000) {
            0 => LONG,
            odd @ 1..40 => LONG + 1 + odd as usize % 3,
            name => FUNCTIONS + name as usize % 400,
        };
        let call = self.begin(name, parent, begin);
        let children = if budget == 0 { 0 } else { 1 + rng.below(4.min(budget as u64)) };
        // Cuts are often equal to each other and to the call's own ends.
        let mut cuts: Vec<u64> = (0..2 * children)
            .map(|_| match rng.below(6) {
                0 => begin,
                1 => end,
                _ => begin + rng.below(end - begin + 1),
            })
            .collect();
        cuts.sort_unstable();
        for child in cuts.chunks_exact(2) {
            let budget = (budget - 1) / children as usize;
            self.random_call(rng, Some(call), child[0], child[1], budget);
        }
        if rng.below(20) == 0 {
            self.calls[call].folded = 1 + rng.below(1 << 40);
        }
        // Some tell nothing, some that nothing ran, and some have large numbers.
        let count = |rng: &mut Rng| match rng.below(8) {
            0..=3 => None,
            4 => Some(0),
            5 => Some(1 + rng.below(1 << 38)),
            _ => Some(1 + rng.below(5000)),
        };
        self.calls[call].work = Work { instructions: count(rng), cycles: count(rng) };
        self.end(call, end);
    }

    /// For each call, the sum over it and all calls below it.
    fn sums(&self, of: impl Fn(&Call) -> u64) -> Vec<u64> {
        let mut sums: Vec<u64> = self.calls.iter().map(of).collect();
        for (index, call) in self.calls.iter().enumerate().rev() {
            if let Some(parent) = call.parent {
                sums[parent] += sums[index];
            }
        }
        sums
    }
}

/// Formats with a viewer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    Perfetto,
    PerfettoGzip,
    Chrome,
    ChromeGzip,
}

impl Format {
    pub fn writer(self, out: impl Write + 'static) -> Box<dyn Timeline> {
        match self {
            Self::Perfetto => Box::new(PerfettoWriter::new(out)),
            Self::PerfettoGzip => Box::new(PerfettoWriter::new(Gzip::new(out))),
            Self::Chrome => Box::new(ChromeWriter::new(out)),
            Self::ChromeGzip => Box::new(ChromeWriter::new(Gzip::new(out))),
        }
    }
}

/// Bytes that are still there when the writer is gone.
#[derive(Clone, Default)]
pub struct Sink(pub Rc<RefCell<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Not all at once: a writer must be content with that.
        let taken = bytes.len().min(1 << 16);
        self.0.borrow_mut().extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a gzip file holds, all members.
pub fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(bytes), &mut plain).expect("a gzip file");
    plain
}

/// Turns begins and ends of one track, in the order of the file, into slices.
#[derive(Default)]
pub struct Stack {
    /// Positions in `slices`.
    open: Vec<usize>,
}

impl Stack {
    /// A begin. What is given of `slice` is all but how it nests and ends.
    pub fn begin(&mut self, slices: &mut Vec<Slice>, mut slice: Slice) {
        slice.depth = self.open.len();
        // The parent's duration is not known yet: its position stands for it.
        slice.parent = self
            .open
            .last()
            .map(|parent| (slices[*parent].name.clone(), slices[*parent].begin, *parent as u64));
        self.open.push(slices.len());
        slices.push(slice);
    }

    pub fn end(&mut self, slices: &mut [Slice], at: u64, folded: u64, work: Told) {
        let slice = self.open.pop().expect("an end has a begin");
        slices[slice].dur = at.checked_sub(slices[slice].begin).expect("ends after it begins");
        (slices[slice].folded, slices[slice].work) = (folded, work);
    }
}

/// Checks that all has ended, and gives the parents their durations.
pub fn finish_stacks<'s>(stacks: impl Iterator<Item = &'s Stack>, slices: &mut [Slice]) {
    assert!(stacks.into_iter().all(|stack| stack.open.is_empty()), "every begin has an end");
    let durations: Vec<u64> = slices.iter().map(|slice| slice.dur).collect();
    for parent in slices.iter_mut().filter_map(|slice| slice.parent.as_mut()) {
        parent.2 = durations[parent.2 as usize];
    }
}

/// Says which slices differ, shortly.
pub fn assert_same(mut found: Vec<Slice>, mut expected: Vec<Slice>) {
    found.sort();
    expected.sort();
    let short = |slice: Option<&Slice>| format!("{slice:?}").replace(&"x".repeat(300_000), "xxx…");
    let differ = found.iter().zip(&expected).position(|(found, expected)| found != expected);
    if let Some(at) = differ {
        panic!("slice {at}:\n found    {}\n expected {}", short(found.get(at)), short(expected.get(at)));
    }
    assert_eq!(found.len(), expected.len(), "number of slices");
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}
