//! Promise: sessions of ordinary clients, which prepare statements and make settings by themselves, go on over a
//! switchover without an error, and over a lost postmaster unless something of theirs was in flight.
//!
//! Every client has its sessions at the same time, by a node that is not the primary's.

mod dump;
mod pgbench;
mod psql;

use anyhow::{Context, ensure};
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::programs::Programs;
use quorate_integration::sql::{Session, tell};
use quorate_integration::{Cluster, DEMO_DATABASE, Endpoint, Options, nemesis, wait, with_cluster};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const DRIVER_LIMIT: Duration = Duration::from_secs(120);
/// For every session to have written, runtimes that compile first included.
const BEGIN_LIMIT: Duration = Duration::from_secs(60);
const SWITCH_LIMIT: Duration = Duration::from_secs(30);
/// For drivers to take turns after an event.
const TURNS: Duration = Duration::from_secs(2);
/// Of every driver.
const SESSIONS: u32 = 4;

/// What was seen of one driver.
#[derive(Clone, Debug, Default, Deserialize)]
struct Seen {
    begun: u32,
    alive: u32,
    turns: u32,
    /// Rows that were written, as far as it was told.
    written: u32,
    /// By SQLSTATE, outside of transaction blocks and within.
    errors: BTreeMap<String, u32>,
    in_blocks: BTreeMap<String, u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Switchovers,
    LostPostmaster,
}

#[test]
fn sessions_of_drivers_outlive_a_switchover_and_a_postmaster() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let programs = runtime.block_on(Programs::prepare()).unwrap();
    with_cluster(Options::default(), async |cluster| {
        for event in [Event::Switchovers, Event::LostPostmaster] {
            let (drivers, rows) = clients_during(cluster, &programs, event).await?;
            for (driver, seen) in drivers {
                let rows = rows.get(&driver).copied().unwrap_or_default();
                eprintln!("{event:?}, {driver}: {seen:?}, {rows} rows");
                judge(event, &driver, &seen, rows)
                    .with_context(|| format!("{event:?}, {driver}: {seen:?}, {rows} rows"))?;
            }
        }
        Ok(())
    });
}

fn judge(event: Event, driver: &str, seen: &Seen, rows: u32) -> anyhow::Result<()> {
    ensure!(seen.begun == SESSIONS && seen.alive == seen.begun, "every session goes on");
    ensure!(seen.turns > 4 * seen.begun, "and does something");
    let mut errors = seen.errors.iter().chain(&seen.in_blocks);
    if event == Event::Switchovers {
        ensure!(errors.next().is_none(), "a switchover is no error");
    }
    // What was in flight outside of blocks either had no effect for certain, or nobody can know.
    ensure!(seen.errors.keys().all(|code| code == "08007" || code == "40001"), "outside of blocks");
    // A block is lost with its server, and what became of a COMMIT is found out. Two may be told that it is unknown
    // (docs/PROXY.md): a COMMIT in flight together with other requests, and JDBC's batch of BEGIN and a first statement,
    // which is taken for one outside of a block.
    let may_be_unknown = matches!(driver, "pipelines" | "JDBC");
    let expected = |code: &str| code == "40001" || may_be_unknown && code == "08007";
    ensure!(seen.in_blocks.keys().all(|code| expected(code)), "in blocks");
    let told: u32 = seen.errors.values().chain(seen.in_blocks.values()).sum();
    ensure!(told <= seen.begun, "a session has one thing in flight");
    let unknown: u32 = [&seen.errors, &seen.in_blocks].iter().filter_map(|errors| errors.get("08007")).sum();
    ensure!((seen.written..=seen.written + unknown).contains(&rows), "what was told is true");
    Ok(())
}

/// What every driver saw while `event` happened, and how many rows it has.
async fn clients_during(
    cluster: &Cluster,
    programs: &Programs,
    event: Event,
) -> anyhow::Result<(BTreeMap<String, Seen>, BTreeMap<String, u32>)> {
    let entry = entry(cluster).await?;
    let looker = entry.session().await?;
    looker.run("DROP TABLE IF EXISTS turns").await?;
    looker
        .run("CREATE TABLE turns (driver text, session int, turn int, step text, PRIMARY KEY (driver, session, turn, step))")
        .await?;
    pgbench::prepare(&entry).await?;
    let directory = tempfile::tempdir()?;
    let stop = directory.path().join("stop");
    let url = entry.url();
    let programs_said =
        futures::future::try_join_all(programs.all.iter().map(|p| p.run(&url, &stop, DRIVER_LIMIT)));
    let expected = 1 + programs.all.iter().map(|p| p.drivers.len()).sum::<usize>();
    let meanwhile = async {
        let happened = async {
            begun(&looker, expected).await?;
            pgbench::during(&entry, &looker, event, happen(cluster, event)).await
        };
        let happened = happened.await;
        tokio::time::sleep(TURNS).await;
        std::fs::write(&stop, "")?;
        happened
    };
    let (said, psql, happened) = tokio::join!(programs_said, psql::sessions(&entry, &stop), meanwhile);
    let mut all = BTreeMap::from([("psql".to_owned(), psql?)]);
    for said in said? {
        let seen: BTreeMap<String, Seen> = serde_json::from_str(&said).with_context(|| said)?;
        all.extend(seen);
    }
    happened?;
    let rows = looker.rows("SELECT driver, count(*) FROM turns GROUP BY driver").await?;
    let count = |row: &Vec<Option<String>>| Some((row[0].clone()?, row[1].as_ref()?.parse().ok()?));
    Ok((all, rows.iter().filter_map(count).collect()))
}

/// A client port that is not the primary's.
async fn entry(cluster: &Cluster) -> anyhow::Result<Endpoint> {
    let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let entry = cluster.others(&view.primary()?.node).into_iter().next().context("another node")?;
    Ok(entry.app())
}

/// Waits until every session of this many drivers has written something.
async fn begun(looker: &Session, drivers: usize) -> anyhow::Result<()> {
    let began = Instant::now();
    let expected = drivers * SESSIONS as usize;
    let query = "SELECT count(DISTINCT (driver, session)) FROM turns WHERE step = 'in a block'";
    wait::until(&format!("{expected} sessions at work"), BEGIN_LIMIT, async || {
        let found = looker.value(query).await.map_err(|error| anyhow::anyhow!(tell(&error)))?;
        Ok(if found == Some(expected.to_string()) { Ok(()) } else { Err(found) })
    })
    .await?;
    eprintln!("{expected} sessions at work after {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}

/// When it began.
async fn happen(cluster: &Cluster, event: Event) -> anyhow::Result<Instant> {
    match event {
        Event::Switchovers => switch_twice(cluster).await,
        Event::LostPostmaster => kill_postmaster(cluster).await,
    }
}

async fn switch_twice(cluster: &Cluster) -> anyhow::Result<Instant> {
    let mut began = None;
    for _ in 0..2 {
        let before = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?.primary()?.node.clone();
        let order = format!("SWITCHOVER DATABASE {DEMO_DATABASE}");
        let admin = cluster.admin().await?;
        began.get_or_insert_with(Instant::now);
        admin.carry_out(&order, SWITCH_LIMIT).await?;
        let after = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?.primary()?.node.clone();
        ensure!(before != after, "the primary stayed on {before}");
    }
    began.context("no switchover")
}

async fn kill_postmaster(cluster: &Cluster) -> anyhow::Result<Instant> {
    let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let lost = view.primary()?.node.clone();
    let harm = nemesis::kill_postmaster(view.primary()?)?;
    cluster.failed_over(DEMO_DATABASE, &lost, SWITCH_LIMIT).await?;
    Ok(harm.at)
}
