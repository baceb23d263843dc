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
    /// Instructions in them, in what they called too.
    pub instructions: u64,
    /// When the first one began, from the start of the invocation.
    pub first_ns: u64,
    /// Calls below it that are not told apart.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub deeper: u64,
    /// What they called, in the order in which it first came.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub children: Vec<Node>,
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

    /// No function: the trace tells nothing of what ran.
    pub fn is_untraced(&self) -> bool {
        self.name.starts_with('[')
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

/// Text cut to a width, with an ellipsis where something is missing.
pub(crate) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    kept + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        let all = [0, 999, 1_000, 999_999, 1_000_000, 61_000_000_000].map(duration);
        assert_eq!(all, ["0 ns", "999 ns", "1.000 µs", "999.999 µs", "1.000 ms", "61.000 s"]);
        assert_eq!([0, 999, 1_000, 12_345_678].map(count), ["0", "999", "1,000", "12,345,678"]);
        assert_eq!([cut("abcdef", 6), cut("abcdef", 4), cut("äöü", 2)], ["abcdef", "abc…", "ä…"]);
    }
}
