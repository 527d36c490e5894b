//! The task that asks for elections when the schedule says so.

use super::schedule::{Now, Schedule};
use crate::contact::Contact;
use crate::store::LogStore;
use crate::types::{Metrics, Raft};
use crate::wire::{Answer, Poll, Question};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::ServerState;
use quorate_model::NodeId;
use quorate_transport::{PeerNetwork, Service, decode, encode};
use std::sync::Arc;
use tokio::sync::{broadcast, watch};
use tokio::time::{Duration, Instant, sleep_until, timeout};

/// For the whole poll. A leader that does not answer within it is taken for gone.
const POLL_TIMEOUT: Duration = Duration::from_millis(60);
/// For an election to come to something, before another is asked for.
const ELECTION_TIME: Duration = Duration::from_millis(150);
/// Looked at again at least this often, as who votes may have changed.
const IDLE_LOOK: Duration = Duration::from_millis(250);

pub(crate) struct Campaign {
    pub(crate) node: NodeId,
    pub(crate) schedule: Schedule,
    pub(crate) raft: Raft,
    pub(crate) peers: Arc<dyn PeerNetwork>,
    pub(crate) store: LogStore,
    pub(crate) contact: Arc<Contact>,
}

impl Campaign {
    pub(crate) fn times(lease: Duration, min_ms: u64, max_ms: u64) -> Schedule {
        Schedule { lease, min: Duration::from_millis(min_ms), max: Duration::from_millis(max_ms) }
    }
}

/// Runs until Raft has stopped.
pub(crate) async fn run(campaign: Campaign) {
    let mut lost = campaign.peers.on_lost();
    let mut metrics = campaign.raft.metrics();
    let mut stopping = metrics.clone();
    let mut lost_at: Option<Instant> = None;
    let mut last_attempt = None;
    loop {
        let now = Instant::now();
        let heard_at = campaign.contact.heard_at();
        // A loss is forgotten once the leader was heard of again.
        lost_at = lost_at.filter(|at| *at >= heard_at);
        let wake = {
            let seen = metrics.borrow();
            match campaign.line(&seen) {
                Some((place, line)) => campaign.schedule.due(Now {
                    heard_at,
                    leader_lost: lost_at.is_some(),
                    place,
                    line,
                    last_attempt,
                }),
                None => now + IDLE_LOOK,
            }
        };
        if wake <= now {
            last_attempt = Some(campaign.attempt(&mut metrics).await);
            continue;
        }
        tokio::select! {
            () = sleep_until(wake) => {}
            gone = lost.recv() => match gone {
                Ok(node) if metrics.borrow().current_leader == Some(node.0) => lost_at = Some(Instant::now()),
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            },
            stopped = stopping.wait_for(|m| m.running_state.is_err()) => {
                drop(stopped);
                return;
            }
        }
    }
}

impl Campaign {
    /// This voter's place in the line that wants to succeed the leader, and how long that is.
    fn line(&self, metrics: &Metrics) -> Option<(u32, u32)> {
        if metrics.state == ServerState::Leader {
            return None;
        }
        let membership = metrics.membership_config.membership();
        let mut voters: Vec<u64> = membership.voter_ids().collect();
        voters.retain(|id| Some(*id) != metrics.current_leader);
        voters.sort_unstable();
        let place = voters.iter().position(|id| *id == self.node.0)?;
        Some((u32::try_from(place).ok()?, u32::try_from(voters.len()).ok()?))
    }

    /// Asks the others, and lets Raft hold an election if a majority wants one. Returns when it was over.
    async fn attempt(&self, metrics: &mut watch::Receiver<Metrics>) -> Instant {
        let (leader, configs) = {
            let seen = metrics.borrow_and_update();
            (seen.current_leader, seen.membership_config.membership().get_joint_config().clone())
        };
        if !self.poll(leader, &configs).await {
            return Instant::now();
        }
        tracing::info!(node = %self.node, former = ?leader, "the map's leader is missed; asking for an election");
        if self.raft.trigger().elect().await.is_ok() {
            let decided = |m: &Metrics| m.current_leader.is_some() && m.current_leader != leader;
            let _ = timeout(ELECTION_TIME, metrics.wait_for(decided)).await;
        }
        Instant::now()
    }

    /// Whether a majority (of each configuration in force) would vote for this node, and no leader objects.
    async fn poll(&self, leader: Option<u64>, configs: &[std::collections::BTreeSet<u64>]) -> bool {
        let question = encode(&Question::WouldVote { last: self.store.last() });
        let others = configs.iter().flatten().copied().filter(|id| *id != self.node.0);
        let others: std::collections::BTreeSet<u64> = others.collect();
        let mut asked: FuturesUnordered<_> = others
            .iter()
            .map(|id| {
                let body = question.clone();
                async move { (*id, self.peers.call(NodeId(*id), Service::Map, body, POLL_TIMEOUT).await) }
            })
            .collect();
        let mut willing = std::collections::BTreeSet::from([self.node.0]);
        let mut leader_pending = leader.is_some_and(|id| others.contains(&id));
        let enough = |willing: &std::collections::BTreeSet<u64>| {
            configs.iter().all(|config| config.intersection(willing).count() * 2 > config.len())
        };
        while leader_pending || !enough(&willing) {
            let Some((id, answer)) = asked.next().await else { break };
            leader_pending &= leader != Some(id);
            match answer.ok().and_then(|body| decode(&body).ok()) {
                Some(Answer::Poll(Poll::Yes)) => {
                    willing.insert(id);
                }
                Some(Answer::Poll(Poll::Leading)) => return false,
                _ => {}
            }
        }
        enough(&willing)
    }
}
