//! The bytes of a connection's preface and of calls. Pure.
//!
//! ```text
//! preface := version u8 (1), purpose u8 (0: rpc, 255: many streams, else the kind of stream), hello bytes
//! reply   := empty when accepted, else the refusal's text
//! call    := tag u8 (1), id u64 big-endian, service u8, body
//! answer  := tag u8 (2: result, 3: fault), id u64 big-endian, body
//! ```

use crate::{Service, StreamKind};
use bytes::{Buf, Bytes};

pub(crate) const VERSION: u8 = 1;
/// The largest preface: what a stream's opener says of it.
pub(crate) const MAX_PREFACE_BYTES: usize = 64 * 1024;
/// Bytes of a frame around a call's body.
pub(crate) const CALL_HEAD_BYTES: usize = 10;

const PURPOSE_RPC: u8 = 0;
const PURPOSE_STREAMS: u8 = u8::MAX;
const TAG_CALL: u8 = 1;
const TAG_RESULT: u8 = 2;
const TAG_FAULT: u8 = 3;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Preface {
    Rpc,
    /// Many streams, each of which says by itself what it is for.
    Streams,
    Stream(StreamKind, Bytes),
}

impl Preface {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Preface::Rpc => vec![VERSION, PURPOSE_RPC],
            Preface::Streams => vec![VERSION, PURPOSE_STREAMS],
            Preface::Stream(kind, hello) => [&[VERSION, *kind as u8][..], hello].concat(),
        }
    }

    pub(crate) fn decode(mut frame: Bytes) -> Result<Self, String> {
        let (Ok(version), Ok(purpose)) = (frame.try_get_u8(), frame.try_get_u8()) else {
            return Err("the preface is too short".to_owned());
        };
        if version != VERSION {
            return Err(format!("protocol version {version} is not spoken here, only {VERSION}"));
        }
        match purpose {
            PURPOSE_RPC => return Ok(Preface::Rpc),
            PURPOSE_STREAMS => return Ok(Preface::Streams),
            _ => {}
        }
        match StreamKind::from_wire(purpose) {
            Some(kind) => Ok(Preface::Stream(kind, frame)),
            None => Err(format!("streams of kind {purpose} are not known here")),
        }
    }
}

/// A call as it arrives.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) id: u64,
    /// `None` for a service that this version does not know.
    pub(crate) service: Option<Service>,
    pub(crate) body: Bytes,
}

impl Call {
    pub(crate) fn head(id: u64, service: Service) -> [u8; CALL_HEAD_BYTES] {
        let mut head = [0; CALL_HEAD_BYTES];
        head[0] = TAG_CALL;
        head[1..9].copy_from_slice(&id.to_be_bytes());
        head[9] = service as u8;
        head
    }

    pub(crate) fn decode(mut frame: Bytes) -> Option<Self> {
        if frame.try_get_u8().ok()? != TAG_CALL {
            return None;
        }
        let id = frame.try_get_u64().ok()?;
        let service = Service::from_wire(frame.try_get_u8().ok()?);
        Some(Call { id, service, body: frame })
    }
}

/// An answer as it arrives.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) id: u64,
    /// A fault's text is in `Err`.
    pub(crate) result: Result<Bytes, String>,
}

impl Answer {
    pub(crate) fn head(id: u64, is_fault: bool) -> [u8; 9] {
        let mut head = [0; 9];
        head[0] = if is_fault { TAG_FAULT } else { TAG_RESULT };
        head[1..9].copy_from_slice(&id.to_be_bytes());
        head
    }

    pub(crate) fn decode(mut frame: Bytes) -> Option<Self> {
        let tag = frame.try_get_u8().ok()?;
        let id = frame.try_get_u64().ok()?;
        let result = match tag {
            TAG_RESULT => Ok(frame),
            TAG_FAULT => Err(String::from_utf8_lossy(&frame).into_owned()),
            _ => return None,
        };
        Some(Answer { id, result })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefaces_survive_the_wire() {
        for preface in [
            Preface::Rpc,
            Preface::Streams,
            Preface::Stream(StreamKind::Gate, Bytes::from_static(b"d7")),
            Preface::Stream(StreamKind::Tunnel, Bytes::new()),
        ] {
            assert_eq!(Preface::decode(preface.encode().into()), Ok(preface));
        }
        assert!(Preface::decode(Bytes::from_static(&[2, 0])).is_err());
        assert!(Preface::decode(Bytes::from_static(&[1, 99])).is_err());
        assert!(Preface::decode(Bytes::from_static(&[1])).is_err());
    }

    #[test]
    fn calls_and_answers_survive_the_wire() {
        for service in Service::ALL {
            let frame = [&Call::head(9, service)[..], b"body"].concat();
            let call = Call { id: 9, service: Some(service), body: Bytes::from_static(b"body") };
            assert_eq!(Call::decode(frame.into()), Some(call));
        }
        let frame = [&Answer::head(3, true)[..], b"no"].concat();
        assert_eq!(Answer::decode(frame.into()), Some(Answer { id: 3, result: Err("no".to_owned()) }));
        let frame = [&Answer::head(4, false)[..], b"yes"].concat();
        assert_eq!(
            Answer::decode(frame.into()),
            Some(Answer { id: 4, result: Ok(Bytes::from_static(b"yes")) })
        );
        assert_eq!(Answer::decode(Bytes::from_static(&[2, 0])), None);
    }
}
