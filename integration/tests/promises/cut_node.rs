//! Promise: a primary whose node is cut off from the others answers nothing that is stale. Its results stop by themselves
//! when its lease ends, before another primary opens; when the way heals, its clients go on.
//!
//! Cut are all ways, or only those that lead away from it: then it hears everybody, and nobody hears it.

use crate::pause_node::counter;
use anyhow::{Context, ensure};
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::ledger::Plan;
use quorate_integration::links::{Cut, Way};
use quorate_integration::{Cluster, DEMO_DATABASE, Endpoint, Ledger, Options, copies, driver, with_cluster};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const GAP_LIMIT: Duration = Duration::from_secs(20);
/// A node that is cut off, or is not any more, knows it by then.
const KNOWS: Duration = Duration::from_secs(15);
/// Clients at the node that is cut off, each of which asks one thing after the other.
const READERS: usize = 4;
/// Longer than a client is held.
const ANSWER_LIMIT: Duration = Duration::from_secs(45);

#[test]
fn nothing_stale_leaves_a_node_that_is_cut_off() {
    with_cluster(Options { links: true, ..Options::default() }, async |cluster| {
        let ports: Vec<Endpoint> = cluster.nodes().iter().map(|n| n.app()).collect();
        let made = "CREATE TABLE counter (value int); INSERT INTO counter VALUES (0)";
        ports[0].session().await?.run(made).await?;
        let ledger = Ledger::begin(Plan::over(&ports, 8)).await?;
        for only_away in [false, true] {
            cut_off(cluster, &ledger, only_away)
                .await
                .with_context(|| format!("only away from it: {only_away}"))?;
        }
        copies::close(cluster, ledger).await.map(drop)
    });
}

async fn cut_off(cluster: &Cluster, ledger: &Ledger, only_away: bool) -> anyhow::Result<()> {
    let links = cluster.links().context("no links")?;
    let before = cluster.following(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let node = before.primary()?.node.clone();
    let other = cluster.others(&node)[0].app();
    let old = counter(&other.session().await?).await?;

    let stop = Arc::new(AtomicBool::new(false));
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let tied = cluster.node(&node)?.app();
        readers.push(tokio::spawn(read(tied, stop.clone())));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let all = links.of(&node);
    let ways: Vec<Way> = all.into_iter().filter(|(from, _)| !only_away || *from == node).collect();
    let began = Instant::now();
    let cut = Cut::begin(links, &ways)?;
    let after = cluster.failed_over(DEMO_DATABASE, &node, GAP_LIMIT).await?;
    other.session().await?.run("UPDATE counter SET value = value + 1").await?;
    let written = Instant::now();
    eprintln!("{node} cut off; written on {} {:?} later", after.primary()?.node, began.elapsed());
    ledger.progress(100, GAP_LIMIT).await?;
    says_that_it_serves(cluster, &node, false).await?;
    cut.end(links)?;
    let healed = Instant::now();

    ledger.progress(100, GAP_LIMIT).await?;
    cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await.context("after the cut")?;
    says_that_it_serves(cluster, &node, true).await?;
    // Each has asked once more by then, of a node that is well again.
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::SeqCst);
    let (mut in_time, mut stale, mut fresh, mut failed) = (0, 0, 0, 0);
    for reader in readers {
        let told =
            tokio::time::timeout(ANSWER_LIMIT, reader).await.context("a reader was not answered")???;
        ensure!(
            told.iter().any(|(at, value)| *at > healed && *value == Some(old + 1)),
            "a reader did not go on"
        );
        for (at, value) in told {
            match value {
                Some(value) if value == old && at < written => in_time += 1,
                Some(value) if value == old => stale += 1,
                Some(value) => {
                    ensure!(value == old + 1, "{value} is neither {old} nor {}", old + 1);
                    fresh += 1;
                }
                None => failed += 1,
            }
        }
    }
    eprintln!(
        "  told the old value in time {in_time} times, late {stale}, the new one {fresh}, errors {failed}"
    );
    ensure!(stale == 0, "{stale} results of the old primary came after the new one had written");
    ensure!(in_time > 0, "nobody read before the cut");
    Ok(())
}

/// Waits until a node's health says so; the others serve all the time.
async fn says_that_it_serves(cluster: &Cluster, name: &str, serves: bool) -> anyhow::Result<()> {
    let began = Instant::now();
    let expected = if serves { 200 } else { 503 };
    loop {
        for other in cluster.others(name) {
            let (status, said) = driver::http_get(other.http, "/healthz").await?;
            ensure!(status == 200, "{}, which is not cut off: {said}", other.name);
        }
        let (status, said) = driver::http_get(cluster.node(name)?.http, "/healthz").await?;
        if status == expected {
            ensure!(serves || said.contains("cut off"), "{said}");
            eprintln!("  {name} says {status} after {:?}", began.elapsed());
            return Ok(());
        }
        ensure!(began.elapsed() < KNOWS, "{name} says {status}: {said}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What one client was told, and when; none: an error. It comes again after one.
async fn read(port: Endpoint, stop: Arc<AtomicBool>) -> anyhow::Result<Vec<(Instant, Option<i64>)>> {
    let mut told = Vec::new();
    let mut session = None;
    while !stop.load(Ordering::SeqCst) {
        let asked = match &session {
            Some(session) => counter(session).await.ok(),
            None => match port.session().await {
                Ok(new) => {
                    session = Some(new);
                    continue;
                }
                Err(_) => None,
            },
        };
        told.push((Instant::now(), asked));
        if asked.is_none() {
            session = None;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(told)
}
