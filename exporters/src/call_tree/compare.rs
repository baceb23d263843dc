//! Two invocations side by side, aligned by call path.
//!
//! What both reached differs by its own time; what only one reached differs by all of it, at the place where it leaves what
//! both share. So the differences of all rows add up to that of the whole.

use super::{CallTree, Node, Paint, count, cut, duration};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

/// A path that differs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row<'t> {
    /// Functions from the invocation down.
    pub path: Vec<&'t str>,
    /// It here, and in the other invocation.
    pub sides: [Option<&'t Node>; 2],
    /// Time here minus time there.
    pub ns: i128,
}

impl Row<'_> {
    fn name(&self) -> &str {
        self.path.last().copied().unwrap_or("")
    }
}

/// All paths that differ in time, calls, instructions or iterations: the biggest difference in time first.
pub fn rows<'t>(this: &'t CallTree, other: &'t CallTree) -> Vec<Row<'t>> {
    let mut rows = Vec::new();
    let mut path = vec![this.root.name.as_str()];
    both(&this.root, &other.root, &mut path, &mut rows);
    // Stable: what differs alike stays in the order of the tree.
    rows.sort_by_key(|row| std::cmp::Reverse(row.ns.unsigned_abs()));
    rows
}

fn both<'t>(this: &'t Node, other: &'t Node, path: &mut Vec<&'t str>, rows: &mut Vec<Row<'t>>) {
    let ns = i128::from(this.self_ns()) - i128::from(other.self_ns());
    let figures = |node: &Node| (node.calls, node.self_instructions(), node.self_iterations());
    if ns != 0 || figures(this) != figures(other) {
        rows.push(Row { path: path.clone(), sides: [Some(this), Some(other)], ns });
    }
    let find = |children: &'t [Node], name: &str| children.iter().find(|child| child.name == name);
    for child in &this.children {
        path.push(&child.name);
        match find(&other.children, &child.name) {
            Some(same) => both(child, same, path, rows),
            None => rows.push(Row { path: path.clone(), sides: [Some(child), None], ns: child.ns.into() }),
        }
        path.pop();
    }
    for child in other.children.iter().filter(|child| find(&this.children, &child.name).is_none()) {
        path.push(&child.name);
        rows.push(Row { path: path.clone(), sides: [None, Some(child)], ns: -i128::from(child.ns) });
        path.pop();
    }
}

/// The first call, in order of time, that only one of the two makes, as its row.
pub fn first_only<'r, 't>(rows: &'r [Row<'t>], side: usize) -> Option<&'r Row<'t>> {
    let other = 1 - side.min(1);
    let alone = rows.iter().filter(|row| row.sides[other].is_none());
    alone
        .filter(|row| row.sides[1 - other].is_some())
        .min_by_key(|row| row.sides[1 - other].map(|node| node.first_ns))
}

/// What the two are called.
pub type Titles<'a> = [&'a str; 2];

/// How much is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Style {
    /// Paths at most.
    pub rows: usize,
    /// Columns that a line may have.
    pub width: usize,
    /// With colours or without.
    pub paint: Paint,
}

/// Columns of a path at least, whatever the width.
const PATH: usize = 24;
/// Functions that only one of the two reached, by name at most.
const NAMES: usize = 12;

/// Writes the difference: what the two are, the paths that differ, and what only one of them reached.
pub fn write(
    out: &mut impl Write,
    [this, other]: [&CallTree; 2],
    titles: Titles<'_>,
    style: Style,
) -> io::Result<()> {
    let ticks = this.clock != "ns" || other.clock != "ns";
    let times = Times { ticks };
    let longest = titles.iter().map(|title| title.chars().count()).max().unwrap_or(0);
    for (title, tree) in titles.iter().zip([this, other]) {
        let root = &tree.root;
        let off = root.off_cpu_ns.filter(|ns| *ns > 0);
        let off = off.map_or(String::new(), |ns| format!(" ({} off CPU)", times.text(ns)));
        let ipc = root.ipc().map_or(String::new(), |ipc| format!(", IPC {ipc}"));
        let instructions = count(root.instructions);
        writeln!(out, "{title:>longest$}: {}{off}, {instructions} instructions{ipc}", times.text(root.ns))?;
    }
    let rows = rows(this, other);
    if rows.is_empty() {
        return writeln!(out, "\nno path of calls differs");
    }
    // What is less than a thousandth of the biggest tells nothing beside it.
    let floor = rows.first().map_or(0, |row| row.ns.unsigned_abs() / 1000);
    let shown = rows.iter().take(style.rows).take_while(|row| row.ns.unsigned_abs() >= floor).count();
    let table = Table::new(&rows[..shown], titles, times, style.width);
    let head = cut("own time, by path of calls", style.width.saturating_sub(table.width() + 2));
    writeln!(out, "\n{}", style.paint.dim(&format!("{}  {head}", table.head())))?;
    for (at, row) in rows[..shown].iter().enumerate() {
        write_row(out, row, &table.line(at), table.width(), times, style)?;
    }
    if rows.len() > shown {
        let more = rows.len() - shown;
        let differ = if more == 1 { "more differs" } else { "more differ" };
        writeln!(out, "{:>width$}  {more} {differ} less", "…", width = table.width())?;
    }
    for (side, trees) in [[this, other], [other, this]].into_iter().enumerate() {
        let only = only_reached(trees[0], trees[1]);
        if only.is_empty() {
            continue;
        }
        let more = match only.len().saturating_sub(NAMES) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let names: Vec<String> = only.iter().take(NAMES).map(|name| cut(name, style.width / 2)).collect();
        let text = format!("functions only in {}: {}{more}", titles[side], names.join(", "));
        write_wrapped(out, &text, style.width)?;
    }
    Ok(())
}

/// At commas, so that no line is too long; the lines behind the first are set in.
fn write_wrapped(out: &mut impl Write, text: &str, width: usize) -> io::Result<()> {
    let mut line = String::new();
    for word in text.split_inclusive(", ") {
        if line.chars().count() + word.trim_end().chars().count() > width && !line.trim().is_empty() {
            writeln!(out, "{}", line.trim_end())?;
            line = "    ".to_owned();
        }
        line.push_str(word);
    }
    writeln!(out, "{}", line.trim_end())
}

/// Functions that one tree has and another one has not; those that took longest first.
pub fn only_reached<'t>(tree: &'t CallTree, other: &CallTree) -> Vec<&'t str> {
    fn each<'t>(node: &'t Node, take: &mut impl FnMut(&'t Node)) {
        take(node);
        node.children.iter().for_each(|child| each(child, take));
    }
    let mut known = BTreeSet::new();
    each(&other.root, &mut |node| {
        known.insert(node.name.as_str());
    });
    let mut only: BTreeMap<&str, u64> = BTreeMap::new();
    each(&tree.root, &mut |node| {
        if !node.is_untraced() && !known.contains(node.name.as_str()) {
            let longest = only.entry(&node.name).or_default();
            *longest = node.ns.max(*longest);
        }
    });
    let mut names: Vec<(&str, u64)> = only.into_iter().collect();
    names.sort_by_key(|(_, ns)| std::cmp::Reverse(*ns));
    names.into_iter().map(|(name, _)| name).collect()
}

/// How times are written.
#[derive(Clone, Copy)]
struct Times {
    ticks: bool,
}

impl Times {
    fn text(self, ns: u64) -> String {
        if self.ticks { count(ns) } else { duration(ns) }
    }

    fn signed(self, ns: i128) -> String {
        let sign = if ns < 0 { "-" } else { "+" };
        format!("{sign}{}", self.text(u64::try_from(ns.unsigned_abs()).unwrap_or(u64::MAX)))
    }
}

/// The figures, each column as wide as it needs to be.
struct Table {
    columns: Vec<Vec<String>>,
    /// Of the columns that are shown.
    widths: Vec<usize>,
}

impl Table {
    fn new(rows: &[Row<'_>], [a, b]: Titles<'_>, times: Times, room: usize) -> Self {
        // What only one reached counts with all below it.
        let figure = |row: &Row<'_>, side: usize, own: fn(&Node) -> u64, all: fn(&Node) -> u64| -> u64 {
            let alone = row.sides.iter().any(Option::is_none);
            row.sides[side].map_or(0, if alone { all } else { own })
        };
        let time = |row: &Row<'_>, side: usize| match row.sides[side] {
            Some(_) => times.text(figure(row, side, Node::self_ns, |node| node.ns)),
            None => "-".to_owned(),
        };
        let change = |row: &Row<'_>, own: fn(&Node) -> u64, all: fn(&Node) -> u64| {
            i128::from(figure(row, 0, own, all)) - i128::from(figure(row, 1, own, all))
        };
        let counted = |own: fn(&Node) -> u64, all: fn(&Node) -> u64| -> Vec<String> {
            let text = |row| match change(row, own, all) {
                0 => "=".to_owned(),
                by => {
                    let sign = if by < 0 { "-" } else { "+" };
                    format!("{sign}{}", count(u64::try_from(by.unsigned_abs()).unwrap_or(u64::MAX)))
                }
            };
            rows.iter().map(text).collect()
        };
        let mut columns = vec![
            ("difference", rows.iter().map(|row| times.signed(row.ns)).collect()),
            (a, rows.iter().map(|row| time(row, 0)).collect()),
            (b, rows.iter().map(|row| time(row, 1)).collect()),
        ];
        // What differs nowhere needs no column.
        let off = |row: &Row<'_>| change(row, Node::self_off_cpu_ns, |node| node.off_cpu_ns.unwrap_or(0));
        if rows.iter().any(|row| off(row) != 0) {
            let text = |row| if off(row) == 0 { "=".to_owned() } else { times.signed(off(row)) };
            columns.push(("off CPU", rows.iter().map(text).collect()));
        }
        columns.push(("calls", counted(|node| node.calls, |node| node.calls)));
        columns.push(("instructions", counted(Node::self_instructions, |node| node.instructions)));
        let iterations = counted(Node::self_iterations, Node::iterations);
        if iterations.iter().any(|cell| cell != "=") {
            columns.push(("iterations", iterations));
        }
        let columns: Vec<Vec<String>> =
            columns.into_iter().map(|(head, cells)| [vec![head.to_owned()], cells].concat()).collect();
        let width = |column: &Vec<String>| column.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
        let mut widths: Vec<usize> = columns.iter().map(|column| width(column) + 2).collect();
        // Times and paths are what it is about: the last columns go where there is no room for all.
        while widths.len() > 3 && widths.iter().sum::<usize>() + 2 + PATH > room {
            widths.pop();
        }
        Self { columns, widths }
    }

    fn width(&self) -> usize {
        self.widths.iter().sum()
    }

    fn cells(&self, at: usize) -> String {
        let columns = self.columns.iter().zip(&self.widths);
        columns.map(|(column, width)| format!("{:>width$}", column[at], width = *width)).collect()
    }

    fn head(&self) -> String {
        self.cells(0)
    }

    fn line(&self, at: usize) -> String {
        self.cells(at + 1)
    }
}

fn write_row(
    out: &mut impl Write,
    row: &Row<'_>,
    figures: &str,
    indent: usize,
    times: Times,
    style: Style,
) -> io::Result<()> {
    let alone = row.sides.iter().any(Option::is_none);
    let only = match row.sides {
        [Some(_), None] => "only here: ",
        [None, Some(_)] => "only there: ",
        _ => "",
    };
    // The end of a path tells most.
    let path = row
        .path
        .get(1..)
        .filter(|path| !path.is_empty())
        .map_or(row.name().to_owned(), |path| path.join(" › "));
    let room = style.width.saturating_sub(indent + 2 + only.len()).max(PATH / 2);
    let skip = path.chars().count().saturating_sub(room);
    let path = if skip == 0 {
        path
    } else if row.name().chars().count() + 1 > room {
        cut(row.name(), room)
    } else {
        format!("…{}", path.chars().skip(skip + 1).collect::<String>())
    };
    let figures = if row.ns < 0 { style.paint.green(figures) } else { style.paint.red(figures) };
    writeln!(out, "{figures}  {only}{}", style.paint.bold(&path))?;
    // What stands alone is a tree of its own: the way along which most of its time went.
    let mut way = Vec::new();
    let mut node = row.sides[0].or(row.sides[1]).filter(|_| alone);
    while let Some(heaviest) = node.and_then(|node| node.children.iter().max_by_key(|child| child.ns)) {
        if heaviest.ns * 2 < node.map_or(0, |node| node.ns) || way.len() > 8 {
            break;
        }
        let calls =
            if heaviest.calls == 1 { String::new() } else { format!(" × {}", count(heaviest.calls)) };
        way.push((heaviest.name.as_str(), format!("{calls}, {}", times.text(heaviest.ns))));
        node = Some(heaviest);
    }
    // Below the path, or as far to the left as the longest line needs.
    let around = |depth: usize, behind: &str| 2 * depth + 6 + behind.chars().count();
    let length = |(depth, (name, behind)): (usize, &(&str, String))| {
        around(depth, behind) + name.chars().count().min(PATH)
    };
    let longest = way.iter().enumerate().map(length).max().unwrap_or(0);
    let indent = indent.min(style.width.saturating_sub(longest));
    for (depth, (name, behind)) in way.iter().enumerate() {
        let room = style.width.saturating_sub(indent + around(depth, behind));
        let before = format!("{:indent$}  {}└ ", "", "  ".repeat(depth + 1));
        writeln!(out, "{before}{}{}", cut(name, room), style.paint.dim(behind))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Loop;
    use super::*;

    fn node(name: &str, calls: u64, ns: u64, children: Vec<Node>) -> Node {
        Node { name: name.to_owned(), calls, ns, instructions: ns, first_ns: ns, children, ..Node::default() }
    }

    fn tree(root: Node) -> CallTree {
        CallTree {
            ptflow_replay: super::super::VERSION,
            tid: 1,
            thread: String::new(),
            start_ns: 0,
            begin: "seen".to_owned(),
            end: "seen".to_owned(),
            cut: None,
            place: None,
            clock: "ns".to_owned(),
            root,
        }
    }

    fn pair() -> (CallTree, CallTree) {
        let slow = vec![
            node("parse", 1, 12, vec![]),
            node("store", 1, 900, vec![node("rehash", 1, 890, vec![node("insert", 3000, 800, vec![])])]),
        ];
        let usual = vec![node("parse", 1, 10, vec![]), node("lookup", 1, 30, vec![])];
        (tree(node("handle", 1, 1000, slow)), tree(node("handle", 1, 50, usual)))
    }

    #[test]
    fn differences_add_up_and_the_biggest_is_first() {
        let (slow, usual) = pair();
        let rows = rows(&slow, &usual);
        let brief: Vec<(&str, i128)> = rows.iter().map(|row| (row.name(), row.ns)).collect();
        assert_eq!(brief, [("store", 900), ("handle", 78), ("lookup", -30), ("parse", 2)]);
        assert_eq!(rows.iter().map(|row| row.ns).sum::<i128>(), 950);
        assert_eq!(first_only(&rows, 0).map(Row::name), Some("store"));
        assert_eq!(first_only(&rows, 1).map(Row::name), Some("lookup"));
        assert!(super::rows(&slow, &slow).is_empty());
    }

    #[test]
    fn the_text() {
        let (mut slow, mut usual) = pair();
        let store = &mut slow.root.children[1];
        store.children[0].loops = vec![Loop { at: "table.c:9".to_owned(), iterations: 3000 }];
        slow.root.cycles = Some(800);
        let text = |slow: &CallTree, usual: &CallTree, width: usize, colour: bool| {
            let mut out = Vec::new();
            let style = Style { rows: 3, width, paint: Paint(colour) };
            write(&mut out, [slow, usual], ["this", "median"], style).expect("memory");
            String::from_utf8(out).expect("text")
        };
        let expected = "  this: 1.000 µs, 1,000 instructions, IPC 1.25
median: 50 ns, 50 instructions

  difference    this  median  calls  instructions  iterations  own time, by path of calls
     +900 ns  900 ns       -     +1          +900      +3,000  only here: store
                                                                 └ rehash, 890 ns
                                                                   └ insert × 3,000, 800 ns
      +78 ns   88 ns   10 ns      =           +78           =  handle
      -30 ns       -   30 ns     -1           -30           =  only there: lookup
                                                            …  1 more differs less
functions only in this: store, rehash, insert
functions only in median: lookup
";
        assert_eq!(text(&slow, &usual, 100, false), expected);
        let coloured = text(&slow, &usual, 100, true);
        assert!(coloured.contains("\x1b[31m") && coloured.contains("\x1b[32m"));
        let plain = ["0", "1", "2", "31", "32"]
            .iter()
            .fold(coloured, |text, code| text.replace(&format!("\x1b[{code}m"), ""));
        assert_eq!(plain, expected);
        slow.root.off_cpu_ns = Some(70);
        slow.root.children[0].off_cpu_ns = Some(70);
        usual.root.off_cpu_ns = Some(0);
        let text = text(&slow, &usual, 120, false);
        assert!(text.starts_with("  this: 1.000 µs (70 ns off CPU), "), "{text}");
    }

    #[test]
    fn long_names_are_cut_in_the_middle() {
        let long = "std::collections::hash::map::HashMap<K,V,S>::insert_with_a_hasher_of_its_own";
        let (slow, usual) =
            (node("handle", 1, 1000, vec![node(long, 1, 900, vec![])]), node("handle", 1, 50, vec![]));
        for width in [64, 80, 90, 100, 160] {
            let mut out = Vec::new();
            let style = Style { rows: 9, width, paint: Paint(false) };
            write(&mut out, [&tree(slow.clone()), &tree(usual.clone())], ["this", "median"], style)
                .expect("memory");
            let text = String::from_utf8(out).expect("text");
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}\n{text}");
            assert!(text.contains(if width < 160 { "only here: s" } else { long }), "{text}");
        }
    }
}
