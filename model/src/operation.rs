//! Long-running changes, recorded step by step so that any node can take one over (DESIGN §8).

use crate::{DatabaseId, NodeId, OperationId, ReplicaId};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Operation {
    pub id: OperationId,
    pub kind: OperationKind,
    pub database: DatabaseId,
    /// `server.database`, kept because the record outlives a dropped database.
    pub target: String,
    /// What is being done now, in words for an operator.
    pub step: String,
    pub state: OperationState,
    /// Unix milliseconds, as the proposer's clock had it; for people only, never for decisions.
    pub started_ms: u64,
    pub updated_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum OperationKind {
    CreateDatabase,
    DropDatabase,
    /// Make another replica the primary without losing a session. `to` is chosen after the freeze when absent.
    Switchover {
        to: Option<NodeId>,
    },
    /// Build a copy on `to`, then drop `from`.
    MoveReplica {
        from: ReplicaId,
        to: NodeId,
        built: ReplicaId,
    },
}

impl OperationKind {
    pub fn name(&self) -> &'static str {
        match self {
            OperationKind::CreateDatabase => "create database",
            OperationKind::DropDatabase => "drop database",
            OperationKind::Switchover { .. } => "switchover",
            OperationKind::MoveReplica { .. } => "move replica",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum OperationState {
    Running,
    Done,
    Failed(String),
}

impl OperationState {
    pub fn name(&self) -> &'static str {
        match self {
            OperationState::Running => "running",
            OperationState::Done => "done",
            OperationState::Failed(_) => "failed",
        }
    }

    pub fn is_over(&self) -> bool {
        !matches!(self, OperationState::Running)
    }
}
