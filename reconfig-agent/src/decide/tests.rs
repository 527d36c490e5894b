//! Whole reconfigurations, played against a world of values: no clock, no sockets, no Postgres.

#![allow(clippy::unwrap_used)]

use super::*;
use quorate_model::position::{Relation, relate};
use quorate_model::*;
use std::collections::{BTreeMap, BTreeSet};

mod explanations;
mod operations;
mod promotions;
mod recovery;
mod world;

use world::{Fake, World};

#[test]
fn creates_a_database() {
    let world = World::new(4);
    assert!(world.is_whole());
    let operation = world.map.operations.values().next().unwrap();
    assert_eq!(operation.kind, OperationKind::CreateDatabase);
    assert_eq!(world.db().lineage.len(), 1);
}

#[test]
fn loses_the_node_of_the_primary_and_becomes_whole_again() {
    let mut world = World::new(4);
    assert!(world.commit());
    let first = world.db().current.primary;
    world.lose_node(1);
    let lost_at = world.now;
    world.run_until("open", |w| w.is_open() && w.db().phase == Phase::Stable);
    assert!(world.now - lost_at < 500, "{} ms", world.now - lost_at);
    assert_ne!(world.db().current.primary, first);
    assert!(world.commit());
    world.run_until("whole", World::is_whole);
    assert!(world.db().replicas_on(NodeId(4)).next().is_some(), "rebuilt elsewhere");
    assert!(world.now - lost_at > 15_000, "not before replace_after");
}

/// The primary ended with log that nobody else has; another leads now, and it has come back.
fn divergent_former_primary(world: &mut World) -> ReplicaId {
    assert!(world.commit());
    let first = world.db().current.primary;
    let fake = world.replicas.get_mut(&first).unwrap();
    fake.alive = false;
    fake.position.lsn.0 += 500;
    world.run_until("open", |w| w.is_open() && w.db().current.primary != first);
    let fake = world.replicas.get_mut(&first).unwrap();
    fake.alive = true;
    fake.role = InstanceRole::Standby;
    first
}

#[test]
fn a_divergent_copy_is_rewound_with_a_floor_and_votes_again() {
    let mut world = World::new(4);
    let first = divergent_former_primary(&mut world);
    let end = world.replicas[&first].position;
    world.run_until("incomplete", |w| w.db().is_barred(first));
    assert_eq!(world.db().replicas[&first].state, ReplicaState::Incomplete { floor: end });
    assert!(!world.db().members().contains(&first));
    world.run_until("whole", World::is_whole);
    assert!(world.db().current.voters.contains(&first), "under its own id");
    assert!(world.refused.is_empty(), "{:?}", world.refused);
    assert!(world.commit());
}

#[test]
fn a_rewind_goes_on_under_another_coordinator() {
    let mut world = World::new(4);
    let first = divergent_former_primary(&mut world);
    while world.db().current.primary == first || !world.progress.source_ready {
        world.step();
    }
    // Its knowledge is lost at every step from the first order on; the record alone leads to the end.
    for _ in 0..100 {
        world.progress = Progress::new(world.db().epoch.reign());
        world.step();
        world.step();
    }
    world.run_until("whole", World::is_whole);
    assert!(world.db().current.voters.contains(&first));
}

#[test]
fn a_rewind_that_fails_is_not_tried_again() {
    let mut world = World::new(4);
    world.rewinds = false;
    let first = divergent_former_primary(&mut world);
    world.run_until("incomplete", |w| w.db().is_barred(first));
    world.run_until("whole", World::is_whole);
    assert!(!world.db().replicas.contains_key(&first), "rebuilt under another id");
}

/// Two promotions may choose one number: pg_rewind would find nothing to do, so nobody asks it.
#[test]
fn a_copy_on_a_timeline_of_an_unrecorded_promotion_is_flattened_without_a_try() {
    let mut world = World::new(4);
    let first = divergent_former_primary(&mut world);
    world.replicas.get_mut(&first).unwrap().position.timeline = Timeline(2);
    while world.db().replicas.contains_key(&first) {
        assert!(!world.db().is_barred(first));
        assert!(!world.progress.source_ready);
        world.step();
    }
    world.run_until("whole", World::is_whole);
}

/// I12: between the rewind and its floor it may hold less than it once acknowledged.
#[test]
fn an_incomplete_copy_makes_no_cover_and_never_wins() {
    let mut world = World::new(4);
    let first = divergent_former_primary(&mut world);
    world.run_until("incomplete", |w| w.db().is_barred(first));
    let d = world.db().clone();
    let voter = d.current.voters.iter().copied().next().unwrap();
    let elect = |fences: &[ReplicaId]| {
        let far = Position { epoch: d.epoch, lsn: Lsn(1 << 40), timeline: Timeline(9) };
        let fenced = Fenced {
            position: Some(far),
            role: InstanceRole::Standby,
            lease_left_ms: 0,
            note: String::new(),
        };
        let fences = fences.iter().map(|r| (*r, fenced.clone())).collect();
        let awaited = BTreeSet::new();
        election::judge(&election::Ballot {
            database: &d,
            fences: &fences,
            awaited: &awaited,
            divergent: &std::collections::BTreeSet::new(),
            wish: Some(first),
        })
    };
    assert!(matches!(elect(&[first]), election::Outcome::Uncovered { .. }));
    let election::Outcome::Elected(c) = elect(&[first, voter]) else { panic!() };
    assert!(!c.contains(first), "{c:?}");
    let change = Change::Join { current: Configuration::new(d.current.primary, [first], 1) };
    world.apply(&d, change);
    assert!(matches!(world.refused.last(), Some(Refusal::Unsafe(_))), "the record refuses it as well");
    let forget = Change::MarkReplica { replica: first, state: ReplicaState::Down { since_ms: 0 } };
    world.apply(&d, forget);
    assert_eq!(world.refused.len(), 2, "and does not forget the floor");
}

/// A postmaster that does not answer, or whose disk takes no log, is as good as dead.
#[test]
fn a_hung_primary_is_failed_over() {
    let mut world = World::new(4);
    assert!(world.commit());
    let first = world.db().current.primary;
    world.replicas.get_mut(&first).unwrap().run = RunState::Hung;
    world.run_until("open elsewhere", |w| w.is_open() && w.db().current.primary != first);
    assert!(world.commit());
}

#[test]
fn a_false_alarm_keeps_the_incumbent() {
    let mut world = World::new(4);
    let first = world.db().current.primary;
    let d = world.db().clone();
    world.apply(&d, Change::Elect { coordinator: world.me });
    world.progress = Progress::new(world.db().epoch.reign());
    let epoch = world.db().epoch;
    world.run_until("open", |w| w.is_open() && w.db().phase == Phase::Stable);
    assert_eq!(world.db().current.primary, first);
    assert_eq!(world.db().epoch, epoch, "one election");
    assert_eq!(world.db().lineage.len(), 1, "no promotion");
}

#[test]
fn a_lost_secondary_is_taken_out_then_replaced() {
    let mut world = World::new(4);
    world.lose_node(3);
    world.run_until("shrunk", |w| w.db().phase == Phase::Stable && w.db().current.voters.len() == 1);
    assert!(world.commit());
    // Now the other alone can take over.
    world.lose_node(1);
    world.run_until("open", |w| w.is_open() && w.db().phase == Phase::Stable);
    assert_eq!(world.db().primary_node(), Some(NodeId(2)));
}

#[test]
fn two_of_three_lost_at_once_is_a_lost_quorum_that_says_who_is_missing() {
    let mut world = World::new(4);
    let voters: Vec<ReplicaId> = world.db().current.voters.iter().copied().collect();
    world.lose_node(1);
    world.lose_node(3);
    world.run_until("lost", |w| matches!(w.db().phase, Phase::QuorumLost { .. }));
    let Phase::QuorumLost { missing, .. } = &world.db().phase else { panic!() };
    assert!(missing.contains(&voters[1]));
    world.down.remove(&NodeId(3));
    world.run_until("open", |w| w.is_open() && w.db().phase == Phase::Stable);
}

#[test]
fn a_voter_too_many_is_taken_out() {
    let mut world = World::new(4);
    world.run_until("whole", World::is_whole);
    let d = world.db().clone();
    world.apply(&d, Change::AllocateReplica { node: NodeId(4) });
    let extra = world.db().learners().next().unwrap();
    let (d, fake) = (world.db().clone(), world.replicas[d.current.voters.first().unwrap()].clone());
    world.replicas.insert(extra, fake);
    let mut current = d.current.clone();
    current.voters.insert(extra);
    world.apply(&d, Change::Join { current });
    world.run_until("three voters", |w| w.db().phase == Phase::Stable && w.db().current.voters.len() == 3);
    world.run_until("whole again", |w| w.is_whole() && w.db().replicas.len() == 3);
    assert!(world.db().current.voters.contains(&extra), "the oldest goes");
}

#[test]
fn a_change_whose_voters_are_lost_is_gone_back_on() {
    let mut world = World::new(4);
    world.run_until("whole", World::is_whole);
    let d = world.db().clone();
    let lost = *d.current.voters.first().unwrap();
    let current = Configuration { voters: BTreeSet::from([lost]), ..d.current.clone() };
    world.apply(&d, Change::Join { current });
    world.replicas.get_mut(&lost).unwrap().run = RunState::Failed("its data directory is gone".to_owned());
    world.run_until("open", |w| w.is_open() && w.db().phase == Phase::Stable);
    assert!(!world.db().current.voters.contains(&lost));
    world.run_until("whole again", World::is_whole);
}
