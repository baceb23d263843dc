//! Made-up code as an ELF file: a shared object with one segment of code, and unwind tables that say where functions lie.

use super::made_up::MadeUp;
use anyhow::{Context as _, ensure};
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

const PAGE: u64 = 4096;
const EHDR: u64 = 64;
const PHDR: u64 = 56;
const SHDR: u64 = 64;
const SEGMENTS: u64 = 2;
/// Names of sections, each behind a zero.
const NAMES: &[u8] = b"\0.eh_frame\0.text\0.shstrtab\0";
/// Bytes of code that a made-up function has on average.
const FUNCTION: u64 = 285;

/// How to unwind, the same for all (Linux Standard Base, "Exception Frames"; DWARF 4, section 6.4): addresses are 32 bits from
/// where they stand; code by 1, data by -8; the return address is register 16, and lies at the frame's address, rsp + 8.
const CIE: [u8; 24] =
    [20, 0, 0, 0, 0, 0, 0, 0, 1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x1b, 0x0c, 7, 8, 0x90, 1, 0, 0];
/// A function's entry.
const FDE: u64 = 20;

/// Writes a file with about so many bytes of code.
pub fn write(path: &Path, seed: u64, bytes: u64) -> anyhow::Result<()> {
    let functions = (bytes / FUNCTION).max(16);
    let frames_at = EHDR + SEGMENTS * PHDR;
    // The terminator is a length of zero.
    let frames = CIE.len() as u64 + FDE * functions + 4;
    let text_at = (frames_at + frames).next_multiple_of(PAGE);
    // Addresses in the tables are 32 bits from each other.
    ensure!(text_at + 2 * bytes < i32::MAX as u64, "more code than branches of 32 bits can reach");
    let made = MadeUp::straight(seed, text_at, functions as usize);
    let (text, text_end) = (made.bytes.len() as u64, text_at + made.bytes.len() as u64);

    let mut out = Vec::new();
    header(&mut out, text_end);
    // Everything lies at the address that is its offset: first what is read only, then what executes.
    segment(&mut out, 4, 0, frames_at + frames);
    segment(&mut out, 5, text_at, text);
    out.extend(CIE);
    for function in &made.functions {
        let at = out.len() as u64;
        put32(&mut out, FDE as u32 - 4);
        put32(&mut out, (at + 4 - frames_at) as u32);
        put32(&mut out, (function.start as u32).wrapping_sub(at as u32 + 8));
        put32(&mut out, (function.end - function.start) as u32);
        put32(&mut out, 0);
    }
    put32(&mut out, 0);
    out.resize(text_at as usize, 0);

    let mut tail = NAMES.to_vec();
    tail.resize((text_end + tail.len() as u64).next_multiple_of(8) as usize - text_end as usize, 0);
    section(&mut tail, 0, [0; 6]);
    section(&mut tail, 1, [1, 2, frames_at, frames, 8, 0]);
    section(&mut tail, 11, [1, 6, text_at, text, 16, 0]);
    section(&mut tail, 17, [3, 0, text_end, NAMES.len() as u64, 1, 1]);

    let write = || {
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(&out)?;
        file.write_all(&made.bytes)?;
        file.write_all(&tail)?;
        file.flush()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn put16(out: &mut Vec<u8>, value: u16) {
    out.extend(value.to_le_bytes());
}

fn put32(out: &mut Vec<u8>, value: u32) {
    out.extend(value.to_le_bytes());
}

fn put64(out: &mut Vec<u8>, value: u64) {
    out.extend(value.to_le_bytes());
}

/// ELF, 64 bits, little-endian; a shared object for x86-64.
fn header(out: &mut Vec<u8>, text_end: u64) {
    out.extend(b"\x7fELF\x02\x01\x01");
    out.resize(16, 0);
    put16(out, 3);
    put16(out, 62);
    put32(out, 1);
    put64(out, 0);
    put64(out, EHDR);
    put64(out, (text_end + NAMES.len() as u64).next_multiple_of(8));
    put32(out, 0);
    for value in [EHDR, PHDR, SEGMENTS, SHDR, 4, 3] {
        put16(out, value as u16);
    }
}

/// A PT_LOAD with its flags.
fn segment(out: &mut Vec<u8>, flags: u32, at: u64, len: u64) {
    put32(out, 1);
    put32(out, flags);
    for value in [at, at, at, len, len, PAGE] {
        put64(out, value);
    }
}

/// A section: type, flags, where it lies, its length and alignment, and whether it has an address in memory: not if 1.
fn section(out: &mut Vec<u8>, name: u32, [kind, flags, at, len, align, unmapped]: [u64; 6]) {
    put32(out, name);
    put32(out, kind as u32);
    put64(out, flags);
    put64(out, if unmapped == 1 { 0 } else { at });
    put64(out, at);
    put64(out, len);
    put64(out, 0);
    put64(out, align);
    put64(out, 0);
}
