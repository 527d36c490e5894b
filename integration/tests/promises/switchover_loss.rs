//! Promise: the coordinator may be lost at any step of a switchover, whether it is on the primary's node or not: another
//! goes on, the primary comes to where it was wished, no acknowledged commit is lost.

use crate::coordinator_loss::{FAILOVER, GAP_LIMIT, arrange, begin, end, is_told};
use anyhow::{Context, ensure};
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::executor;
use quorate_integration::failpoints::Passed;
use quorate_integration::{Cluster, DEMO_DATABASE, Ledger, Options, with_cluster};

/// Each step of a switchover before it elects, and after: between them are those of a failover.
pub const BEFORE: &[&str] = &[
    "switchover::before_claim",
    "switchover::after_claim",
    "switchover::after_checkpointing",
    "stable::after_checkpoint",
    "switchover::after_switching",
    "switching::after_retire",
];
const AFTER: &[&str] = &["switchover::before_end", "switchover::after_end"];

#[test]
fn the_loss_of_the_coordinator_in_a_switchover_loses_nothing() {
    with_cluster(Options { failpoints: true, ..Options::default() }, async |cluster| {
        let ledger = begin(cluster).await?;
        let mut passed = Passed::default();
        // What records the election is the switch itself.
        let elects = FAILOVER.iter().filter(|point| **point != "electing::before_record_elect");
        for point in BEFORE.iter().chain(elects).chain(AFTER) {
            for beside in [false, true] {
                switchover(cluster, &ledger, point, beside)
                    .await
                    .with_context(|| format!("lost at {point}, on the primary's node: {beside}"))?;
                passed.look(cluster.nodes()).await?;
            }
        }
        let scopes = ["electing", "promoting", "switching", "switchover"];
        passed.none_forgotten(&scopes, &[BEFORE, FAILOVER, AFTER])?;
        end(cluster, ledger).await
    });
}

async fn switchover(cluster: &mut Cluster, ledger: &Ledger, point: &str, beside: bool) -> anyhow::Result<()> {
    let (leader, before) = arrange(cluster, beside).await?;
    // A secondary whose node lives through it, so that nothing but the coordinator's loss is in the way.
    let target = before.secondaries().find(|r| r.node != leader.name).context("a target")?.node.clone();
    let order = format!("SWITCHOVER DATABASE {DEMO_DATABASE} TO {target}");
    executor::lose(cluster, &[], &order, point).await?;
    ledger.progress(20, GAP_LIMIT).await.context("no commits after the coordinator's loss")?;
    let after = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    is_told(cluster, &after).await?;
    ensure!(after.primary()?.node == target, "the primary is on {}, not {target}", after.primary()?.node);
    Ok(())
}
