//! `EXPLAIN FAILOVER`, row by row.

use super::*;
use crate::decide::explain::{Explanation, Question, Row, explain};

fn ask(world: &mut World) -> Explanation {
    let heard = world.reports();
    let reports = heard
        .into_iter()
        .filter(|(id, _)| !world.down.contains_key(&world.db().node_of(*id).unwrap()))
        .map(|(id, heard)| (id, heard.report))
        .collect();
    explain(&Question { map: &world.map, database: world.db(), reports: &reports })
}

fn row(explanation: &Explanation, node: u64) -> Row {
    explanation.rows.iter().find(|r| r.node == NodeId(node)).unwrap().clone()
}

#[test]
fn of_a_healthy_database_it_says_who_would_take_over() {
    let mut world = World::new(4);
    assert!(world.commit());
    let said = ask(&mut world);
    assert!(row(&said, 1).could_lead && row(&said, 1).why.contains("it is the primary"), "{said:?}");
    assert!(row(&said, 2).could_lead && !row(&said, 3).could_lead, "{said:?}");
    let (r1, r2, r3) = (row(&said, 1), row(&said, 2), row(&said, 3));
    assert_eq!(r1.would_cover, vec![BTreeSet::from([r1.replica])]);
    assert_eq!(r2.would_cover, vec![BTreeSet::from([r2.replica, r3.replica])]);
    assert!(said.verdict.iter().any(|v| v.contains("r") && v.contains("would take over")), "{said:?}");
}

#[test]
fn one_secondary_alone_is_no_cover_and_the_missing_are_named() {
    let mut world = World::new(4);
    world.lose_node(1);
    world.lose_node(3);
    world.run_until("lost", |w| matches!(w.db().phase, Phase::QuorumLost { .. }));
    let said = ask(&mut world);
    assert!(said.rows.iter().all(|r| !r.could_lead), "{said:?}");
    assert!(row(&said, 2).why.contains("on n3") && row(&said, 2).why.contains("on n1"), "{said:?}");
    assert_eq!(row(&said, 3).why, "its node does not answer");
    assert!(said.verdict.iter().any(|v| v.contains("FORCE RECOVER DATABASE demo.app")), "{said:?}");
}

#[test]
fn who_is_behind_is_told_by_how_much() {
    let mut world = World::new(4);
    assert!(world.commit());
    let voter = world.db().replicas_on(NodeId(2)).next().unwrap();
    world.replicas.get_mut(&voter).unwrap().position.lsn.0 -= 10;
    let said = ask(&mut world);
    assert!(row(&said, 2).why.contains("10 bytes behind"), "{said:?}");
    assert!(row(&said, 3).could_lead);
}

/// Its fence counts towards the cover, as in the election: with it, somebody can take over.
#[test]
fn a_divergent_copy_helps_to_cover() {
    let mut world = World::new(4);
    assert!(world.commit());
    world.lose_node(1);
    let voter = world.db().replicas_on(NodeId(2)).next().unwrap();
    let mut reports: BTreeMap<_, _> =
        world.reports().into_iter().map(|(id, heard)| (id, heard.report)).collect();
    reports.retain(|id, _| world.db().node_of(*id) != Some(NodeId(1)));
    reports.get_mut(&voter).unwrap().run = RunState::Divergent;
    let question = Question { map: &world.map, database: world.db(), reports: &reports };
    let said = explain(&question);
    assert!(said.verdict.iter().any(|v| v.ends_with("can take over")), "{said:?}");
    reports.remove(&voter);
    let said = explain(&Question { map: &world.map, database: world.db(), reports: &reports });
    assert!(said.rows.iter().all(|row| !row.could_lead), "{said:?}");
}

#[test]
fn of_every_phase_of_a_failover_it_says_what_is_waited_for() {
    let mut world = World::new(4);
    assert!(world.commit());
    world.lose_node(1);
    world.run_until("elected", |w| matches!(w.db().phase, Phase::Promoting { .. }));
    let said = ask(&mut world);
    assert!(said.verdict[0].contains("was elected and is no primary yet"), "{said:?}");
    world.run_until("promoted", |w| {
        w.replicas[&w.db().current.primary].role == InstanceRole::Primary
            && matches!(w.db().phase, Phase::Promoting { .. })
    });
    let said = ask(&mut world);
    assert!(said.verdict[0].contains("leads; it opens when"), "{said:?}");
    assert!(said.verdict[0].contains("acknowledged the epoch"), "{said:?}");
    world.run_until("open", |w| w.is_open() && w.db().phase == Phase::Stable);
    let said = ask(&mut world);
    assert!(said.verdict[0].ends_with("answers"), "{said:?}");
    let primary = world.db().current.primary;
    world.replicas.get_mut(&primary).unwrap().gate = GateReport::Held;
    let said = ask(&mut world);
    assert!(said.verdict[0].ends_with("its gate is not open yet"), "{said:?}");
}

#[test]
fn an_operation_under_way_is_named() {
    let mut world = World::new(4);
    world.run_until("created", |w| w.db().operation.is_none());
    let order = Command::BeginSwitchover { database: world.id, to: None, now_ms: 5 };
    world.map.apply(order).unwrap();
    let said = ask(&mut world);
    let told = said.verdict.iter().find(|v| v.contains("is under way")).unwrap();
    assert!(told.contains("switchover"), "{said:?}");
    world.run_until("switching", |w| matches!(w.db().phase, Phase::Switching { .. }));
    let said = ask(&mut world);
    assert!(said.verdict[0].contains("is to stop between transactions; then"), "{said:?}");
}

#[test]
fn who_has_discarded_log_does_not_count() {
    let mut world = World::new(4);
    assert!(world.commit());
    let voter = world.db().replicas_on(NodeId(2)).next().unwrap();
    let floor = world.replicas[&voter].position;
    let record = world.map.databases.get_mut(&world.id).unwrap().replicas.get_mut(&voter).unwrap();
    record.state = ReplicaState::Incomplete { floor };
    let said = ask(&mut world);
    assert!(row(&said, 2).why.contains("is not past its floor"), "{said:?}");
    assert!(!row(&said, 2).could_lead);
}
