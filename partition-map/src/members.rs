//! Who belongs to the Raft group: making it, and adding nodes that came later.

use crate::types::Raft;
use crate::wire::{Answer, Question};
use openraft::EmptyNode;
use openraft::error::{InitializeError, RaftError};
use quorate_model::NodeId;
use quorate_transport::{PeerNetwork, Service, decode, encode};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// Between looks at whether the group exists already.
const FOUND_PAUSE: Duration = Duration::from_millis(50);
const STATUS_TIMEOUT: Duration = Duration::from_millis(500);
/// Between looks at whether a node is missing from the group.
const MEMBERS_PAUSE: Duration = Duration::from_millis(250);

/// Makes the group, if there is none. Only the lowest of the first voters does, and only after a majority of
/// them said that they know of no group: one that exists has a majority that knows of it, so a founder that
/// lost its disk cannot found a second one.
pub(crate) async fn found(raft: Raft, peers: Arc<dyn PeerNetwork>, node: NodeId, voters: BTreeSet<NodeId>) {
    if voters.first() != Some(&node) {
        return;
    }
    loop {
        match raft.is_initialized().await {
            Ok(false) => {}
            Ok(true) | Err(_) => return,
        }
        match ask_all(peers.as_ref(), node, &voters).await {
            Some(fresh) if (fresh + 1) * 2 > voters.len() => break,
            // A node that belongs to a group already will be told so by its leader.
            Some(_) | None => sleep(FOUND_PAUSE).await,
        }
    }
    let members: BTreeMap<u64, EmptyNode> = voters.iter().map(|id| (id.0, EmptyNode {})).collect();
    match raft.initialize(members).await {
        Ok(()) => tracing::info!(node = %node, voters = voters.len(), "made the partition map"),
        // The leader of an existing group was quicker.
        Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
        Err(error) => tracing::error!(node = %node, %error, "cannot make the partition map"),
    }
}

/// How many others say that they know of no group; `None` if one knows of one.
async fn ask_all(peers: &dyn PeerNetwork, node: NodeId, voters: &BTreeSet<NodeId>) -> Option<usize> {
    let question = encode(&Question::Status);
    let others = voters.iter().filter(|id| **id != node);
    let answers = others.map(|id| peers.call(*id, Service::Map, question.clone(), STATUS_TIMEOUT));
    let mut fresh = 0;
    for answer in futures::future::join_all(answers).await {
        match answer.ok().and_then(|body| decode(&body).ok()) {
            Some(Answer::Status { initialised: true }) => return None,
            Some(Answer::Status { initialised: false }) => fresh += 1,
            _ => {}
        }
    }
    Some(fresh)
}

/// While this node leads, adds configured nodes that are not in the group, as learners: they get the map and
/// do not vote.
pub(crate) async fn complete(raft: Raft, node: NodeId, nodes: BTreeSet<NodeId>) {
    loop {
        let (leads, missing) = {
            let metrics = raft.metrics();
            let seen = metrics.borrow();
            if seen.running_state.is_err() {
                return;
            }
            let members = seen.membership_config.membership();
            let missing = nodes.iter().copied().find(|id| members.get_node(&id.0).is_none());
            (seen.current_leader == Some(node.0) && seen.membership_config.log_id().is_some(), missing)
        };
        match missing {
            Some(learner) if leads => match raft.add_learner(learner.0, EmptyNode {}, false).await {
                Ok(_) => {
                    tracing::info!(node = %node, learner = %learner, "added a node to the partition map")
                }
                Err(error) => {
                    tracing::info!(node = %node, learner = %learner, %error, "cannot add a node to the map yet");
                    sleep(MEMBERS_PAUSE).await;
                }
            },
            _ => sleep(MEMBERS_PAUSE).await,
        }
    }
}
