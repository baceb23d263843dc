//! The tree for the terminal.
//!
//! ```text
//!       time        self  instructions
//!  140.641 µs     310 ns       473,119  handle_request
//!     580 ns      580 ns         1,204  ├─ parse_request              requests.c:327
//!  134.100 µs    1.200 µs      460,100  └─ store                      requests.c:320
//! ```

use super::{CallTree, Node, Paint, count, cut, duration};
use std::io::{self, Write};

/// How it is drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Style {
    /// Columns that a line may have.
    pub width: usize,
    /// With colours or without.
    pub paint: Paint,
    /// Levels below the invocation that are shown.
    pub depth: usize,
    /// Nodes that took a smaller part of the whole than one in so many are summed up in a line; 0 = none are.
    pub least: u64,
}

/// Columns before the names.
const FIGURES: usize = 12 + 12 + 14 + 2;
/// And where the trace has core cycles.
const IPC: usize = 6;
/// Columns of names at least, whatever the width.
const NAMES: usize = 30;
/// Columns of one name at least; shorter than that it is not cut for what stands behind it.
const LEAST_NAME: usize = 16;

/// Writes a head and the tree.
pub fn write(out: &mut impl Write, tree: &CallTree, style: Style) -> io::Result<()> {
    let CallTree { tid, thread, start_ns, clock, root, cut, place, .. } = tree;
    let place = place.as_ref().map_or(String::new(), |place| format!(" ({place})"));
    let start = match clock.as_str() {
        "ns" => format!("{}.{:09}", start_ns / 1_000_000_000, start_ns % 1_000_000_000),
        _ => start_ns.to_string(),
    };
    let cycles = root.cycles.is_some();
    let figures = if cycles { FIGURES + IPC } else { FIGURES };
    let drawing = Drawing { style, ticks: clock != "ns", whole: root.ns, cycles, figures };
    let took = drawing.time(root.ns);
    writeln!(out, "{}{place} on thread {tid} {thread}, from {start}, {took}", root.name)?;
    if let Some(cut) = cut {
        writeln!(out, "{}", style.paint.red(&format!("cut off: {cut}")))?;
    }
    let ipc = if cycles { format!("{:>IPC$}", "IPC") } else { String::new() };
    let head = format!("{:>12}{:>12}{:>14}{ipc}", "time", "self", "instructions");
    writeln!(out, "\n{}", style.paint.dim(&head))?;
    drawing.node(out, root, "", "", 0)
}

struct Drawing {
    style: Style,
    ticks: bool,
    whole: u64,
    /// The trace has core cycles.
    cycles: bool,
    /// Columns before the names.
    figures: usize,
}

impl Drawing {
    fn time(&self, ns: u64) -> String {
        if self.ticks { count(ns) } else { duration(ns) }
    }

    /// `first` stands before the name, `rest` before what is below.
    fn node(
        &self,
        out: &mut impl Write,
        node: &Node,
        first: &str,
        rest: &str,
        depth: usize,
    ) -> io::Result<()> {
        let room = self.style.width.saturating_sub(self.figures).max(NAMES);
        let times =
            if node.calls == 1 || depth == 0 { String::new() } else { format!(" × {}", count(node.calls)) };
        // The place stands in a column of its own where there is room, behind the name where there is some, else nowhere.
        let least_name = node.name.chars().count().min(LEAST_NAME);
        // Of lines deeper than there is room for the last ones are seen.
        let lines = room.saturating_sub(times.chars().count() + least_name);
        let first = last_of(first, lines);
        let around = first.chars().count() + times.chars().count();
        let site = node.called_at.as_deref().unwrap_or("");
        let site = if room < around + least_name + 2 + site.chars().count() { "" } else { site };
        let of_place = if site.is_empty() { 0 } else { 2 + site.chars().count() };
        let name = cut(&node.name, room.saturating_sub(around + of_place).max(least_name));
        let used = around + name.chars().count();
        let most = (room + 2).saturating_sub(used + of_place);
        let gap = " ".repeat((room * 3 / 5).saturating_sub(used).min(most).max(2));
        let ipc = match (self.cycles, node.ipc().filter(|_| !node.is_untraced())) {
            (false, _) => String::new(),
            (true, ipc) => format!("{:>IPC$}", ipc.unwrap_or_default()),
        };
        let figures = format!(
            "{:>12}{:>12}{:>14}{ipc}  ",
            self.time(node.ns),
            if node.is_untraced() { String::new() } else { self.time(node.self_ns()) },
            if node.is_untraced() { String::new() } else { count(node.instructions) },
        );
        // Red: half of all time or more is its own.
        let is_hot = self.whole > 0 && node.self_ns() >= self.whole.div_ceil(2);
        let paint = self.style.paint;
        let shown = match (is_hot, node.is_untraced(), depth) {
            (true, ..) => paint.red(&name),
            (_, true, _) => paint.dim(&name),
            (.., 0) => paint.bold(&name),
            _ => name,
        };
        let place = if site.is_empty() { String::new() } else { gap + &paint.dim(site) };
        writeln!(out, "{}", format!("{figures}{first}{shown}{times}{place}").trim_end())?;
        self.below(out, node, rest, depth)
    }

    fn below(&self, out: &mut impl Write, node: &Node, rest: &str, depth: usize) -> io::Result<()> {
        if depth >= self.style.depth && !node.children.is_empty() {
            let calls = node.children.iter().map(|child| child.calls).sum();
            return self.summary(out, rest, &format!("… {} calls below", count(calls)));
        }
        let floor = self.whole.checked_div(self.style.least).unwrap_or(0);
        let (shown, small): (Vec<&Node>, Vec<&Node>) =
            node.children.iter().partition(|child| child.ns >= floor || child.is_untraced());
        let more = small.len() > 1;
        // A line for one is no longer than that for several.
        let shown = if more { shown } else { node.children.iter().collect() };
        for (at, child) in shown.iter().enumerate() {
            let last = at + 1 == shown.len() && !more && node.deeper == 0;
            let (branch, line) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            self.node(out, child, &format!("{rest}{branch}"), &format!("{rest}{line}"), depth + 1)?;
        }
        if more {
            let calls = small.iter().map(|child| child.calls).sum();
            let ns = small.iter().map(|child| child.ns).sum();
            let text = format!("… {} calls of {} others, {}", count(calls), small.len(), self.time(ns));
            self.summary(out, rest, &text)?;
        }
        if node.deeper > 0 {
            self.summary(out, rest, &format!("… {} calls below, not told apart", count(node.deeper)))?;
        }
        Ok(())
    }

    fn summary(&self, out: &mut impl Write, rest: &str, text: &str) -> io::Result<()> {
        let figures = self.figures;
        let room = self.style.width.saturating_sub(figures).max(NAMES);
        let rest = last_of(rest, room.saturating_sub(LEAST_NAME));
        let text = cut(text, room.saturating_sub(rest.chars().count() + 3));
        writeln!(out, "{:figures$}{rest}{}", "", self.style.paint.dim(&format!("└─ {text}")))
    }
}

/// The end of a text, no longer than a width.
fn last_of(text: &str, width: usize) -> String {
    text.chars().skip(text.chars().count().saturating_sub(width)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, calls: u64, ns: u64, children: Vec<Node>) -> Node {
        let called_at = (!name.starts_with('[')).then(|| "server.c:12".to_owned());
        Node {
            name: name.to_owned(),
            called_at,
            calls,
            ns,
            instructions: ns * 2,
            children,
            ..Node::default()
        }
    }

    fn tree() -> CallTree {
        let deep = node("deep", 1000, 60_000, vec![]);
        let children = vec![
            node("parse", 1, 300, vec![]),
            node("a_function_of_an_exceedingly_long_name_indeed", 3, 90_000, vec![deep]),
            node("[syscall]", 1, 5, vec![]),
            node("x", 1, 3, vec![]),
            node("y", 1, 2, vec![]),
        ];
        CallTree {
            ptflow_replay: super::super::VERSION,
            tid: 7,
            thread: "worker".to_owned(),
            start_ns: 1_000_000_000_001,
            begin: "seen".to_owned(),
            end: "seen".to_owned(),
            cut: None,
            place: None,
            clock: "ns".to_owned(),
            root: node("handle", 1, 100_000, children),
        }
    }

    fn drawn(style: Style) -> String {
        let mut out = Vec::new();
        write(&mut out, &tree(), style).expect("memory");
        String::from_utf8(out).expect("text")
    }

    const STYLE: Style = Style { width: 90, paint: Paint(false), depth: 10, least: 1000 };

    #[test]
    fn a_tree() {
        let expected = "\
handle on thread 7 worker, from 1000.000000001, 100.000 µs

        time        self  instructions
  100.000 µs    9.690 µs       200,000  handle                        server.c:12
      300 ns      300 ns           600  ├─ parse                      server.c:12
   90.000 µs   30.000 µs       180,000  ├─ a_function_of_a…ng_name_indeed × 3  server.c:12
   60.000 µs   60.000 µs       120,000  │  └─ deep × 1,000            server.c:12
        5 ns                            ├─ [syscall]
                                        └─ … 2 calls of 2 others, 5 ns
";
        assert_eq!(drawn(STYLE), expected);
    }

    #[test]
    fn no_line_is_wider_than_asked_and_colours_change_no_text() {
        // So deep that there is no room for all lines beside the names.
        let deep = (0..20).fold(node("leaf", 7, 50_000, vec![]), |below, _| {
            node(
                "a_function_of_a_long_name",
                30_000,
                60_000,
                vec![below, node("x", 1, 1, vec![]), node("y", 1, 1, vec![])],
            )
        });
        for width in [76, 80, 100, 140] {
            let mut out = Vec::new();
            let tree = CallTree { root: deep.clone(), ..tree() };
            write(&mut out, &tree, Style { width, depth: 99, ..STYLE }).expect("memory");
            let text = String::from_utf8(out).expect("text");
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}:\n{text}");
            let text = drawn(Style { width, ..STYLE });
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}:\n{text}");
            let mut coloured = drawn(Style { width, paint: Paint(true), ..STYLE });
            assert!(coloured.contains("\x1b[31m"));
            for code in ["1", "2", "31", "0"] {
                coloured = coloured.replace(&format!("\x1b[{code}m"), "");
            }
            assert_eq!(coloured, text);
        }
    }

    #[test]
    fn cycles_have_a_column() {
        let mut tree = tree();
        tree.root.cycles = Some(160_000);
        tree.root.children.truncate(3);
        tree.root.children[0].cycles = Some(1_000);
        let mut out = Vec::new();
        write(&mut out, &tree, STYLE).expect("memory");
        let text = String::from_utf8(out).expect("text");
        let expected = "\
        time        self  instructions   IPC
  100.000 µs    9.695 µs       200,000  1.25  handle                    server.c:12
      300 ns      300 ns           600  0.60  ├─ parse                  server.c:12
";
        assert!(text.contains(expected), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 90));
    }

    #[test]
    fn levels_below_are_told() {
        let text = drawn(Style { depth: 1, ..STYLE });
        assert!(!text.contains("deep"), "{text}");
        assert!(text.contains("│  └─ … 1,000 calls below"), "{text}");
        assert!(drawn(Style { least: 0, ..STYLE }).contains("└─ y"), "nothing is summed up");
    }
}
