//! What a gate says to the node where a client entered, inside the byte stream of a session.
//!
//! A gate's stream carries the messages of Postgres as they come, and at most one message of our own as its first
//! (the gate is not open) or its last (why the stream ends). Its tag is one that Postgres never sends:
//!
//! ```text
//! control := 0x01, length u32 (counts itself), postcard(Control)
//! ```

use quorate_model::{DatabaseId, Epoch};
use serde::{Deserialize, Serialize};

pub const CONTROL: u8 = 0x01;

/// The hello of a gate stream: whose session it is. The node that sends it has authenticated the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub database: DatabaseId,
    /// The epoch in which the sender knows the primary: an older gate is not the one it looks for.
    pub epoch: Epoch,
    pub user: String,
    /// The name of the database inside the instance.
    pub name: String,
    pub parameters: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// Not here, or not open in that epoch: look at the map again.
    NotOpen { why: String },
    /// The stream ends. `rest`: what the server said last and may not leave, for what of it answers a question of the
    /// node where the client is.
    Ended { why: String, end: End, delivered: u64, rest: Vec<u8> },
}

/// How a backend was taken from a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// Between transactions, for a switchover.
    Released,
    /// In the middle of its work, for a switchover that waited long enough.
    Cut,
    /// With its Postgres, or its gate.
    Lost,
    /// By itself, and nothing of what it said is missing.
    Over,
}

impl Control {
    /// The message, header included.
    pub fn bytes(&self) -> Vec<u8> {
        let body = quorate_transport::encode(self);
        let mut out = Vec::with_capacity(body.len() + 5);
        let start = super::reply::begin(&mut out, CONTROL);
        out.extend_from_slice(&body);
        super::reply::end(&mut out, start);
        out
    }

    pub fn parse(body: &[u8]) -> Option<Control> {
        quorate_transport::decode(body).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_wire() {
        let control = Control::Ended { why: "x".into(), end: End::Released, delivered: 7, rest: vec![1] };
        let bytes = control.bytes();
        assert_eq!(bytes[0], CONTROL);
        assert_eq!(Control::parse(&bytes[5..]), Some(control));
        assert_eq!(Control::parse(b""), None);
    }
}
