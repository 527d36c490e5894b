//! Promise: a false alarm costs milliseconds. A healthy primary that is suspected, again and again, under load, is
//! fenced and elected again: no promotion, no session lost, no error at any client.

use anyhow::ensure;
use quorate_integration::cluster::{HEAL_LIMIT, Node};
use quorate_integration::gaps::{Distribution, Micros};
use quorate_integration::ledger::Plan;
use quorate_integration::{Cluster, DEMO_DATABASE, Endpoint, Ledger, Options, copies, wait, with_cluster};
use std::time::Duration;

const SUSPICIONS: usize = 100;
/// For one to be over: elected, open, recorded.
const OVER_LIMIT: Duration = Duration::from_secs(10);

#[test]
fn a_suspected_primary_that_answers_stays() {
    with_cluster(Options::default(), async |cluster| {
        let before = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        let primary = before.primary()?.clone();
        let ports: Vec<Endpoint> = cluster.nodes().iter().map(Node::app).collect();
        let ledger = Ledger::begin(Plan::over(&ports, 8)).await?;
        ledger.progress(200, OVER_LIMIT).await?;
        let mut windows: Vec<(Micros, Micros)> = Vec::new();
        for _ in 0..SUSPICIONS {
            let began = ledger.now();
            suspect(cluster, &primary.node).await?;
            ledger.progress(20, OVER_LIMIT).await?;
            windows.push((began, ledger.now()));
        }
        let after = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        ensure!(after.primary()?.replica == primary.replica, "the primary changed: {after:?}");
        ensure!(after.primary()?.pid == primary.pid, "its postmaster was restarted");
        let verdict = ledger.end(&ports[0]).await?;
        eprintln!("{verdict}");
        let stalls =
            Distribution::of(windows.iter().map(|(from, to)| verdict.acks.longest(*from, *to).duration()));
        eprintln!(
            "{SUSPICIONS} false alarms: stall p50 {:?}, p99 {:?}, longest {:?}",
            stalls.quantile(0.5),
            stalls.quantile(0.99),
            stalls.max()
        );
        for event in cluster.admin().await?.rows("SHOW EVENTS").await?.iter().rev().take(3) {
            eprintln!("{} in {} ms: {}", event.text("event")?, event.text("total_ms")?, event.text("steps")?);
        }
        verdict.kept()?;
        ensure!(verdict.failed_count() == 0 && verdict.unknown_count() == 0, "writers saw errors");
        ensure!(verdict.dropped.is_empty() && verdict.refused.is_empty(), "sessions were dropped or refused");
        ensure!(verdict.read_errors.is_empty(), "readers saw errors: {:?}", verdict.read_errors);
        eprintln!("every copy: {}", copies::ledgers_agree(&after).await?);
        Ok(())
    });
}

/// Reports a suspicion, and waits until its re-election is over: the epoch is the next, and the database is open.
async fn suspect(cluster: &Cluster, node: &str) -> anyhow::Result<()> {
    let admin = cluster.admin().await?;
    let before = admin.database(DEMO_DATABASE).await?.row;
    admin.rows(&format!("SUSPECT NODE {node}")).await?;
    wait::until("elected again", OVER_LIMIT, async || {
        let now = admin.database(DEMO_DATABASE).await?.row;
        Ok(if now.epoch != before.epoch && now.open && now.phase == "stable" { Ok(()) } else { Err(now) })
    })
    .await
}
