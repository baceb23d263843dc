//! `dump branches`: one line a transfer, tab-separated: `TIME_NS TID KIND FROM TO`. `dump instructions`: one line an
//! instruction, `TIME_NS TID IP`, and on request its text and symbol behind.

use crate::address::{push_address, push_number};
use std::io::{self, Write};

/// What a line says of an address: how it is grouped and numbered, and its symbol.
#[derive(Clone, Copy, Debug)]
pub struct Place<'n> {
    /// Image name, if it is to be printed, and number.
    pub address: (Option<&'n str>, u64),
    /// Symbol and offset in it.
    pub symbol: Option<(&'n str, u64)>,
}

/// Writes the lines.
pub struct BranchWriter<W: Write> {
    out: W,
    buffer: Vec<u8>,
}

const BUFFER: usize = 1 << 17;

impl<W: Write> BranchWriter<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out, buffer: Vec::with_capacity(BUFFER + 1024) }
    }

    fn head(&mut self, ns: Option<u64>, tid: Option<u32>) {
        for number in [ns, tid.map(u64::from)] {
            match number {
                Some(number) => push_number(&mut self.buffer, number),
                None => self.buffer.push(b'-'),
            }
            self.buffer.push(b'\t');
        }
    }

    fn end_line(&mut self) -> io::Result<()> {
        self.buffer.push(b'\n');
        if self.buffer.len() >= BUFFER {
            self.out.write_all(&self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }

    /// A transfer.
    pub fn transfer(
        &mut self,
        ns: Option<u64>,
        tid: Option<u32>,
        kind: &str,
        from: Option<Place<'_>>,
        to: Option<Place<'_>>,
    ) -> io::Result<()> {
        self.head(ns, tid);
        self.buffer.extend_from_slice(kind.as_bytes());
        for place in [from, to] {
            self.buffer.push(b'\t');
            let Some(place) = place else {
                self.buffer.push(b'-');
                continue;
            };
            push_address(&mut self.buffer, place.address);
            if place.symbol.is_some() {
                self.buffer.push(b' ');
                self.symbol(place);
            }
        }
        self.end_line()
    }

    /// An instruction; `text` is its disassembly, behind which its symbol has a column of its own.
    pub fn instruction(
        &mut self,
        ns: Option<u64>,
        tid: Option<u32>,
        place: Place<'_>,
        text: Option<&str>,
    ) -> io::Result<()> {
        self.head(ns, tid);
        push_address(&mut self.buffer, place.address);
        if let Some(text) = text {
            self.buffer.push(b'\t');
            self.buffer.extend_from_slice(text.as_bytes());
            self.buffer.push(b'\t');
            if place.symbol.is_none() {
                self.buffer.push(b'-');
            }
        } else if place.symbol.is_some() {
            self.buffer.push(b' ');
        }
        self.symbol(place);
        self.end_line()
    }

    fn symbol(&mut self, place: Place<'_>) {
        if let Some((symbol, offset)) = place.symbol {
            self.buffer.extend_from_slice(symbol.as_bytes());
            if offset > 0 {
                self.buffer.push(b'+');
                crate::address::push_hex(&mut self.buffer, offset);
            }
        }
    }

    /// A hole.
    pub fn gap(&mut self, ns: Option<u64>, tid: Option<u32>, reason: &str, bytes: u64) -> io::Result<()> {
        self.head(ns, tid);
        self.buffer.extend_from_slice(b"gap\t");
        self.buffer.extend_from_slice(reason.as_bytes());
        self.buffer.push(b'\t');
        push_number(&mut self.buffer, bytes);
        self.end_line()
    }

    /// Writes what is left and gives the sink back.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&self.buffer)?;
        self.out.flush()?;
        Ok(self.out)
    }
}
