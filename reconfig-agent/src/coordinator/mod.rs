//! The coordinator: carries out the decisions of [`crate::decide`] on the node that leads the partition map.
//!
//! One actor for all databases of the cluster. It hears reports, the ring's suspicions and the ends of its own
//! orders; after each it asks `decide::next` for every database concerned and sends what comes out. It holds no
//! state that a successor needs: what must survive is in the map.

mod actor;
pub mod failpoint;
mod nodes;
mod record;
mod steps;

use crate::decide::{Failure, OrderKind, Reply, Timers};
use crate::map::{Leader, Map, ProposeError};
use quorate_model::{
    Applied, DatabaseId, Epoch, NodeId, OperationId, PartitionMap, ReplicaId, ReplicaReport,
};
use quorate_transport::PeerNetwork;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Events that wait for the actor; more are dropped, and the next report or tick makes up for them.
const QUEUE: usize = 4096;

/// A cheap handle to the actor.
#[derive(Clone)]
pub struct Coordinator {
    inbox: mpsc::Sender<Event>,
    down: Arc<Mutex<std::collections::BTreeSet<NodeId>>>,
}

/// An order that was given, as far as its answer has to be understood.
struct Given {
    kind: OrderKind,
    replica: ReplicaId,
    epoch: Epoch,
    /// The database's then; when the answer comes, another phase may have begun.
    phase: &'static str,
}

/// Everything the actor hears of.
enum Event {
    Reports {
        from: NodeId,
        reports: Vec<ReplicaReport>,
    },
    Suspect {
        node: NodeId,
        reporter: NodeId,
        silent_ms: u64,
    },
    Alive {
        node: NodeId,
    },
    /// The coordinator's own call to a suspect was not answered, or was.
    Checked {
        node: NodeId,
        reporter: NodeId,
        silent_ms: u64,
        answered: bool,
    },
    Obeyed {
        database: DatabaseId,
        given: Given,
        outcome: Result<Reply, Failure>,
    },
    Proposed {
        database: DatabaseId,
        version: u64,
        proposal: actor::Proposal,
        point: actor::Point,
        outcome: Result<Applied, ProposeError>,
    },
    Claimed {
        operation: OperationId,
        point: actor::Point,
        outcome: Result<Applied, ProposeError>,
    },
    /// Somebody says that a node is not to be trusted, whether it answers or not.
    Doubt {
        node: NodeId,
        reporter: NodeId,
    },
}

impl Coordinator {
    pub fn start(
        me: NodeId,
        timers: Timers,
        map: Arc<dyn Map>,
        leader: watch::Receiver<Leader>,
        peers: Arc<dyn PeerNetwork>,
        stop: CancellationToken,
    ) -> Coordinator {
        let (inbox, events) = mpsc::channel(QUEUE);
        let down = Arc::default();
        let coordinator = Coordinator { inbox: inbox.clone(), down: Arc::clone(&down) };
        let actor = actor::Actor::new(me, timers, map, leader, peers, inbox, down);
        tokio::spawn(actor.run(events, stop));
        coordinator
    }

    fn send(&self, event: Event) {
        if self.inbox.try_send(event).is_err() {
            tracing::debug!("the coordinator's queue is full; the event will be repeated");
        }
    }

    /// A node's report of its replicas.
    pub fn hear(&self, from: NodeId, reports: Vec<ReplicaReport>) {
        self.send(Event::Reports { from, reports });
    }

    /// A neighbour in the ring has not heard of `node` for `silent_ms`.
    pub fn suspect(&self, node: NodeId, reporter: NodeId, silent_ms: u64) {
        self.send(Event::Suspect { node, reporter, silent_ms });
    }

    /// An operator suspects `node`, whatever it answers: if it is silent it is found to be down; if it answers, its
    /// primaries are fenced and elected again. The same path as the ring's suspicion, without waiting for a fault.
    pub fn doubt(&self, node: NodeId, reporter: NodeId) {
        self.send(Event::Suspect { node, reporter, silent_ms: 0 });
        self.send(Event::Doubt { node, reporter });
    }

    /// A suspect was heard again.
    pub fn alive(&self, node: NodeId) {
        self.send(Event::Alive { node });
    }

    /// Nodes that this coordinator takes for down.
    pub fn down(&self) -> std::collections::BTreeSet<NodeId> {
        self.down.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Waits until the map shows a version past `version`, or says that it does already.
fn is_past(map: &PartitionMap, database: DatabaseId, version: u64) -> bool {
    map.databases.get(&database).is_none_or(|d| d.version > version)
}
