//! A real LBR recording (Skylake, 32 entries) of google/autofdo: its samples as `perf script` prints them, its branches
//! and fall-through ranges as counted from that text.

mod kit;

use ptflow_decoder::units::Ip;
use ptflow_perf_import::record::branch_sample_type;
use ptflow_perf_import::write::{PerfWriter, TraceForm};
use ptflow_perf_import::{Capture, CaptureError, PerfFile};
use std::collections::BTreeMap;
use std::fmt::Write;

fn open() -> Option<(std::path::PathBuf, PerfFile)> {
    let folder = kit::captures("branch_stacks")?.join("autofdo-propeller_sample_1");
    let file = PerfFile::open(&folder.join("perf.data")).unwrap();
    Some((folder, file))
}

fn rows(text: &str) -> impl Iterator<Item = Vec<u64>> {
    // Addresses in hex, then counts in decimal.
    let row = |line: &str| {
        let radix = [16, 16, 10, 10];
        line.split('\t').zip(radix).map(|(cell, radix)| u64::from_str_radix(cell, radix).unwrap()).collect()
    };
    text.lines().map(row)
}

#[test]
fn branches_and_ranges() {
    let Some((folder, file)) = open() else { return };
    let capture = Capture::read(&file).unwrap();
    let sums = capture.branch_stacks;
    assert_eq!((sums.samples, sums.entries, sums.depth), (3_740, 119_424, 32));
    assert!(capture.streams.is_empty());
    let mut branches = BTreeMap::<(u64, u64), (u64, u64)>::new();
    let mut ranges = BTreeMap::<(u64, u64), u64>::new();
    // Ranges that the golden list leaves out: those that run backwards, and those that end in the kernel.
    let (mut backwards, mut into_the_kernel) = (0, 0);
    for sample in capture.samples() {
        let stack = sample.branch_stack.unwrap();
        for (index, entry) in stack.iter().enumerate() {
            let count = branches.entry((entry.from.0, entry.to.0)).or_default();
            count.0 += 1;
            count.1 += u64::from(entry.mispredicted());
            // What ran between an older branch's target and this branch.
            if let Some(older) = stack.get(index + 1) {
                if older.to > entry.from {
                    // Skylake repeats the youngest entry now and then.
                    assert_eq!((index, older.from, older.to), (0, entry.from, entry.to));
                    backwards += 1;
                } else if entry.from.0 >> 63 == 1 {
                    into_the_kernel += 1;
                } else {
                    *ranges.entry((older.to.0, entry.from.0)).or_default() += 1;
                }
            }
        }
    }
    let golden = std::fs::read_to_string(folder.join("branches.tsv")).unwrap();
    for row in rows(&golden) {
        assert_eq!(branches.get(&(row[0], row[1])), Some(&(row[2], row[3])), "{row:x?}");
    }
    let golden = std::fs::read_to_string(folder.join("ranges.tsv")).unwrap();
    let golden: BTreeMap<(u64, u64), u64> = rows(&golden).map(|row| ((row[0], row[1]), row[2])).collect();
    assert_eq!(ranges, golden);
    assert_eq!((backwards, into_the_kernel), (733, 5));
}

#[test]
fn every_stack_as_perf_prints_it() {
    let Some((folder, file)) = open() else { return };
    let args = ["script", "-F", "pid,tid,time,brstack", "--ns", "-i", "perf.data"];
    let Some(text) = kit::output("perf", &args, &folder) else { return };
    let capture = Capture::read(&file).unwrap();
    // perf prints in order of time.
    let mut samples: Vec<_> = capture.samples().collect();
    samples.sort_by_key(|sample| sample.time);
    let mut lines = text.lines();
    for sample in samples {
        let ((pid, tid), time) = (sample.task.unwrap(), sample.time.unwrap().0);
        let mut ours = format!("{pid}/{tid} {}.{:09}:", time / 1_000_000_000, time % 1_000_000_000);
        for entry in sample.branch_stack.unwrap().iter() {
            let predicted = match (entry.mispredicted(), entry.predicted()) {
                (true, _) => 'M',
                (false, true) => 'P',
                (false, false) => '-',
            };
            let flag = |set: bool, letter: char| if set { letter } else { '-' };
            let (x, a) = (flag(entry.in_tx(), 'X'), flag(entry.abort(), 'A'));
            let (from, to, cycles) = (entry.from.0, entry.to.0, entry.cycles());
            write!(ours, " {from:#x}/{to:#x}/{predicted}/{x}/{a}/{cycles}").unwrap();
        }
        let golden: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
        // Newer perfs add the kind of branch behind the cycles.
        let six = |token: &str| token.split('/').take(6).collect::<Vec<_>>().join("/");
        let golden: Vec<String> = golden.into_iter().map(six).collect();
        assert_eq!(ours, golden.join(" "));
    }
    assert_eq!(lines.next(), None);
}

#[test]
fn a_recording_without_either_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["record", "-q", "-e", "cpu-clock", "-o", "x.data", "true"];
    if kit::output("perf", &args, dir.path()).is_none() {
        return;
    }
    let file = PerfFile::open(&dir.path().join("x.data")).unwrap();
    let error = Capture::read(&file).unwrap_err();
    assert!(matches!(error, CaptureError::NoTrace(_)));
    assert!(error.to_string().contains("x.data") && !error.to_string().contains('\n'));
}

/// What the writer writes, as perf prints it.
#[test]
fn written_stacks() {
    let mut config = kit::config(0, false);
    config.form = TraceForm::BranchStacks(branch_sample_type::USER | branch_sample_type::ANY);
    let dir = tempfile::tempdir().unwrap();
    let mut writer = PerfWriter::create(&dir.path().join("perf.data"), config).unwrap();
    let who = |time| kit::who(7, 8, 0, time);
    writer.comm(who(5), "program", true).unwrap();
    writer.mmap2(who(6), 0x40_1000, 0x1000, 0x1000, "/no/such/program").unwrap();
    // Mispredicted after 5 cycles; predicted; nothing told.
    let entries =
        [(Ip(0x40_1010), Ip(0x40_1000), 1 | 5 << 4), (Ip(0x40_1020), Ip(0x40_1004), 2), (Ip(1), Ip(2), 0)];
    writer.branch_sample(who(1_000_000_007), Ip(0x40_1000), &entries).unwrap();
    writer.branch_sample(who(1_000_000_009), Ip(0x40_1000), &[]).unwrap();
    writer.finish().unwrap();
    let file = PerfFile::open(&dir.path().join("perf.data")).unwrap();
    let capture = Capture::read(&file).unwrap();
    assert_eq!((capture.branch_stacks.samples, capture.branch_stacks.entries), (2, 3));
    let args = ["script", "-F", "comm,pid,tid,time,ip,brstack", "--ns", "-i", "perf.data"];
    let Some(text) = kit::output("perf", &args, dir.path()) else { return };
    let six = |token: &str| token.split('/').take(6).collect::<Vec<_>>().join("/");
    let lines: Vec<String> =
        text.lines().map(|line| line.split_whitespace().map(six).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        lines,
        [
            "program 7/8 1.000000007: 401000 0x401010/0x401000/M/-/-/5 0x401020/0x401004/P/-/-/0 0x1/0x2/-/-/-/0",
            "program 7/8 1.000000009: 401000",
        ]
    );
}
