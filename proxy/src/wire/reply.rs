//! Messages that the proxy itself says, and the fields of those that Postgres says.

use super::header::c_string;

/// An ErrorResponse. Texts are safe to show: no addresses, paths or secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorReply {
    pub severity: &'static str,
    pub code: &'static str,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl ErrorReply {
    /// An error after which the session goes on.
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        ErrorReply { severity: "ERROR", code, message: message.into(), detail: None, hint: None }
    }

    /// An error that ends the session.
    pub fn fatal(code: &'static str, message: impl Into<String>) -> Self {
        ErrorReply { severity: "FATAL", ..Self::error(code, message) }
    }

    pub fn detail(mut self, text: impl Into<String>) -> Self {
        self.detail = Some(text.into());
        self
    }

    pub fn hint(mut self, text: impl Into<String>) -> Self {
        self.hint = Some(text.into());
        self
    }

    pub fn write(&self, out: &mut Vec<u8>) {
        let start = begin(out, b'E');
        let fields = [
            (b'S', Some(self.severity)),
            (b'V', Some(self.severity)),
            (b'C', Some(self.code)),
            (b'M', Some(self.message.as_str())),
            (b'D', self.detail.as_deref()),
            (b'H', self.hint.as_deref()),
        ];
        for (field, text) in fields {
            if let Some(text) = text {
                out.push(field);
                put_c_string(out, text.as_bytes());
            }
        }
        out.push(0);
        end(out, start);
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        self.write(&mut out);
        out
    }

    /// As a NoticeResponse, which has the same fields.
    pub fn notice_bytes(&self) -> Vec<u8> {
        let mut out = self.bytes();
        out[0] = b'N';
        out
    }
}

/// Starts a message; [`end`] sets its length.
pub fn begin(out: &mut Vec<u8>, tag: u8) -> usize {
    out.push(tag);
    out.extend_from_slice(&[0; 4]);
    out.len() - 4
}

pub fn end(out: &mut [u8], start: usize) {
    let length = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// Strings on the wire end at a zero byte, so none may be inside.
pub fn put_c_string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend(text.iter().copied().filter(|b| *b != 0));
    out.push(0);
}

pub const fn ready_for_query(status: u8) -> [u8; 6] {
    [b'Z', 0, 0, 0, 5, status]
}

pub const AUTHENTICATION_OK: [u8; 9] = [b'R', 0, 0, 0, 8, 0, 0, 0, 0];

/// `AuthenticationSASL` (10), `SASLContinue` (11) or `SASLFinal` (12).
pub fn authentication(out: &mut Vec<u8>, kind: u32, body: &[u8]) {
    let start = begin(out, b'R');
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(body);
    end(out, start);
}

pub fn backend_key(out: &mut Vec<u8>, pid: i32, secret: &[u8]) {
    let start = begin(out, b'K');
    out.extend_from_slice(&pid.to_be_bytes());
    out.extend_from_slice(secret);
    end(out, start);
}

pub fn command_complete(tag: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let start = begin(&mut out, b'C');
    put_c_string(&mut out, tag.as_bytes());
    end(&mut out, start);
    out
}

pub fn parameter_status(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let start = begin(out, b'S');
    put_c_string(out, name);
    put_c_string(out, value);
    end(out, start);
}

/// `NegotiateProtocolVersion`: the minor version that will be spoken, and the options we do not know.
pub fn negotiate_version(out: &mut Vec<u8>, minor: u16, unknown_options: &[String]) {
    let start = begin(out, b'v');
    out.extend_from_slice(&(0x0003_0000 | u32::from(minor)).to_be_bytes());
    out.extend_from_slice(&(unknown_options.len() as u32).to_be_bytes());
    for option in unknown_options {
        put_c_string(out, option.as_bytes());
    }
    end(out, start);
}

/// The fields of an ErrorResponse or NoticeResponse body.
pub fn fields(mut body: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (field, rest) = body.split_first()?;
        if *field == 0 {
            return None;
        }
        let (text, rest) = c_string(rest)?;
        body = rest;
        Some((*field, text))
    })
}

pub fn field(body: &[u8], wanted: u8) -> Option<&[u8]> {
    fields(body).find(|(f, _)| *f == wanted).map(|(_, text)| text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_error_has_its_fields() {
        let bytes = ErrorReply::fatal("57P01", "a\0b").hint("do x").bytes();
        let header = super::super::header::peek(&bytes).unwrap().unwrap();
        assert_eq!(header.total, bytes.len());
        assert_eq!(field(&bytes[5..], b'M'), Some(&b"ab"[..]));
        assert_eq!(field(&bytes[5..], b'V'), Some(&b"FATAL"[..]));
        assert_eq!(field(&bytes[5..], b'H'), Some(&b"do x"[..]));
        assert_eq!(field(&bytes[5..], b'D'), None);
    }
}
