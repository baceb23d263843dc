//! `profile --format edges`: one line an edge, tab-separated.
//!
//! ```text
//! #ptflow-edges 1
//! KIND  FROM  TO  TAKEN  NOT_TAKEN  MISPREDICTED
//! ```
//!
//! Sorted by from, then to, then kind; an address is ordered by image name and number, `-` first, plain numbers next.
//! Rows of the same branch and target are summed.

use crate::address::{AddressNames, push_address, push_number};
use ptflow_decoder::profile::{EdgeKind, EdgeRow};
use std::io::{self, BufRead, Write};

/// The first line.
pub const HEADER: &str = "#ptflow-edges 1";

/// An address as it is sorted and written.
type Named<'n> = Option<(Option<&'n str>, u64)>;

/// Writes rows in any order as a sorted table.
pub fn write(out: &mut impl Write, rows: &[EdgeRow], names: &dyn AddressNames) -> io::Result<()> {
    let named = |addr: Option<_>| -> Named<'_> { addr.map(|addr| names.name(addr)) };
    let mut sorted: Vec<(Named<'_>, Named<'_>, &EdgeRow)> =
        rows.iter().map(|row| (named(row.from), named(row.to), row)).collect();
    sorted.sort_unstable_by(|a, b| (a.0, a.1, a.2.kind.name()).cmp(&(b.0, b.1, b.2.kind.name())));
    let mut text = format!("{HEADER}\n").into_bytes();
    let mut at = 0;
    while let Some((from, to, first)) = sorted.get(at) {
        let same = |row: &&(Named<'_>, Named<'_>, &EdgeRow)| {
            row.0 == *from && row.1 == *to && row.2.kind == first.kind
        };
        let group = sorted[at..].iter().take_while(same);
        let (mut taken, mut not_taken, mut mispredicted) = (0u64, 0u64, 0u64);
        for (_, _, row) in group {
            taken = taken.saturating_add(row.taken);
            not_taken = not_taken.saturating_add(row.not_taken);
            mispredicted = mispredicted.saturating_add(row.mispredicted);
            at += 1;
        }
        text.extend_from_slice(first.kind.name().as_bytes());
        for addr in [from, to] {
            text.push(b'\t');
            match addr {
                Some(addr) => push_address(&mut text, *addr),
                None => text.push(b'-'),
            }
        }
        for number in [taken, not_taken, mispredicted] {
            text.push(b'\t');
            push_number(&mut text, number);
        }
        text.push(b'\n');
        if text.len() >= 1 << 16 {
            out.write_all(&text)?;
            text.clear();
        }
    }
    out.write_all(&text)
}

/// A row as a file has it: addresses are text, as whoever wrote it named them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TextRow {
    /// Kind.
    pub kind: EdgeKind,
    /// From; `None` for `-`.
    pub from: Option<String>,
    /// To; `None` for `-`.
    pub to: Option<String>,
    /// Times taken.
    pub taken: u64,
    /// Times not taken.
    pub not_taken: u64,
    /// Times mispredicted.
    pub mispredicted: u64,
}

/// Reads the format back. Errors name the line.
pub fn read(input: impl BufRead) -> io::Result<Vec<TextRow>> {
    let bad = |line: usize, what: &str| {
        io::Error::new(io::ErrorKind::InvalidData, format!("line {}: {what}", line + 1))
    };
    let mut rows = Vec::new();
    for (index, line) in input.lines().enumerate() {
        let line = line?;
        if index == 0 {
            if line != HEADER {
                return Err(bad(index, "not an edge table: the first line must be #ptflow-edges 1"));
            }
            continue;
        }
        let fields: Vec<&str> = line.split('\t').collect();
        let [kind, from, to, counts @ ..] = fields.as_slice() else {
            return Err(bad(index, "fewer than three fields"));
        };
        let kind = EdgeKind::ALL.into_iter().find(|known| known.name() == *kind);
        let count = |at: usize| counts.get(at).and_then(|count| count.parse::<u64>().ok());
        let (Some(kind), Some(taken), Some(not_taken), Some(mispredicted), 3) =
            (kind, count(0), count(1), count(2), counts.len())
        else {
            return Err(bad(index, "not KIND, FROM, TO and three numbers"));
        };
        let addr = |text: &&str| (**text != *"-").then(|| (*text).to_owned());
        rows.push(TextRow { kind, from: addr(from), to: addr(to), taken, not_taken, mispredicted });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ptflow_decoder::profile::CodeAddr;
    use ptflow_decoder::units::ImageId;

    struct Names;
    impl AddressNames for Names {
        fn name(&self, addr: CodeAddr) -> (Option<&str>, u64) {
            (addr.image.map(|image| ["zlib", "libc"][image.0 as usize]), addr.addr)
        }
    }

    fn row(
        kind: EdgeKind,
        from: Option<CodeAddr>,
        to: Option<CodeAddr>,
        taken: u64,
        not_taken: u64,
    ) -> EdgeRow {
        EdgeRow { kind, from, to, taken, not_taken, mispredicted: 0 }
    }

    #[test]
    fn sorted_summed_and_read_back() {
        let at = |image, addr| Some(CodeAddr { image: Some(ImageId(image)), addr });
        let bare = |addr| Some(CodeAddr { image: None, addr });
        let rows = [
            row(EdgeKind::Jcc, at(0, 0x100), at(0, 0x20), 3, 4),
            row(EdgeKind::Call, at(1, 0x9000), at(0, 0x100), 1, 0),
            row(EdgeKind::Jcc, at(0, 0x100), at(0, 0x20), 1, 1),
            row(EdgeKind::Resume, None, at(0, 0x50), 7, 0),
            row(EdgeKind::Syscall, bare(0xffff), None, 2, 0),
        ];
        let mut out = Vec::new();
        write(&mut out, &rows, &Names).expect("a Vec takes all");
        let text = String::from_utf8(out).expect("text");
        assert_eq!(
            text,
            "#ptflow-edges 1\n\
             resume\t-\tzlib:0x50\t7\t0\t0\n\
             syscall\t0xffff\t-\t2\t0\t0\n\
             call\tlibc:0x9000\tzlib:0x100\t1\t0\t0\n\
             jcc\tzlib:0x100\tzlib:0x20\t4\t5\t0\n"
        );
        let back = read(text.as_bytes()).expect("our own format");
        assert_eq!(back.len(), 4);
        assert_eq!((back[3].taken, back[3].not_taken), (4, 5));
        assert_eq!(back[0].from, None);
    }

    #[test]
    fn errors_name_the_line() {
        let error = read("#ptflow-edges 1\njcc\t0x1\n".as_bytes()).expect_err("too short");
        assert!(error.to_string().starts_with("line 2:"), "{error}");
        assert!(read("jcc".as_bytes()).is_err());
        assert!(read("#ptflow-edges 1\nfoo\t-\t-\t1\t0\t0\n".as_bytes()).is_err());
    }
}
