//! Which way conditional branches went: `profile --format branches`, one line a branch, and `profile --format bias`, one
//! line a function; tab-separated, behind a header.
//!
//! ```text
//! branches   FUNCTION  BRANCH  TAKEN  NOT_TAKEN
//! bias       FUNCTION  IMAGE  BRANCHES  NEVER_TAKEN  ALWAYS_TAKEN  TAKEN  NOT_TAKEN  MIXED  MIXED_TAKEN  MIXED_NOT_TAKEN
//! ```
//!
//! A branch that was executed stands in a table once, whatever it led to (code may be overwritten). MIXED is the branch that
//! most often went the way that it rarer goes: what a predictor has least of, and what a layout of the code cannot please.
//! `-` stands for what there is none of: code without a symbol, an address in no image, a function whose branches all went
//! one way.

use crate::address::{AddressNames, push_address};
use ptflow_decoder::profile::{CodeAddr, EdgeKind, EdgeRow};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, Write};

/// The first lines of `branches`.
pub const BRANCHES_HEADER: &str = "#ptflow-branches 1\n#FUNCTION\tBRANCH\tTAKEN\tNOT_TAKEN";

/// The first lines of `bias`.
pub const BIAS_HEADER: &str = "#ptflow-bias 1\n#FUNCTION\tIMAGE\tBRANCHES\tNEVER_TAKEN\tALWAYS_TAKEN\tTAKEN\tNOT_TAKEN\
                               \tMIXED\tMIXED_TAKEN\tMIXED_NOT_TAKEN";

/// How often a branch went either way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Ways {
    taken: u64,
    not_taken: u64,
}

impl Ways {
    fn add(&mut self, taken: u64, not_taken: u64) {
        self.taken = self.taken.saturating_add(taken);
        self.not_taken = self.not_taken.saturating_add(not_taken);
    }

    /// How often it went the rarer way.
    fn rarer(self) -> u64 {
        self.taken.min(self.not_taken)
    }
}

/// A branch: whose it is, and which ways it went.
type Branch<'n> = (Option<&'n str>, Ways);

/// A function's branches.
#[derive(Default)]
struct Bias {
    branches: u64,
    never_taken: u64,
    always_taken: u64,
    sum: Ways,
    /// The most mixed one.
    mixed: Option<(u64, Ways)>,
}

/// The executed conditional branches: sorted by image name and address.
pub struct Branches<'n>(BTreeMap<(Option<&'n str>, u64), Branch<'n>>);

impl<'n> Branches<'n> {
    /// Of rows in any order; `function` tells whose code is at an address.
    pub fn new<'r>(
        rows: impl IntoIterator<Item = &'r EdgeRow>,
        names: &'n dyn AddressNames,
        function: impl Fn(CodeAddr) -> Option<&'n str>,
    ) -> Self {
        let mut branches: BTreeMap<_, Branch<'n>> = BTreeMap::new();
        for row in rows {
            if let (EdgeKind::Jcc, Some(from)) = (row.kind, row.from)
                && (row.taken > 0 || row.not_taken > 0)
            {
                let branch =
                    branches.entry(names.name(from)).or_insert_with(|| (function(from), Ways::default()));
                branch.1.add(row.taken, row.not_taken);
            }
        }
        Self(branches)
    }

    /// True where none was executed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes `branches`.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{BRANCHES_HEADER}")?;
        for (at, (function, Ways { taken, not_taken })) in &self.0 {
            writeln!(out, "{}\t{}\t{taken}\t{not_taken}", field(*function), address(*at))?;
        }
        Ok(())
    }

    /// Writes `bias`: the function whose branches were executed most comes first.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_bias(&self, out: &mut impl Write) -> io::Result<()> {
        let mut functions: BTreeMap<(Option<&str>, Option<&str>), Bias> = BTreeMap::new();
        for ((image, addr), (function, ways)) in &self.0 {
            let bias = functions.entry((*function, *image)).or_default();
            bias.branches += 1;
            bias.never_taken += u64::from(ways.taken == 0);
            bias.always_taken += u64::from(ways.not_taken == 0);
            bias.sum.add(ways.taken, ways.not_taken);
            if ways.rarer() > bias.mixed.map_or(0, |(_, most)| most.rarer()) {
                bias.mixed = Some((*addr, *ways));
            }
        }
        let mut functions: Vec<_> = functions.into_iter().collect();
        functions.sort_by_key(|(_, bias)| Reverse(bias.sum.taken.saturating_add(bias.sum.not_taken)));
        writeln!(out, "{BIAS_HEADER}")?;
        for ((function, image), Bias { branches, never_taken, always_taken, sum, mixed }) in functions {
            let at = mixed.map_or_else(|| "-".to_owned(), |(addr, _)| address((image, addr)));
            let ways = mixed.map(|(_, ways)| ways).unwrap_or_default();
            writeln!(
                out,
                "{}\t{}\t{branches}\t{never_taken}\t{always_taken}\t{}\t{}\t{at}\t{}\t{}",
                field(function),
                field(image),
                sum.taken,
                sum.not_taken,
                ways.taken,
                ways.not_taken,
            )?;
        }
        Ok(())
    }
}

/// A name must not end its column or line.
fn field(name: Option<&str>) -> String {
    name.map_or_else(|| "-".to_owned(), |name| name.replace(|c: char| c.is_control(), " "))
}

fn address(at: (Option<&str>, u64)) -> String {
    let mut text = Vec::new();
    push_address(&mut text, at);
    String::from_utf8_lossy(&text).into_owned()
}
