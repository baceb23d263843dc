//! The branch list, line by line as a plain `format!` has it.

use ptflow_exporters::branches::{BranchWriter, Place};
use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;

#[test]
fn lines() -> io::Result<()> {
    let place = |image, number, symbol| Some(Place { address: (image, number), symbol });
    let mut writer = BranchWriter::new(Vec::new());
    writer.transfer(Some(0), Some(7), "jcc", place(Some("9f3c"), 0x1000, None), place(None, 0, None))?;
    writer.transfer(None, None, "resume", None, place(None, u64::MAX, None))?;
    writer.transfer(Some(u64::MAX), Some(u32::MAX), "async", place(None, 0xab, None), None)?;
    writer.transfer(
        Some(12),
        Some(7),
        "call",
        place(Some("libc"), 0x1010, Some(("main", 0x10))),
        place(Some("libc"), 0x2000, Some(("operator new(unsigned long)", 0))),
    )?;
    writer.gap(Some(13), Some(7), "overflow", 0)?;
    writer.gap(None, None, "no_image", 123_456)?;
    assert_eq!(
        String::from_utf8(writer.finish()?).expect("text"),
        "0\t7\tjcc\t9f3c:0x1000\t0x0\n\
         -\t-\tresume\t-\t0xffffffffffffffff\n\
         18446744073709551615\t4294967295\tasync\t0xab\t-\n\
         12\t7\tcall\tlibc:0x1010 main+0x10\tlibc:0x2000 operator new(unsigned long)\n\
         13\t7\tgap\toverflow\t0\n\
         -\t-\tgap\tno_image\t123456\n"
    );
    Ok(())
}

/// Takes a few bytes at a time, and counts flushes.
#[derive(Clone, Default)]
struct Slow(Rc<RefCell<(Vec<u8>, usize)>>);

impl Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(4097);
        self.0.borrow_mut().0.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.borrow_mut().1 += 1;
        Ok(())
    }
}

#[test]
fn long_lists_are_whole() -> io::Result<()> {
    let sink = Slow::default();
    let mut writer = BranchWriter::new(sink.clone());
    let mut expected = String::new();
    for number in 0..50_000u64 {
        let (from, to) = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15), number << (number % 40));
        let place = |number| Some(Place { address: (None, number), symbol: None });
        writer.transfer(Some(number * number), Some(3), "ret", place(from), place(to))?;
        expected += &format!("{}\t3\tret\t{from:#x}\t{to:#x}\n", number * number);
    }
    writer.finish()?;
    let (bytes, flushes) = sink.0.take();
    assert!(bytes == expected.as_bytes());
    assert_eq!(flushes, 1);
    Ok(())
}

#[test]
fn errors_of_the_sink_arrive() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut writer = BranchWriter::new(Closed);
    // Buffered lines fail at the latest in the end, a long list long before.
    let failed = (0..100_000).find(|number| writer.gap(Some(*number), None, "overflow", 0).is_err());
    assert!(failed.is_some());
    let mut writer = BranchWriter::new(Closed);
    writer.gap(None, None, "overflow", 0).expect("buffered");
    assert!(writer.finish().is_err());
}
