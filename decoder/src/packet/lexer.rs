//! Bytes to packets.

use super::Packet;

/// The lexer's only state: inside a PEBS block some short TNT bytes are block items instead.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BlockContext {
    /// Outside a block.
    #[default]
    None,
    /// Items of four bytes.
    Short,
    /// Items of eight bytes.
    Long,
}

/// Why no packet could be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LexError {
    /// These bytes begin no legal packet.
    BadPacket,
    /// The bytes end inside a packet.
    Truncated,
}

/// Reads the packet at the start of `bytes`: the packet and its length in bytes (never 0).
pub fn lex(bytes: &[u8], context: &mut BlockContext) -> Result<(Packet, usize), LexError> {
    let _ = (bytes, context);
    Err(LexError::BadPacket)
}
