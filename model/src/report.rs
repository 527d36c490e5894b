//! What a node says of the replicas it holds: the volatile half of what the reconfiguration agent decides by.

use crate::{DatabaseId, Epoch, Lsn, NodeId, Position, ReplicaId, Timeline};
use serde::{Deserialize, Serialize};

/// The state of one replica as its own node sees it now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaReport {
    pub replica: ReplicaId,
    pub database: DatabaseId,
    pub node: NodeId,
    pub run: RunState,
    pub role: InstanceRole,
    /// The epoch this replica's node has durably promised.
    pub promise: Epoch,
    /// Known while the instance answers; of a primary, its flush position.
    pub position: Option<Position>,
    pub timeline: Timeline,
    /// On a secondary: the reign whose primary it is streaming from now.
    pub streaming: Option<Epoch>,
    pub flush_lsn: Lsn,
    /// Bytes behind the last position heard from the primary through the tunnel.
    pub lag_bytes: u64,
    pub gate: GateReport,
    /// Postmaster's process id, when it runs.
    pub pid: Option<u32>,
    pub data_directory: String,
    /// The directory of the instance's Unix socket.
    pub socket: String,
    pub sessions: u32,
    pub size_bytes: u64,
}

impl ReplicaReport {
    /// Whether the instance runs and answers its agent's probe.
    pub fn is_healthy(&self) -> bool {
        self.run == RunState::Running
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RunState {
    /// Nothing is there yet.
    Absent,
    /// initdb or a base backup is under way.
    Building,
    /// The postmaster was started; it does not answer queries yet.
    Starting,
    /// It answers.
    Running,
    /// The postmaster is there and misses its probes.
    Hung,
    /// The postmaster ended; it will be started again.
    Stopped(String),
    /// Its log holds what the database's history does not; it waits to be rewound, or dropped and rebuilt.
    Divergent,
    /// pg_rewind makes it a copy of the primary again.
    Rewinding,
    /// It cannot be used again, with the reason.
    Failed(String),
}

impl RunState {
    pub fn name(&self) -> &'static str {
        match self {
            RunState::Absent => "absent",
            RunState::Building => "building",
            RunState::Starting => "starting",
            RunState::Running => "running",
            RunState::Hung => "hung",
            RunState::Stopped(_) => "stopped",
            RunState::Divergent => "divergent",
            RunState::Rewinding => "rewinding",
            RunState::Failed(_) => "failed",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum InstanceRole {
    /// Not in recovery: it writes.
    Primary,
    /// In recovery: it follows.
    Standby,
    Unknown,
}

/// The state of a replica's gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GateReport {
    /// No session passes and none is kept.
    Closed,
    /// Sessions are kept, nothing passes: a reconfiguration is under way.
    Held,
    /// Sessions pass, in this reign.
    Open(Epoch),
}

impl GateReport {
    pub fn is_open(self) -> bool {
        matches!(self, GateReport::Open(_))
    }
}
