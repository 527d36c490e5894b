//! What may be asked of the partition map, and how it refuses.

use crate::{
    Configuration, DatabaseId, DatabaseOption, Event, Lineage, NodeId, NodeRecord, OperationId,
    OperationState, ReplicaId, ReplicaState, ServerId, ServerOption, Step,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// One entry of the replicated log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A node tells who it is; repeated at every start.
    RegisterNode(NodeRecord),
    CreateServer {
        name: String,
        admin: String,
        verifier: String,
    },
    DropServer {
        name: String,
    },
    SetServerOption {
        server: String,
        option: ServerOption,
    },
    /// Records the database in phase Creating, with the first node of `placement` as its first primary's.
    CreateDatabase {
        server: String,
        name: String,
        placement: Vec<NodeId>,
        now_ms: u64,
    },
    DropDatabase {
        server: String,
        name: String,
        now_ms: u64,
    },
    /// Starts a move or a switchover of an existing database.
    BeginSwitchover {
        database: DatabaseId,
        to: Option<NodeId>,
        now_ms: u64,
    },
    BeginMove {
        database: DatabaseId,
        from: NodeId,
        to: NodeId,
        now_ms: u64,
    },
    /// An operator accepts the loss of what the replicas that do not answer hold (DESIGN §5, step e). Refused unless
    /// the quorum is lost.
    BeginForceRecover {
        database: DatabaseId,
        candidate: Option<NodeId>,
        now_ms: u64,
    },
    /// A command that begins an operation, with the client's idempotency key: given again, it finds the operation that
    /// it began. Refused when the key stands for another order.
    Keyed {
        key: String,
        command: Box<Command>,
    },
    /// Asks for the way back of an operation. From its owner with the attempt and the reason for which it is given
    /// up; from an operator with neither.
    CancelOperation {
        operation: OperationId,
        attempt: Option<u32>,
        because: Option<String>,
        now_ms: u64,
    },
    /// Takes an operation over: its attempt is the next, and commands of the one before are refused. Refused itself
    /// when somebody else was quicker.
    Claim {
        operation: OperationId,
        attempt: u32,
        owner: NodeId,
        now_ms: u64,
    },
    /// Takes an operation to its next step, together with the change of the record that makes the step: both, or
    /// neither. Refused once the operation is over, or was taken over by a later attempt (I13).
    Advance {
        operation: OperationId,
        attempt: u32,
        step: Step,
        /// Compare-and-set on this version of the record.
        change: Option<(u64, Change)>,
        now_ms: u64,
    },
    /// Refused like [`Command::Advance`]. The end of a drop, or of the way back of a create, takes the record away.
    EndOperation {
        operation: OperationId,
        attempt: u32,
        state: OperationState,
        now_ms: u64,
    },
    /// Changes an option of a database.
    SetOption {
        server: String,
        name: String,
        option: DatabaseOption,
    },
    /// Changes a database, if it still has that version.
    Reconfigure {
        database: DatabaseId,
        version: u64,
        change: Change,
    },
    /// Several at once, so that the databases of a lost node fail over in few log entries. Each stands for itself.
    Batch(Vec<Command>),
    /// An event alone, as former daemons recorded it: their logs are still read.
    Record(Event),
    /// What is done, together with its event: both, or neither. The event is given the epoch that the database has then.
    Noted {
        command: Box<Command>,
        event: Event,
    },
}

/// A change of one database's record, compare-and-set on its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Adds a learner on `node`; its id is in [`Applied::Replica`].
    AllocateReplica {
        node: NodeId,
    },
    /// Removes a replica that no configuration contains; its node deletes the data.
    DropReplica {
        replica: ReplicaId,
    },
    MarkReplica {
        replica: ReplicaId,
        state: ReplicaState,
    },
    /// Stable -> Joint, towards `current` (R1: recorded before any new voter's flush may count).
    Join {
        current: Configuration,
    },
    /// Creating, Joint or Promoting -> Stable, once the barrier of `current` has passed.
    Stabilize {
        lineage: Option<Lineage>,
    },
    /// Any phase but Creating and Dropping -> Electing, with the next primary epoch.
    Elect {
        coordinator: NodeId,
    },
    /// Electing or QuorumLost -> Promoting.
    Promote {
        coordinator: NodeId,
        current: Configuration,
    },
    /// Electing -> QuorumLost.
    LoseQuorum {
        coordinator: NodeId,
        missing: Vec<ReplicaId>,
    },
    /// Stable -> Switching.
    Switch {
        coordinator: NodeId,
        to: Option<ReplicaId>,
    },
    /// QuorumLost -> Electing in the next data-loss epoch, by an operator's word: `survivor` is the only one that
    /// counts, `quarantined` never counts again, and no older configuration need be covered (I10).
    Recover {
        coordinator: NodeId,
        survivor: ReplicaId,
        quarantined: BTreeSet<ReplicaId>,
    },
    /// Dropping, when every reachable node has deleted its data: the record goes.
    Remove,
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    Done,
    Server(ServerId),
    /// An operation was recorded for this database.
    Operation {
        id: OperationId,
        database: DatabaseId,
    },
    Replica(ReplicaId),
    /// The operation is the caller's, in this attempt.
    Attempt(u32),
    /// The database's new version.
    Version(u64),
    Batch(Vec<Result<Applied, Refusal>>),
}

/// Why a command changed nothing. The text is for people and safe to show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("server \"{0}\" does not exist")]
    NoSuchServer(String),
    #[error("database \"{0}\" does not exist")]
    NoSuchDatabase(String),
    #[error("node \"{0}\" does not exist")]
    NoSuchNode(String),
    #[error("replica {0} does not exist")]
    NoSuchReplica(ReplicaId),
    #[error("operation {0} does not exist")]
    NoSuchOperation(OperationId),
    #[error("{0} already exists")]
    AlreadyExists(String),
    #[error("{0}")]
    InvalidName(String),
    #[error("server \"{0}\" still has databases; drop them first")]
    ServerNotEmpty(String),
    /// The record has moved on since it was analysed: look again.
    #[error("the record of {database} has version {found}, not {expected}")]
    Stale { database: DatabaseId, expected: u64, found: u64 },
    #[error("{0}")]
    WrongPhase(String),
    #[error("operation {0} on this database has not ended")]
    Busy(OperationId),
    #[error("operation {operation} is in attempt {attempt} now: this command is of another")]
    Superseded { operation: OperationId, attempt: u32 },
    #[error("operation {operation} cannot be cancelled: {reason}")]
    NotCancellable { operation: OperationId, reason: String },
    #[error("the key \"{key}\" was given with another order: {operation}")]
    KeyTaken { key: String, operation: OperationId },
    /// The change would leave too few copies, or break another rule of safety.
    #[error("{0}")]
    Unsafe(String),
    #[error("{0}")]
    LimitReached(String),
}
