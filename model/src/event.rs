//! What happened, for people: every reconfiguration with its reason and the time each step took.

use crate::{DatabaseId, Epoch, NodeId, ReplicaId};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub id: u64,
    /// Unix milliseconds by the clock of whoever recorded it.
    pub at_ms: u64,
    pub database: DatabaseId,
    /// `server.database`
    pub target: String,
    pub kind: EventKind,
    pub epoch: Epoch,
    /// Why, in words: "postmaster of r4 exited with signal 9".
    pub reason: String,
    pub reported_by: Option<NodeId>,
    pub from: Option<ReplicaId>,
    pub to: Option<ReplicaId>,
    pub steps: Vec<StepTime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    Created,
    Failover,
    /// The incumbent answered and stayed primary: a false alarm.
    Reelection,
    Switchover,
    VoterAdded,
    VoterRemoved,
    ReplicaLost,
    ReplicaBuilt,
    QuorumLost,
    /// An operator accepted the loss of data.
    ForcedRecovery,
    /// An operation was cancelled or given up, and what it had made is gone.
    TakenBack,
    Dropped,
}

impl EventKind {
    pub fn name(self) -> &'static str {
        match self {
            EventKind::Created => "created",
            EventKind::Failover => "failover",
            EventKind::Reelection => "re-election",
            EventKind::Switchover => "switchover",
            EventKind::VoterAdded => "voter added",
            EventKind::VoterRemoved => "voter removed",
            EventKind::ReplicaLost => "replica lost",
            EventKind::ReplicaBuilt => "replica built",
            EventKind::QuorumLost => "quorum lost",
            EventKind::ForcedRecovery => "forced recovery",
            EventKind::TakenBack => "taken back",
            EventKind::Dropped => "dropped",
        }
    }
}

/// How long one step of a reconfiguration took, in microseconds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StepTime {
    /// detect, record, fence, promote, attach, barrier, lease, open
    pub name: String,
    pub micros: u64,
}
