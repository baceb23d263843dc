//! The command line.

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Hardware branch traces (Intel PT in perf.data) into timelines and exact edge profiles.
#[derive(Parser, Debug)]
#[command(name = "ptflow", version, max_term_width = 100)]
pub struct Args {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Subcommand, Debug)]
pub enum Verb {
    /// What is in a capture: CPU, settings, streams, threads, images found or missing, losses
    Info(InfoArgs),
    /// A timeline: .pftrace (Perfetto), .json (Chrome trace) or .txt, each also with .gz
    Convert(ConvertArgs),
    /// How often each branch went where
    Profile(ProfileArgs),
    /// Every invocation of a function: how many, how long, and the slowest
    Calls(CallsArgs),
    /// One invocation of a function in full detail: its calls, its instructions, how it differs from another
    Replay(ReplayArgs),
    /// What is in the trace, one line each
    Dump(DumpArgs),
    /// The capture with every image and symbol file it needs, to decode on another machine
    Bundle(BundleArgs),
}

impl Verb {
    /// What every verb takes.
    pub fn common(&mut self) -> &mut Common {
        match self {
            Self::Info(args) => &mut args.common,
            Self::Convert(args) => &mut args.common,
            Self::Profile(args) => &mut args.common,
            Self::Calls(args) => &mut args.common,
            Self::Replay(args) => &mut args.common,
            Self::Dump(args) => &mut args.common,
            Self::Bundle(args) => &mut args.common,
        }
    }
}

/// What every verb takes.
#[derive(ClapArgs, Clone, Debug)]
pub struct Common {
    /// A perf.data file or directory, a bundle, or `-` for standard input
    pub capture: PathBuf,
    /// Look for images below this folder first (as perf's --symfs); may be given several times
    #[arg(long, value_name = "DIR")]
    pub images: Vec<PathBuf>,
    /// Files to take as images, by build id or name.
    #[arg(skip)]
    pub binaries: Vec<PathBuf>,
    /// [`crate::RunOptions::unit_bytes`]
    #[arg(skip)]
    pub unit_bytes: Option<usize>,
    /// Worker threads [default: all processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Only the thread of this id
    #[arg(long, value_name = "TID")]
    pub thread: Option<u32>,
    /// Only the process of this id or name
    #[arg(long, value_name = "PID|COMM")]
    pub process: Option<String>,
    /// Only the trace of this CPU
    #[arg(long, value_name = "N")]
    pub cpu: Option<u32>,
    /// Write what became of every byte, as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Say nothing but errors
    #[arg(long)]
    pub quiet: bool,
    /// Draw no progress bar
    #[arg(long)]
    pub no_progress: bool,
}

#[derive(ClapArgs, Debug)]
pub struct InfoArgs {
    #[command(flatten)]
    pub common: Common,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(ClapArgs, Debug)]
pub struct BundleArgs {
    #[command(flatten)]
    pub common: Common,
    /// The folder to make; it can be read like any capture
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
}

#[derive(ClapArgs, Debug)]
pub struct ConvertArgs {
    #[command(flatten)]
    pub common: Common,
    /// Where to; the name says the format; `-` is standard output, as text
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
    /// Slices at most: the shortest calls are folded into their callers; 0 = all [default: 2000000, which viewers bear
    /// well; all in text]
    #[arg(long, value_name = "N")]
    pub max_slices: Option<u64>,
    /// All calls, however many: --max-slices 0
    #[arg(long, conflicts_with = "max_slices")]
    pub full: bool,
    /// Fold calls that took less time (300ns, 2us, 1.5ms)
    #[arg(long, value_name = "D", value_parser = nanoseconds)]
    pub min_duration: Option<u64>,
    /// Only from this moment on: perf's clock (12.000345678, seconds) or since the first PT timestamp (+1.5ms). Frames
    /// that were open before are known as far as control returns to them in the window
    #[arg(long, value_name = "T", allow_hyphen_values = true)]
    pub from: Option<Moment>,
    /// Only up to this moment
    #[arg(long, value_name = "T", allow_hyphen_values = true)]
    pub to: Option<Moment>,
    /// Decode from the capture's start, so that every frame that was open before the window is known
    #[arg(long)]
    pub exact_stacks: bool,
    /// Only invocations of this function, and what they call; NAME as in `ptflow calls`, `*` and `?` match; may be given
    /// several times
    #[arg(long, value_name = "NAME")]
    pub function: Vec<String>,
    /// Only the times in which a function was going on, on any thread, with all that every thread did then; perhaps only
    /// in invocations that took longer: --around 'NAME:slower-than 2ms'
    #[arg(long, value_name = "NAME[:slower-than D]")]
    pub around: Option<Around>,
    /// Show inlined functions, too, as slices of category `inlined`: as long as control is in their code, by the images'
    /// debug information. Every instruction is looked at for it, which takes several times as long
    #[arg(long)]
    pub inlined: bool,
    /// Into N files, OUT.1-of-N.pftrace.gz and so on, each of some stretch of time with about as many slices, and each whole
    /// by itself: what is open where a part begins is drawn there in category `continued`. --max-slices is for each file.
    /// The capture is decoded twice: where to cut shows at its end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=100), conflicts_with = "open")]
    pub split: Option<u16>,
    /// Every slice tells what was executed in it, with all that it called: instructions, and core cycles where CYC packets
    /// count them
    #[arg(long)]
    pub args: bool,
    /// Serve the timeline on this machine when it is written, and print the address that opens it in Perfetto's UI
    #[arg(long)]
    pub open: bool,
    /// Serve it at another port: the UI of ui.perfetto.dev connects to 9001 only
    #[arg(long, value_name = "N", default_value_t = crate::serve::PORT, requires = "open")]
    pub port: u16,
    /// Fold calls deeper than N levels of a stack
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_depth: Option<u32>,
}

/// The invocations of a function that took longer than so many nanoseconds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Around {
    pub function: String,
    pub slower_than: Option<u64>,
}

impl std::str::FromStr for Around {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Names of C++ hold colons.
        let (function, slower_than) = match text.rsplit_once(":slower-than") {
            Some((function, duration)) => {
                (function, Some(nanoseconds(duration.trim_start_matches([' ', '=', ':']))?))
            }
            None => (text, None),
        };
        if function.is_empty() {
            return Err("which function? NAME or 'NAME:slower-than 2ms'".to_owned());
        }
        Ok(Self { function: function.to_owned(), slower_than })
    }
}

/// A duration: a number with its unit.
fn nanoseconds(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text}: a number and its unit are needed: ns, us, ms or s");
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(unit_at);
    let ns_per_unit = match unit {
        "ns" => 1.0,
        "us" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        _ => return Err(wrong()),
    };
    let ns = number.trim().parse::<f64>().map_err(|_| wrong())? * ns_per_unit;
    if ns.is_finite() && ns >= 0.0 { Ok(ns.round() as u64) } else { Err(wrong()) }
}

#[derive(ClapArgs, Debug)]
pub struct ProfileArgs {
    #[command(flatten)]
    pub common: Common,
    /// More captures, or tables that --format edges wrote, to add
    #[arg(value_name = "CAPTURE")]
    pub more: Vec<PathBuf>,
    /// Where to [default: standard output]; formats of one binary: to a folder (DIR/), a file for each binary that ran
    #[arg(short, long, value_name = "OUT", default_value = "-")]
    pub output: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value_t = ProfileFormat::Edges)]
    pub format: ProfileFormat,
    /// The binary to profile [default: the traced program; all for branches, bias and -o DIR/]
    #[arg(long, value_name = "PATH|BUILDID")]
    pub binary: Option<String>,
    /// Check the profile against this binary, and fail where it does not fit [default: say so for formats of one binary]
    #[arg(long, value_name = "BINARY")]
    pub check: Option<PathBuf>,
    /// For bolt-preaggregated of branch stacks: T records (a branch and the straight code behind it in one) instead of B and
    /// F. BOLT 22 takes them, BOLT 19 does not; mispredictions are not in them
    #[arg(long)]
    pub traces: bool,
    /// Let an installed tool make the sample profile of our counts: for llvm and llvm-extbinary
    #[arg(long, value_enum, value_name = "TOOL")]
    pub via: Option<Via>,
    /// What folded stacks are weighed by
    #[arg(long, value_enum, default_value_t = StackWeight::Instructions)]
    pub weight: StackWeight,
    /// How addresses are written
    #[arg(long, value_enum, default_value_t = Addresses::Image)]
    pub addresses: Addresses,
    /// Which decoder walks
    #[arg(long, value_enum, default_value_t = EngineChoice::Native)]
    pub engine: EngineChoice,
}

impl ProfileArgs {
    /// Each binary's profile goes to a file of its own in a folder.
    pub fn is_to_folder(&self) -> bool {
        self.output.as_os_str().as_encoded_bytes().ends_with(b"/") || self.output.is_dir()
    }
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Via {
    /// LLVM's, of an unsymbolized profile
    LlvmProfgen,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProfileFormat {
    /// One line an edge, tab-separated
    Edges,
    /// One binary's branches and straight code, for perf2bolt -p FILE --pa
    BoltPreaggregated,
    /// What an installed perf2bolt makes of that: .fdata, for llvm-bolt -data=FILE
    Bolt,
    /// One binary's counts by line of source, for clang -fprofile-sample-use
    Llvm,
    /// The same in LLVM's binary form, which compilers load faster
    LlvmExtbinary,
    /// One binary's branches and straight code, for llvm-profgen --unsymbolized-profile FILE --use-offset=0
    LlvmUnsymbolized,
    /// One binary's branches and straight code, for AutoFDO's create_llvm_prof and create_gcov --profiler=text
    Gcc,
    /// One binary's calls, for go build -pgo
    Go,
    /// Call stacks with calls, instructions and time, for pprof
    Pprof,
    /// Call stacks, one a line, for flame graphs
    Folded,
    /// Calls, instructions and time of each function
    Functions,
    /// Conditional branches, one a line: function, address, times taken and not taken
    Branches,
    /// Conditional branches by function, one a line: function, image, how many executed, never taken, always taken; times
    /// taken, not taken; the most mixed one and its times taken, not taken
    Bias,
}

impl ProfileFormat {
    /// It is made of call stacks, not of edges.
    pub fn is_of_stacks(self) -> bool {
        matches!(self, Self::Pprof | Self::Folded | Self::Functions)
    }

    /// It is a table of conditional branches, under the names of their functions.
    pub fn is_of_conditions(self) -> bool {
        matches!(self, Self::Branches | Self::Bias)
    }

    /// It tells of one binary alone.
    pub fn is_of_binary(self) -> bool {
        self != Self::Edges && !self.is_of_stacks() && !self.is_of_conditions()
    }
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum StackWeight {
    /// Instructions executed
    Instructions,
    /// Nanoseconds, those spent in system calls too
    Time,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Addresses {
    /// IMAGE:0xSVMA, the same for every process and load address
    Image,
    /// The plain virtual addresses of the one process
    Runtime,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum EngineChoice {
    /// ptflow's own
    Native,
    /// ptflow's careful walker alone: slow, the reference
    Careful,
    /// Intel's libipt (needs a build with --features oracle)
    Libipt,
}

/// Which functions.
#[derive(ClapArgs, Debug)]
pub struct Which {
    /// The function: its name as in the symbol table or demangled, with or without parameters; `*` and `?` stand for any
    /// characters and any one; FILE:NAME is that of one image; may be given several times
    #[arg(long, value_name = "NAME")]
    pub function: Vec<String>,
    /// Names are regular expressions, found anywhere in a function's name
    #[arg(long)]
    pub regex: bool,
    /// Count the inner invocations of a function that calls itself, too
    #[arg(long)]
    pub recursive: bool,
}

/// A number, decimal or hexadecimal.
fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|error| format!("{text}: {error}"))
}

/// Behind the options of `calls`.
const CALLS_EXAMPLES: &str = "\
An invocation begins when control enters the function by a call, or by a jump from another function (a tail call), and \
ends when its frame is left. Of a function that calls itself the outermost ones count. Those that a gap or an end of the \
trace cuts off are told apart, and in no figure.

Examples:
  ptflow calls perf.data --function handle_request
  ptflow calls perf.data --function 'parse*' --function libc.so.6:read --top 20
  ptflow calls perf.data --between accept_request send_reply
  ptflow calls perf.data --function handle_request --index requests.index   # for replay --index";

/// Behind the options of `replay`.
const REPLAY_EXAMPLES: &str = "\
The tree has a line for all calls of one function on one path: time and instructions with what they called, self \
without, IPC = instructions per core cycle where the trace has CYC packets, and the line of source that calls. [syscall] \
and [untraced] are time without trace. Ranks are of invocations whose beginning and end are in the trace.

Examples:
  ptflow replay perf.data --function handle_request --slowest
  ptflow replay perf.data --function handle_request --slowest --against median
  ptflow replay perf.data --function handle_request --slowest --instructions | less
  ptflow replay perf.data --function handle_request --at 12.000345678 --index requests.index -o request.pftrace";

#[derive(ClapArgs, Debug)]
#[command(after_help = CALLS_EXAMPLES)]
pub struct CallsArgs {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub which: Which,
    /// From a call of A to the next call of B on the same thread, instead of invocations
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["function", "ptwrite", "recursive"])]
    pub between: Vec<String>,
    /// From a PTWRITE (of this value, where one is given) to the next PTWRITE on the same thread
    #[arg(long, num_args = 0..=1, value_name = "VALUE", value_parser = number, conflicts_with_all = ["function", "recursive"])]
    pub ptwrite: Option<Option<u64>>,
    /// List so many of the slowest
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub top: usize,
    /// Write every invocation to a file with which `replay` finds it again at once
    #[arg(long, value_name = "FILE")]
    pub index: Option<PathBuf>,
    /// The figures as JSON
    #[arg(long)]
    pub json: bool,
    /// Every invocation as a line of CSV, instead of the figures
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
    /// Where to [default: standard output]
    #[arg(short, long, value_name = "OUT", default_value = "-", hide_default_value = true)]
    pub output: PathBuf,
}

#[derive(ClapArgs, Debug)]
#[command(group = clap::ArgGroup::new("one").required(true).args(["slowest", "nth", "at"]), after_help = REPLAY_EXAMPLES)]
pub struct ReplayArgs {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    pub which: Which,
    /// The slowest invocation, or the K-th slowest
    #[arg(long, value_name = "K", num_args = 0..=1, default_missing_value = "1", value_parser = rank)]
    pub slowest: Option<usize>,
    /// The K-th invocation in order of time, from 1
    #[arg(long, value_name = "K", value_parser = rank)]
    pub nth: Option<usize>,
    /// The invocation that was going on at a time: perf's clock (12.000345678) or since the first PT timestamp (+1.5ms); one
    /// that a gap or an end of the trace cuts off, too
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub at: Option<Moment>,
    /// Invocations as `calls --index` wrote them, instead of a pass over the capture
    #[arg(long, value_name = "FILE")]
    pub index: Option<PathBuf>,
    /// How it differs from the median, from the K-th slowest, or from an invocation that --json saved in a file (of this
    /// capture or another): time, calls, instructions and iterations of loops by path of calls, the biggest difference first;
    /// what only one of them reached; where control flow parts first
    #[arg(long, value_name = "median|K|FILE", conflicts_with_all = ["instructions", "json"])]
    pub against: Option<String>,
    /// Every instruction, with its address, symbol, text, source line and time; loops are folded
    #[arg(long, conflicts_with = "json")]
    pub instructions: bool,
    /// With --instructions: loops round by round
    #[arg(long, requires = "instructions")]
    pub unfolded: bool,
    /// The tree of calls as JSON
    #[arg(long)]
    pub json: bool,
    /// All calls, however deep (12 levels are shown without) and however short (a hundredth of the whole)
    #[arg(long)]
    pub all: bool,
    /// Where to [default: standard output]; a timeline of it where the name ends in .pftrace or .json, perhaps with .gz
    #[arg(short, long, value_name = "OUT", default_value = "-", hide_default_value = true)]
    pub output: PathBuf,
}

fn rank(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("ranks begin at 1".to_owned()),
        parsed => parsed.map_err(|error: std::num::ParseIntError| error.to_string()),
    }
}

/// A time of a capture, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// Of perf's own clock.
    Clock(u64),
    /// Since the capture's first PT timestamp.
    SinceFirst(u64),
}

impl std::str::FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text}: a time is needed, as 12.000345678 (seconds of perf's clock) or +1.5ms");
        let (number, relative) = match text.strip_prefix('+') {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let unit_at = number.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(number.len());
        let (number, unit) = number.split_at(unit_at);
        let digits = match (unit, relative) {
            ("ns", true) => 0,
            ("us", true) => 3,
            ("ms", true) => 6,
            ("s", true) | ("", false) => 9,
            _ => return Err(wrong()),
        };
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !is_number(whole) || !is_number(part) {
            return Err(wrong());
        }
        // Exact: a double has not the digits of a time since boot.
        let kept: String = part.chars().chain(std::iter::repeat('0')).take(digits).collect();
        let ns: u64 = format!("{whole}{kept}").parse().map_err(|_| wrong())?;
        Ok(if relative { Self::SinceFirst(ns) } else { Self::Clock(ns) })
    }
}

#[derive(ClapArgs, Debug)]
pub struct DumpArgs {
    /// What to list
    #[arg(value_enum)]
    pub what: DumpWhat,
    #[command(flatten)]
    pub common: Common,
    /// Where to [default: standard output]
    #[arg(short, long, value_name = "OUT", default_value = "-")]
    pub output: PathBuf,
    /// Symbols behind addresses
    #[arg(long)]
    pub symbols: bool,
    /// The text of each instruction, and its symbol
    #[arg(long)]
    pub disassemble: bool,
    /// Which decoder walks
    #[arg(long, value_enum, default_value_t = EngineChoice::Native)]
    pub engine: EngineChoice,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum DumpWhat {
    /// Intel PT packets
    Packets,
    /// Executed branches, in order
    Branches,
    /// Executed instructions, in order
    Instructions,
}

/// The command line makes no sense together: exit status 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arounds() {
        let around = |text: &str| text.parse::<Around>().map(|around| (around.function, around.slower_than));
        assert_eq!(around("main"), Ok(("main".to_owned(), None)));
        assert_eq!(around("std::sort*:slower-than 1.5ms"), Ok(("std::sort*".to_owned(), Some(1_500_000))));
        assert_eq!(around("f:slower-than=20ns"), Ok(("f".to_owned(), Some(20))));
        assert!(around("f:slower-than").is_err() && around("f:slower-than 7").is_err());
        assert!(around(":slower-than 7ns").is_err());
    }

    #[test]
    fn moments() {
        for (text, expected) in [
            ("12.000345678", Some(Moment::Clock(12_000_345_678))),
            ("1000", Some(Moment::Clock(1_000_000_000_000))),
            ("+1.5ms", Some(Moment::SinceFirst(1_500_000))),
            ("+0.25us", Some(Moment::SinceFirst(250))),
            ("+7ns", Some(Moment::SinceFirst(7))),
            ("+2s", Some(Moment::SinceFirst(2_000_000_000))),
            ("12ms", None),
            ("+5", None),
            ("-1", None),
            ("", None),
            (".5", None),
            ("1.2.3", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
    }
}
