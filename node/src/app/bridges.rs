//! Small adapters between crates that do not know each other.

use quorate_model::{
    Applied, Command, Commits, DatabaseId, Epoch, GateReport, Lsn, NodeId, PartitionMap, Reads,
};
use quorate_partition_map::{MapError, MapHandle};
use quorate_proxy::{Evidence, Gates};
use quorate_reconfig_agent::agent::{Agent, BootTime, GateControl};
use quorate_reconfig_agent::map::{Leader, Map, ProposeError};
use quorate_ring::{LeaseWant, Leases, Ring};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;

/// The replicated map, for the agents.
pub struct MapBridge(pub MapHandle);

#[async_trait::async_trait]
impl Map for MapBridge {
    fn watch(&self) -> watch::Receiver<Arc<PartitionMap>> {
        self.0.watch()
    }

    async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        self.0.propose(command).await.map_err(|e| match e {
            MapError::Refused(refusal) => ProposeError::Refused(refusal),
            other => ProposeError::Unavailable(other.to_string()),
        })
    }
}

/// Follows the map's leadership in the agents' words.
pub fn leader(map: &MapHandle) -> watch::Receiver<Leader> {
    let mut leadership = map.leadership();
    let first = to_leader(&leadership.borrow());
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        while leadership.changed().await.is_ok() {
            let next = to_leader(&leadership.borrow_and_update());
            sender.send_if_modified(|now| std::mem::replace(now, next) != next);
        }
    });
    receiver
}

fn to_leader(leadership: &quorate_partition_map::Leadership) -> Leader {
    Leader { node: leadership.leader, is_me: leadership.is_me }
}

/// The proxy's gates, for the replica agent.
pub struct GateBridge {
    pub gates: Arc<Gates>,
    /// Set once the ring runs.
    pub ring: OnceLock<Ring>,
}

#[async_trait::async_trait]
impl GateControl for GateBridge {
    fn open(&self, database: DatabaseId, epoch: Epoch, socket_dir: &Path) {
        self.gates.gate(database).open(epoch, socket_dir.to_owned());
    }

    fn hold(&self, database: DatabaseId) {
        self.gates.gate(database).hold();
    }

    fn close(&self, database: DatabaseId, reason: &str) {
        self.gates.gate(database).close(reason);
    }

    async fn park(&self, database: DatabaseId, drain: Duration) -> (u32, u32) {
        let parked = self.gates.gate(database).park(drain).await;
        (parked.kept, parked.cut)
    }

    fn set_lease(&self, database: DatabaseId, until: BootTime) {
        self.gates.gate(database).set_lease(until);
    }

    fn drop_lease(&self, database: DatabaseId) {
        self.gates.gate(database).drop_lease();
    }

    fn set_rules(&self, database: DatabaseId, reads: Reads, commits: Commits) {
        let gate = self.gates.gate(database);
        gate.set_reads(reads);
        gate.set_commits(commits);
    }

    fn remove(&self, database: DatabaseId) {
        self.gates.remove(database);
    }

    fn report(&self, database: DatabaseId) -> (GateReport, u32) {
        let gate = self.gates.gate(database);
        (gate.report(), gate.sessions())
    }

    fn renew_leases(&self) {
        if let Some(ring) = self.ring.get() {
            ring.renew_now();
        }
    }
}

/// What the replica agent knows of voters, for the gates.
pub struct EvidenceBridge(pub Agent);

#[async_trait::async_trait]
impl Evidence for EvidenceBridge {
    async fn confirm(&self, database: DatabaseId, epoch: Epoch) -> bool {
        self.0.confirm(database, epoch).await
    }

    async fn on_quorum(&self, database: DatabaseId, epoch: Epoch, lsn: Lsn, limit: Duration) -> bool {
        self.0.on_quorum(database, epoch, lsn, limit).await
    }
}

/// The replica agent's leases, for the ring. Empty until the agent runs: nothing is granted before (R7).
#[derive(Default)]
pub struct LeaseBridge(pub OnceLock<Agent>);

impl Leases for LeaseBridge {
    fn wants(&self) -> Vec<LeaseWant> {
        let Some(agent) = self.0.get() else { return Vec::new() };
        agent
            .lease_wants()
            .into_iter()
            .map(|w| LeaseWant { database: w.database, epoch: w.epoch, voters: w.voters })
            .collect()
    }

    fn granted(&self, database: DatabaseId, epoch: Epoch, by: NodeId, until: BootTime) {
        if let Some(agent) = self.0.get() {
            agent.lease_granted(database, epoch, by, until);
        }
    }

    fn grant(&self, _to: NodeId, database: DatabaseId, epoch: Epoch, until: BootTime) -> bool {
        self.0.get().is_some_and(|agent| agent.grant_lease(database, epoch, until))
    }

    fn scheduling_gap(&self, gap: Duration) {
        tracing::warn!(gap_ms = gap.as_millis() as u64, "the daemon did not run; leases are dropped");
        if let Some(agent) = self.0.get() {
            agent.drop_leases();
        }
    }
}
