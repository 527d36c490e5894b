//! Elections that were interrupted, and promotions that wait: whoever is lost, divergent or late, it comes to its end.

use super::*;

#[test]
fn a_coordinator_that_finds_somebody_elses_election_starts_over() {
    let mut world = World::new(4);
    world.lose_node(1);
    let d = world.db().clone();
    world.apply(&d, Change::Elect { coordinator: NodeId(1) });
    let current =
        Configuration::new(d.current.voters.iter().copied().next().unwrap(), [d.current.primary], 1);
    let e = world.db().clone();
    world.apply(&e, Change::Promote { coordinator: NodeId(1), current });
    assert!(!world.db().previous.is_empty());
    world.run_until("open", |w| w.is_open() && w.db().phase == Phase::Stable);
}

/// Found by the model checker: the incumbent alone covers, so the fences of both secondaries may fail, and the barrier
/// then waits for voters that nobody attaches.
#[test]
fn a_reelected_incumbent_gets_its_voters_back_whose_fences_failed() {
    let mut world = World::new(4);
    let suspicion = NodeDown { since_ms: world.now, reported_by: NodeId(4), silent_ms: 300 };
    for node in [1, 2, 3] {
        world.down.insert(NodeId(node), suspicion.clone());
    }
    world.run_until("electing", |w| matches!(w.db().phase, Phase::Electing { .. }));
    world.down.remove(&NodeId(1));
    world.run_until("promoting the incumbent", |w| matches!(w.db().phase, Phase::Promoting { .. }));
    assert_eq!(world.db().current.primary, ReplicaId(3));
    let fenced: Vec<_> = world.progress.fences.keys().copied().collect();
    assert_eq!(fenced, [ReplicaId(3)], "the fault took effect: nobody else answered");
    world.down.clear();
    world.run_until("whole", World::is_whole);
    assert_eq!(world.db().current.primary, ReplicaId(3), "without another election");
}

/// Found by the model checker: the end of the candidate was never reported, only that it follows again.
#[test]
fn a_candidate_that_was_restarted_unnoticed_is_elected_anew() {
    let mut world = World::new(4);
    world.lose_node(1);
    let promoted = |w: &World| w.progress.promoted.is_some();
    world.run_until("promoted", promoted);
    let (candidate, reign) = (world.db().current.primary, world.db().epoch.reign());
    let fake = world.replicas.get_mut(&candidate).unwrap();
    (fake.role, fake.gate) = (InstanceRole::Standby, GateReport::Closed);
    let failed = Failure::Instance("it is not the primary".into());
    let now = world.now;
    world.progress.on_reply(OrderKind::Barrier, candidate, world.db().epoch, Err(failed), now, 5_000);
    world.run_until("another reign", |w| w.db().epoch.reign() > reign);
    world.run_until("open", |w| w.is_open() && w.db().phase == Phase::Stable);
}

#[test]
fn a_learner_is_waited_for_when_no_voter_has_a_position() {
    let mut world = World::new(4);
    let (primary, voters) = (world.db().current.primary, world.db().current.voters.clone());
    let d = world.db().clone();
    world.apply(&d, Change::AllocateReplica { node: NodeId(4) });
    let learner = world.db().learners().next().unwrap();
    let (d, coordinator) = (world.db().clone(), world.me);
    world.apply(&d, Change::Elect { coordinator });
    let d = world.db().clone();
    let position = world.replicas[&primary].position;
    let answer =
        |position, role| order::Fenced { position, role, lease_left_ms: 0, note: "divergent".to_owned() };
    let mut progress = Progress::new(d.epoch.reign());
    progress.enter(d.phase.name(), world.now);
    progress.fences.insert(primary, answer(Some(position), InstanceRole::Primary));
    progress.fences.extend(voters.iter().map(|r| (*r, answer(None, InstanceRole::Standby))));
    let reports = world.reports();
    let promoted = |progress: &Progress| {
        next(&world.view(&reports), &d, progress).into_iter().find_map(|act| match act {
            Act::Propose { change: Change::Promote { current, .. }, .. } => Some(current),
            _ => None,
        })
    };
    assert_eq!(promoted(&progress), None, "the learner may answer yet");
    progress.fences.insert(learner, answer(Some(position), InstanceRole::Standby));
    assert_eq!(promoted(&progress).unwrap().voters, BTreeSet::from([learner]));
}

/// Every copy but the new primary's left the history, and nothing is rewound before the reign has begun.
fn alone_among_the_divergent(world: &mut World) -> (Database, Progress) {
    let (candidate, voters) = (world.db().current.primary, world.db().current.voters.clone());
    let (d, coordinator) = (world.db().clone(), world.me);
    world.apply(&d, Change::Elect { coordinator });
    let former = *voters.first().unwrap();
    let current = Configuration { primary: candidate, voters: BTreeSet::from([former]), k: 1 };
    let d = world.db().clone();
    world.apply(&d, Change::Promote { coordinator, current });
    let d = world.db().clone();
    let mut progress = Progress::new(d.epoch.reign());
    progress.enter(d.phase.name(), world.now);
    for id in d.copies() {
        let fake = world.replicas.get_mut(&id).unwrap();
        let fenced = order::Fenced {
            position: Some(fake.position),
            role: fake.role,
            lease_left_ms: 0,
            note: String::new(),
        };
        progress.fences.insert(id, fenced);
        if id != candidate {
            fake.run = RunState::Divergent;
        }
    }
    progress.divergent.insert(former);
    let position = world.replicas[&candidate].position;
    progress.promoted = Some(Promoted {
        promoted: false,
        since: d.lineage.last().unwrap().epoch,
        timeline: position.timeline,
        history: Vec::new(),
        rows: Vec::new(),
        lsn: position.lsn,
        uuid: uuid::Uuid::nil(),
    });
    world.now += world.timers.replace_after;
    (d, progress)
}

#[test]
fn a_divergent_learner_that_does_not_run_is_not_waited_for() {
    let mut world = World::new(4);
    let (d, progress) = alone_among_the_divergent(&mut world);
    let reports = world.reports();
    let acts = next(&world.view(&reports), &d, &progress);
    let builds =
        |act: &Act| matches!(act, Act::Propose { change: Change::AllocateReplica { node: NodeId(4) }, .. });
    assert!(acts.iter().any(builds), "{acts:?}");
}

/// Found by the simulator, seed 5349: every copy had followed a primary whose reign ended before it was recorded.
#[test]
fn whoever_followed_a_reign_that_was_never_recorded_follows_the_next() {
    let mut world = World::new(4);
    let (d, coordinator) = (world.db().clone(), world.me);
    world.apply(&d, Change::Elect { coordinator });
    let unrecorded = world.db().epoch.reign();
    let (d, mut progress) = alone_among_the_divergent(&mut world);
    progress.divergent.clear();
    let promoted = progress.promoted.as_mut().unwrap();
    promoted.timeline = Timeline(3);
    promoted.history = vec![(Timeline(1), Lsn(100)), (Timeline(2), Lsn(200))];
    promoted.rows = vec![(d.lineage[0].epoch, Timeline(1)), (unrecorded, Timeline(2))];
    let reports = world.reports();
    let histories: Vec<_> = next(&world.view(&reports), &d, &progress)
        .into_iter()
        .filter_map(|act| match act {
            Act::Order(Order { what: What::Attach { history, .. }, .. }) => Some(history),
            _ => None,
        })
        .collect();
    assert_eq!(histories.len(), 2);
    let end = |lsn| Position { epoch: unrecorded, lsn: Lsn(lsn), timeline: Timeline(2) };
    assert!(histories.iter().all(|h| relate(h, &end(200)) == Relation::Prefix), "{histories:?}");
    assert!(histories.iter().all(|h| relate(h, &end(201)) == Relation::Divergent), "{histories:?}");
}

/// Found by the model checker: the candidate ended after its promotion, and whoever followed it left the history.
#[test]
fn where_no_copy_can_return_another_is_built_at_once() {
    let mut world = World::new(4);
    let (d, mut progress) = alone_among_the_divergent(&mut world);
    progress.entered_ms = world.now - world.timers.shrink_after;
    let builds = |world: &mut World| {
        let reports = world.reports();
        let acts = next(&world.view(&reports), &d, &progress);
        acts.iter().any(|act| matches!(act, Act::Propose { change: Change::AllocateReplica { .. }, .. }))
    };
    assert!(builds(&mut world), "no reboot brings one of them back");
    let voter = *d.current.voters.last().unwrap();
    let other = d.copies().find(|r| *r != d.current.primary && *r != voter).unwrap();
    world.replicas.get_mut(&other).unwrap().run = RunState::Stopped("killed".into());
    assert!(!builds(&mut world), "this one may come back");
}

#[test]
fn where_every_node_holds_a_copy_a_lost_one_makes_room() {
    let mut world = World::new(4);
    let d = world.db().clone();
    world.apply(&d, Change::AllocateReplica { node: NodeId(4) });
    let learner = world.db().learners().next().unwrap();
    let position = world.replicas[&d.current.primary].position;
    let fake = Fake { position, role: InstanceRole::Standby, ..world.replicas[&d.current.primary].clone() };
    world.replicas.insert(learner, fake);
    let (d, progress) = alone_among_the_divergent(&mut world);
    let reports = world.reports();
    let acts = next(&world.view(&reports), &d, &progress);
    let dropped: Vec<ReplicaId> = acts
        .iter()
        .filter_map(|act| match act {
            Act::Propose { change: Change::DropReplica { replica }, .. } => Some(*replica),
            _ => None,
        })
        .collect();
    assert_eq!(dropped, [learner], "what counted before the election is kept: {acts:?}");
}

/// Found by the simulator, seed 1796000324001: every copy had counted in an election that was never recorded, none could
/// follow its winner, and each held a node.
#[test]
fn where_every_copy_counts_and_none_can_follow_the_lesser_makes_room() {
    let mut world = World::new(3);
    let (candidate, voters) = (world.db().current.primary, world.db().current.voters.clone());
    let (d, coordinator) = (world.db().clone(), world.me);
    world.apply(&d, Change::Elect { coordinator });
    let unrecorded = world.db().epoch.reign();
    let d = world.db().clone();
    world.apply(&d, Change::Elect { coordinator });
    let reign = world.db().epoch.reign();
    world.replicas.get_mut(&candidate).unwrap().write_row(reign);
    for (longer, id) in voters.iter().enumerate() {
        let lsn = Lsn(500 - 100 * longer as u64);
        let fake = world.replicas.get_mut(id).unwrap();
        fake.position = Position { epoch: unrecorded, lsn, timeline: Timeline(7) };
    }
    let (higher, lower) = (*voters.first().unwrap(), *voters.last().unwrap());
    world.run_until("nobody follows", |w| voters.iter().all(|r| w.progress.divergent.contains(r)));
    assert_eq!(world.db().current.voters, voters, "both were taken for followers");
    let d = world.db().clone();
    world.apply(&d, Change::DropReplica { replica: lower });
    assert!(matches!(world.refused.pop(), Some(Refusal::Unsafe(_))), "its flush may count yet");
    world.run_until("room is made", |w| !w.db().replicas.contains_key(&lower));
    assert_eq!(world.db().current.voters, BTreeSet::from([higher]));
    assert!(world.db().members().contains(&lower), "what it may have acknowledged is still to be covered");
    world.run_until("whole", World::is_whole);
    assert_eq!(world.db().current.primary, candidate);
    assert!(world.refused.is_empty(), "{:?}", world.refused);
}

/// The only other log that may hold what was acknowledged stays.
#[test]
fn the_last_copy_that_counts_makes_no_room() {
    let mut world = World::new(3);
    let (_, mut progress) = alone_among_the_divergent(&mut world);
    let reports = world.reports();
    let makes_room = |progress: &Progress| {
        next(&world.view(&reports), world.db(), progress)
            .iter()
            .any(|act| matches!(act, Act::Elect(_) | Act::Propose { change: Change::DropReplica { .. }, .. }))
    };
    let other = world.db().members().into_iter().find(|r| !world.db().current.contains(*r)).unwrap();
    progress.divergent.insert(other);
    assert!(makes_room(&progress), "the lesser of two");
    progress.fences.get_mut(&other).unwrap().position = None;
    assert!(!makes_room(&progress), "nobody knows what the other holds");
}

#[test]
fn the_history_of_a_primary_begins_after_whoever_was_to_be_primary_between() {
    let mut world = World::new(4);
    let d = world.db().clone();
    let (first, coordinator) = (d.current.primary, world.me);
    let (one, other) = (*d.current.voters.first().unwrap(), *d.current.voters.last().unwrap());
    let mut elect = |primary, voter| {
        let d = world.db().clone();
        world.apply(&d, Change::Elect { coordinator });
        let d = world.db().clone();
        let current = Configuration { primary, voters: BTreeSet::from([voter]), k: 1 };
        world.apply(&d, Change::Promote { coordinator, current });
        world.db().clone()
    };
    let entry = |d: &Database, since: Epoch| {
        let promoted = Promoted {
            promoted: false,
            since,
            timeline: Timeline(2),
            history: vec![(Timeline(1), Lsn(50))],
            rows: Vec::new(),
            lsn: Lsn(50),
            uuid: uuid::Uuid::nil(),
        };
        reconfigure::lineage(d, &promoted).unwrap()
    };
    let d2 = elect(one, first);
    let d3 = elect(one, other);
    assert_eq!(
        entry(&d3, d2.epoch).epoch,
        d2.epoch,
        "elected again, with nobody between: who follows it may go on"
    );
    let d4 = elect(other, first);
    let d5 = elect(one, first);
    let mut history = d5.lineage.clone();
    history.push(entry(&d5, d2.epoch));
    assert_eq!(history.last().unwrap().epoch, d5.epoch);
    // It chose the same timeline as the promotion of `one`, which it never followed.
    let between = Position { epoch: d4.epoch, lsn: Lsn(60), timeline: Timeline(2) };
    assert_eq!(relate(&history, &between), Relation::Divergent);
}

#[test]
fn whoever_fell_off_during_a_promotion_is_attached_again() {
    let mut world = World::new(4);
    let (d, mut progress) = alone_among_the_divergent(&mut world);
    let voter = *d.current.voters.first().unwrap();
    progress.divergent.clear();
    let fake = world.replicas.get_mut(&voter).unwrap();
    (fake.run, fake.follows) = (RunState::Running, Some(d.epoch));
    progress.attached.insert(voter, world.now - world.timers.settle - 1);
    let attaches = |world: &mut World| {
        let reports = world.reports();
        let acts = next(&world.view(&reports), &d, &progress);
        acts.iter().any(
            |act| matches!(act, Act::Order(o) if o.replica == voter && matches!(o.what, What::Attach { .. })),
        )
    };
    assert!(!attaches(&mut world), "it follows");
    world.replicas.get_mut(&voter).unwrap().follows = None;
    assert!(attaches(&mut world), "it was started again");
}
