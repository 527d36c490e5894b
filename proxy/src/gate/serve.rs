//! The gate's side of a session that entered at another node.
//!
//! The other node has authenticated its client and is trusted to name the user: it proved to be a node of this cluster.

use super::Gates;
use super::door::{Door, Gate};
use super::slot::Slot;
use crate::config::{ATTACH_DEADLINE, BARRIER_DEADLINE, FAREWELL_DEADLINE, GATE_WAIT};
use crate::guard::hides_warnings;
use crate::relay::{Event, Relay, Role, Server};
use crate::stream::Stream;
use crate::wire::control::{Control, End, Hello};
use crate::wire::startup::startup_message;
use async_trait::async_trait;
use bytes::Bytes;
use quorate_model::NodeId;
use quorate_transport::{LocalStream, PeerStream, StreamHandler, decode};
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};

/// Takes the gate streams of other nodes.
pub struct GateServer {
    pub node: NodeId,
    pub gates: Arc<Gates>,
}

#[async_trait]
impl StreamHandler for GateServer {
    async fn accept(&self, from: NodeId, hello: Bytes, mut stream: PeerStream) {
        let hello: Hello = match decode(&hello) {
            Ok(hello) => hello,
            Err(error) => return tracing::warn!(%from, %error, "a gate stream with a malformed hello"),
        };
        let relay = match self.gates.find(hello.database) {
            Some(gate) => start(self.node, &gate, hello, stream).await,
            None => {
                not_open(&mut stream, "there is no replica of this database here").await;
                return;
            }
        };
        if let Some(relay) = relay {
            run(relay).await;
        }
    }
}

async fn not_open(stream: &mut (impl AsyncWriteExt + Unpin), why: &str) {
    let last = Control::NotOpen { why: why.to_owned() }.bytes();
    // If it cannot be told, it sees the end of the stream.
    let _ = timeout(FAREWELL_DEADLINE, async {
        stream.write_all(&last).await?;
        stream.flush().await?;
        stream.shutdown().await
    })
    .await;
}

/// What every session brings along. A value of the startup packet goes before those of roles and databases, and is what
/// RESET goes back to.
const OWN_PARAMETERS: [(&str, &str); 1] = [("synchronous_commit", "on")];

/// Connects to the Postgres in `directory` and says who it is for.
pub async fn connect(
    directory: &Path,
    user: &str,
    name: &str,
    parameters: &[(String, String)],
) -> io::Result<LocalStream> {
    let own = OWN_PARAMETERS.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let parameters = [parameters, &own].concat();
    let connecting = async {
        let mut stream = UnixStream::connect(directory.join(".s.PGSQL.5432")).await?;
        stream.write_all(&startup_message(user, name, &parameters)).await?;
        LocalStream::try_from(stream)
    };
    timeout(ATTACH_DEADLINE, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn start(node: NodeId, gate: &Arc<Gate>, hello: Hello, stream: PeerStream) -> Option<Relay> {
    let slot = Arc::new(Slot::default());
    let role = Role::Gate { node, database: hello.database };
    let mut relay = Relay::new(role, Stream::Peer(Box::new(stream)), Arc::clone(&slot));
    relay.unguarded = hides_warnings(&hello.parameters);
    let entering = gate.enter(&slot, hello.epoch, Instant::now() + GATE_WAIT);
    let entered = tokio::select! {
        entered = entering => entered,
        () = relay.client_gone() => return None,
    };
    let (pass, socket) = match entered {
        Ok(entered) => entered,
        Err(why) => {
            not_open(&mut relay.client, &why.to_string()).await;
            return None;
        }
    };
    match connect(&socket, &hello.user, &hello.name, &hello.parameters).await {
        Ok(unix) => relay.attach(Server::local(Stream::Unix(unix), pass, socket)),
        Err(error) => {
            tracing::info!(database = %hello.database, %error, "a backend could not be reached");
            drop(pass);
            not_open(&mut relay.client, "the server does not answer").await;
            return None;
        }
    }
    Some(relay)
}

async fn run(mut relay: Relay) {
    let (end, why) = loop {
        match relay.event().await {
            Event::Signal => match relay.server.as_ref().and_then(|s| s.pass.as_ref()).map(|p| p.door()) {
                Some(Door::Parking) => relay.parking = true,
                Some(Door::Ended { end, why }) => break (end, why),
                Some(Door::Open | Door::Held) | None => relay.parking = false,
            },
            Event::Parked => break (End::Released, "the primary is being moved to another node".to_owned()),
            Event::ServerLost(why) => break (End::Lost, why),
            Event::ServerEnded(why) => break (End::Over, why),
            Event::Barrier => {
                if !barrier(&relay).await {
                    break (End::Lost, "a barrier after a cancelled commit did not pass".to_owned());
                }
                relay.barrier_passed();
            }
            Event::ClientClosed => return,
            event => return tracing::warn!(?event, "a gate stream broke the protocol"),
        }
    };
    finish(relay, end, why).await;
}

/// Waits until what a session has done is on a quorum.
pub async fn barrier(relay: &Relay) -> bool {
    match relay.server.as_ref().and_then(|s| Some((s.pass.as_ref()?, &s.socket))) {
        Some((pass, socket)) => pass.barrier(BARRIER_DEADLINE, socket).await,
        None => false,
    }
}

/// Tells the other node why the stream ends, if that can be put between two messages.
async fn finish(mut relay: Relay, end: End, why: String) {
    let (end, rest) = match (end, relay.rest()) {
        (End::Over, None) => (End::Lost, Vec::new()),
        (end, rest) => (end, rest.unwrap_or_default()),
    };
    let delivered = relay.taken();
    let at_boundary = relay.down.at_boundary();
    let server = relay.detach();
    if end == End::Released
        && let Some(pass) = server.and_then(|s| s.pass)
    {
        pass.release();
    }
    if !at_boundary {
        return;
    }
    relay.down.insert(&Control::Ended { why, end, delivered, rest }.bytes());
    let last = async {
        relay.flush_client().await?;
        relay.client.shutdown().await
    };
    // If it cannot be told, it sees the end of the stream.
    let _ = timeout(FAREWELL_DEADLINE, last).await;
}
