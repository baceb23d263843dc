//! Compressed output is the same bytes again, in members of its own, for every number of threads.

use flate2::read::{GzDecoder, MultiGzDecoder};
use ptflow_exporters::gzip::Gzip;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;

/// Bytes that compress somewhat.
fn plain(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state >> 33 & 0xffff).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn compressed(plain: &[u8], threads: usize, piece: usize) -> Vec<u8> {
    let mut file = Vec::new();
    let mut gzip = Gzip::with_threads(&mut file, NonZeroUsize::new(threads).expect("some"));
    for piece in plain.chunks(piece) {
        gzip.write_all(piece).expect("a Vec takes all");
    }
    gzip.flush().expect("a Vec takes all");
    file
}

fn decompressed(file: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    MultiGzDecoder::new(file).read_to_end(&mut plain).expect("a gzip file");
    plain
}

#[test]
fn the_same_again_for_every_number_of_threads() {
    const MIB: usize = 1 << 20;
    for len in [0, 1, 1000, MIB - 1, MIB, MIB + 1, 3 * MIB, 5 * MIB + 77] {
        let plain = plain(len);
        let file = compressed(&plain, 1, usize::MAX);
        assert!(decompressed(&file) == plain, "{len}");
        assert!(file.len() < plain.len() / 2 + 50, "{len}: {}", file.len());
        for (threads, piece) in [(1, 1021), (2, 100_003), (3, 2 * MIB), (16, MIB)] {
            assert!(compressed(&plain, threads, piece) == file, "{len} on {threads} threads");
        }
    }
}

#[test]
fn members_stand_alone() {
    let plain = plain(2_500_000);
    let file = compressed(&plain, 2, usize::MAX);
    let mut left = file.as_slice();
    let mut members = Vec::new();
    while !left.is_empty() {
        let mut decoder = flate2::bufread::GzDecoder::new(left);
        let mut member = Vec::new();
        decoder.read_to_end(&mut member).expect("a member");
        left = decoder.into_inner();
        members.push(member);
    }
    assert_eq!(members.len(), 3);
    assert!(members.concat() == plain);
}

#[test]
fn nothing_is_a_gzip_file_too() {
    let file = compressed(&[], 1, 1);
    let mut plain = Vec::new();
    GzDecoder::new(file.as_slice()).read_to_end(&mut plain).expect("one whole member");
    assert!(plain.is_empty());
}

#[test]
fn a_second_flush_adds_nothing() {
    let mut file = Vec::new();
    let mut gzip = Gzip::new(&mut file);
    gzip.write_all(b"once").expect("a Vec takes all");
    gzip.flush().expect("a Vec takes all");
    gzip.flush().expect("a Vec takes all");
    assert_eq!(file, compressed(b"once", 1, 4));
}

#[test]
fn errors_of_the_sink_arrive() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    for threads in [1, 3] {
        let mut gzip = Gzip::with_threads(Full, NonZeroUsize::new(threads).expect("some"));
        let written = gzip.write_all(&plain(5_000_000)).and_then(|()| gzip.flush());
        assert_eq!(written.map_err(|error| error.kind()), Err(io::ErrorKind::StorageFull));
    }
}
