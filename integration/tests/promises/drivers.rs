//! Promise: sessions of ordinary drivers, which prepare statements and make settings by themselves, go on over a
//! switchover without an error, and over a lost postmaster unless a statement of theirs was in flight.

use anyhow::{Context, ensure};
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::{Cluster, DEMO_DATABASE, Options, driver, nemesis, with_cluster};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

const DRIVER_LIMIT: Duration = Duration::from_secs(120);
const SWITCH_LIMIT: Duration = Duration::from_secs(30);
/// For drivers to take turns before and after an event.
const TURNS: Duration = Duration::from_secs(2);

/// What `sessions.py` saw of one driver.
#[derive(Debug, Deserialize)]
struct Seen {
    begun: u32,
    alive: u32,
    turns: u32,
    errors: BTreeMap<String, u32>,
}

#[test]
fn sessions_of_drivers_outlive_a_switchover_and_a_postmaster() {
    with_cluster(Options::default(), async |cluster| {
        for (driver, seen) in sessions_during(cluster, switch_twice).await? {
            eprintln!("switchover, {driver}: {seen:?}");
            ensure!(seen.errors.is_empty(), "{driver}: a switchover is no error: {seen:?}");
            ensure!(seen.begun > 0 && seen.alive == seen.begun, "{driver}: every session goes on: {seen:?}");
            ensure!(seen.turns > 4 * seen.begun, "{driver}: {seen:?}");
        }
        for (driver, seen) in sessions_during(cluster, kill_postmaster).await? {
            eprintln!("lost postmaster, {driver}: {seen:?}");
            // A statement that was in flight outside a transaction: its outcome is unknown, and its session is told so.
            ensure!(seen.errors.keys().all(|code| code == "08007"), "{driver}: {seen:?}");
            ensure!(seen.begun > 0 && seen.alive == seen.begun, "{driver}: every session goes on: {seen:?}");
            ensure!(seen.turns > 4 * seen.begun, "{driver}: {seen:?}");
        }
        Ok(())
    });
}

/// Sessions of every driver by a node that is not the primary's, while `event` happens.
async fn sessions_during(
    cluster: &Cluster,
    event: impl AsyncFn(&Cluster) -> anyhow::Result<()>,
) -> anyhow::Result<BTreeMap<String, Seen>> {
    let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let entry = cluster.others(&view.primary()?.node).into_iter().next().context("another node")?;
    let directory = tempfile::tempdir()?;
    let stop = directory.path().join("stop");
    let (url, file) = (entry.app().url(), stop.to_str().context("a path")?.to_owned());
    let arguments = [url.as_str(), file.as_str()];
    let using = driver::python("sessions.py", &arguments, DRIVER_LIMIT);
    let meanwhile = async {
        tokio::time::sleep(TURNS).await;
        let happened = event(cluster).await;
        tokio::time::sleep(TURNS).await;
        std::fs::write(&stop, "")?;
        happened
    };
    let (said, happened) = tokio::join!(using, meanwhile);
    happened?;
    let said = said?;
    let seen: BTreeMap<String, Seen> = serde_json::from_str(&said).with_context(|| said)?;
    // asyncpg is beside it wherever scripts/setup could install it.
    ensure!(seen.contains_key("psycopg"), "drivers that held sessions: {:?}", seen.keys());
    Ok(seen)
}

async fn switch_twice(cluster: &Cluster) -> anyhow::Result<()> {
    for _ in 0..2 {
        let before = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?.primary()?.node.clone();
        let order = format!("SWITCHOVER DATABASE {DEMO_DATABASE}");
        cluster.admin().await?.carry_out(&order, SWITCH_LIMIT).await?;
        let after = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?.primary()?.node.clone();
        ensure!(before != after, "the primary stayed on {before}");
    }
    Ok(())
}

async fn kill_postmaster(cluster: &Cluster) -> anyhow::Result<()> {
    let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let lost = view.primary()?.node.clone();
    nemesis::kill_postmaster(view.primary()?)?;
    cluster.failed_over(DEMO_DATABASE, &lost, SWITCH_LIMIT).await?;
    Ok(())
}
