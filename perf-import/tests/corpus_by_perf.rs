//! The decoder's corpus (`decoder/tests/corpus`) by perf's own decoder: every instruction that it finds.
//!
//! The trace of each text goes into a perf.data file beside an image with the program, and `perf script` tells the
//! instructions. perf knows no errata but a few, and has defects of its own: texts on which it is no judge are listed.

#[path = "../../decoder/tests/corpus/case.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod case;
mod kit;

use case::Case;
use ptflow_decoder::units::Tsc;
use ptflow_perf_import::Tid;
use ptflow_perf_import::write::PerfWriter;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

/// Where each stretch of the program lies in the image's file: page by page, behind the ELF header's.
const PAGE: u64 = 0x1000;

/// Behind an error it counts other instructions: the one where it noticed, or those up to its own next sure point.
const ERRORS: &str = "it counts other instructions around an error";
const ERRATUM: &str = "it does not know the erratum";

/// Texts on which perf (6.1) finds other instructions, and why.
const OTHER: &[(&str, &str)] = &[
    ("bad-ip", ERRORS),
    ("bad-ip-bytes", ERRORS),
    ("bad-packet", ERRORS),
    ("class-far", "it pushes at a far CALL and pops at a far RET"),
    ("class-jmpabs", "it does not know the instruction"),
    ("class-syscall", "it looks for kernel code in the kernel's image"),
    ("class-vm-entry", "it takes non-root mode for another machine"),
    ("event-next-ip", "it counts the branch as executed"),
    ("loop-endless", ERRORS),
    ("loop-endless-tnt", ERRORS),
    ("mode-16", "it takes the mode from the image, not from MODE.Exec"),
    ("mode-change", "it takes the mode from the image, not from MODE.Exec"),
    ("no-image-stack", ERRORS),
    ("off-cr3", "it does not look for MOV CR3 at TIP.PGD"),
    ("off-direct", "it wants the filters as text in AUXTRACE_INFO"),
    ("off-jcc", "it wants the filters as text in AUXTRACE_INFO"),
    ("off-unreachable", ERRORS),
    ("ovf-cyc-skd007", ERRATUM),
    ("ovf-tip-skd010", ERRATUM),
    ("packet-forms", "6.1 does not know TRIG"),
    ("psb-eaten", "it looks for no PSB in the bytes before"),
    ("resync-tip", ERRORS),
    ("ret-depth-more", "its return stack has no bottom"),
    ("ret-empty", ERRORS),
    ("ret-not-taken", ERRORS),
    ("ret-overflow", "it keeps the return stack across OVF"),
    ("tip-deferred-far", "it looks for kernel code in the kernel's image"),
    ("tip-mismatch", ERRORS),
    ("tnt-mismatch", ERRORS),
    ("torn", "the file's padding completes the packet"),
    ("trigger", "6.1 does not know TRIG"),
    ("tsx-bdm64", ERRATUM),
    ("vm-entry-skd022", ERRATUM),
];

#[test]
fn instructions() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../decoder/tests/corpus/cases");
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).expect("the corpus").map(|entry| entry.expect("a file").path()).collect();
    paths.sort();
    let (mut agreed, mut complaints) = (0, String::new());
    for path in paths {
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let case = Case::parse(&std::fs::read_to_string(&path).expect("text")).expect("a text");
        let Some(found) = by_perf(&case) else { return };
        let expected = case.instructions();
        let why = OTHER.iter().find(|(other, _)| *other == name).map(|(_, why)| *why);
        match (found == expected, why) {
            (true, None) => agreed += 1,
            (false, None) => {
                let _ = writeln!(complaints, "{name}:\n  perf     {found:x?}\n  expected {expected:x?}");
            }
            // Another version of perf may know more.
            (true, Some(why)) => println!("{name}: perf agrees, though {why}"),
            (false, Some(_)) => {}
        }
    }
    println!("perf agrees on {agreed} texts, and is no judge of {}", OTHER.len());
    assert!(complaints.is_empty(), "\n{complaints}");
}

/// The instructions that perf finds; `None` where there is no perf.
fn by_perf(case: &Case) -> Option<Vec<u64>> {
    let dir = tempfile::tempdir().expect("a folder");
    let image = dir.path().join("program");
    let mut trace = case.bytes();
    trace.resize(trace.len().next_multiple_of(8), 0);
    let mut config = kit::config(0x2001, false);
    if let Some(cpu) = case.config.cpu {
        config.cpuid = format!("GenuineIntel,{},{},{}", cpu.family, cpu.model, cpu.stepping);
    }
    let mut file = elf_header();
    (|| {
        let mut w = PerfWriter::create(&dir.path().join("perf.data"), config)?;
        let who = kit::who(100, 100, 0, 0);
        w.comm(who, "program", true)?;
        let mut mapped = Vec::new();
        for line in &case.listing {
            let page = line.addr & !(PAGE - 1);
            if mapped.last() != Some(&page) {
                let offset = file.len() as u64;
                w.mmap2(who, page, PAGE, offset, image.to_str().expect("UTF-8"))?;
                file.resize(file.len() + PAGE as usize, 0);
                mapped.push(page);
            }
            let at = file.len() - (PAGE - (line.addr - page)) as usize;
            file[at..at + line.bytes.len()].copy_from_slice(&line.bytes);
        }
        w.itrace_start(kit::who(100, 100, 0, 900))?;
        w.auxtrace(0, Some(Tid(100)), None, 0, Tsc(1), &trace)?;
        w.aux(kit::who(100, 100, 0, 1_000), 0, trace.len() as u64, 0)?;
        w.finish()
    })()
    .expect("written");
    std::fs::write(&image, &file).expect("written");
    let args = ["script", "-i", "perf.data", "--itrace=i1i", "-F", "ip"];
    let output = match Command::new("perf").args(args).current_dir(dir.path()).output() {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: perf: {error}");
            return None;
        }
    };
    let text = String::from_utf8_lossy(&output.stdout);
    Some(
        text.lines()
            .filter_map(|line| u64::from_str_radix(line.split_whitespace().next()?, 16).ok())
            .collect(),
    )
}

/// A page with an ELF header that says no more than "64 bits, x86".
fn elf_header() -> Vec<u8> {
    let mut file = vec![0; PAGE as usize];
    file[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0");
    file[20] = 1;
    file[52] = 64; // e_ehsize
    file[54] = 56; // e_phentsize
    file[58] = 64; // e_shentsize
    file
}
