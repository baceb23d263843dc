//! `ptflow profile` on the shipped sample, format by format, against the recorder's truth and the tools that read them.

mod requests;

use object::Object;
use requests::{functions, json, ptflow, sample, succeed, truth};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// What runs into each branch is what the recorder saw leave it: the two are counted from different rows.
#[test]
fn ranges_for_bolt_conserve_the_flow() {
    let text =
        String::from_utf8(succeed(ptflow(&["profile"], &["--format", "bolt-preaggregated"]))).expect("text");
    let again = succeed(ptflow(&["profile"], &["--format", "bolt-preaggregated", "--threads", "3"]));
    assert!(text.as_bytes() == again, "the same for any number of threads");
    let hex = |text: &str| u64::from_str_radix(text, 16).expect("an address");
    let mut into: BTreeMap<u64, u64> = BTreeMap::new();
    let mut taken: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let count: u64 = fields[3].parse().expect("a count");
        match fields[0] {
            "B" => assert_eq!(taken.insert((hex(fields[1]), hex(fields[2])), count), None),
            "F" | "f" => *into.entry(hex(fields[2])).or_insert(0) += count,
            other => panic!("{other}"),
        }
    }
    let (mut left, mut true_taken) = (BTreeMap::new(), BTreeMap::new());
    let mut system_calls = Vec::new();
    for row in ptflow_exporters::edges::read(truth().as_bytes()).expect("the truth") {
        let addr = |text: &Option<String>| text.as_ref().map(|text| hex(text.trim_start_matches("0x")));
        match (row.kind.name(), addr(&row.from), addr(&row.to)) {
            ("syscall", Some(from), _) => system_calls.push(from),
            ("async" | "resume" | "far", ..) => {}
            (_, Some(from), Some(to)) => {
                *left.entry(from).or_insert(0) += row.taken + row.not_taken;
                if row.taken > 0 {
                    *true_taken.entry((from, to)).or_insert(0) += row.taken;
                }
            }
            _ => {}
        }
    }
    assert_eq!(taken, true_taken);
    // The program's last system call does not come back.
    into.retain(|end, _| !system_calls.contains(end));
    assert_eq!(into, left);
}

/// A trace by Intel PT is counted edge by edge: nothing says what ran behind which branch.
#[test]
fn traces_for_bolt_are_of_branch_stacks() {
    for format in ["bolt-preaggregated", "edges"] {
        let refused = ptflow(&["profile"], &["--format", format, "--traces"]);
        assert_eq!(refused.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&refused.stderr).contains("--traces is for "), "{format}");
    }
}

/// perf2bolt's own output, from our records.
#[test]
fn bolt_by_way_of_perf2bolt() {
    let folder = TempDir::new().expect("a folder");
    let fdata = folder.path().join("out.fdata");
    let output = ptflow(&["profile"], &["--format", "bolt", "-o", fdata.to_str().expect("UTF-8")]);
    if String::from_utf8_lossy(&output.stderr).contains("perf2bolt is not installed") {
        println!("skipped: there is no perf2bolt; install Debian's package bolt-19");
        return;
    }
    succeed(output);
    let lines = std::fs::read_to_string(&fdata).expect("written");
    assert!(lines.lines().any(|line| line.contains(" handle_request/")), "no branch of handle_request");
    assert_eq!(ptflow(&["profile"], &["--format", "bolt"]).status.code(), Some(2));
}

/// What llvm-profgen makes of our counts is what we make of them.
#[test]
fn a_sample_profile_by_way_of_llvm_profgen() {
    let folder = TempDir::new().expect("a folder");
    let shown = |profile: &[u8]| {
        let path = folder.path().join("profile");
        std::fs::write(&path, profile).expect("written");
        let show = ["show", "--sample", "--all-functions", path.to_str().expect("UTF-8")];
        let llvm_profdata = "/usr/lib/llvm-19/bin/llvm-profdata";
        let output = Command::new(llvm_profdata).args(show).output();
        let text = succeed(output.expect("llvm-profdata runs: it is in Debian's package llvm-19"));
        assert!(String::from_utf8_lossy(&text).contains("handle_request"));
        text
    };
    for format in ["llvm", "llvm-extbinary"] {
        let theirs = ptflow(&["profile"], &["--format", format, "--via", "llvm-profgen"]);
        if String::from_utf8_lossy(&theirs.stderr).contains("llvm-profgen is not installed") {
            println!("skipped: there is no llvm-profgen; install Debian's package llvm-19");
            return;
        }
        let theirs = succeed(theirs);
        let ours = succeed(ptflow(&["profile"], &["--format", format]));
        match format {
            "llvm" => assert_eq!(String::from_utf8_lossy(&theirs), String::from_utf8_lossy(&ours)),
            // The order of names is free; LLVM reads the same of both.
            _ => assert!(shown(&theirs) == shown(&ours)),
        }
    }
    assert_eq!(ptflow(&["profile"], &["--via", "llvm-profgen"]).status.code(), Some(2));
}

/// Of a tool that fails, its last words are told; the one in PATH is taken first.
#[test]
fn a_tool_that_fails_is_told() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = TempDir::new().expect("a folder");
    let tool = folder.path().join("llvm-profgen");
    std::fs::write(&tool, "#!/bin/sh\necho 'it broke' >&2; exit 3\n").expect("written");
    std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).expect("made executable");
    let output = Command::new(env!("CARGO_BIN_EXE_ptflow"))
        .arg("profile")
        .arg(sample().join("perf.data"))
        .arg("--images")
        .arg(sample())
        .args(["--format", "llvm", "--via", "llvm-profgen"])
        .env("PATH", format!("{}:/usr/bin:/bin", folder.path().display()))
        .output()
        .expect("ptflow runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{error}");
    assert!(error.contains(&format!("{}: it broke", tool.display())), "{error}");
}

/// Two binaries of one name: each has a file of its own in the folder, and in it what it has alone.
#[test]
fn several_binaries_are_several_files() {
    let folder = TempDir::new().expect("a folder");
    let other = folder.path().join("other");
    std::fs::create_dir(&other).expect("a folder");
    // The same program by another build id.
    let program = std::fs::read(sample().join("requests")).expect("the program");
    let file = object::File::parse(&*program).expect("an ELF file");
    let id = file.build_id().expect("notes").expect("a build id").to_owned();
    let other_id: Vec<u8> = id.iter().map(|byte| !byte).collect();
    for name in ["requests", "perf.data"] {
        let mut bytes = std::fs::read(sample().join(name)).expect("a file");
        let found: Vec<usize> =
            bytes.windows(id.len()).enumerate().filter(|(_, own)| *own == id).map(|(at, _)| at).collect();
        assert!(!found.is_empty(), "{name} tells the build id");
        for at in found {
            bytes[at..at + id.len()].copy_from_slice(&other_id);
        }
        std::fs::write(other.join(name), bytes).expect("written");
    }
    let out = folder.path().join("out");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let (capture, images) = (text(&other.join("perf.data")), text(&other));
    let to = format!("{}/", text(&out));
    let args = [&*capture, "--images", &images, "--format", "bolt-preaggregated", "-o", &to];
    let output = ptflow(&["profile"], &args);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    succeed(output);
    let entries = std::fs::read_dir(&out).expect("the folder is made");
    let files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    assert_eq!(files.len(), 2, "{files:?}");
    let alone = succeed(ptflow(&["profile"], &["--format", "bolt-preaggregated"]));
    for file in &files {
        let name = file.file_name().and_then(|name| name.to_str()).expect("UTF-8");
        assert!(
            name == "requests" || name.strip_prefix("requests.").is_some_and(|id| id.len() == 40),
            "{name}"
        );
        assert!(std::fs::read(file).expect("a file") == alone, "{name}");
        assert!(told.contains(&format!("ptflow: wrote {}, of ", file.display())), "{told}");
    }
    // One file for all: nothing to put into a folder.
    assert_eq!(ptflow(&["profile"], &["-o", &to]).status.code(), Some(2));
}

/// Every instruction is some function's own, and of one stack; pprof's message is not empty.
#[test]
fn stacks_have_all_instructions() {
    let folder = TempDir::new().expect("a folder");
    let report = folder.path().join("report");
    let profile = |format: &str| {
        let report = report.to_str().expect("UTF-8");
        succeed(ptflow(&["profile"], &["--quiet", "--format", format, "--report", report]))
    };
    let functions = String::from_utf8(profile("functions")).expect("text");
    let folded = String::from_utf8(profile("folded")).expect("text");
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&report).expect("a report")).expect("JSON");
    let all = report["instructions"].as_u64().expect("a number");
    let sum = |line: &str, field: fn(&str) -> Option<&str>| -> u64 {
        field(line).and_then(|text| text.parse().ok()).expect("a number")
    };
    let folded = folded.lines().map(|line| sum(line, |line| line.rsplit(' ').next()));
    assert_eq!(folded.sum::<u64>(), all);
    let rows: Vec<&str> = functions.lines().filter(|line| !line.starts_with('#')).collect();
    let own: u64 = rows.iter().map(|line| sum(line, |line| line.split('\t').nth(2))).sum();
    assert!(own <= all && own > all / 10 * 9, "{own} of {all} in functions");
    // As calls counts it: 400 requests.
    let calls = json(ptflow(&["calls"], &["--function", "handle_request", "--json"]));
    let row = rows.iter().find(|row| row.starts_with("handle_request\t")).expect("the function");
    assert_eq!(Some(sum(row, |line| line.split('\t').nth(1))), calls["count"].as_u64());
    assert_eq!(profile("pprof")[..2], [0x1f, 0x8b]);
}

/// The tables of conditional branches: each branch as the recorder saw it go, each function with those that lie in it.
#[test]
fn branches_went_where_the_truth_says() {
    let table = |args: &[&str]| -> Vec<Vec<String>> {
        let text = String::from_utf8(succeed(ptflow(&["profile"], args))).expect("text");
        let rows = text.lines().filter(|line| !line.starts_with('#'));
        rows.map(|line| line.split('\t').map(str::to_owned).collect()).collect()
    };
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let mut truly: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for line in truth().lines().filter(|line| line.starts_with("jcc\t")) {
        let fields: Vec<&str> = line.split('\t').collect();
        let ways = truly.entry(fields[1].to_owned()).or_default();
        *ways = (ways.0 + number(fields[3]), ways.1 + number(fields[4]));
    }
    let branches = table(&["--format", "branches", "--addresses", "runtime"]);
    let found = branches.iter().map(|row| (row[1].clone(), (number(&row[2]), number(&row[3]))));
    assert_eq!(found.collect::<BTreeMap<_, _>>(), truly);
    assert_eq!(branches.len(), truly.len());
    // Those of a function by the symbol table: name, branches, never taken, always taken.
    let functions = functions();
    let bias = table(&["--format", "bias"]);
    let mut compared = 0;
    for name in ["handle_request", "main"] {
        let (start, end) = functions
            .iter()
            .find_map(|(start, (end, names))| names.iter().any(|own| own == name).then_some((*start, *end)))
            .expect("the function");
        let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("an address");
        let own: Vec<_> = truly.iter().filter(|(at, _)| (start..end).contains(&hex(at))).collect();
        let names = branches.iter().filter(|row| row[0] == name).map(|row| &row[1]);
        assert!(names.eq(own.iter().map(|branch| branch.0)), "{name}");
        let count = |is: fn(&(u64, u64)) -> bool| own.iter().filter(|branch| is(branch.1)).count() as u64;
        let expected = [
            own.len() as u64,
            count(|ways| ways.0 == 0),
            count(|ways| ways.1 == 0),
            own.iter().map(|b| b.1.0).sum(),
            own.iter().map(|b| b.1.1).sum(),
        ];
        let Some(row) = bias.iter().find(|row| row[0] == name) else {
            assert!(own.is_empty(), "{name}");
            continue;
        };
        assert_eq!(row[2..7].iter().map(|text| number(text)).collect::<Vec<_>>(), expected, "{name}");
        let rarer = own.iter().map(|branch| branch.1.0.min(branch.1.1)).max();
        assert_eq!(rarer, Some(number(&row[8]).min(number(&row[9]))), "{name}");
        compared += 1;
    }
    assert!(compared > 0);
    // All of them: as many as there are, and none twice.
    let sum = |column: usize| bias.iter().map(|row| number(&row[column])).sum::<u64>();
    let count = |is: fn(&(u64, u64)) -> bool| truly.values().filter(|ways| is(ways)).count() as u64;
    assert_eq!(
        (sum(2), sum(3), sum(4)),
        (truly.len() as u64, count(|ways| ways.0 == 0), count(|ways| ways.1 == 0))
    );
    // The same of a table of edges, whose functions the binary names.
    let folder = TempDir::new().expect("a folder");
    let edges = folder.path().join("edges");
    std::fs::write(&edges, succeed(ptflow(&["profile"], &[]))).expect("written");
    let program = sample().join("requests");
    let of_table = Command::new(env!("CARGO_BIN_EXE_ptflow"))
        .args(["profile", "--format", "bias", "--binary", program.to_str().expect("UTF-8")])
        .arg(&edges)
        .output()
        .expect("ptflow runs");
    assert_eq!(succeed(of_table), succeed(ptflow(&["profile"], &["--format", "bias"])));
}

/// The check: of what was traced all fits; one record that the program cannot have made is named.
#[test]
fn a_profile_is_checked_against_the_binary() {
    let program = sample().join("requests");
    let program = program.to_str().expect("UTF-8");
    let output = ptflow(&["profile"], &["--format", "bolt-preaggregated"]);
    let verdict = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(verdict.contains(" records fit the binary; flow is conserved at all "), "{verdict}");
    let folder = TempDir::new().expect("a folder");
    let table = folder.path().join("edges");
    let edges = String::from_utf8(succeed(ptflow(&["profile"], &[]))).expect("text");
    let check = |edges: &str| {
        std::fs::write(&table, edges).expect("written");
        let table = table.to_str().expect("UTF-8");
        let output = Command::new(env!("CARGO_BIN_EXE_ptflow"))
            .args(["profile", table, "--check", program, "-o", "/dev/null"])
            .output()
            .expect("ptflow runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (status, verdict) = check(&edges);
    assert_eq!(status, Some(0), "{verdict}");
    assert!(verdict.contains(" records fit"), "{verdict}");
    // A direct call led one byte further.
    let call = edges.lines().find(|line| line.starts_with("call\t")).expect("a call");
    let (start, counts) = call.split_at(call.match_indices('\t').nth(2).expect("a third tab").0);
    let (image, to) = start.rsplit_once("0x").expect("an address");
    let to = u64::from_str_radix(to, 16).expect("hex") + 1;
    let (status, verdict) = check(&edges.replace(call, &format!("{image}{to:#x}{counts}")));
    assert_eq!(status, Some(1), "{verdict}");
    assert!(verdict.contains("records do not fit the binary, first branch "), "{verdict}");
    assert!(verdict.contains("the branch goes elsewhere"), "{verdict}");
}

#[test]
fn a_binary_is_chosen_by_path_or_build_id() {
    let profile =
        |binary: &str| ptflow(&["profile"], &["--format", "bolt-preaggregated", "--binary", binary]);
    let program = sample().join("requests");
    let by_path = succeed(profile(program.to_str().expect("UTF-8")));
    assert!(by_path == succeed(ptflow(&["profile"], &["--format", "bolt-preaggregated"])));
    let edges = String::from_utf8(succeed(ptflow(&["profile"], &[]))).expect("text");
    let build_id =
        edges.lines().last().and_then(|line| line.split('\t').nth(1)?.split(':').next()).expect("an image");
    assert!(by_path == succeed(profile(build_id)));
    let refused = profile("no-such-binary");
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no-such-binary is no binary of this capture"));
}
