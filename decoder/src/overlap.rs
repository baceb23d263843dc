//! Snapshots of a ring buffer: each may begin with what the one before ended with.
//!
//! ```text
//! ring       ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
//! snapshot 1   ├──┬───────┬───────┬───┤
//! snapshot 2             ├┬───────┬───────┬─────┤       ┬ a PSB
//! kept         ├──┬───────┬───────┤                     the last PSB of 1 and what follows it
//!                                 ├───────┬─────┤       is in 2, with all that came after
//! ```
//!
//! Offsets tell nothing in a ring; the bytes do. What follows a PSB begins with its time, so equal bytes are the same.

use crate::psb::{PSB, next_psb};
use crate::stream::{Break, Piece};

/// The part of a piece that is not told by another piece too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Kept {
    /// First byte.
    pub from: usize,
    /// One past the last byte.
    pub to: usize,
    /// It goes on exactly where the kept part before ended.
    pub joined: bool,
}

/// perf pads a snapshot to this many bytes.
const PADDING: usize = 8;
/// So many equal bytes are no chance: a PSB, and what tells its time.
const SURE: usize = PSB.len() + 32;

/// What is kept of each piece.
pub(crate) fn kept(pieces: &[Piece<'_>]) -> Vec<Kept> {
    let mut kept: Vec<Kept> = Vec::with_capacity(pieces.len());
    // The last snapshot of which anything is kept.
    let mut last = None;
    for (index, piece) in pieces.iter().enumerate() {
        let all = Kept { from: 0, to: piece.bytes.len(), joined: false };
        kept.push(all);
        match (piece.break_before, last) {
            (Some(Break::Snapshot), Some(before)) => match meet(pieces, before, piece.bytes) {
                Meet::No => last = Some(index),
                Meet::Nothing => kept[index].to = 0,
                Meet::At { end, from } => {
                    let before: &mut Kept = &mut kept[before];
                    // Where the one before is kept only from behind its PSB on, so is this one instead of it.
                    let gone = before.from.saturating_sub(end);
                    before.to = end.max(before.from);
                    kept[index] = Kept { from: from + gone, joined: true, ..all };
                    last = Some(index);
                }
            },
            (Some(_), _) => last = Some(index),
            // Snapshots are a piece each.
            (None, _) => last = None,
        }
    }
    kept
}

/// How a snapshot meets the one before.
enum Meet {
    /// They have nothing in common.
    No,
    /// It tells nothing new.
    Nothing,
    /// The one before may end at `end`, and this one goes on there from `from`.
    At { end: usize, from: usize },
}

fn meet(pieces: &[Piece<'_>], before: usize, bytes: &[u8]) -> Meet {
    let old = pieces[before].bytes;
    let Some(end) = psbs(old).filter(|at| old.len() - at >= SURE + PADDING).last() else { return Meet::No };
    let tail = &old[end..old.len() - PADDING];
    for from in psbs(bytes) {
        let rest = &bytes[from..];
        if rest.starts_with(tail) {
            return Meet::At { end, from };
        }
        let len = rest.len().saturating_sub(PADDING);
        if len >= SURE && tail.starts_with(&rest[..len]) {
            return Meet::Nothing;
        }
    }
    Meet::No
}

/// Where PSBs begin.
fn psbs(bytes: &[u8]) -> impl Iterator<Item = usize> {
    std::iter::successors(next_psb(bytes, 0), |at| next_psb(bytes, at + PSB.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::encoder::encode;
    use crate::packet::{Packet, TntBits};
    use crate::units::AuxOffset;
    use proptest::prelude::*;

    /// A trace with a PSB every so often, which no two have at one time.
    fn trace() -> Vec<u8> {
        let mut bytes = Vec::new();
        for segment in 0..40u64 {
            for packet in [Packet::Psb, Packet::Tsc { tsc: 1_000_000 * segment }, Packet::PsbEnd] {
                encode(&packet, &mut bytes);
            }
            for bit in 0..60 + segment % 7 * 11 {
                encode(&Packet::ShortTnt(TntBits { bits: bit % 64, count: 6 }), &mut bytes);
            }
        }
        bytes
    }

    fn pieces(snapshots: &[Vec<u8>]) -> Vec<Piece<'_>> {
        fn piece((index, bytes): (usize, &Vec<u8>)) -> Piece<'_> {
            Piece {
                offset: AuxOffset(index as u64 * 1_000_000),
                bytes,
                break_before: Some(if index == 0 { Break::Start } else { Break::Snapshot }),
                reference: None,
            }
        }
        snapshots.iter().enumerate().map(piece).collect()
    }

    proptest! {
        /// Windows over one trace, each further on: what is kept is the trace, once.
        #[test]
        fn windows(steps in proptest::collection::vec((0..600usize, 200..2_500usize, 0..8usize), 1..12)) {
            let trace = trace();
            let (mut start, mut end) = (0, 0);
            let mut snapshots = Vec::new();
            for (step, len, padding) in steps {
                start = (start + step).min(trace.len());
                end = (start + len).max(end).min(trace.len());
                let mut bytes = trace[start..end].to_vec();
                bytes.resize(bytes.len() + padding, 0);
                snapshots.push((start, bytes));
            }
            let bytes: Vec<Vec<u8>> = snapshots.iter().map(|(_, bytes)| bytes.clone()).collect();
            let pieces = pieces(&bytes);
            let kept = kept(&pieces);
            let mut reached = 0;
            for (index, kept) in kept.iter().enumerate() {
                prop_assert!(kept.from <= kept.to && kept.to <= bytes[index].len());
                if kept.to == 0 {
                    continue;
                }
                let place = snapshots[index].0 + kept.from;
                if kept.joined {
                    prop_assert_eq!(place, reached, "{:?}", kept);
                } else if let Some(psb) = next_psb(&bytes[index], kept.from) {
                    // No whole segment twice.
                    prop_assert!(snapshots[index].0 + psb + SURE + PADDING > reached || reached == 0);
                }
                reached = snapshots[index].0 + kept.to;
            }
        }

        #[test]
        fn any_bytes(snapshots in proptest::collection::vec(
            proptest::collection::vec(prop_oneof![Just(0x02u8), Just(0x82), Just(0)], 0..200), 0..6,
        )) {
            let pieces = pieces(&snapshots);
            for (kept, piece) in kept(&pieces).iter().zip(&pieces) {
                prop_assert!(kept.from <= kept.to && kept.to <= piece.bytes.len());
            }
        }
    }
}
