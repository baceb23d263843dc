//! What the writer writes, the reader reads, and perf takes without a word.

mod kit;

use kit::recording::{BUILD_ID, LIBRARY, PROGRAM, TIME, trace};
use ptflow_decoder::stream::Break;
use ptflow_decoder::units::{Ns, Tsc};
use ptflow_perf_import::images::{ImageSearch, ImageStore, Status};
use ptflow_perf_import::record::kind;
use ptflow_perf_import::sideband::SwitchKind;
use ptflow_perf_import::{Capture, Cpu, PerfFile, Pid, Tid};
use std::path::PathBuf;

fn written() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("perf.data");
    std::fs::write(&path, kit::recording::bytes()).unwrap();
    (dir, path)
}

#[test]
fn a_recording_comes_back_whole() {
    let (_dir, path) = written();
    let file = PerfFile::open(&path).unwrap();
    let capture = Capture::read(&file).unwrap();
    assert_eq!(capture.notes, [""; 0]);
    assert_eq!(capture.config.time, Some(TIME));
    assert_eq!((capture.config.mtc, capture.config.mtc_period, capture.config.cyc), (true, 3, false));
    assert_eq!((capture.config.tsc_ctc_ratio, capture.config.max_nonturbo_ratio), (Some((250, 2)), 25));
    assert_eq!(capture.config.cpu.map(|cpu| cpu.model), Some(158));
    assert_eq!(capture.machine.cmdline.as_deref(), Some("recorder -- program"));
    assert_eq!(capture.time, Some((1_000_000_000, 1_000_000_610)));
    assert_eq!((capture.aux.records, capture.aux.truncated), (4, 1));

    let (first, second) = (trace(2_500), trace(3_000));
    let len = first.len() as u64;
    let pieces: Vec<_> = capture.streams[0]
        .trace
        .pieces
        .iter()
        .map(|piece| (piece.offset.0, piece.bytes, piece.break_before, piece.reference))
        .collect();
    let expected = [
        (0, &first[..], Some(Break::Start), Some(Tsc(2_500))),
        (len, &second[..16], None, Some(Tsc(3_000))),
        (len + 16, &second[16..], Some(Break::AuxTruncated), Some(Tsc(3_000))),
    ];
    assert_eq!(pieces, expected);
    assert_eq!(capture.streams[1].trace.pieces[0].bytes, trace(2_600));
    let ids: Vec<_> = capture.streams.iter().map(|stream| (stream.tid, stream.pid, stream.cpu)).collect();
    assert_eq!(ids, [(Some(Tid(100)), Some(Pid(100)), None), (Some(Tid(101)), Some(Pid(100)), None)]);

    let worker = &capture.processes.get(Pid(100)).unwrap().lives[&Tid(101)];
    assert_eq!((worker.started, worker.ended), (Some(Ns(1_000_000_500)), Some(Ns(1_000_000_600))));
    assert_eq!(capture.thread_name(Pid(100), Tid(101)), "worker");
    assert_eq!(capture.processes.get(Pid(200)).unwrap().comm, "other");
    let switches: Vec<_> =
        capture.switches[1..].iter().map(|s| (s.time.0 - 1_000_000_500, s.cpu, s.what)).collect();
    let (came, left) = (SwitchKind::In { previous: None }, SwitchKind::Out { preempted: false, next: None });
    assert_eq!(capture.switches[0].what, SwitchKind::TraceStart);
    assert_eq!(switches, [(10, Some(Cpu(1)), came), (95, Some(Cpu(1)), left)]);
}

#[test]
fn address_spaces_follow_the_process() {
    let (_dir, path) = written();
    let file = PerfFile::open(&path).unwrap();
    let capture = Capture::read(&file).unwrap();
    let store = ImageStore::load(&capture, &ImageSearch::default());
    let program = &store.files()[0];
    assert_eq!(program.mapped.path, PROGRAM);
    assert_eq!(program.mapped.build_id.as_deref(), Some(&BUILD_ID[..]));
    let looked = vec![PathBuf::from(PROGRAM)];
    assert_eq!(program.status, Status::Missing { looked });
    assert_eq!(store.files()[2].status, Status::NoFile);

    let path_of = |image| store.file(image).unwrap().mapped.path.as_str();
    let versions = |pid| {
        let spaces = store.address_spaces(pid);
        let version = |(from, space): &(Tsc, ptflow_decoder::image::AddressSpace)| {
            let mappings = space.mappings().iter().map(|m| (m.start.0, m.end.0, path_of(m.image).to_owned()));
            (TIME.to_ns(*from).0, mappings.collect::<Vec<_>>())
        };
        spaces.versions().iter().map(version).collect::<Vec<_>>()
    };
    let (program, library) = (PROGRAM.to_owned(), LIBRARY.to_owned());
    let vdso = (0x7fff_0000_0000, 0x7fff_0000_2000, "[vdso]".to_owned());
    let text = (0x40_1000, 0x40_3000, program.clone());
    let parent = vec![text.clone(), (0x7f00_0000_1000, 0x7f00_0000_4000, library.clone()), vdso.clone()];
    assert_eq!(versions(Pid(100)), [(1_000_000_000, parent.clone())]);
    let overlapped = vec![
        text,
        (0x7f00_0000_1000, 0x7f00_0000_2000, library.clone()),
        (0x7f00_0000_2000, 0x7f00_0000_3000, program.clone()),
        (0x7f00_0000_3000, 0x7f00_0000_4000, library),
        vdso,
    ];
    let after_exec = vec![(0x50_1000, 0x50_3000, program)];
    let child = versions(Pid(200));
    // Times go through TSC ticks of 0.4 ns.
    let at: Vec<u64> = child.iter().map(|version| version.0.saturating_sub(1_000_000_500)).collect();
    assert!(at[0] == 0 && at[1].abs_diff(30) <= 1 && at[2].abs_diff(40) <= 1, "{at:?}");
    assert_eq!(
        child.into_iter().map(|version| version.1).collect::<Vec<_>>(),
        [parent, overlapped, after_exec]
    );
    // The program at three load addresses of one process is three images of one file.
    let images: std::collections::BTreeSet<_> = store
        .address_spaces(Pid(200))
        .versions()
        .iter()
        .flat_map(|(_, space)| space.mappings().to_vec())
        .filter(|mapping| path_of(mapping.image) == PROGRAM)
        .map(|mapping| (mapping.image, mapping.bias()))
        .collect();
    assert_eq!(images.len(), 3);
}

#[test]
fn a_killed_recording_is_read_to_its_end() {
    let (_dir, path) = written();
    let bytes = std::fs::read(&path).unwrap();
    let whole = PerfFile::open(&path).unwrap();
    let end = whole.records().last().map(|last| last.offset.0 as usize + 8 + last.body.len()).unwrap();
    // perf fills in the data's size, and writes the features, when it ends.
    let mut killed = bytes[..end].to_vec();
    killed[48..56].fill(0);
    killed[72..104].fill(0);
    std::fs::write(&path, &killed).unwrap();
    let file = PerfFile::open(&path).unwrap();
    let capture = Capture::read(&file).unwrap();
    assert_eq!(capture.notes, ["the recording was not ended properly: no feature sections"]);
    assert_eq!(file.records().count(), whole.records().count());
    assert_eq!(capture.streams.len(), 2);
    // Cut in the middle of the trace.
    let cut = whole.records().filter(|record| record.kind == kind::AUXTRACE).nth(1).unwrap();
    std::fs::write(&path, &killed[..cut.offset.0 as usize + 8 + cut.body.len() + 10]).unwrap();
    let file = PerfFile::open(&path).unwrap();
    let capture = Capture::read(&file).unwrap();
    assert_eq!(capture.streams[0].trace.pieces.last().unwrap().bytes, &trace(3_000)[..10]);
    assert_eq!(capture.notes.len(), 3, "{:?}", capture.notes);
}

#[test]
fn a_damaged_spot_does_not_cost_the_trace_behind_it() {
    let (_dir, path) = written();
    let mut bytes = std::fs::read(&path).unwrap();
    let file = PerfFile::open(&path).unwrap();
    let spot = file.records().nth(4).unwrap().offset.0 as usize;
    drop(file);
    // A size of 0 in the middle of the sideband.
    bytes[spot + 6..spot + 8].fill(0);
    std::fs::write(&path, &bytes).unwrap();
    let file = PerfFile::open(&path).unwrap();
    let capture = Capture::read(&file).unwrap();
    let len = trace(0).len() as u64;
    assert_eq!(capture.streams.iter().map(|stream| stream.trace.len()).collect::<Vec<_>>(), [2 * len, len]);
    assert!(capture.notes[0].contains("are no records"), "{:?}", capture.notes);
}

#[test]
fn perf_reads_it_without_complaint() {
    let (dir, _) = written();
    let complaints = |args: &[&str]| {
        let output = std::process::Command::new("perf").args(args).current_dir(dir.path()).output();
        let Ok(output) = output else {
            println!("skipped: no perf");
            return None;
        };
        let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
        Some((output.status.success(), complaints, String::from_utf8_lossy(&output.stdout).into_owned()))
    };
    let Some((success, complaints_header, header)) =
        complaints(&["report", "--header-only", "-i", "perf.data"])
    else {
        return;
    };
    assert!(success && complaints_header.is_empty(), "{complaints_header}");
    for expected in [
        "# cpuid : GenuineIntel,6,158,10",
        "# nrcpus online : 4",
        "# cmdline : recorder -- program",
        "name = intel_pt//u",
        "# pmu mappings: intel_pt = 8",
        "# time of first sample : 1.000000",
        "# contains AUX area data",
    ] {
        assert!(header.contains(expected), "{expected} in {header}");
    }
    let (success, dump_complaints, dump) = complaints(&["script", "-D", "-i", "perf.data"]).unwrap();
    // The full buffer that the recording tells of, and nothing else.
    assert_eq!((success, dump_complaints.trim()), (true, "Warning:\nAUX data lost 1 times out of 4!"));
    let packets = dump.matches("PSBEND").count();
    assert_eq!(packets, 3, "perf finds the packets of every chunk");
    let (success, list_complaints, list) = complaints(&["buildid-list", "-i", "perf.data"]).unwrap();
    assert!(success && list_complaints.is_empty(), "{list_complaints}");
    let hex: String = BUILD_ID.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(list.contains(&format!("{hex} {PROGRAM}")), "{list}");
}
