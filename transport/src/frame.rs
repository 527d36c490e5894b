//! Length-prefixed frames, and the encoding of what is inside them.

use crate::Fault;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The largest frame, its length prefix not counted: a chunk of a snapshot of the map fits many times over.
pub const MAX_FRAME_BYTES: usize = 64 * 1024 * 1024;
/// Memory set aside for a frame before its bytes have arrived, so that a length alone costs nothing.
const FIRST_ALLOCATION_BYTES: usize = 64 * 1024;

/// Encodes a value with postcard.
///
/// Postcard refuses only values that cannot say their length; no message of this project is of that kind, and
/// the empty body that would be sent instead is refused by [`decode`] at the other side.
pub fn encode<T: Serialize>(value: &T) -> Bytes {
    match postcard::to_stdvec(value) {
        Ok(bytes) => Bytes::from(bytes),
        Err(error) => {
            tracing::error!(%error, "a message could not be encoded");
            Bytes::new()
        }
    }
}

/// The inverse of [`encode`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    postcard::from_bytes(bytes).map_err(|error| Fault(format!("the message cannot be decoded: {error}")))
}

/// Reads one frame and nothing beyond it, so that raw bytes may follow. A clean end before the first byte is
/// `UnexpectedEof`, as any other.
pub async fn read_frame(stream: &mut (impl AsyncRead + Unpin), limit: usize) -> io::Result<Bytes> {
    let length = stream.read_u32().await? as usize;
    if length > limit {
        return Err(too_large(length));
    }
    let mut body = Vec::with_capacity(length.min(FIRST_ALLOCATION_BYTES));
    let read = stream.take(length as u64).read_to_end(&mut body).await?;
    if read < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Bytes::from(body))
}

/// Writes one frame and flushes it.
pub async fn write_frame(stream: &mut (impl AsyncWrite + Unpin), body: &[u8]) -> io::Result<()> {
    put_frame(stream, &[], body).await?;
    stream.flush().await
}

/// Writes one frame of two parts, without flushing.
pub(crate) async fn put_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    head: &[u8],
    body: &[u8],
) -> io::Result<()> {
    let length = head.len() + body.len();
    if length > MAX_FRAME_BYTES {
        return Err(too_large(length));
    }
    let mut start = Vec::with_capacity(4 + head.len());
    start.extend_from_slice(&(length as u32).to_be_bytes());
    start.extend_from_slice(head);
    stream.write_all(&start).await?;
    stream.write_all(body).await
}

fn too_large(bytes: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {bytes} bytes is larger than is allowed"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn frames_leave_what_follows_them() {
        let mut wire = Vec::new();
        write_frame(&mut wire, b"hello").await.unwrap();
        wire.extend_from_slice(b"raw");
        let mut reader = &wire[..];
        assert_eq!(read_frame(&mut reader, 5).await.unwrap(), &b"hello"[..]);
        assert_eq!(reader, b"raw");
    }

    #[tokio::test]
    async fn a_frame_over_the_limit_is_refused_before_it_is_read() {
        let mut reader = &[0xff, 0xff, 0xff, 0xff, 1][..];
        let error = read_frame(&mut reader, MAX_FRAME_BYTES).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_frame_cut_short_is_an_error() {
        let mut reader = &[0, 0, 0, 9, 1, 2][..];
        let error = read_frame(&mut reader, 100).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn values_survive_the_encoding() {
        let value = (7u64, "seven".to_owned(), Some(vec![1u8, 2]));
        assert_eq!(decode::<(u64, String, Option<Vec<u8>>)>(&encode(&value)), Ok(value));
        assert!(decode::<u64>(&[]).is_err());
    }
}
