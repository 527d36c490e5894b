//! The replicated state: the map, and what recent proposals came to. Pure: every copy computes the same from
//! the same log.

use crate::types::{LogId, Membership, Outcome, Proposal, ProposalId};
use quorate_model::PartitionMap;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Outcomes that are remembered, newest last: many more than can be proposed while one proposal is being
/// retried.
pub(crate) const OUTCOMES_KEPT: usize = 4096;
/// The form of a snapshot; the first byte of each.
const FORMAT: u8 = 2;

/// Outcomes of recent proposals. A proposal that comes a second time gets the outcome of the first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Recent {
    outcomes: BTreeMap<ProposalId, Outcome>,
    order: VecDeque<ProposalId>,
}

impl Recent {
    fn remember(&mut self, id: ProposalId, outcome: Outcome) {
        self.outcomes.insert(id, outcome);
        self.order.push_back(id);
        while self.order.len() > OUTCOMES_KEPT {
            if let Some(oldest) = self.order.pop_front() {
                self.outcomes.remove(&oldest);
            }
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MapState {
    pub(crate) map: Arc<PartitionMap>,
    recent: Recent,
    pub(crate) last_applied: Option<LogId>,
    pub(crate) membership: Membership,
}

impl MapState {
    /// Carries out a proposal, unless it was carried out before.
    pub(crate) fn apply(&mut self, proposal: Proposal) -> Outcome {
        if let Some(outcome) = self.recent.outcomes.get(&proposal.id) {
            return outcome.clone();
        }
        // Readers keep the map that they have; only the first change after a reader looked copies it.
        let outcome = Arc::make_mut(&mut self.map).apply(proposal.command);
        self.recent.remember(proposal.id, outcome.clone());
        outcome
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_extend(self, vec![FORMAT])
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        match bytes.split_first() {
            Some((&FORMAT, rest)) => postcard::from_bytes(rest).map_err(|e| e.to_string()),
            Some((other, _)) => Err(format!("a snapshot of format {other}, not {FORMAT}")),
            None => Err("an empty snapshot".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use quorate_model::{Applied, Command, NodeId};

    fn proposal(number: u64, name: &str) -> Proposal {
        Proposal {
            id: ProposalId { node: NodeId(1), life: 7, number },
            command: Command::CreateServer {
                name: name.to_owned(),
                admin: "boss".to_owned(),
                verifier: String::new(),
            },
        }
    }

    #[test]
    fn a_proposal_that_comes_twice_is_carried_out_once() {
        let mut state = MapState::default();
        let first = state.apply(proposal(1, "acme"));
        assert!(matches!(first, Ok(Applied::Server(_))));
        assert_eq!(state.apply(proposal(1, "acme")), first);
        assert!(state.apply(proposal(2, "acme")).is_err(), "another proposal of the same is refused");
        assert_eq!(state.map.servers.len(), 1);
    }

    #[test]
    fn readers_keep_the_map_they_have() {
        let mut state = MapState::default();
        let before = state.map.clone();
        state.apply(proposal(1, "acme")).unwrap();
        assert!(before.servers.is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded_and_survives_a_snapshot() {
        let mut state = MapState::default();
        for number in 0..OUTCOMES_KEPT as u64 + 10 {
            let _ = state.apply(proposal(number, "acme"));
        }
        assert_eq!(state.recent.order.len(), OUTCOMES_KEPT);
        assert_eq!(state.recent.outcomes.len(), OUTCOMES_KEPT);
        assert_eq!(MapState::decode(&state.encode().unwrap()).unwrap(), state);
        assert!(MapState::decode(&[9, 0]).is_err());
        assert!(MapState::decode(&[]).is_err());
    }
}
