//! Damaged captures of every form: nothing panics, nothing takes memory that the file does not justify.

mod kit;

use kit::{Random, story};
use ptflow_decoder::units::Ip;
use ptflow_perf_import::images::{BinaryFile, ImageSearch, ImageStore};
use ptflow_perf_import::symbols::SymbolTable;
use ptflow_perf_import::write::{PerfWriter, TraceForm, Who, WriterConfig};
use ptflow_perf_import::{Capture, Cpu, PerfFile, Pid, Tid};
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Notes the largest piece of memory that was asked for.
struct Watch;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Watch {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Relaxed);
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Relaxed);
        // SAFETY: the caller's contract is the same.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static WATCH: Watch = Watch;

/// Reads everything that there is to read.
fn read_all(file: &PerfFile) {
    for record in file.records() {
        let _ = (file.events().sample(&record), file.events().trailer(&record));
    }
    let Ok(capture) = Capture::read(file) else { return };
    assert!(capture.trace_bytes() <= file.len());
    let store = ImageStore::load(&capture, &ImageSearch::default());
    for (pid, _) in capture.processes.iter() {
        let _ = store.address_spaces(pid);
    }
    let _ = (store.address_spaces(Pid(0)), capture.samples().count());
}

/// Some of a file's bytes changed, or its end cut off.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            return;
        }
        // Half of the damage to the first KiB, where the header and the events are.
        let reach = if random.below(2) == 0 { bytes.len() } else { bytes.len().min(1024) };
        let at = random.below(reach);
        let width = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
        match random.below(5) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at..at + width].fill(0xff),
            2 => bytes[at..at + width].fill(0),
            3 => bytes[at..at + width].copy_from_slice(&random.next().to_le_bytes()[..width]),
            _ if random.below(8) == 0 => bytes.truncate(at),
            _ => {
                // A copy of another place.
                let from = random.below(bytes.len() - width + 1);
                bytes.copy_within(from..from + width, at);
            }
        }
    }
}

/// Opens variants of a file with a limit for single pieces of memory.
fn survive(name: &str, bytes: &[u8], rounds: u64, limit: usize) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("perf.data");
    for seed in 1..=rounds {
        let mut damaged = bytes.to_vec();
        damage(&mut damaged, &mut Random(seed));
        std::fs::write(&path, &damaged).unwrap();
        LARGEST.store(0, Relaxed);
        if let Ok(file) = PerfFile::open(&path) {
            read_all(&file);
        }
        let largest = LARGEST.load(Relaxed);
        assert!(largest <= limit.max(16 * bytes.len()), "{name}, seed {seed}: {largest} bytes at once");
    }
    for len in (0..bytes.len()).step_by((bytes.len() / 200).max(1)) {
        std::fs::write(&path, &bytes[..len]).unwrap();
        if let Ok(file) = PerfFile::open(&path) {
            read_all(&file);
        }
    }
}

/// Opens variants of a program: damage all over it, and to its headers, symbols and relocations above all.
fn survive_as_image(bytes: &[u8], rounds: u64) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("program");
    let mut random = Random(7);
    for seed in 1..=rounds {
        let mut damaged = bytes.to_vec();
        damage(&mut damaged, &mut Random(seed));
        // The section headers lie at the end.
        let tail = damaged.len().saturating_sub(4096);
        if let Some(byte) = damaged.get_mut(tail + random.below(4096)) {
            *byte ^= 1 << random.below(8);
        }
        std::fs::write(&path, &damaged).unwrap();
        LARGEST.store(0, Relaxed);
        let table = SymbolTable::read(&damaged, Some(bytes));
        let _ = SymbolTable::read(bytes, Some(&damaged));
        table.functions().iter().for_each(|function| assert!(function.name().len() < 1 << 17));
        if let Some(file) = BinaryFile::open(&path) {
            let _ = file.code();
        }
        let largest = LARGEST.load(Relaxed);
        assert!(largest <= 64 * bytes.len(), "an image, seed {seed}: {largest} bytes at once");
    }
}

/// A capture of AUX samples on two CPUs.
fn aux_samples() -> Vec<u8> {
    let form = TraceForm::Samples(512);
    let config = WriterConfig { form, ..kit::config(kit::DEFAULT_EVENT, true) };
    let mut w = PerfWriter::new(Cursor::new(Vec::new()), config).unwrap();
    for step in 0..40u32 {
        let who =
            Who { pid: Pid(7), tid: Tid(7 + step % 3), cpu: Cpu(step % 2), time: 1_000 + u64::from(step) };
        w.comm(who, "sampled", false).unwrap();
        w.switch_cpu_wide(who, step % 2 == 0, (Pid(7), Tid(7 + (step + 1) % 3))).unwrap();
        w.aux_sample(who, Ip(0x40_1000), &kit::trace(u64::from(step), 300)).unwrap();
    }
    w.finish().unwrap().into_inner()
}

/// One test: the watch sees all threads.
#[test]
fn damaged_captures() {
    const SMALL: usize = 256 << 10;
    for per_cpu in [false, true] {
        survive("file", &story(Path::new("/no/such/image"), per_cpu).bytes, 800, SMALL);
    }
    survive("AUX samples", &aux_samples(), 800, SMALL);
    let dir = tempfile::tempdir().unwrap();
    let record = |form: &str, command: &str| -> Option<Vec<u8>> {
        kit::output("sh", &["-c", command], dir.path())?;
        let path: PathBuf = dir.path().join("perf.data");
        let bytes = std::fs::read(&path).unwrap();
        println!("{form}: {} bytes", bytes.len());
        Some(bytes)
    };
    if let Some(bytes) = record("pipe", "perf record -q -e cpu-clock -o - true | cat >perf.data") {
        survive("pipe", &bytes, 500, SMALL);
    }
    // A zstd frame may ask for a window of 128 MiB, which is reserved and not touched.
    if let Some(bytes) =
        record("zstd", "perf record -q -z -g -e cpu-clock -o perf.data ls -l /usr/lib >/dev/null")
    {
        survive("zstd", &bytes, 500, 300 << 20);
    }
    let source = "int puts(const char*); int main(void) { return puts(\"x\"); }";
    if kit::output("sh", &["-c", &format!("echo '{source}' | cc -x c -o program -")], dir.path()).is_some() {
        survive_as_image(&std::fs::read(dir.path().join("program")).unwrap(), 2_000);
    }
    if let Some(folder) = kit::captures("damaged_captures") {
        let bytes = std::fs::read(folder.join("quipper-intel_pt-4.14/perf.data.intel_pt-4.14")).unwrap();
        survive("quipper", &bytes, 300, SMALL);
    }
}
