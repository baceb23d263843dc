//! A bound on nesting, in front of any format.
//!
//! Perfetto's trace processor keeps 512 levels; the end of a deeper slice closes the wrong one, and nothing says so
//! (`kMaxDepth` in its `slice_tracker.cc`). So deeper frames are folded into one slice that counts them.

use crate::timeline::{Category, Name, Timeline, Track};
use std::io;

/// The deepest level at which a slice may lie, counted from 0.
pub const MAX_DEPTH: usize = 511;

/// Hands on what is not too deep.
pub struct DepthGuard {
    inner: Box<dyn Timeline>,
    deeper: Name,
    tracks: Vec<Depth>,
}

#[derive(Clone, Copy, Default)]
struct Depth {
    open: usize,
    folded: u64,
}

impl DepthGuard {
    /// A guard before a timeline.
    pub fn new(mut inner: Box<dyn Timeline>) -> Self {
        let deeper = inner.name("[deeper frames]", Category::Folded);
        Self { inner, deeper, tracks: Vec::new() }
    }

    fn depth(&mut self, track: Track) -> &mut Depth {
        let index = track.0 as usize;
        if index >= self.tracks.len() {
            self.tracks.resize(index + 1, Depth::default());
        }
        &mut self.tracks[index]
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

    fn name(&mut self, text: &str, category: Category) -> Name {
        self.inner.name(text, category)
    }

    fn begin(&mut self, track: Track, ns: u64, name: Name) -> io::Result<()> {
        let deeper = self.deeper;
        let depth = self.depth(track);
        depth.open += 1;
        match depth.open - 1 {
            ..MAX_DEPTH => self.inner.begin(track, ns, name),
            MAX_DEPTH => {
                depth.folded += 1;
                self.inner.begin(track, ns, deeper)
            }
            _ => {
                depth.folded += 1;
                Ok(())
            }
        }
    }

    fn end(&mut self, track: Track, ns: u64, folded: u64) -> io::Result<()> {
        let depth = self.depth(track);
        let Some(level) = depth.open.checked_sub(1) else { return Ok(()) };
        depth.open = level;
        match level {
            ..MAX_DEPTH => self.inner.end(track, ns, folded),
            MAX_DEPTH => {
                let all = std::mem::take(&mut depth.folded) + folded;
                self.inner.end(track, ns, all)
            }
            _ => {
                depth.folded += folded;
                Ok(())
            }
        }
    }

    fn metadata(&mut self, key: &str, value: &str) -> io::Result<()> {
        self.inner.metadata(key, value)
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        self.inner.finish()
    }
}
