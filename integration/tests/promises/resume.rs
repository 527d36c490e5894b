//! Promise: the demo started again on the same directory resumes with its data, after SIGTERM and after `kill -9` of
//! everything; SIGTERM leaves no process behind.

use anyhow::{Context, ensure};
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::ledger::Plan;
use quorate_integration::{Cluster, DEMO_DATABASE, Endpoint, Ledger, Options, copies, with_cluster};
use std::time::Duration;

const BEGIN_LIMIT: Duration = Duration::from_secs(20);

#[test]
fn the_demo_resumes_with_its_data() {
    with_cluster(Options::default(), async |cluster| {
        let ports: Vec<Endpoint> = cluster.nodes().iter().map(|n| n.app()).collect();
        let directories: Vec<_> = cluster.nodes().iter().map(|n| n.data_dir.clone()).collect();

        let ledger = Ledger::begin(Plan::over(&ports, 8)).await?;
        ledger.progress(200, BEGIN_LIMIT).await?;
        // Under load: stopping is not only for idle clusters. Nothing may be left.
        cluster.stop_demo().await.context("SIGTERM")?;
        cluster.start_demo().await.context("starting again after SIGTERM")?;
        settled(cluster, ledger, &ports[0]).await.context("after SIGTERM")?;
        let now: Vec<_> = cluster.nodes().iter().map(|n| n.data_dir.clone()).collect();
        ensure!(now == directories, "the nodes moved from {directories:?} to {now:?}");

        let ledger = Ledger::begin(Plan::over(&ports, 8)).await?;
        ledger.progress(200, BEGIN_LIMIT).await?;
        cluster.kill_everything()?;
        cluster.start_demo().await.context("starting again after kill -9")?;
        settled(cluster, ledger, &ports[0]).await.context("after kill -9 of everything")
    });
}

/// Three copies, commits pass again, and the ledger is as its clients were told.
async fn settled(cluster: &Cluster, ledger: Ledger, port: &Endpoint) -> anyhow::Result<()> {
    let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    ledger.progress(100, BEGIN_LIMIT).await?;
    let verdict = ledger.end(port).await?;
    eprintln!("{verdict}");
    verdict.kept()?;
    eprintln!("every copy: {}", copies::ledgers_agree(&view).await?);
    Ok(())
}
