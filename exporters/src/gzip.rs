//! gzip around any format.

use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::{self, Write};

/// Compresses what is written through it; [`Write::flush`] ends the stream, for the writers of this crate flush last.
pub struct Gzip<W: Write>(Option<GzEncoder<W>>, Option<W>);

impl<W: Write> Gzip<W> {
    /// Level 1: traces shrink to a tenth at once, and little more at any price.
    pub fn new(out: W) -> Self {
        Self(Some(GzEncoder::new(out, Compression::fast())), None)
    }
}

impl<W: Write> Write for Gzip<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Some(encoder) => encoder.write(bytes),
            None => Err(io::Error::other("the gzip stream is ended")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Some(encoder) = self.0.take() {
            self.1 = Some(encoder.finish()?);
        }
        self.1.as_mut().map_or(Ok(()), Write::flush)
    }
}
