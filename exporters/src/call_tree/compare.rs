//! Two invocations side by side, aligned by call path.
//!
//! What both reached differs by its own time; what only one reached differs by all of it, at the place where it leaves what
//! both share. So the differences of all rows add up to that of the whole.

use super::{CallTree, Node, count, cut, duration};
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

/// All paths that differ in time, calls or instructions: the biggest difference in time first.
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
    let figures = |node: &Node| (node.calls, node.self_instructions());
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

/// Writes the difference: a head, so many rows at most, and where the two part.
pub fn write(
    out: &mut impl Write,
    [this, other]: [&CallTree; 2],
    [a, b]: Titles<'_>,
    most: usize,
    width: usize,
) -> io::Result<()> {
    let ticks = this.clock != "ns" || other.clock != "ns";
    let time = |ns: u64| if ticks { count(ns) } else { duration(ns) };
    let signed = |ns: i128| {
        let sign = if ns < 0 { "-" } else { "+" };
        format!("{sign}{}", time(u64::try_from(ns.unsigned_abs()).unwrap_or(u64::MAX)))
    };
    let rows = rows(this, other);
    let whole = i128::from(this.root.ns) - i128::from(other.root.ns);
    writeln!(
        out,
        "{a}: {}, {} instructions; {b}: {}, {} instructions; difference {}",
        time(this.root.ns),
        count(this.root.instructions),
        time(other.root.ns),
        count(other.root.instructions),
        signed(whole)
    )?;
    if rows.is_empty() {
        return writeln!(out, "\nno path of calls differs");
    }
    writeln!(
        out,
        "\n{:>13}{:>12}{:>12}{:>14}{:>14}  own time, by path of calls",
        "difference", a, b, "calls", "instructions"
    )?;
    // What is less than a thousandth of the biggest tells nothing beside it.
    let floor = rows.first().map_or(0, |row| row.ns.unsigned_abs() / 1000);
    let shown = rows.iter().take(most).take_while(|row| row.ns.unsigned_abs() >= floor).count();
    for row in &rows[..shown] {
        write_row(out, row, &time, &signed, width)?;
    }
    if rows.len() > shown {
        writeln!(out, "{:>13}  {} more paths differ less", "…", rows.len() - shown)?;
    }
    Ok(())
}

fn write_row(
    out: &mut impl Write,
    row: &Row<'_>,
    time: &dyn Fn(u64) -> String,
    signed: &dyn Fn(i128) -> String,
    width: usize,
) -> io::Result<()> {
    const FIGURES: usize = 13 + 12 + 12 + 14 + 14 + 2;
    let alone = row.sides.iter().any(Option::is_none);
    let ns = |node: &Node| if alone { node.ns } else { node.self_ns() };
    let insns = |node: &Node| if alone { node.instructions } else { node.self_instructions() };
    let of = |side: usize, what: &dyn Fn(&Node) -> u64| row.sides[side].map_or(0, what);
    let shown = |side: usize| row.sides[side].map_or("-".to_owned(), |node| time(ns(node)));
    let pair = |what: &dyn Fn(&Node) -> u64| {
        let (here, there) = (of(0, what), of(1, what));
        let sign = if here >= there { "+" } else { "-" };
        if here == there { "=".to_owned() } else { format!("{sign}{}", count(here.abs_diff(there))) }
    };
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
    let room = width.saturating_sub(FIGURES + only.len()).max(30);
    let skip = path.chars().count().saturating_sub(room);
    let path =
        if skip == 0 { path } else { format!("…{}", path.chars().skip(skip + 1).collect::<String>()) };
    writeln!(
        out,
        "{:>13}{:>12}{:>12}{:>14}{:>14}  {only}{path}",
        signed(row.ns),
        shown(0),
        shown(1),
        pair(&|node| node.calls),
        pair(&insns),
    )?;
    // What stands alone is a tree of its own: the way along which most of its time went.
    let mut node = row.sides[0].or(row.sides[1]).filter(|_| alone);
    let mut indent = 0;
    while let Some(heaviest) = node.and_then(|node| node.children.iter().max_by_key(|child| child.ns)) {
        if heaviest.ns * 2 < node.map_or(0, |node| node.ns) || indent > 8 {
            break;
        }
        let times =
            if heaviest.calls == 1 { String::new() } else { format!(" × {}", count(heaviest.calls)) };
        let line = format!(
            "{:FIGURES$}{}└ {}{times}, {}",
            "",
            "  ".repeat(indent + 1),
            heaviest.name,
            time(heaviest.ns)
        );
        writeln!(out, "{}", cut(&line, width.max(FIGURES + 30)))?;
        node = Some(heaviest);
        indent += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
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
        let (slow, usual) = pair();
        let mut out = Vec::new();
        write(&mut out, [&slow, &usual], ["this", "median"], 3, 120).expect("memory");
        let expected = "\
this: 1.000 µs, 1,000 instructions; median: 50 ns, 50 instructions; difference +950 ns

   difference        this      median         calls  instructions  own time, by path of calls
      +900 ns      900 ns           -            +1          +900  only here: store
                                                                     └ rehash, 890 ns
                                                                       └ insert × 3,000, 800 ns
       +78 ns       88 ns       10 ns             =           +78  handle
       -30 ns           -       30 ns            -1           -30  only there: lookup
            …  1 more paths differ less
";
        assert_eq!(String::from_utf8(out).expect("text"), expected);
    }
}
