//! What a node offers to others, and how asking can fail.

use crate::PeerStream;
use async_trait::async_trait;
use bytes::Bytes;
use quorate_model::NodeId;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Who answers a call. The numbers are on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Service {
    /// Raft's own messages, between the nodes of the partition map.
    Raft = 1,
    /// Questions to the map's leader: proposals, read barriers.
    Map = 2,
    /// Orders of a coordinator to the agents of replicas.
    Agent = 3,
    /// Between proxies: cancel requests.
    Proxy = 4,
    /// What an operator asks of another node.
    Admin = 5,
}

impl Service {
    pub(crate) const ALL: [Service; 5] =
        [Service::Raft, Service::Map, Service::Agent, Service::Proxy, Service::Admin];

    pub(crate) fn from_wire(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|s| *s as u8 == number)
    }
}

/// What a raw stream is for. The numbers are on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum StreamKind {
    /// Replication: a walreceiver here, a walsender there.
    Tunnel = 1,
    /// A client's session, from the node it entered to the gate of its database's primary.
    Gate = 2,
}

impl StreamKind {
    pub(crate) const ALL: [StreamKind; 2] = [StreamKind::Tunnel, StreamKind::Gate];

    pub(crate) fn from_wire(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|k| *k as u8 == number)
    }
}

/// Answers the calls of one service. `from` is proven by the caller's certificate.
///
/// A call runs in a task of its own and to its end, even if the caller has given up.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    async fn call(&self, from: NodeId, body: Bytes) -> Result<Bytes, Fault>;
}

/// Takes the raw streams of one kind, each in a task of its own. `from` is proven by the peer's certificate.
#[async_trait]
pub trait StreamHandler: Send + Sync + 'static {
    async fn accept(&self, from: NodeId, hello: Bytes, stream: PeerStream);
}

/// A handler's refusal, sent back to the caller. Safe to show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);

impl Fault {
    pub fn new(text: impl Into<String>) -> Self {
        Fault(text.into())
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No connection, or it broke before the answer: the call may or may not have been carried out.
    #[error("the node cannot be reached: {0}")]
    Unreachable(String),
    /// The other side answered with a refusal.
    #[error(transparent)]
    Refused(Fault),
    /// The deadline passed: the call may or may not have been carried out.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The request is larger than a frame may be; nothing was sent.
    #[error("a message of {0} bytes is larger than is allowed")]
    TooLarge(usize),
}
