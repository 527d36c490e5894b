//! Promise: the demo started again on the same directory resumes with its data, after SIGTERM and after `kill -9` of
//! everything; SIGTERM leaves no process behind.

use anyhow::{Context, ensure};
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::executor::OPERATION_LIMIT;
use quorate_integration::ledger::Plan;
use quorate_integration::{Cluster, DEMO_DATABASE, Endpoint, Ledger, Options, copies, with_cluster};
use rustix::process::Signal;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
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

/// There is one demo in a directory; it resumes with whatever an operator made of it, and `--fresh` forgets it all.
#[test]
fn the_demo_is_alone_and_goes_on_with_what_was_made_of_it() {
    with_cluster(Options::default(), async |cluster| {
        let pids = |cluster: &Cluster| cluster.nodes().iter().map(|n| n.pid).collect::<Vec<_>>();
        let (before, json) = (pids(cluster), cluster.demo_dir().join("demo.json"));
        let said = cluster.refused_demo(&cluster.demo_dir(), BEGIN_LIMIT).await?;
        ensure!(said.contains("runs here already") && said.contains("hint: "), "{said}");
        ensure!(json.exists(), "a refused demo took the first one's file");
        // Where root alone may go, the user that PostgreSQL runs as cannot follow; anybody else is that user.
        if rustix::process::geteuid().is_root() {
            let closed = tempfile::tempdir()?;
            std::fs::set_permissions(closed.path(), Permissions::from_mode(0o700))?;
            let said = cluster.refused_demo(&closed.path().join("demo"), BEGIN_LIMIT).await?;
            ensure!(said.contains("cannot enter") && said.contains("hint: "), "{said}");
            ensure!(!closed.path().join("demo").exists(), "a refused demo made its directory");
        }

        // The database that the demo greets with is gone, and another server has one of its name.
        let admin = cluster.admin().await?;
        admin.rows("CREATE SERVER acme ADMIN acme PASSWORD 'acme'").await?;
        admin.carry_out("CREATE DATABASE acme.app", OPERATION_LIMIT).await?;
        let acme = |cluster: &Cluster| Endpoint::new(cluster.nodes()[1].client, "acme", "acme", "acme.app");
        acme(cluster).session().await?.run("CREATE TABLE kept AS SELECT 42 AS n").await?;
        admin.carry_out(&format!("DROP DATABASE {DEMO_DATABASE}"), OPERATION_LIMIT).await?;
        ensure!(pids(cluster) == before, "the second demo ended nodes of the first");
        cluster.end_demo_by(Signal::INT).await.context("Ctrl-C")?;
        ensure!(!json.exists(), "demo.json tells of nodes that do not run");

        cluster.start_demo().await.context("starting again without its database")?;
        cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        cluster.whole("acme.app", 3, HEAL_LIMIT).await?;
        acme(cluster).session().await?.run("SELECT 1 / (n - 41) FROM kept").await?;

        // Nor does it matter whether the demo's own login is admitted.
        cluster.admin().await?.rows("ALTER SERVER demo SET allow = '192.0.2.1'").await?;
        cluster.stop_demo().await?;
        cluster.start_demo().await.context("starting again without being admitted")?;

        // Nobody tells the nodes: they notice.
        cluster.end_demo_by(Signal::KILL).await.context("kill -9 of the demo alone")?;
        cluster.start_demo_with(&["--fresh"]).await.context("--fresh")?;
        let databases = cluster.admin().await?.rows("SHOW DATABASES").await?;
        ensure!(databases.len() == 1 && databases[0].text("server")? == "demo", "{databases:?}");
        Ok(())
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
