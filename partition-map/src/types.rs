//! What Raft carries: groups of proposals one way, their outcomes the other.

use openraft::EmptyNode;
use quorate_model::{Applied, Command, NodeId, Refusal};
use serde::{Deserialize, Serialize};
use std::io::Cursor;

openraft::declare_raft_types!(
    /// The one Raft group of a cluster. Addresses are the transport's business, so a node is only a number
    /// here.
    pub(crate) Types:
        D = Proposals,
        R = Outcomes,
        NodeId = u64,
        Node = EmptyNode,
        Entry = openraft::Entry<Types>,
        SnapshotData = Cursor<Vec<u8>>,
);

pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type Vote = openraft::Vote<u64>;
pub(crate) type Entry = openraft::Entry<Types>;
pub(crate) type Membership = openraft::StoredMembership<u64, EmptyNode>;
pub(crate) type StorageError = openraft::StorageError<u64>;
pub(crate) type Raft = openraft::Raft<Types>;
pub(crate) type Metrics = openraft::RaftMetrics<u64, EmptyNode>;

/// What became of a command.
pub(crate) type Outcome = Result<Applied, Refusal>;

/// Names one proposal for good, so that carrying it to a leader twice does not carry it out twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct ProposalId {
    pub(crate) node: NodeId,
    /// Which life of that node's daemon.
    pub(crate) life: u64,
    pub(crate) number: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proposal {
    pub(crate) id: ProposalId,
    pub(crate) command: Command,
}

/// One log entry: what was proposed while the entry before it was being written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proposals(pub(crate) Vec<Proposal>);

/// In the order of the proposals; empty for entries of Raft's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcomes(pub(crate) Vec<Outcome>);
