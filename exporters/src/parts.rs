//! A timeline in several files, one for each stretch of time, each whole by itself.
//!
//! What is open when a part ends is cut: it ends there, and begins again in the next part, in the category that says so
//! ([`Category::Continued`]). What is said of it besides stands where it ends for good, and is of the whole of it.

use crate::timeline::{Args, Category, Name, Timeline, Track};
use std::io;

/// Hands each event to the part that it is of.
pub struct Parts {
    parts: Vec<Part>,
    /// When each part but the first begins.
    cuts: Vec<u64>,
    names: Vec<(String, Category)>,
    tracks: Vec<OnTrack>,
}

struct Part {
    timeline: Box<dyn Timeline>,
    /// By number: a part knows those that occur in it, the second one for what is continued.
    names: Vec<[Option<Name>; 2]>,
}

/// How far a track is.
#[derive(Default)]
struct OnTrack {
    part: usize,
    open: Vec<Name>,
    /// A curve's last value.
    value: Option<f64>,
}

impl Parts {
    /// Each part begins at its cut; the first has none. There is a cut less than there are parts.
    pub fn new(parts: Vec<Box<dyn Timeline>>, cuts: Vec<u64>) -> Self {
        debug_assert_eq!(parts.len(), cuts.len() + 1);
        let parts = parts.into_iter().map(|timeline| Part { timeline, names: Vec::new() }).collect();
        Self { parts, cuts, names: Vec::new(), tracks: Vec::new() }
    }

    /// Tells every part of a track, so that its number is the same in all.
    fn track(&mut self, mut new: impl FnMut(&mut dyn Timeline) -> io::Result<Track>) -> io::Result<Track> {
        let track = Track(self.tracks.len() as u32);
        for part in &mut self.parts {
            if new(&mut *part.timeline)? != track {
                return Err(io::Error::other("the parts number their tracks in different ways"));
            }
        }
        self.tracks.push(OnTrack::default());
        Ok(track)
    }

    /// Goes on to the part with that number.
    fn advance(&mut self, track: Track, to: usize) -> io::Result<()> {
        let on = &mut self.tracks[track.0 as usize];
        while on.part < to {
            let cut = self.cuts[on.part];
            for _ in &on.open {
                self.parts[on.part].timeline.end(track, cut, Args::default())?;
            }
            on.part += 1;
            let part = &mut self.parts[on.part];
            for name in &on.open {
                let name = part.name(&self.names, *name, true);
                part.timeline.begin(track, cut, name)?;
            }
            if let Some(value) = on.value {
                part.timeline.value(track, cut, value)?;
            }
        }
        Ok(())
    }

    fn part_of(&mut self, track: Track) -> &mut Part {
        &mut self.parts[self.tracks[track.0 as usize].part]
    }

    /// What begins at a cut is of the part behind it.
    fn begins_in(&self, ns: u64) -> usize {
        self.cuts.partition_point(|cut| *cut <= ns)
    }

    /// What ends at a cut is of the part before it.
    fn ends_in(&self, ns: u64) -> usize {
        self.cuts.partition_point(|cut| *cut < ns)
    }
}

impl Part {
    fn name(&mut self, names: &[(String, Category)], name: Name, is_continued: bool) -> Name {
        let index = name.0 as usize;
        if index >= self.names.len() {
            self.names.resize(index + 1, [None; 2]);
        }
        let (text, category) = &names[index];
        let category = if is_continued { Category::Continued } else { *category };
        *self.names[index][usize::from(is_continued)]
            .get_or_insert_with(|| self.timeline.name(text, category))
    }
}

impl Timeline for Parts {
    fn process(&mut self, pid: u32, name: &str) -> io::Result<()> {
        self.parts.iter_mut().try_for_each(|part| part.timeline.process(pid, name))
    }

    fn thread(&mut self, pid: u32, tid: u32, name: &str) -> io::Result<Track> {
        self.track(|timeline| timeline.thread(pid, tid, name))
    }

    fn notes(&mut self, of: Track, name: &str) -> io::Result<Track> {
        self.track(|timeline| timeline.notes(of, name))
    }

    fn counter(&mut self, of: Track, name: &str) -> io::Result<Track> {
        self.track(|timeline| timeline.counter(of, name))
    }

    fn value(&mut self, counter: Track, ns: u64, value: f64) -> io::Result<()> {
        self.advance(counter, self.begins_in(ns))?;
        self.tracks[counter.0 as usize].value = Some(value);
        self.part_of(counter).timeline.value(counter, ns, value)
    }

    fn name(&mut self, text: &str, category: Category) -> Name {
        self.names.push((text.to_owned(), category));
        Name(self.names.len() as u32 - 1)
    }

    fn begin(&mut self, track: Track, ns: u64, name: Name) -> io::Result<()> {
        self.advance(track, self.begins_in(ns))?;
        let on = &mut self.tracks[track.0 as usize];
        on.open.push(name);
        let part = &mut self.parts[on.part];
        let name = part.name(&self.names, name, false);
        part.timeline.begin(track, ns, name)
    }

    fn end(&mut self, track: Track, ns: u64, args: Args) -> io::Result<()> {
        self.advance(track, self.ends_in(ns))?;
        self.tracks[track.0 as usize].open.pop();
        self.part_of(track).timeline.end(track, ns, args)
    }

    fn metadata(&mut self, key: &str, value: &str) -> io::Result<()> {
        self.parts.iter_mut().try_for_each(|part| part.timeline.metadata(key, value))
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        let last = self.cuts.len();
        for track in 0..self.tracks.len() {
            if self.tracks[track].value.is_some() {
                self.advance(Track(track as u32), last)?;
            }
        }
        let moment = |ns: &u64| format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
        let parts = self.parts.len();
        for (index, mut part) in self.parts.into_iter().enumerate() {
            let from = index.checked_sub(1).map(|before| format!(", from {}", moment(&self.cuts[before])));
            let to = self.cuts.get(index).map(|cut| format!(", to {}", moment(cut)));
            let said =
                format!("{} of {parts}{}{}", index + 1, from.unwrap_or_default(), to.unwrap_or_default());
            part.timeline.metadata("part", &said)?;
            part.timeline.finish()?;
        }
        Ok(())
    }
}
