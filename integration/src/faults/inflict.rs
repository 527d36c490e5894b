//! How each kind of fault is done, verified and undone.

use super::{Fault, Kind};
use crate::admin::{DatabaseView, ReplicaRow};
use crate::cluster::Cluster;
use crate::links::{Cut, Links, Way};
use crate::nemesis::{self, Pause};
use crate::{Admin, DEMO_DATABASE, wait};
use anyhow::{Context, ensure};
use std::fmt;
use std::time::Duration;

const SWITCH_LIMIT: Duration = Duration::from_secs(30);
const MOVE_LIMIT: Duration = Duration::from_secs(60);
/// For a secondary that has just been joined to follow closely enough for a switchover.
const READY_LIMIT: Duration = Duration::from_secs(10);

/// What was done, in words.
pub struct Done {
    what: String,
    /// Whether the primary's reign cannot have gone on.
    pub ends_reign: bool,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

fn done(what: String) -> Done {
    Done { what, ends_reign: false }
}

fn ended(what: String) -> Done {
    Done { what, ends_reign: true }
}

/// Does it, holds it, undoes it. An error means that the fault was not what it should have been.
pub async fn inflict(cluster: &mut Cluster, fault: &Fault, view: &DatabaseView) -> anyhow::Result<Done> {
    let primary = view.primary()?.clone();
    let secondaries: Vec<ReplicaRow> = view.secondaries().cloned().collect();
    ensure!(!secondaries.is_empty(), "no secondary: {view:?}");
    let secondary = &secondaries[fault.pick % secondaries.len()];
    match fault.kind {
        Kind::KillPrimaryPostmaster => {
            nemesis::kill_postmaster(&primary)?;
            Ok(ended(format!("killed the postmaster of {}", name(&primary))))
        }
        Kind::KillSecondaryPostmaster => {
            nemesis::kill_postmaster(secondary)?;
            Ok(done(format!("killed the postmaster of {}", name(secondary))))
        }
        Kind::KillPrimaryNode => {
            let done = lose(cluster, &primary.node, fault.hold).await?;
            Ok(ended(done.what))
        }
        Kind::KillSecondaryNode => lose(cluster, &secondary.node, fault.hold).await,
        Kind::KillLeaderNode => {
            let leader = leader(cluster).await?;
            lose(cluster, &leader, fault.hold).await
        }
        Kind::RestartNode => {
            let node = cluster.nodes()[fault.pick % cluster.nodes().len()].name.clone();
            cluster.end_node(&node).await?;
            cluster.start_node(&node).await?;
            Ok(done(format!("restarted {node}")))
        }
        Kind::PausePrimaryNode => pause(cluster, &primary.node, fault).await,
        Kind::PauseSecondaryNode => pause(cluster, &secondary.node, fault).await,
        Kind::PausePostmaster => {
            let of = &view.replicas[fault.pick % view.replicas.len()];
            freeze(nemesis::stop_postmaster(of)?, fault.hold).await?;
            Ok(done(format!("stopped the postmaster of {} for {:?}", name(of), fault.hold)))
        }
        Kind::PauseWalreceiver => {
            freeze(nemesis::stop_walreceiver(secondary)?, fault.hold).await?;
            Ok(done(format!("stopped the walreceiver of {} for {:?}", name(secondary), fault.hold)))
        }
        Kind::CutPrimaryNode => isolate(cluster, &primary.node, fault.hold).await,
        Kind::CutSecondaryNode => isolate(cluster, &secondary.node, fault.hold).await,
        Kind::CutPair => {
            let (a, b) = (primary.node, secondary.node.clone());
            cut(cluster, &[(a.clone(), b.clone()), (b, a)], fault.hold).await
        }
        Kind::CutOneWay => {
            let (a, b) = (primary.node, secondary.node.clone());
            let way = if fault.pick.is_multiple_of(2) { (a, b) } else { (b, a) };
            cut(cluster, &[way], fault.hold).await
        }
        Kind::Switchover => switch(cluster, &primary).await,
        Kind::Move => relocate(cluster, view, secondary).await,
        Kind::FailoverWithoutCoordinator => {
            let leader = leader(cluster).await?;
            nemesis::kill_postmaster(&primary)?;
            tokio::time::sleep(fault.delay).await;
            let lost = lose(cluster, &leader, fault.hold).await?;
            Ok(ended(format!("killed the postmaster of {}; {:?} later {lost}", name(&primary), fault.delay)))
        }
        Kind::SwitchoverWithoutCoordinator => {
            let leader = leader(cluster).await?;
            let admin = Admin::open(&cluster.others(&leader)).await?;
            admin.rows(&format!("SWITCHOVER DATABASE {DEMO_DATABASE}")).await?;
            tokio::time::sleep(fault.delay).await;
            let lost = lose(cluster, &leader, fault.hold).await?;
            Ok(done(format!("ordered a switchover; {:?} later {lost}", fault.delay)))
        }
        Kind::TwoAtOnce => two_at_once(cluster, fault, view, &primary, &secondaries).await,
    }
}

/// Two that strike at different places and together leave what a quorum needs: processes may be hit on several
/// nodes, but no more than one node, and no two copies for good.
async fn two_at_once(
    cluster: &mut Cluster,
    fault: &Fault,
    view: &DatabaseView,
    primary: &ReplicaRow,
    secondaries: &[ReplicaRow],
) -> anyhow::Result<Done> {
    let one = &secondaries[fault.pick % secondaries.len()];
    let other = &secondaries[(fault.pick + 1) % secondaries.len()];
    match fault.pick % 4 {
        0 => {
            let spare = spare(cluster, view)?;
            let harm = nemesis::pause_node(cluster, &spare, Pause::Daemon)?;
            tokio::time::sleep(fault.delay).await;
            nemesis::kill_postmaster(primary)?;
            freeze(harm, fault.hold).await?;
            Ok(ended(format!("paused {spare} and killed the postmaster of {}", name(primary))))
        }
        1 => {
            let harm = nemesis::stop_walreceiver(one)?;
            nemesis::kill_postmaster(other)?;
            freeze(harm, fault.hold).await?;
            Ok(done(format!("stopped the walreceiver of {} and killed {}", name(one), name(other))))
        }
        2 => {
            nemesis::kill_postmaster(primary)?;
            nemesis::kill_postmaster(one)?;
            Ok(ended(format!("killed the postmasters of {} and {}", name(primary), name(one))))
        }
        _ => {
            let harm = nemesis::stop_postmaster(primary)?;
            nemesis::kill_postmaster(one)?;
            freeze(harm, fault.hold).await?;
            Ok(done(format!("stopped the postmaster of {} and killed {}", name(primary), name(one))))
        }
    }
}

fn name(replica: &ReplicaRow) -> String {
    format!("{} ({}) on {}", replica.replica, replica.role, replica.node)
}

/// The node that leads the partition map, whose coordinator carries everything out.
async fn leader(cluster: &Cluster) -> anyhow::Result<String> {
    wait::until("a leader of the map", READY_LIMIT, async || {
        let nodes = cluster.admin().await?.nodes().await?;
        let leader = nodes.iter().find(|n| n.raft == "leader").map(|n| n.node.clone());
        Ok(leader.ok_or(nodes))
    })
    .await
}

/// A node without a copy of the database.
fn spare(cluster: &Cluster, view: &DatabaseView) -> anyhow::Result<String> {
    let free = cluster.nodes().iter().find(|n| view.replicas.iter().all(|r| r.node != n.name));
    Ok(free.context("every node has a copy")?.name.clone())
}

async fn lose(cluster: &mut Cluster, node: &str, hold: Duration) -> anyhow::Result<Done> {
    let harm = nemesis::kill_node(cluster, node)?;
    tokio::time::sleep(hold).await;
    let left = cluster.processes_of(node)?;
    ensure!(left.is_empty(), "{node} did not stay away: {left:?}");
    cluster.start_node(node).await?;
    Ok(done(format!("killed {node} ({} processes) for {hold:?}", harm.victims.len())))
}

async fn pause(cluster: &Cluster, node: &str, fault: &Fault) -> anyhow::Result<Done> {
    let pause = if fault.pick.is_multiple_of(2) { Pause::Daemon } else { Pause::Whole };
    let harm = nemesis::pause_node(cluster, node, pause)?;
    tokio::time::sleep(fault.hold).await;
    ensure!(harm.broken().is_empty(), "the pause did not hold: {:?}", harm.broken());
    harm.undo()?;
    Ok(done(format!("paused {node} ({pause:?}) for {:?}", fault.hold)))
}

/// Keeps stopped what was stopped. The cluster may have killed it meanwhile, but it must not run.
async fn freeze(harm: nemesis::Harm, hold: Duration) -> anyhow::Result<()> {
    tokio::time::sleep(hold).await;
    let running = crate::process::not_stopped(&harm.victims);
    ensure!(running.is_empty(), "the pause did not hold: {running:?}");
    harm.undo()
}

fn links(cluster: &Cluster) -> anyhow::Result<&Links> {
    cluster.links().context("the cluster was started without links")
}

async fn isolate(cluster: &Cluster, node: &str, hold: Duration) -> anyhow::Result<Done> {
    let ways = links(cluster)?.of(node);
    cut(cluster, &ways, hold).await?;
    Ok(done(format!("cut {node} off for {hold:?}")))
}

async fn cut(cluster: &Cluster, ways: &[Way], hold: Duration) -> anyhow::Result<Done> {
    let links = links(cluster)?;
    let cut = Cut::begin(links, ways)?;
    tokio::time::sleep(hold).await;
    cut.end(links)?;
    let names: Vec<String> = ways.iter().map(|(from, to)| format!("{from}->{to}")).collect();
    Ok(done(format!("cut {} for {hold:?}", names.join(", "))))
}

async fn switch(cluster: &Cluster, primary: &ReplicaRow) -> anyhow::Result<Done> {
    // A secondary that came back a moment ago is no target yet, and the order says so.
    wait::until("a switchover", READY_LIMIT, async || {
        let order = format!("SWITCHOVER DATABASE {DEMO_DATABASE}");
        let told = cluster.admin().await?.carry_out(&order, SWITCH_LIMIT).await;
        match told {
            Err(error) if format!("{error:#}").contains("does not follow") => Ok(Err(format!("{error:#}"))),
            told => Ok(Ok(told)),
        }
    })
    .await??;
    let view = cluster.admin().await?.database(DEMO_DATABASE).await?;
    let now = view.primary()?;
    ensure!(now.replica != primary.replica, "the primary stayed on {}", primary.node);
    Ok(ended(format!("switched over from {} to {}", name(primary), now.node)))
}

async fn relocate(cluster: &Cluster, view: &DatabaseView, from: &ReplicaRow) -> anyhow::Result<Done> {
    let to = spare(cluster, view)?;
    let order = format!("MOVE REPLICA {DEMO_DATABASE} FROM {} TO {to}", from.node);
    cluster.admin().await?.carry_out(&order, MOVE_LIMIT).await?;
    let now = cluster.admin().await?.database(DEMO_DATABASE).await?;
    ensure!(
        now.replicas.iter().any(|r| r.node == to) && now.replicas.iter().all(|r| r.replica != from.replica),
        "{order} left {now:?}"
    );
    Ok(done(format!("moved {} to {to}", name(from))))
}
