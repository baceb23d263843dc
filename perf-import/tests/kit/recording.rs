//! A small recording, written by the writer: two threads of a process that forks and maps on the way.

use ptflow_decoder::config::TscConversion;
use ptflow_decoder::packet::{Packet, encoder};
use ptflow_decoder::units::Tsc;
use ptflow_perf_import::record::Aux;
use ptflow_perf_import::write::{PerfWriter, TraceForm, Who, WriterConfig};
use ptflow_perf_import::{Cpu, Pid, Tid};
use std::io::{Cursor, Seek, Write};

/// TSC ticks are 0.4 nanoseconds from 1 s of perf time on.
pub const TIME: TscConversion = TscConversion { shift: 31, mult: 858_993_459, zero: 1_000_000_000 };
/// The build id that the recording tells for [`PROGRAM`].
pub const BUILD_ID: [u8; 20] = *b"\x01\x23\x45\x67\x89\xab\xcd\xef-twelve more";
pub const PROGRAM: &str = "/opt/example/bin/program";
pub const LIBRARY: &str = "/opt/example/lib/libother.so";

pub fn config(per_cpu: bool) -> WriterConfig {
    WriterConfig {
        cmdline: ["recorder", "--", "program"].map(str::to_owned).to_vec(),
        cpuid: "GenuineIntel,6,158,10".to_owned(),
        cpudesc: "no CPU at all".to_owned(),
        cpus: 4,
        // pt, mtc, tsc, branch, mtc_period 3, psb_period 3
        event_config: 0x300_e601,
        time: TIME,
        tsc_ctc_ratio: (250, 2),
        max_nonturbo_ratio: 25,
        per_cpu,
        form: TraceForm::Full,
    }
}

pub fn who(tid: u32, time: u64) -> Who {
    Who { pid: Pid(100), tid: Tid(tid), cpu: Cpu(tid % 4), time }
}

/// A PSB+ at a time, and some packets; 8 bytes do not divide its length.
pub fn trace(tsc: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for packet in [Packet::Psb, Packet::Tsc { tsc }, Packet::PsbEnd] {
        encoder::encode(&packet, &mut bytes);
    }
    while bytes.len() % 8 != 5 {
        // A short TNT of one taken branch.
        bytes.push(0b110);
    }
    bytes
}

/// Writes the recording; one stream a thread.
pub fn write<W: Write + Seek>(out: W) -> std::io::Result<W> {
    let mut w = PerfWriter::new(out, config(false))?;
    let (second, third) = (1_000_000_000, 1_000_000_500);
    w.comm(who(100, second), "program", true)?;
    w.mmap2(who(100, second), 0x40_1000, 0x2000, 0x1000, PROGRAM)?;
    w.mmap2(who(100, second), 0x7f00_0000_1000, 0x3000, 0x1000, LIBRARY)?;
    w.mmap2(who(100, second), 0x7fff_0000_0000, 0x2000, 0, "[vdso]")?;
    w.build_id(Pid(u32::MAX), PROGRAM, &BUILD_ID);
    w.itrace_start(who(100, second))?;
    w.fork(who(100, third), Pid(100), Tid(101))?;
    w.comm(who(101, third), "worker", false)?;
    w.switch(who(101, third + 10), false)?;
    // A child process, which replaces the library.
    w.fork(who(100, third + 20), Pid(200), Tid(200))?;
    let child = |time| Who { pid: Pid(200), tid: Tid(200), cpu: Cpu(1), time };
    w.mmap2(child(third + 30), 0x7f00_0000_2000, 0x1000, 0, PROGRAM)?;
    w.comm(child(third + 40), "other", true)?;
    w.mmap2(child(third + 50), 0x50_1000, 0x2000, 0x1000, PROGRAM)?;
    let first = trace(2_500);
    let more = trace(3_000);
    let len = first.len() as u64;
    w.auxtrace(0, Some(Tid(100)), None, 0, Tsc(2_500), &first)?;
    w.aux(who(100, third + 60), 0, len, 0)?;
    w.auxtrace(0, Some(Tid(100)), None, len, Tsc(3_000), &more)?;
    w.aux(who(100, third + 70), len, 16, Aux::TRUNCATED)?;
    w.aux(who(100, third + 80), len + 16, more.len() as u64 - 16, 0)?;
    w.auxtrace(1, Some(Tid(101)), None, 0, Tsc(2_600), &trace(2_600))?;
    w.aux(who(101, third + 90), 0, len, 0)?;
    w.switch(who(101, third + 95), true)?;
    w.exit(who(101, third + 100))?;
    w.exit(who(100, third + 110))?;
    w.finish()
}

/// The recording in memory.
pub fn bytes() -> Vec<u8> {
    write(Cursor::new(Vec::new())).unwrap().into_inner()
}
