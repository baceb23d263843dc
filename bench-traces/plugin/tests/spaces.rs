//! Address spaces that change, and several of them: each process's branches are those that the recorder counted.

mod kit;

use kit::{Recording, compile, record};
use ptflow_bench_traces::options::{PtOptions, machine};
use ptflow_decoder::image::AddressSpaces;
use ptflow_decoder::profile::CodeAddr;
use ptflow_decoder::run::{Options, count};
use ptflow_decoder::units::{Svma, Tsc};
use ptflow_decoder::walk::{Context, Engine};
use ptflow_exporters::address::AddressNames;
use ptflow_exporters::edges;
use ptflow_perf_import::images::{ImageSearch, ImageStore};
use ptflow_perf_import::process::SpaceEvent;
use ptflow_perf_import::write::{PerfWriter, TraceForm, Who, WriterConfig};
use ptflow_perf_import::{Capture, Cpu, PerfFile, Pid, Tid};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tempfile::NamedTempFile;

struct Runtime<'s>(&'s AddressSpaces);

impl AddressNames for Runtime<'_> {
    fn name(&self, addr: CodeAddr) -> (Option<&str>, u64) {
        let runtime = addr.image.and_then(|image| {
            self.0.versions().iter().find_map(|(_, space)| space.avma(image, Svma(addr.addr)))
        });
        (None, runtime.map_or(addr.addr, |ip| ip.0))
    }
}

/// Sums of edges by runtime address.
type Edges = BTreeMap<(Option<String>, Option<String>, String), (u64, u64)>;

fn add(edges: &mut Edges, table: &str) {
    for row in edges::read(table.as_bytes()).expect("an edge table") {
        let sum = edges.entry((row.from, row.to, format!("{:?}", row.kind))).or_default();
        *sum = (sum.0 + row.taken, sum.1 + row.not_taken);
    }
}

fn truth(recordings: &[&Recording]) -> Edges {
    let mut edges = Edges::new();
    for recording in recordings {
        let path = recording.folder().join("truth.edges");
        add(&mut edges, &std::fs::read_to_string(path).expect("the recorder wrote it"));
    }
    edges
}

/// The edges of each process, the same by every engine, and nothing lost.
fn decoded(path: &Path) -> BTreeMap<Pid, Edges> {
    let file = PerfFile::open(path).expect("our own file");
    let capture = Capture::read(&file).expect("our own file");
    assert_eq!(capture.notes, [""; 0]);
    let store = ImageStore::load(&capture, &ImageSearch::default());
    let images = store.images();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
    let pids: BTreeSet<Pid> = capture.streams.iter().filter_map(|stream| stream.pid).collect();
    let spaces: BTreeMap<Pid, AddressSpaces> =
        pids.iter().map(|pid| (*pid, store.address_spaces(*pid))).collect();
    let mut found = BTreeMap::new();
    for pid in &pids {
        let mut of_engines = Vec::new();
        for (engine, unit_bytes) in [(Engine::Fast, 1 << 20), (Engine::Fast, 1), (Engine::Careful, 1 << 14)] {
            let streams = capture.streams.iter().filter(|stream| stream.pid == Some(*pid));
            let contexts: Vec<Context<'_, '_>> = streams
                .map(|stream| Context {
                    stream: &stream.trace,
                    images: &images,
                    spaces: &spaces[pid],
                    config: &capture.config,
                    owners: &[],
                })
                .collect();
            let counts = count(&contexts, &Options { pool: &pool, engine, unit_bytes, progress: &|_| {} });
            for ledger in &counts.ledgers {
                assert!(ledger.losses.is_empty(), "{engine:?}, {unit_bytes}: {:?}", ledger.losses);
            }
            let mut text = Vec::new();
            edges::write(&mut text, &counts.rows, &Runtime(&spaces[pid])).expect("a Vec takes all");
            let mut edges = Edges::new();
            add(&mut edges, std::str::from_utf8(&text).expect("text"));
            of_engines.push(edges);
        }
        assert!(of_engines.windows(2).all(|pair| pair[0] == pair[1]), "engines differ");
        found.extend(of_engines.pop().map(|edges| (*pid, edges)));
    }
    found
}

#[track_caller]
fn same(found: &Edges, truth: &Edges) {
    let differs = |(key, value): &(&_, &_)| truth.get(*key) != Some(*value);
    let wrong: Vec<_> = found.iter().filter(differs).take(5).collect();
    let missing: Vec<_> = truth.iter().filter(|(key, _)| !found.contains_key(*key)).take(5).collect();
    assert!(found == truth, "found {wrong:#?}, missing {missing:#?}");
}

fn path_of(file: &NamedTempFile<()>) -> &str {
    file.path().to_str().expect("UTF-8")
}

/// A library goes and another one comes in its place.
#[test]
fn a_library_in_the_place_of_another() {
    let program = compile("swapping.c", &["-ldl"]);
    let library = |variant: &str| compile("swapped.c", &["-shared", "-fPIC", variant]);
    let (first, second) = (library("-DVARIANT=1"), library("-DVARIANT=2"));
    let command = [path_of(&program), path_of(&first), path_of(&second)];
    for options in [PtOptions::default(), PtOptions { cyc: true, psb_period: 0, ..PtOptions::default() }] {
        let recording = record(&command, options);
        recording.explained();
        let path = recording.folder().join("perf.data");
        let file = PerfFile::open(&path).expect("our own file");
        let capture = Capture::read(&file).expect("our own file");
        let pid = capture.streams[0].pid.expect("a process");
        let store = ImageStore::load(&capture, &ImageSearch::default());
        let versions = store.address_spaces(pid).versions().len();
        assert!(versions >= 12, "{versions} versions: the libraries were never at one address");
        same(&decoded(&path)[&pid], &truth(&[&recording]));
    }
}

/// Writes recordings into one capture, each as a process of its own, or as one that executes one program after the other.
fn joined(folder: &Path, parts: &[&Recording], exec: bool) -> Vec<Pid> {
    let config = WriterConfig {
        cmdline: vec!["several".to_owned()],
        cpuid: machine::CPUID.to_owned(),
        cpudesc: "software recorder (emulated)".to_owned(),
        cpus: 64,
        event_config: PtOptions::default().event_config(),
        time: machine::TIME,
        tsc_ctc_ratio: machine::TSC_CTC_RATIO,
        max_nonturbo_ratio: machine::TSC_RATIO,
        per_cpu: false,
        form: TraceForm::Full,
    };
    let mut w = PerfWriter::create(&folder.join("perf.data"), config).expect("a file");
    let mut pids = Vec::new();
    let (mut offset, mut idx) = (0, 0);
    for part in parts {
        let file = PerfFile::open(&part.folder().join("perf.data")).expect("our own file");
        let capture = Capture::read(&file).expect("our own file");
        let (own, process) = capture.processes.iter().next().expect("a process");
        let pid = if exec { *pids.first().unwrap_or(&own) } else { own };
        let begun = capture.time.expect("times").0;
        let who = |tid: Tid, time| Who { pid, tid, cpu: Cpu(0), time };
        (|| {
            w.comm(who(Tid(pid.0), begun), &process.comm, true)?;
            for event in &process.space {
                let SpaceEvent::Map(range) = event else { continue };
                let file = &capture.processes.files()[range.file.0 as usize];
                w.mmap2(who(Tid(pid.0), range.time.0), range.addr, range.len, range.pgoff, &file.path)?;
                w.build_id(pid, &file.path, file.build_id.as_deref().unwrap_or(&[]));
            }
            for stream in &capture.streams {
                let tid = if exec { Tid(pid.0) } else { stream.tid.expect("a thread's") };
                if !exec {
                    (offset, idx) = (0, idx + 1);
                }
                for piece in &stream.trace.pieces {
                    let len = piece.bytes.len() as u64;
                    w.aux(who(tid, begun), offset, len, 0)?;
                    w.auxtrace(idx, Some(tid), None, offset, piece.reference.unwrap_or(Tsc(1)), piece.bytes)?;
                    offset += len;
                }
            }
            std::io::Result::Ok(())
        })()
        .expect("written");
        pids.push(pid);
    }
    w.finish().expect("written");
    pids
}

/// The same library in two processes; each process's branches are its own.
#[test]
fn two_processes_with_the_same_library() {
    let recordings = [
        record(&["/bin/ls", "-la", "/"], PtOptions::default()),
        record(&["/bin/cat", "/etc/passwd"], PtOptions::default()),
    ];
    let parts: Vec<&Recording> = recordings.iter().collect();
    let folder = tempfile::tempdir().expect("a folder");
    let pids = joined(folder.path(), &parts, false);
    let found = decoded(&folder.path().join("perf.data"));
    assert_eq!(found.len(), 2);
    for (pid, recording) in pids.iter().zip(&parts) {
        same(&found[pid], &truth(&[recording]));
    }
    // One image for both: the block graph knows it once.
    let file = PerfFile::open(&folder.path().join("perf.data")).expect("our own file");
    let capture = Capture::read(&file).expect("our own file");
    let libc = capture.processes.files().iter().filter(|file| file.path.contains("libc.so")).count();
    assert_eq!(libc, 1);
}

/// A process executes another program in the middle of its trace: the same addresses are other code from there on.
#[test]
fn exec_in_mid_trace() {
    let first = record(&["/bin/cat", "/etc/passwd"], PtOptions::default());
    let file = PerfFile::open(&first.folder().join("perf.data")).expect("our own file");
    let end = Capture::read(&file).expect("our own file").time.expect("times").1;
    let end = machine::TIME.to_tsc(ptflow_decoder::units::Ns(end)).expect("a time").0;
    // An exec takes half a millisecond.
    let options = PtOptions { start: machine::cycles(end) + 1_500_000, ..PtOptions::default() };
    let second = record(&["/bin/ls", "-la", "/"], options);
    let folder = tempfile::tempdir().expect("a folder");
    let pids = joined(folder.path(), &[&first, &second], true);
    let found = decoded(&folder.path().join("perf.data"));
    assert_eq!(found.keys().collect::<Vec<_>>(), [&pids[0]]);
    same(&found[&pids[0]], &truth(&[&first, &second]));
}
