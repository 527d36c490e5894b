//! The transitions of one database's record. The map checks the version before and the invariants after.

use crate::command::{Change, Refusal};
use crate::map::MAX_PREVIOUS;
use crate::{Configuration, Database, Phase, ReplicaState};

pub(crate) fn wrong_phase(database: &Database, what: &str) -> Refusal {
    Refusal::WrongPhase(format!("a database that is {} cannot {what}", database.phase.name()))
}

impl Database {
    /// Carries out one change, or refuses it; what it left half-done is thrown away by the caller.
    pub(crate) fn change(&mut self, change: Change) -> Result<(), Refusal> {
        match change {
            // Both need the map around the database and are done by the caller.
            Change::AllocateReplica { .. } | Change::Remove => {
                return Err(wrong_phase(self, "be changed so"));
            }
            Change::DropReplica { replica } => {
                // A candidate may need the room of a copy that cannot follow it (`decide::reconfigure`). Whoever is
                // gone answers no fence: what is still to be covered gets no easier by it (I3).
                let makes_room =
                    matches!(self.phase, Phase::Promoting { .. }) && !self.current.contains(replica);
                if self.members().contains(&replica) && !makes_room {
                    return Err(Refusal::Unsafe(format!(
                        "{replica} counts in a configuration in force; take it out first"
                    )));
                }
                self.replicas.remove(&replica).ok_or(Refusal::NoSuchReplica(replica))?;
            }
            Change::MarkReplica { replica, state } => {
                let marked = self.replicas.get_mut(&replica).ok_or(Refusal::NoSuchReplica(replica))?;
                // Only a forced recovery quarantines, and nothing brings back what it gave up (I10, I11).
                if (marked.state == ReplicaState::Quarantined) != (state == ReplicaState::Quarantined) {
                    return Err(Refusal::Unsafe(format!("{replica} cannot be marked so")));
                }
                // A floor is forgotten by being passed, by nothing else; and a copy is rewound once (I12).
                if matches!(marked.state, ReplicaState::Incomplete { .. }) && state != ReplicaState::Up {
                    return Err(Refusal::Unsafe(format!(
                        "{replica} is incomplete until it is past its floor"
                    )));
                }
                marked.state = state;
            }
            Change::Join { current } => {
                if self.phase != Phase::Stable {
                    return Err(wrong_phase(self, "change its voters"));
                }
                if current.primary != self.current.primary {
                    return Err(Refusal::Unsafe("a change of voters keeps the primary".to_owned()));
                }
                // A lone primary holds no lease, so it must answer a fence before anybody else may count: it gets
                // its first voter by an election.
                if current.is_lone() || self.current.is_lone() {
                    return Err(Refusal::Unsafe("a lone primary gets its voters by an election".to_owned()));
                }
                self.previous = vec![std::mem::replace(&mut self.current, current)];
                self.epoch = self.epoch.next_config();
                self.phase = Phase::Joint;
            }
            Change::Stabilize { lineage } => {
                if !matches!(self.phase, Phase::Creating | Phase::Joint | Phase::Promoting { .. }) {
                    return Err(wrong_phase(self, "become stable"));
                }
                self.lineage.extend(lineage);
                self.previous.clear();
                self.phase = Phase::Stable;
            }
            Change::Elect { coordinator } => {
                if matches!(self.phase, Phase::Creating | Phase::Dropping) {
                    return Err(wrong_phase(self, "elect a primary"));
                }
                self.epoch = self.epoch.next_primary();
                self.phase = Phase::Electing { coordinator };
            }
            Change::Promote { coordinator, current } => {
                match self.phase {
                    Phase::Electing { coordinator: c } | Phase::QuorumLost { coordinator: c, .. }
                        if c == coordinator => {}
                    _ => return Err(wrong_phase(self, "promote a replica")),
                }
                if current.is_lone() && !self.current.is_lone() {
                    return Err(Refusal::Unsafe("an election keeps at least two copies (I9)".to_owned()));
                }
                let former = std::mem::replace(&mut self.current, current);
                if former.primary != self.current.primary {
                    self.primary_since = self.epoch.reign();
                }
                if former != self.current && !self.previous.contains(&former) {
                    self.previous.push(former);
                }
                self.previous.retain(|c| *c != self.current);
                if self.previous.len() > MAX_PREVIOUS {
                    return Err(Refusal::LimitReached("too many interrupted elections".to_owned()));
                }
                self.phase = Phase::Promoting { coordinator };
            }
            Change::LoseQuorum { coordinator, missing } => {
                match self.phase {
                    Phase::Electing { coordinator: c } | Phase::QuorumLost { coordinator: c, .. }
                        if c == coordinator => {}
                    _ => return Err(wrong_phase(self, "lose its quorum")),
                }
                self.phase = Phase::QuorumLost { coordinator, missing };
            }
            Change::Recover { coordinator, survivor, quarantined } => {
                let Phase::QuorumLost { coordinator: found, .. } = self.phase else {
                    return Err(wrong_phase(self, "be recovered by force"));
                };
                if found != coordinator || !self.replicas.contains_key(&survivor) {
                    return Err(wrong_phase(self, "be recovered so"));
                }
                for replica in quarantined {
                    self.replicas.get_mut(&replica).ok_or(Refusal::NoSuchReplica(replica))?.state =
                        ReplicaState::Quarantined;
                }
                self.epoch = self.epoch.next_data_loss();
                if self.current.primary != survivor {
                    self.primary_since = self.epoch.reign();
                }
                self.current = Configuration::lone(survivor);
                self.previous.clear();
                self.phase = Phase::Electing { coordinator };
            }
            Change::Switch { coordinator, to } => {
                if self.phase != Phase::Stable {
                    return Err(wrong_phase(self, "switch over"));
                }
                self.phase = Phase::Switching { coordinator, to };
            }
        }
        Ok(())
    }
}
