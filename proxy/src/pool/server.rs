//! A server between two clients.

use crate::gate::Gate;
use crate::gate::slot::Slot;
use crate::relay::Server;
use crate::session::follow::Primary;
use crate::session::params::Params;
use crate::stream::Stream;
use crate::wire::statements::OnServer;
use quorate_model::NodeId;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use tokio::io::{AsyncRead, ReadBuf};

/// What is known of a server besides its stream.
#[derive(Debug)]
pub struct State {
    pub primary: Primary,
    pub pid: i32,
    pub secret: u32,
    /// As it has reported them.
    pub params: Params,
    /// Settings that were made there.
    pub settings: Vec<(Vec<u8>, Vec<u8>)>,
    pub statements: OnServer,
}

/// A server that nobody uses. Nothing of a client's is on it but settings and statements.
#[derive(Debug)]
pub struct Idle {
    stream: Stream,
    /// Of one on this node: its gate, and the run of the Postgres behind it.
    gate: Option<(Arc<Gate>, u64)>,
    socket: PathBuf,
    pub state: State,
}

impl Idle {
    /// Takes a server out of a session that has nothing in flight and no transaction open.
    pub fn new(server: Server, state: State) -> Idle {
        let Server { stream, pass, socket, .. } = server;
        let gate = pass.as_ref().map(|pass| (Arc::clone(pass.gate()), pass.generation()));
        if let Some(pass) = pass {
            pass.release();
        }
        Idle { stream, gate, socket, state }
    }

    /// Gives it to a session, if it is still a server of that primary and has not ended. Another worker's is moved here.
    pub fn take(self, slot: &Arc<Slot>, primary: Primary, is_ours: bool) -> Option<(Server, State)> {
        let Idle { stream, gate, socket, state } = self;
        if state.primary.node != primary.node
            || state.primary.replica != primary.replica
            || !state.primary.epoch.same_reign(primary.epoch)
        {
            return None;
        }
        let stream = match stream {
            Stream::Unix(stream) if !is_ours => Stream::Unix(stream.moved().ok()?),
            other => other,
        };
        let stream = silent(stream)?;
        let server = match gate {
            Some((gate, generation)) => Server::local(stream, gate.enter_again(slot, generation)?, socket),
            None => Server::remote(stream),
        };
        Some((server, state))
    }

    /// Whether it will be refused by [`Idle::take`].
    pub fn is_over(&self, node: NodeId, primary: Option<Primary>) -> bool {
        let same = primary.is_some_and(|primary| {
            self.state.primary.replica == primary.replica
                && self.state.primary.epoch.same_reign(primary.epoch)
        });
        !same
            || self.gate.as_ref().is_some_and(|(gate, generation)| !gate.is_generation(*generation))
            || self.state.primary.node == node && self.gate.is_none()
    }
}

/// The stream, if nothing has come from it: an idle server says something only when it ends, or when its configuration
/// was changed.
fn silent(mut stream: Stream) -> Option<Stream> {
    if let Stream::Unix(stream) = &stream {
        // Asked of the kernel, because its end may not have been noticed by this thread yet.
        if !stream.is_silent() {
            return None;
        }
    }
    let mut byte = [0; 1];
    let mut buffer = ReadBuf::new(&mut byte);
    let polled = Pin::new(&mut stream).poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer);
    polled.is_pending().then_some(stream)
}
