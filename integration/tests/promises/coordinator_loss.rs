//! Promise: the coordinator may be lost at any step of a failover, whether it is on the primary's node or not: another
//! goes on, no acknowledged commit is lost, and the database becomes whole.

use anyhow::{Context, ensure};
use quorate_integration::admin::DatabaseView;
use quorate_integration::cluster::{HEAL_LIMIT, Node};
use quorate_integration::executor::OPERATION_LIMIT;
use quorate_integration::failpoints::Passed;
use quorate_integration::ledger::Plan;
use quorate_integration::{
    Cluster, DEMO_DATABASE, Endpoint, Ledger, Options, copies, failpoints, leftovers, nemesis, with_cluster,
};
use std::time::{Duration, Instant};

/// From the coordinator's death to the next commits: another leader, another election.
pub const GAP_LIMIT: Duration = Duration::from_secs(30);

/// Each step of a failover.
pub const FAILOVER: &[&str] = &[
    "electing::before_record_elect",
    "electing::after_record_elect",
    "electing::after_fence",
    "electing::after_record_promote",
    "promoting::after_promote",
    "promoting::after_attach",
    "promoting::after_barrier",
    "promoting::after_open",
    "promoting::after_record_stabilize",
];

#[test]
fn the_loss_of_the_coordinator_in_a_failover_loses_nothing() {
    with_cluster(Options { failpoints: true, ..Options::default() }, async |cluster| {
        let ledger = begin(cluster).await?;
        let mut passed = Passed::default();
        for beside in [false, true] {
            for point in FAILOVER {
                failover(cluster, &ledger, point, beside)
                    .await
                    .with_context(|| format!("lost at {point}, on the primary's node: {beside}"))?;
                passed.look(cluster.nodes()).await?;
            }
        }
        passed.none_forgotten(&["electing", "promoting"], &[FAILOVER])?;
        end(cluster, ledger).await
    });
}

pub async fn begin(cluster: &Cluster) -> anyhow::Result<Ledger> {
    cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let ports: Vec<Endpoint> = cluster.nodes().iter().map(Node::app).collect();
    Ledger::begin(Plan::over(&ports, 4).paced(Duration::from_millis(10))).await
}

pub async fn end(cluster: &Cluster, ledger: Ledger) -> anyhow::Result<()> {
    copies::close(cluster, ledger).await?;
    leftovers::none(cluster).await
}

/// Has the primary on the leader's node, or away from it. Gives the leader and the whole database.
pub async fn arrange(cluster: &Cluster, beside: bool) -> anyhow::Result<(Node, DatabaseView)> {
    let leader = failpoints::leader(cluster).await?;
    let view = cluster.following(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    if (view.primary()?.node == leader.name) == beside {
        return Ok((leader, view));
    }
    let admin = cluster.admin().await?;
    if beside && !view.replicas.iter().any(|r| r.node == leader.name) {
        let from = &view.secondaries().next().context("a secondary")?.node;
        let order = format!("MOVE REPLICA {DEMO_DATABASE} FROM {from} TO {}", leader.name);
        admin.carry_out(&order, OPERATION_LIMIT).await?;
    }
    let order = match beside {
        true => format!("SWITCHOVER DATABASE {DEMO_DATABASE} TO {}", leader.name),
        false => format!("SWITCHOVER DATABASE {DEMO_DATABASE}"),
    };
    admin.carry_out(&order, OPERATION_LIMIT).await?;
    let view = cluster.following(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    ensure!((view.primary()?.node == leader.name) == beside, "{} leads, and {view:?}", leader.name);
    Ok((leader, view))
}

/// SHOW EVENTS has the change that began this reign, once, whoever was lost meanwhile.
pub async fn is_told(cluster: &Cluster, view: &DatabaseView) -> anyhow::Result<()> {
    let (reign, _) = view.row.epoch.rsplit_once('.').context("an epoch without parts")?;
    let mut told = Vec::new();
    for event in cluster.admin().await?.rows("SHOW EVENTS").await? {
        let kind = event.text("event")?;
        let began = matches!(kind.as_str(), "failover" | "re-election" | "switchover");
        let epoch = event.text("epoch")?;
        if began && epoch.rsplit_once('.').is_some_and(|(of, _)| of == reign) {
            told.push(kind);
        }
    }
    ensure!(told.len() == 1, "reign {reign} began with {told:?}");
    Ok(())
}

async fn failover(cluster: &mut Cluster, ledger: &Ledger, point: &str, beside: bool) -> anyhow::Result<()> {
    let (leader, before) = arrange(cluster, beside).await?;
    failpoints::arm(&leader, point).await?;
    let harm = nemesis::kill_postmaster(before.primary()?)?;
    failpoints::died(cluster, &leader, point).await?;
    let died = Instant::now();
    failpoints::leader_of(&cluster.others(&leader.name)).await?;
    // The dead node may hold a second of the three copies, the new primary's: then only its return helps.
    cluster.start_node(&leader.name).await?;
    ledger.progress(20, GAP_LIMIT).await.context("no commits after the coordinator's loss")?;
    let commits = died.elapsed();
    let whole = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    is_told(cluster, &whole).await?;
    eprintln!(
        "{point}{}: {} died {:.1} s after the fault; {:.1} s later commits, whole after {:.1} s",
        if beside { ", on the primary's node" } else { "" },
        leader.name,
        died.duration_since(harm.at).as_secs_f64(),
        commits.as_secs_f64(),
        died.elapsed().as_secs_f64()
    );
    Ok(())
}
