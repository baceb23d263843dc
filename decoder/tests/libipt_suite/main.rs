//! Against libipt's own test suite, as `.ci/libipt-suite` compiles it: every packet, the flow and the times.
//!
//! It is the folder `libipt-suite` in the one that `PTFLOW_CAPTURES` names. What libipt's tools must print is read from the suite's own files. Cases on
//! which we differ are listed here and explained in docs/LIBIPT.md; one that agrees must not be listed.

mod case;
mod events;
mod flow;
mod packets;
mod times;

use case::Case;
use std::fmt::Write as _;
use std::path::Path;

/// Cases in which libipt's flow is another; names without the CPU.
const OTHER_FLOW: [&str; 22] = [
    "bdm64-tnt-cond-xabort",
    "bdm64-tnt-ind_call-xabort",
    "pip-pip_mov_cr3-fail",
    "psb-fup-psbend",
    "psb-mnt-fup-psbend",
    "ptet",
    "ptet-evd_cr2-cfe_iret",
    "ptet-evd_cr2-evd_vmxq",
    "ptet-evd_vmxq-cfe_intr",
    "ptet-evd_vmxr-cfe_rsm",
    "ptet-evd_vmxr-evd-cr2",
    "ptxed-resync-bad_query-fup-tip",
    "ptxed-resync-bad_query-ovf",
    "ptxed-resync-bad_query-tip",
    "ptxed-resync-nomap-fup-tip",
    "ptxed-resync-nomap-mode_tsx-eos",
    "ptxed-resync-nomap-mode_tsx-tip_pgd",
    "ptxed-resync-nomap-tip",
    "ptxed-resync-nomap-tip_pgd",
    "ptxed-resync-nomap-tip_pge",
    "ptxed-resync-psb-bad_status-psb",
    "syscall-sysret",
];
/// Errata that `ptdump` undoes while it prints; our walk does.
const OTHER_PACKETS: [&str; 2] = ["skd007", "skz84"];
/// The time stands still where libipt's runs back.
const OTHER_TIMES: [&str; 1] = ["tsc-tma-mtc-tsc"];

/// Runs a check that gives its complaint, or `None` where the suite has no expectation.
fn for_each_case(differ: &[&str], check: impl Fn(&Case) -> Option<String>) {
    let folder =
        std::env::var_os("PTFLOW_CAPTURES").map(|captures| Path::new(&captures).join("libipt-suite"));
    let Some(folder) = folder.filter(|folder| folder.is_dir()) else {
        println!("skipped: PTFLOW_CAPTURES names no folder with libipt-suite in it");
        return;
    };
    let mut folders: Vec<_> =
        std::fs::read_dir(folder).expect("the suite").map(|entry| entry.expect("a case").path()).collect();
    folders.sort();
    let (mut checked, mut complaints) = (0, String::new());
    for folder in folders {
        let case = Case::read(&folder);
        let Some(complaint) = check(&case) else { continue };
        checked += 1;
        match (complaint.is_empty(), differ.contains(&case.name.as_str())) {
            (true, true) => _ = writeln!(complaints, "== {} agrees, though it is listed", case.name),
            (false, false) => _ = writeln!(complaints, "== {}\n{complaint}", folder.display()),
            _ => {}
        }
    }
    println!("{checked} cases");
    assert!(checked > 0, "no case was checked");
    assert!(complaints.is_empty(), "{complaints}");
}

#[test]
fn packets() {
    for_each_case(&OTHER_PACKETS, packets::check);
}

#[test]
fn flow() {
    for_each_case(&OTHER_FLOW, flow::check);
}

#[test]
fn times() {
    for_each_case(&OTHER_TIMES, times::check);
}
