//! Promise: a switchover loses nothing, and drops or fails no client that is outside a transaction; one inside is
//! told 40001 at worst.

use anyhow::ensure;
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::ledger::{Plan, Style};
use quorate_integration::{
    Cluster, DEMO_DATABASE, Endpoint, Ledger, Options, copies, leftovers, nemesis, wait, with_cluster,
};
use std::time::{Duration, Instant};

const SWITCH_LIMIT: Duration = Duration::from_secs(30);
const ROUNDS: usize = 3;

#[test]
fn clients_do_not_notice_a_switchover() {
    with_cluster(Options::default(), async |cluster| {
        let ports: Vec<Endpoint> = cluster.nodes().iter().map(|n| n.app()).collect();
        let ledger = Ledger::begin(Plan::over(&ports, 8).styled(&Style::STATELESS)).await?;
        for round in 0..ROUNDS {
            switch(cluster, round % 2 == 1).await?;
            ledger.progress(200, SWITCH_LIMIT).await?;
        }
        let verdict = ledger.end(&ports[0]).await?;
        eprintln!("{verdict}");
        verdict.kept()?;
        ensure!(
            verdict.failed_count() == 0 && verdict.unknown_count() == 0,
            "writers outside transactions saw errors: {:?} {:?}",
            verdict.failed,
            verdict.unknown
        );
        ensure!(verdict.dropped.is_empty() && verdict.refused.is_empty(), "sessions were dropped or refused");
        ensure!(verdict.read_errors.is_empty(), "readers saw errors: {:?}", verdict.read_errors);

        let ledger = Ledger::begin(Plan::over(&ports, 8).styled(&[Style::Transaction])).await?;
        switch(cluster, false).await?;
        ledger.progress(200, SWITCH_LIMIT).await?;
        let verdict = ledger.end(&ports[0]).await?;
        eprintln!("in transactions: {verdict}");
        verdict.kept()?;
        ensure!(verdict.unknown_count() == 0, "a switchover leaves no doubt: {:?}", verdict.unknown);
        ensure!(verdict.failed.keys().all(|code| code == "40001"), "other than 40001: {:?}", verdict.failed);
        let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        eprintln!("every copy: {}", copies::ledgers_agree(&view).await?);
        taken_back(cluster, &ports).await
    });
}

/// Until the sessions are frozen it can be taken back, and then nothing has happened.
async fn taken_back(cluster: &Cluster, ports: &[Endpoint]) -> anyhow::Result<()> {
    let before = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let ledger = Ledger::begin(Plan::over(ports, 4).styled(&Style::STATELESS)).await?;
    let stopped = nemesis::stop_checkpointer(before.primary()?)?;
    let order = format!("SWITCHOVER DATABASE {DEMO_DATABASE}");
    let operation = leftovers::begin(cluster.nodes(), &order, "to be taken back").await?;
    let admin = cluster.admin().await?;
    wait::until("it waits for the checkpoint", SWITCH_LIMIT, async || {
        let row = leftovers::operation(&admin, &operation).await?;
        Ok(if row.text("step")?.contains("checkpoint") { Ok(()) } else { Err(row) })
    })
    .await?;
    ledger.progress(100, SWITCH_LIMIT).await?;
    ensure!(stopped.broken().is_empty(), "the pause did not hold: {:?}", stopped.broken());
    leftovers::take_back(&admin, &operation, SWITCH_LIMIT).await?;
    stopped.undo()?;
    ledger.progress(200, SWITCH_LIMIT).await?;
    let verdict = ledger.end(&ports[0]).await?;
    verdict.kept()?;
    let errors = verdict.failed_count() + verdict.unknown_count() + verdict.dropped.len();
    ensure!(errors == 0, "clients noticed: {verdict}");
    let after = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    ensure!(after.row.epoch == before.row.epoch, "something happened: {before:?} {after:?}");
    switch(cluster, false).await
}

/// To a named node, or to whichever the agent chooses.
async fn switch(cluster: &Cluster, named: bool) -> anyhow::Result<()> {
    let before = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let from = before.primary()?.node.clone();
    let to = before.secondaries().last().filter(|_| named).map(|r| r.node.clone());
    let order = match &to {
        Some(node) => format!("SWITCHOVER DATABASE {DEMO_DATABASE} TO {node}"),
        None => format!("SWITCHOVER DATABASE {DEMO_DATABASE}"),
    };
    let began = Instant::now();
    cluster.admin().await?.carry_out(&order, SWITCH_LIMIT).await?;
    let took = began.elapsed();
    let after = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let now = after.primary()?.node.clone();
    eprintln!("{order}: {from} -> {now} in {took:?}");
    ensure!(now != from, "the primary stayed on {from}");
    ensure!(to.is_none_or(|to| to == now), "the primary went to {now}");
    Ok(())
}
