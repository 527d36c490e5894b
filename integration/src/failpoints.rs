//! Killing the coordinator at a chosen step, with proof that it died there. The cluster has to be started with
//! [`crate::Options::failpoints`].

use crate::admin::Admin;
use crate::cluster::{Cluster, Node};
use crate::process::Process;
use crate::wait;
use anyhow::Context;
use std::time::Duration;

/// For the map's nodes to agree on a leader.
const LEADER_LIMIT: Duration = Duration::from_secs(20);
/// For a daemon to reach the step it is to die at.
const DEATH_LIMIT: Duration = Duration::from_secs(30);
/// For the kernel to end the instances of a dead daemon.
const INSTANCES_LIMIT: Duration = Duration::from_secs(10);

/// The node that leads the map, and so coordinates, by its own word.
pub async fn leader(cluster: &Cluster) -> anyhow::Result<Node> {
    wait::until("one node leads", LEADER_LIMIT, async || {
        let mut leaders = Vec::new();
        for node in cluster.nodes() {
            let Ok(admin) = Admin::open([node]).await else { continue };
            let rows = admin.nodes().await?;
            leaders.extend(
                rows.into_iter().find(|r| r.node == node.name && r.raft == "leader").map(|_| node.clone()),
            );
        }
        Ok(match leaders.as_slice() {
            [one] => Ok(one.clone()),
            _ => Err(leaders),
        })
    })
    .await
}

/// The daemon of `node` will die when its coordinator next comes to `point`.
pub async fn arm(node: &Node, point: &str) -> anyhow::Result<()> {
    let admin = Admin::open([node]).await?;
    admin.rows(&format!("FAILPOINT '{point}' 'return'")).await.map(drop)
}

/// Waits until the daemon has died, and its instances with it.
pub async fn died(cluster: &Cluster, node: &Node, point: &str) -> anyhow::Result<()> {
    wait::until_true(&format!("{} dead at {point}", node.name), DEATH_LIMIT, || {
        Process::of(node.pid).is_none_or(|p| !p.is_alive())
    })
    .await
    .context("the failpoint had no effect")?;
    wait::until(&format!("no instance of {} left", node.name), INSTANCES_LIMIT, async || {
        let left = cluster.processes_of(&node.name)?;
        Ok(if left.is_empty() { Ok(()) } else { Err(left) })
    })
    .await
}
