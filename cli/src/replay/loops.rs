//! Repetition in a list of executed blocks, folded as the list grows: loops, and loops in loops.
//!
//! What repeats is compared by its shape: which blocks, and which loops of which shape; how often an inner loop went round
//! may differ and is kept as a range.

use std::collections::HashMap;
use std::hash::Hash;

/// A loop's body has no more parts than this.
const LONGEST: usize = 48;

/// A part of the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Part<B> {
    /// One block, executed once.
    Block(B),
    /// A loop.
    Loop(Loop<B>),
}

/// A body that was executed several times, one behind the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loop<B> {
    /// Its parts in the first round; the counts of inner loops are those of all rounds.
    pub body: Vec<Part<B>>,
    /// Rounds: the fewest and the most, where it is an inner one.
    pub rounds: (u64, u64),
    /// All rounds.
    pub all: u64,
    /// The block with which the last round ended.
    pub last: B,
}

/// What blocks are compared by; `None` = a block that is never part of a loop.
pub trait Shaped: Clone {
    /// Equal for blocks that are the same code.
    type Shape: Clone + Eq + Hash;
    /// The shape.
    fn shape(&self) -> Option<Self::Shape>;
}

/// A part with the number of its shape.
#[derive(Clone, Debug)]
struct Numbered<B> {
    shape: u32,
    part: Part<B>,
}

/// Folds a list.
pub struct Folder<B: Shaped> {
    parts: Vec<Numbered<B>>,
    blocks: HashMap<B::Shape, u32>,
    loops: HashMap<Vec<u32>, u32>,
    bodies: HashMap<u32, Vec<u32>>,
    next: u32,
}

impl<B: Shaped> Folder<B> {
    /// With nothing in it.
    pub fn new() -> Self {
        Self {
            parts: Vec::new(),
            blocks: HashMap::new(),
            loops: HashMap::new(),
            bodies: HashMap::new(),
            next: 0,
        }
    }

    /// How many parts there are.
    pub fn len(&self) -> usize {
        self.parts.len()
    }

    /// The next block.
    pub fn push(&mut self, block: B) {
        let shape = match block.shape() {
            Some(shape) => {
                let next = &mut self.next;
                *self.blocks.entry(shape).or_insert_with(|| fresh(next))
            }
            None => fresh(&mut self.next),
        };
        self.parts.push(Numbered { shape, part: Part::Block(block) });
        while self.reduce() {}
    }

    /// The parts up to now.
    pub fn take(&mut self) -> Vec<Part<B>> {
        self.parts.drain(..).map(|numbered| numbered.part).collect()
    }

    fn reduce(&mut self) -> bool {
        let len = self.parts.len();
        let shapes = |from: usize, to: usize| self.parts[from..to].iter().map(|part| part.shape);
        for size in 1..=LONGEST.min(len.saturating_sub(1)) {
            let from = len - size;
            // One more round of the loop before?
            let is_round = self
                .bodies
                .get(&self.parts[from - 1].shape)
                .is_some_and(|body| body.iter().copied().eq(shapes(from, len)));
            if is_round {
                let round: Vec<Part<B>> = self.parts.drain(from..).map(|numbered| numbered.part).collect();
                if let Some(Numbered { part: Part::Loop(known), .. }) = self.parts.last_mut() {
                    known.add_round(&round);
                }
                return true;
            }
            // The same twice?
            if from >= size && shapes(from - size, from).eq(shapes(from, len)) {
                // A loop of a loop alone is that loop: its rounds are told already.
                if size == 1 && matches!(self.parts[from].part, Part::Loop(_)) {
                    continue;
                }
                let second: Vec<Part<B>> = self.parts.drain(from..).map(|numbered| numbered.part).collect();
                let first: Vec<Numbered<B>> = self.parts.drain(from - size..).collect();
                let body: Vec<u32> = first.iter().map(|numbered| numbered.shape).collect();
                let next = &mut self.next;
                let shape = *self.loops.entry(body.clone()).or_insert_with(|| fresh(next));
                self.bodies.insert(shape, body);
                let body: Vec<Part<B>> = first.into_iter().map(|numbered| numbered.part).collect();
                let Some(last) = last(&body) else { return false };
                let mut found = Loop { body, rounds: (1, 1), all: 1, last };
                found.add_round(&second);
                self.parts.push(Numbered { shape, part: Part::Loop(found) });
                return true;
            }
        }
        false
    }
}

impl<B: Clone> Loop<B> {
    fn add_round(&mut self, round: &[Part<B>]) {
        self.all += 1;
        self.rounds = (self.all, self.all);
        merge(&mut self.body, round);
        self.last = last(round).unwrap_or_else(|| self.last.clone());
    }
}

/// Takes the counts of another round's inner loops.
fn merge<B: Clone>(body: &mut [Part<B>], round: &[Part<B>]) {
    for pair in body.iter_mut().zip(round) {
        if let (Part::Loop(known), Part::Loop(other)) = pair {
            known.rounds = (known.rounds.0.min(other.rounds.0), known.rounds.1.max(other.rounds.1));
            known.all += other.all;
            known.last = other.last.clone();
            merge(&mut known.body, &other.body);
        }
    }
}

fn last<B: Clone>(parts: &[Part<B>]) -> Option<B> {
    parts.last().map(|part| match part {
        Part::Block(block) => block.clone(),
        Part::Loop(inner) => inner.last.clone(),
    })
}

fn fresh(next: &mut u32) -> u32 {
    *next = next.wrapping_add(1);
    *next
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Shaped for char {
        type Shape = char;
        fn shape(&self) -> Option<char> {
            (*self != '!').then_some(*self)
        }
    }

    fn text(parts: &[Part<char>]) -> String {
        let text = |part: &Part<char>| match part {
            Part::Block(block) => block.to_string(),
            Part::Loop(Loop { body, rounds, .. }) if rounds.0 == rounds.1 => {
                format!("({})*{}", text(body), rounds.0)
            }
            Part::Loop(Loop { body, rounds, .. }) => format!("({})*{}-{}", text(body), rounds.0, rounds.1),
        };
        parts.iter().map(text).collect()
    }

    fn folded(list: &str) -> String {
        let mut folder = Folder::new();
        list.chars().for_each(|block| folder.push(block));
        text(&folder.take())
    }

    #[test]
    fn loops_and_loops_in_loops() {
        for (list, expected) in [
            ("", ""),
            ("abc", "abc"),
            ("aaaa", "(a)*4"),
            ("xababab", "x(ab)*3"),
            ("abababc", "(ab)*3c"),
            ("aabaabaab", "((a)*2b)*3"),
            ("aabaaabaaaab", "((a)*2-4b)*3"),
            ("!!!", "!!!"),
            ("a!a!a!", "a!a!a!"),
        ] {
            assert_eq!(folded(list), expected, "{list}");
        }
    }

    /// Written out again, a folded list is the list, as long as no inner count differs between rounds.
    #[test]
    fn nothing_is_lost() {
        fn unfold(parts: &[Part<char>], out: &mut String) {
            for part in parts {
                match part {
                    Part::Block(block) => out.push(*block),
                    Part::Loop(one) => {
                        assert_eq!(one.rounds.0, one.rounds.1);
                        (0..one.rounds.0).for_each(|_| unfold(&one.body, out));
                    }
                }
            }
        }
        let mut seed = 7u32;
        for _ in 0..500 {
            let mut list = String::new();
            for _ in 0..12 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let body = ["a", "b", "ab", "abc", "cb"][(seed >> 16) as usize % 5];
                // Twice or not at all: no inner counts differ.
                list.push_str(&body.repeat(if seed >> 30 == 0 { 2 } else { 1 }));
                list.push(['x', 'y', 'z'][(seed >> 8) as usize % 3]);
            }
            let mut folder = Folder::new();
            list.chars().for_each(|block| folder.push(block));
            let parts = folder.take();
            if text(&parts).contains('-') {
                continue;
            }
            let mut again = String::new();
            unfold(&parts, &mut again);
            assert_eq!(again, list, "{}", text(&parts));
        }
    }
}
