//! The bytes of a connection that many streams share. Pure.
//!
//! ```text
//! frame  := kind u8, length of the body u24 big-endian, stream u32 big-endian, body
//! open   := kind of stream u8, hello       only from the side that connected
//! data   := up to MAX_DATA_BYTES
//! window := u32 big-endian                 so much more may be sent
//! end    := nothing                        its sender says no more; it may still listen
//! reset  := why                            the stream is over in both directions
//! ```

use std::io;

pub(super) const HEAD_BYTES: usize = 8;
/// Longer writes become several frames, between which other streams have their turn.
pub(super) const MAX_DATA_BYTES: usize = 16 * 1024;
/// The largest body: that of an `Open`.
pub(super) const MAX_BODY_BYTES: usize = 65 * 1024;

const OPEN: u8 = 1;
const DATA: u8 = 2;
const WINDOW: u8 = 3;
const END: u8 = 4;
const RESET: u8 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    Open { kind: u8, hello: &'a [u8] },
    Data(&'a [u8]),
    Window(u32),
    End,
    Reset(&'a [u8]),
}

impl Frame<'_> {
    pub(super) fn put(&self, stream: u32, out: &mut Vec<u8>) {
        let grant;
        let (kind, first, body): (u8, &[u8], &[u8]) = match self {
            Frame::Open { kind, hello } => (OPEN, std::slice::from_ref(kind), hello),
            Frame::Data(bytes) => (DATA, &[], bytes),
            Frame::Window(bytes) => {
                grant = bytes.to_be_bytes();
                (WINDOW, &[], &grant)
            }
            Frame::End => (END, &[], &[]),
            Frame::Reset(why) => (RESET, &[], why),
        };
        let length = (first.len() + body.len()) as u32;
        out.extend_from_slice(&(u32::from(kind) << 24 | length).to_be_bytes());
        out.extend_from_slice(&stream.to_be_bytes());
        out.extend_from_slice(first);
        out.extend_from_slice(body);
    }
}

/// The frame at the front of `bytes`, its stream, and how long it is; `None` while it is not whole.
pub(super) fn front(bytes: &[u8]) -> io::Result<Option<(u32, Frame<'_>, usize)>> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() else { return Ok(None) };
    let [kind, a, b, c, stream @ ..] = *head;
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    let limit = match kind {
        DATA => MAX_DATA_BYTES,
        _ => MAX_BODY_BYTES,
    };
    if length > limit {
        return Err(malformed("a frame is larger than is allowed"));
    }
    let Some(body) = rest.get(..length) else { return Ok(None) };
    let frame = match kind {
        OPEN => {
            let (kind, hello) = body.split_first().ok_or_else(|| malformed("an empty open"))?;
            Frame::Open { kind: *kind, hello }
        }
        DATA => Frame::Data(body),
        WINDOW => {
            let grant = body.try_into().map_err(|_| malformed("a window of another size"))?;
            Frame::Window(u32::from_be_bytes(grant))
        }
        END => Frame::End,
        RESET => Frame::Reset(body),
        _ => return Err(malformed("an unknown kind of frame")),
    };
    Ok(Some((u32::from_be_bytes(stream), frame, HEAD_BYTES + length)))
}

pub(super) fn malformed(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn frames_survive_the_wire_however_they_are_cut() {
        let long = vec![7; MAX_DATA_BYTES];
        let all = [
            (1, Frame::Open { kind: 2, hello: b"d7" }),
            (u32::MAX, Frame::Data(&long)),
            (1, Frame::Data(b"")),
            (2, Frame::Window(u32::MAX)),
            (3, Frame::End),
            (4, Frame::Reset(b"no")),
        ];
        let mut bytes = Vec::new();
        for (stream, frame) in all {
            let begin = bytes.len();
            frame.put(stream, &mut bytes);
            for end in begin..bytes.len() {
                assert_eq!(front(&bytes[begin..end]).unwrap(), None);
            }
        }
        let mut rest = &bytes[..];
        for (stream, frame) in all {
            let (got_stream, got, length) = front(rest).unwrap().unwrap();
            assert_eq!((got_stream, got), (stream, frame));
            rest = &rest[length..];
        }
        assert_eq!(front(rest).unwrap(), None);
    }

    #[test]
    fn what_is_no_frame_is_refused_by_its_head() {
        for head in [[0, 0, 0, 0], [6, 0, 0, 0], [DATA, 1, 0, 0], [OPEN, 0x10, 0, 0], [OPEN, 0, 0, 0]] {
            assert!(front(&[&head[..], &[0; 4]].concat()).is_err(), "{head:?}");
        }
        assert!(front(&[WINDOW, 0, 0, 1, 0, 0, 0, 1, 9]).is_err());
    }
}
