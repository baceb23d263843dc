//! A recorded server of 120,000 requests, one of them planted, against the recorder's ordered truth: which requests there
//! were, which was slow, and every branch of one of them.

#[path = "../../bench-traces/tests/kit/release.rs"]
mod release;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// What the recorder saw of one request.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Request {
    tid: u32,
    cycles: (u64, u64),
    instructions: u64,
    /// Each transfer: instructions of the request before it is done, source, and target where it was taken.
    transfers: Vec<(u64, String, Option<String>)>,
}

struct Recorded {
    folder: TempDir,
    program: PathBuf,
}

fn recorder() -> PathBuf {
    release::build(&release::RECORDER).join("bench-traces")
}

fn record(recorder: &Path) -> Recorded {
    let folder = TempDir::new().expect("a folder");
    let program = folder.path().join("server");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/server.c");
    let compile = Command::new("cc")
        .args(["-O1", "-g", "-pthread", "-static", "-o"])
        .args([&program, &source])
        .status()
        .expect("cc runs: install Debian's package gcc");
    assert!(compile.success(), "the server compiles");
    let run = Command::new(recorder)
        .args(["record", "--cyc", "--log", "-o"])
        .arg(folder.path().join("capture"))
        .arg("--")
        .arg(&program)
        .output()
        .expect("the recorder runs");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert!(String::from_utf8_lossy(&run.stdout).contains("2 17321"), "the planted request");
    Recorded { folder, program }
}

impl Recorded {
    fn ptflow(&self, verb: &str, args: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_ptflow"))
            .arg(verb)
            .arg(self.folder.path().join("capture/perf.data"))
            .args(args)
            .env_remove("COLUMNS")
            .output()
            .expect("ptflow runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// The address of a function, as nm tells it.
    fn address_of(&self, function: &str) -> String {
        let nm = Command::new("nm").arg(&self.program).output().expect("nm runs: install Debian's binutils");
        let text = String::from_utf8(nm.stdout).expect("text");
        let mut lines = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let found = lines.find(|words| words.last() == Some(&function)).expect("the function");
        format!("{:#x}", u64::from_str_radix(found[0], 16).expect("an address"))
    }

    /// All requests of all threads, each thread's in order; with the transfers of those asked for.
    fn truth(&self, recorder: &Path, detailed: impl Fn(usize) -> bool) -> Vec<Vec<Request>> {
        let capture = self.folder.path().join("capture");
        let mut tids: Vec<u32> = std::fs::read_dir(&capture)
            .expect("the recording")
            .filter_map(|entry| {
                let name = entry.expect("an entry").file_name().into_string().ok()?;
                name.strip_prefix("truth.")?.strip_suffix(".log")?.parse().ok()
            })
            .collect();
        tids.sort_unstable();
        let handle = self.address_of("handle_request");
        let mut threads = Vec::new();
        for tid in tids {
            let mut log = Command::new(recorder)
                .arg("log")
                .arg(capture.join(format!("truth.{tid}.log")))
                .stdout(Stdio::piped())
                .spawn()
                .expect("the recorder runs");
            let mut requests: Vec<Request> = Vec::new();
            // Where the request returns to, and what was before it.
            let mut open: Option<(u64, u64)> = None;
            let mut keep = false;
            for line in BufReader::new(log.stdout.take().expect("a pipe")).lines() {
                let line = line.expect("text");
                let fields: Vec<&str> = line.split('\t').collect();
                let [cycles, _, instructions, kind, from, to] = fields[..] else { panic!("{line}") };
                let number = |text: &str| text.parse::<u64>().expect("a number");
                let (cycles, instructions) = (number(cycles), number(instructions));
                if kind == "call" && to == handle {
                    // A direct call has five bytes.
                    let hex = u64::from_str_radix(from.trim_start_matches("0x"), 16).expect("an address");
                    open = Some((hex + 5, instructions));
                    keep = detailed(requests.len());
                    requests.push(Request {
                        tid,
                        cycles: (cycles, cycles),
                        instructions: 0,
                        transfers: vec![],
                    });
                    continue;
                }
                let (Some((behind, before)), Some(request)) = (open, requests.last_mut()) else { continue };
                let passed = instructions - before;
                if keep {
                    let target = (!kind.ends_with("not taken")).then(|| to.to_owned());
                    request.transfers.push((passed, from.to_owned(), target));
                }
                if kind == "ret" && to == format!("{behind:#x}") {
                    request.cycles.1 = cycles;
                    request.instructions = passed;
                    open = None;
                }
            }
            assert!(log.wait().expect("the recorder ends").success());
            if !requests.is_empty() {
                threads.push(requests);
            }
        }
        threads
    }
}

const REQUEST: [&str; 2] = ["--function", "handle_request"];
const SLOW: usize = 17_321;

/// One run for all, since recording takes longest.
#[test]
#[ignore = "records 120,000 requests and reads their log, half a minute: ./test --all, or cargo test -p ptflow --test planted -- --ignored"]
fn a_planted_request_is_found_and_told_apart() {
    let recorder = recorder();
    let recorded = record(&recorder);
    let truth = recorded.truth(&recorder, |number| number == SLOW || number == 7);
    let all: usize = truth.iter().map(Vec::len).sum();
    assert_eq!((truth.len(), all), (4, 120_000));

    // Count and order: each thread's requests, one by one, with as many instructions.
    let mut found: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
    for line in recorded.ptflow("calls", &[&REQUEST[..], &["--csv"]].concat()).lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        assert_eq!(fields[5..7], ["seen", "seen"], "{line}");
        let number = |at: usize| fields[at].parse::<u64>().expect("a number");
        found.entry(number(1) as u32).or_default().push((number(2), number(4)));
    }
    for requests in &truth {
        let found = &found[&requests[0].tid];
        assert!(found.is_sorted_by_key(|(start, _)| *start));
        let instructions =
            |requests: &[Request]| requests.iter().map(|one| one.instructions).collect::<Vec<_>>();
        assert!(found.iter().map(|one| one.1).collect::<Vec<_>>() == instructions(requests));
    }

    // The slowest is the planted one: by the truth's cycles and by ours.
    let slow = truth.iter().flatten().max_by_key(|one| one.cycles.1 - one.cycles.0).expect("one");
    let planted = truth.iter().find(|requests| requests[0].tid == slow.tid).expect("its thread");
    assert_eq!(planted.iter().position(|one| one == slow), Some(SLOW));
    let tree: serde_json::Value =
        serde_json::from_str(&recorded.ptflow("replay", &[&REQUEST[..], &["--slowest", "--json"]].concat()))
            .expect("JSON");
    assert_eq!(tree["tid"], slow.tid);
    assert_eq!(tree["root"]["instructions"], slow.instructions);

    // What it did and the usual one did not is named first.
    let difference =
        recorded.ptflow("replay", &[&REQUEST[..], &["--slowest", "--against", "median"]].concat());
    let first = difference.lines().skip_while(|line| !line.contains("own time, by path")).nth(1);
    assert!(first.is_some_and(|line| line.ends_with("only here: compact")), "{difference}");

    // With an index, and by a moment, it is the same.
    let index = recorded.folder.path().join("index");
    let index = index.to_str().expect("UTF-8");
    recorded.ptflow("calls", &[&REQUEST[..], &["--index", index, "--quiet"]].concat());
    let same = |args: &[&str]| {
        let json = recorded.ptflow("replay", &[&REQUEST[..], args, &["--json"]].concat());
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).expect("JSON"), tree, "{args:?}");
    };
    same(&["--slowest", "--index", index]);
    let middle =
        tree["start_ns"].as_u64().expect("a time") + tree["root"]["ns"].as_u64().expect("a time") / 2;
    let clock = format!("{}.{:09}", middle / 1_000_000_000, middle % 1_000_000_000);
    same(&["--at", &clock, "--thread", &slow.tid.to_string()]);

    // Every instruction of the planted one: the truth's branches stand where the truth has them, and lead where they led.
    let args = [&REQUEST[..], &["--slowest", "--instructions", "--unfolded"]].concat();
    let listed = recorded.ptflow("replay", &args);
    let address = |line: &str| line.split_whitespace().find(|word| word.starts_with("0x")).map(str::to_owned);
    let listed: Vec<String> =
        listed.lines().skip_while(|line| !line.contains("source")).skip(1).filter_map(address).collect();
    assert_eq!(listed.len() as u64, slow.instructions);
    assert!(slow.transfers.len() > 4_000, "{} transfers", slow.transfers.len());
    assert_eq!(listed[0], recorded.address_of("handle_request"));
    for (passed, from, target) in &slow.transfers {
        let at = *passed as usize - 1;
        assert_eq!(&listed[at], from, "instruction {at}");
        match (target, listed.get(at + 1)) {
            (Some(target), Some(next)) => assert_eq!(next, target, "behind instruction {at}"),
            (None, next) => assert!(next.is_some(), "a request ends with a return"),
            (Some(_), None) => assert_eq!(at + 1, listed.len()),
        }
    }
    // Between them all is straight: each address is a few bytes behind the one before.
    let hex = |text: &String| u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("an address");
    let taken: Vec<usize> =
        slow.transfers.iter().filter(|one| one.2.is_some()).map(|one| one.0 as usize - 1).collect();
    for (at, pair) in listed.windows(2).enumerate() {
        let step = hex(&pair[1]).wrapping_sub(hex(&pair[0]));
        assert!((1..=15).contains(&step) || taken.binary_search(&at).is_ok(), "instruction {at}");
    }
}
