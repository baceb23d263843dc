//! Every option of the trace on real programs: what each decoder makes of it. Minutes; on request:
//!
//!     cargo test --release -p ptflow-recorder-plugin --features oracle --test matrix -- --ignored --nocapture

mod kit;

use kit::{Recording, Verdict, compile, record};
use ptflow_bench_traces::options::{IpForm, PtOptions, TntForm};
use std::path::Path;

/// The options, each by itself, and all together.
fn variants() -> Vec<(&'static str, PtOptions)> {
    let base = PtOptions::default();
    let lossless =
        PtOptions { tnt: TntForm::Mixed, ip: IpForm::Mixed, defer_tips: true, restarts: 3_000, ..base };
    vec![
        (DEFAULTS, base),
        ("cyc", PtOptions { cyc: true, ..base }),
        ("cyc, threshold 7", PtOptions { cyc: true, cyc_thresh: 7, ..base }),
        ("mtc 0", PtOptions { mtc_period: 0, ..base }),
        ("mtc 9", PtOptions { mtc_period: 9, ..base }),
        ("no mtc", PtOptions { no_mtc: true, ..base }),
        ("no timing", PtOptions { no_tsc: true, ..base }),
        ("PSB every 2 KiB", PtOptions { psb_period: 0, ..base }),
        ("PSB every 64 KiB", PtOptions { psb_period: 5, ..base }),
        ("noretcomp", PtOptions { noretcomp: true, ..base }),
        ("long TNT", PtOptions { tnt: TntForm::Long, ..base }),
        ("mixed TNT", PtOptions { tnt: TntForm::Mixed, ..base }),
        ("every IPBytes form", PtOptions { ip: IpForm::Mixed, ..base }),
        ("full IPs", PtOptions { ip: IpForm::Full, ..base }),
        ("deferred TIPs", PtOptions { defer_tips: true, ..base }),
        ("deferred TIPs, long TNT", PtOptions { defer_tips: true, tnt: TntForm::Long, ..base }),
        ("interrupts", PtOptions { interrupts: 500, ..base }),
        ("restarts without PSB", PtOptions { restarts: 500, cyc: true, ..base }),
        (ALL, PtOptions { cyc: true, interrupts: 700, psb_period: 1, ..lossless }),
        ("kernel code", PtOptions { kernel: 1_000, ..base }),
        ("overflows", PtOptions { overflows: 3_000, ..base }),
        ("truncations", PtOptions { truncations: 20_000, ..base }),
        (
            ALL_LOSSES,
            PtOptions {
                kernel: 2_000,
                overflows: 7_000,
                truncations: 50_000,
                interrupts: 800,
                cyc: true,
                psb_period: 2,
                ..lossless
            },
        ),
    ]
}

/// Takes a minute for each way to record it: only with these. cc1 on a short file runs with all.
const HEAVY: &str = "cc1, with headers";
const WITH_HEAVY: [&str; 3] = [DEFAULTS, ALL, ALL_LOSSES];

const DEFAULTS: &str = "perf's defaults: tsc, mtc 3";
const ALL: &str = "all of these";
const ALL_LOSSES: &str = "all losses and all of these";

/// What runs: name, command.
fn programs() -> Vec<(&'static str, Vec<String>)> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = here.join("src/recorder.rs").display().to_string();
    let [short, nasty] =
        ["swapped.c", "nasty.c"].map(|name| here.join("tests/programs").join(name).display().to_string());
    let python = "import re,json; print(json.dumps([m.group() for m in re.finditer('a+b', 'aab' * 50)]))";
    let perl = "sub f { my $n = shift; $n < 2 ? $n : f($n - 1) + f($n - 2) } print f(12);";
    let sql = "with recursive c(x) as (select 1 union all select x + 1 from c where x < 3000) \
               select sum(x * x), count(distinct x % 7) from c";
    let gcc = |question: &str| {
        let answer = std::process::Command::new("gcc").arg(question).output().expect("gcc runs");
        String::from_utf8(answer.stdout).expect("a path").trim().to_owned()
    };
    let (cc1, multiarch) = (gcc("-print-prog-name=cc1"), gcc("-print-multiarch"));
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    vec![
        ("ls", words(&["/bin/ls", "-la", "/usr/bin"])),
        ("gzip", words(&["/bin/gzip", "-9", "-c", &source])),
        ("xz -T2", words(&["/usr/bin/xz", "-T2", "-0", "--block-size=8192", "-c", &source])),
        ("python3", words(&["/usr/bin/python3", "-S", "-E", "-c", python])),
        ("sqlite3", words(&["/usr/bin/sqlite3", ":memory:", sql])),
        ("perl", words(&["/usr/bin/perl", "-e", perl])),
        ("bash", words(&["/bin/bash", "-c", "for i in {1..50}; do x+=$((i * 7)); done; echo ${x/7/8}"])),
        ("cc1", words(&[&cc1, "-quiet", "-O2", "-DVARIANT=1", &short, "-o", "/dev/null"])),
        (HEAVY, words(&[&cc1, "-quiet", "-imultiarch", &multiarch, &nasty, "-o", "/dev/null"])),
    ]
}

/// One cell: all is well, or what is not.
fn judge(name: &str, recording: &Recording, options: PtOptions) -> [Verdict; 3] {
    recording.explained();
    let verdicts = if options.loses() {
        // The others count what they guess, too.
        [recording.native_lacks_only_the_unknowable(), Ok(()), Ok(())]
    } else {
        [recording.native_equals_truth(), recording.perf_equals_truth(), recording.libipt_equals_truth()]
    };
    for difference in verdicts.iter().filter_map(|verdict| verdict.as_ref().err()) {
        println!("{name}: {difference}");
    }
    verdicts
}

#[test]
#[ignore = "minutes: every option on real programs"]
fn every_option_on_real_programs() {
    let (dynamic, fixed) = (compile("nasty.c", &[]), compile("nasty.c", &["-static", "-O2"]));
    let mut programs = programs();
    for (name, program) in [("nasty", &dynamic), ("nasty, static", &fixed)] {
        programs.push((name, vec![program.path().display().to_string()]));
    }
    let mut table = String::from("| trace | ptflow | perf | libipt |\n| --- | --- | --- | --- |\n");
    let mut wrong = Vec::new();
    for (variant, options) in variants() {
        let mut failed: [Vec<&str>; 3] = Default::default();
        let fits = |name: &str| name != HEAVY || WITH_HEAVY.contains(&variant);
        let programs: Vec<_> = programs.iter().filter(|program| fits(program.0)).collect();
        let all = programs.len();
        for (name, command) in &programs {
            let command: Vec<&str> = command.iter().map(String::as_str).collect();
            let verdicts = judge(&format!("{variant}, {name}"), &record(&command, options), options);
            for (failed, verdict) in failed.iter_mut().zip(verdicts) {
                failed.extend(verdict.is_err().then_some(*name));
            }
        }
        let cell = |failed: &[&str]| match failed {
            [] => format!("{all} of {all}"),
            failed => format!("{} of {all}; not {}", all - failed.len(), failed.join(", ")),
        };
        let asked = |is_there: bool, failed: &[&str]| {
            if is_there && !options.loses() { cell(failed) } else { String::from("–") }
        };
        let row = format!(
            "| {variant} | {} | {} | {} |\n",
            cell(&failed[0]),
            asked(true, &failed[1]),
            asked(cfg!(feature = "oracle"), &failed[2])
        );
        print!("{row}");
        table += &row;
        for (decoder, failed) in ["ptflow", "perf", "libipt"].iter().zip(failed) {
            wrong.extend(failed.iter().map(|name| format!("{decoder}: {variant}, {name}")));
        }
    }
    println!("\n{table}");
    assert_eq!(wrong, Vec::<String>::new());
}
