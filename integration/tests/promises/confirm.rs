//! Promise: with `reads = 'confirm'` a result leaves the primary only after a voter's word that nobody else is primary,
//! whatever a clock says: without a voter's daemon no result comes, and none that is stale from a node that was paused.

use crate::pause_node::pause;
use anyhow::{Context, ensure};
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::ledger::Plan;
use quorate_integration::nemesis::Pause;
use quorate_integration::{Cluster, DEMO_DATABASE, Endpoint, Ledger, Options, copies, nemesis, with_cluster};
use std::time::Duration;

/// How long a result is watched not to come: longer than any lease, shorter than the demo's `replace_after`.
const WATCH: Duration = Duration::from_secs(3);
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_secs(8);

#[test]
fn a_result_waits_for_the_word_of_a_voter() {
    with_cluster(Options::default(), async |cluster| {
        let ports: Vec<Endpoint> = cluster.nodes().iter().map(|n| n.app()).collect();
        let first = ports[0].session().await?;
        first.run("CREATE TABLE counter (value int); INSERT INTO counter VALUES (0)").await?;
        let admin = cluster.admin().await?;
        admin.rows(&format!("ALTER DATABASE {DEMO_DATABASE} SET reads = 'confirm'")).await?;
        let shown = admin.rows("SHOW DATABASES").await?.first().context("no database")?.text("reads")?;
        ensure!(shown == "confirm", "SHOW DATABASES says {shown}");
        voters_say(cluster).await?;

        let ledger = Ledger::begin(Plan::over(&ports, 8)).await?;
        for kind in [Pause::Daemon, Pause::Whole] {
            pause(cluster, &ledger, kind, PAUSE).await.with_context(|| format!("{kind:?} paused"))?;
        }
        copies::close(cluster, ledger).await.map(drop)
    });
}

/// The voters' daemons give the word, not their instances.
async fn voters_say(cluster: &Cluster) -> anyhow::Result<()> {
    let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let session = cluster.node(&view.primary()?.node)?.app().session().await?;
    let read = "SELECT value FROM counter";
    {
        let stopped = nemesis::stop_instances(view.secondaries())?;
        let value = tokio::time::timeout(WATCH, session.value(read)).await;
        ensure!(value.context("no result, and only Postgres was stopped")??.as_deref() == Some("0"));
        stopped.undo()?;
    }
    cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let mut paused = Vec::new();
    for secondary in view.secondaries() {
        paused.push(nemesis::pause_node(cluster, &secondary.node, Pause::Daemon)?);
    }
    let mut asking = tokio::spawn(async move { session.value(read).await });
    let told = tokio::time::timeout(WATCH, &mut asking).await;
    ensure!(told.is_err(), "a result left that no voter had confirmed: {told:?}");
    for one in &paused {
        ensure!(one.broken().is_empty(), "the pause did not hold: {:?}", one.broken());
        one.undo()?;
    }
    let told = tokio::time::timeout(ANSWER_LIMIT, asking).await.context("no result, though voters run")??;
    ensure!(told?.as_deref() == Some("0"), "another value");
    cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await.map(drop)
}
