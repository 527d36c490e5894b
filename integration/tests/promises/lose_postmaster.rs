//! Promise: `kill -9` of the primary's postmaster loses no acknowledged commit, and a client that asks again
//! meanwhile is held, not refused.

use anyhow::ensure;
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::ledger::Plan;
use quorate_integration::{
    Cluster, DEMO_DATABASE, Endpoint, Ledger, Options, copies, driver, nemesis, with_cluster,
};
use std::time::Duration;

/// In one test, so that a second loss meets what the first left behind: another primary, a rejoined replica.
const ROUNDS: usize = 3;
/// The default for which a client is held: writing must go on well before.
const GAP_LIMIT: Duration = Duration::from_secs(15);

#[test]
fn no_commit_is_lost_and_nobody_is_refused() {
    with_cluster(Options::default(), async |cluster| {
        let ports: Vec<Endpoint> = cluster.nodes().iter().map(|n| n.app()).collect();
        let ledger = Ledger::begin(Plan::over(&ports, 8)).await?;
        for round in 1..=ROUNDS {
            let before = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
            ledger.progress(200, Duration::from_secs(20)).await?;
            let primary = before.primary()?;
            let harm = nemesis::kill_postmaster(primary)?;
            ledger.progress(200, GAP_LIMIT).await?;
            let gap = Duration::from_micros(ledger.now() - ledger.at(harm.at));
            let after = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
            eprintln!(
                "round {round}: {} on {} killed; 200 more commits {gap:?} later; now {} on {}, epoch {} -> {}",
                primary.replica,
                primary.node,
                after.primary()?.replica,
                after.primary()?.node,
                before.row.epoch,
                after.row.epoch,
            );
            ensure!(after.row.epoch != before.row.epoch, "the epoch did not move");
        }
        let verdict = ledger.end(&ports[0]).await?;
        eprintln!("{verdict}");
        verdict.kept()?;
        ensure!(verdict.refused.is_empty(), "clients were refused: {:?}", verdict.refused);
        ensure!(
            verdict.longest_gap().duration() < GAP_LIMIT,
            "nothing was committed for {:?}",
            verdict.longest_gap()
        );
        let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        eprintln!("every copy: {}", copies::ledgers_agree(&view).await?);
        recorded(cluster).await
    });
}

/// Every failover is an event with its reason and its steps, and a sample in the histograms.
async fn recorded(cluster: &Cluster) -> anyhow::Result<()> {
    let events = cluster.admin().await?.rows("SHOW EVENTS").await?;
    let mut failovers = 0;
    for event in events.iter().filter(|e| e.text("event").is_ok_and(|kind| kind == "failover")) {
        failovers += 1;
        eprintln!("event: {} {} {}", event.text("reason")?, event.text("reported_by")?, event.text("steps")?);
        ensure!(event.text("reason")?.len() > 5, "a failover without a reason: {event:?}");
        ensure!(event.optional("reported_by")?.is_some(), "nobody reported it: {event:?}");
        for step in ["fence", "promote", "barrier", "open"] {
            ensure!(event.text("steps")?.contains(step), "no time for {step}: {event:?}");
        }
    }
    ensure!(failovers >= ROUNDS, "{failovers} failovers among {} events", events.len());
    let mut histograms = 0;
    for node in cluster.nodes() {
        let (status, body) = driver::http_get(node.http, "/metrics").await?;
        ensure!(status == 200, "/metrics at {}: {status}", node.name);
        histograms += body.lines().filter(|l| l.contains("failover") && l.contains("_bucket{")).count();
    }
    ensure!(histograms > 0, "no node has a histogram of failover phases");
    Ok(())
}
