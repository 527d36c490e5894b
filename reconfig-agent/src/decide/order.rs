//! What the reconfiguration agent may order a replica's node to do, and what it hears back.
//!
//! Every order names the epoch it is given in. A node refuses an order whose epoch is older than what the
//! replica promised (I5, I13), and every order may be given again: it then finds its work done.

use quorate_model::{
    DatabaseId, Epoch, InstanceRole, Lineage, Lsn, NodeId, OperationId, Position, ReplicaId, Timeline,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// An order to the node that holds `replica`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Order {
    pub database: DatabaseId,
    pub replica: ReplicaId,
    /// The epoch of the map's record from which this order was decided.
    pub epoch: Epoch,
    /// The operation that this order is a part of. A node that knows of a later attempt refuses it (I13).
    pub behalf: Option<Behalf>,
    pub what: What,
}

/// The attempt of an operation for which an order is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Behalf {
    pub operation: OperationId,
    pub attempt: u32,
}

impl Behalf {
    /// Whether an order given for `latest` makes this one a zombie's: a later attempt of the same operation, or a later
    /// operation on the same database, of which there is one at a time.
    pub fn yields_to(self, latest: Behalf) -> bool {
        (latest.operation, latest.attempt) > (self.operation, self.attempt)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum What {
    /// Promise the epoch durably, close gate and tunnels to every older one, say where the log ends.
    Fence,
    /// Set the names that may acknowledge, then become primary (R6). An incumbent only changes its reign.
    Promote { sync_names: String, allowed: BTreeSet<ReplicaId>, uuid: uuid::Uuid },
    /// Follow the new primary, if the own log is a prefix of its history: all of it, see
    /// [`quorate_model::position::written_out`].
    Attach { primary: ReplicaId, node: NodeId, history: Vec<Lineage> },
    /// On the primary: let only `allowed` replicate, let `sync_names` acknowledge, then pass a write through the
    /// quorum. Cutting and naming come before the write (R2).
    Barrier { sync_names: String, allowed: BTreeSet<ReplicaId>, uuid: uuid::Uuid },
    /// Let sessions pass.
    Open,
    /// Shorten the stall of a switchover: write a checkpoint while clients still work.
    Checkpoint,
    /// On the primary: become fit to be the source of a rewind. Its role is there, and a checkpoint of its own timeline
    /// has been written: pg_rewind takes the timeline from the control file.
    PrepareSource,
    /// Stop sessions at transaction boundaries, wait this long for open transactions, then stop the instance so
    /// that its log ends with a shutdown checkpoint that every secondary has.
    Retire { drain_ms: u64 },
}

impl What {
    pub fn kind(&self) -> OrderKind {
        match self {
            What::Fence => OrderKind::Fence,
            What::Promote { .. } => OrderKind::Promote,
            What::Attach { .. } => OrderKind::Attach,
            What::Barrier { .. } => OrderKind::Barrier,
            What::Open => OrderKind::Open,
            What::Checkpoint => OrderKind::Checkpoint,
            What::PrepareSource => OrderKind::PrepareSource,
            What::Retire { .. } => OrderKind::Retire,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OrderKind {
    Fence,
    Promote,
    Attach,
    Barrier,
    Open,
    Checkpoint,
    PrepareSource,
    Retire,
}

impl OrderKind {
    /// The name of the step in events and metrics.
    pub fn name(self) -> &'static str {
        match self {
            OrderKind::Fence => "fence",
            OrderKind::Promote => "promote",
            OrderKind::Attach => "attach",
            OrderKind::Barrier => "barrier",
            OrderKind::Open => "open",
            OrderKind::Checkpoint => "checkpoint",
            OrderKind::PrepareSource => "prepare source",
            OrderKind::Retire => "retire",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reply {
    Fenced(Fenced),
    Promoted(Promoted),
    /// The barrier's commit was acknowledged by the quorum.
    Passed {
        lsn: Lsn,
    },
    Retired {
        kept: u32,
        cut: u32,
    },
    Done,
}

/// A replica's promise, and where its log ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fenced {
    /// The end of its log, when the instance answers; without it the promise stops acknowledgements but does
    /// not tell what the log holds, so it does not count toward a cover.
    pub position: Option<Position>,
    pub role: InstanceRole,
    /// How long a lease that this replica's node granted to the old primary may still run, milliseconds.
    pub lease_left_ms: u64,
    /// Why there is no position, for people.
    pub note: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Promoted {
    /// False when it was primary already.
    pub promoted: bool,
    /// The reign in which it was promoted to its present timeline: an earlier one, for an incumbent.
    pub since: Epoch,
    pub timeline: Timeline,
    /// Where each older timeline was left, oldest first.
    pub history: Vec<(Timeline, Lsn)>,
    /// The epoch rows that its log holds, each with the timeline that it is on.
    pub rows: Vec<(Epoch, Timeline)>,
    pub lsn: Lsn,
    pub uuid: uuid::Uuid,
}

/// A refused or failed order. The text is for people and for the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    #[error("{replica} has promised epoch {promise}")]
    Promised { replica: ReplicaId, promise: Epoch },
    #[error("{operation} is in attempt {attempt} now")]
    Superseded { operation: OperationId, attempt: u32 },
    #[error("{0} is not here")]
    NotHere(ReplicaId),
    #[error("{replica} is divergent: its log ends at {lsn} on timeline {timeline}")]
    Divergent { replica: ReplicaId, lsn: Lsn, timeline: Timeline },
    #[error("{0}")]
    Instance(String),
    #[error("{0}")]
    Unreachable(String),
    #[error("{replica} goes by the record of epoch {by} already")]
    Overtaken { replica: ReplicaId, by: Epoch },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_yields_to_later_attempts_and_later_operations_only() {
        let of = |operation, attempt| Behalf { operation: OperationId(operation), attempt };
        assert!(of(7, 1).yields_to(of(7, 2)));
        assert!(of(7, 9).yields_to(of(8, 1)));
        assert!(!of(7, 2).yields_to(of(7, 2)), "the same order may come twice");
        assert!(!of(7, 2).yields_to(of(7, 1)));
    }
}
