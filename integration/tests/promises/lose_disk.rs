//! Promise: a secondary whose disk is lost never answers for what it once held. It is taken out, and a copy under another
//! id takes its place; the coordinator may be lost at any step of this upkeep.

use crate::coordinator_loss::{GAP_LIMIT, arrange, begin, end};
use crate::switchover_loss;
use anyhow::{Context, ensure};
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::failpoints::Passed;
use quorate_integration::{Cluster, DEMO_DATABASE, Ledger, Options, failpoints, nemesis, with_cluster};
use std::time::Instant;

/// Each step: the lost one is taken out, a learner is made in its place, which becomes a secondary.
const UPKEEP: &[&str] = &[
    "stable::after_record_mark",
    "stable::before_record_join",
    "stable::after_record_join",
    "joint::after_barrier",
    "joint::after_record_stabilize",
    "stable::after_record_drop_replica",
    "stable::after_record_allocate",
    "stable::after_record_join*2",
    "joint::after_barrier*2",
    "joint::after_record_stabilize*2",
];

/// Where the coordinator's node was the primary's, that comes back and is rewound: no step of this upkeep (see `rewind`).
const RETURN: &[&str] = &["stable::prepare_source"];

#[test]
fn a_lost_disk_is_made_up_for_whoever_is_lost_meanwhile() {
    with_cluster(Options { failpoints: true, ..Options::default() }, async |cluster| {
        let ledger = begin(cluster).await?;
        let mut passed = Passed::default();
        for (round, point) in UPKEEP.iter().enumerate() {
            rebuild(cluster, &ledger, point, round % 2 == 1)
                .await
                .with_context(|| format!("lost at {point}, on the primary's node: {}", round % 2 == 1))?;
            passed.look(cluster.nodes()).await?;
        }
        // Where the primary was brought for a round, the steps of a switchover were passed too.
        passed.none_forgotten(&["stable", "joint"], &[UPKEEP, switchover_loss::BEFORE, RETURN])?;
        end(cluster, ledger).await
    });
}

async fn rebuild(cluster: &mut Cluster, ledger: &Ledger, point: &str, beside: bool) -> anyhow::Result<()> {
    let (leader, before) = arrange(cluster, beside).await?;
    let victim =
        before.secondaries().find(|r| r.node != leader.name).context("a secondary elsewhere")?.clone();
    failpoints::arm(&leader, point).await?;
    let harm = nemesis::lose_disk(&victim)?;
    failpoints::died(cluster, &leader, point).await?;
    let died = Instant::now();
    failpoints::leader_of(&cluster.others(&leader.name)).await?;
    cluster.start_node(&leader.name).await?;
    ledger.progress(20, GAP_LIMIT).await.context("no commits after the coordinator's loss")?;
    let after = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    ensure!(after.replicas.iter().all(|r| r.replica != victim.replica), "{} came back", victim.replica);
    eprintln!(
        "{point}{}: {} died {:.1} s after the loss; whole {:.1} s later",
        if beside { ", on the primary's node" } else { "" },
        leader.name,
        died.duration_since(harm.at).as_secs_f64(),
        died.elapsed().as_secs_f64()
    );
    Ok(())
}
