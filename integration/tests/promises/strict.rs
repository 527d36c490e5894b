//! Promise: with `commits = 'strict'` no commit is acknowledged that is not on the quorum, whatever a function that
//! nobody has read makes of `synchronous_commit`. Without it, one is: that is shown too.

use anyhow::{Context, ensure};
use quorate_integration::admin::DatabaseView;
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::{Cluster, DEMO_DATABASE, Options, Session, nemesis, with_cluster};
use std::time::Duration;

/// How long commits are watched not to pass. Shorter than the demo's `replace_after`.
const WATCH: Duration = Duration::from_secs(4);
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
const GAP_LIMIT: Duration = Duration::from_secs(20);

/// Ends the wait for the quorum by a name that is put together only when it runs.
const WEAK: &str = "CREATE FUNCTION weak() RETURNS void LANGUAGE plpgsql AS \
    $$ BEGIN PERFORM set_config('synchronous' || '_commit', 'off', false); END $$";

#[test]
fn a_strict_database_acknowledges_only_what_the_quorum_has() {
    with_cluster(Options::default(), async |cluster| {
        let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        let first = cluster.nodes()[0].app().session().await?;
        first.run("CREATE TABLE weakly (id int)").await?;
        first.run(WEAK).await?;
        // Only sessions that never saw its text call it.
        drop(first);
        acknowledged_without_a_quorum(cluster, &view).await.context("guarded commits")?;

        set(cluster, "strict").await?;
        held_without_a_quorum(cluster).await.context("strict commits")?;
        let before = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        nemesis::kill_postmaster(before.primary()?)?;
        cluster.failed_over(DEMO_DATABASE, &before.primary()?.node, GAP_LIMIT).await?;
        held_without_a_quorum(cluster).await.context("strict commits after a failover")?;

        set(cluster, "guarded").await?;
        let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        acknowledged_without_a_quorum(cluster, &view).await.context("guarded commits again")
    });
}

async fn set(cluster: &Cluster, commits: &str) -> anyhow::Result<()> {
    let admin = cluster.admin().await?;
    admin.rows(&format!("ALTER DATABASE {DEMO_DATABASE} SET commits = '{commits}'")).await?;
    let shown = admin.rows("SHOW DATABASES").await?.first().context("no database")?.text("commits")?;
    ensure!(shown == commits, "SHOW DATABASES says {shown}");
    cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await.map(drop)
}

/// A session by each node that has called the function: its commits wait for nobody.
async fn weakened(cluster: &Cluster) -> anyhow::Result<Vec<Session>> {
    let mut sessions = Vec::new();
    for node in cluster.nodes() {
        let session = node.app().session().await?;
        session.run("SELECT weak()").await?;
        let shown = session.value("SELECT current_setting('synchronous_commit')").await?;
        ensure!(shown.as_deref() == Some("off"), "the function had no effect: {shown:?}");
        sessions.push(session);
    }
    Ok(sessions)
}

async fn acknowledged_without_a_quorum(cluster: &Cluster, view: &DatabaseView) -> anyhow::Result<()> {
    let sessions = weakened(cluster).await?;
    let stopped = nemesis::stop_instances(view.secondaries())?;
    for session in &sessions {
        let commit = tokio::time::timeout(WATCH, session.run("INSERT INTO weakly VALUES (0)")).await;
        commit.context("the test shows nothing: a guarded commit waited")??;
    }
    ensure!(stopped.broken().is_empty(), "the pause did not hold: {:?}", stopped.broken());
    stopped.undo()
}

async fn held_without_a_quorum(cluster: &Cluster) -> anyhow::Result<()> {
    let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let sessions = weakened(cluster).await?;
    let told = cluster.nodes()[0].app().session().await?;
    let rows = "SELECT count(*) FROM weakly";
    let before: usize = told.value(rows).await?.context("no count")?.parse()?;
    let stopped = nemesis::stop_instances(view.secondaries())?;
    let mut commits = tokio::task::JoinSet::new();
    for session in sessions {
        commits.spawn(async move { session.run("INSERT INTO weakly VALUES (1)").await });
    }
    let expected = before + commits.len();
    let answered = tokio::time::timeout(WATCH, commits.join_next()).await;
    ensure!(answered.is_err(), "a commit was answered that no secondary has: {answered:?}");
    ensure!(stopped.broken().is_empty(), "the pause did not hold: {:?}", stopped.broken());
    stopped.undo()?;
    let all = async {
        while let Some(commit) = commits.join_next().await {
            commit.context("a writer panicked")??;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(ANSWER_LIMIT, all).await.context("commits that waited were not answered")??;
    let after: usize = told.value(rows).await?.context("no count")?.parse()?;
    ensure!(after == expected, "{after} rows, of {expected} that were acknowledged");
    Ok(())
}
