//! The messages by which a transaction block is opened. Pure.

use super::header::c_string;
use super::reply::{begin, end};
use std::sync::LazyLock;

/// Longer ones are none.
const MAX_TEXT: usize = 40;

/// Opens a block in front of a message of the client; nothing of that is carried out unless the block is open. The unnamed
/// statement is used, and closed: a BEGIN of the client's own would have ended it too.
pub static AHEAD: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut out = Vec::with_capacity(48);
    message(&mut out, b'P', b"\0BEGIN\0\0\0");
    message(&mut out, b'B', &[0; 8]);
    message(&mut out, b'E', &[0; 5]);
    message(&mut out, b'C', b"S\0");
    out
});

/// Opens a block, and says so.
pub static ALONE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut out = Vec::with_capacity(16);
    message(&mut out, b'Q', b"BEGIN\0");
    out
});

fn message(out: &mut Vec<u8>, tag: u8, body: &[u8]) {
    let start = begin(out, tag);
    out.extend_from_slice(body);
    end(out, start);
}

/// Whether the text of a Query opens a transaction block as the session's settings have it, and does nothing else.
#[inline]
pub fn opens_plainly(text: &[u8]) -> bool {
    // Asked of every Query outside a block.
    text.len() <= MAX_TEXT && is_plain(text)
}

fn is_plain(text: &[u8]) -> bool {
    let Some((text, [])) = c_string(text) else { return false };
    let text = text.trim_ascii();
    let text = text.strip_suffix(b";").unwrap_or(text);
    let mut words = text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let is =
        |word: Option<&[u8]>, text: &str| word.is_some_and(|word| word.eq_ignore_ascii_case(text.as_bytes()));
    let first = words.next();
    if is(first, "start") {
        return is(words.next(), "transaction") && words.next().is_none();
    }
    let second = words.next();
    let more = second.is_none() || is(second, "work") || is(second, "transaction");
    is(first, "begin") && more && words.next().is_none()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::wire::header::peek;

    #[test]
    fn only_a_plain_begin_is_one() {
        for text in [
            "begin",
            "BEGIN;",
            " Begin Work ;",
            "begin transaction",
            "start  transaction",
            "START TRANSACTION;\n",
        ] {
            assert!(opens_plainly(format!("{text}\0").as_bytes()), "{text}");
        }
        for text in [
            "begin isolation level serializable",
            "begin read only",
            "begin; select 1",
            "begin;;",
            "begin work transaction",
            "start",
            "start work",
            "beginning",
            "begin -- well",
            "/* */ begin",
            "select 1",
            "",
        ] {
            assert!(!opens_plainly(format!("{text}\0").as_bytes()), "{text}");
        }
        assert!(!opens_plainly(b"begin"), "not a whole text");
        assert!(!opens_plainly(b"begin\0x\0"), "something behind it");
    }

    #[test]
    fn messages_are_framed() {
        for (bytes, tags) in [(&AHEAD[..], "PBEC"), (&ALONE[..], "Q")] {
            let mut seen = String::new();
            let mut rest = bytes;
            while let Some(header) = peek(rest).unwrap() {
                seen.push(header.tag as char);
                rest = &rest[header.total..];
            }
            assert!(rest.is_empty());
            assert_eq!(seen, tags);
        }
    }
}
