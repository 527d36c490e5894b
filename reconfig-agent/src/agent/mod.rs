//! The replica agent: on every node, it keeps the replicas that the map places there and obeys the coordinator.
//!
//! Two things act on a replica. Its *keeper* makes the present follow the map: build, start, attach, demote, drop.
//! *Orders* of the coordinator do what must happen at a certain point of a reconfiguration. Both decide under the
//! replica's short lock against its promise, so a keeper that read an old map cannot undo a fence.
//!
//! **R7.** Until one linearizable read of the map after the start, no keeper runs and no order is obeyed: every
//! gate and tunnel is closed.

mod evidence;
mod gate;
pub mod host;
mod keeper;
mod lease;
mod message;
mod orders;
mod postgres_host;
mod promise;
mod replica;
mod reports;
mod rewind;
pub mod standing;
#[cfg(test)]
mod tests;

pub use gate::{BootTime, GateControl};
pub use host::Host;
pub use lease::{LeaseWant, MAX_LEASE, boottime};
pub use message::{Request, Response};
pub use postgres_host::{HostConfig, PostgresHost};
pub use reports::{ask_reports, collect_reports};

use crate::coordinator::Coordinator;
use crate::map::{Leader, Map};
use host::PrimaryTunnels;
use quorate_model::{DatabaseId, NodeId, PartitionMap, ReplicaId};
use quorate_transport::{Fault, Handler, PeerNetwork, Service, decode, encode};
use replica::Replica;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// A cheap handle; all clones are the same agent.
#[derive(Clone)]
pub struct Agent(Arc<Inner>);

struct Inner {
    node: NodeId,
    host: Arc<dyn Host>,
    watch: watch::Receiver<Arc<PartitionMap>>,
    peers: Arc<dyn PeerNetwork>,
    gates: Arc<dyn GateControl>,
    upstreams: Arc<dyn PrimaryTunnels>,
    replicas: RwLock<BTreeMap<ReplicaId, Arc<Replica>>>,
    /// Something a coordinator should hear of.
    changed: Notify,
    coordinator: OnceLock<Coordinator>,
    leader: watch::Receiver<Leader>,
    stop: CancellationToken,
    keepers: tokio_util::task::TaskTracker,
}

impl Agent {
    /// Registers the agent at the peer port and starts to keep replicas. The caller has made a linearizable read
    /// of the map (R7).
    pub fn start(
        node: NodeId,
        host: Arc<dyn Host>,
        map: Arc<dyn Map>,
        leader: watch::Receiver<Leader>,
        peers: Arc<dyn PeerNetwork>,
        gates: Arc<dyn GateControl>,
        stop: CancellationToken,
    ) -> Agent {
        let watch = map.watch();
        let agent = Agent(Arc::new(Inner {
            node,
            upstreams: host.upstreams(),
            host,
            watch,
            peers,
            gates,
            replicas: RwLock::default(),
            changed: Notify::new(),
            coordinator: OnceLock::new(),
            leader,
            stop,
            keepers: tokio_util::task::TaskTracker::new(),
        }));
        tokio::spawn(agent.clone().keep());
        tokio::spawn(agent.clone().sample());
        tokio::spawn(agent.clone().push());
        agent
    }

    /// Orders and reports are heard from now on; reports go to this coordinator while this node leads.
    pub fn serve(&self, coordinator: Coordinator) {
        if self.0.coordinator.set(coordinator).is_ok() {
            self.0.peers.register(Service::Agent, Arc::new(self.clone()));
        }
    }

    /// Returns when every keeper has stopped its instance, after the agent's token was cancelled.
    pub async fn stopped(&self) {
        self.0.keepers.close();
        self.0.keepers.wait().await;
    }

    fn map(&self) -> Arc<PartitionMap> {
        self.0.watch.borrow().clone()
    }

    fn gates(&self) -> &dyn GateControl {
        self.0.gates.as_ref()
    }

    fn replicas(&self) -> Vec<Arc<Replica>> {
        self.0.replicas.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn replica(&self, id: ReplicaId) -> Option<Arc<Replica>> {
        self.0.replicas.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// The newest replica of a database here: an older one is on its way out.
    fn replica_of(&self, database: DatabaseId) -> Option<Arc<Replica>> {
        let replicas = self.0.replicas.read().unwrap_or_else(PoisonError::into_inner);
        replicas.values().rfind(|r| r.database == database).cloned()
    }
}

#[async_trait::async_trait]
impl Handler for Agent {
    async fn call(&self, from: NodeId, body: bytes::Bytes) -> Result<bytes::Bytes, Fault> {
        let response = match decode::<Request>(&body)? {
            Request::Ping => Response::Done,
            Request::Reports => Response::Reports(self.answer_reports().await),
            Request::Confirm { voter, epoch } => Response::Confirmed(self.confirms(voter, epoch)),
            Request::Order(order) => Response::Obeyed(self.obey(order).await),
            Request::Push(reports) => {
                if let Some(coordinator) = self.0.coordinator.get() {
                    coordinator.hear(from, reports);
                }
                Response::Done
            }
            Request::Doubt(node) => {
                if let Some(coordinator) = self.0.coordinator.get() {
                    coordinator.doubt(node, from);
                }
                Response::Done
            }
        };
        Ok(encode(&response))
    }
}
