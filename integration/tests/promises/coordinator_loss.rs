//! Promise: the coordinator may be lost at any step of a failover or a switchover, whether it is on the primary's node
//! or not: another goes on, no acknowledged commit is lost, and the database becomes whole.

use anyhow::{Context, ensure};
use quorate_integration::cluster::{HEAL_LIMIT, Node};
use quorate_integration::ledger::Plan;
use quorate_integration::{
    Admin, Cluster, DEMO_DATABASE, Endpoint, Ledger, Options, copies, failpoints, leftovers, nemesis,
    with_cluster,
};
use std::time::{Duration, Instant};

/// From the coordinator's death to the next commits: another leader, another election.
const GAP_LIMIT: Duration = Duration::from_secs(30);
const OPERATION_LIMIT: Duration = Duration::from_secs(60);

/// Each step of a failover, once.
const FAILOVER: &[&str] = &[
    "coordinator::electing::before_record_elect",
    "coordinator::electing::after_record_elect",
    "coordinator::electing::after_fence",
    "coordinator::electing::before_record_promote",
    "coordinator::electing::after_record_promote",
    "coordinator::promoting::after_promote",
    "coordinator::promoting::after_attach",
    "coordinator::promoting::after_barrier",
    "coordinator::promoting::after_open",
    "coordinator::promoting::after_record_stabilize",
];

/// Each step of a switchover that is not one of a failover too, and the first that is.
const SWITCHOVER: &[&str] = &[
    "coordinator::switchover::after_claim",
    "coordinator::stable::after_checkpoint",
    "coordinator::switchover::before_switching",
    "coordinator::switchover::after_switching",
    "coordinator::switching::after_retire",
    "coordinator::electing::after_fence",
    "coordinator::promoting::after_promote",
    "coordinator::promoting::after_open",
    "coordinator::switchover::before_end",
];

#[test]
fn the_loss_of_the_coordinator_at_any_step_loses_nothing() {
    with_cluster(Options { failpoints: true, ..Options::default() }, async |cluster| {
        cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        let ports: Vec<Endpoint> = cluster.nodes().iter().map(Node::app).collect();
        let plan = Plan::over(&ports, 4).paced(Duration::from_millis(10));
        let ledger = Ledger::begin(plan).await?;
        let mut beside = 0;
        for (round, point) in FAILOVER.iter().enumerate() {
            // Every other time the coordinator shares the node of the primary, where that can be arranged.
            let same = round % 2 == 1 && put_primary_on_leader(cluster).await?;
            beside += usize::from(same);
            failover(cluster, &ledger, point)
                .await
                .with_context(|| format!("lost at {point}, with the primary: {same}"))?;
        }
        ensure!(beside >= 2, "the coordinator was on the primary's node {beside} times only");
        for point in SWITCHOVER {
            switchover(cluster, &ledger, point).await.with_context(|| format!("lost at {point}"))?;
        }
        let whole = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        let verdict = ledger.end(&ports[0]).await?;
        eprintln!("{verdict}");
        verdict.kept()?;
        eprintln!("every copy: {}", copies::ledgers_agree(&whole).await?);
        leftovers::none(cluster).await
    });
}

/// True when the primary is on the leader's node now.
async fn put_primary_on_leader(cluster: &Cluster) -> anyhow::Result<bool> {
    let leader = failpoints::leader(cluster).await?;
    let view = cluster.following(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    if view.primary()?.node == leader.name {
        return Ok(true);
    }
    if !view.secondaries().any(|r| r.node == leader.name) {
        return Ok(false);
    }
    let admin = cluster.admin().await?;
    let order = format!("SWITCHOVER DATABASE {DEMO_DATABASE} TO {}", leader.name);
    admin.carry_out(&order, OPERATION_LIMIT).await?;
    Ok(cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?.primary()?.node == leader.name)
}

async fn failover(cluster: &mut Cluster, ledger: &Ledger, point: &str) -> anyhow::Result<()> {
    let before = cluster.following(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let leader = failpoints::leader(cluster).await?;
    failpoints::arm(&leader, point).await?;
    let harm = nemesis::kill_postmaster(before.primary()?)?;
    failpoints::died(cluster, &leader, point).await?;
    let died = Instant::now();
    // The dead node may hold a second of the three copies, the new primary's: then only its return helps.
    cluster.start_node(&leader.name).await?;
    ledger.progress(20, GAP_LIMIT).await.context("no commits after the coordinator's loss")?;
    eprintln!(
        "{point}: {} died {:.1} s after the fault; commits and its return {:.1} s later",
        leader.name,
        died.duration_since(harm.at).as_secs_f64(),
        died.elapsed().as_secs_f64()
    );
    cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await.map(drop)
}

async fn switchover(cluster: &mut Cluster, ledger: &Ledger, point: &str) -> anyhow::Result<()> {
    let before = cluster.following(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let leader = failpoints::leader(cluster).await?;
    let others = cluster.others(&leader.name);
    // A secondary whose node lives through it, so that nothing but the coordinator's loss is in the way.
    let target = before.secondaries().find(|r| r.node != leader.name).context("a target")?.node.clone();
    failpoints::arm(&leader, point).await?;
    let order = format!("SWITCHOVER DATABASE {DEMO_DATABASE} TO {target}");
    let operation = leftovers::begin(&others, &order, point).await?;
    failpoints::died(cluster, &leader, point).await?;
    let died = Instant::now();
    ledger.progress(20, GAP_LIMIT).await.context("no commits after the coordinator's loss")?;
    eprintln!("{point}: {} died; commits {:.1} s later", leader.name, died.elapsed().as_secs_f64());
    cluster.start_node(&leader.name).await?;
    let admin = Admin::open(&others).await?;
    let outcome = admin.wait_operation(&operation, OPERATION_LIMIT).await;
    let row = leftovers::operation(&admin, &operation).await?;
    // The primary's own node may have been the one that was lost; then the failover decided who is next.
    let lost_primary = before.primary()?.node == leader.name;
    ensure!(outcome.is_ok() || lost_primary, "{operation} did not resume: {row:?}");
    ensure!(row.number::<u32>("attempt")?.unwrap_or(0) >= 2, "nobody took {operation} over: {row:?}");
    let after = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    if outcome.is_ok() && !lost_primary {
        ensure!(after.primary()?.node == target, "the primary is on {}, not {target}", after.primary()?.node);
    }
    Ok(())
}
