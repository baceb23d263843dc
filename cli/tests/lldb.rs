//! Hardware's traces out of LLDB's tests, wrapped into a perf.data: every instruction, as LLDB, libipt and perf list them
//! (docs/CAPTURES.md).

use object::{Object as _, ObjectSegment as _};
use ptflow_decoder::config::TscConversion;
use ptflow_decoder::units::Tsc;
use ptflow_perf_import::write::{PerfWriter, TraceForm, Who, WriterConfig};
use ptflow_perf_import::{Cpu, Pid, Tid};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// The folder of outside captures, where there is one.
fn captures(test: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("PTFLOW_CAPTURES").map(PathBuf::from);
    if folder.is_none() {
        println!("skipped: {test} reads captures from outside; set PTFLOW_CAPTURES to their folder");
    }
    folder
}

/// The executable segments of an image whose lowest address lies at `base`: address, length, offset in the file.
fn segments(path: &Path, base: u64) -> Vec<(u64, u64, u64)> {
    let data = std::fs::read(path).expect("the image is there");
    let file = object::File::parse(&*data).expect("an ELF file");
    let lowest = file.segments().map(|segment| segment.address()).min().expect("segments") & !0xfff;
    let executable = |segment: &object::Segment<'_, '_>| segment.permissions().executable();
    let pages = |segment: object::Segment<'_, '_>| {
        let (offset, size) = segment.file_range();
        let start = segment.address() & !0xfff;
        let len = (segment.address() + size - start).next_multiple_of(0x1000);
        (base + start - lowest, len, offset & !0xfff)
    };
    file.segments().filter(executable).map(pages).collect()
}

/// Wraps LLDB's description of a trace, which names the images and one thread's bytes.
fn wrap(description: &Path, out: &Path) {
    let text = std::fs::read(description).expect("the description is there");
    let json: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let folder = description.parent().expect("a folder");
    let process = &json["processes"][0];
    let number = |value: &serde_json::Value| value.as_u64().expect("a number");
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    let (pid, tid) = (number(&process["pid"]) as u32, number(&process["threads"][0]["tid"]) as u32);
    let cpu = &json["cpuInfo"];
    let config = WriterConfig {
        cmdline: vec!["lldb".to_owned()],
        cpuid: format!("GenuineIntel,{},{},{}", cpu["family"], cpu["model"], cpu["stepping"]),
        cpudesc: String::new(),
        cpus: 1,
        event_config: 0x2001, // pt, branch
        time: TscConversion { shift: 0, mult: 1, zero: 0 },
        tsc_ctc_ratio: (0, 0),
        max_nonturbo_ratio: 0,
        per_cpu: false,
        form: TraceForm::Full,
    };
    let who = Who { pid: Pid(pid), tid: Tid(tid), cpu: Cpu(0), time: 0 };
    let trace = std::fs::read(folder.join(text(&process["threads"][0]["iptTrace"]))).expect("the trace");
    let mut writer = PerfWriter::create(out, config).expect("a file");
    writer.comm(who, "a.out", true).expect("written");
    for module in process["modules"].as_array().expect("modules") {
        let path = folder.join(text(&module["file"]));
        for (address, len, offset) in segments(&path, number(&module["loadAddress"])) {
            writer.mmap2(who, address, len, offset, path.to_str().expect("UTF-8")).expect("written");
        }
    }
    writer.aux(who, 0, trace.len() as u64, 0).expect("written");
    writer.auxtrace(0, Some(who.tid), None, 0, Tsc(1), &trace).expect("written");
    writer.finish().expect("written");
}

/// The lines of `ptflow dump instructions`: address, or reason of a gap; and what stands behind.
fn instructions(description: &Path, more: &[&str]) -> Vec<(String, String)> {
    let folder = TempDir::new().expect("a folder");
    let capture = folder.path().join("perf.data");
    wrap(description, &capture);
    let output = Command::new(env!("CARGO_BIN_EXE_ptflow"))
        .args(["dump", "instructions", "--quiet"])
        .arg(&capture)
        .args(more)
        .output()
        .expect("ptflow runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let line = |line: &str| {
        let fields: Vec<&str> = line.splitn(4, '\t').collect();
        assert_eq!(fields[0], "-", "there is no time in it: {line}");
        (fields[2].to_owned(), fields.get(3).copied().unwrap_or_default().to_owned())
    };
    text.lines().map(line).collect()
}

#[test]
fn a_loop_of_twenty_one_instructions() {
    let Some(captures) = captures("a_loop_of_twenty_one_instructions") else { return };
    let folder = captures.join("lldb-intelpt-trace");
    // perf's branches: in at 40051f, four times round from 40052d to 400521.
    let (mut expected, round) =
        (vec![0x400511, 0x400518, 0x40051f, 0x400529, 0x40052d], [0x400521, 0x400525, 0x400529, 0x40052d]);
    for _ in 0..4 {
        expected.extend(round);
    }
    assert_eq!(expected.len(), 21);
    for engine in ["native", "careful"] {
        let found = instructions(&folder.join("trace.json"), &["--engine", engine]);
        let expected: Vec<_> = expected.iter().map(|ip| (format!("{ip:#x}"), String::new())).collect();
        assert_eq!(found, expected, "{engine}");
    }
}

#[test]
fn a_missing_loader_hides_only_itself() {
    let Some(captures) = captures("a_missing_loader_hides_only_itself") else { return };
    let description = captures.join("lldb-multi-file/multi-file-no-ld.json");
    let found = instructions(&description, &["--disassemble"]);
    let (gaps, found): (Vec<_>, Vec<_>) = found.into_iter().partition(|line| line.0 == "gap");
    // perf 6.1 lists 63 instructions (`perf script --itrace=i0ns`), and finds no code twice.
    assert_eq!(found.len(), 63);
    assert!(gaps.len() == 2 && gaps.iter().all(|gap| gap.1.starts_with("no_image\t")), "{gaps:?}");
    // The lazily bound calls of foo() and bar(): into the PLT, on to the loader, out of it at the function.
    let at = |ip: &str| found.iter().position(|line| line.0 == ip).expect("it was executed");
    assert_eq!(at("0x7ffff7bd96e0"), at("0x400516") + 1);
    assert_eq!(at("0x7ffff79d7690"), at("0x7ffff7bd95b6") + 1);
    assert_eq!(found[0], ("0x40066f".to_owned(), "call 0x400540\tmain+0xf".to_owned()));
    assert_eq!(found[62].0, "0x4006a9");
    assert_eq!(found[at("0x7ffff79d76aa")].1, "ret\tbar()+0x1a");
}
