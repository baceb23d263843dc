//! The ordered truth of a thread: every transfer in the order in which it ran, with its time and how many instructions had
//! run by then. `bench-traces record --log` leaves one file a thread, `truth.TID.log`; `bench-traces log FILE` prints it.
//!
//! A file is the eight bytes of [`MAGIC`] and then entries up to its end. An entry is
//!
//! | bytes | what |
//! | --- | --- |
//! | 1 | bits 3:0 kind, as an index into [`EdgeKind::ALL`]; bit 4 taken; bit 5 a source follows; bit 6 a target follows |
//! | LEB128 | core cycles since the entry before |
//! | LEB128 | instructions since the entry before |
//! | LEB128 | source minus the last address of the entry before, zigzag |
//! | LEB128 | target minus the source (or where there is none, as above), zigzag |
//!
//! Time is the model's own, in core cycles since the recording began, before anything is rounded for a packet
//! ([`crate::options::machine`] says how they become TSC and nanoseconds). A branch has the time at which its block was
//! done, and its instructions count the branch itself; an interruption has those before the instruction that did not
//! execute any more.

use ptflow_decoder::profile::EdgeKind;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// How a log begins.
pub const MAGIC: [u8; 8] = *b"ptflowL1";

const TAKEN: u8 = 1 << 4;
const FROM: u8 = 1 << 5;
const TO: u8 = 1 << 6;

/// One transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Kind, as in `truth.edges`.
    pub kind: EdgeKind,
    /// The branch; of an interruption, the instruction that did not execute any more; none for a resumption.
    pub from: Option<u64>,
    /// Where it went, or for a conditional branch would go.
    pub to: Option<u64>,
    /// False for a conditional branch that fell through.
    pub taken: bool,
    /// Core cycles since the recording began.
    pub cycles: u64,
    /// Instructions that the thread had executed.
    pub instructions: u64,
}

/// Where a thread's log lies in a recording's folder.
pub fn path(folder: &Path, tid: u32) -> PathBuf {
    folder.join(format!("truth.{tid}.log"))
}

/// What the next entry is told against.
#[derive(Clone, Copy, Debug, Default)]
struct Before {
    cycles: u64,
    instructions: u64,
    address: u64,
}

/// Writes a log.
#[derive(Debug)]
pub struct LogWriter<W: Write> {
    out: W,
    before: Before,
}

impl LogWriter<BufWriter<File>> {
    /// A log in a new file.
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::new(BufWriter::with_capacity(1 << 18, File::create(path)?))
    }
}

impl<W: Write> LogWriter<W> {
    /// Begins a log.
    pub fn new(mut out: W) -> io::Result<Self> {
        out.write_all(&MAGIC)?;
        Ok(Self { out, before: Before::default() })
    }

    /// The next entry.
    pub fn push(&mut self, entry: &Entry) -> io::Result<()> {
        let kind = EdgeKind::ALL.iter().position(|kind| *kind == entry.kind).unwrap_or(0) as u8;
        let bit = |on: bool, bit: u8| if on { bit } else { 0 };
        let head = kind | bit(entry.taken, TAKEN) | bit(entry.from.is_some(), FROM);
        self.out.write_all(&[head | bit(entry.to.is_some(), TO)])?;
        self.number(entry.cycles.wrapping_sub(self.before.cycles))?;
        self.number(entry.instructions.wrapping_sub(self.before.instructions))?;
        let mut address = self.before.address;
        for next in [entry.from, entry.to].into_iter().flatten() {
            self.number(zigzag(next.wrapping_sub(address)))?;
            address = next;
        }
        self.before = Before { cycles: entry.cycles, instructions: entry.instructions, address };
        Ok(())
    }

    fn number(&mut self, mut value: u64) -> io::Result<()> {
        let mut bytes = [0; 10];
        let mut len = 0;
        loop {
            bytes[len] = value as u8 & 0x7f;
            value >>= 7;
            len += 1;
            if value == 0 {
                return self.out.write_all(&bytes[..len]);
            }
            bytes[len - 1] |= 0x80;
        }
    }

    /// Writes what is left and gives the sink back.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }
}

/// Reads a log, entry by entry.
#[derive(Debug)]
pub struct LogReader<R: Read> {
    input: R,
    before: Before,
}

impl LogReader<BufReader<File>> {
    /// Reads a file.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::new(BufReader::with_capacity(1 << 18, File::open(path)?))
    }
}

impl<R: Read> LogReader<R> {
    /// Reads a log.
    pub fn new(mut input: R) -> io::Result<Self> {
        let mut magic = [0; MAGIC.len()];
        input.read_exact(&mut magic)?;
        if magic != MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a log of the recorder's"));
        }
        Ok(Self { input, before: Before::default() })
    }

    fn entry(&mut self) -> io::Result<Option<Entry>> {
        let mut head = [0];
        if self.input.read(&mut head)? == 0 {
            return Ok(None);
        }
        let [head] = head;
        let kind = EdgeKind::ALL.get(usize::from(head & 0xf)).copied();
        let kind = kind.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no such kind of entry"))?;
        let cycles = self.before.cycles.wrapping_add(self.number()?);
        let instructions = self.before.instructions.wrapping_add(self.number()?);
        let mut address = self.before.address;
        let mut next = |has: u8| -> io::Result<Option<u64>> {
            if head & has == 0 {
                return Ok(None);
            }
            address = address.wrapping_add(unzigzag(self.number()?));
            Ok(Some(address))
        };
        let (from, to) = (next(FROM)?, next(TO)?);
        self.before = Before { cycles, instructions, address };
        Ok(Some(Entry { kind, from, to, taken: head & TAKEN != 0, cycles, instructions }))
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.input.read_exact(&mut byte)?;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "a number has no end"))
    }
}

impl<R: Read> Iterator for LogReader<R> {
    type Item = io::Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        self.entry().transpose()
    }
}

fn zigzag(value: u64) -> u64 {
    value << 1 ^ ((value as i64 >> 63) as u64)
}

fn unzigzag(value: u64) -> u64 {
    value >> 1 ^ (value & 1).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let entry = |kind, from, to, taken, cycles, instructions| Entry {
            kind,
            from,
            to,
            taken,
            cycles,
            instructions,
        };
        let entries = [
            entry(EdgeKind::Resume, None, Some(0x7fff_0000_1000), true, 5, 0),
            entry(EdgeKind::Jcc, Some(0x7fff_0000_1010), Some(0x7fff_0000_1000), false, 9, 4),
            entry(EdgeKind::Syscall, Some(0x7fff_0000_1020), None, true, 9, 5),
            entry(EdgeKind::Async, Some(0x7fff_0000_1022), Some(0xffff_ffff_8100_0000), true, 1 << 40, 5),
            entry(EdgeKind::Ret, Some(0), Some(u64::MAX), true, u64::MAX, u64::MAX),
        ];
        let mut writer = LogWriter::new(Vec::new()).expect("a Vec takes all");
        for entry in &entries {
            writer.push(entry).expect("a Vec takes all");
        }
        let bytes = writer.finish().expect("a Vec takes all");
        let read: io::Result<Vec<Entry>> = LogReader::new(&bytes[..]).expect("a log").collect();
        assert_eq!(read.expect("whole"), entries);
        // The branch by hand: kind jcc, not taken, both addresses; 4 cycles, 4 instructions, 16 on, 16 back.
        assert_eq!(bytes[8 + 10..][..5], [0b0110_0000, 4, 4, 32, 31]);
        // An entry that is cut off is an error, not an end.
        let mut torn = LogReader::new(&bytes[..bytes.len() - 1]).expect("a log");
        assert!(torn.any(|entry| entry.is_err()));
        assert!(LogReader::new(&b"ptflowL0"[..]).is_err());
    }
}
