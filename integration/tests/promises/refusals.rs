//! Promise: a full node and a stopped database are refused with the SQLSTATE that Postgres would use and a message
//! that says what to do; and neither outlasts its cause.

use anyhow::{Context, ensure};
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::cluster::set_number as set;
use quorate_integration::sql::expect_sqlstate;
use quorate_integration::{Cluster, DEMO_DATABASE, Options, nemesis, wait, with_cluster};
use std::time::{Duration, Instant};

const FULL: usize = 5;
const HOLD: Duration = Duration::from_secs(5);

#[test]
fn a_full_node_and_a_stopped_database_say_so() {
    with_cluster(Options::default(), async |cluster| {
        cluster.stop_demo().await?;
        for node in cluster.nodes() {
            let text = std::fs::read_to_string(&node.config)?;
            let text = set(&text, "hold_s", HOLD.as_secs())?;
            // Only the first node is small.
            let small = node.name == cluster.nodes()[0].name;
            let text = if small { set(&text, "max_sessions", FULL as u64)? } else { text };
            std::fs::write(&node.config, text)?;
        }
        cluster.start_demo().await.context("with the changed configuration")?;
        cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        full_node(cluster).await.context("a full node")?;
        stopped_database(cluster).await.context("a stopped database")
    });
}

async fn full_node(cluster: &Cluster) -> anyhow::Result<()> {
    let port = cluster.nodes()[0].app();
    let mut sessions = Vec::new();
    for _ in 0..FULL {
        sessions.push(port.session().await?);
    }
    let told = expect_sqlstate(port.connect().await, "53300", "one session too many")?;
    ensure!(told.contains(&FULL.to_string()) || told.contains("HINT"), "does not say what to do: {told}");
    eprintln!("{told}");
    for session in &sessions {
        ensure!(session.value("SELECT 1").await?.as_deref() == Some("1"), "a session of a full node");
    }
    cluster.nodes()[1].app().session().await.context("another node is not full")?;
    drop(sessions.pop());
    wait::until("room again", Duration::from_secs(5), async || {
        Ok(port.connect().await.map_err(|e| e.to_string()))
    })
    .await?;
    Ok(())
}

/// Its primary is killed and no secondary answers: nobody can be elected and open.
async fn stopped_database(cluster: &Cluster) -> anyhow::Result<()> {
    let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let node = cluster.nodes().last().context("a node")?;
    let waiting = node.app().session().await?;
    let stopped = nemesis::stop_instances(view.secondaries())?;
    nemesis::kill_postmaster(view.primary()?)?;
    let began = Instant::now();
    let told = expect_sqlstate(node.app().connect().await, "57P03", "a stopped database")?;
    ensure!(began.elapsed() >= HOLD / 2, "refused after {:?}, not held first", began.elapsed());
    ensure!(told.contains("HINT") || told.contains("SHOW"), "does not say what to do: {told}");
    eprintln!("after {:?}: {told}", began.elapsed());
    drop(waiting);
    stopped.undo()?;
    cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await.context("after SIGCONT")?;
    let value = node.app().session().await?.value("SELECT 1").await?;
    ensure!(value.as_deref() == Some("1"));
    Ok(())
}
