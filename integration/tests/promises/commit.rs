//! Promise: every commit waits for the primary and one secondary. With both secondaries' Postgres stopped, commits
//! wait and reads go on; with one stopped, both go on.

use anyhow::{Context, ensure};
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::ledger::Plan;
use quorate_integration::{Cluster, DEMO_DATABASE, Endpoint, Ledger, Options, nemesis, with_cluster};
use std::time::Duration;

/// How long commits are watched not to pass. Shorter than the demo's `replace_after`.
const WATCH: Duration = Duration::from_secs(4);
const READ_LIMIT: Duration = Duration::from_secs(3);

#[test]
fn a_commit_waits_for_one_secondary_and_a_read_for_none() {
    with_cluster(Options::default(), async |cluster| {
        let ports: Vec<Endpoint> = cluster.nodes().iter().map(|n| n.app()).collect();
        let ledger = Ledger::begin(Plan::over(&ports, 8)).await?;
        one_stopped(cluster, &ledger).await.context("with one secondary stopped")?;
        both_stopped(cluster, &ledger, &ports).await.context("with both secondaries stopped")?;
        cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        let verdict = ledger.end(&ports[0]).await?;
        eprintln!("{verdict}");
        verdict.kept()
    });
}

async fn one_stopped(cluster: &Cluster, ledger: &Ledger) -> anyhow::Result<()> {
    let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let stopped = nemesis::stop_instances(view.secondaries().take(1))?;
    ledger.progress(200, Duration::from_secs(20)).await?;
    read_everywhere(cluster).await?;
    // Long enough for the agent to take it out of the configuration: nothing may stop then either.
    tokio::time::sleep(WATCH).await;
    ledger.progress(200, Duration::from_secs(20)).await?;
    read_everywhere(cluster).await?;
    ensure!(stopped.broken().is_empty(), "the pause did not hold: {:?}", stopped.broken());
    stopped.undo()
}

async fn both_stopped(cluster: &Cluster, ledger: &Ledger, ports: &[Endpoint]) -> anyhow::Result<()> {
    let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    ports[0].session().await?.run("DROP TABLE IF EXISTS waiting; CREATE TABLE waiting (id int)").await?;
    let mut writers = Vec::new();
    for port in ports {
        writers.push(port.session().await?);
    }
    let stopped = nemesis::stop_instances(view.secondaries())?;
    // What was on its way when the last of them stopped.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = ledger.acknowledged();

    let mut commits = tokio::task::JoinSet::new();
    for writer in writers {
        commits.spawn(async move { writer.run("INSERT INTO waiting VALUES (1)").await });
    }
    let answered = tokio::time::timeout(WATCH, commits.join_next()).await;
    ensure!(answered.is_err(), "a commit was answered without a secondary: {answered:?}");
    read_everywhere(cluster).await?;
    ensure!(stopped.broken().is_empty(), "the pause did not hold: {:?}", stopped.broken());
    ensure!(
        ledger.acknowledged() == before,
        "{} commits passed without a secondary",
        ledger.acknowledged() - before
    );

    stopped.undo()?;
    let all = async {
        while let Some(commit) = commits.join_next().await {
            commit.context("a writer panicked")??;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(20), all)
        .await
        .context("commits that waited were not answered")??;
    let count = ports[0].session().await?.value("SELECT count(*) FROM waiting").await?;
    ensure!(
        count == Some(ports.len().to_string()),
        "{count:?} of {} commits that waited are there",
        ports.len()
    );
    ledger.progress(100, Duration::from_secs(20)).await
}

/// By every node, on a session that is new.
async fn read_everywhere(cluster: &Cluster) -> anyhow::Result<()> {
    for node in cluster.nodes() {
        let read = async {
            let session = node.app().session().await?;
            session.value("SELECT count(*) FROM ledger").await.context("reading")
        };
        let read = tokio::time::timeout(READ_LIMIT, read).await;
        read.with_context(|| format!("no read by {} within {READ_LIMIT:?}", node.name))??;
    }
    Ok(())
}
