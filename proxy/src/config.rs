//! What the proxy is told at its start, and the limits it keeps.

use crate::tls::ClientTls;
use quorate_model::NodeId;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone)]
pub struct ProxyConfig {
    pub node: NodeId,
    /// The client port.
    pub listen: SocketAddr,
    /// Threads, each with sessions of its own; at least one.
    pub workers: usize,
    /// How long a client waits for its database to have an open primary.
    pub hold: Duration,
    /// Bytes set aside for requests of clients that wait, on this node.
    pub max_held_bytes: usize,
    /// How many sessions of one logical server may begin in a second on this node.
    pub logins_per_second: u32,
    /// Server connections that clients of databases in transaction mode share, on this node.
    pub max_pooled: usize,
    /// How long the relay of a session that works alone looks for the next message before it sleeps.
    pub busy_poll: Duration,
    /// Without it, TLS is not offered.
    pub tls: Option<Arc<ClientTls>>,
}

impl ProxyConfig {
    /// The usual values.
    pub fn new(node: NodeId, listen: SocketAddr) -> Self {
        ProxyConfig {
            node,
            listen,
            workers: usual_workers(),
            hold: Duration::from_secs(30),
            max_held_bytes: 256 * 1024 * 1024,
            logins_per_second: 1_000,
            max_pooled: 1_000,
            busy_poll: Duration::from_micros(200),
            tls: None,
        }
    }
}

/// Threads that relay sessions on this machine: one for two processors. What backends do for a message takes at least twice
/// as long as passing it on, and the fewer threads have it to do, the more messages each finds when it is woken.
pub fn usual_workers() -> usize {
    (std::thread::available_parallelism().map_or(1, usize::from) / 2).max(1)
}

/// Longest time for a client to say who it is, each step of it.
pub const LOGIN_DEADLINE: Duration = Duration::from_secs(60);
/// Connections of one worker that have not logged in yet.
pub const MAX_LOGINS: usize = 2048;
/// How long a client may be silent before the kernel asks whether it is still there, and how often it asks.
pub const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
pub const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
/// Packets before the startup message: one refused encryption after the other.
pub const MAX_STARTUP_PACKETS: usize = 4;
/// Largest SASL message.
pub const MAX_SASL_BYTES: usize = 4 * 1024;
/// How long a gate that is not open is waited for before the map is looked at again.
pub const GATE_WAIT: Duration = Duration::from_secs(2);
/// How long a gate at another node, whose replica is no longer the primary, may take to say how far it delivered what is
/// in flight. Usually it does within milliseconds; a node that is cut off never does.
pub const LAST_WORD: Duration = Duration::from_millis(200);
/// How long a session is quiet before its server is asked what it holds: drivers that set several things one after the
/// other are asked for once.
pub const INQUIRE_AFTER: Duration = Duration::from_millis(20);
/// How long a client that has opened a transaction block may send nothing before the block is opened at its server.
pub const OPEN_AFTER: Duration = Duration::from_millis(2);
/// How long a client waits for a server connection before it is told that it does.
pub const TELL_WAIT_AFTER: Duration = Duration::from_secs(5);
/// One tenant may have this part of the clients that wait on a node.
pub const HOLD_PARTS: usize = 4;
/// Pause before the same place is tried again.
pub const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Longest time to connect to a server and to start a session there.
pub const ATTACH_DEADLINE: Duration = Duration::from_secs(10);
/// Longest wait for an answer between proxies.
pub const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// Longest wait for a barrier after a cancelled commit.
pub const BARRIER_DEADLINE: Duration = Duration::from_secs(30);
/// The same, behind a transaction whose outcome is asked for. Shorter than a call between proxies.
pub const FATE_BARRIER_DEADLINE: Duration = Duration::from_secs(3);
/// Bytes that a lost server had said and that may not leave, which are looked through for answers to our questions.
pub const MAX_REST_BYTES: usize = 16 * 1024;
/// Longest time for a client to take our last words.
pub const FAREWELL_DEADLINE: Duration = Duration::from_secs(5);
/// How long a client that we have closed may go on sending.
pub const LINGER: Duration = Duration::from_secs(1);
/// Largest answer of a server to a startup message.
pub const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// Largest answer of a server to everything that is made anew for a session.
pub const MAX_REBUILD_ANSWER_BYTES: usize = 4 * 1024 * 1024;
/// How long sessions have to end when the node stops.
pub const STOP_GRACE: Duration = Duration::from_secs(2);
