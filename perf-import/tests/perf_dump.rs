//! Recordings made here and now, record by record against `perf script -D`.

mod kit;

use ptflow_perf_import::PerfFile;
use ptflow_perf_import::record::{
    Aux, AuxTrace, Comm, CpuMap, IdIndex, ItraceStart, Mmap, Record, Switch, Task, ThreadMap, kind, misc,
};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// The lines of `perf script -D` by the record's offset: time, and what follows the size.
fn dump(dir: &Path) -> Option<BTreeMap<u64, (u64, String)>> {
    let text = kit::output("perf", &["script", "-D", "-i", "perf.data"], dir)?;
    let mut lines = BTreeMap::new();
    for line in text.lines() {
        // "[cpu] time 0xoffset [0xsize]: PERF_RECORD_…"
        let Some((head, what)) = line.split_once("]: PERF_RECORD_") else { continue };
        let words: Vec<&str> = head.split_whitespace().collect();
        let offset = u64::from_str_radix(words[words.len() - 2].trim_start_matches("0x"), 16).unwrap();
        let time = words[words.len() - 3].parse().unwrap();
        lines.insert(offset, (time, what.trim_end().to_owned()));
    }
    Some(lines)
}

/// A record as perf prints it; as much of it as is compared.
fn print(file: &PerfFile, record: &Record<'_>) -> String {
    let name = kind::name(record.kind).unwrap();
    let mut out = name.to_owned();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match record.kind {
        kind::MMAP | kind::MMAP2 => {
            let m = Mmap::read(record).unwrap();
            let (pid, tid) = (m.pid.0.cast_signed(), m.tid.0.cast_signed());
            let (addr, len) = (m.addr, m.len);
            write!(out, " {pid}/{tid}: [{addr:#x}({len:#x}) @ ").unwrap();
            // perf prints 0 without a prefix.
            match m.pgoff {
                0 => out.push('0'),
                pgoff => write!(out, "{pgoff:#x}").unwrap(),
            }
            if let Some((prot, flags)) = m.prot {
                let id = &record.body[32..56];
                let (major, minor) = (u32_at(id, 0), u32_at(id, 4));
                match m.build_id {
                    Some(id) => write!(out, " <{}>", hex(id)).unwrap(),
                    None => {
                        write!(out, " {major:02x}:{minor:02x} {} {}", u64_at(id, 8), u64_at(id, 16)).unwrap()
                    }
                }
                let letter = |bit: u32, letter: char| if prot & bit != 0 { letter } else { '-' };
                let shared = if flags & 1 != 0 { 's' } else { 'p' };
                write!(out, "]: {}{}{}{shared}", letter(1, 'r'), letter(2, 'w'), letter(4, 'x')).unwrap();
            } else {
                out.push_str(if m.is_executable() { "]: x" } else { "]: r" });
            }
            write!(out, " {}", text(m.filename)).unwrap();
        }
        kind::COMM => {
            let c = Comm::read(record).unwrap();
            let exec = if c.exec { " exec" } else { "" };
            write!(out, "{exec}: {}:{}/{}", text(c.comm), c.pid, c.tid).unwrap();
        }
        kind::FORK | kind::EXIT => {
            let t = Task::read(record).unwrap();
            assert_eq!(t.exit, record.kind == kind::EXIT);
            let [pid, tid, ppid, ptid] = [t.pid.0, t.tid.0, t.ppid.0, t.ptid.0].map(u32::cast_signed);
            write!(out, "({pid}:{tid}):({ppid}:{ptid})").unwrap();
        }
        kind::AUX => {
            let a = Aux::read(record).unwrap();
            let hex = |value: u64| if value == 0 { "0".to_owned() } else { format!("{value:#x}") };
            let truncated = if a.flags & Aux::TRUNCATED != 0 { "T" } else { "" };
            write!(
                out,
                " offset: {} size: {} flags: {} [{truncated}]",
                hex(a.offset),
                hex(a.size),
                hex(a.flags)
            )
            .unwrap();
        }
        kind::AUXTRACE => {
            let a = AuxTrace::read(record).unwrap();
            let hex = |value: u64| if value == 0 { "0".to_owned() } else { format!("{value:#x}") };
            let cpu = a.cpu.map_or(-1, |cpu| i64::from(cpu.0));
            let (size, offset, reference) = (hex(a.size), hex(a.offset), hex(a.reference.0));
            let tid = a.tid.map_or(-1, |tid| i64::from(tid.0));
            write!(
                out,
                " size: {size}  offset: {offset}  ref: {reference}  idx: {}  tid: {tid}  cpu: {cpu}",
                a.idx
            )
            .unwrap();
            assert_eq!(a.size, record.payload.len() as u64);
        }
        kind::ITRACE_START => {
            let i = ItraceStart::read(record).unwrap();
            write!(out, " pid: {} tid: {}", i.pid, i.tid).unwrap();
        }
        kind::SWITCH => {
            let s = Switch::read(record).unwrap();
            let what = match (s.out, s.preempted) {
                (false, _) => "IN",
                (true, false) => "OUT",
                (true, true) => "OUT preempt",
            };
            write!(out, " {what}").unwrap();
        }
        kind::SAMPLE => {
            let (_, s) = file.events().sample(record).unwrap();
            // A thread on its way out has none any more: -1.
            let (pid, tid) = s.task.map(|(pid, tid)| (pid.0.cast_signed(), tid.0.cast_signed())).unwrap();
            let (ip, period) = (s.ip.unwrap().0, s.period.unwrap());
            write!(out, "(IP, {:#x}): {pid}/{tid}: {ip:#x} period: {period} addr: 0", s.misc).unwrap();
        }
        kind::ID_INDEX => write!(out, " nr: {}", IdIndex::read(record).unwrap().len()).unwrap(),
        kind::THREAD_MAP => {
            let threads: Vec<_> = ThreadMap::read(record).unwrap().iter().collect();
            let list: Vec<String> = threads.iter().map(|(pid, _)| pid.0.cast_signed().to_string()).collect();
            write!(out, " nr: {} thread: {}", threads.len(), list.join(" ")).unwrap();
        }
        kind::CPU_MAP => {
            let cpus = CpuMap::read(record).unwrap().cpus();
            write!(out, ": {}-{}", cpus.first().unwrap(), cpus.last().unwrap()).unwrap();
        }
        _ => {}
    }
    out
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compares every record of `perf.data` in a folder; how many there are of each type.
fn compare(dir: &Path) -> Option<BTreeMap<&'static str, u64>> {
    let golden = dump(dir)?;
    let file = PerfFile::open(&dir.join("perf.data")).unwrap();
    let mut kinds = BTreeMap::new();
    let mut seen = 0;
    for record in file.records() {
        let Some((time, line)) = golden.get(&record.offset.0) else { continue };
        seen += 1;
        let ours = print(&file, &record);
        *kinds.entry(kind::name(record.kind).unwrap()).or_insert(0) += 1;
        // perf prints more of some; what is printed here must be the line's beginning.
        assert!(
            line.replace(" id: ", "").starts_with(ours.trim_end()),
            "{ours:?} at {}, perf: {line:?}",
            record.offset
        );
        let own = match file.events().sample(&record) {
            Some((_, sample)) => sample.time,
            None => file.events().trailer(&record).time,
        };
        assert_eq!(own.map_or(0, |time| time.0), *time, "{line}");
        assert!(record.misc & misc::CPUMODE_MASK <= misc::USER);
    }
    assert_eq!(seen, golden.len(), "perf prints records that were not read");
    Some(kinds)
}

#[test]
fn software_events_with_switches_and_call_chains() {
    for options in [
        &["-g", "--switch-events"][..],
        // Identifiers, CPUs, two events of different shape, build ids in the mappings.
        &["-e", "task-clock", "-e", "dummy:u", "--buildid-mmap", "--sample-cpu", "-d"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut args = vec!["record", "-q", "-o", "perf.data", "-e", "cpu-clock"];
        args.extend(options);
        args.extend(["sh", "-c", "ls >/dev/null; cat /dev/null & wait; exec true"]);
        if kit::output("perf", &args, dir.path()).is_none() {
            return;
        }
        let Some(kinds) = compare(dir.path()) else { return };
        println!("{options:?}: {kinds:?}");
        let expected = ["COMM", "FORK", "EXIT", "MMAP2", "SAMPLE", "THREAD_MAP", "CPU_MAP", "ID_INDEX"];
        for name in expected {
            assert!(kinds.contains_key(name), "no {name} in {kinds:?}");
        }
        assert_eq!(kinds.contains_key("SWITCH"), options.contains(&"--switch-events"));
    }
}

/// Time and line of every record, in no order: those that perf prints in full.
fn sorted(lines: impl Iterator<Item = (u64, String)>) -> Vec<(u64, String)> {
    // Of these perf prints no more than that they are there, under other names in part.
    const BARE: [&str; 7] =
        ["ATTR", "BUILD_ID", "FEATURE", "HEADER_", "FINISHED_ROUND", "EVENT_UPDATE", "COMPRESSED"];
    let mut lines: Vec<_> =
        lines.filter(|(_, line)| !BARE.iter().any(|bare| line.starts_with(bare))).collect();
    lines.sort();
    lines
}

/// Pipes, directories, compressed records: whatever perf makes of them, in whichever order.
#[test]
fn every_form() {
    const PIPE: &str = "perf record -q -e cpu-clock -e dummy:u -o - sh -c 'ls -lR /usr/bin /etc >/dev/null' | cat >perf.data";
    let forms = [
        ("-z", "perf record -q -z -e cpu-clock -o perf.data sh -c 'ls -lR /usr/bin /etc >/dev/null; true'"),
        (
            "-z of level 19, several events",
            "perf record -q --compression-level=19 -e cpu-clock -e task-clock --switch-events -g -o perf.data sh -c 'ls -lR /usr/lib/x86_64-linux-gnu >/dev/null; true'",
        ),
        ("--threads", "perf record -q --threads -a -e cpu-clock -o perf.data sleep 0.1"),
        ("--threads -z", "perf record -q --threads -z -a -e cpu-clock -o perf.data sleep 0.1"),
        ("pipe", PIPE),
        ("pipe -z", &PIPE.replace("-q", "-q -z")),
        ("inject", &PIPE.replace("| cat", "| perf inject -b")),
    ];
    for (form, command) in forms {
        let dir = tempfile::tempdir().unwrap();
        let made = kit::output("sh", &["-c", command], dir.path());
        let Some(text) =
            made.and_then(|_| kit::output("perf", &["script", "-D", "-i", "perf.data"], dir.path()))
        else {
            continue;
        };
        let golden = text.lines().filter_map(|line| {
            let (head, what) = line.split_once("]: PERF_RECORD_")?;
            let time = head.split_whitespace().rev().nth(2)?.parse().unwrap_or(0);
            Some((time, what.trim_end().replace(" id: ", "")))
        });
        let golden = sorted(golden);
        let file = PerfFile::open(&dir.path().join("perf.data")).unwrap();
        assert_eq!(file.is_pipe(), form.contains("pipe") || form == "inject");
        let mut records = file.records();
        let ours = sorted(records.by_ref().map(|record| {
            let time = match file.events().sample(&record) {
                Some((_, sample)) => sample.time,
                None => file.events().trailer(&record).time,
            };
            (time.map_or(0, |time| time.0), print(&file, &record).trim_end().to_owned())
        }));
        assert_eq!((records.first_damage(), file.notes()), (None, &[][..]), "{form}");
        assert!(
            golden.iter().filter(|(_, line)| line.starts_with("SAMPLE")).count() > 2,
            "{form}: {golden:?}"
        );
        for (ours, golden) in ours.iter().zip(&golden) {
            assert!(
                ours.0 == golden.0 && golden.1.starts_with(&ours.1),
                "{form}: {ours:?}, perf: {golden:?}"
            );
        }
        assert_eq!(ours.len(), golden.len(), "{form}");
        println!("{form}: {} records", ours.len());
    }
}

#[test]
fn a_recording_of_the_writer() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("perf.data"), kit::recording::bytes()).unwrap();
    let Some(kinds) = compare(dir.path()) else { return };
    let expected = [
        ("AUX", 4),
        ("AUXTRACE", 3),
        ("AUXTRACE_INFO", 1),
        ("COMM", 3),
        ("EXIT", 2),
        ("FORK", 2),
        ("ITRACE_START", 1),
        ("MMAP2", 5),
        ("SWITCH", 2),
        ("TIME_CONV", 1),
    ];
    assert_eq!(kinds, BTreeMap::from(expected));
}
