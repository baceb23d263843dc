//! What a budget keeps, against a model that sees all calls at once.

use ptflow_exporters::budget::{Budget, Folding, Limits};
use ptflow_exporters::timeline::{Args, Category, Folded, Name, Timeline, Track, Work};
use std::cell::RefCell;
use std::io;
use std::rc::Rc;

/// A slice as it came out: track, level, times, name and what is folded into it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Slice {
    track: u32,
    begin: u64,
    level: usize,
    end: u64,
    name: u32,
    calls: u64,
    ns: u64,
    /// Instructions and cycles.
    work: (Option<u64>, Option<u64>),
}

#[derive(Default)]
struct Written {
    slices: Vec<Slice>,
    open: Vec<Vec<usize>>,
    names: u32,
    metadata: Vec<String>,
    finished: bool,
}

/// Remembers what it is told.
#[derive(Clone, Default)]
struct Recorder(Rc<RefCell<Written>>);

impl Timeline for Recorder {
    fn process(&mut self, _: u32, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn thread(&mut self, _: u32, _: u32, _: &str) -> io::Result<Track> {
        let mut written = self.0.borrow_mut();
        written.open.push(Vec::new());
        Ok(Track(written.open.len() as u32 - 1))
    }
    fn notes(&mut self, _: Track, _: &str) -> io::Result<Track> {
        self.thread(0, 0, "")
    }
    fn counter(&mut self, _: Track, _: &str) -> io::Result<Track> {
        self.thread(0, 0, "")
    }
    fn value(&mut self, _: Track, _: u64, _: f64) -> io::Result<()> {
        Ok(())
    }
    fn name(&mut self, _: &str, _: Category) -> Name {
        let mut written = self.0.borrow_mut();
        written.names += 1;
        // Others may make names in between, as the depth guard does.
        Name(written.names * 2)
    }
    fn begin(&mut self, track: Track, ns: u64, name: Name) -> io::Result<()> {
        let written = &mut *self.0.borrow_mut();
        let open = &mut written.open[track.0 as usize];
        let level = open.len();
        open.push(written.slices.len());
        let name = name.0;
        let work = (None, None);
        written.slices.push(Slice { track: track.0, begin: ns, level, end: 0, name, calls: 0, ns: 0, work });
        Ok(())
    }
    fn end(&mut self, track: Track, ns: u64, Args { folded, work }: Args) -> io::Result<()> {
        let written = &mut *self.0.borrow_mut();
        let slice = written.open[track.0 as usize].pop().expect("an end has a begin");
        let slice = &mut written.slices[slice];
        (slice.end, slice.calls, slice.ns) = (ns, folded.calls, folded.ns);
        slice.work = (work.instructions, work.cycles);
        Ok(())
    }
    fn metadata(&mut self, key: &str, value: &str) -> io::Result<()> {
        self.0.borrow_mut().metadata.push(format!("{key}: {value}"));
        Ok(())
    }
    fn finish(self: Box<Self>) -> io::Result<()> {
        self.0.borrow_mut().finished = true;
        Ok(())
    }
}

/// A call of the model.
struct Call {
    slice: Slice,
    parent: Option<usize>,
}

const NAMES: u32 = 7;

/// Calls of two threads, in the order in which they begin and end: `(call, begins)`. Durations reach from 0 to millions.
fn calls(count: usize) -> (Vec<Call>, Vec<(usize, bool)>) {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let (mut calls, mut events) = (Vec::<Call>::new(), Vec::new());
    let mut threads: [(Vec<usize>, u64); 2] = Default::default();
    while calls.len() < count || threads.iter().any(|(open, _)| !open.is_empty()) {
        let track = random(2);
        let (open, now) = &mut threads[track as usize];
        let exponent = random(12);
        *now += random(1 << exponent);
        let begins = calls.len() < count && (open.is_empty() || (open.len() < 30 && random(2) == 0));
        if begins {
            let name = (random(u64::from(NAMES)) as u32 + 1) * 2;
            let (track, level, work) = (track as u32, open.len(), (None, None));
            let slice = Slice { track, begin: *now, level, end: 0, name, calls: 0, ns: 0, work };
            calls.push(Call { slice, parent: open.last().copied() });
            open.push(calls.len() - 1);
            events.push((calls.len() - 1, true));
        } else if let Some(call) = open.pop() {
            calls[call].slice.end = *now;
            events.push((call, false));
        }
    }
    (calls, events)
}

fn write(calls: &[Call], events: &[(usize, bool)], limits: Limits) -> (Folding, Vec<Slice>, Vec<String>) {
    let recorder = Recorder::default();
    let mut budget = Budget::new(Box::new(recorder.clone()), limits);
    let tracks = [0, 1].map(|tid| budget.thread(1, tid, "").expect("a track"));
    for name in 0..NAMES {
        budget.name(&name.to_string(), Category::Function);
    }
    let mut events = events.iter().peekable();
    while let Some(&(call, begins)) = events.next() {
        let slice = &calls[call].slice;
        let track = tracks[slice.track as usize];
        // Of the slices without others in them, half are told in one.
        if call % 2 == 0 && events.next_if_eq(&&(call, false)).is_some() {
            budget.leaf(track, slice.begin, slice.end, Name(slice.name)).expect("begins and ends");
        } else if begins {
            budget.begin(track, slice.begin, Name(slice.name)).expect("begins");
        } else {
            budget.end(track, slice.end).expect("ends");
        }
    }
    let folding = budget.finish().expect("finishes");
    let written = recorder.0.take();
    assert!(written.finished && written.open.iter().all(Vec::is_empty), "all that was open has ended");
    (folding, written.slices, written.metadata)
}

/// What is kept under a threshold and a depth, and what is folded into what.
fn expected(calls: &[Call], min_ns: u64, depth: usize) -> Vec<Slice> {
    let kept = |call: &Call| call.slice.end - call.slice.begin >= min_ns && call.slice.level < depth;
    let mut slices: Vec<Slice> = calls.iter().map(|call| call.slice).collect();
    for call in calls.iter().filter(|call| !kept(call)) {
        if let Some(parent) = call.parent.filter(|parent| kept(&calls[*parent])) {
            slices[parent].ns += call.slice.end - call.slice.begin;
        }
        let mut outer = call.parent;
        while let Some(parent) = outer.filter(|parent| !kept(&calls[*parent])) {
            outer = calls[parent].parent;
        }
        if let Some(outer) = outer {
            slices[outer].calls += 1;
        }
    }
    let mut slices: Vec<Slice> =
        calls.iter().zip(slices).filter(|(call, _)| kept(call)).map(|(_, slice)| slice).collect();
    slices.sort();
    slices
}

fn check(calls: &[Call], events: &[(usize, bool)], limits: Limits) -> Folding {
    let (folding, mut slices, metadata) = write(calls, events, limits);
    assert_eq!(folding.slices, slices.len() as u64);
    slices.sort();
    let expected = expected(calls, folding.min_ns, limits.depth.unwrap_or(usize::MAX));
    assert!(slices == expected, "{limits:?}: {} slices, not {}", slices.len(), expected.len());
    // The sums by name, from the model.
    for name in 0..NAMES {
        let is_it = |slice: &Slice| slice.name == (name + 1) * 2;
        let time = |slice: &Slice| slice.end - slice.begin;
        let of = &folding.functions[&(Category::Function, name.to_string())];
        let kept: Vec<_> = expected.iter().filter(|slice| is_it(slice)).collect();
        let all: Vec<_> = calls.iter().map(|call| &call.slice).filter(|slice| is_it(slice)).collect();
        assert_eq!(of.kept, kept.len() as u64);
        assert_eq!(of.kept + of.folded, all.len() as u64);
        assert_eq!(of.kept_ns, kept.into_iter().map(time).sum::<u64>());
        assert_eq!(of.kept_ns + of.folded_ns, all.into_iter().map(time).sum::<u64>());
    }
    // Every folded call is told of: on a slice, or as one without.
    let told: u64 = slices.iter().map(|slice| slice.calls).sum();
    assert_eq!(told + folding.outside.calls, folding.folded);
    assert_eq!(metadata.len(), usize::from(folding.folded > 0), "{metadata:?}");
    folding
}

#[test]
fn the_threshold_is_the_least_that_meets_the_budget() {
    // Enough for the threshold to rise several times on the way.
    let (calls, events) = calls(400_000);
    let longer =
        |min_ns| calls.iter().filter(|call| call.slice.end - call.slice.begin >= min_ns).count() as u64;
    for slices in [1, 1000, 10_000, 100_000, 399_999] {
        let folding = check(&calls, &events, Limits { slices: Some(slices), ..Limits::default() });
        assert!(folding.slices <= slices, "{} of {slices}", folding.slices);
        // A threshold an eighth lower would have kept too many.
        if folding.min_ns < u64::MAX {
            assert!(
                longer(folding.min_ns - (folding.min_ns / 8).max(1)) > slices,
                "{slices}: {}",
                folding.min_ns
            );
        }
    }
}

#[test]
fn what_is_within_the_budget_is_kept() {
    let (calls, events) = calls(5000);
    for slices in [None, Some(5000), Some(u64::MAX)] {
        let folding = check(&calls, &events, Limits { slices, ..Limits::default() });
        assert_eq!((folding.slices, folding.folded, folding.min_ns), (5000, 0, 0));
    }
}

#[test]
fn short_and_deep_calls_are_folded_when_asked() {
    let (calls, events) = calls(20_000);
    for (slices, min_ns, depth) in
        [(None, 500, None), (None, 0, Some(3)), (None, 100, Some(1)), (Some(2000), 10, Some(9))]
    {
        let folding = check(&calls, &events, Limits { slices, min_ns, depth });
        assert!(folding.min_ns >= min_ns && folding.folded > 0);
    }
}

#[test]
fn holes_are_never_folded() {
    let recorder = Recorder::default();
    let mut budget = Budget::new(Box::new(recorder.clone()), Limits { slices: Some(3), ..Limits::default() });
    let thread = budget.thread(1, 1, "").expect("a track");
    let notes = budget.notes(thread, "trace state").expect("a track");
    let (call, gap) = (budget.name("f", Category::Function), budget.name("gap", Category::Gap));
    for at in [0, 100, 200, 300] {
        budget.begin(thread, at, call).expect("begins");
        budget.end(thread, at + 50).expect("ends");
        budget.begin(notes, at + 60, gap).expect("begins");
        budget.end(notes, at + 60).expect("ends");
    }
    // More holes than the budget has slices: they are all there is.
    let folding = budget.finish().expect("finishes");
    assert_eq!((folding.slices, folding.folded, folding.outside), (4, 4, Folded { calls: 4, ns: 200 }));
    assert!(recorder.0.borrow().slices.iter().all(|slice| slice.name == gap.0));
}

/// A slice tells what was executed from its begin to its end, whatever is folded; cycles only if they were told all the way.
#[test]
fn work_is_that_between_begin_and_end() {
    let (mut calls, events) = calls(100_000);
    let sums = |event: usize| {
        let event = event as u64;
        // Now and then cycles are not told for a while.
        let cycles = (event % 5000 > 20).then_some(event * 3);
        Work { instructions: Some(event * event), cycles }
    };
    let mut began = vec![0; calls.len()];
    for (event, &(call, begins)) in events.iter().enumerate() {
        if begins {
            began[call] = event;
        } else {
            let (from, to) = (sums(began[call]), sums(event));
            // Sums are told at the events of the call's own track.
            let track = calls[call].slice.track;
            let own = |event: &usize| calls[events[*event].0].slice.track == track;
            let known = (began[call]..=event).filter(own).all(|event| sums(event).cycles.is_some());
            let passed = |from: Option<u64>, to: Option<u64>| Some(to? - from?);
            calls[call].slice.work = (
                passed(from.instructions, to.instructions),
                passed(from.cycles, to.cycles).filter(|_| known),
            );
        }
    }
    for slices in [None, Some(1000), Some(20_000)] {
        let recorder = Recorder::default();
        let limits = Limits { slices, ..Limits::default() };
        let mut budget = Budget::new(Box::new(recorder.clone()), limits).with_work();
        let tracks = [0, 1].map(|tid| budget.thread(1, tid, "").expect("a track"));
        for name in 0..NAMES {
            budget.name(&name.to_string(), Category::Function);
        }
        for (event, &(call, begins)) in events.iter().enumerate() {
            let slice = &calls[call].slice;
            let track = tracks[slice.track as usize];
            budget.executed(track, sums(event));
            let done = if begins {
                budget.begin(track, slice.begin, Name(slice.name))
            } else {
                budget.end(track, slice.end)
            };
            done.expect("recorded");
        }
        let folding = budget.finish().expect("finishes");
        let mut found = recorder.0.take().slices;
        found.sort();
        assert!(found == expected(&calls, folding.min_ns, usize::MAX), "{slices:?}");
        let unknown = found.iter().filter(|slice| slice.work.1.is_none()).count();
        assert!(unknown > 0 && unknown < found.len(), "{unknown} of {}", found.len());
    }
}
