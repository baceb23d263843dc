//! An index of invocations: what `calls --index` leaves for `replay --index`.
//!
//! Tab-separated text. The first line is the version, the second what the capture is told by; then a line for each
//! invocation: function (as the symbol table has it), thread, start, end, instructions, how it came into view and went out of
//! it, and where in which stream the unit of work begins that it begins in.

use anyhow::{Context as _, bail};
use ptflow_decoder::jobs::invocations::{Begin, End, Invocation};
use ptflow_decoder::units::Ns;
use std::io::{self, BufRead, Write};
use std::path::Path;

const VERSION: &str = "#ptflow-invocations 1";
const COLUMNS: &str = "#function\ttid\tstart\tend\tinstructions\tuntraced\tbegin\tend\tstream\toffset";

/// One line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The function's name in the symbol table.
    pub function: String,
    /// The thread.
    pub tid: u32,
    /// The invocation; its stack, function and unit are not told by an index.
    pub start: Ns,
    /// When it ended.
    pub end: Ns,
    /// Instructions in it.
    pub instructions: u64,
    /// Its beginning and its end were seen.
    pub complete: bool,
}

/// Writes the head. `capture` is what the capture is told by.
pub fn head(out: &mut impl Write, capture: &str) -> io::Result<()> {
    writeln!(out, "{VERSION}\n#capture\t{capture}\n{COLUMNS}")
}

/// Writes one line; `at` = stream and offset.
pub fn write(
    out: &mut impl Write,
    function: &str,
    tid: u32,
    invocation: &Invocation,
    at: Option<(u32, u64)>,
) -> io::Result<()> {
    let Invocation { start, end, instructions, untraced, .. } = invocation;
    let (began, ended) = (began(invocation.began), ended(invocation.ended));
    // A symbol may be called anything.
    let function = function.replace(|c: char| c.is_control(), "?");
    write!(out, "{function}\t{tid}\t{start}\t{end}\t{instructions}\t{untraced}\t{began}\t{ended}\t")?;
    match at {
        Some((stream, offset)) => writeln!(out, "{stream}\t{offset:#x}"),
        None => writeln!(out, "-\t-"),
    }
}

/// A word for how an invocation came into view.
pub fn began(begin: Begin) -> &'static str {
    match begin {
        Begin::Seen => "seen",
        Begin::BeforeTrace => "before_trace",
        Begin::InGap => "in_gap",
    }
}

/// A word for how it went out of view.
pub fn ended(end: End) -> &'static str {
    match end {
        End::Seen => "seen",
        End::AfterTrace => "after_trace",
        End::InGap => "in_gap",
    }
}

/// Reads an index back, line by line.
pub fn read(
    path: &Path,
    capture: &str,
    mut take: impl FnMut(Entry) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let name = path.display();
    let file = std::fs::File::open(path).with_context(|| format!("cannot open {name}"))?;
    let mut lines = io::BufReader::new(file).lines();
    let mut line = || lines.next().transpose().with_context(|| format!("cannot read {name}"));
    if line()?.as_deref() != Some(VERSION) {
        bail!("{name} is no index of this version of ptflow ({VERSION}); make it anew: ptflow calls --index");
    }
    if line()?.as_deref().and_then(|line| line.strip_prefix("#capture\t")) != Some(capture) {
        bail!("{name} is of another capture, or of other threads of it; make it anew: ptflow calls --index");
    }
    let mut number = 2;
    while let Some(text) = line()? {
        number += 1;
        if text.starts_with('#') {
            continue;
        }
        let entry =
            entry(&text).with_context(|| format!("{name}, line {number}: {text:?} is no invocation"))?;
        take(entry)?;
    }
    Ok(())
}

fn entry(text: &str) -> Option<Entry> {
    let fields: Vec<&str> = text.split('\t').collect();
    let [function, tid, start, end, instructions, _, began, ended, _, _] = fields[..] else { return None };
    let (start, end) = (start.parse().ok()?, end.parse().ok()?);
    Some(Entry {
        function: function.to_owned(),
        tid: tid.parse().ok()?,
        start: Ns(start),
        end: Ns(end),
        instructions: instructions.parse().ok()?,
        complete: began == "seen" && ended == "seen" && start <= end,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ptflow_decoder::image::FunctionId;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("index");
        let mut invocation = Invocation {
            stack: 3,
            function: FunctionId(1),
            start: Ns(5),
            end: Ns(9),
            instructions: 7,
            cycles: None,
            untraced: Ns(1),
            began: Begin::Seen,
            ended: End::Seen,
            unit: None,
            value: None,
        };
        let mut bytes = Vec::new();
        head(&mut bytes, "100 bytes").expect("memory");
        write(&mut bytes, "f(int)", 12, &invocation, Some((2, 0x40))).expect("memory");
        invocation.ended = End::InGap;
        write(&mut bytes, "a\tb", 12, &invocation, None).expect("memory");
        std::fs::write(&path, &bytes).expect("written");
        let mut found = Vec::new();
        let all = |capture: &str, found: &mut Vec<Entry>| {
            read(&path, capture, |entry| {
                found.push(entry);
                Ok(())
            })
        };
        all("100 bytes", &mut found).expect("an index");
        let first = Entry {
            function: "f(int)".into(),
            tid: 12,
            start: Ns(5),
            end: Ns(9),
            instructions: 7,
            complete: true,
        };
        assert_eq!(found, [first.clone(), Entry { function: "a?b".into(), complete: false, ..first }]);
        assert!(all("101 bytes", &mut found).expect_err("another").to_string().contains("another capture"));
        for wrong in ["", "#ptflow-invocations 2\n", "#ptflow-invocations 1\n#capture\t100 bytes\nf\t1\n"] {
            std::fs::write(&path, wrong).expect("written");
            assert!(all("100 bytes", &mut found).is_err(), "{wrong:?}");
        }
    }
}
