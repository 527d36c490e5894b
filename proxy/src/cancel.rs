//! Cancel keys: a client may send its cancel request to any node.
//!
//! ```text
//! secret := random (22 bits), node id modulo 1024 (10 bits)
//! ```
//! The process id is that of the real backend at login, so what `pg_backend_pid()` says fits. The node where the session
//! entered knows where its backend is now; it is also the one that knows whether there is anything to cancel.

use crate::gate::Gates;
use crate::gate::slot::{Slot, locked};
use crate::rpc::Question;
use quorate_model::NodeId;
use quorate_transport::{Peers, Service, encode};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const NODE_BITS: u32 = 10;
const NODE_MASK: u32 = (1 << NODE_BITS) - 1;
/// How long the one who asks for a cancel is kept waiting; a cancel that is held goes on without him.
const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// A secret is drawn again when it is taken.
const MAX_DRAWS: usize = 16;

/// The sessions that entered here, by their cancel keys. As many as are admitted.
pub struct Cancels {
    peers: Arc<Peers>,
    gates: Arc<Gates>,
    keys: Mutex<HashMap<(i32, u32), Arc<Slot>>>,
}

/// A session's key; it is forgotten with it.
pub struct CancelKey {
    cancels: Arc<Cancels>,
    pub pid: i32,
    pub secret: u32,
}

fn node_part(node: NodeId) -> u32 {
    node.0 as u32 & NODE_MASK
}

impl Cancels {
    pub fn new(peers: Arc<Peers>, gates: Arc<Gates>) -> Arc<Cancels> {
        Arc::new(Cancels { peers, gates, keys: Mutex::default() })
    }

    pub fn register(self: &Arc<Self>, pid: i32, slot: &Arc<Slot>) -> CancelKey {
        let mut keys = locked(&self.keys);
        let draw = || rand::random::<u32>() & !NODE_MASK | node_part(self.peers.me());
        let mut secret = draw();
        for _ in 0..MAX_DRAWS {
            if !keys.contains_key(&(pid, secret)) {
                break;
            }
            secret = draw();
        }
        keys.insert((pid, secret), Arc::clone(slot));
        drop(keys);
        CancelKey { cancels: Arc::clone(self), pid, secret }
    }

    /// A client of this node asks for a cancel. Nobody is told whether there was something to cancel.
    pub async fn cancel(&self, pid: i32, secret: u32) {
        if node_part(self.peers.me()) == secret & NODE_MASK && self.cancel_here(pid, secret).await {
            return;
        }
        let nodes = self.peers.nodes();
        let others =
            nodes.into_iter().filter(|n| *n != self.peers.me() && node_part(*n) == secret & NODE_MASK);
        for node in others {
            self.tell(node, &Question::Cancel { pid, secret }).await;
        }
    }

    /// Cancels what that session is doing, wherever its backend is. False: it is not known here.
    pub async fn cancel_here(&self, pid: i32, secret: u32) -> bool {
        let Some(slot) = locked(&self.keys).get(&(pid, secret)).cloned() else { return false };
        let Some(backend) = slot.backend().filter(|_| slot.activity().is_busy()) else { return true };
        if backend.node == self.peers.me() {
            if let Some(gate) = self.gates.find(backend.database) {
                let cancelling = tokio::spawn(async move { gate.cancel(backend.pid, backend.secret).await });
                // It goes on when we have stopped waiting.
                let _ = tokio::time::timeout(CALL_DEADLINE, cancelling).await;
            }
        } else {
            let question = Question::CancelBackend {
                database: backend.database,
                pid: backend.pid,
                secret: backend.secret,
            };
            self.tell(backend.node, &question).await;
        }
        true
    }

    async fn tell(&self, node: NodeId, question: &Question) {
        let told = self.peers.call(node, Service::Proxy, encode(question), CALL_DEADLINE).await;
        if let Err(error) = told {
            tracing::info!(%node, %error, "a cancel request was passed on without an answer");
        }
    }
}

impl Drop for CancelKey {
    fn drop(&mut self) {
        locked(&self.cancels.keys).remove(&(self.pid, self.secret));
    }
}
