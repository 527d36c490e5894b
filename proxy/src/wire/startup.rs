//! The first packets of a connection, before there are tagged messages (PostgreSQL documentation, "Start-up").
//!
//! ```text
//! packet  := length u32 (counts itself), code u32, body
//! startup := code 3.x, (name\0 value\0)*, \0
//! ```

use super::header::c_string;

/// The newest minor version of protocol 3 that is spoken: 2, which differs in the length of cancel keys.
pub const NEWEST_MINOR: u16 = 2;
/// Length of a cancel key's secret: 4 before protocol 3.2, and up to 256.
pub const SECRET_BYTES: std::ops::RangeInclusive<usize> = 4..=256;
/// The largest startup packet, as in PostgreSQL (`MAX_STARTUP_PACKET_LENGTH`).
pub const MAX_STARTUP_BYTES: usize = 10_000;

const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSSENC: u32 = 80_877_104;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    Ssl,
    GssEnc,
    Cancel { pid: i32, secret: Vec<u8> },
    Startup(Startup),
}

/// What a client asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Startup {
    pub user: String,
    /// The user's name when none was given.
    pub database: String,
    /// Everything else that is for the server, in the client's order.
    pub parameters: Vec<(String, String)>,
    /// Protocol options (`_pq_.`) that we do not know.
    pub unknown_options: Vec<String>,
    /// The minor protocol version that was asked for.
    pub minor: u16,
    pub replication: bool,
}

impl Startup {
    /// Whether something was asked for that is not spoken here: the client is to be told what is.
    pub fn needs_negotiation(&self) -> bool {
        self.minor > NEWEST_MINOR || !self.unknown_options.is_empty()
    }

    /// Whether the client takes a cancel key of more than 4 bytes.
    pub fn takes_long_secrets(&self) -> bool {
        self.minor >= 2
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadStartup {
    #[error("invalid length of startup packet")]
    Length,
    #[error("unsupported frontend protocol {0}.{1}: server supports 3.0 to 3.2")]
    Version(u16, u16),
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Layout,
    #[error("startup packet is not valid UTF-8")]
    Encoding,
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
}

impl BadStartup {
    pub fn sqlstate(&self) -> &'static str {
        match self {
            BadStartup::Version(..) => "0A000",
            BadStartup::NoUser => "28000",
            _ => "08P01",
        }
    }
}

/// How many bytes follow the length word.
pub fn body_length(length: [u8; 4]) -> Result<usize, BadStartup> {
    let length = u32::from_be_bytes(length) as usize;
    if (8..=MAX_STARTUP_BYTES).contains(&length) { Ok(length - 4) } else { Err(BadStartup::Length) }
}

/// Reads a packet without its length word.
pub fn parse(packet: &[u8]) -> Result<Packet, BadStartup> {
    let (code, body) = packet.split_first_chunk::<4>().ok_or(BadStartup::Length)?;
    match u32::from_be_bytes(*code) {
        SSL => Ok(Packet::Ssl),
        GSSENC => Ok(Packet::GssEnc),
        CANCEL => {
            let (pid, secret) = body.split_first_chunk::<4>().ok_or(BadStartup::Length)?;
            if !SECRET_BYTES.contains(&secret.len()) {
                return Err(BadStartup::Length);
            }
            Ok(Packet::Cancel { pid: i32::from_be_bytes(*pid), secret: secret.to_vec() })
        }
        version => {
            let (major, minor) = ((version >> 16) as u16, version as u16);
            if major != 3 {
                return Err(BadStartup::Version(major, minor));
            }
            parse_parameters(body, minor).map(Packet::Startup)
        }
    }
}

fn parse_parameters(mut body: &[u8], minor: u16) -> Result<Startup, BadStartup> {
    let mut startup = Startup { minor, ..Startup::default() };
    loop {
        let (name, rest) = c_string(body).ok_or(BadStartup::Layout)?;
        if name.is_empty() {
            if !rest.is_empty() {
                return Err(BadStartup::Layout);
            }
            break;
        }
        let (value, rest) = c_string(rest).ok_or(BadStartup::Layout)?;
        body = rest;
        let name = std::str::from_utf8(name).map_err(|_| BadStartup::Encoding)?;
        let value = std::str::from_utf8(value).map_err(|_| BadStartup::Encoding)?;
        match name {
            "user" => startup.user = value.to_owned(),
            "database" => startup.database = value.to_owned(),
            // Off is what it is without being said.
            "replication" => {
                let off = ["false", "off", "no", "0"];
                startup.replication = !off.iter().any(|o| value.eq_ignore_ascii_case(o));
            }
            _ if name.starts_with("_pq_.") => startup.unknown_options.push(name.to_owned()),
            _ => startup.parameters.push((name.to_owned(), value.to_owned())),
        }
    }
    if startup.user.is_empty() {
        return Err(BadStartup::NoUser);
    }
    if startup.database.is_empty() {
        startup.database.clone_from(&startup.user);
    }
    Ok(startup)
}

/// A StartupMessage of protocol 3.0, its length word included.
pub fn startup_message(user: &str, database: &str, parameters: &[(String, String)]) -> Vec<u8> {
    let mut out = vec![0; 4];
    out.extend_from_slice(&0x0003_0000u32.to_be_bytes());
    let named = [("user", user), ("database", database)];
    let rest = parameters.iter().map(|(n, v)| (n.as_str(), v.as_str()));
    for (name, value) in named.into_iter().chain(rest) {
        super::reply::put_c_string(&mut out, name.as_bytes());
        super::reply::put_c_string(&mut out, value.as_bytes());
    }
    out.push(0);
    let length = (out.len() as u32).to_be_bytes();
    out[..4].copy_from_slice(&length);
    out
}

/// A CancelRequest, its length word included.
pub fn cancel_request(pid: i32, secret: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(12 + secret.len());
    out.extend_from_slice(&(12 + secret.len() as u32).to_be_bytes());
    out.extend_from_slice(&CANCEL.to_be_bytes());
    out.extend_from_slice(&pid.to_be_bytes());
    out.extend_from_slice(secret);
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let parameters = vec![("application_name".to_owned(), "x".to_owned())];
        let bytes = startup_message("u", "d", &parameters);
        assert_eq!(body_length(bytes[..4].try_into().unwrap()), Ok(bytes.len() - 4));
        let expected = Startup { user: "u".into(), database: "d".into(), parameters, ..Startup::default() };
        assert_eq!(parse(&bytes[4..]), Ok(Packet::Startup(expected)));
        for bytes in [4, 32, 256] {
            let secret = vec![9; bytes];
            assert_eq!(parse(&cancel_request(7, &secret)[4..]), Ok(Packet::Cancel { pid: 7, secret }));
        }
        for bytes in [0, 3, 257] {
            assert_eq!(parse(&cancel_request(7, &vec![9; bytes])[4..]), Err(BadStartup::Length));
        }
    }

    #[test]
    fn bad_packets_are_refused() {
        assert_eq!(body_length([0, 0, 0x27, 0x11]), Err(BadStartup::Length));
        assert_eq!(body_length([0, 0, 0, 7]), Err(BadStartup::Length));
        assert_eq!(parse(&[0, 2, 0, 0, 0]), Err(BadStartup::Version(2, 0)));
        assert_eq!(parse(b"\0\x03\0\0user\0u\0"), Err(BadStartup::Layout));
        assert_eq!(parse(b"\0\x03\0\0user\0u\0\0x"), Err(BadStartup::Layout));
        assert_eq!(parse(b"\0\x03\0\0\0"), Err(BadStartup::NoUser));
        assert_eq!(parse(b"\0\x03\0\0user\0\xff\0\0"), Err(BadStartup::Encoding));
    }

    #[test]
    fn the_database_defaults_to_the_user_and_options_are_kept_apart() {
        let Ok(Packet::Startup(s)) = parse(b"\0\x03\0\x02user\0u\0_pq_.x\0on\0replication\0database\0\0")
        else {
            panic!("a startup packet")
        };
        assert_eq!((s.database.as_str(), s.minor, s.replication), ("u", 2, true));
        assert_eq!(s.unknown_options, ["_pq_.x"]);
    }
}
