//! `ptflow replay`: one invocation in full detail.

use super::convert::{self, Format};
use crate::args::{ReplayArgs, Usage};
use crate::call_stacks;
use crate::load::{self, Loaded};
use crate::progress::Progress;
use crate::replay::pick::{self, Choice, Nowhere, Ongoing, Rank, Source};
use crate::replay::{Decoded, Session, listing, part, tree};
use crate::terminal::Terminal;
use anyhow::{Context as _, bail};
use ptflow_decoder::jobs::invocations::Recursion;
use ptflow_exporters::call_tree::text::Style;
use ptflow_exporters::call_tree::{CallTree, VERSION, compare, cut, text};
use ptflow_exporters::output::Output;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Paths that a comparison lists.
const ROWS: usize = 15;

/// What an invocation is compared with.
enum Against {
    Rank(Rank),
    File(PathBuf),
}

/// Runs the verb.
pub fn run(args: &ReplayArgs) -> anyhow::Result<()> {
    let against = args.against.as_deref().map(against).transpose()?;
    if args.common.report.is_some() {
        let only = "replay decodes a part of the trace, which has no ledger: --report is of calls, convert and profile";
        return Err(Usage(only.to_owned()).into());
    }
    let file = load::open(&args.common)?;
    let loaded = Loaded::new(&file, &args.common)?;
    loaded.needs_trace()?;
    let pool = load::pool(&args.common)?;
    let (images, functions) = loaded.store.images_with_functions();
    let owners = call_stacks::owners(&loaded);
    let mut session = Session {
        loaded: &loaded,
        images: &images,
        functions: &functions,
        owners,
        pool: &pool,
        wanted: vec![],
    };
    session.wanted = session.known().find_all(&args.which.function, args.which.regex)?;
    tell_ambiguous(&session, args);
    let session = session;
    let progress = Progress::new(loaded.bytes(), args.common.quiet || args.common.no_progress);
    let add = |bytes| progress.add(bytes);
    let recursion = if args.which.recursive { Recursion::All } else { Recursion::Outermost };
    let source = Source { index: args.index.as_deref(), recursion, progress: &add };
    let mut ranks = Vec::new();
    ranks.extend(args.slowest.map(Rank::Slowest));
    ranks.extend(args.nth.map(Rank::Nth));
    let other_rank = match &against {
        Some(Against::Rank(rank)) => Some(*rank),
        _ => None,
    };
    ranks.extend(other_rank);
    let mut choices = Vec::new().into_iter();
    if !ranks.is_empty() {
        let (found, counts) = pick::by_rank(&session, &source, &ranks)?;
        choices = found.into_iter();
        if let (Some(longest), false) = (counts.longest_cut, args.common.quiet) {
            eprintln!("ptflow: of the invocations {}", pick::cut_off(&session, counts.cut, longest));
        }
    }
    let this = match args.at {
        Some(at) => match pick::at(&session, &source, loaded.time_at(at)?)? {
            Ongoing::Known(choice) => again(&session, Some(choice))?,
            Ongoing::Decoded(decoded) => Replayed::new(&session, decoded),
        },
        None => again(&session, choices.next())?,
    };
    let other = match &against {
        None => None,
        Some(Against::Rank(_)) => Some(again(&session, choices.next())?),
        Some(Against::File(path)) => Some(Replayed::saved(path)?),
    };
    drop(progress);
    if let (true, Some(Decoded { stack, window, which, .. })) = (is_timeline(args), &this.decoded) {
        let slices = convert::write_frames(&args.output, &loaded, &functions, |frames| {
            session.replay(*stack, *which, *window, frames).map(|(_, frames)| frames)
        })?;
        if !args.common.quiet {
            eprintln!("ptflow: {slices} slices of {} in {}", this.tree.root.name, args.output.display());
        }
        return Ok(());
    }
    let cannot = || format!("cannot write {}", args.output.display());
    let mut out = BufWriter::new(Output::create(&args.output).with_context(cannot)?);
    write(&mut out, args, &session, &this, other.as_ref()).with_context(cannot)?;
    let output = out.into_inner().map_err(io::IntoInnerError::into_error).with_context(cannot)?;
    output.commit().with_context(cannot)
}

/// The output's name asks for a timeline, and no option for something else.
fn is_timeline(args: &ReplayArgs) -> bool {
    let plain = !args.json && !args.instructions && args.against.is_none();
    plain && matches!(convert::format_of(&args.output), Ok((Format::Perfetto | Format::Chrome, _)))
}

/// An invocation, decoded again; only its tree where it comes out of a file.
struct Replayed {
    tree: CallTree,
    decoded: Option<Decoded>,
}

impl Replayed {
    fn new(session: &Session<'_>, decoded: Decoded) -> Self {
        Self { tree: tree::named(session, decoded.stack, &decoded.detail), decoded: Some(decoded) }
    }

    fn saved(path: &Path) -> anyhow::Result<Self> {
        let name = path.display();
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {name}"))?;
        let what = || format!("{name} is no invocation that ptflow replay --json saved");
        let tree: CallTree = serde_json::from_slice(&bytes).with_context(what)?;
        if tree.ptflow_replay != VERSION {
            bail!("{name} is of another version of ptflow; make it anew: ptflow replay --json");
        }
        Ok(Self { tree, decoded: None })
    }
}

fn again(session: &Session<'_>, choice: Option<Choice>) -> anyhow::Result<Replayed> {
    let Some(choice) = choice else { bail!("there is no such invocation") };
    let (stack, which) = (choice.stack, choice.which());
    // Without times in the trace there is no shorter way than from its beginning.
    for (from, to) in [(Some(choice.start), Some(choice.end)), (None, None)] {
        let window = session.window(stack, from, to);
        let Ok((detail, _)) = session.replay(stack, which, window, Nowhere);
        if let Some(detail) = detail {
            return Ok(Replayed::new(session, Decoded { stack, detail, window, which }));
        }
    }
    let Choice { start, tid, .. } = choice;
    bail!("the invocation at {start} on thread {tid} is not there; is the index of this capture?")
}

fn against(text: &str) -> anyhow::Result<Against> {
    if text == "median" {
        return Ok(Against::Rank(Rank::Median));
    }
    match text.parse::<usize>() {
        Ok(0) => Err(Usage("--against 0: ranks begin at 1".to_owned()).into()),
        Ok(rank) => Ok(Against::Rank(Rank::Slowest(rank))),
        Err(_) => Ok(Against::File(PathBuf::from(text))),
    }
}

/// Several functions of one plain name: says so, and which they are.
fn tell_ambiguous(session: &Session<'_>, args: &ReplayArgs) {
    let plain = !args.which.regex && !args.which.function.iter().any(|name| name.contains(['*', '?']));
    if session.wanted.len() <= args.which.function.len() || !plain || args.common.quiet {
        return;
    }
    let known = session.known();
    let homes = known.homes();
    let place = |id| {
        let home = homes.get(id)?;
        Some(format!("{} in {} at {}", session.functions.get(*id), home.file, home.start))
    };
    let all: Vec<String> = session.wanted.iter().filter_map(place).collect();
    eprintln!(
        "ptflow: {} is {} functions: {}; all are taken, one image's alone: --function FILE:NAME",
        args.which.function.join(", "),
        all.len(),
        all.join(", ")
    );
}

fn write(
    out: &mut impl Write,
    args: &ReplayArgs,
    session: &Session<'_>,
    this: &Replayed,
    other: Option<&Replayed>,
) -> io::Result<()> {
    let terminal = Terminal::of(&args.output);
    let Terminal { width, paint, .. } = terminal;
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &this.tree)?;
        return writeln!(out);
    }
    if let Some(other) = other {
        return write_difference(out, args, session, [this, other], terminal);
    }
    let style = match args.all {
        true => Style { width, paint, depth: usize::MAX, least: 0 },
        false => Style { width, paint, depth: 12, least: 100 },
    };
    text::write(out, &this.tree, style)?;
    if let (true, Some(decoded)) = (args.instructions, &this.decoded) {
        writeln!(out)?;
        let width = terminal.is_narrow.then_some(width);
        listing::write(out, session, decoded, args.unfolded, width)?;
    }
    Ok(())
}

fn write_difference(
    out: &mut impl Write,
    args: &ReplayArgs,
    session: &Session<'_>,
    [this, other]: [&Replayed; 2],
    Terminal { width, paint, .. }: Terminal,
) -> io::Result<()> {
    let name = match (args.against.as_deref(), args.slowest, args.nth) {
        (Some("median"), ..) => "median".to_owned(),
        (Some(rank), ..) if rank.parse::<usize>().is_ok() => format!("slowest {rank}"),
        _ => "other".to_owned(),
    };
    let titles = ["this", name.as_str()];
    let style = compare::Style { rows: ROWS, width, paint };
    compare::write(out, [&this.tree, &other.tree], titles, style)?;
    writeln!(out)?;
    let rows = compare::rows(&this.tree, &other.tree);
    for side in [0, 1] {
        let Some(row) = compare::first_only(&rows, side) else { continue };
        let Some(node) = row.sides[side] else { continue };
        let [.., caller, callee] = row.path[..] else { continue };
        let place = node.called_at.as_ref().map_or(String::new(), |place| format!("at {place} "));
        let text = format!("{place}{caller} calls {callee} in {} only", titles[side]);
        writeln!(out, "{}", cut(&text, width))?;
    }
    if let (Some(this), Some(other)) = (&this.decoded, &other.decoded) {
        part::write(out, session, [this, other], titles, width)?;
    }
    Ok(())
}
