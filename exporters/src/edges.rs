//! `profile --format edges`: one line an edge, tab-separated.
//!
//! ```text
//! #ptflow-edges 1
//! KIND  FROM  TO  TAKEN  NOT_TAKEN  MISPREDICTED
//! ```
//!
//! Lines are sorted by FROM, then TO, then KIND. First comes `-`, then the plain numbers by value, then the addresses in
//! images by the image's name (byte by byte) and by value; kinds are sorted by name. Rows of the same KIND, FROM and TO are
//! summed: each such key stands once.

use crate::address::{AddressNames, parse_address, push_hex, push_number};
use ptflow_decoder::profile::{EdgeKind, EdgeRow};
use std::collections::HashMap;
use std::io::{self, BufRead, Write};

/// The first line.
pub const HEADER: &str = "#ptflow-edges 1";

/// Writes rows in any order as a table.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut impl Write, rows: &[EdgeRow], names: &dyn AddressNames) -> io::Result<()> {
    let mut table = Table::with_capacity(rows.len());
    for row in rows {
        let named = |addr: Option<_>| addr.map(|addr| names.name(addr));
        table.add(row.kind, named(row.from), named(row.to), [row.taken, row.not_taken, row.mispredicted]);
    }
    table.write(out)
}

/// A row as a file has it: addresses are text, as whoever wrote it named them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TextRow {
    /// Kind.
    pub kind: EdgeKind,
    /// From, as `0x…` or `IMAGE:0x…`; `None` for `-`.
    pub from: Option<String>,
    /// To, likewise.
    pub to: Option<String>,
    /// Times taken.
    pub taken: u64,
    /// Times not taken.
    pub not_taken: u64,
    /// Times mispredicted.
    pub mispredicted: u64,
}

/// Writes rows that were read, of one file or several, as one table.
///
/// # Errors
/// Those of `out`, and [`io::ErrorKind::InvalidInput`] for an address that [`read`] would not give.
pub fn write_text(out: &mut impl Write, rows: &[TextRow]) -> io::Result<()> {
    fn named(text: &Option<String>) -> io::Result<Named<'_>> {
        let Some(text) = text else { return Ok(None) };
        let error = || io::Error::new(io::ErrorKind::InvalidInput, format!("not an address: {text}"));
        parse_address(text).map(Some).ok_or_else(error)
    }
    let mut table = Table::with_capacity(rows.len());
    for row in rows {
        let counts = [row.taken, row.not_taken, row.mispredicted];
        table.add(row.kind, named(&row.from)?, named(&row.to)?, counts);
    }
    table.write(out)
}

/// Reads a table. Rows need not be sorted, and are given as they stand.
///
/// # Errors
/// Those of `input`, and [`io::ErrorKind::InvalidData`] with the number of the line that is not of the format.
pub fn read(mut input: impl BufRead) -> io::Result<Vec<TextRow>> {
    let bad =
        |line: usize, what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("line {line}: {what}"));
    let mut rows = Vec::new();
    let mut bytes = Vec::new();
    for number in 1.. {
        bytes.clear();
        let end = input.read_until(b'\n', &mut bytes)? == 0;
        let Ok(line) = std::str::from_utf8(&bytes) else { return Err(bad(number, "not UTF-8")) };
        let line = line.trim_end_matches(['\n', '\r']);
        if number == 1 {
            if line != HEADER {
                return Err(bad(1, "not an edge table: it must begin with #ptflow-edges 1"));
            }
        } else if end {
            break;
        } else {
            let what = "not KIND, FROM, TO and three counts";
            rows.push(parse_row(line).ok_or_else(|| bad(number, what))?);
        }
    }
    Ok(rows)
}

fn parse_row(line: &str) -> Option<TextRow> {
    let mut fields = line.split('\t');
    let kind = fields.next()?;
    let kind = EdgeKind::ALL.into_iter().find(|known| known.name() == kind)?;
    let mut addr = || match fields.next()? {
        "-" => Some(None),
        text => parse_address(text).map(|_| Some(text.to_owned())),
    };
    let (from, to) = (addr()?, addr()?);
    // `parse` would take a plus sign, too.
    let mut count = || fields.next().filter(|text| !text.starts_with('+'))?.parse().ok();
    let row = TextRow { kind, from, to, taken: count()?, not_taken: count()?, mispredicted: count()? };
    fields.next().is_none().then_some(row)
}

/// An address to be written: `-`, or a number, perhaps in an image of that name.
type Named<'n> = Option<(Option<&'n str>, u64)>;

/// Rows that are to be sorted and summed. Images are numbered, and the numbers compared: names are long and few.
struct Table<'n> {
    images: HashMap<&'n str, u32>,
    rows: Vec<Row>,
}

/// An address in a table: where it stands in the order of images, and its number.
type Place = (u32, u64);

const DASH: u32 = 0;
const PLAIN: u32 = 1;
/// The first image.
const IMAGES: u32 = 2;

#[derive(Clone, Copy)]
struct Row {
    from: Place,
    to: Place,
    kind: EdgeKind,
    /// Taken, not taken, mispredicted.
    counts: [u64; 3],
}

impl<'n> Table<'n> {
    fn with_capacity(rows: usize) -> Self {
        Self { images: HashMap::new(), rows: Vec::with_capacity(rows) }
    }

    fn place(&mut self, addr: Named<'n>) -> Place {
        match addr {
            None => (DASH, 0),
            Some((None, number)) => (PLAIN, number),
            Some((Some(image), number)) => {
                let next = IMAGES + self.images.len() as u32;
                (*self.images.entry(image).or_insert(next), number)
            }
        }
    }

    fn add(&mut self, kind: EdgeKind, from: Named<'n>, to: Named<'n>, counts: [u64; 3]) {
        let (from, to) = (self.place(from), self.place(to));
        self.rows.push(Row { from, to, kind, counts });
    }

    /// Renumbers the images in the order of their names, which are returned.
    fn sort_images(&mut self) -> Vec<&'n str> {
        let mut images: Vec<(&str, u32)> = self.images.drain().collect();
        images.sort_unstable();
        let mut order = vec![DASH, PLAIN];
        order.resize(images.len() + 2, 0);
        for (new, (_, old)) in (IMAGES..).zip(&images) {
            order[*old as usize] = new;
        }
        for row in &mut self.rows {
            row.from.0 = order[row.from.0 as usize];
            row.to.0 = order[row.to.0 as usize];
        }
        images.into_iter().map(|(image, _)| image).collect()
    }

    fn write(mut self, out: &mut impl Write) -> io::Result<()> {
        let images = self.sort_images();
        self.rows.sort_unstable_by_key(|row| (row.from, row.to, row.kind.name()));
        self.rows.dedup_by(|row, kept| {
            let same = (row.from, row.to, row.kind) == (kept.from, kept.to, kept.kind);
            if same {
                for (sum, count) in kept.counts.iter_mut().zip(row.counts) {
                    *sum = sum.saturating_add(count);
                }
            }
            same
        });
        let mut text = format!("{HEADER}\n").into_bytes();
        for row in &self.rows {
            text.extend_from_slice(row.kind.name().as_bytes());
            for (image, number) in [row.from, row.to] {
                text.push(b'\t');
                if image == DASH {
                    text.push(b'-');
                    continue;
                }
                if image >= IMAGES {
                    text.extend_from_slice(images[(image - IMAGES) as usize].as_bytes());
                    text.push(b':');
                }
                push_hex(&mut text, number);
            }
            for count in row.counts {
                text.push(b'\t');
                push_number(&mut text, count);
            }
            text.push(b'\n');
            if text.len() >= 1 << 16 {
                out.write_all(&text)?;
                text.clear();
            }
        }
        out.write_all(&text)
    }
}
