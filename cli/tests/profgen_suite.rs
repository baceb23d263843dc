//! LLVM's own tests of llvm-profgen (`llvm/test/tools/llvm-profgen` of LLVM's source, as in Debian's llvm-toolchain-19) as
//! tests of ours: their branch stacks, which are text as `perf script` prints it, become a perf.data, and what we make
//! of that is held to what the suite expects and to what an installed llvm-profgen makes of the text.
//!
//! The folder is `llvm-profgen` in `PTFLOW_CAPTURES`; nothing of it is part of this project (docs/CAPTURES.md).

use object::elf::{FileHeader64, PF_X, PT_LOAD};
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use object::{Endianness, Object, ObjectSection};
use ptflow_decoder::config::TscConversion;
use ptflow_decoder::units::Ip;
use ptflow_perf_import::record::branch_sample_type as bst;
use ptflow_perf_import::write::{PerfWriter, TraceForm, Who, WriterConfig};
use ptflow_perf_import::{Cpu, Pid, Tid};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

fn suite(test: &str) -> Option<PathBuf> {
    let captures = std::env::var_os("PTFLOW_CAPTURES").map(PathBuf::from);
    let folder = captures.map(|folder| folder.join("llvm-profgen")).filter(|folder| folder.exists());
    if folder.is_none() {
        println!(
            "skipped: {test} reads LLVM's tests from llvm-profgen in the folder that PTFLOW_CAPTURES names"
        );
    }
    folder
}

/// Counts by start and end, or by from and to.
type Counts = BTreeMap<(u64, u64), u64>;

/// A raw profile: straight code, and branches; 1 stands for any address outside the binary, as llvm-profgen writes it.
#[derive(PartialEq, Eq, Debug, Default)]
struct Raw {
    ranges: Counts,
    branches: Counts,
}

impl Raw {
    /// As `--skip-symbolization` prints it, with addresses from `base` on.
    fn parse(text: &str, base: u64) -> Self {
        let mut raw = Self::default();
        for line in text.lines().map(str::trim).filter(|line| line.contains(':')) {
            let (ends, count) = line.rsplit_once(':').expect("a count");
            let hex = |text: &str| match u64::from_str_radix(text, 16).expect("an address") {
                1 | 0xffff_ffff_ffff_f001 => 1,
                addr => base + addr,
            };
            let (counts, (from, to)) = match (ends.split_once("->"), ends.split_once('-')) {
                (Some(ends), _) => (&mut raw.branches, ends),
                (None, Some(ends)) => (&mut raw.ranges, ends),
                _ => panic!("{line}"),
            };
            *counts.entry((hex(from), hex(to))).or_default() += count.parse::<u64>().expect("a count");
        }
        raw
    }

    /// llvm-profgen disassembles around symbols. Linkage stubs have none, so that it takes them for code outside.
    fn without_stubs(self, stubs: &Range<u64>) -> Self {
        let mut branches = Counts::new();
        for ((from, to), count) in self.branches.into_iter().filter(|((_, to), _)| !stubs.contains(to)) {
            *branches.entry((if stubs.contains(&from) { 1 } else { from }, to)).or_default() += count;
        }
        let ranges = self.ranges.into_iter().filter(|((start, _), _)| !stubs.contains(start)).collect();
        Self { ranges, branches }
    }

    /// What is in one and not in the other, as lines: `-` theirs, `+` ours.
    fn difference(theirs: &Self, ours: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for (arrow, theirs, ours) in
            [("-", &theirs.ranges, &ours.ranges), ("->", &theirs.branches, &ours.branches)]
        {
            let mut tell = |sign: char, one: &Counts, other: &Counts| {
                let odd = one.iter().filter(|(ends, count)| other.get(ends) != Some(count));
                lines.extend(odd.map(|((from, to), count)| format!("{sign}{from:x}{arrow}{to:x}:{count}")));
            };
            tell('-', theirs, ours);
            tell('+', ours, theirs);
        }
        lines
    }
}

/// An executable mapping of a process.
struct Mapping {
    addr: u64,
    len: u64,
    offset: u64,
    path: String,
}

/// A `perf script`'s text.
#[derive(Default)]
struct Script {
    mappings: Vec<Mapping>,
    /// Branch stacks, the youngest branch first, and how many samples had each.
    stacks: Vec<(u64, Vec<(u64, u64)>)>,
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x").trim_end_matches(','), 16)
        .unwrap_or_else(|_| panic!("{text} is no address"))
}

impl Script {
    /// Only samples of one event, where lines name it.
    fn read(path: &Path, event: Option<&str>) -> Self {
        // Summed by others: each stack behind a line with its number.
        let is_summed = path.extension().is_some_and(|extension| extension == "aggperfscript");
        let mut script = Self::default();
        let mut first: Option<&str> = None;
        let text = std::fs::read_to_string(path).expect("the suite has the file");
        for line in text.lines() {
            if line.trim().is_empty() || line.trim_start().starts_with("//") {
                continue;
            }
            if let Some((_, mapping)) = line.split_once("PERF_RECORD_MMAP2") {
                script.mappings.push(Self::mapping(mapping));
            } else if line.contains("/0x") {
                let tokens = line.split_whitespace().filter(|token| token.contains("/0x"));
                let entry = |token: &str| {
                    let mut parts = token.split('/');
                    (hex(parts.next().expect("from")), hex(parts.next().expect("to")))
                };
                if event.is_none_or(|event| line.trim_start().starts_with(event)) {
                    let count = first
                        .take()
                        .filter(|_| is_summed)
                        .map_or(1, |count| count.parse().expect("a number"));
                    script.stacks.push((count, tokens.map(entry).collect()));
                }
                first = None;
            } else {
                first.get_or_insert(line.trim());
            }
        }
        script
    }

    /// ` PID/TID: [0xADDR(0xLEN) @ OFFSET …]: r-xp PATH`
    fn mapping(text: &str) -> Mapping {
        let (numbers, path) = text.split_once("]: r-xp ").expect("a mapping");
        let numbers = numbers.split_once('[').expect("a mapping").1;
        let (addr, numbers) = numbers.split_once('(').expect("an address");
        let (len, numbers) = numbers.split_once(") @ ").expect("a length");
        let offset = numbers.split(' ').next().expect("an offset");
        Mapping { addr: hex(addr), len: hex(len), offset: hex(offset), path: path.trim().to_owned() }
    }

    /// As `perf script --show-mmap-events -F ip,brstack` prints it.
    fn text(&self) -> String {
        let mut text = String::new();
        for Mapping { addr, len, offset, path } in &self.mappings {
            let numbers = format!("[{addr:#x}({len:#x}) @ {offset:#x} 00:00 0 0]");
            text += &format!(" PERF_RECORD_MMAP2 7/7: {numbers}: r-xp {path}\n");
        }
        for (count, stack) in &self.stacks {
            let entries: String =
                stack.iter().map(|(from, to)| format!(" {from:#x}/{to:#x}/P/-/-/0 ")).collect();
            text += &format!(" {:x}{entries}\n", stack[0].1).repeat(*count as usize);
        }
        text
    }

    /// Writes what perf would have recorded. A script that tells no mapping is of a binary that lies where it was linked to.
    fn write(&self, binary: &Path, to: &Path) {
        let config = WriterConfig {
            cmdline: ["perf", "record", "-j", "any,u"].map(str::to_owned).to_vec(),
            cpuid: "GenuineIntel,6,158,10".to_owned(),
            cpudesc: "a CPU".to_owned(),
            cpus: 1,
            event_config: 0,
            time: TscConversion { shift: 0, mult: 1, zero: 0 },
            tsc_ctc_ratio: (1, 1),
            max_nonturbo_ratio: 1,
            per_cpu: false,
            form: TraceForm::BranchStacks(bst::USER | bst::ANY),
        };
        let who = |time| Who { pid: Pid(7), tid: Tid(7), cpu: Cpu(0), time };
        let mut writer = PerfWriter::create(to, config).expect("a file");
        let name = binary.file_name().expect("a name").to_str().expect("UTF-8");
        let own = binary.to_str().expect("UTF-8");
        let mut map =
            |addr, len, offset, path: &str| writer.mmap2(who(1), addr, len, offset, path).expect("written");
        for Mapping { addr, len, offset, path } in &self.mappings {
            let is_own = path.rsplit('/').next() == Some(name);
            map(*addr, *len, *offset, if is_own { own } else { path });
        }
        if !self.mappings.iter().any(|mapping| mapping.path.ends_with(name)) {
            for (addr, len, offset) in code_segments(binary) {
                map(addr, len, offset, own);
            }
        }
        for (count, stack) in &self.stacks {
            let entries: Vec<_> = stack.iter().map(|(from, to)| (Ip(*from), Ip(*to), 0)).collect();
            for _ in 0..*count {
                writer.branch_sample(who(2), Ip(stack[0].1), &entries).expect("written");
            }
        }
        writer.finish().expect("written");
    }
}

/// Pages of code: address, length, offset in the file.
fn code_segments(binary: &Path) -> Vec<(u64, u64, u64)> {
    let data = std::fs::read(binary).expect("the suite has the file");
    let endian = Endianness::Little;
    let elf = FileHeader64::<Endianness>::parse(&*data).expect("an ELF file");
    let headers = elf.program_headers(endian, &*data).expect("program headers");
    let code = headers
        .iter()
        .filter(|header| header.p_type(endian) == PT_LOAD && header.p_flags(endian).0 & PF_X.0 != 0);
    code.map(|header| {
        let within = header.p_vaddr(endian) & 0xfff;
        let len = (header.p_memsz(endian) + within).next_multiple_of(0x1000);
        (header.p_vaddr(endian) - within, len, header.p_offset(endian) - within)
    })
    .collect()
}

/// Where a binary's linkage stubs are.
fn stubs(binary: &Path) -> Range<u64> {
    let data = std::fs::read(binary).expect("the suite has the file");
    let file = object::File::parse(&*data).expect("an ELF file");
    let plt = file.section_by_name(".plt");
    plt.map_or(0..0, |plt| plt.address()..plt.address() + plt.size())
}

/// What the suite expects: the lines behind a FileCheck prefix.
fn expected(test: &Path, prefix: &str) -> String {
    let text = std::fs::read_to_string(test).expect("the suite has the file");
    let lines = text.lines().filter_map(|line| {
        let (head, rest) = line.trim_start_matches([';', '/', ' ']).split_once(':')?;
        (head == prefix || head.strip_suffix("-NEXT") == Some(prefix)).then_some(rest.trim())
    });
    lines.collect::<Vec<_>>().join("\n")
}

struct Bed {
    suite: PathBuf,
    folder: TempDir,
}

impl Bed {
    fn input(&self, name: &str) -> PathBuf {
        self.suite.join("Inputs").join(name)
    }

    /// What we make of a script, in a format.
    fn ours(&self, script: &str, event: Option<&str>, binary: &str, format: &str) -> String {
        let capture = self.folder.path().join("perf.data");
        let binary = self.input(binary);
        Script::read(&self.input(script), event).write(&binary, &capture);
        let output = Command::new(env!("CARGO_BIN_EXE_ptflow"))
            .args(["profile", "--quiet", "--format", format, "--binary"])
            .args([&binary, &capture])
            .output()
            .expect("ptflow runs");
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    /// What llvm-profgen makes of it. Call stacks are left out: a sample whose call stack it cannot make sense of it drops,
    /// branches and all, and of `perf record -j any,u` there is none.
    fn theirs(&self, script: &str, binary: &str, more: &[&str]) -> String {
        let out = self.folder.path().join("theirs");
        let plain = self.folder.path().join("perf.script");
        std::fs::write(&plain, Script::read(&self.input(script), None).text()).expect("written");
        let option = |name: &str, path: PathBuf| format!("--{name}={}", path.display());
        let output = Command::new("/usr/lib/llvm-19/bin/llvm-profgen")
            .args([option("perfscript", plain), option("binary", self.input(binary))])
            .args([option("output", out.clone()).as_str(), "--format=text"])
            .args(more)
            .output()
            .expect("llvm-profgen runs; it is in Debian's package llvm-19");
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        std::fs::read_to_string(out).expect("a profile")
    }
}

fn bed(test: &str) -> Option<Bed> {
    Some(Bed { suite: suite(test)?, folder: TempDir::new().expect("a folder") })
}

/// The raw profiles that the suite spells out for branch stacks without call stacks.
#[test]
fn ranges_and_branches_are_those_the_suite_expects() {
    let Some(bed) = bed("ranges_and_branches_are_those_the_suite_expects") else { return };
    // Their addresses are offsets from the first page of code, or are not.
    const LINKED_AT: u64 = 0x40_0000;
    let taken = Some("br_inst_retired.near_taken:upp:");
    for (script, event, binary, test, prefix, base) in [
        (
            "inline-noprobe.perfscript",
            None,
            "inline-noprobe.perfbin",
            "inline-noprobe",
            "CHECK-RAW-PROFILE",
            LINKED_AT,
        ),
        ("noprobe.perfscript", None, "noprobe.perfbin", "noinline-noprobe", "CHECK-RAW-PROFILE", LINKED_AT),
        (
            "noprobe.mmap.perfscript",
            None,
            "noprobe.perfbin",
            "noinline-noprobe",
            "CHECK-RAW-PROFILE",
            LINKED_AT,
        ),
        (
            "noprobe.aggperfscript",
            None,
            "noprobe.perfbin",
            "noinline-noprobe",
            "CHECK-RAW-PROFILE-AGG",
            LINKED_AT,
        ),
        (
            "artificial-branch.perfscript",
            None,
            "inline-noprobe2.perfbin",
            "inline-noprobe2",
            "CHECK-EXT-ADDR",
            0,
        ),
        ("invalid-range.perfscript", None, "noinline-cs-pseudoprobe.perfbin", "invalid-range", "NOCS", 0),
        (
            "cmov_3.perfscript",
            taken,
            "cmov_3.perfbin",
            "event-filtering",
            "CHECK-RAW-PROFILE",
            LINKED_AT + 0x1000,
        ),
    ] {
        let expected = Raw::parse(&expected(&bed.suite.join(test).with_extension("test"), prefix), base);
        assert!(!expected.ranges.is_empty(), "{test} has {prefix}");
        let mut ours = Raw::parse(&bed.ours(script, event, binary, "llvm-unsymbolized"), 0)
            .without_stubs(&stubs(&bed.input(binary)));
        if expected.branches.is_empty() {
            ours.branches.clear();
        }
        println!("{script}: {} ranges, {} branches", expected.ranges.len(), expected.branches.len());
        assert_eq!(Raw::difference(&expected, &ours), different(script), "{script}");
    }
}

/// What differs from llvm-profgen, by script: `-` what it has, `+` what we have.
const DIFFERENT: [(&str, &[&str]); 2] = [
    // An interrupt and the way back from it: llvm-profgen counts the instruction that was interrupted as run, and the way
    // back as a branch. We count neither: BOLT would not take the one, and no compiler knows the other.
    ("cs-interrupt.perfscript", &["-4005b0-4005c3:1", "-1->4005c3:1"]),
    // A call of a stub that is said to have gone elsewhere, made up by the suite to test ranges.
    ("invalid-range.perfscript", &["-2017d8->2017e3:1"]),
];

fn different(script: &str) -> &'static [&'static str] {
    DIFFERENT.iter().find(|(name, _)| *name == script).map_or(&[], |(_, lines)| lines)
}

/// All branch stacks of the suite through both tools.
#[test]
fn ranges_and_branches_are_llvm_profgens() {
    let Some(bed) = bed("ranges_and_branches_are_llvm_profgens") else { return };
    for (script, binary) in SCRIPTS {
        let theirs = Raw::parse(&bed.theirs(script, binary, &["--skip-symbolization", "--use-offset=0"]), 0);
        let ours = Raw::parse(&bed.ours(script, None, binary, "llvm-unsymbolized"), 0)
            .without_stubs(&stubs(&bed.input(binary)));
        println!("{script}: {} ranges, {} branches", theirs.ranges.len(), theirs.branches.len());
        assert_eq!(Raw::difference(&theirs, &ours), different(script), "{script}");
    }
}

/// The same, named: sample profiles by source line, or by probe where the binary has probes, to the byte.
#[test]
fn sample_profiles_are_llvm_profgens() {
    let Some(bed) = bed("sample_profiles_are_llvm_profgens") else { return };
    for (script, binary) in SCRIPTS {
        // What llvm-profgen counts of an interrupt (above) changes lines, too.
        if script == "cs-interrupt.perfscript" {
            continue;
        }
        let theirs = bed.theirs(script, binary, &[]);
        let ours = bed.ours(script, None, binary, "llvm");
        println!("{script}: {} lines of profile", theirs.lines().count());
        assert_eq!(ours, theirs, "{script}");
    }
}

/// Scripts with branch stacks, and their binaries.
const SCRIPTS: [(&str, &str); 26] = [
    ("artificial-branch.perfscript", "inline-noprobe2.perfbin"),
    ("callback-external-addr.perfscript", "callback-external-addr.perfbin"),
    ("cmov_3.perfscript", "cmov_3.perfbin"),
    ("coroutine.perfscript", "coroutine.perfbin"),
    ("cs-interrupt.perfscript", "noinline-cs-noprobe.perfbin"),
    ("cs-invalid-ret-addr.perfscript", "noinline-cs-noprobe.perfbin"),
    ("cs-preinline-cost.perfscript", "cs-preinline-cost.perfbin"),
    ("external-address.perfscript", "inline-cs-noprobe.perfbin"),
    ("func-split.perfscript", "func-split.perfbin"),
    ("inline-cs-noprobe.perfscript", "inline-cs-noprobe.perfbin"),
    ("inline-cs-pseudoprobe.perfscript", "inline-cs-pseudoprobe.perfbin"),
    ("inline-noprobe.perfscript", "inline-noprobe.perfbin"),
    ("inline-noprobe2.perfscript", "inline-noprobe2.perfbin"),
    ("invalid-range.perfscript", "noinline-cs-pseudoprobe.perfbin"),
    ("multi-load-segs.perfscript", "multi-load-segs.perfbin"),
    ("noinline-cs-noprobe.perfscript", "noinline-cs-noprobe.perfbin"),
    ("noinline-cs-noprobe.aggperfscript", "noinline-cs-noprobe.perfbin"),
    ("noinline-cs-pseudoprobe.perfscript", "noinline-cs-pseudoprobe.perfbin"),
    ("noinline-tailcall-probe.perfscript", "noinline-tailcall-probe.perfbin"),
    ("noprobe-skid.perfscript", "noprobe.perfbin"),
    ("noprobe.perfscript", "noprobe.perfbin"),
    ("recursion-compression-noprobe.perfscript", "recursion-compression-noprobe.perfbin"),
    ("recursion-compression-pseudoprobe.perfscript", "recursion-compression-pseudoprobe.perfbin"),
    ("truncated-pseudoprobe.perfscript", "truncated-pseudoprobe.perfbin"),
    ("unique-linkage-name-dwarf.perfscript", "unique-linkage-name-dwarf.perfbin"),
    ("unique-linkage-name-probe.perfscript", "unique-linkage-name-probe.perfbin"),
];
