//! Quorum lost for good: an operator's word, data_loss+1, read-only until a second copy exists (DESIGN §5, step e).

use super::*;

/// r1 of n1 (the primary) and r3 of n3 are gone; r2 of n2 alone is no cover.
fn without_quorum() -> World {
    let mut world = World::new(4);
    world.run_until("idle", |w| w.db().operation.is_none());
    assert!(world.commit());
    world.lose_node(1);
    world.lose_node(3);
    world.run_until("lost", |w| matches!(w.db().phase, Phase::QuorumLost { .. }));
    world
}

fn force(world: &mut World, candidate: Option<NodeId>) -> Result<Applied, Refusal> {
    let (database, now_ms) = (world.id, world.now);
    world.map.apply(Command::BeginForceRecover { database, candidate, now_ms })
}

#[test]
fn nobody_gives_up_what_is_not_lost() {
    let mut world = World::new(4);
    let refused = force(&mut world, None);
    assert!(matches!(refused, Err(Refusal::WrongPhase(_))), "{refused:?}");
}

#[test]
fn a_forced_recovery_is_read_only_until_a_second_copy_exists_and_the_lost_never_count_again() {
    let mut world = without_quorum();
    let lost: Vec<ReplicaId> =
        [1, 3].iter().flat_map(|n| world.db().replicas_on(NodeId(*n)).collect::<Vec<_>>()).collect();
    let before = world.db().epoch;
    force(&mut world, None).unwrap();
    world.run_until("open", |w| w.is_open() && w.db().phase == Phase::Stable);
    assert_eq!(world.db().epoch.data_loss, before.data_loss + 1, "I10");
    assert_eq!(world.db().primary_node(), Some(NodeId(2)));
    assert!(world.db().is_read_only());
    assert!(!world.commit(), "nobody could hold it");
    assert!(lost.iter().all(|r| world.db().is_quarantined(*r)));
    world.run_until("two copies", |w| w.is_open() && w.db().phase == Phase::Stable && !w.db().is_read_only());
    assert!(world.commit());
    // They come back: they are neither started nor counted, whatever they hold.
    world.down.clear();
    for _ in 0..2_000 {
        world.step();
    }
    assert!(lost.iter().all(|r| world.db().is_quarantined(*r) && !world.db().members().contains(r)));
    assert_eq!(world.db().copies().count(), 3);
    assert!(
        world.map.operations.values().all(|o| o.state == OperationState::Done),
        "{:?}",
        world.map.operations
    );
}

#[test]
fn a_recovery_survives_the_loss_of_its_executor_after_every_step() {
    for lost_after in 1..40 {
        let mut world = without_quorum();
        let Ok(Applied::Operation { id, .. }) = force(&mut world, None) else { panic!() };
        for _ in 0..lost_after {
            world.step();
        }
        world.replace_coordinator();
        world.run_until("recovered", |w| w.operation(id).state.is_over());
        assert_eq!(world.operation(id).state, OperationState::Done, "lost after {lost_after}");
        assert_eq!(world.db().epoch.data_loss, 1, "lost after {lost_after}: once");
        world.run_until("two copies", |w| w.is_open() && !w.db().is_read_only());
        assert!(world.commit());
    }
}

#[test]
fn the_quarantined_go_only_by_an_order() {
    let mut world = without_quorum();
    force(&mut world, Some(NodeId(2))).unwrap();
    world.run_until("open", |w| w.is_open() && w.db().phase == Phase::Stable);
    let lost = world.db().replicas.keys().copied().find(|r| world.db().is_quarantined(*r)).unwrap();
    let d = world.db().clone();
    for change in [
        Change::MarkReplica { replica: lost, state: ReplicaState::Up },
        Change::Join { current: Configuration::new(d.current.primary, [lost], 1) },
    ] {
        let refused = world.map.apply(Command::Reconfigure { database: d.id, version: d.version, change });
        assert!(matches!(refused, Err(Refusal::Unsafe(_))), "{refused:?}");
    }
    let change = Change::DropReplica { replica: lost };
    world.map.apply(Command::Reconfigure { database: d.id, version: d.version, change }).unwrap();
    assert!(!world.db().replicas.contains_key(&lost));
}

/// Enough of them answer after all: nothing is given up.
#[test]
fn a_quorum_that_comes_back_makes_the_recovery_unnecessary() {
    let mut world = without_quorum();
    world.down.remove(&NodeId(3));
    force(&mut world, None).unwrap();
    world.run_until("open", |w| w.is_open() && w.db().phase == Phase::Stable && w.db().operation.is_none());
    assert_eq!(world.db().epoch.data_loss, 0);
    let operation = world.map.operations.values().next_back().unwrap();
    assert!(matches!(operation.state, OperationState::Failed(_)), "{operation:?}");
}

#[test]
fn a_named_candidate_that_does_not_answer_is_refused_with_the_reason() {
    let mut world = without_quorum();
    force(&mut world, Some(NodeId(3))).unwrap();
    world.run_until("refused", |w| w.db().operation.is_none());
    let OperationState::Failed(reason) = &world.map.operations.values().next_back().unwrap().state else {
        panic!()
    };
    assert!(reason.contains("n3"), "{reason}");
    assert_eq!(world.db().epoch.data_loss, 0);
}

#[test]
fn a_suspected_node_that_answers_keeps_its_primary() {
    let mut world = World::new(4);
    let reports = world.reports();
    let view = View {
        me: world.me,
        now_ms: world.now,
        unix_ms: world.now,
        leading_since_ms: 0,
        map: &world.map,
        down: &world.down,
        reports: &reports,
        timers: &world.timers,
        claims: &world.claims,
    };
    let primary = world.db().primary_node().unwrap();
    assert!(reconfigure::suspected(&view, world.db(), primary, NodeId(4)).is_some());
    assert!(reconfigure::suspected(&view, world.db(), NodeId(4), NodeId(4)).is_none());
}

/// I10: the record takes it as a step of the operator's order alone, in its present attempt.
#[test]
fn nothing_but_an_operators_order_recovers_by_force() {
    let mut world = without_quorum();
    let record = world.db().clone();
    let coordinator = record.phase.coordinator().unwrap();
    let survivor = record.replicas_on(NodeId(2)).next().unwrap();
    let quarantined = record.replicas.keys().copied().filter(|r| *r != survivor).collect();
    let (database, version) = (world.id, record.version);
    let change = Change::Recover { coordinator, survivor, quarantined };
    let bare = Command::Reconfigure { database, version, change: change.clone() };
    let advance = |operation, attempt, version| Command::Advance {
        operation,
        attempt,
        step: Step::Recovering { survivor },
        change: Some((version, change.clone())),
        now_ms: 0,
    };
    // By no operation, by one of another kind that has ended, and by one of another kind that has not.
    assert!(matches!(world.map.apply(bare.clone()), Err(Refusal::Unsafe(_))));
    let created = *world.map.operations.keys().next().unwrap();
    let attempt = world.operation(created).attempt;
    assert!(world.map.apply(advance(created, attempt, version)).is_err());
    world.map.operations.get_mut(&created).unwrap().state = OperationState::Running;
    assert!(matches!(world.map.apply(advance(created, attempt, version)), Err(Refusal::Unsafe(_))));
    world.map.operations.get_mut(&created).unwrap().state = OperationState::Done;
    assert_eq!(*world.db(), record, "a refused command changes nothing");

    let Ok(Applied::Operation { id, .. }) = force(&mut world, None) else { panic!() };
    let version = world.db().version;
    let claim = |attempt| Command::Claim { operation: id, attempt, owner: NodeId(4), now_ms: 0 };
    world.map.apply(claim(0)).unwrap();
    world.map.apply(claim(1)).unwrap();
    assert!(matches!(world.map.apply(bare), Err(Refusal::Unsafe(_))), "not beside the order either");
    let stale = world.map.apply(advance(id, 1, version));
    assert!(matches!(stale, Err(Refusal::Superseded { attempt: 2, .. })), "{stale:?}");
    assert_eq!(world.db().epoch.data_loss, 0);
    let mut taken_back = world.map.clone();
    let cancel = Command::CancelOperation { operation: id, attempt: None, because: None, now_ms: 0 };
    taken_back.apply(cancel).unwrap();
    let (attempt, newest) = (taken_back.operations[&id].attempt, taken_back.databases[&world.id].version);
    assert!(matches!(taken_back.apply(advance(id, attempt, newest)), Err(Refusal::Unsafe(_))));
    world.map.apply(advance(id, 2, version)).unwrap();
    assert_eq!(world.db().epoch.data_loss, 1);
}
