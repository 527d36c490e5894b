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
