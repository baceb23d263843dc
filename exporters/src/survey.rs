//! A timeline that is only looked at: how many slices it has, how long they are, and when they begin. From that follows
//! where it is cut into parts with about as many slices each.
//!
//! How short a slice may be to be shown is known only when all have come. So begins are kept for each bin of durations apart:
//! all while they are few, then every second, every fourth, and so on. Memory is bounded, and a cut is off by a few
//! thousandths of a part.

use crate::durations::{BINS, Durations, bin};
use crate::timeline::{Args, Category, Name, Timeline, Track};
use std::cell::RefCell;
use std::io;
use std::rc::Rc;

/// So many begins are kept of each bin.
const MOST: usize = 4096;

/// What was seen.
#[derive(Debug)]
pub struct Seen {
    durations: Durations,
    /// By bin of duration; last, those of holes.
    begins: Vec<Begins>,
    /// Holes in the trace are shown however short they are.
    holes: u64,
}

impl Default for Seen {
    fn default() -> Self {
        Self { durations: Durations::default(), begins: vec![Begins::default(); BINS + 1], holes: 0 }
    }
}

/// An even choice of moments: every `2^shift`th.
#[derive(Clone, Default, Debug)]
struct Begins {
    chosen: Vec<u64>,
    shift: u32,
    count: u64,
}

impl Begins {
    fn add(&mut self, ns: u64) {
        if self.count & ((1 << self.shift) - 1) == 0 {
            if self.chosen.len() == MOST {
                let mut is_even = false;
                self.chosen.retain(|_| {
                    is_even = !is_even;
                    is_even
                });
                self.shift += 1;
            }
            // An even number was chosen, so that this one is next in the choice that became coarser, too.
            self.chosen.push(ns);
        }
        self.count += 1;
    }
}

/// How a timeline is cut.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cuts {
    /// Shorter slices are folded.
    pub min_ns: u64,
    /// When each part but the first begins.
    pub at: Vec<u64>,
}

impl Seen {
    fn add(&mut self, begin: u64, end: u64, is_hole: bool) {
        let ns = end.saturating_sub(begin);
        if is_hole {
            self.holes += 1;
            self.begins[BINS].add(begin);
        } else {
            self.durations.add(ns);
            self.begins[bin(ns)].add(begin);
        }
    }

    /// Cuts into `parts`, each with no more than about `budget` slices of its own; `None` = all that were seen.
    pub fn cuts(&self, parts: usize, budget: Option<u64>) -> Cuts {
        let all = budget.map(|budget| budget.saturating_mul(parts as u64));
        let min_ns = match all {
            None => 0,
            Some(all) => all.checked_sub(self.holes).map_or(u64::MAX, |most| self.durations.threshold(most)),
        };
        let first = if min_ns == u64::MAX { BINS } else { bin(min_ns) };
        let kept = self.begins.iter().skip(first);
        let mut begins: Vec<(u64, u64)> =
            kept.flat_map(|begins| begins.chosen.iter().map(|ns| (*ns, 1 << begins.shift))).collect();
        begins.sort_unstable();
        let sum: u64 = begins.iter().map(|(_, slices)| slices).sum();
        let mut before = 0;
        let mut begins = begins.into_iter().peekable();
        let mut last = 0;
        let at = (1..parts as u64).map(|part| {
            let wanted = u128::from(sum) * u128::from(part) / parts as u128;
            while let Some((ns, slices)) = begins.next_if(|_| u128::from(before) < wanted) {
                before += slices;
                last = ns;
            }
            begins.peek().map_or(last.saturating_add(1), |(ns, _)| *ns)
        });
        Cuts { min_ns, at: at.collect() }
    }
}

/// Looks at slices, and writes none.
#[derive(Debug)]
pub struct Survey {
    seen: Rc<RefCell<Seen>>,
    /// What is open, by track: since when, and whether it is a hole.
    tracks: Vec<Vec<(u64, bool)>>,
    names: Vec<Category>,
}

impl Survey {
    /// What is seen goes there.
    pub fn new(seen: Rc<RefCell<Seen>>) -> Self {
        Self { seen, tracks: Vec::new(), names: Vec::new() }
    }

    fn track(&mut self) -> io::Result<Track> {
        self.tracks.push(Vec::new());
        Ok(Track(self.tracks.len() as u32 - 1))
    }
}

impl Timeline for Survey {
    fn process(&mut self, _: u32, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn thread(&mut self, _: u32, _: u32, _: &str) -> io::Result<Track> {
        self.track()
    }

    fn notes(&mut self, _: Track, _: &str) -> io::Result<Track> {
        self.track()
    }

    fn counter(&mut self, _: Track, _: &str) -> io::Result<Track> {
        self.track()
    }

    fn value(&mut self, _: Track, _: u64, _: f64) -> io::Result<()> {
        Ok(())
    }

    fn name(&mut self, _: &str, category: Category) -> Name {
        self.names.push(category);
        Name(self.names.len() as u32 - 1)
    }

    fn begin(&mut self, track: Track, ns: u64, name: Name) -> io::Result<()> {
        let is_hole = self.names.get(name.0 as usize) == Some(&Category::Gap);
        self.tracks[track.0 as usize].push((ns, is_hole));
        Ok(())
    }

    fn end(&mut self, track: Track, ns: u64, _: Args) -> io::Result<()> {
        if let Some((begin, is_hole)) = self.tracks[track.0 as usize].pop() {
            self.seen.borrow_mut().add(begin, ns, is_hole);
        }
        Ok(())
    }

    fn metadata(&mut self, _: &str, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten thousand slices of 1000 ns and a million of 1 ns, the latter ever denser.
    fn seen() -> (Seen, Vec<u64>) {
        let mut seen = Seen::default();
        let mut long = Vec::new();
        for number in 0..1_000_000u64 {
            let at = 1_000_000 + (number as f64).sqrt() as u64 * 1_000_000 + number;
            seen.add(at, at + 1, false);
            if number % 100 == 0 {
                seen.add(at, at + 1000, false);
                long.push(at);
            }
        }
        (seen, long)
    }

    #[test]
    fn parts_have_about_as_many_slices() {
        let (seen, long) = seen();
        let cuts = seen.cuts(7, Some(2_000));
        assert!(cuts.min_ns > 1 && cuts.min_ns <= 1000 && cuts.at.len() == 6);
        let mut before = 0;
        for (part, at) in cuts.at.iter().chain([&u64::MAX]).enumerate() {
            let up_to = long.partition_point(|begin| begin < at);
            assert!((up_to - before).abs_diff(10_000 / 7) <= 10, "part {part}: {}", up_to - before);
            before = up_to;
        }
        // Not enough room for the long ones: none is kept.
        assert_eq!(seen.cuts(7, Some(1_000)).min_ns, 1024);
        assert_eq!(seen.cuts(2, None).min_ns, 0);
    }

    #[test]
    fn few_slices_are_cut_exactly() {
        let mut seen = Seen::default();
        assert_eq!(seen.cuts(3, Some(10)), Cuts { min_ns: 0, at: vec![1, 1] });
        for at in [50, 10, 40, 20, 30] {
            seen.add(at, at + 5, at == 40);
        }
        assert_eq!(seen.cuts(5, Some(10)), Cuts { min_ns: 0, at: vec![20, 30, 40, 50] });
        // More holes than there is room for: no calls are kept.
        assert_eq!(seen.cuts(2, Some(0)), Cuts { min_ns: u64::MAX, at: vec![40] });
        assert_eq!(seen.cuts(7, None).at.len(), 6);
    }
}
