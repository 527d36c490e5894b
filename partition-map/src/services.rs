//! The answering side: Raft's requests, and questions about the map.

use crate::batch::{Batcher, Submitted};
use crate::contact::Contact;
use crate::store::LogStore;
use crate::types::{LogId, Raft};
use crate::wire::{Answer, Poll, Question, RaftRequest, SnapshotReply};
use async_trait::async_trait;
use bytes::Bytes;
use openraft::error::{CheckIsLeaderError, RaftError};
use quorate_model::NodeId;
use quorate_transport::{Fault, Handler, decode, encode};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

pub(crate) struct RaftService {
    pub(crate) raft: Raft,
    pub(crate) contact: Arc<Contact>,
}

#[async_trait]
impl Handler for RaftService {
    async fn call(&self, _: NodeId, body: Bytes) -> Result<Bytes, Fault> {
        match decode(&body)? {
            RaftRequest::Append(rpc) => {
                self.contact.heard(&rpc.vote, Instant::now());
                let reply = self.raft.append_entries(rpc).await.map_err(|e| fault(&e))?;
                Ok(encode(&reply))
            }
            RaftRequest::Vote(rpc) => {
                let reply = self.raft.vote(rpc).await.map_err(|e| fault(&e))?;
                Ok(encode(&reply))
            }
            RaftRequest::Snapshot(rpc) => {
                self.contact.heard(&rpc.vote, Instant::now());
                let reply: SnapshotReply = match self.raft.install_snapshot(rpc).await {
                    Ok(reply) => Ok(reply),
                    Err(RaftError::APIError(error)) => Err(error),
                    Err(error) => return Err(fault(&error)),
                };
                Ok(encode(&reply))
            }
        }
    }
}

fn fault(error: &impl std::fmt::Display) -> Fault {
    Fault::new(error.to_string())
}

/// Answers questions about the map; the node asks itself the same way.
#[derive(Clone)]
pub(crate) struct MapService {
    pub(crate) raft: Raft,
    pub(crate) batcher: Batcher,
    pub(crate) store: LogStore,
    pub(crate) contact: Arc<Contact>,
    pub(crate) lease: Duration,
}

#[async_trait]
impl Handler for MapService {
    async fn call(&self, _: NodeId, body: Bytes) -> Result<Bytes, Fault> {
        Ok(encode(&self.answer(decode(&body)?).await))
    }
}

impl MapService {
    pub(crate) async fn answer(&self, question: Question) -> Answer {
        match question {
            Question::Propose(proposal) => match self.batcher.submit(*proposal).await {
                Submitted::Outcome(outcome) => Answer::Outcome(outcome),
                Submitted::NotLeader(leader) => Answer::NotLeader { leader },
                Submitted::Uncertain => Answer::Uncertain,
            },
            Question::ReadIndex => self.read_index().await,
            Question::WouldVote { last } => Answer::Poll(self.would_vote(last, Instant::now())),
            Question::Status => match self.raft.is_initialized().await {
                Ok(initialised) => Answer::Status { initialised },
                Err(_) => Answer::Uncertain,
            },
        }
    }

    /// Raft makes sure that this node still leads, by asking a quorum.
    async fn read_index(&self) -> Answer {
        match self.raft.get_read_log_id().await {
            Ok((index, _)) => Answer::Index(index),
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward))) => {
                Answer::NotLeader { leader: forward.leader_id }
            }
            Err(_) => Answer::Uncertain,
        }
    }

    fn would_vote(&self, last: Option<LogId>, now: Instant) -> Poll {
        if self.contact.leads(now) {
            return Poll::Leading;
        }
        let misses_leader = now.saturating_duration_since(self.contact.heard_at()) >= self.lease;
        if misses_leader && last >= self.store.last() { Poll::Yes } else { Poll::No }
    }
}
