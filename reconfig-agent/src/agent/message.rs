//! What agents say to each other over `Service::Agent`.

use crate::decide::{Failure, Order, Reply};
use quorate_model::{Epoch, NodeId, ReplicaId, ReplicaReport};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Are you there, and does your runtime run?
    Ping,
    /// From the coordinator to a replica's node.
    Order(Order),
    /// What do you hold?
    Reports,
    /// From every node to the coordinator, at every change and regularly.
    Push(Vec<ReplicaReport>),
    /// From a primary's node to a voter's: have you not promised a newer reign than this?
    Confirm { voter: ReplicaId, epoch: Epoch },
    /// From an operator, by any node, to the coordinator: this node is suspected.
    Doubt(NodeId),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Response {
    Done,
    Obeyed(Result<Reply, Failure>),
    Reports(Vec<ReplicaReport>),
    Confirmed(bool),
}
