//! What the tests of this folder share: a small recording whose every byte is known, and a reader of its bytes that is
//! not the crate's.

#![allow(dead_code, reason = "each test uses its part")]

pub mod large;
pub mod recording;

use ptflow_decoder::config::TscConversion;
use ptflow_decoder::units::Tsc;
use ptflow_perf_import::write::{PerfWriter, TraceForm, Who, WriterConfig};
use ptflow_perf_import::{Cpu, Pid, Tid};
use std::io::Cursor;
use std::path::{Path, PathBuf};

/// Half a nanosecond a tick: TSC = 2 × (time - 100).
pub const TIME: TscConversion = TscConversion { shift: 10, mult: 512, zero: 100 };

/// The bits of perf's own default for `intel_pt//`: pt, mtc, tsc, branch, mtc_period 3, psb_period 3.
pub const DEFAULT_EVENT: u64 = 0x300_e601;

pub const BUILD_ID: [u8; 20] = *b"twenty bytes of id..";
/// As `ld --build-id=fast` makes them.
pub const SHORT_BUILD_ID: [u8; 8] = *b"8 bytes.";

pub fn config(event_config: u64, per_cpu: bool) -> WriterConfig {
    WriterConfig {
        cmdline: ["perf", "record", "-e", "intel_pt//u", "a program"].map(str::to_owned).to_vec(),
        cpuid: "GenuineIntel,6,158,10".to_owned(),
        cpudesc: "A CPU in words".to_owned(),
        cpus: 4,
        event_config,
        time: TIME,
        tsc_ctc_ratio: (168, 2),
        max_nonturbo_ratio: 21,
        per_cpu,
        form: TraceForm::Full,
    }
}

/// A repeatable stream of numbers (xorshift64*).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// Trace bytes without a zero, so that padding stands out.
pub fn trace(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed + 1);
    (0..len).map(|_| 1 + (random.next() >> 32) as u8 % 255).collect()
}

pub fn who(pid: u32, tid: u32, cpu: u32, time: u64) -> Who {
    Who { pid: Pid(pid), tid: Tid(tid), cpu: Cpu(cpu), time }
}

/// A recording of three streams with one of everything that the writer can write.
pub struct Story {
    pub bytes: Vec<u8>,
    /// The trace of each stream by its AUX offsets; stream 2 has a hole, whose bytes are 0.
    pub traces: [Vec<u8>; 3],
}

/// Threads of the three streams, one of process 100 and two of process 200.
pub const TIDS: [u32; 3] = [100, 200, 201];

/// The story, in order of time: process 100 forks 200, which executes `image` and starts thread 201; then 100 forks 300,
/// which executes nothing. In the file the records of several buffers are interleaved: time does not always rise.
pub fn story(image: &Path, per_cpu: bool) -> Story {
    let image = image.to_str().expect("a path in UTF-8");
    let traces = [trace(0, 19), trace(1, 124), [trace(2, 16), vec![0; 84], trace(3, 8)].concat()];
    let mut w = PerfWriter::new(Cursor::new(Vec::new()), config(DEFAULT_EVENT, per_cpu)).expect("begins");
    // Per CPU, perf names the workload's first thread in every stream, and AUX records name whoever ran.
    let aux = |stream: usize, time: u64| match per_cpu {
        true => who(100, 100 + time as u32 % 7, stream as u32, time),
        false => who(if stream == 0 { 100 } else { 200 }, TIDS[stream], 3, time),
    };
    let chunk = |w: &mut PerfWriter<Cursor<Vec<u8>>>, stream: usize, from: usize, to: usize| {
        let (tid, cpu) = match per_cpu {
            true => (Tid(100), Some(Cpu(stream as u32))),
            false => (Tid(TIDS[stream]), None),
        };
        let reference = Tsc(1_000_000 + from as u64);
        w.auxtrace(stream as u32, Some(tid), cpu, from as u64, reference, &traces[stream][from..to])
    };
    (|| {
        w.comm(who(100, 100, 0, 0), "shell", false)?;
        w.mmap2(who(100, 100, 0, 0), 0x40_0000, 0x1000, 0, "/no/such/shell")?;
        w.itrace_start(who(100, 100, 0, 900))?;
        chunk(&mut w, 0, 0, 5)?;
        w.fork(who(100, 100, 0, 1_000), Pid(200), Tid(200))?;
        // The buffer of another CPU, on which the process went on after its exec.
        w.itrace_start(who(200, 200, 1, 1_150))?;
        w.mmap2(who(200, 200, 1, 1_200), 0x5555_0000_0000, 0x1000, 0, image)?;
        w.mmap2(who(200, 200, 1, 1_300), 0x7fff_0000_1000, 0x3000, 0x1000, "/no/such/libc.so.6")?;
        w.comm(who(200, 200, 0, 1_100), "server", true)?;
        chunk(&mut w, 1, 0, 64)?;
        w.aux(aux(0, 1_500), 0, 6, 0)?;
        w.aux(aux(1, 1_600), 0, 50, 1)?;
        w.fork(who(200, 200, 1, 2_000), Pid(200), Tid(201))?;
        w.comm(who(200, 201, 2, 2_100), "worker", false)?;
        w.switch_cpu_wide(who(200, 200, 2, 2_200), true, (Pid(200), Tid(201)))?;
        w.switch_cpu_wide(who(200, 201, 2, 2_201), false, (Pid(200), Tid(200)))?;
        chunk(&mut w, 0, 5, 6)?;
        chunk(&mut w, 2, 0, 16)?;
        w.aux(aux(1, 2_600), 50, 51, 1)?;
        w.aux(aux(2, 2_700), 0, 16, 0)?;
        chunk(&mut w, 1, 64, 101)?;
        chunk(&mut w, 1, 101, 124)?;
        w.fork(who(100, 100, 0, 3_000), Pid(300), Tid(300))?;
        // A stretch that was recorded, but whose bytes the file lost.
        w.aux(aux(2, 3_100), 16, 84, 0)?;
        w.aux(aux(2, 3_200), 100, 8, 0)?;
        chunk(&mut w, 2, 100, 108)?;
        chunk(&mut w, 0, 6, 19)?;
        w.aux(aux(0, 3_300), 6, 13, 0)?;
        w.aux(aux(1, 3_400), 101, 23, 0)?;
        w.exit(who(200, 201, 2, 9_000))?;
        w.build_id(Pid(200), image, &BUILD_ID);
        w.build_id(Pid(200), "/no/such/libc.so.6", &SHORT_BUILD_ID);
        std::io::Result::Ok(())
    })()
    .expect("memory takes everything");
    let bytes = w.finish().expect("ends").into_inner();
    Story { bytes, traces }
}

/// An executable of one segment and a build id, without sections; its code lies at 0x100.
pub fn elf(code: &[u8]) -> Vec<u8> {
    const NOTE: u64 = 64 + 2 * 56;
    let len = 0x100 + code.len() as u64;
    let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // ET_DYN, EM_X86_64, EV_CURRENT.
    [3u16, 62, 1, 0].iter().for_each(|half| out.extend(half.to_le_bytes()));
    // Entry, program headers, section headers.
    [0x100u64, 64, 0].iter().for_each(|word| out.extend(word.to_le_bytes()));
    // Flags, header size, program headers' size and number; no sections.
    [0u16, 0, 64, 56, 2, 64, 0, 0].iter().for_each(|half| out.extend(half.to_le_bytes()));
    for (kind, flags, offset, size) in [(1u32, 5u32, 0, len), (4, 4, NOTE, 36)] {
        [kind, flags].iter().for_each(|half| out.extend(half.to_le_bytes()));
        [offset, offset, offset, size, size, 4].iter().for_each(|word: &u64| out.extend(word.to_le_bytes()));
    }
    // NT_GNU_BUILD_ID.
    [4u32, 20, 3].iter().for_each(|half| out.extend(half.to_le_bytes()));
    out.extend(b"GNU\0");
    out.extend(BUILD_ID);
    out.resize(0x100, 0);
    out.extend(code);
    out
}

/// A record as it lies in the file.
pub struct Raw<'a> {
    pub kind: u32,
    pub misc: u16,
    pub body: &'a [u8],
    pub payload: &'a [u8],
}

pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The text from `at` to its NUL.
pub fn text_at(bytes: &[u8], at: usize) -> &str {
    let text = bytes[at..].split(|byte| *byte == 0).next().unwrap();
    std::str::from_utf8(text).unwrap()
}

/// The records of an undamaged file: the header's data section is at 40 and 48 (`struct perf_file_header` in linux
/// `tools/perf/util/header.h`).
pub fn raw_records(file: &[u8]) -> Vec<Raw<'_>> {
    let mut at = u64_at(file, 40) as usize;
    let end = at + u64_at(file, 48) as usize;
    let mut records = Vec::new();
    while at < end {
        let (kind, misc, size) = (u32_at(file, at), u16_at(file, at + 4), usize::from(u16_at(file, at + 6)));
        let body = &file[at + 8..at + size];
        // Only AUXTRACE is followed by bytes that its size does not count.
        let follows = if kind == 71 { u64_at(body, 0) as usize } else { 0 };
        records.push(Raw { kind, misc, body, payload: &file[at + size..at + size + follows] });
        at += size + follows;
    }
    assert_eq!(at, end, "the records fill the section");
    records
}

/// The folder of captures from outside, or a printed line that the test is skipped.
pub fn captures(test: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("PTFLOW_CAPTURES").map(PathBuf::from);
    if folder.is_none() {
        println!("skipped: {test} reads captures from outside; set PTFLOW_CAPTURES to their folder");
    }
    folder
}

/// The output of a program; `None` and a printed line where it cannot be run or fails.
pub fn output(program: &str, args: &[&str], dir: &Path) -> Option<String> {
    let output = std::process::Command::new(program).args(args).current_dir(dir).output();
    match output {
        Ok(output) if output.status.success() => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => {
            println!("skipped: {program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
            None
        }
        Err(error) => {
            println!("skipped: {program}: {error}");
            None
        }
    }
}
