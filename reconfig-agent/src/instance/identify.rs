//! `IDENTIFY_SYSTEM`, the one question of the replication protocol that SQL cannot ask: the timeline of the last
//! record that was replayed. Functions of SQL know the timeline of the last restartpoint, which is too old, or of
//! the stream that was asked for, which may be too new.
//!
//! The driver has no replication mode, and this needs one message each way (protocol 3.0, "Message Formats").

use super::error::InstanceError;
use super::paths::SOCKET_NAME;
use super::settings::SUPERUSER;
use quorate_model::Timeline;
use std::io;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const WHAT: &str = "IDENTIFY_SYSTEM";
/// The answers are a few hundred bytes.
const MESSAGE_LIMIT_BYTES: usize = 64 * 1024;
/// Parameters, key, description, row: far fewer than this.
const MESSAGES_LIMIT: usize = 64;
const PROTOCOL_3_0: u32 = 196_608;

/// Asks for the timeline: on a standby that of the last replayed record, on a primary the current one.
pub async fn timeline(sockets: &Path) -> Result<Timeline, InstanceError> {
    let lost = |_: io::Error| InstanceError::Lost { what: WHAT };
    let mut stream = UnixStream::connect(sockets.join(SOCKET_NAME)).await.map_err(lost)?;
    stream.write_all(&startup()).await.map_err(lost)?;
    read_until(&mut stream, b'Z').await?;
    stream.write_all(&message(b'Q', b"IDENTIFY_SYSTEM\0")).await.map_err(lost)?;
    let row = read_until(&mut stream, b'D').await?;
    // Courtesy: the server ends without a complaint in its log.
    let _ = stream.write_all(&message(b'X', b"")).await;
    column(&row, 1)
        .and_then(|text| text.parse().ok())
        .map(Timeline)
        .ok_or_else(|| unexpected("no timeline in the row"))
}

fn startup() -> Vec<u8> {
    let mut body = PROTOCOL_3_0.to_be_bytes().to_vec();
    for word in ["user", SUPERUSER, "replication", "true", "application_name", "pg_basebackup"] {
        body.extend_from_slice(word.as_bytes());
        body.push(0);
    }
    body.push(0);
    let mut packet = (body.len() as u32 + 4).to_be_bytes().to_vec();
    packet.extend_from_slice(&body);
    packet
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![kind];
    packet.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    packet.extend_from_slice(body);
    packet
}

/// Reads messages up to the first of this kind and returns its body.
async fn read_until(stream: &mut UnixStream, wanted: u8) -> Result<Vec<u8>, InstanceError> {
    let lost = |_: io::Error| InstanceError::Lost { what: WHAT };
    for _ in 0..MESSAGES_LIMIT {
        let kind = stream.read_u8().await.map_err(lost)?;
        let length = stream.read_u32().await.map_err(lost)? as usize;
        if !(4..=MESSAGE_LIMIT_BYTES).contains(&length) {
            return Err(unexpected("a message of absurd length"));
        }
        let mut body = vec![0; length - 4];
        stream.read_exact(&mut body).await.map_err(lost)?;
        if kind == b'E' {
            return Err(refusal(&body));
        }
        if kind == wanted {
            return Ok(body);
        }
    }
    Err(unexpected("too many messages"))
}

/// A text column of a DataRow: count, then for each its length and bytes.
fn column(row: &[u8], index: usize) -> Option<&str> {
    let count = u16::from_be_bytes(row.get(..2)?.try_into().ok()?) as usize;
    let mut rest = &row[2..];
    for at in 0..count {
        let length = i32::from_be_bytes(rest.get(..4)?.try_into().ok()?);
        let length = usize::try_from(length).unwrap_or(0);
        let value = rest.get(4..4 + length)?;
        if at == index {
            return std::str::from_utf8(value).ok();
        }
        rest = &rest[4 + length..];
    }
    None
}

/// An ErrorResponse: fields of one letter and a zero-ended text.
fn refusal(body: &[u8]) -> InstanceError {
    let field = |letter: u8| {
        body.split(|b| *b == 0)
            .find(|field| field.first() == Some(&letter))
            .map(|field| String::from_utf8_lossy(&field[1..]).into_owned())
            .unwrap_or_default()
    };
    InstanceError::Sql { what: WHAT, sqlstate: field(b'C'), message: field(b'M') }
}

fn unexpected(detail: &str) -> InstanceError {
    InstanceError::Protocol { what: WHAT, detail: detail.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_a_row() {
        let mut row = vec![0, 3];
        row.extend([0, 0, 0, 2, b'4', b'2']);
        row.extend([0xff, 0xff, 0xff, 0xff]);
        row.extend([0, 0, 0, 1, b'7']);
        assert_eq!(column(&row, 0), Some("42"));
        assert_eq!(column(&row, 2), Some("7"));
        assert_eq!(column(&row, 3), None);
        assert_eq!(column(&row[..5], 0), None);
    }
}
