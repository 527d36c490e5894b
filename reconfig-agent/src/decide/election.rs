//! Who becomes primary (DESIGN §5, steps d3-d4).
//!
//! Pure: a record, the answers to its fence, and how long was waited. The rules:
//! * only answers with a position make the cover: a promise alone does not say what the log holds;
//! * the most advanced of them wins, epoch first (R8); among equals the incumbent, then a wished-for target;
//! * an incumbent that is still primary is re-elected without promotion;
//! * only replicas that answered become voters, so that the new configuration does not count a dead one. When
//!   nobody else answered, the former voters stay as placeholders: the barrier then waits for one of them, or for
//!   a learner, and the gate stays closed meanwhile (I9).

use super::order::Fenced;
use quorate_model::{Configuration, Database, InstanceRole, Position, ReplicaId, position};
use std::collections::{BTreeMap, BTreeSet};

/// What is known at this moment of an election.
pub struct Ballot<'a> {
    pub database: &'a Database,
    pub fences: &'a BTreeMap<ReplicaId, Fenced>,
    /// Replicas whose answer, or whose position, may still come soon and is worth waiting for.
    pub awaited: &'a BTreeSet<ReplicaId>,
    /// Replicas that say of themselves that they are divergent. Their positions help to cover, and one may win; but they
    /// vote under nobody: the history that told them so may not be recorded yet, and they cannot follow.
    pub divergent: &'a BTreeSet<ReplicaId>,
    /// A replica to prefer among the most advanced (the target of a switchover).
    pub wish: Option<ReplicaId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The fence set covers; these answers are still worth a short wait.
    Patience,
    Elected(Configuration),
    /// It does not cover: the position of any of these could complete it.
    Uncovered {
        missing: Vec<ReplicaId>,
    },
}

pub fn judge(ballot: &Ballot<'_>) -> Outcome {
    let database = ballot.database;
    // I12: a replica that discards log may hold less than it once acknowledged. Its answer says nothing.
    let positions: BTreeMap<ReplicaId, Position> = ballot
        .fences
        .iter()
        .filter(|(r, _)| !database.is_barred(**r))
        .filter_map(|(r, f)| Some((*r, f.position?)))
        .collect();
    let fenced: BTreeSet<ReplicaId> = positions.keys().copied().collect();
    if !database.is_covered_by(&fenced) {
        return Outcome::Uncovered { missing: database.missing_for_cover(&fenced) };
    }
    if !ballot.awaited.is_empty() {
        return Outcome::Patience;
    }
    let members = database.members();
    let incumbent = database.current.primary;
    let winner = positions
        .iter()
        .filter(|(r, _)| members.contains(r))
        .max_by_key(|(r, p)| (p.rank(), **r == incumbent, Some(**r) == ballot.wish, std::cmp::Reverse(**r)))
        .map(|(r, _)| *r);
    let winner = match (winner, ballot.wish) {
        // A wish counts among equals, before the incumbent when the incumbent is no longer primary.
        (Some(w), Some(wish))
            if members.contains(&wish)
                && positions.get(&wish).is_some_and(|p| p.rank() == positions[&w].rank())
                && !is_primary(ballot.fences, w) =>
        {
            wish
        }
        (Some(w), _) => w,
        (None, _) => return Outcome::Uncovered { missing: members.into_iter().collect() },
    };
    Outcome::Elected(configuration(ballot, &positions, winner))
}

fn is_primary(fences: &BTreeMap<ReplicaId, Fenced>, replica: ReplicaId) -> bool {
    fences.get(&replica).is_some_and(|f| f.role == InstanceRole::Primary)
}

/// The configuration under `winner`: voters that answered, follow and hold a prefix of the winner's log.
fn configuration(
    ballot: &Ballot<'_>,
    positions: &BTreeMap<ReplicaId, Position>,
    winner: ReplicaId,
) -> Configuration {
    let database = ballot.database;
    let best = positions[&winner];
    let fit = |r: &ReplicaId| {
        *r != winner
            && database.replicas.contains_key(r)
            && !ballot.divergent.contains(r)
            && ballot.fences[r].role == InstanceRole::Standby
            && positions.get(r).is_some_and(|p| follows(database, p, &best))
    };
    let members = database.members();
    let mut voters: BTreeSet<ReplicaId> =
        positions.keys().filter(|r| members.contains(r)).copied().filter(fit).collect();
    let wanted = (database.copies as usize).saturating_sub(1).max(1);
    if voters.is_empty() {
        voters = positions.keys().copied().filter(fit).take(1).collect();
    }
    while voters.len() > wanted {
        voters.pop_last();
    }
    if voters.is_empty() {
        voters = placeholders(ballot, positions, winner, wanted);
    }
    let k = database.current.k.min(voters.len() as u32).max(1);
    Configuration { primary: winner, voters, k }
}

/// Who is named as a voter when nobody can vote: who may come back and follow. Where everybody is divergent, the most
/// advanced alone: it is the one that is kept, and the others may make room for a new copy.
fn placeholders(
    ballot: &Ballot<'_>,
    positions: &BTreeMap<ReplicaId, Position>,
    winner: ReplicaId,
    wanted: usize,
) -> BTreeSet<ReplicaId> {
    let database = ballot.database;
    let others = || {
        let members = database.members().into_iter();
        members.filter(|r| *r != winner && database.replicas.contains_key(r))
    };
    let may_follow: BTreeSet<ReplicaId> =
        others().filter(|r| !ballot.divergent.contains(r)).take(wanted).collect();
    if !may_follow.is_empty() {
        return may_follow;
    }
    others().max_by_key(|r| (positions.get(r).map(Position::rank), *r)).into_iter().collect()
}

/// Whether a log at `position` is a prefix of the winner's, as far as positions and the recorded history tell.
fn follows(database: &Database, position: &Position, best: &Position) -> bool {
    if position.rank() > best.rank() {
        return false;
    }
    if position.epoch.reign() == best.epoch.reign() {
        return position.timeline == best.timeline;
    }
    position::relate(&database.lineage, position) == position::Relation::Prefix
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_model::*;

    fn position(epoch: u64, lsn: u64) -> Option<Position> {
        Some(Position { epoch: Epoch::new(0, epoch, 0), lsn: Lsn(lsn), timeline: Timeline(1) })
    }

    fn fenced(position: Option<Position>, role: InstanceRole) -> Fenced {
        Fenced { position, role, lease_left_ms: 0, note: String::new() }
    }

    fn database() -> Database {
        Database {
            id: DatabaseId(1),
            server: ServerId(1),
            name: "app".into(),
            version: 1,
            epoch: Epoch::new(0, 2, 0),
            phase: Phase::Electing { coordinator: NodeId(1) },
            current: Configuration::new(ReplicaId(1), [ReplicaId(2), ReplicaId(3)], 1),
            primary_since: Epoch::new(0, 1, 0),
            previous: vec![],
            replicas: (1..=4)
                .map(|i| (ReplicaId(i), Replica { node: NodeId(i), state: ReplicaState::Up }))
                .collect(),
            lineage: vec![Lineage {
                epoch: Epoch::new(0, 1, 0),
                timeline: Timeline(1),
                start_lsn: Lsn(0),
                uuid: uuid::Uuid::nil(),
            }],
            operation: None,
            copies: 3,
            options: Default::default(),
        }
    }

    fn judge_among(
        database: &Database,
        fences: BTreeMap<ReplicaId, Fenced>,
        divergent: &[u64],
        wish: Option<ReplicaId>,
    ) -> Outcome {
        let divergent = divergent.iter().copied().map(ReplicaId).collect();
        judge(&Ballot { database, fences: &fences, awaited: &BTreeSet::new(), divergent: &divergent, wish })
    }

    /// Its history was never recorded, so the record alone would take it for a follower, election after election.
    #[test]
    fn a_divergent_copy_covers_and_a_learner_votes_in_its_place() {
        let mut d = database();
        d.current = Configuration::new(ReplicaId(1), [ReplicaId(2)], 1);
        let fences = [
            (ReplicaId(1), fenced(position(2, 20), Primary)),
            (ReplicaId(2), fenced(position(1, 10), Standby)),
            (ReplicaId(4), fenced(position(2, 20), Standby)),
        ];
        let Outcome::Elected(c) = judge_among(&d, fences.clone().into(), &[2], None) else { panic!() };
        assert_eq!(c, Configuration::new(ReplicaId(1), [ReplicaId(4)], 1));
        let Outcome::Elected(c) = judge_among(&d, fences.into(), &[], None) else { panic!() };
        assert_eq!(c, Configuration::new(ReplicaId(1), [ReplicaId(2)], 1), "the record alone does not know");
    }

    fn judge_with(database: &Database, fences: &[(u64, Fenced)], wish: Option<ReplicaId>) -> Outcome {
        let fences = fences.iter().map(|(r, f)| (ReplicaId(*r), f.clone())).collect();
        judge_among(database, fences, &[], wish)
    }

    use InstanceRole::{Primary, Standby};

    #[test]
    fn one_secondary_is_no_cover() {
        let out = judge_with(&database(), &[(2, fenced(position(1, 10), Standby))], None);
        assert_eq!(out, Outcome::Uncovered { missing: vec![ReplicaId(1), ReplicaId(3)] });
    }

    #[test]
    fn a_promise_without_a_position_is_no_cover() {
        let fences = [(2, fenced(position(1, 10), Standby)), (1, fenced(None, InstanceRole::Unknown))];
        assert!(matches!(judge_with(&database(), &fences, None), Outcome::Uncovered { .. }));
    }

    #[test]
    fn the_most_advanced_wins_epoch_first() {
        let fences = [(2, fenced(position(1, 99), Standby)), (3, fenced(position(2, 10), Standby))];
        let Outcome::Elected(c) = judge_with(&database(), &fences, None) else { panic!() };
        assert_eq!(c.primary, ReplicaId(3), "the mutant 'elect by LSN alone' would take r2");
    }

    #[test]
    fn a_healthy_incumbent_stays() {
        let fences = [
            (1, fenced(position(1, 10), Primary)),
            (2, fenced(position(1, 10), Standby)),
            (3, fenced(position(1, 9), Standby)),
        ];
        let Outcome::Elected(c) = judge_with(&database(), &fences, None) else { panic!() };
        assert_eq!(c, Configuration::new(ReplicaId(1), [ReplicaId(2), ReplicaId(3)], 1));
    }

    #[test]
    fn a_dead_primary_does_not_stay_a_voter() {
        let fences = [(2, fenced(position(1, 10), Standby)), (3, fenced(position(1, 10), Standby))];
        let Outcome::Elected(c) = judge_with(&database(), &fences, None) else { panic!() };
        assert_eq!(c, Configuration::new(ReplicaId(2), [ReplicaId(3)], 1));
    }

    #[test]
    fn the_target_of_a_switchover_wins_among_equals_only() {
        let equal = [(2, fenced(position(1, 10), Standby)), (3, fenced(position(1, 10), Standby))];
        let Outcome::Elected(c) = judge_with(&database(), &equal, Some(ReplicaId(3))) else { panic!() };
        assert_eq!(c.primary, ReplicaId(3));
        let behind = [(2, fenced(position(1, 10), Standby)), (3, fenced(position(1, 9), Standby))];
        let Outcome::Elected(c) = judge_with(&database(), &behind, Some(ReplicaId(3))) else { panic!() };
        assert_eq!(c.primary, ReplicaId(2));
    }

    #[test]
    fn a_learner_never_wins_but_may_be_the_last_voter() {
        let mut d = database();
        d.current = Configuration::new(ReplicaId(1), [ReplicaId(2)], 1);
        let fences = [(2, fenced(position(1, 10), Standby)), (4, fenced(position(1, 10), Standby))];
        let Outcome::Elected(c) = judge_with(&d, &fences, None) else { panic!() };
        assert_eq!(c, Configuration::new(ReplicaId(2), [ReplicaId(4)], 1));
        let more = [(2, fenced(position(1, 10), Standby)), (4, fenced(position(1, 11), Standby))];
        let Outcome::Elected(c) = judge_with(&d, &more, None) else { panic!() };
        assert_eq!(c.primary, ReplicaId(2), "a learner's flush never counted");
    }

    #[test]
    fn alone_it_keeps_its_former_voters_as_placeholders() {
        let mut d = database();
        d.current = Configuration::new(ReplicaId(1), [ReplicaId(2)], 1);
        let Outcome::Elected(c) = judge_with(&d, &[(2, fenced(position(1, 10), Standby))], None) else {
            panic!()
        };
        assert_eq!(c, Configuration::new(ReplicaId(2), [ReplicaId(1)], 1));
    }

    #[test]
    fn joint_needs_both_configurations() {
        let mut d = database();
        d.previous = vec![Configuration::new(ReplicaId(1), [ReplicaId(4)], 1)];
        let fences = [(2, fenced(position(1, 10), Standby)), (3, fenced(position(1, 10), Standby))];
        assert_eq!(
            judge_with(&d, &fences, None),
            Outcome::Uncovered { missing: vec![ReplicaId(1), ReplicaId(4)] }
        );
    }
}
