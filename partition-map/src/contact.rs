//! When this node last heard of a leader, and what its own Raft last said of itself.

use crate::types::{Metrics, Vote};
use openraft::ServerState;
use quorate_model::NodeId;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::time::{Duration, Instant};

/// Who leads the map, as far as this node knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    pub leader: Option<NodeId>,
    pub term: u64,
    /// This node leads, has applied everything of earlier terms, and was in touch with a quorum a moment ago.
    pub is_me: bool,
}

/// A leader that has not been in touch with a quorum for this long is not believed, not even by itself.
pub(crate) const LEADER_ALONE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
struct Seen {
    heard_at: Instant,
    reported_at: Instant,
    vote: Vote,
    leads: bool,
    since_quorum: Option<Duration>,
}

/// Shared by those who hear of leaders and those who decide whether there is one.
pub(crate) struct Contact(Mutex<Seen>);

impl Contact {
    pub(crate) fn new(now: Instant) -> Self {
        let vote = Vote::default();
        Contact(Mutex::new(Seen { heard_at: now, reported_at: now, vote, leads: false, since_quorum: None }))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A leader's request has arrived. That of a deposed leader does not count.
    pub(crate) fn heard(&self, leader: &Vote, now: Instant) {
        let mut seen = self.seen();
        if *leader >= seen.vote {
            seen.heard_at = now;
        }
    }

    /// Raft has reported.
    pub(crate) fn reported(&self, metrics: &Metrics, now: Instant) {
        let mut seen = self.seen();
        seen.reported_at = now;
        seen.vote = metrics.vote;
        seen.leads = metrics.state == ServerState::Leader;
        if seen.leads {
            // Should it be deposed, it does not miss a leader at once.
            seen.heard_at = now;
        }
        seen.since_quorum = metrics.millis_since_quorum_ack.map(Duration::from_millis);
    }

    pub(crate) fn heard_at(&self) -> Instant {
        self.seen().heard_at
    }

    /// Whether this node leads and is in touch. Holds while Raft waits for a slow disk, but not for long.
    pub(crate) fn leads(&self, now: Instant) -> bool {
        let seen = *self.seen();
        let silent = now.saturating_duration_since(seen.reported_at);
        seen.leads && seen.since_quorum.is_some_and(|since| since + silent < LEADER_ALONE)
    }
}

/// What a report of Raft says of the leadership.
pub(crate) fn leadership(metrics: &Metrics) -> Leadership {
    let leads = metrics.state == ServerState::Leader;
    let alone =
        leads && metrics.millis_since_quorum_ack.is_none_or(|ms| Duration::from_millis(ms) >= LEADER_ALONE);
    // A new leader begins its term with an entry of its own; once that is applied, everything before it is.
    let caught_up = metrics.last_applied.is_some_and(|id| id.leader_id.term == metrics.current_term);
    Leadership {
        leader: metrics.current_leader.filter(|_| !alone).map(NodeId),
        term: metrics.current_term,
        is_me: leads && !alone && caught_up,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(state: ServerState, since_quorum: Option<u64>) -> Metrics {
        let mut metrics = Metrics::new_initial(1);
        metrics.state = state;
        metrics.current_term = 3;
        metrics.vote = Vote::new_committed(3, 1);
        metrics.current_leader = Some(1);
        metrics.millis_since_quorum_ack = since_quorum;
        metrics
    }

    #[test]
    fn a_leader_counts_once_it_has_applied_an_entry_of_its_term() {
        let mut metrics = report(ServerState::Leader, Some(0));
        assert!(!leadership(&metrics).is_me);
        metrics.last_applied = Some(openraft::LogId::new(openraft::CommittedLeaderId::new(2, 1), 9));
        assert!(!leadership(&metrics).is_me);
        metrics.last_applied = Some(openraft::LogId::new(openraft::CommittedLeaderId::new(3, 1), 10));
        assert_eq!(leadership(&metrics), Leadership { leader: Some(NodeId(1)), term: 3, is_me: true });
        metrics.millis_since_quorum_ack = Some(1000);
        assert_eq!(leadership(&metrics), Leadership { leader: None, term: 3, is_me: false });
    }

    #[test]
    fn a_leader_that_waits_for_its_disk_leads_for_a_while() {
        let start = Instant::now();
        let contact = Contact::new(start);
        contact.reported(&report(ServerState::Leader, Some(100)), start);
        assert!(contact.leads(start + Duration::from_millis(899)));
        assert!(!contact.leads(start + Duration::from_millis(900)));
        contact.reported(&report(ServerState::Follower, None), start);
        assert!(!contact.leads(start));
    }

    #[test]
    fn a_deposed_leader_is_not_heard() {
        let start = Instant::now();
        let contact = Contact::new(start);
        contact.reported(&report(ServerState::Follower, None), start);
        let later = start + Duration::from_millis(5);
        contact.heard(&Vote::new_committed(2, 2), later);
        assert_eq!(contact.heard_at(), start);
        contact.heard(&Vote::new_committed(3, 1), later);
        assert_eq!(contact.heard_at(), later);
    }
}
