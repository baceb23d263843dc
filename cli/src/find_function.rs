//! From what somebody calls a function to the functions of the capture's images.

use crate::args::Usage;
use anyhow::bail;
use ptflow_decoder::image::{FunctionId, FunctionRole, Images};
use ptflow_decoder::units::{ImageId, Svma};
use ptflow_perf_import::images::ImageStore;
use ptflow_perf_import::symbols::{FunctionNames, demangle};
use regex_lite::Regex;
use std::collections::{BTreeSet, HashMap, HashSet};

/// What a capture calls its functions, and where they are.
pub struct Functions<'f> {
    /// Their names.
    pub names: &'f FunctionNames,
    /// The images that they are in.
    pub images: &'f Images<'f>,
    /// The files of the images.
    pub store: &'f ImageStore,
}

impl Functions<'_> {
    /// The functions of any of these names. Refuses a name that nothing has, with those that are like it.
    pub fn find_all(&self, patterns: &[String], regex: bool) -> anyhow::Result<Vec<FunctionId>> {
        if patterns.is_empty() {
            return Err(Usage("which function? --function NAME".to_owned()).into());
        }
        let mut all = BTreeSet::new();
        for text in patterns {
            let found = self.find(&Pattern::new(text, regex)?);
            if found.is_empty() {
                bail!("{}", self.not_found(text));
            }
            all.extend(found);
        }
        Ok(all.into_iter().collect())
    }

    /// The functions of that name: as the symbol table has it, as people read it, or that without the parameters. Other
    /// names of the same address are tried where none of those is found; then the name in one image, `FILE:NAME`. PLT
    /// stubs are no functions.
    fn find(&self, pattern: &Pattern) -> Vec<FunctionId> {
        let names = self.names;
        let is_it = |id: &FunctionId| {
            let readable = names.get(*id);
            let bare = without_parameters(readable);
            pattern.matches(names.raw(*id))
                || pattern.matches(readable)
                || bare.len() < readable.len() && pattern.matches(bare)
        };
        let found: Vec<FunctionId> = ids(names).filter(is_it).collect();
        if !found.is_empty() {
            return found;
        }
        let chosen = by_other_name(pattern, self.store);
        let found: Vec<FunctionId> = ids(names).filter(|id| chosen.contains(names.raw(*id))).collect();
        match pattern {
            Pattern::Glob(text) if found.is_empty() => {
                // The colon that is none of C++'s.
                let colon = (1..text.len()).find(|at| {
                    let byte = |at: usize| text.as_bytes().get(at).copied();
                    byte(*at) == Some(b':') && byte(at - 1) != Some(b':') && byte(at + 1) != Some(b':')
                });
                let Some((file, name)) = colon.map(|at| (&text[..at], &text[at + 1..])) else { return found };
                let found = self.find(&Pattern::Glob(name.to_owned()));
                let is_in = |id: &FunctionId| self.homes().get(id).is_some_and(|home| home.file == file);
                found.into_iter().filter(is_in).collect()
            }
            _ => found,
        }
    }

    fn not_found(&self, name: &str) -> String {
        if self.names.is_empty() {
            return format!(
                "no function is named {name}: no image with symbols was found; see which are missing: ptflow info"
            );
        }
        let near = nearest(name, self.names, 5);
        if near.is_empty() {
            format!(
                "no function is named {name}, nor anything like it, in the images that were found: ptflow info"
            )
        } else {
            format!("no function is named {name}; there are: {}", near.join(", "))
        }
    }

    /// Other names like those of some functions.
    pub fn near(&self, functions: &[FunctionId]) -> Vec<String> {
        let [only] = functions else { return Vec::new() };
        let own = without_parameters(self.names.get(*only));
        let mut near = nearest(own, self.names, 6);
        near.retain(|name| name != own);
        near.truncate(5);
        near
    }

    /// Where each function begins.
    pub fn homes(&self) -> HashMap<FunctionId, Home> {
        let mut homes = HashMap::new();
        for image in (0..self.images.len() as u32).map(ImageId) {
            let Some(code) = self.images.get(image) else { continue };
            let path = self.store.file(image).map_or("?", |file| file.mapped.path.as_str());
            let file = path.rsplit('/').next().unwrap_or(path);
            let is_function = |role| matches!(role, FunctionRole::Function | FunctionRole::Resume);
            for range in code.functions().iter().filter(|range| is_function(range.role)) {
                homes
                    .entry(range.function)
                    .or_insert_with(|| Home { file: file.to_owned(), start: range.start });
            }
        }
        homes
    }
}

/// Where a function is: what to tell one from another of the same name by.
pub struct Home {
    /// The image's file name.
    pub file: String,
    /// Its first instruction.
    pub start: Svma,
}

/// What names are compared with.
enum Pattern {
    Glob(String),
    Regex(Regex),
}

impl Pattern {
    fn new(text: &str, regex: bool) -> anyhow::Result<Self> {
        if !regex {
            return Ok(Self::Glob(text.to_owned()));
        }
        let regex = Regex::new(text).map_err(|error| Usage(format!("--regex {text}: {error}")))?;
        Ok(Self::Regex(regex))
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Glob(pattern) => matches(pattern, name),
            Self::Regex(regex) => regex.is_match(name),
        }
    }
}

fn ids(names: &FunctionNames) -> impl Iterator<Item = FunctionId> {
    (0..names.len() as u32).map(FunctionId).filter(|id| !names.get(*id).ends_with("@plt"))
}

/// The names that were chosen where another one of the same function is asked for.
fn by_other_name(pattern: &Pattern, store: &ImageStore) -> HashSet<String> {
    let mut chosen = HashSet::new();
    for file in store.files() {
        let symbols = file.symbols();
        for function in symbols.functions() {
            let mut others = symbols.aliases(function.start);
            if others.any(|other| pattern.matches(other) || pattern.matches(&demangle(other))) {
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
fn nearest(pattern: &str, names: &FunctionNames, most: usize) -> Vec<String> {
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
