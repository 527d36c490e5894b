//! The ledger is worth what it catches. Against plain PostgreSQL: an honest run passes; one row taken away behind
//! the clients' backs, or one invented, does not.

use anyhow::ensure;
use quorate_integration::ledger::Plan;
use quorate_integration::peer::PlainCluster;
use quorate_integration::{Endpoint, Ledger};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

async fn run(plain: &PlainCluster, plant: &str) -> anyhow::Result<quorate_integration::ledger::Verdict> {
    let port = Endpoint::new(plain.port, "demo", "demo", "app");
    let ledger = Ledger::begin(Plan::over(&[port.clone(), port.clone()], 4)).await?;
    ledger.progress(100, LIMIT).await?;
    if !plant.is_empty() {
        plain.sql("app", plant)?;
    }
    ledger.progress(100, LIMIT).await?;
    ledger.end(&port).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planted_loss_is_caught_and_an_honest_run_passes() -> anyhow::Result<()> {
    let plain = PlainCluster::start(&[]).await?;
    let honest = run(&plain, "").await?;
    eprintln!("{honest}");
    honest.kept()?;
    ensure!(honest.unknown_count() + honest.failed_count() == 0 && honest.reads > 10, "{honest}");

    let robbed = run(&plain, "DELETE FROM ledger WHERE client = 1 AND seq = 7").await?;
    ensure!(robbed.lost == [(1, 7)] && robbed.kept().is_err(), "{robbed}");

    // All that a client had so far: readers that look at the maximum see it go back.
    let robbed = run(&plain, "DELETE FROM ledger WHERE client = 2").await?;
    ensure!(robbed.lost.len() > 5 && robbed.kept().is_err(), "{robbed}");

    let padded = run(&plain, "INSERT INTO ledger VALUES (99, 1)").await?;
    ensure!(padded.invented == [(99, 1)] && padded.kept().is_err(), "{padded}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_cut_in_the_middle_is_counted_and_replaced() -> anyhow::Result<()> {
    let plain = PlainCluster::start(&[]).await?;
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'demo'";
    let verdict = run(&plain, cut).await?;
    eprintln!("{verdict}");
    verdict.kept()?;
    // A client that writes to a backend which has just ended is reset before it reads the farewell: then it saw its
    // connection closed. Either way each of the four sessions counts.
    ensure!(verdict.dropped.contains_key("57P01"), "{verdict}");
    ensure!(verdict.dropped.values().sum::<u64>() >= 4, "{verdict}");
    Ok(())
}
