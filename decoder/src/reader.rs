//! Packets out of the pieces of a stream, also where one straddles two pieces.

use crate::packet::Packet;
use crate::packet::lexer::{BlockContext, LexError, lex};
use crate::stream::{Piece, TraceStream};
use crate::units::AuxOffset;

/// The longest packet is a PSB: 16 bytes (CYC may have 15 by format).
pub const MAX_PACKET: usize = 16;

/// A position in a stream: a piece and a byte in it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Position {
    /// Index of the piece.
    pub piece: usize,
    /// Byte in the piece.
    pub byte: usize,
}

/// Reads packets from a position on, up to the next break of the stream.
#[derive(Clone, Debug)]
pub struct Reader<'a, 'm> {
    pieces: &'a [Piece<'m>],
    at: Position,
    context: BlockContext,
}

impl<'a, 'm> Reader<'a, 'm> {
    /// A reader at a position.
    pub fn new(stream: &'a TraceStream<'m>, at: Position) -> Self {
        Self::of(&stream.pieces, at)
    }

    /// A reader at a position of a stream's pieces.
    pub(crate) fn of(pieces: &'a [Piece<'m>], at: Position) -> Self {
        Self { pieces, at, context: BlockContext::None }
    }

    /// The position.
    pub fn at(&self) -> Position {
        self.at
    }

    /// The position in the AUX stream.
    pub fn offset(&self) -> AuxOffset {
        self.pieces
            .get(self.at.piece)
            .map_or(AuxOffset(u64::MAX), |piece| AuxOffset(piece.offset.0.wrapping_add(self.at.byte as u64)))
    }

    /// The bytes from here to the end of the piece.
    #[inline]
    pub fn rest(&self) -> &'m [u8] {
        self.pieces.get(self.at.piece).and_then(|piece| piece.bytes.get(self.at.byte..)).unwrap_or(&[])
    }

    /// The position some bytes before, or as far back as the bytes hold together.
    pub fn back(&self, mut bytes: usize) -> Position {
        let mut at = self.at;
        while bytes > at.byte && self.pieces.get(at.piece).is_some_and(|piece| piece.break_before.is_none()) {
            let Some(piece) = at.piece.checked_sub(1) else { break };
            bytes -= at.byte;
            at = Position { piece, byte: self.pieces[piece].bytes.len() };
        }
        Position { byte: at.byte.saturating_sub(bytes), ..at }
    }

    fn next_piece(&self, piece: usize) -> Option<&'a Piece<'m>> {
        self.pieces.get(piece + 1).filter(|next| next.break_before.is_none())
    }

    /// The packet here and its length; `None` at the end.
    pub fn peek(&self) -> Option<Result<(Packet, usize), LexError>> {
        let mut context = self.context;
        self.lex_here(&mut context)
    }

    /// Takes the packet here; the caller then moves on with [`Self::skip`].
    pub fn read(&mut self) -> Option<Result<(Packet, usize), LexError>> {
        let mut context = self.context;
        let packet = self.lex_here(&mut context);
        self.context = context;
        packet
    }

    fn lex_here(&self, context: &mut BlockContext) -> Option<Result<(Packet, usize), LexError>> {
        let rest = self.rest();
        if rest.len() >= MAX_PACKET || self.next_piece(self.at.piece).is_none() {
            return (!rest.is_empty()).then(|| lex(rest, context));
        }
        let (joined, len) = self.joined();
        (len > 0).then(|| lex(&joined[..len], context))
    }

    /// Whether these bytes come next, in one piece or in several. At most [`MAX_PACKET`] bytes.
    pub fn starts_with(&self, bytes: &[u8]) -> bool {
        let (joined, len) = self.joined();
        joined[..len].starts_with(bytes)
    }

    /// The next bytes, as many as the longest packet has or the stretch holds.
    fn joined(&self) -> ([u8; MAX_PACKET], usize) {
        let mut joined = [0u8; MAX_PACKET];
        let (mut bytes, mut piece, mut len) = (self.rest(), self.at.piece, 0);
        loop {
            let take = bytes.len().min(MAX_PACKET - len);
            joined[len..len + take].copy_from_slice(&bytes[..take]);
            len += take;
            match self.next_piece(piece) {
                Some(next) if len < MAX_PACKET => bytes = next.bytes,
                _ => return (joined, len),
            }
            piece += 1;
        }
    }

    /// Moves on by some bytes, into the next piece where this one ends; says whether a new piece began.
    #[inline]
    pub fn skip(&mut self, bytes: usize) -> bool {
        self.at.byte += bytes;
        let mut moved = false;
        while let Some(piece) = self.pieces.get(self.at.piece)
            && self.at.byte >= piece.bytes.len()
            && self.next_piece(self.at.piece).is_some()
        {
            self.at.byte -= piece.bytes.len();
            self.at.piece += 1;
            moved = true;
        }
        moved
    }

    /// The reference time of the piece.
    pub fn reference(&self) -> Option<crate::units::Tsc> {
        self.pieces.get(self.at.piece)?.reference
    }

    /// Outside any block from here on.
    pub fn reset_context(&mut self) {
        self.context = BlockContext::None;
    }

    /// True where bytes begin that are no PSB's and a block is open: only the careful walker knows those.
    pub fn in_block(&self) -> bool {
        self.context != BlockContext::None
    }
}

/// Bytes from one position to a later one; 0 where it is none.
pub fn bytes_between(pieces: &[Piece<'_>], from: Position, to: Position) -> usize {
    let Some(between) = pieces.get(from.piece..to.piece) else { return 0 };
    let between: usize = between.iter().map(|piece| piece.bytes.len()).sum();
    (between + to.byte).saturating_sub(from.byte)
}
