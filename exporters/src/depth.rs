//! A bound on nesting, in front of any format.
//!
//! Perfetto's trace processor keeps 512 levels; the end of a deeper slice closes the wrong one, and nothing says so
//! (`kMaxDepth` in its `slice_tracker.cc`). So deeper frames are folded into one slice that says how many they are. For the
//! same reason every slice must end: an end without a begin is dropped here, and what is open at last is closed.

use crate::timeline::{Args, Category, Folded, Name, Timeline, Track, Work};
use std::collections::BTreeMap;
use std::io;

/// The deepest level at which a slice may lie, counted from 0: that of the `[+N deeper frames]`.
pub const MAX_DEPTH: usize = 511;

/// Hands on what is not too deep.
pub struct DepthGuard {
    inner: Box<dyn Timeline>,
    /// Names of folded slices by their number of frames.
    deeper: BTreeMap<u64, Name>,
    tracks: Vec<Nesting>,
}

/// How a track's slices nest for now.
#[derive(Clone, Copy, Default)]
struct Nesting {
    open: usize,
    /// Time of the last event.
    last: u64,
    /// What is open at [`MAX_DEPTH`] and deeper. Its slice is written when it ends, for only then it has its name; until then
    /// nothing else is written to the track.
    deeper: Deeper,
}

#[derive(Clone, Copy, Default)]
struct Deeper {
    since: u64,
    frames: u64,
    /// Calls that were folded into those frames by others.
    folded: Folded,
}

impl DepthGuard {
    /// A guard before a timeline.
    pub fn new(inner: Box<dyn Timeline>) -> Self {
        Self { inner, deeper: BTreeMap::new(), tracks: Vec::new() }
    }

    fn nesting(&mut self, track: Track) -> &mut Nesting {
        let index = track.0 as usize;
        if index >= self.tracks.len() {
            self.tracks.resize(index + 1, Nesting::default());
        }
        &mut self.tracks[index]
    }

    fn write_deeper(&mut self, track: Track, until: u64, deeper: Deeper, work: Work) -> io::Result<()> {
        let Deeper { since, frames, folded } = deeper;
        let inner = &mut self.inner;
        let new = || inner.name(&format!("[+{frames} deeper frames]"), Category::Folded);
        let name = *self.deeper.entry(frames).or_insert_with(new);
        self.inner.begin(track, since, name)?;
        let folded = Folded { calls: frames.saturating_add(folded.calls), ns: folded.ns };
        self.inner.end(track, until, Args { folded, work })
    }
}

impl Timeline for DepthGuard {
    fn process(&mut self, pid: u32, name: &str) -> io::Result<()> {
        self.inner.process(pid, name)
    }

    fn thread(&mut self, pid: u32, tid: u32, name: &str) -> io::Result<Track> {
        self.inner.thread(pid, tid, name)
    }

    fn notes(&mut self, of: Track, name: &str) -> io::Result<Track> {
        self.inner.notes(of, name)
    }

    fn counter(&mut self, of: Track, name: &str) -> io::Result<Track> {
        self.inner.counter(of, name)
    }

    fn value(&mut self, counter: Track, ns: u64, value: f64) -> io::Result<()> {
        self.inner.value(counter, ns, value)
    }

    fn name(&mut self, text: &str, category: Category) -> Name {
        self.inner.name(text, category)
    }

    fn begin(&mut self, track: Track, ns: u64, name: Name) -> io::Result<()> {
        let nesting = self.nesting(track);
        let level = nesting.open;
        nesting.open += 1;
        nesting.last = ns;
        if level < MAX_DEPTH {
            return self.inner.begin(track, ns, name);
        }
        if level == MAX_DEPTH {
            nesting.deeper = Deeper { since: ns, ..Deeper::default() };
        }
        nesting.deeper.frames += 1;
        Ok(())
    }

    fn end(&mut self, track: Track, ns: u64, args: Args) -> io::Result<()> {
        let nesting = self.nesting(track);
        let Some(level) = nesting.open.checked_sub(1) else { return Ok(()) };
        nesting.open = level;
        nesting.last = ns;
        if level < MAX_DEPTH {
            return self.inner.end(track, ns, args);
        }
        let folded = args.folded;
        let sum = &mut nesting.deeper.folded;
        sum.calls = sum.calls.saturating_add(folded.calls);
        sum.ns = sum.ns.saturating_add(folded.ns);
        let deeper = nesting.deeper;
        if level == MAX_DEPTH { self.write_deeper(track, ns, deeper, args.work) } else { Ok(()) }
    }

    fn metadata(&mut self, key: &str, value: &str) -> io::Result<()> {
        self.inner.metadata(key, value)
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        for track in 0..self.tracks.len() {
            let Nesting { open, last, .. } = self.tracks[track];
            for _ in 0..open {
                self.end(Track(track as u32), last, Args::default())?;
            }
        }
        self.inner.finish()
    }
}
