//! Cancel keys: a client may send its cancel request to any node.
//!
//! ```text
//! secret := random (22 bits), node id modulo 1024 (10 bits), and from protocol 3.2 on: random (28 bytes)
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
/// Random bytes that follow in a long secret.
const LONG_TAIL_BYTES: usize = 28;
/// A secret is drawn again when it is taken.
const MAX_DRAWS: usize = 16;

/// The sessions that entered here, by their cancel keys. As many as are admitted.
pub struct Cancels {
    peers: Arc<Peers>,
    gates: Arc<Gates>,
    keys: Mutex<HashMap<(i32, u32), Known>>,
}

/// A session whose key begins with that secret.
struct Known {
    /// What a long secret has behind it.
    tail: Vec<u8>,
    slot: Arc<Slot>,
}

/// A session's key; it is forgotten with it.
pub struct CancelKey {
    cancels: Arc<Cancels>,
    pub pid: i32,
    head: u32,
    /// As the client is told it.
    pub secret: Vec<u8>,
}

/// Cuts a secret into its head and what follows.
fn cut(secret: &[u8]) -> Option<(u32, &[u8])> {
    let (head, tail) = secret.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*head), tail))
}

/// Equality in a time that does not depend on where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0u8, |differ, (a, b)| differ | (a ^ b)) == 0
}

fn node_part(node: NodeId) -> u32 {
    node.0 as u32 & NODE_MASK
}

impl Cancels {
    pub fn new(peers: Arc<Peers>, gates: Arc<Gates>) -> Arc<Cancels> {
        Arc::new(Cancels { peers, gates, keys: Mutex::default() })
    }

    /// A key for a session, long if its client takes long ones.
    pub fn register(self: &Arc<Self>, pid: i32, long: bool, slot: &Arc<Slot>) -> CancelKey {
        let mut keys = locked(&self.keys);
        let draw = || rand::random::<u32>() & !NODE_MASK | node_part(self.peers.me());
        let mut head = draw();
        for _ in 0..MAX_DRAWS {
            if !keys.contains_key(&(pid, head)) {
                break;
            }
            head = draw();
        }
        let tail = if long { rand::random::<[u8; LONG_TAIL_BYTES]>().to_vec() } else { Vec::new() };
        let secret = [&head.to_be_bytes()[..], &tail].concat();
        keys.insert((pid, head), Known { tail, slot: Arc::clone(slot) });
        drop(keys);
        CancelKey { cancels: Arc::clone(self), pid, head, secret }
    }

    /// A client of this node asks for a cancel. Nobody is told whether there was something to cancel.
    pub async fn cancel(&self, pid: i32, secret: &[u8]) {
        let Some((head, _)) = cut(secret) else { return };
        if node_part(self.peers.me()) == head & NODE_MASK && self.cancel_here(pid, secret).await {
            return;
        }
        let nodes = self.peers.nodes();
        let others = nodes.into_iter().filter(|n| *n != self.peers.me() && node_part(*n) == head & NODE_MASK);
        for node in others {
            self.tell(node, &Question::Cancel { pid, secret: secret.to_vec() }).await;
        }
    }

    /// Cancels what that session is doing, wherever its backend is. False: it is not known here.
    pub async fn cancel_here(&self, pid: i32, secret: &[u8]) -> bool {
        let Some((head, tail)) = cut(secret) else { return false };
        let known = locked(&self.keys)
            .get(&(pid, head))
            .filter(|known| same(&known.tail, tail))
            .map(|known| Arc::clone(&known.slot));
        let Some(slot) = known else { return false };
        // Looked at before the session is held up: cancels that come all the time must not keep it from going on. One at a
        // time is enough, because the session begins nothing new meanwhile.
        if !slot.activity().is_busy() || slot.is_cancelling() {
            return true;
        }
        // A session that shares its servers keeps this one until the cancel has found out what it is for.
        let _keeps_server = slot.cancelling();
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
        locked(&self.cancels.keys).remove(&(self.pid, self.head));
    }
}
