//! Promise: a failover in the middle of a record that goes on in the next segment of the log comes to its end, loses
//! nothing, and no copy follows from behind a hole.

use anyhow::ensure;
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::ledger::Plan;
use quorate_integration::long_records::LongRecords;
use quorate_integration::{
    Cluster, DEMO_DATABASE, Endpoint, Ledger, Options, copies, logs, nemesis, with_cluster,
};
use std::time::Duration;

/// About every second kill leaves such a log; twenty without one mean that none is made any more.
const MAX_ROUNDS: usize = 20;
/// So many have to have left a standby with a part of one.
const TORN: usize = 1;
const GAP_LIMIT: Duration = Duration::from_secs(15);
/// What the agent says of such a log.
const TAKEN_OFF: &str = "the log ends inside a record that the history does not hold";
/// What PostgreSQL says when it has streamed from behind a hole, and comes to it.
const PANIC: &str = "PANIC:  could not open file \"pg_wal/";

#[test]
fn a_record_that_was_cut_between_segments_stops_nobody() {
    with_cluster(Options::default(), async |cluster| {
        let ports: Vec<Endpoint> = cluster.nodes().iter().map(|n| n.app()).collect();
        let ledger = Ledger::begin(Plan::over(&ports, 4)).await?;
        let writer = LongRecords::begin(ports[0].clone());
        let mut rounds = 0;
        while told(cluster, TAKEN_OFF) < TORN {
            rounds += 1;
            ensure!(rounds <= MAX_ROUNDS, "no kill left a torn log");
            let before = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
            ledger.progress(50, GAP_LIMIT).await?;
            let harm = nemesis::kill_postmaster(before.primary()?)?;
            ledger.progress(50, GAP_LIMIT).await?;
            let gap = Duration::from_micros(ledger.now() - ledger.at(harm.at));
            ensure!(told(cluster, PANIC) == 0, "a standby streamed from behind a hole in its log");
            eprintln!(
                "round {rounds}: 50 more commits {gap:?} later; {} torn so far",
                told(cluster, TAKEN_OFF)
            );
        }
        drop(writer);
        let verdict = ledger.end(&ports[0]).await?;
        eprintln!("{verdict}");
        verdict.kept()?;
        ensure!(verdict.refused.is_empty(), "clients were refused: {:?}", verdict.refused);
        let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        eprintln!("every copy: {}", copies::ledgers_agree(&view).await?);
        ensure!(told(cluster, PANIC) == 0, "a standby streamed from behind a hole in its log");
        Ok(())
    });
}

/// How often the logs of daemons and instances say so.
fn told(cluster: &Cluster, what: &str) -> usize {
    let told = |log| std::fs::read_to_string(log).map_or(0, |text| text.matches(what).count());
    logs::find(cluster.directory()).into_iter().map(told).sum()
}
