//! Operations: each ends, each can be taken over after any step, each has a way back.

use super::*;

fn idle() -> World {
    let mut world = World::new(4);
    world.run_until("idle", |w| w.db().operation.is_none());
    world.steps.clear();
    world
}

fn begin(world: &mut World, command: Command) -> OperationId {
    match world.map.apply(command) {
        Ok(Applied::Operation { id, .. }) => id,
        other => panic!("not begun: {other:?}"),
    }
}

fn moving(world: &mut World) -> OperationId {
    let now_ms = world.now;
    let command = Command::BeginMove { database: world.id, from: NodeId(2), to: NodeId(4), now_ms };
    begin(world, command)
}

fn switching(world: &mut World) -> OperationId {
    let now_ms = world.now;
    begin(world, Command::BeginSwitchover { database: world.id, to: Some(NodeId(3)), now_ms })
}

fn dropping(world: &mut World) -> OperationId {
    let (server, name, now_ms) = ("demo".to_owned(), "app".to_owned(), world.now);
    begin(world, Command::DropDatabase { server, name, now_ms })
}

impl World {
    pub(super) fn operation(&self, id: OperationId) -> &Operation {
        &self.map.operations[&id]
    }

    /// The coordinator is lost, and another that knows nothing but the map goes on.
    pub(super) fn replace_coordinator(&mut self) {
        self.me = NodeId(if self.me == NodeId(4) { 2 } else { 4 });
        self.claims.clear();
        self.progress = Progress::new(Epoch::default());
    }

    /// Nodes delete what the map drops.
    fn delete(&mut self) {
        for fake in self.replicas.values_mut() {
            fake.run = RunState::Absent;
        }
    }
}

#[test]
fn switches_over_to_the_wished_node() {
    let mut world = idle();
    assert!(world.commit());
    switching(&mut world);
    world.run_until("switched", |w| {
        w.is_open() && w.db().phase == Phase::Stable && w.db().primary_node() == Some(NodeId(3))
    });
    world.run_until("done", |w| w.db().operation.is_none());
    assert!(world.map.operations.values().all(|o| o.state == OperationState::Done));
    world.run_until("whole", World::is_whole);
}

#[test]
fn moves_a_replica() {
    let mut world = idle();
    moving(&mut world);
    world.run_until("moved", |w| w.db().operation.is_none());
    assert!(world.is_whole());
    assert!(world.db().replicas_on(NodeId(2)).next().is_none());
    assert!(world.map.operations.values().all(|o| o.state == OperationState::Done));
}

#[test]
fn drops_a_database() {
    let mut world = idle();
    let id = dropping(&mut world);
    drop_to_the_end(&mut world);
    assert_eq!(world.operation(id).state, OperationState::Done);
}

fn drop_to_the_end(world: &mut World) {
    for _ in 0..50 {
        if !world.map.databases.contains_key(&world.id) {
            return;
        }
        world.delete();
        world.step();
    }
    panic!("still there: {:?} {:?}", world.db(), world.refused);
}

/// The coordinator is lost after each look at the database; whoever goes on must not begin anything twice.
#[test]
fn an_operation_survives_the_loss_of_its_executor_after_every_step() {
    for begin in [moving, switching] {
        for lost_after in 1..60 {
            let mut world = idle();
            let id = begin(&mut world);
            let made = world.map.last_id;
            for _ in 0..lost_after {
                world.step();
            }
            world.replace_coordinator();
            world.run_until("ended", |w| w.operation(id).state.is_over());
            let operation = world.operation(id).clone();
            assert_eq!(operation.state, OperationState::Done, "lost after {lost_after}: {operation:?}");
            world.run_until("whole", World::is_whole);
            assert_eq!(world.map.last_id, made, "lost after {lost_after}: something was made twice");
            if let OperationKind::Switchover { to: Some(to) } = operation.kind {
                assert_eq!(world.db().primary_node(), Some(to));
            }
            assert!(world.commit());
        }
    }
}

/// The wish of a switchover is in its operation, not in the memory of whoever began it.
#[test]
fn a_switchover_reaches_its_target_through_an_election_by_another_coordinator() {
    for lost_in in ["switching", "electing", "promoting"] {
        let mut world = idle();
        let id = switching(&mut world);
        world.run_until(lost_in, |w| w.db().phase.name() == lost_in);
        world.replace_coordinator();
        // With the old primary gone too, replica 2 is as good a choice as the target.
        world.lose_node(1);
        world.run_until("ended", |w| w.operation(id).state.is_over());
        assert_eq!(world.operation(id).state, OperationState::Done, "lost in {lost_in}");
        assert_eq!(world.db().primary_node(), Some(NodeId(3)), "lost in {lost_in}");
    }
}

/// Its first coordinator was lost before it had claimed it, and the next one knows nothing of anybody yet.
#[test]
fn a_switchover_is_not_given_up_for_want_of_a_report() {
    let mut world = idle();
    let voters: Vec<ReplicaId> = world.db().current.voters.iter().copied().collect();
    world.unheard.extend(&voters);
    let id = switching(&mut world);
    for _ in 0..10 {
        world.step();
    }
    assert_eq!(world.operation(id).state, OperationState::Running);
    world.unheard.clear();
    world.run_until("ended", |w| w.operation(id).state.is_over());
    assert_eq!(world.operation(id).state, OperationState::Done);
    // What is heard and does not follow is an answer.
    let target =
        world.db().current.voters.iter().copied().find(|r| world.db().node_of(*r) == Some(NodeId(2)));
    world.replicas.get_mut(&target.unwrap()).unwrap().alive = false;
    let (database, to, now_ms) = (world.id, Some(NodeId(2)), world.now);
    let id = begin(&mut world, Command::BeginSwitchover { database, to, now_ms });
    world.run_until("ended", |w| w.operation(id).state.is_over());
    assert!(matches!(world.operation(id).state, OperationState::Failed(_)));
    assert!(world.now - now_ms < 1_000, "at once");
}

#[test]
fn a_failover_to_the_target_fulfils_a_switchover() {
    let mut world = idle();
    let (database, to, now_ms) = (world.id, Some(NodeId(2)), world.now);
    let id = begin(&mut world, Command::BeginSwitchover { database, to, now_ms });
    world.step();
    world.lose_node(1);
    world.run_until("ended", |w| w.operation(id).state.is_over());
    assert_eq!(world.operation(id).state, OperationState::Done);
    assert_eq!(world.db().primary_node(), to);
}

/// Whoever recorded it may have had another clock.
#[test]
fn the_clock_of_another_node_ends_no_operation() {
    let mut world = idle();
    world.now += 2 * OperationKind::CreateDatabase.limit_ms();
    let (database, to) = (world.id, Some(NodeId(3)));
    let id = begin(&mut world, Command::BeginSwitchover { database, to, now_ms: 0 });
    world.run_until("ended", |w| w.operation(id).state.is_over());
    assert_eq!(world.operation(id).state, OperationState::Done);
}

/// A leader that was replaced learns of it a little later. Until then both would take the operation from each other.
#[test]
fn two_that_take_themselves_for_the_leader_do_not_use_up_the_attempts() {
    let mut world = idle();
    let id = moving(&mut world);
    let mut other = (NodeId(2), world.claims.clone(), world.progress.clone());
    for _ in 0..100 {
        world.step();
        std::mem::swap(&mut world.me, &mut other.0);
        std::mem::swap(&mut world.claims, &mut other.1);
        std::mem::swap(&mut world.progress, &mut other.2);
    }
    world.run_until("ended", |w| w.operation(id).state.is_over());
    assert_eq!(world.operation(id).state, OperationState::Done);
    assert!(world.operation(id).attempt <= 4, "{:?}", world.operation(id));
}

/// I13: the commands of whoever was replaced are refused by the map.
#[test]
fn a_zombie_executor_is_refused() {
    let mut world = idle();
    let id = moving(&mut world);
    world.run_until("claimed", |w| w.operation(id).attempt == 1);
    world.replace_coordinator();
    world.run_until("taken over", |w| w.operation(id).attempt == 2);
    let version = world.db().version;
    let step = Step::TakingBack { replica: ReplicaId(1) };
    let zombie = [
        Command::Advance { operation: id, attempt: 1, step, change: None, now_ms: 0 },
        Command::EndOperation { operation: id, attempt: 1, state: OperationState::Done, now_ms: 0 },
        Command::Claim { operation: id, attempt: 1, owner: NodeId(9), now_ms: 0 },
        Command::CancelOperation { operation: id, attempt: Some(1), because: None, now_ms: 0 },
    ];
    for command in zombie {
        let refused = world.map.apply(command.clone());
        assert_eq!(refused, Err(Refusal::Superseded { operation: id, attempt: 2 }), "{command:?}");
    }
    assert_eq!(world.db().version, version);
    assert_eq!(world.operation(id).owner, Some(world.me));
}

#[test]
fn a_cancelled_move_leaves_nothing_behind() {
    let mut world = idle();
    world.lose_node(4);
    let id = moving(&mut world);
    world.step();
    world.step();
    assert!(world.db().replicas_on(NodeId(4)).next().is_some());
    world
        .map
        .apply(Command::CancelOperation { operation: id, attempt: None, because: None, now_ms: 0 })
        .unwrap();
    world.run_until("cancelled", |w| w.operation(id).state == OperationState::Cancelled);
    assert!(world.db().replicas_on(NodeId(4)).next().is_none());
    assert!(world.is_whole());
}

#[test]
fn what_cannot_be_cancelled_is_said() {
    let mut world = idle();
    let cancel = |id| Command::CancelOperation { operation: id, attempt: None, because: None, now_ms: 0 };
    let id = switching(&mut world);
    world.run_until("switching", |w| matches!(w.operation(id).step, Step::Switching { .. }));
    assert!(matches!(world.map.apply(cancel(id)), Err(Refusal::NotCancellable { .. })));
    world.run_until("done", |w| w.operation(id).state == OperationState::Done);
    assert!(matches!(world.map.apply(cancel(id)), Err(Refusal::NotCancellable { .. })));
    world.run_until("whole", World::is_whole);
    let id = dropping(&mut world);
    assert!(matches!(world.map.apply(cancel(id)), Err(Refusal::NotCancellable { .. })));
}

#[test]
fn a_cancelled_create_drops_what_was_made() {
    let mut world = idle();
    let created = Command::CreateDatabase {
        server: "demo".into(),
        name: "other".into(),
        placement: vec![NodeId(1), NodeId(2), NodeId(3)],
        now_ms: world.now,
    };
    let id = begin(&mut world, created);
    world.id = world.operation(id).database;
    world.step();
    world
        .map
        .apply(Command::CancelOperation { operation: id, attempt: None, because: None, now_ms: 0 })
        .unwrap();
    drop_to_the_end(&mut world);
    assert_eq!(world.operation(id).state, OperationState::Cancelled);
}

/// Every operation has a limit; past it the way back is taken, with the reason.
#[test]
fn an_operation_that_takes_too_long_is_taken_back() {
    let mut world = idle();
    let id = moving(&mut world);
    world.step();
    world.lose_node(4);
    world.now += OperationKind::limit_ms(&world.operation(id).kind.clone()) + 1;
    world.run_until("given up", |w| w.operation(id).state.is_over());
    let OperationState::Failed(reason) = &world.operation(id).state else { panic!() };
    assert!(reason.contains("within"), "{reason}");
    assert!(world.db().replicas_on(NodeId(4)).next().is_none(), "the copy that was being built is gone");
}

#[test]
fn the_same_key_finds_the_same_operation() {
    let mut world = idle();
    let order = |key: &str, to| Command::Keyed {
        key: key.to_owned(),
        command: Box::new(Command::BeginSwitchover { database: world.id, to, now_ms: 0 }),
    };
    let (first, again) = (order("a", Some(NodeId(3))), order("a", Some(NodeId(3))));
    let other = order("a", Some(NodeId(2)));
    let id = begin(&mut world, first);
    assert_eq!(begin(&mut world, again.clone()), id);
    assert_eq!(world.map.apply(other), Err(Refusal::KeyTaken { key: "a".into(), operation: id }));
    world.run_until("done", |w| w.operation(id).state == OperationState::Done);
    assert_eq!(begin(&mut world, again), id, "and after its end");
    assert_eq!(world.map.operations.values().filter(|o| o.key.is_some()).count(), 1);
}

#[test]
fn a_move_whose_copy_became_the_primary_ends() {
    let mut world = idle();
    let id = moving(&mut world);
    let operation = world.operation(id).clone();
    let OperationKind::MoveReplica { from, built, .. } = operation.kind else { panic!("{operation:?}") };
    let reports = world.reports();
    let mut d = world.db().clone();
    let lost = std::mem::replace(&mut d.current.primary, built);
    let acts = |d: &Database| {
        operate::stable(&world.view(&reports), d, &world.progress, &operation).unwrap_or_default()
    };
    let exchanged = acts(&d);
    let leaves = |act: &Act| {
        matches!(act, Act::Advance { change: Some(Change::Join { current }), .. }
            if !current.voters.contains(&from) && !current.voters.contains(&built))
    };
    assert!(exchanged.iter().any(leaves), "{exchanged:?}");
    let mut alone = d.clone();
    alone.current.voters = BTreeSet::from([from]);
    assert_eq!(acts(&alone), [], "its upkeep finds another voter first");
    // A copy was lost: the one that was to be replaced is needed.
    d.replicas.remove(&lost);
    let ended = acts(&d);
    let fails = |act: &Act| matches!(act, Act::EndOperation { state: OperationState::Failed(why), .. } if why.contains("is needed"));
    assert!(ended.iter().any(fails), "{ended:?}");
}

/// What is told is what was done: a change that is refused leaves no event, and one that is not has its epoch.
#[test]
fn a_change_and_its_event_are_there_together() {
    let mut world = World::new(4);
    world.run_until("idle", |w| w.db().operation.is_none());
    let (d, known) = (world.db().clone(), world.map.events.len());
    let event = quorate_model::Event {
        id: 0,
        at_ms: 1,
        database: d.id,
        target: world.map.full_name(&d),
        kind: quorate_model::EventKind::Failover,
        epoch: Epoch::default(),
        reason: "its postmaster is gone".to_owned(),
        reported_by: None,
        from: None,
        to: None,
        steps: Vec::new(),
    };
    let elect = |version| {
        let change = Change::Elect { coordinator: NodeId(1) };
        let command = Box::new(Command::Reconfigure { database: d.id, version, change });
        Command::Noted { command, event: event.clone() }
    };
    let refused = world.map.apply(elect(d.version + 1));
    assert!(matches!(refused, Err(Refusal::Stale { .. })), "{refused:?}");
    assert_eq!(world.map.events.len(), known);
    world.map.apply(elect(d.version)).unwrap();
    let told = world.map.events.back().unwrap();
    assert_eq!((world.map.events.len(), told.epoch), (known + 1, world.db().epoch));
    assert_ne!(told.epoch, d.epoch);
}
