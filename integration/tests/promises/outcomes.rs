//! Promise: what became of a COMMIT whose answer was lost with its primary is found out and told, by every way in which it
//! can be: explicit transactions, and statements of the extended protocol.

use anyhow::{Context, ensure};
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::ledger::{Plan, Style, Verdict};
use quorate_integration::{Cluster, DEMO_DATABASE, Endpoint, Ledger, Options, driver, nemesis, with_cluster};
use std::collections::BTreeMap;
use std::time::Duration;

const ROUNDS: usize = 5;
const WRITERS: usize = 16;
const LIMIT: Duration = Duration::from_secs(20);
const STYLES: [Style; 3] = [Style::Transaction, Style::Unnamed, Style::Prepared];

#[test]
fn a_commit_in_flight_is_told_how_it_ended() {
    with_cluster(Options::default(), async |cluster| {
        let verdict = lose_postmasters(cluster, ROUNDS).await?;
        let found = outcomes(cluster).await?;
        eprintln!("{verdict}\noutcomes: {found:?}");
        verdict.kept()?;
        ensure!(verdict.unknown_count() == 0, "nobody is left in doubt: {:?}", verdict.unknown);
        ensure!(verdict.failed.keys().all(|code| code == "40001"), "{:?}", verdict.failed);
        let count = |what: &str| found.get(what).copied().unwrap_or(0);
        ensure!(count("committed") + count("aborted") > 0, "no commit was in flight: {found:?}");
        ensure!(verdict.dropped.is_empty(), "sessions go on: {:?}", verdict.dropped);

        // As an operator may choose.
        let admin = cluster.admin().await?;
        admin.rows(&format!("ALTER DATABASE {DEMO_DATABASE} SET outcomes = 'untracked'")).await?;
        let verdict = lose_postmasters(cluster, 1).await?;
        let later = outcomes(cluster).await?;
        eprintln!("untracked: {verdict}\noutcomes: {later:?}");
        verdict.kept()?;
        let of = |found: &BTreeMap<String, u64>, what: &str| found.get(what).copied().unwrap_or(0);
        for what in ["committed", "aborted"] {
            ensure!(of(&later, what) == of(&found, what), "nothing was asked for: {found:?}, {later:?}");
        }
        Ok(())
    });
}

async fn lose_postmasters(cluster: &Cluster, rounds: usize) -> anyhow::Result<Verdict> {
    cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let ports: Vec<Endpoint> = cluster.nodes().iter().map(|n| n.app()).collect();
    let plan = Plan::over(&ports, WRITERS).styled(&STYLES).paced(Duration::from_millis(1));
    let ledger = Ledger::begin(plan).await?;
    for _ in 0..rounds {
        let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        ledger.progress(200, LIMIT).await?;
        nemesis::kill_postmaster(view.primary()?)?;
        ledger.progress(200, LIMIT).await?;
    }
    cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    ledger.end(&ports[0]).await
}

/// Commits whose answers were lost, by what was found out, at all nodes.
async fn outcomes(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut all = BTreeMap::new();
    for node in cluster.nodes() {
        let (status, body) = driver::http_get(node.http, "/metrics").await?;
        ensure!(status == 200, "/metrics at {}: {status}", node.name);
        for line in body.lines().filter(|line| line.starts_with("quorate_lost_answers_total{")) {
            let (labels, value) = line.rsplit_once(' ').context("a value")?;
            let outcome = labels.split('"').nth(1).context("a label")?;
            *all.entry(outcome.to_owned()).or_default() += value.parse::<u64>()?;
        }
    }
    Ok(all)
}
