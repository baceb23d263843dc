//! One invocation of a function as a tree of calls: for the terminal (`text.rs`), and beside another one (`compare.rs`).
//!
//! Calls of one function on one path are one node. Names are text, so that trees of two captures can be compared.

pub mod compare;
pub mod text;

use serde::{Deserialize, Serialize};

/// The form of a saved tree; another one is not read.
pub const VERSION: u32 = 1;

/// An invocation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CallTree {
    /// [`VERSION`].
    pub ptflow_replay: u32,
    /// Its thread.
    pub tid: u32,
    /// The thread's name.
    pub thread: String,
    /// When it began.
    pub start_ns: u64,
    /// How it came into view: `seen` where its call is in the trace, else `before_trace` or `in_gap`.
    #[serde(default = "seen")]
    pub begin: String,
    /// How it went out of view: `seen`, else `after_trace` or `in_gap`.
    #[serde(default = "seen")]
    pub end: String,
    /// Its beginning or its end was not seen: why.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cut: Option<String>,
    /// Where the function is, where its name does not tell it from others.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub place: Option<String>,
    /// What times are in: `ns` or `ticks`.
    pub clock: String,
    /// The invocation itself.
    pub root: Node,
}

/// The calls of one function on one path.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Node {
    /// The function, or in brackets what ran instead of traced code.
    pub name: String,
    /// Where the first of the calls stands.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub called_at: Option<String>,
    /// How many calls.
    pub calls: u64,
    /// Time in them, in what they called too.
    pub ns: u64,
    /// The longest of them.
    pub longest_ns: u64,
    /// Of that, time off CPU, where the capture tells it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub off_cpu_ns: Option<u64>,
    /// Instructions in them, in what they called too.
    pub instructions: u64,
    /// Core cycles of traced code in them, in what they called too, where the trace has them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cycles: Option<u64>,
    /// Loops in them, but not in what they called.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub loops: Vec<Loop>,
    /// When the first one began, from the start of the invocation.
    pub first_ns: u64,
    /// Calls below it that are not told apart.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub deeper: u64,
    /// What they called, in the order in which it first came.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub children: Vec<Node>,
}

/// A loop.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Loop {
    /// Where its first instruction is from.
    pub at: String,
    /// How often control went back there.
    pub iterations: u64,
}

fn seen() -> String {
    "seen".to_owned()
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl Node {
    /// Time in it, but not in what it called.
    pub fn self_ns(&self) -> u64 {
        self.ns.saturating_sub(self.children.iter().map(|child| child.ns).sum())
    }

    /// Instructions of its own.
    pub fn self_instructions(&self) -> u64 {
        self.instructions.saturating_sub(self.children.iter().map(|child| child.instructions).sum())
    }

    /// Instructions per core cycle, where the trace has cycles: to two places.
    pub fn ipc(&self) -> Option<String> {
        ipc(self.instructions, self.cycles)
    }

    /// How often its own loops went round.
    pub fn self_iterations(&self) -> u64 {
        self.loops.iter().map(|one| one.iterations).sum()
    }

    /// How often loops went round, in what it called too.
    pub fn iterations(&self) -> u64 {
        self.self_iterations() + self.children.iter().map(Node::iterations).sum::<u64>()
    }

    /// Time off CPU in it, but not in what it called.
    pub fn self_off_cpu_ns(&self) -> u64 {
        let below: u64 = self.children.iter().filter_map(|child| child.off_cpu_ns).sum();
        self.off_cpu_ns.unwrap_or(0).saturating_sub(below)
    }

    /// No function: the trace tells nothing of what ran.
    pub fn is_untraced(&self) -> bool {
        self.name.starts_with('[')
    }
}

/// Instructions per core cycle, to two places.
pub fn ipc(instructions: u64, cycles: Option<u64>) -> Option<String> {
    let cycles = cycles.filter(|cycles| *cycles > 0)?;
    Some(format!("{:.2}", instructions as f64 / cycles as f64))
}

/// Colours for a terminal, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Paint(pub bool);

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        if self.0 && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// What it is about.
    pub fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    /// What stands beside.
    pub fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    /// What took long, or longer.
    pub fn red(self, text: &str) -> String {
        self.with("31", text)
    }

    /// What took less.
    pub fn green(self, text: &str) -> String {
        self.with("32", text)
    }
}

/// A duration in the unit that suits it.
pub fn duration(ns: u64) -> String {
    let (unit, name) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (1_000, "µs"),
        1_000_000..1_000_000_000 => (1_000_000, "ms"),
        _ => (1_000_000_000, "s"),
    };
    // Whole thousandths, cut off: 999.9996 µs is not 1000.000 µs.
    format!("{}.{:03} {name}", ns / unit, ns % unit / (unit / 1000))
}

/// A count with commas.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Text cut to a width: an ellipsis where the middle is missing, for names differ at their ends.
pub fn cut(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let kept = width.saturating_sub(1);
    let head: String = text.chars().take(kept.div_ceil(2)).collect();
    let tail: String = text.chars().skip(length - kept / 2).collect();
    format!("{head}…{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        let all = [0, 999, 1_000, 999_999, 1_000_000, 61_000_000_000].map(duration);
        assert_eq!(all, ["0 ns", "999 ns", "1.000 µs", "999.999 µs", "1.000 ms", "61.000 s"]);
        assert_eq!([0, 999, 1_000, 12_345_678].map(count), ["0", "999", "1,000", "12,345,678"]);
        assert_eq!([cut("abcdef", 6), cut("abcdef", 4), cut("äöü", 2)], ["abcdef", "ab…f", "ä…"]);
    }
}
