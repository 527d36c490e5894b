//! The first packet of a connection. Pure.
//!
//! A walreceiver, a base backup or a rewind begins with an untyped packet (protocol documentation, "StartupMessage"): length,
//! code, then pairs of zero-terminated strings. The tunnel reads it to decide whether the connection is let through,
//! and never passes it on: the end at the primary writes its own ([`write`]), from the identity of the replica that
//! asks. So nothing that a standby says in its connection string can make it count as another (DESIGN §6, "duplicate
//! application_name counts as synchronous").

use super::hello::Purpose;
use quorate_model::ReplicaId;

/// As PostgreSQL's own MAX_STARTUP_PACKET_LENGTH.
pub const STARTUP_LIMIT_BYTES: usize = 10_000;

/// The role by which every instance replicates; its only superuser.
pub const REPLICATION_USER: &str = "quorate";
/// The role of a rewind: it may read files of the data directory and has no other right.
pub const REWIND_USER: &str = "quorate_rewind";
/// Where that role may connect: the database of the daemon's own, never a tenant's.
pub const REWIND_DATABASE: &str = "postgres";

const PROTOCOL_3_0: u32 = 3 << 16;
const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;

/// What a connection asks for first.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// SSLRequest or GSSENCRequest: answered with 'N', another request follows.
    Encryption,
    /// CancelRequest: has no answer.
    Cancel,
    Open(Purpose),
}

/// Why a connection is not let through. The text is sent to it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    #[error("invalid length of startup packet")]
    Length,
    #[error("invalid startup packet layout")]
    Layout,
    #[error("unsupported frontend protocol {0}.{1}: the replication tunnel speaks 3.0")]
    Protocol(u16, u16),
    #[error("the replication tunnel takes connections of physical replication and of pg_rewind only")]
    NotReplication,
}

impl StartupError {
    pub fn sqlstate(&self) -> &'static str {
        match self {
            StartupError::Length | StartupError::Layout => "08P01",
            StartupError::Protocol(..) => "0A000",
            StartupError::NotReplication => "28000",
        }
    }
}

/// The length of what follows the length word.
pub fn body_length(word: [u8; 4]) -> Result<usize, StartupError> {
    let length = u32::from_be_bytes(word) as usize;
    if (8..=STARTUP_LIMIT_BYTES).contains(&length) { Ok(length - 4) } else { Err(StartupError::Length) }
}

/// Reads a packet without its length word.
pub fn read(body: &[u8]) -> Result<Request, StartupError> {
    let (code, parameters) = body.split_first_chunk::<4>().ok_or(StartupError::Layout)?;
    match u32::from_be_bytes(*code) {
        PROTOCOL_3_0 => read_parameters(parameters),
        SSL_REQUEST | GSSENC_REQUEST => Ok(Request::Encryption),
        CANCEL_REQUEST => Ok(Request::Cancel),
        other => Err(StartupError::Protocol((other >> 16) as u16, other as u16)),
    }
}

fn read_parameters(parameters: &[u8]) -> Result<Request, StartupError> {
    let list = parameters.strip_suffix(b"\0").ok_or(StartupError::Layout)?;
    let list = if list.is_empty() { list } else { list.strip_suffix(b"\0").ok_or(StartupError::Layout)? };
    let mut words = list.split(|b| *b == 0);
    let mut physical = None;
    let mut application: &[u8] = b"";
    while let Some(name) = words.next() {
        if name.is_empty() {
            break;
        }
        let value = words.next().ok_or(StartupError::Layout)?;
        match name {
            // "database" would be a logical connection, which runs any SQL.
            b"replication" => physical = Some(matches!(value, b"true" | b"on" | b"yes" | b"1")),
            b"application_name" => application = value,
            _ => {}
        }
    }
    let is = |name: &str| application == name.as_bytes();
    match physical {
        Some(true) if is(Purpose::COPY_APPLICATION) => Ok(Request::Open(Purpose::Copy)),
        Some(true) => Ok(Request::Open(Purpose::Stream)),
        None if is(Purpose::REWIND_APPLICATION) => Ok(Request::Open(Purpose::Rewind)),
        _ => Err(StartupError::NotReplication),
    }
}

/// The packet that the primary gets: nothing in it comes from the standby's packet but the purpose.
pub fn write(replica: ReplicaId, purpose: Purpose) -> Vec<u8> {
    let name = purpose.application_name(replica);
    let parameters = match purpose {
        Purpose::Stream | Purpose::Copy => [("user", REPLICATION_USER), ("replication", "true")],
        Purpose::Rewind => [("user", REWIND_USER), ("database", REWIND_DATABASE)],
    };
    let parameters = parameters.into_iter().chain([("application_name", name.as_str())]);
    let mut packet = vec![0; 4];
    packet.extend_from_slice(&PROTOCOL_3_0.to_be_bytes());
    for (key, value) in parameters {
        for word in [key, value] {
            packet.extend_from_slice(word.as_bytes());
            packet.push(0);
        }
    }
    packet.push(0);
    let length = packet.len() as u32;
    packet[..4].copy_from_slice(&length.to_be_bytes());
    packet
}

/// A FATAL ErrorResponse: the connection ends after it.
pub fn fatal(sqlstate: &str, message: &str) -> Vec<u8> {
    let mut packet = vec![b'E', 0, 0, 0, 0];
    for (field, value) in [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', sqlstate), (b'M', message)] {
        packet.push(field);
        packet.extend_from_slice(value.as_bytes());
        packet.push(0);
    }
    packet.push(0);
    let length = packet.len() as u32 - 1;
    packet[1..5].copy_from_slice(&length.to_be_bytes());
    packet
}

/// SQLSTATE and text of the body of an ErrorResponse, as far as it can be read.
pub fn explain(body: &[u8]) -> String {
    let mut sqlstate = String::new();
    let mut message = String::new();
    for field in body.split(|b| *b == 0) {
        match field.split_first() {
            Some((b'C', text)) => sqlstate = String::from_utf8_lossy(text).into_owned(),
            Some((b'M', text)) => message = String::from_utf8_lossy(text).into_owned(),
            _ => {}
        }
    }
    format!("{sqlstate} {message}").trim().to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn packet(code: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
        let mut body = code.to_be_bytes().to_vec();
        for (key, value) in parameters {
            body.extend_from_slice(format!("{key}\0{value}\0").as_bytes());
        }
        body.push(0);
        body
    }

    #[test]
    fn walreceiver_base_backup_and_rewind_pass() {
        let walreceiver = packet(
            PROTOCOL_3_0,
            &[
                ("user", "root"),
                ("database", "replication"),
                ("replication", "true"),
                ("application_name", "r1"),
            ],
        );
        assert_eq!(read(&walreceiver), Ok(Request::Open(Purpose::Stream)));
        let backup = packet(PROTOCOL_3_0, &[("replication", "true"), ("application_name", "pg_basebackup")]);
        assert_eq!(read(&backup), Ok(Request::Open(Purpose::Copy)));
        let rewind = packet(PROTOCOL_3_0, &[("user", "quorate"), ("application_name", "pg_rewind")]);
        assert_eq!(read(&rewind), Ok(Request::Open(Purpose::Rewind)));
        let nameless = packet(PROTOCOL_3_0, &[("replication", "1"), ("application_name", "")]);
        assert_eq!(read(&nameless), Ok(Request::Open(Purpose::Stream)));
    }

    #[test]
    fn everything_else_does_not() {
        for value in ["database", "false", "off", "", "0"] {
            let body = packet(PROTOCOL_3_0, &[("user", "quorate"), ("replication", value)]);
            assert_eq!(read(&body), Err(StartupError::NotReplication), "replication={value}");
        }
        assert_eq!(read(&packet(PROTOCOL_3_0, &[("user", "quorate")])), Err(StartupError::NotReplication));
        let logical = packet(PROTOCOL_3_0, &[("replication", "database"), ("application_name", "pg_rewind")]);
        assert_eq!(read(&logical), Err(StartupError::NotReplication));
        assert_eq!(read(&packet(PROTOCOL_3_0, &[])), Err(StartupError::NotReplication));
        assert_eq!(read(&packet((3 << 16) | 2, &[])), Err(StartupError::Protocol(3, 2)));
        assert_eq!(read(&packet(2 << 16, &[])), Err(StartupError::Protocol(2, 0)));
        assert_eq!(read(&SSL_REQUEST.to_be_bytes()), Ok(Request::Encryption));
        assert_eq!(read(&GSSENC_REQUEST.to_be_bytes()), Ok(Request::Encryption));
        assert_eq!(read(&packet(CANCEL_REQUEST, &[])), Ok(Request::Cancel));
    }

    #[test]
    fn broken_packets_are_errors_at_every_cut() {
        let whole = packet(PROTOCOL_3_0, &[("replication", "true"), ("application_name", "x")]);
        for cut in 0..whole.len() {
            assert!(read(&whole[..cut]).is_err(), "cut at {cut}");
        }
        for length in [0, 7, STARTUP_LIMIT_BYTES as u32 + 1, u32::MAX] {
            assert_eq!(body_length(length.to_be_bytes()), Err(StartupError::Length));
        }
        assert_eq!(body_length(8u32.to_be_bytes()), Ok(4));
    }

    #[test]
    fn what_it_writes_it_reads() {
        for purpose in [Purpose::Stream, Purpose::Copy, Purpose::Rewind] {
            let packet = write(ReplicaId(42), purpose);
            let (word, body) = packet.split_first_chunk::<4>().unwrap();
            assert_eq!(body_length(*word), Ok(body.len()));
            // A tunnel takes a rewind by the name that pg_rewind bears, and gives it another.
            assert_eq!(read(body).is_ok(), purpose != Purpose::Rewind);
            let text = String::from_utf8_lossy(body).into_owned();
            assert!(
                text.contains(&format!("application_name\0{}\0", purpose.application_name(ReplicaId(42))))
            );
        }
        let error = fatal("57P03", "not yet");
        assert_eq!(error.len(), 1 + u32::from_be_bytes(error[1..5].try_into().unwrap()) as usize);
        assert_eq!(explain(&error[5..]), "57P03 not yet");
    }
}
