//! The five bytes in front of every message after startup (PostgreSQL documentation, "Message Formats").
//!
//! ```text
//! message := tag u8, length u32 big-endian (counts itself, not the tag), body
//! ```
//! The relay forwards bytes as they came; this is all that it looks at of most messages.

/// Tag and length.
pub const HEADER_BYTES: usize = 5;
/// The largest message PostgreSQL sends or accepts (`PQ_LARGE_MESSAGE_LIMIT`, 1 GiB - 2), rounded up.
pub const MAX_MESSAGE_BYTES: usize = 1 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub tag: u8,
    /// Bytes of the whole message, the tag included.
    pub total: usize,
}

/// A length that no message can have: what follows cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid message length")]
pub struct BadLength;

/// The header at the start of `bytes`, once there are enough of them.
#[inline]
pub fn peek(bytes: &[u8]) -> Result<Option<Header>, BadLength> {
    let [tag, a, b, c, d, ..] = *bytes else { return Ok(None) };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if !(4..MAX_MESSAGE_BYTES).contains(&length) {
        return Err(BadLength);
    }
    Ok(Some(Header { tag, total: length + 1 }))
}

/// The zero-terminated string at the start of `bytes`, and what follows it.
pub fn c_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|b| *b == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_needs_five_bytes() {
        assert_eq!(peek(b"Z\0\0\0"), Ok(None));
        assert_eq!(peek(b"Z\0\0\0\x05I"), Ok(Some(Header { tag: b'Z', total: 6 })));
        assert_eq!(peek(b"Z\0\0\0\x03"), Err(BadLength));
        assert_eq!(peek(b"Z\xff\0\0\x03"), Err(BadLength));
    }

    #[test]
    fn strings_end_at_zero() {
        assert_eq!(c_string(b"ab\0c"), Some((&b"ab"[..], &b"c"[..])));
        assert_eq!(c_string(b"ab"), None);
    }
}
