//! Groups proposals: those that arrive while an entry is being written and replicated go into the next one
//! together. So a burst costs a few disk flushes, and a single proposal waits for nobody.

use crate::types::{Outcome, Proposal, Proposals, Raft};
use openraft::error::{ClientWriteError, RaftError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

const QUEUE_PROPOSALS: usize = 1024;
/// Proposals of one entry.
const BATCH_PROPOSALS: usize = 128;
/// Entries under way at a time: one on its way to the followers, one being written here.
const ENTRIES_IN_FLIGHT: usize = 2;
/// A leader that cannot reach a quorum would hold its proposals forever.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub(crate) enum Submitted {
    Outcome(Outcome),
    NotLeader(Option<u64>),
    /// It may still be carried out.
    Uncertain,
}

struct Waiting {
    proposal: Proposal,
    reply: oneshot::Sender<Submitted>,
}

#[derive(Clone)]
pub(crate) struct Batcher(mpsc::Sender<Waiting>);

impl Batcher {
    /// The batcher, and the task that it needs.
    pub(crate) fn new(raft: Raft) -> (Batcher, impl Future<Output = ()> + Send + 'static) {
        let (sender, queue) = mpsc::channel(QUEUE_PROPOSALS);
        (Batcher(sender), run(raft, queue))
    }

    pub(crate) async fn submit(&self, proposal: Proposal) -> Submitted {
        let (reply, submitted) = oneshot::channel();
        if self.0.send(Waiting { proposal, reply }).await.is_err() {
            return Submitted::NotLeader(None);
        }
        submitted.await.unwrap_or(Submitted::Uncertain)
    }
}

async fn run(raft: Raft, mut queue: mpsc::Receiver<Waiting>) {
    let mut in_flight = tokio::task::JoinSet::new();
    loop {
        while in_flight.len() >= ENTRIES_IN_FLIGHT {
            in_flight.join_next().await;
        }
        let mut batch = Vec::new();
        if queue.recv_many(&mut batch, BATCH_PROPOSALS).await == 0 {
            return;
        }
        in_flight.spawn(write(raft.clone(), batch));
    }
}

async fn write(raft: Raft, batch: Vec<Waiting>) {
    let (proposals, replies): (Vec<_>, Vec<_>) = batch.into_iter().map(|w| (w.proposal, w.reply)).unzip();
    let submitted = match timeout(COMMIT_TIMEOUT, raft.client_write(Proposals(proposals))).await {
        Ok(Ok(response)) => {
            for (reply, outcome) in replies.into_iter().zip(response.data.0) {
                // Whoever asked may have gone.
                let _ = reply.send(Submitted::Outcome(outcome));
            }
            return;
        }
        Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
            Submitted::NotLeader(forward.leader_id)
        }
        Ok(Err(_)) | Err(_) => Submitted::Uncertain,
    };
    for reply in replies {
        let _ = reply.send(submitted.clone());
    }
}
