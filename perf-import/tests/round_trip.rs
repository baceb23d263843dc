//! What the writer writes, the reader reads; and what lies in between is what the kernel's headers say.

mod kit;

use kit::*;
use ptflow_decoder::config::{CpuModel, PtConfig};
use ptflow_decoder::stream::Break;
use ptflow_decoder::units::{Ns, Tsc};
use ptflow_perf_import::images::{ImageSearch, ImageStore, Status};
use ptflow_perf_import::process::SpaceEvent;
use ptflow_perf_import::streams::PtStream;
use ptflow_perf_import::write::PerfWriter;
use ptflow_perf_import::{Capture, CaptureError, Cpu, PerfFile, Pid, Tid};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::PathBuf;
use tempfile::TempDir;

/// The story in a folder of its own, beside the image that it maps.
struct Recorded {
    folder: TempDir,
    story: Story,
}

impl Recorded {
    fn new(per_cpu: bool) -> Self {
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("server"), elf(&[0xc3; 16])).unwrap();
        let story = story(&folder.path().join("server"), per_cpu);
        std::fs::write(folder.path().join("perf.data"), &story.bytes).unwrap();
        Self { folder, story }
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("server")
    }

    fn open(&self) -> PerfFile {
        PerfFile::open(&self.folder.path().join("perf.data")).unwrap()
    }
}

/// The whole file from a writer.
fn file_of(w: PerfWriter<Cursor<Vec<u8>>>) -> (TempDir, PerfFile) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("perf.data");
    std::fs::write(&path, w.finish().unwrap().into_inner()).unwrap();
    (folder, PerfFile::open(&path).unwrap())
}

/// Offset, bytes, break before, reference.
type Pieces = Vec<(u64, Vec<u8>, Option<Break>, Option<u64>)>;
/// Process id, name, threads with their names.
type Names<'a> = Vec<(u32, &'a str, Vec<(u32, &'a str)>)>;
/// Since when; first address, end, path of each mapping.
type Versions<'a> = Vec<(Tsc, Vec<(u64, u64, &'a str)>)>;

fn pieces(stream: &PtStream<'_>) -> Pieces {
    let piece = stream.trace.pieces.iter();
    piece
        .map(|p| (p.offset.0, p.bytes.to_vec(), p.break_before, p.reference.map(|reference| reference.0)))
        .collect()
}

/// Where the story's streams begin anew: chunks end where the writer was told to, records where they were truncated.
fn expected_pieces(story: &Story) -> [Pieces; 3] {
    let piece = |stream: usize, from: usize, to: usize, chunk: u64, break_before| {
        (from as u64, story.traces[stream][from..to].to_vec(), break_before, Some(1_000_000 + chunk))
    };
    [
        vec![piece(0, 0, 5, 0, Some(Break::Start)), piece(0, 5, 6, 5, None), piece(0, 6, 19, 6, None)],
        vec![
            piece(1, 0, 50, 0, Some(Break::Start)),
            piece(1, 50, 64, 0, Some(Break::AuxTruncated)),
            piece(1, 64, 101, 64, None),
            piece(1, 101, 124, 101, Some(Break::AuxTruncated)),
        ],
        vec![piece(2, 0, 16, 0, Some(Break::Start)), piece(2, 100, 108, 100, Some(Break::Missing))],
    ]
}

#[test]
fn streams_of_threads() {
    let recorded = Recorded::new(false);
    let file = recorded.open();
    let capture = Capture::read(&file).unwrap();
    let owners = [(0, 100, 100), (1, 200, 200), (2, 201, 200)];
    assert_eq!(capture.streams.len(), 3);
    for ((stream, expected), (idx, tid, pid)) in
        capture.streams.iter().zip(expected_pieces(&recorded.story)).zip(owners)
    {
        assert_eq!(
            (stream.idx, stream.cpu, stream.tid, stream.pid),
            (idx, None, Some(Tid(tid)), Some(Pid(pid)))
        );
        assert_eq!(stream.name(), format!("tid {tid}"));
        assert_eq!(pieces(stream), expected);
    }
    assert_eq!(capture.trace_bytes(), 19 + 124 + 24);
    assert!(!capture.info.per_cpu && !capture.info.snapshot);
}

#[test]
fn streams_of_cpus() {
    let recorded = Recorded::new(true);
    let file = recorded.open();
    let capture = Capture::read(&file).unwrap();
    assert_eq!(capture.streams.len(), 3);
    for (index, (stream, expected)) in
        capture.streams.iter().zip(expected_pieces(&recorded.story)).enumerate()
    {
        let cpu = Some(Cpu(index as u32));
        assert_eq!((stream.idx, stream.cpu, stream.tid, stream.pid), (index as u32, cpu, None, None));
        assert_eq!(stream.name(), format!("cpu {index}"));
        assert_eq!(pieces(stream), expected);
    }
    assert!(capture.info.per_cpu);
}

#[test]
fn the_machine_and_the_sums() {
    let recorded = Recorded::new(false);
    let file = recorded.open();
    let capture = Capture::read(&file).unwrap();
    assert_eq!(capture.machine.cpuid.as_deref(), Some("GenuineIntel,6,158,10"));
    assert_eq!(capture.machine.cpudesc.as_deref(), Some("A CPU in words"));
    assert_eq!(capture.machine.cmdline.as_deref(), Some("perf record -e intel_pt//u a program"));
    assert_eq!(capture.time, Some((900, 9_000)));
    assert_eq!(capture.notes, [""; 0]);
    let counts = [(3, 3), (4, 1), (7, 3), (10, 3), (11, 8), (12, 2), (15, 2), (70, 1), (71, 8), (79, 1)];
    assert_eq!(capture.records, BTreeMap::from(counts));
    assert_eq!(file.len(), recorded.story.bytes.len() as u64);
}

#[test]
fn processes_and_threads() {
    let recorded = Recorded::new(false);
    let file = recorded.open();
    let capture = Capture::read(&file).unwrap();
    let names: Names<'_> = capture
        .processes
        .iter()
        .map(|(pid, process)| {
            let threads = process.threads.iter().map(|(tid, name)| (tid.0, name.as_str())).collect();
            (pid.0, process.comm.as_str(), threads)
        })
        .collect();
    let expected = [
        (100, "shell", vec![(100, "shell")]),
        (200, "server", vec![(200, "server"), (201, "worker")]),
        (300, "shell", vec![(300, "shell")]),
    ];
    assert_eq!(names, expected);
    assert_eq!(capture.thread_name(Pid(200), Tid(201)), "worker");
    assert_eq!(capture.processes.process_of(Tid(201)), Some(Pid(200)));
    assert_eq!(capture.processes.process_of(Tid(999)), None);

    let image = recorded.image().to_str().unwrap().to_owned();
    let files: Vec<_> =
        capture.processes.files().iter().map(|f| (f.path.as_str(), f.build_id.as_deref())).collect();
    let expected = [
        ("/no/such/shell", None),
        (image.as_str(), Some(&BUILD_ID[..])),
        ("/no/such/libc.so.6", Some(&SHORT_BUILD_ID[..])),
    ];
    assert_eq!(files, expected);

    // The exec was written after the mappings, but happened before them.
    let space = &capture.processes.get(Pid(200)).unwrap().space;
    let exec = space.iter().rposition(|event| matches!(event, SpaceEvent::Exec { .. })).unwrap();
    let mapped: Vec<_> = space[exec + 1..]
        .iter()
        .filter_map(|event| match event {
            SpaceEvent::Map(range) => {
                let path = capture.processes.files()[range.file.0 as usize].path.as_str();
                Some((range.addr, range.len, range.pgoff, path))
            }
            _ => None,
        })
        .collect();
    let expected = [
        (0x5555_0000_0000, 0x1000, 0, image.as_str()),
        (0x7fff_0000_1000, 0x3000, 0x1000, "/no/such/libc.so.6"),
    ];
    assert_eq!(mapped, expected);
}

#[test]
fn images_and_address_spaces() {
    let recorded = Recorded::new(false);
    let file = recorded.open();
    let capture = Capture::read(&file).unwrap();
    let store = ImageStore::load(&capture, &ImageSearch::default());
    let found: Vec<bool> = store.files().iter().map(|file| matches!(file.status, Status::Found(_))).collect();
    assert_eq!(found, [false, true, false]);
    assert_eq!(store.files()[1].status, Status::Found(recorded.image()));

    let spaces = |pid: u32| -> Versions<'_> {
        let spaces = store.address_spaces(Pid(pid));
        let version = |(from, space): &(Tsc, ptflow_decoder::image::AddressSpace)| {
            let mapping = |m: &ptflow_decoder::image::Mapping| {
                (m.start.0, m.end.0, store.file(m.image).unwrap().mapped.path.as_str())
            };
            (*from, space.mappings().iter().map(mapping).collect())
        };
        spaces.versions().iter().map(version).collect()
    };
    let image = recorded.image();
    let shell = vec![(0x40_0000, 0x40_1000, "/no/such/shell")];
    let server = vec![
        (0x5555_0000_0000, 0x5555_0000_1000, image.to_str().unwrap()),
        (0x7fff_0000_1000, 0x7fff_0000_4000, "/no/such/libc.so.6"),
    ];
    assert_eq!(spaces(100), [(Tsc(0), shell.clone())]);
    // The exec at 1,100 ns: TSC 2,000.
    assert_eq!(spaces(200), [(Tsc(0), shell.clone()), (Tsc(2_000), server)]);
    assert_eq!(spaces(300).last().unwrap().1, shell);

    let images = store.images();
    let server = store.address_spaces(Pid(200)).versions()[1].1.clone();
    let at = |ip: u64| {
        let mapping = server.find(ip.into())?;
        images.get(mapping.image)?.code_at(mapping.to_svma(ip.into()))
    };
    assert_eq!(at(0x5555_0000_0100), Some(&[0xc3; 16][..]));
    assert_eq!(at(0x5555_0000_0110), None);
    assert_eq!(at(0x7fff_0000_1000), None);
}

#[test]
fn settings() {
    let read = |event_config: u64| {
        let mut w = PerfWriter::new(Cursor::new(Vec::new()), config(event_config, false)).unwrap();
        w.auxtrace(0, Some(Tid(1)), None, 0, Tsc(1), &[1]).unwrap();
        let (_folder, file) = file_of(w);
        Capture::read(&file).unwrap().config
    };
    let usual = PtConfig {
        tsc: true,
        mtc: true,
        mtc_period: 3,
        cyc: false,
        ret_compression: true,
        branches: true,
        tsc_ctc_ratio: Some((168, 2)),
        max_nonturbo_ratio: 21,
        cpu: Some(CpuModel { family: 6, model: 158, stepping: 10 }),
        time: Some(TIME),
        event_trace: false,
        filters: Vec::new(),
    };
    assert_eq!(read(DEFAULT_EVENT), usual);
    assert_eq!(read(DEFAULT_EVENT | 0x2), PtConfig { cyc: true, ..usual.clone() });
    assert_eq!(read(DEFAULT_EVENT | 0x800), PtConfig { ret_compression: false, ..usual.clone() });
    assert_eq!(read(DEFAULT_EVENT | 1 << 31), PtConfig { event_trace: true, ..usual.clone() });
    assert_eq!(read(DEFAULT_EVENT & !0x600), PtConfig { tsc: false, mtc: false, ..usual.clone() });
    // BranchEn counts only beside the pass-through bit; without that the kernel sets it.
    assert_eq!(read(DEFAULT_EVENT & !0x2000), PtConfig { branches: false, ..usual.clone() });
    assert_eq!(read(DEFAULT_EVENT & !0x2001), usual);
    assert_eq!(usual.time.unwrap().to_ns(Tsc(2_000)), Ns(1_100));
}

/// Offsets: linux `include/uapi/linux/perf_event.h` and `tools/lib/perf/include/perf/event.h`.
#[test]
fn the_bytes_are_the_kernels() {
    let recorded = Recorded::new(false);
    let records = raw_records(&recorded.story.bytes);
    let of = |kind: u32| records.iter().filter(move |record| record.kind == kind);
    // pid, tid, time, CPU, id: behind everything else.
    let trailer = |body: &[u8]| {
        let at = body.len() - 32;
        let word = |index: usize| u64_at(body, at + 8 * index);
        assert!([1, 2].contains(&word(3)), "an id of one of the two events");
        (u32_at(body, at), u32_at(body, at + 4), word(1), word(2))
    };

    let comms: Vec<_> = of(3)
        .map(|r| {
            (u32_at(r.body, 0), u32_at(r.body, 4), text_at(r.body, 8), r.misc & 1 << 13 != 0, trailer(r.body))
        })
        .collect();
    let expected = [
        (100, 100, "shell", false, (100, 100, 0, 0)),
        (200, 200, "server", true, (200, 200, 1_100, 0)),
        (200, 201, "worker", false, (200, 201, 2_100, 2)),
    ];
    assert_eq!(comms, expected);

    let libc = of(10).nth(2).unwrap();
    assert_eq!((u32_at(libc.body, 0), u32_at(libc.body, 4)), (200, 200));
    let words: Vec<u64> = (1..=3).map(|index| u64_at(libc.body, 8 * index)).collect();
    assert_eq!(words, [0x7fff_0000_1000, 0x3000, 0x1000]);
    // Read and execute, private; user mode, no build id in the record.
    assert_eq!((u32_at(libc.body, 56), u32_at(libc.body, 60), libc.misc), (5, 2, 2));
    assert_eq!(text_at(libc.body, 64), "/no/such/libc.so.6");
    assert_eq!(trailer(libc.body), (200, 200, 1_300, 1));

    let tasks: Vec<_> = of(7)
        .chain(of(4))
        .map(|r| {
            let [pid, ppid, tid, ptid] = [0, 4, 8, 12].map(|at| u32_at(r.body, at));
            (pid, ppid, tid, ptid, u64_at(r.body, 16), trailer(r.body))
        })
        .collect();
    let expected = [
        (200, 100, 200, 100, 1_000, (100, 100, 1_000, 0)),
        (200, 200, 201, 200, 2_000, (200, 200, 2_000, 1)),
        (300, 100, 300, 100, 3_000, (100, 100, 3_000, 0)),
        (200, 200, 201, 201, 9_000, (200, 201, 9_000, 2)),
    ];
    assert_eq!(tasks, expected);

    let switches: Vec<_> = of(15)
        .map(|r| (u32_at(r.body, 0), u32_at(r.body, 4), r.misc & 1 << 13 != 0, trailer(r.body)))
        .collect();
    let expected = [(200, 201, true, (200, 200, 2_200, 2)), (200, 200, false, (200, 201, 2_201, 2))];
    assert_eq!(switches, expected);

    let starts: Vec<_> = of(12).map(|r| (u32_at(r.body, 0), u32_at(r.body, 4), trailer(r.body))).collect();
    assert_eq!(starts, [(100, 100, (100, 100, 900, 0)), (200, 200, (200, 200, 1_150, 1))]);

    let truncated: Vec<_> = of(11)
        .filter(|r| u64_at(r.body, 16) == 1)
        .map(|r| (u64_at(r.body, 0), u64_at(r.body, 8), trailer(r.body)))
        .collect();
    assert_eq!(truncated, [(0, 50, (200, 200, 1_600, 3)), (50, 51, (200, 200, 2_600, 3))]);

    // Sizes count the padding; every record of a file without compression is aligned.
    for record in of(71) {
        let (size, offset) = (u64_at(record.body, 0), u64_at(record.body, 8));
        let idx = u32_at(record.body, 24) as usize;
        assert_eq!((record.body.len(), size % 8, record.payload.len() as u64), (40, 0, size));
        assert_eq!(u64_at(record.body, 16), 1_000_000 + offset);
        assert_eq!((u32_at(record.body, 28), u32_at(record.body, 32)), (TIDS[idx], u32::MAX));
        let padding = record.payload.iter().rev().take_while(|byte| **byte == 0).count();
        let bytes = &record.payload[..record.payload.len() - padding];
        assert!(padding < 8);
        assert_eq!(bytes, &recorded.story.traces[idx][offset as usize..offset as usize + bytes.len()]);
    }
    assert!(records.iter().all(|record| record.body.len() % 8 == 0));
}

/// HEADER_AUXTRACE (18) lists where the AUXTRACE records lie.
#[test]
fn the_index_points_at_the_trace() {
    let recorded = Recorded::new(false);
    let file = recorded.open();
    let index = file.feature(18).unwrap();
    assert_eq!(u64_at(index, 0), 8);
    for entry in index[8..].chunks_exact(16) {
        let (offset, size) = (u64_at(entry, 0) as usize, u64_at(entry, 8));
        assert_eq!((u32_at(&recorded.story.bytes, offset), size), (71, 48));
    }
}

/// However a stream is cut into chunks and records, its bytes come back, with a break where a record was truncated.
#[test]
fn any_division_of_a_stream() {
    for seed in 1..=300 {
        let mut random = Random(seed);
        let len = 1 + random.below(400);
        let bytes = trace(seed, len);
        let mut w = PerfWriter::new(Cursor::new(Vec::new()), config(DEFAULT_EVENT, false)).unwrap();
        let mut cuts = Vec::new();
        let mut at = 0;
        while at < len {
            let size = (1 + random.below(90)).min(len - at);
            let truncated = random.below(3) == 0;
            w.aux(who(1, 1, 0, 1 + at as u64), at as u64, size as u64, u64::from(truncated)).unwrap();
            at += size;
            if truncated && at < len {
                cuts.push(at as u64);
            }
        }
        let mut at = 0;
        while at < len {
            let size = random.below(60).min(len - at);
            w.auxtrace(0, Some(Tid(1)), None, at as u64, Tsc(1), &bytes[at..at + size]).unwrap();
            at += size;
        }
        let (_folder, file) = file_of(w);
        let capture = Capture::read(&file).unwrap();
        let pieces = &capture.streams[0].trace.pieces;
        let read: Vec<u8> = pieces.iter().flat_map(|piece| piece.bytes).copied().collect();
        assert_eq!(read, bytes, "seed {seed}");
        let broken: Vec<(u64, Break)> =
            pieces.iter().filter_map(|piece| Some((piece.offset.0, piece.break_before?))).collect();
        let expected: Vec<_> = std::iter::once((0, Break::Start))
            .chain(cuts.into_iter().map(|cut| (cut, Break::AuxTruncated)))
            .collect();
        assert_eq!(broken, expected, "seed {seed}");
        let mut end = 0;
        for piece in pieces {
            assert_eq!(piece.offset.0, end, "seed {seed}");
            assert!(!piece.bytes.is_empty());
            end += piece.bytes.len() as u64;
        }
    }
}

#[test]
fn a_recording_without_trace_says_so() {
    let mut w = PerfWriter::new(Cursor::new(Vec::new()), config(DEFAULT_EVENT, false)).unwrap();
    w.comm(who(1, 1, 0, 1), "idle", true).unwrap();
    w.auxtrace(0, Some(Tid(1)), None, 0, Tsc(1), &[]).unwrap();
    let (_folder, file) = file_of(w);
    assert!(matches!(Capture::read(&file), Err(CaptureError::NoData(_))));
}

#[test]
fn a_record_too_long_is_refused() {
    let mut w = PerfWriter::new(Cursor::new(Vec::new()), config(DEFAULT_EVENT, false)).unwrap();
    let error = w.mmap2(who(1, 1, 0, 1), 0, 1, 0, &"/x".repeat(40_000)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    // Nothing of it is left over in what follows.
    w.comm(who(1, 1, 0, 1), "next", true).unwrap();
    w.auxtrace(0, Some(Tid(1)), None, 0, Tsc(1), &[1, 2, 3]).unwrap();
    let (_folder, file) = file_of(w);
    let capture = Capture::read(&file).unwrap();
    assert_eq!(capture.thread_name(Pid(1), Tid(1)), "next");
    assert_eq!(capture.records.get(&10), None);
}
