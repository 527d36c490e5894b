//! What the admin port needs of the daemon around it, and nothing more: so that every order can be tried against
//! a made-up cluster.

use quorate_model::{Applied, Command, DatabaseId, NodeId, PartitionMap, Refusal, ReplicaReport};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::watch;

#[async_trait::async_trait]
pub trait AdminContext: Send + Sync + 'static {
    /// The node that this port belongs to.
    fn node(&self) -> NodeId;
    /// The map as this node has it. May lag behind the leader's; [`AdminContext::read_barrier`] catches up.
    fn map(&self) -> Arc<PartitionMap>;
    fn map_watch(&self) -> watch::Receiver<Arc<PartitionMap>>;
    /// Has the leader, wherever it is, carry out a command.
    async fn propose(&self, command: Command) -> Result<Applied, ProposeError>;
    /// Returns when this node's map is as new as the leader's was at the call.
    async fn read_barrier(&self) -> Result<(), ProposeError>;
    /// What every node that answers within a short deadline says of its replicas.
    async fn reports(&self) -> Vec<ReplicaReport>;
    /// How many nodes answer, this one among them.
    async fn answering(&self) -> usize;
    fn ring(&self) -> Vec<RingRow>;
    /// The pools of databases in transaction mode, as the clients of this node use them.
    fn pools(&self) -> Vec<PoolView>;
    /// Nodes that a new replica may be put on: registered, and not suspected.
    fn usable_nodes(&self) -> BTreeSet<NodeId>;
    /// "leader", "follower", "learner" or "unknown".
    fn raft_role(&self, node: NodeId) -> String;
    /// Tells the coordinator, wherever it is, that a node is suspected.
    async fn suspect(&self, node: NodeId) -> Result<(), ProposeError>;
    /// Arms a failpoint of this process; the reason, when it is not allowed to.
    fn failpoint(&self, name: &str, action: &str) -> Result<(), String>;
    /// The failpoints that this process has passed.
    fn failpoints_passed(&self) -> Vec<String>;
    /// A SCRAM-SHA-256 verifier in PostgreSQL's form, with a fresh salt.
    fn scram_verifier(&self, password: &str) -> String;
    /// Unix milliseconds.
    fn now_ms(&self) -> u64;
}

/// Why the map did not take a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("no leader")]
    NoLeader,
    /// It was sent and not answered in time: nobody knows.
    #[error("no answer in time")]
    Unknown,
    #[error("{0}")]
    Unavailable(String),
}

/// One database's pool on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolView {
    pub database: DatabaseId,
    pub size: usize,
    /// Server connections that a client has.
    pub used: usize,
    pub idle: usize,
    /// Clients that wait for one, and how long the first has.
    pub waiting: usize,
    pub longest_ms: u64,
    /// Why clients keep theirs between transactions, one entry for each that does.
    pub pinned: Vec<String>,
}

/// One node's place in the ring, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingRow {
    pub position: usize,
    pub node: NodeId,
    pub predecessor: NodeId,
    pub successor: NodeId,
    /// "alive", "suspect" or "down".
    pub state: String,
    pub last_heartbeat_ms: Option<u64>,
    pub reported_by: Option<NodeId>,
}
