//! Killing the coordinator at a chosen step, with proof that it died there. The cluster has to be started with
//! [`crate::Options::failpoints`].
//!
//! A point is named without its first word: `electing::after_fence` is `coordinator::electing::after_fence`; with `*2`
//! behind, the daemon dies when it comes there for the second time.

use crate::admin::Admin;
use crate::cluster::{Cluster, Node};
use crate::process::Process;
use crate::wait;
use anyhow::{Context, ensure};
use std::collections::BTreeSet;
use std::time::Duration;

/// For the map's nodes to agree on a leader.
const LEADER_LIMIT: Duration = Duration::from_secs(20);
/// For a daemon to reach the step it is to die at.
const DEATH_LIMIT: Duration = Duration::from_secs(30);
/// For the kernel to end the instances of a dead daemon.
const INSTANCES_LIMIT: Duration = Duration::from_secs(10);

/// The node that leads the map, and so coordinates, by its own word.
pub async fn leader(cluster: &Cluster) -> anyhow::Result<Node> {
    leader_of(cluster.nodes()).await
}

/// The same, where only these nodes live.
pub async fn leader_of(nodes: &[Node]) -> anyhow::Result<Node> {
    wait::until("one node leads", LEADER_LIMIT, async || {
        let mut leaders = Vec::new();
        for node in nodes {
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
    let (name, action) = match point.split_once('*') {
        None => (point, "return".to_owned()),
        Some((name, time)) => (name, format!("{}*off->return", time.parse::<u32>()?.saturating_sub(1))),
    };
    let admin = Admin::open([node]).await?;
    admin.rows(&format!("FAILPOINT 'coordinator::{name}' '{action}'")).await.map(drop)
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

/// The steps that coordinators passed. A daemon that dies takes with it what it knows, so it is looked for after each round.
#[derive(Debug, Default)]
pub struct Passed(BTreeSet<String>);

impl Passed {
    /// Takes note of what the daemons that live now have passed.
    pub async fn look(&mut self, nodes: &[Node]) -> anyhow::Result<()> {
        for node in nodes {
            for row in Admin::open([node]).await?.rows("SHOW FAILPOINTS").await? {
                self.0.insert(step_of(row.text("name")?.trim_start_matches("coordinator::")));
            }
        }
        Ok(())
    }

    /// Checks that every one within `scopes` is one that a coordinator was made to die at: a step that is new in the
    /// code is missing in `tried` until somebody names it there.
    pub fn none_forgotten(&self, scopes: &[&str], tried: &[&[&str]]) -> anyhow::Result<()> {
        let tried: BTreeSet<String> = tried.iter().copied().flatten().map(|point| step_of(point)).collect();
        let within = |step: &&String| step.split("::").next().is_some_and(|scope| scopes.contains(&scope));
        let forgotten: Vec<&String> = self.0.difference(&tried).filter(within).collect();
        ensure!(forgotten.is_empty(), "steps at which nobody died: {forgotten:?}");
        ensure!(self.0.iter().any(|step| within(&step)), "no step was passed at all");
        Ok(())
    }
}

/// A point without its side: before a step and after the one that precedes it, the map holds the same.
fn step_of(point: &str) -> String {
    let name = point.split('*').next().unwrap_or(point);
    let (scope, step) = name.rsplit_once("::").unwrap_or(("", name));
    let step = step.strip_prefix("before_").or(step.strip_prefix("after_")).unwrap_or(step);
    format!("{scope}::{step}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sides_of_a_step_are_one_step() {
        assert_eq!(step_of("electing::before_fence"), "electing::fence");
        assert_eq!(step_of("create::after_opening*2"), "create::opening");
    }
}
