//! The profile that follows from the flow a text expects.

use super::case::Case;
use std::collections::BTreeMap;

/// (kind, from, to) to (taken, not taken); addresses are runtime ones.
pub type Rows = BTreeMap<(String, Option<u64>, Option<u64>), (u64, u64)>;

/// The rows of the expected flow. A conditional branch that never was taken needs its target from the listing, which
/// is `target`'s job.
pub fn expected(case: &Case, target: impl Fn(u64) -> Option<u64>) -> Rows {
    let mut rows = Rows::new();
    let address = |word: &str| case.address(word);
    for line in case.flow.iter().chain(&case.rows) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (key, taken) = match words[1..] {
            ["jcc", from, "not", "taken"] => {
                let from = address(from);
                (("jcc", from, from.and_then(&target)), false)
            }
            ["syscall", from] => (("syscall", address(from), None), true),
            ["on", at] => (("resume", None, address(at)), true),
            ["off", from, "->", to, "by", "async"] | ["async", from, "->", to] => {
                (("async", address(from), address(to)), true)
            }
            ["off", ..] => continue,
            [kind, from, "->", to] => ((kind, address(from), address(to)), true),
            _ => continue,
        };
        let count = rows.entry((key.0.to_owned(), key.1, key.2)).or_default();
        *(if taken { &mut count.0 } else { &mut count.1 }) += 1;
    }
    rows
}
