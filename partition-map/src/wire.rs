//! What nodes say to each other about the map.

use crate::types::{LogId, Outcome, Proposal, Types};
use openraft::error::InstallSnapshotError;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};

/// `Service::Raft`: Raft's own requests.
#[derive(Serialize, Deserialize)]
pub(crate) enum RaftRequest {
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<u64>),
    Snapshot(InstallSnapshotRequest<Types>),
}

pub(crate) type AppendReply = AppendEntriesResponse<u64>;
pub(crate) type VoteReply = VoteResponse<u64>;
/// A mismatch makes the sender begin again.
pub(crate) type SnapshotReply = Result<InstallSnapshotResponse<u64>, InstallSnapshotError>;

/// `Service::Map`: questions to the leader, or to whoever may know it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Question {
    Propose(Box<Proposal>),
    /// Up to where must a reader have applied the log, to have seen everything that is committed now?
    ReadIndex,
    /// Would you vote for the asker, whose log ends there?
    WouldVote {
        last: Option<LogId>,
    },
    Status,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Outcome(Outcome),
    Index(Option<LogId>),
    Poll(Poll),
    Status {
        initialised: bool,
    },
    /// Ask that one.
    NotLeader {
        leader: Option<u64>,
    },
    /// It could not be done now; it may still be done later.
    Uncertain,
}

/// What a voter says before an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Poll {
    /// It misses a leader too, and has no longer log.
    Yes,
    No,
    /// It is the leader, and was in touch with its voters a moment ago.
    Leading,
}
