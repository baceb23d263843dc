//! Programs that are compiled and recorded for a test, and what the recorder saw of the invocations of a function.
#![allow(dead_code, reason = "each test program uses a part of it")]

#[path = "../../../bench-traces/tests/kit/release.rs"]
mod release;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use tempfile::TempDir;

/// A recorded run of a program.
pub struct Recorded {
    pub folder: TempDir,
    pub program: PathBuf,
    /// What the program printed.
    pub printed: String,
    recorder: PathBuf,
    /// Addresses of all instructions as objdump reads them; each leads to the next.
    code: BTreeMap<u64, u64>,
    /// Functions as nm has them: name, start and end.
    functions: Vec<(String, u64, u64)>,
}

/// What the recorder saw of one invocation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invocation {
    pub tid: u32,
    /// Beginning and end.
    pub cycles: (u64, u64),
    pub instructions: u64,
    /// Every transfer, where they were asked for.
    pub transfers: Vec<Transfer>,
}

/// One line of the ordered truth.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transfer {
    pub kind: String,
    /// Instructions of the invocation before it is done.
    pub passed: u64,
    pub from: Option<u64>,
    /// Where it led, if it was taken.
    pub to: Option<u64>,
}

/// The recorder, built.
fn recorder() -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| release::build(&release::RECORDER).join("bench-traces")).clone()
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

fn output_of(tool: &str, args: &[&str], program: &Path) -> String {
    let output = Command::new(tool).args(args).arg(program).output();
    let output = output.unwrap_or_else(|_| panic!("{tool} runs: install Debian's package binutils"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Compiles a source for each list of options, links all into one program without libraries to load, and records a run.
pub fn record(source: &str, compilations: &[&[&str]], options: &[&str]) -> Recorded {
    let folder = TempDir::new().expect("a folder");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(source);
    let cc = |args: &[&str], inputs: &[PathBuf], output: &Path| {
        let status = Command::new("cc").args(args).args(inputs).arg("-o").arg(output).status();
        assert!(status.expect("cc runs: install Debian's package gcc").success(), "the program compiles");
    };
    let compile = |(number, options): (usize, &&[&str])| {
        let object = folder.path().join(format!("{number}.o"));
        cc(&[&["-c", "-O1", "-g", "-pthread"], *options].concat(), std::slice::from_ref(&source), &object);
        object
    };
    let objects: Vec<PathBuf> = compilations.iter().enumerate().map(compile).collect();
    let program = folder.path().join("program");
    cc(&["-pthread", "-static"], &objects, &program);
    let recorder = recorder();
    let run = Command::new(&recorder)
        .args(["record", "--log"])
        .args(options)
        .arg("-o")
        .arg(folder.path().join("capture"))
        .arg("--")
        .arg(&program)
        .output()
        .expect("the recorder runs");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let disassembly = output_of("objdump", &["-d", "--no-show-raw-insn", "-w"], &program);
    let addresses: Vec<u64> = disassembly
        .lines()
        .filter(|line| line.starts_with(' '))
        .filter_map(|line| line.split_once(":\t").and_then(|(address, _)| hex(address.trim())))
        .collect();
    let code = addresses.windows(2).map(|pair| (pair[0], pair[1])).collect();
    let symbols = output_of("nm", &["-S", "--defined-only"], &program);
    let functions = symbols.lines().filter_map(|line| {
        let [start, size, _, name] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
        Some((name.to_owned(), hex(start)?, hex(start)? + hex(size)?))
    });
    let functions = functions.collect();
    let printed = String::from_utf8_lossy(&run.stdout).into_owned();
    Recorded { folder, program, printed, recorder, code, functions }
}

impl Recorded {
    /// Runs a verb.
    pub fn run(&self, verb: &str, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_ptflow"))
            .arg(verb)
            .arg(self.folder.path().join("capture/perf.data"))
            .args(args)
            .env_remove("COLUMNS")
            .output()
            .expect("ptflow runs")
    }

    /// What a verb prints.
    #[track_caller]
    pub fn ptflow(&self, verb: &str, args: &[&str]) -> String {
        let output = self.run(verb, args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// The same, as JSON.
    #[track_caller]
    pub fn json(&self, verb: &str, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ptflow(verb, args)).expect("JSON")
    }

    /// Starts and ends of the functions of a name, as nm tells them.
    pub fn functions(&self, name: &str) -> Vec<(u64, u64)> {
        let found = self.functions.iter().filter(|function| function.0 == name);
        found.map(|(_, start, end)| (*start, *end)).collect()
    }

    /// Start and end of the only function of a name.
    pub fn function(&self, name: &str) -> (u64, u64) {
        let found = self.functions(name);
        let [only] = found[..] else { panic!("{name}: {found:?}") };
        only
    }

    /// The ordered truth of every thread: cycles, nanoseconds, instructions, kind, from and to, by tabs.
    pub fn log(&self) -> BTreeMap<u32, Vec<String>> {
        let capture = self.folder.path().join("capture");
        let mut threads = BTreeMap::new();
        for entry in std::fs::read_dir(&capture).expect("the recording") {
            let name = entry.expect("an entry").file_name().into_string().expect("UTF-8");
            let tid = name.strip_prefix("truth.").and_then(|rest| rest.strip_suffix(".log")?.parse().ok());
            let Some(tid) = tid else { continue };
            let log = Command::new(&self.recorder).arg("log").arg(capture.join(&name)).output();
            let log = log.expect("the recorder runs");
            assert!(log.status.success());
            let text = String::from_utf8(log.stdout).expect("text");
            threads.insert(tid, text.lines().map(str::to_owned).collect());
        }
        threads
    }

    /// Every invocation of a function, each thread's in order of their beginnings: by a call, or by a jump from outside. It
    /// ends when what called it is returned to. `detailed` says of a thread's which of them keep their transfers.
    pub fn truth(&self, function: &str, detailed: impl Fn(usize) -> bool) -> BTreeMap<u32, Vec<Invocation>> {
        let (start, end) = self.function(function);
        let mut threads = BTreeMap::new();
        for (tid, log) in self.log() {
            let mut all: Vec<Invocation> = Vec::new();
            // Where calls return to; and the invocations that go on, with how many of those there are then.
            let mut calls: Vec<u64> = Vec::new();
            let mut open: Vec<(usize, usize)> = Vec::new();
            for line in log {
                let [cycles, _, instructions, kind, from, to] = line.split('\t').collect::<Vec<_>>()[..]
                else {
                    panic!("{line}")
                };
                let number = |text: &str| text.parse::<u64>().expect("a number");
                let (cycles, instructions) = (number(cycles), number(instructions));
                let (from, target) = (hex(from), hex(to).filter(|_| !kind.ends_with("not taken")));
                for (index, _) in &open {
                    if detailed(*index) {
                        let passed = instructions - all[*index].instructions;
                        let (kind, to) = (kind.to_owned(), target);
                        all[*index].transfers.push(Transfer { kind, passed, from, to });
                    }
                }
                if kind.starts_with("call") {
                    calls.push(self.code[&from.expect("a call is somewhere")]);
                }
                let outside = from.is_some_and(|from| !(start..end).contains(&from));
                let enters = match kind {
                    "call" | "call_ind" => true,
                    "jmp" | "jmp_ind" | "jcc" => outside,
                    _ => false,
                };
                if enters && target == Some(start) {
                    open.push((all.len(), calls.len()));
                    all.push(Invocation { tid, cycles: (cycles, cycles), instructions, transfers: vec![] });
                }
                // A handler returns to what nobody called.
                if kind == "ret" && calls.last() == target.as_ref() {
                    calls.pop();
                }
                while let Some((index, _)) = open.pop_if(|(_, depth)| calls.len() < *depth) {
                    all[index].cycles.1 = cycles;
                    all[index].instructions = instructions - all[index].instructions;
                }
            }
            assert_eq!(open, [], "every invocation has its end");
            if !all.is_empty() {
                threads.insert(tid, all);
            }
        }
        threads
    }

    /// The addresses of an invocation's instructions: objdump's between the transfers, which are the recorder's.
    pub fn instructions(&self, function: &str, invocation: &Invocation) -> Vec<u64> {
        let mut list = Vec::new();
        let mut at = Some(self.function(function).0);
        for Transfer { kind, passed, from, to } in &invocation.transfers {
            while (list.len() as u64) < *passed {
                let address = at.expect("control is somewhere");
                list.push(address);
                at = self.code.get(&address).copied();
            }
            match &**kind {
                // Before it, nothing ran.
                "resume" => at = *to,
                "async" => {
                    assert_eq!(at, *from, "what did not run any more");
                    at = None;
                }
                _ => {
                    assert_eq!(list.last(), from.as_ref(), "{kind}");
                    at = to.or(at);
                }
            }
        }
        assert_eq!(list.len() as u64, invocation.instructions);
        list
    }
}

/// The addresses in a list of instructions.
pub fn listed(text: &str) -> Vec<u64> {
    let rows = text.lines().skip_while(|line| !line.trim_end().ends_with("source")).skip(1);
    rows.filter_map(|line| line.split_whitespace().find(|word| word.starts_with("0x")).and_then(hex))
        .collect()
}
