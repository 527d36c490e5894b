//! Promise: a forced recovery survives the loss of whoever carries it out, after every step: another resumes it, it
//! ends, and the loss is recorded once. Several databases lose their quorum together, one for each step.

use anyhow::{Context, ensure};
use quorate_integration::cluster::{HEAL_LIMIT, Node};
use quorate_integration::executor::{self, OPERATION_LIMIT};
use quorate_integration::failpoints::Passed;
use quorate_integration::{Admin, Cluster, Options, leftovers, nemesis, wait, with_cluster};
use std::collections::BTreeSet;
use std::time::Duration;

const LOST_LIMIT: Duration = Duration::from_secs(40);

/// Each database, and the step at which the executor of its recovery is lost.
const RECOVER: &[(&str, &str)] = &[
    ("demo.app", "recover::after_claim"),
    ("demo.r1", "recover::after_asking"),
    ("demo.r2", "recover::after_recovering"),
    ("demo.r3", "recover::before_end"),
];

#[test]
fn a_forced_recovery_survives_its_executor() {
    with_cluster(Options { failpoints: true, ..Options::default() }, async |cluster| {
        let admin = cluster.admin().await?;
        for (name, _) in &RECOVER[1..] {
            admin.carry_out(&format!("CREATE DATABASE {name}"), OPERATION_LIMIT).await?;
        }
        // The map keeps its majority: of its three voters only one is lost.
        let rows = admin.nodes().await?;
        let role = |raft: &str| rows.iter().find(|r| r.raft == raft).map(|r| r.node.clone());
        let lost = [role("follower").context("a follower")?, role("learner").context("a learner")?];
        for (name, _) in RECOVER {
            put_on(&admin, name, &lost).await?;
        }
        for node in &lost {
            nemesis::kill_node(cluster, node)?;
        }
        let alive = |cluster: &Cluster| -> Vec<Node> {
            cluster.nodes().iter().filter(|n| !lost.contains(&n.name)).cloned().collect()
        };
        for (name, _) in RECOVER {
            wait::until("quorum lost", LOST_LIMIT, async || {
                let row = Admin::open(&alive(cluster)).await?.database(name).await?.row;
                Ok(if row.phase == "quorum lost" { Ok(()) } else { Err(row) })
            })
            .await?;
        }
        let mut passed = Passed::default();
        for (name, point) in RECOVER {
            let order = format!("FORCE RECOVER DATABASE {name} ACCEPT DATA LOSS");
            executor::lose(cluster, &lost, &order, point).await?;
            let view = Admin::open(&alive(cluster)).await?.database(name).await?;
            ensure!(view.row.epoch.starts_with("1."), "{view:?}");
            let aside: BTreeSet<&str> =
                view.replicas.iter().filter(|r| r.state == "quarantined").map(|r| r.node.as_str()).collect();
            ensure!(aside == lost.iter().map(String::as_str).collect(), "{view:?}");
            passed.look(&alive(cluster)).await?;
        }
        passed.none_forgotten(&["recover"], &[&points()])?;
        for node in &lost {
            cluster.start_node(node).await?;
        }
        for (name, _) in RECOVER {
            let view = cluster.admin().await?.database(name).await?;
            for replica in view.replicas.iter().filter(|r| r.state == "quarantined") {
                let order = format!("DROP REPLICA {name} {}", replica.replica);
                cluster.admin().await?.rows(&order).await?;
            }
        }
        for (name, _) in RECOVER {
            cluster.whole(name, 3, HEAL_LIMIT).await?;
        }
        let events = cluster.admin().await?.rows("SHOW EVENTS").await?;
        let told = events.iter().filter(|e| e.text("event").is_ok_and(|e| e == "forced recovery")).count();
        ensure!(told == RECOVER.len(), "{told} forced recoveries of {} databases", RECOVER.len());
        leftovers::none(cluster).await
    });
}

fn points() -> Vec<&'static str> {
    RECOVER.iter().map(|(_, point)| *point).collect()
}

/// Moves secondaries until the database has a copy on each of these nodes, and its primary on the first of them where it
/// would survive: a primary that lives covers every fence set.
async fn put_on(admin: &Admin, name: &str, nodes: &[String]) -> anyhow::Result<()> {
    for node in nodes {
        let view = admin.database(name).await?;
        if view.replicas.iter().any(|r| r.node == *node) {
            continue;
        }
        let from = view.secondaries().find(|r| !nodes.contains(&r.node)).context("a copy to move")?;
        let order = format!("MOVE REPLICA {name} FROM {} TO {node}", from.node);
        admin.carry_out(&order, OPERATION_LIMIT).await?;
    }
    if !nodes.contains(&admin.database(name).await?.primary()?.node) {
        let order = format!("SWITCHOVER DATABASE {name} TO {}", nodes[0]);
        admin.carry_out(&order, OPERATION_LIMIT).await?;
    }
    Ok(())
}
