//! The corpus: one text a situation (`cases/*.txt`, format in `README.md`), each run by every engine.
//!
//! A text has a program, a trace as bytes with the packets that they are, and the flow that follows from both. All
//! three were worked out by hand from the manual; nothing in them was printed by the decoder.

mod case;
#[cfg(feature = "oracle")]
mod oracle;
mod render;
mod rows;
mod run;
mod subject;

use case::Case;
use std::fmt::Write as _;
use std::path::Path;

/// Runs `check` on every text; fails with the complaints of all.
fn for_each_case(check: impl Fn(&Case, &mut String)) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/cases");
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).expect("the corpus").map(|entry| entry.expect("a file").path()).collect();
    paths.sort();
    let only = std::env::var("PTFLOW_CASE").ok();
    let (mut complaints, mut cases) = (String::new(), 0);
    for path in paths {
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        if only.as_ref().is_some_and(|only| !name.contains(only)) {
            continue;
        }
        cases += 1;
        let text = std::fs::read_to_string(&path).expect("text");
        let mut complaint = String::new();
        match Case::parse(&text) {
            Ok(case) => check(&case, &mut complaint),
            Err(error) => complaint = error,
        }
        if !complaint.is_empty() {
            let _ = write!(complaints, "\n== {name}\n{complaint}");
        }
    }
    assert!(cases > 0, "no case was run");
    assert!(complaints.is_empty(), "{complaints}");
}

/// The bytes are the packets that the text says, and the encoder gives the bytes back.
#[test]
fn packets() {
    for_each_case(|case, complaint| complaint.push_str(&case.check_packets()));
}

/// The listing is what the decoder of instructions sees.
#[test]
fn listings() {
    for_each_case(|case, complaint| complaint.push_str(&case.check_listing()));
}

/// Every engine, handing over at every packet, finds the flow, the counts, the losses and the times.
#[test]
fn flow() {
    for_each_case(|case, complaint| complaint.push_str(&run::check(case)));
}

/// Damage to any byte: the engines agree, and the ledger adds up.
#[test]
fn damage() {
    for_each_case(|case, complaint| complaint.push_str(&run::check_damaged(case)));
}

/// libipt finds the same edges, but where the text says why not.
#[cfg(feature = "oracle")]
#[test]
fn libipt() {
    for_each_case(|case, complaint| complaint.push_str(&oracle::check(case)));
}
