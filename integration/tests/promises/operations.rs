//! Promise: an operation survives the loss of whoever carries it out, after every step: another resumes it, it ends,
//! takes effect once, and leaves nothing behind. What is cancelled leaves nothing behind either.

use anyhow::{Context, ensure};
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::sql::expect_sqlstate;
use quorate_integration::{Admin, Cluster, DEMO_DATABASE, Options, failpoints, leftovers, with_cluster};
use std::collections::BTreeSet;
use std::time::Duration;

const OPERATION_LIMIT: Duration = Duration::from_secs(90);

const CREATE: &[&str] = &[
    "coordinator::create::after_claim",
    "coordinator::create::after_initialising",
    "coordinator::create::after_copying",
    "coordinator::creating::after_barrier",
    "coordinator::create::before_end",
];

const DROP: &[&str] = &[
    "coordinator::drop::before_claim",
    "coordinator::drop::after_claim",
    "coordinator::drop::after_deleting",
    "coordinator::drop::before_end",
    "coordinator::drop::after_end",
];

const MOVE: &[&str] = &[
    "coordinator::move::after_claim",
    "coordinator::move::after_copying",
    "coordinator::move::after_exchanging",
    "coordinator::joint::after_barrier",
    "coordinator::move::after_discarding",
];

#[test]
fn an_operation_survives_its_executor_and_leaves_nothing_behind() {
    with_cluster(Options { failpoints: true, ..Options::default() }, async |cluster| {
        cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        for (i, (create, drop)) in CREATE.iter().zip(DROP).enumerate() {
            let name = format!("demo.made{i}");
            lose_executor(cluster, &format!("CREATE DATABASE {name}"), create).await?;
            let made = cluster.whole(&name, 3, HEAL_LIMIT).await?;
            ensure!(made.row.phase == "stable", "{made:?}");
            lose_executor(cluster, &format!("DROP DATABASE {name}"), drop).await?;
            let left = cluster.admin().await?.databases().await?;
            ensure!(left.len() == 1, "{drop}: {left:?}");
        }
        leftovers::none(cluster).await?;
        for point in MOVE {
            part_primary_and_leader(cluster).await?;
            let before = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
            let (from, to) = a_move(cluster).await?;
            lose_executor(cluster, &format!("MOVE REPLICA {DEMO_DATABASE} FROM {from} TO {to}"), point)
                .await?;
            let after = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
            let nodes: BTreeSet<&str> = after.replicas.iter().map(|r| r.node.as_str()).collect();
            ensure!(nodes.contains(to.as_str()) && !nodes.contains(from.as_str()), "{point}: {nodes:?}");
            let kept =
                after.replicas.iter().filter(|r| before.replicas.iter().any(|b| b.replica == r.replica));
            ensure!(kept.count() >= 1, "{point}: everything was made anew: {after:?}");
            leftovers::none(cluster).await?;
        }
        cancelled(cluster).await.context("CANCEL OPERATION")
    });
}

/// Gives the order, has its executor die at `point`, and sees it through.
async fn lose_executor(cluster: &mut Cluster, order: &str, point: &str) -> anyhow::Result<()> {
    let leader = failpoints::leader(cluster).await?;
    failpoints::arm(&leader, point).await?;
    let others = cluster.others(&leader.name);
    let operation = leftovers::begin(&others, order, &format!("{order} {point}")).await?;
    failpoints::died(cluster, &leader, point).await.with_context(|| order.to_owned())?;
    cluster.start_node(&leader.name).await?;
    let admin = Admin::open(&others).await?;
    admin
        .wait_operation(&operation, OPERATION_LIMIT)
        .await
        .with_context(|| format!("{order}, lost at {point}"))?;
    let row = leftovers::operation(&admin, &operation).await?;
    let attempts = row.number::<u32>("attempt")?.unwrap_or(0);
    eprintln!("{point}: {order} done in attempt {attempts}, by {}", row.text("owner")?);
    let claimed_before = !point.ends_with("before_claim") && !point.ends_with("after_end");
    ensure!(attempts >= if claimed_before { 2 } else { 1 }, "nobody took it over: {row:?}");
    Ok(())
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

async fn cancelled(cluster: &Cluster) -> anyhow::Result<()> {
    let before = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let admin = cluster.admin().await?;
    let (from, to) = a_move(cluster).await?;
    for order in
        [format!("MOVE REPLICA {DEMO_DATABASE} FROM {from} TO {to}"), "CREATE DATABASE demo.never".to_owned()]
    {
        let operation = admin.rows(&order).await?.first().context("no operation")?.text("operation")?;
        admin.rows(&format!("CANCEL OPERATION {operation}")).await?;
        let wait = format!("WAIT OPERATION {operation}");
        let waited = admin.session.client.simple_query(&wait);
        let waited = tokio::time::timeout(OPERATION_LIMIT, waited).await.context(order.clone())?;
        expect_sqlstate(waited, "57014", &order)?;
        leftovers::none(cluster).await.with_context(|| order.clone())?;
    }
    let after = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let ids = |v: &quorate_integration::admin::DatabaseView| -> BTreeSet<String> {
        v.replicas.iter().map(|r| r.replica.clone()).collect()
    };
    ensure!(ids(&before) == ids(&after), "cancelled, and yet: {before:?} {after:?}");
    let drop = admin.rows("CREATE DATABASE demo.brief").await?;
    admin.wait_operation(&drop.first().context("none")?.text("operation")?, OPERATION_LIMIT).await?;
    let drop = admin.rows("DROP DATABASE demo.brief").await?.first().context("none")?.text("operation")?;
    let (code, told) = admin.refused(&format!("CANCEL OPERATION {drop}")).await?;
    ensure!(code == "55000", "a drop was cancelled, or: {told}");
    admin.wait_operation(&drop, OPERATION_LIMIT).await?;
    leftovers::none(cluster).await
}
