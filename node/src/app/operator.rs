//! What the admin port sees of the daemon.

use crate::admin::context::{AdminContext, PoolView, ProposeError, RingRow};
use quorate_model::{Applied, Command, DatabaseId, NodeId, PartitionMap, ReplicaReport};
use quorate_partition_map::{MapError, MapHandle};
use quorate_proxy::PoolRow;
use quorate_reconfig_agent::agent::{Request, ask_reports, collect_reports};
use quorate_reconfig_agent::coordinator::failpoint;
use quorate_ring::Ring;
use quorate_transport::{Peers, Service, encode};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// A node that does not tell its replicas in this time is left out of SHOW.
const REPORTS_DEADLINE: Duration = Duration::from_millis(500);
const SUSPECT_DEADLINE: Duration = Duration::from_secs(2);

pub struct Operator {
    pub node: NodeId,
    pub map: MapHandle,
    pub ring: Ring,
    pub peers: Arc<Peers>,
    pub pools: PoolsTeller,
}

/// Tells the pools of this node's proxy, and why sessions of each database keep a server.
pub type PoolsTeller = Box<dyn Fn() -> (Vec<PoolRow>, Vec<(DatabaseId, Box<str>)>) + Send + Sync>;

fn to_admin(error: MapError) -> ProposeError {
    match error {
        MapError::Refused(refusal) => ProposeError::Refused(refusal),
        MapError::NoLeader => ProposeError::NoLeader,
        MapError::Timeout(_) => ProposeError::Unknown,
        other => ProposeError::Unavailable(other.to_string()),
    }
}

#[async_trait::async_trait]
impl AdminContext for Operator {
    fn node(&self) -> NodeId {
        self.node
    }

    fn map(&self) -> Arc<PartitionMap> {
        self.map.watch().borrow().clone()
    }

    fn map_watch(&self) -> watch::Receiver<Arc<PartitionMap>> {
        self.map.watch()
    }

    async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        self.map.propose(command).await.map_err(to_admin)
    }

    async fn read_barrier(&self) -> Result<(), ProposeError> {
        self.map.read_barrier().await.map_err(to_admin)
    }

    async fn reports(&self) -> Vec<ReplicaReport> {
        collect_reports(self.peers.as_ref(), REPORTS_DEADLINE).await
    }

    async fn answering(&self) -> usize {
        ask_reports(self.peers.as_ref(), REPORTS_DEADLINE).await.len()
    }

    fn ring(&self) -> Vec<RingRow> {
        self.ring
            .view()
            .into_iter()
            .map(|m| RingRow {
                position: m.position,
                node: m.node,
                predecessor: m.predecessor,
                successor: m.successor,
                state: m.state.to_owned(),
                last_heartbeat_ms: m.last_heartbeat_ms,
                reported_by: m.reported_by,
            })
            .collect()
    }

    fn pools(&self) -> Vec<PoolView> {
        let (rows, pinned) = (self.pools)();
        let view = |row: PoolRow| PoolView {
            database: row.database,
            size: row.size,
            used: row.used,
            idle: row.idle,
            waiting: row.waiting,
            longest_ms: u64::try_from(row.longest.as_millis()).unwrap_or(u64::MAX),
            pinned: pinned
                .iter()
                .filter(|(id, _)| *id == row.database)
                .map(|(_, why)| why.to_string())
                .collect(),
        };
        rows.into_iter().map(view).collect()
    }

    fn usable_nodes(&self) -> BTreeSet<NodeId> {
        let map = self.map();
        map.nodes.keys().copied().filter(|n| !self.ring.is_suspect(*n)).collect()
    }

    fn raft_role(&self, node: NodeId) -> String {
        self.map.role_of(node).to_owned()
    }

    async fn suspect(&self, node: NodeId) -> Result<(), ProposeError> {
        let leader = self.map.leadership().borrow().leader.ok_or(ProposeError::NoLeader)?;
        let body = encode(&Request::Doubt(node));
        self.peers
            .call(leader, Service::Agent, body, SUSPECT_DEADLINE)
            .await
            .map(|_| ())
            .map_err(|e| ProposeError::Unavailable(format!("the coordinator did not hear it: {e}")))
    }

    fn failpoint(&self, name: &str, action: &str) -> Result<(), String> {
        failpoint::arm(name, action)
    }

    fn failpoints_passed(&self) -> Vec<String> {
        failpoint::passed()
    }

    fn scram_verifier(&self, password: &str) -> String {
        quorate_proxy::scram::verifier(password)
    }

    fn now_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
    }
}
