//! Promise: an operation survives the loss of whoever carries it out, after every step: another resumes it, it ends,
//! takes effect once, and leaves nothing behind. Here: copies are moved. What is cancelled leaves nothing behind either.

use anyhow::{Context, ensure};
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::executor::{self, OPERATION_LIMIT};
use quorate_integration::failpoints::Passed;
use quorate_integration::{Admin, Cluster, DEMO_DATABASE, Options, failpoints, leftovers, with_cluster};
use std::collections::BTreeSet;

const MOVE: &[&str] = &[
    "move::before_claim",
    "move::after_claim",
    "move::after_copying",
    "move::after_exchanging",
    "joint::after_barrier",
    "joint::after_record_stabilize",
    "move::after_discarding",
    "move::before_end",
    "move::after_end",
];

/// The way back of a move and of a create.
const BACK: &[&str] = &["move::after_taking_back", "create::after_deleting"];

#[test]
fn moving_and_cancelling_survive_their_executor() {
    with_cluster(Options { failpoints: true, ..Options::default() }, async |cluster| {
        cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        let mut passed = Passed::default();
        for point in MOVE {
            part_primary_and_leader(cluster).await?;
            let before = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
            let (from, to) = a_move(cluster).await?;
            let order = format!("MOVE REPLICA {DEMO_DATABASE} FROM {from} TO {to}");
            executor::lose(cluster, &[], &order, point).await?;
            let after = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
            let nodes: BTreeSet<&str> = after.replicas.iter().map(|r| r.node.as_str()).collect();
            ensure!(nodes.contains(to.as_str()) && !nodes.contains(from.as_str()), "{point}: {nodes:?}");
            let is_kept = |id: &str| after.replicas.iter().any(|r| r.replica == id);
            let kept = before.replicas.iter().filter(|r| is_kept(&r.replica)).count();
            ensure!(kept == 2, "{point}: more was made anew than was moved: {before:?} {after:?}");
            leftovers::none(cluster).await.context(*point)?;
            passed.look(cluster.nodes()).await?;
        }
        for point in [None, Some(BACK[0])] {
            part_primary_and_leader(cluster).await?;
            let (from, to) = a_move(cluster).await?;
            cancelled(cluster, &format!("MOVE REPLICA {DEMO_DATABASE} FROM {from} TO {to}"), point).await?;
        }
        for point in [None, Some(BACK[1])] {
            cancelled(cluster, "CREATE DATABASE demo.never", point).await?;
        }
        passed.look(cluster.nodes()).await?;
        passed.none_forgotten(&["move", "joint"], &[MOVE, BACK])?;
        what_cannot_be_cancelled(cluster).await
    });
}

/// The executor's death must not be the primary's as well: the copy to be moved could become the primary.
async fn part_primary_and_leader(cluster: &Cluster) -> anyhow::Result<()> {
    let leader = failpoints::leader(cluster).await?;
    let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    if view.primary()?.node == leader.name {
        let admin = cluster.admin().await?;
        admin.carry_out(&format!("SWITCHOVER DATABASE {DEMO_DATABASE}"), OPERATION_LIMIT).await?;
    }
    Ok(())
}

/// A secondary's node, and one without a copy.
async fn a_move(cluster: &Cluster) -> anyhow::Result<(String, String)> {
    let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let from = view.secondaries().next().context("a secondary")?.node.clone();
    let held: BTreeSet<&str> = view.replicas.iter().map(|r| r.node.as_str()).collect();
    let to = cluster.nodes().iter().find(|n| !held.contains(n.name.as_str())).context("a free node")?;
    Ok((from, to.name.clone()))
}

/// Gives the order and cancels it. Where a point is named, its executor dies there on the way back.
async fn cancelled(cluster: &mut Cluster, order: &str, point: Option<&str>) -> anyhow::Result<()> {
    let what = format!("{order}, cancelled, and its executor lost at {point:?}");
    let before = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let leader = failpoints::leader(cluster).await?;
    let others = cluster.others(&leader.name);
    if let Some(point) = point {
        failpoints::arm(&leader, point).await?;
    }
    let operation = leftovers::begin(&others, order, &what).await?;
    let admin = Admin::open(&others).await?;
    admin.rows(&format!("CANCEL OPERATION {operation}")).await?;
    if let Some(point) = point {
        failpoints::died(cluster, &leader, point).await.with_context(|| what.clone())?;
        cluster.start_node(&leader.name).await?;
    }
    let admin = Admin::open(&others).await?;
    leftovers::ended_cancelled(&admin, &operation, OPERATION_LIMIT).await.with_context(|| what.clone())?;
    let after = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    leftovers::none(cluster).await.with_context(|| what.clone())?;
    let ids = |v: &quorate_integration::admin::DatabaseView| -> BTreeSet<String> {
        v.replicas.iter().map(|r| r.replica.clone()).collect()
    };
    ensure!(ids(&before) == ids(&after), "{what}, and yet: {before:?} {after:?}");
    let left = admin.databases().await?;
    ensure!(left.len() == 1, "{what}, and yet: {left:?}");
    eprintln!("{what}");
    Ok(())
}

async fn what_cannot_be_cancelled(cluster: &Cluster) -> anyhow::Result<()> {
    let admin = cluster.admin().await?;
    admin.carry_out("CREATE DATABASE demo.brief", OPERATION_LIMIT).await?;
    let drop = admin.rows("DROP DATABASE demo.brief").await?.first().context("none")?.text("operation")?;
    let (code, told) = admin.refused(&format!("CANCEL OPERATION {drop}")).await?;
    ensure!(code == "55000", "a drop was cancelled, or: {told}");
    admin.wait_operation(&drop, OPERATION_LIMIT).await?;
    leftovers::none(cluster).await
}
