//! From what somebody calls a function to the functions of the capture's images.

use ptflow_decoder::image::FunctionId;
use ptflow_perf_import::images::ImageStore;
use ptflow_perf_import::symbols::{FunctionNames, demangle};
use std::collections::{BTreeSet, HashSet};

/// The functions of that name: as the symbol table has it, as people read it, or that without the parameters. Other
/// names of the same address are tried where none of those is found. PLT stubs are no functions.
pub fn find(pattern: &str, names: &FunctionNames, store: &ImageStore) -> Vec<FunctionId> {
    let found: Vec<FunctionId> = ids(names)
        .filter(|id| matches(pattern, names.raw(*id)) || matches(pattern, names.get(*id)))
        .chain(ids(names).filter(|id| {
            let bare = without_parameters(names.get(*id));
            bare.len() < names.get(*id).len() && matches(pattern, bare)
        }))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    if !found.is_empty() {
        return found;
    }
    let chosen = by_other_name(pattern, store);
    ids(names).filter(|id| chosen.contains(names.raw(*id))).collect()
}

fn ids(names: &FunctionNames) -> impl Iterator<Item = FunctionId> {
    (0..names.len() as u32).map(FunctionId).filter(|id| !names.get(*id).ends_with("@plt"))
}

/// The names that were chosen where another one of the same function is asked for.
fn by_other_name(pattern: &str, store: &ImageStore) -> HashSet<String> {
    let mut chosen = HashSet::new();
    for file in store.files() {
        let symbols = file.symbols();
        for function in symbols.functions() {
            let mut others = symbols.aliases(function.start);
            if others.any(|other| matches(pattern, other) || matches(pattern, &demangle(other))) {
                chosen.insert(function.raw.to_owned());
            }
        }
    }
    chosen
}

/// The name is the pattern, or what it stands for: `*` any characters, `?` any one. Names may hold both themselves
/// (`operator*`), which the first comparison is for.
fn matches(pattern: &str, name: &str) -> bool {
    pattern == name || (pattern.contains(['*', '?']) && glob(pattern.as_bytes(), name.as_bytes()))
}

/// Goes back to the latest `*` only: what an earlier one could take, the latest can take, too.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, n));
                p += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((behind, taken)) => {
                    star = Some((behind, taken + 1));
                    (p, n) = (behind, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// `ns::f<int>` of `ns::f<int>(char*) const`.
fn without_parameters(name: &str) -> &str {
    let Some(close) = name.rfind(')') else { return name };
    let mut depth = 0;
    for (at, byte) in name.as_bytes()[..=close].iter().enumerate().rev() {
        match byte {
            b')' => depth += 1,
            b'(' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return if at == 0 { name } else { &name[..at] };
        }
    }
    name
}

/// The names most like a pattern that nothing matched, the likest first: those that hold it, then those few letters away.
pub fn nearest(pattern: &str, names: &FunctionNames, most: usize) -> Vec<String> {
    let wanted = pattern.replace(['*', '?'], "").to_lowercase();
    if wanted.is_empty() {
        return Vec::new();
    }
    let far = (wanted.chars().count() / 3).max(1);
    let mut near = BTreeSet::new();
    for id in ids(names) {
        let name = without_parameters(names.get(id));
        let lower = name.to_lowercase();
        let last = lower.rsplit("::").next().unwrap_or(&lower);
        let distance = if lower.contains(&wanted) { 0 } else { distance(&wanted, last, far) };
        if distance <= far {
            near.insert((distance, lower.len(), name.to_owned()));
        }
        if near.len() > most {
            near.pop_last();
        }
    }
    near.into_iter().map(|(.., name)| name).collect()
}

/// Letters to change, add or take away (Levenshtein); more than `far` where the lengths alone say so.
fn distance(a: &str, b: &str, far: usize) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > far {
        return far + 1;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("f", "f", true),
            ("f", "ff", false),
            ("*", "", true),
            ("f*", "f", true),
            ("*ab", "aab", true),
            ("a*b*c", "aXbXbc", true),
            ("a*b*c", "aXcXb", false),
            ("?b", "ab", true),
            ("?b", "b", false),
            ("operator*", "operator*", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn parameters() {
        for (name, bare) in [
            ("main", "main"),
            ("f(int)", "f"),
            ("ns::f<int>(char*) const", "ns::f<int>"),
            ("f(void (*)(int))", "f"),
            ("A::operator()(int)", "A::operator()"),
            ("(anonymous)", "(anonymous)"),
            (")", ")"),
        ] {
            assert_eq!(without_parameters(name), bare);
        }
    }

    #[test]
    fn distances() {
        assert_eq!(distance("kitten", "sitting", 3), 3);
        assert_eq!(distance("", "abc", 5), 3);
        assert_eq!(distance("abc", "abc", 1), 0);
    }
}
