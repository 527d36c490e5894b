//! Long-running changes, recorded step by step so that any node can take one over (DESIGN §8).
//!
//! An operation is carried out by one coordinator at a time, its *owner*. Whoever takes it over bumps `attempt`
//! through the map, and from then on the map refuses every command of an older attempt (I13): a zombie may still
//! talk, it is not obeyed. A step and the change of the database's record that it makes are one entry of the log,
//! so that a step takes effect once.

use crate::{Command, Database, DatabaseId, NodeId, OperationId, Phase, ReplicaId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Coordinators that may try one operation; the next gives it up. Far more than a cluster loses in a day.
pub const MAX_ATTEMPTS: u32 = 64;
/// Longest idempotency key, bytes.
pub const MAX_KEY: usize = 128;

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Operation {
    pub id: OperationId,
    /// The client's idempotency key: the same order with the same key finds this operation instead of beginning
    /// another. Known as long as the operation is kept.
    pub key: Option<String>,
    pub kind: OperationKind,
    pub database: DatabaseId,
    /// `server.database`, kept because the record outlives a dropped database.
    pub target: String,
    pub step: Step,
    /// How often it was taken over: 0 before the first coordinator did.
    pub attempt: u32,
    /// The node whose coordinator carries it out.
    pub owner: Option<NodeId>,
    pub state: OperationState,
    /// Unix milliseconds, as the proposer's clock had it: for people. No decision rests on them, because the clocks of
    /// different nodes are not compared.
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
    /// Build a copy on `to`, then drop `from`, which was on `from_node`. `built` is allocated with the operation, so
    /// that a second run finds it.
    MoveReplica {
        from: ReplicaId,
        from_node: NodeId,
        to: NodeId,
        built: ReplicaId,
    },
    /// Give up what the replicas that do not answer hold, and go on with one that does (DESIGN §5, step e).
    ForceRecover {
        candidate: Option<NodeId>,
    },
}

/// Where an operation stands. Words for people are derived from it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Step {
    /// Nothing was done yet.
    Recorded,
    /// create: the first primary is being made.
    Initialising { replica: ReplicaId },
    /// create, move: copies are being made, so many of them are ready.
    Copying { ready: u32, of: u32 },
    /// create: the first barrier, then the gate.
    Opening,
    /// switchover: the old primary writes a checkpoint while clients still work.
    Checkpointing,
    /// switchover: the freeze has begun. From here on there is no way back, and a primary other than `from` means
    /// that it is done; with `from` still primary, a later attempt than this may try once more.
    Switching { from: ReplicaId, attempt: u32 },
    /// move: the new copy counts instead of the old one. No way back from here on.
    Exchanging,
    /// move: the old copy is not needed any more and goes.
    Discarding { replica: ReplicaId },
    /// drop, and the way back of create: so many nodes still have data to delete.
    Deleting { left: u32 },
    /// recover: who answers is being asked.
    Asking,
    /// recover: the loss is recorded; the survivor is being made primary. No way back from here on.
    Recovering { survivor: ReplicaId },
    /// The way back of move.
    TakingBack { replica: ReplicaId },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum OperationState {
    Running,
    /// On its way back: what it made is being removed. With a reason it will end as failed, without as cancelled.
    Cancelling {
        because: Option<String>,
    },
    Done,
    Cancelled,
    Failed(String),
}

impl Operation {
    /// Whether it can still be cancelled, or why not.
    pub fn can_be_cancelled(&self) -> Result<(), &'static str> {
        match (&self.state, &self.kind, &self.step) {
            (OperationState::Cancelling { .. }, ..) => Err("it is being cancelled already"),
            (state, ..) if state.is_over() => Err("it has already ended"),
            (_, OperationKind::DropDatabase, _) => Err("a drop cannot be taken back: data is being deleted"),
            (_, _, Step::Switching { .. }) => {
                Err("the sessions are frozen already; the switchover ends in a moment, one way or the other")
            }
            (_, _, Step::Exchanging | Step::Discarding { .. }) => {
                Err("the new copy counts already; the move ends in a moment")
            }
            (_, _, Step::Recovering { .. }) => Err("the loss is recorded already"),
            _ => Ok(()),
        }
    }

    /// What a cancelled or given-up operation ends as, once its way back is done.
    pub fn end_of_way_back(&self) -> OperationState {
        match &self.state {
            OperationState::Cancelling { because: Some(reason) } => OperationState::Failed(reason.clone()),
            _ => OperationState::Cancelled,
        }
    }

    /// Whether `command` asks for what this operation was begun for, so that its key may be used again.
    pub fn answers(&self, command: &Command) -> bool {
        match (command, &self.kind) {
            (Command::CreateDatabase { server, name, .. }, OperationKind::CreateDatabase)
            | (Command::DropDatabase { server, name, .. }, OperationKind::DropDatabase) => {
                self.target == format!("{server}.{name}")
            }
            (Command::BeginSwitchover { database, to, .. }, OperationKind::Switchover { to: asked }) => {
                self.database == *database && to == asked
            }
            (
                Command::BeginMove { database, from, to, .. },
                OperationKind::MoveReplica { from_node, to: target, .. },
            ) => self.database == *database && from == from_node && to == target,
            (
                Command::BeginForceRecover { database, candidate, .. },
                OperationKind::ForceRecover { candidate: asked },
            ) => self.database == *database && candidate == asked,
            _ => false,
        }
    }
}

impl OperationKind {
    pub fn name(&self) -> &'static str {
        match self {
            OperationKind::CreateDatabase => "create database",
            OperationKind::DropDatabase => "drop database",
            OperationKind::Switchover { .. } => "switchover",
            OperationKind::MoveReplica { .. } => "move replica",
            OperationKind::ForceRecover { .. } => "force recover",
        }
    }

    /// One word, for the names of failpoints.
    pub fn word(&self) -> &'static str {
        match self {
            OperationKind::CreateDatabase => "create",
            OperationKind::DropDatabase => "drop",
            OperationKind::Switchover { .. } => "switchover",
            OperationKind::MoveReplica { .. } => "move",
            OperationKind::ForceRecover { .. } => "recover",
        }
    }

    /// How long one may take in the hands of one coordinator before it is given up, milliseconds. A copy takes as long
    /// as there is data, so the limit of a move is there for what hangs, not for what is slow.
    pub fn limit_ms(&self) -> u64 {
        const MINUTE: u64 = 60_000;
        match self {
            OperationKind::CreateDatabase => 15 * MINUTE,
            OperationKind::DropDatabase => 5 * MINUTE,
            OperationKind::Switchover { .. } => 5 * MINUTE,
            OperationKind::MoveReplica { .. } => 24 * 60 * MINUTE,
            OperationKind::ForceRecover { .. } => 15 * MINUTE,
        }
    }
}

impl Step {
    /// One word, for the names of failpoints.
    pub fn word(&self) -> &'static str {
        match self {
            Step::Recorded => "recorded",
            Step::Initialising { .. } => "initialising",
            Step::Copying { .. } => "copying",
            Step::Opening => "opening",
            Step::Checkpointing => "checkpointing",
            Step::Switching { .. } => "switching",
            Step::Exchanging => "exchanging",
            Step::Discarding { .. } => "discarding",
            Step::Deleting { .. } => "deleting",
            Step::Asking => "asking",
            Step::Recovering { .. } => "recovering",
            Step::TakingBack { .. } => "taking_back",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Recorded => f.write_str("recorded"),
            Step::Initialising { replica } => write!(f, "initialising {replica}"),
            Step::Copying { ready, of } => write!(f, "copying: {ready} of {of} ready"),
            Step::Opening => f.write_str("passing the first barrier"),
            Step::Checkpointing => f.write_str("writing a checkpoint"),
            Step::Switching { from, .. } => write!(f, "switching from {from}"),
            Step::Exchanging => f.write_str("exchanging the old copy for the new"),
            Step::Discarding { replica } => write!(f, "discarding {replica}"),
            Step::Deleting { left } => write!(f, "deleting, {left} replicas left"),
            Step::Asking => f.write_str("asking who answers"),
            Step::Recovering { survivor } => write!(f, "recovering with {survivor}"),
            Step::TakingBack { replica } => write!(f, "taking back {replica}"),
        }
    }
}

impl OperationState {
    pub fn name(&self) -> &'static str {
        match self {
            OperationState::Running => "running",
            OperationState::Cancelling { .. } => "cancelling",
            OperationState::Done => "done",
            OperationState::Cancelled => "cancelled",
            OperationState::Failed(_) => "failed",
        }
    }

    pub fn is_over(&self) -> bool {
        !matches!(self, OperationState::Running | OperationState::Cancelling { .. })
    }

    /// Why it failed, or will have failed at the end of its way back.
    pub fn error(&self) -> Option<&str> {
        match self {
            OperationState::Failed(reason) | OperationState::Cancelling { because: Some(reason) } => {
                Some(reason)
            }
            _ => None,
        }
    }
}

/// Why a forced recovery of this database may not begin, if it may not: nobody may give up what is not lost.
pub fn may_force_recover(database: &Database) -> Result<(), String> {
    match &database.phase {
        Phase::QuorumLost { .. } | Phase::Electing { .. } => Ok(()),
        phase => Err(format!(
            "it is {}, so nothing is lost: a forced recovery is for a database whose quorum is",
            phase.name()
        )),
    }
}
