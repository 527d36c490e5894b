//! One kill after another under load, each on a database that is whole again.

use anyhow::Context;
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::ledger::{Plan, Style};
use quorate_integration::nemesis::{self, Harm};
use quorate_integration::{Cluster, DEMO_DATABASE, Endpoint, Ledger};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// For commits to pass again after a kill: longer than this is a failure, not a figure.
const OUTAGE_LIMIT: Duration = Duration::from_secs(60);
/// Commits before the kill, and after it until the round counts as over.
const COMMITS: u64 = 300;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Postmaster,
    Node,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Postmaster => "kill -9 of the primary's postmaster",
            Kind::Node => "kill -9 of the primary's node",
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// Longest time between two acknowledged commits around the kill.
    pub gap_ms: f64,
    pub acknowledged: usize,
    pub unknown: usize,
    pub lost: usize,
    pub refused: u64,
    /// As SHOW EVENTS has them, in milliseconds.
    pub steps: BTreeMap<String, f64>,
}

pub async fn measure(
    cluster: &mut Cluster,
    kind: Kind,
    count: u32,
    clients: usize,
    pace: Duration,
) -> anyhow::Result<Vec<Round>> {
    let mut rounds = Vec::new();
    for number in 1..=count {
        let round = round(cluster, kind, clients, pace).await.with_context(|| format!("round {number}"))?;
        eprintln!("{} {number}/{count}: {:.0} ms {:?}", kind.name(), round.gap_ms, round.steps);
        rounds.push(round);
    }
    Ok(rounds)
}

async fn round(cluster: &mut Cluster, kind: Kind, clients: usize, pace: Duration) -> anyhow::Result<Round> {
    let before = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let primary = before.primary()?.clone();
    // Clients of a node that is killed measure their own connection, not the database.
    let ports: Vec<Endpoint> = cluster
        .nodes()
        .iter()
        .filter(|n| kind == Kind::Postmaster || n.name != primary.node)
        .map(|n| n.app())
        .collect();
    let last_event = last_event(cluster).await?;
    let plan = Plan::over(&ports, clients).styled(&Style::STATELESS).without_readers().paced(pace);
    let ledger = Ledger::begin(plan).await?;
    ledger.progress(COMMITS, OUTAGE_LIMIT).await?;

    let harm: Harm = match kind {
        Kind::Postmaster => nemesis::kill_postmaster(&primary)?,
        Kind::Node => nemesis::kill_node(cluster, &primary.node)?,
    };
    let killed = ledger.at(harm.at);
    // Those acknowledged before the kill may still be on their way to being counted.
    tokio::time::sleep(Duration::from_millis(50)).await;
    ledger.progress(COMMITS, OUTAGE_LIMIT).await.context("commits did not go on after the kill")?;
    let until = ledger.now();
    let verdict = ledger.end(&ports[0]).await?;
    let steps = steps_since(cluster, last_event).await?;
    if kind == Kind::Node {
        cluster.start_node(&primary.node).await?;
    }
    Ok(Round {
        gap_ms: verdict.acks.longest(killed, until).duration().as_secs_f64() * 1000.0,
        acknowledged: verdict.acknowledged,
        unknown: verdict.unknown_count(),
        lost: verdict.lost.len() + verdict.undead.len() + verdict.invented.len(),
        refused: verdict.refused.values().sum(),
        steps,
    })
}

async fn last_event(cluster: &Cluster) -> anyhow::Result<u64> {
    let events = cluster.admin().await?.rows("SHOW EVENTS").await?;
    let ids = events.iter().filter_map(|e| e.number::<u64>("id").ok().flatten());
    Ok(ids.max().unwrap_or(0))
}

/// The steps of the reconfigurations recorded after `last`: one, or several when one attempt met another fault.
async fn steps_since(cluster: &Cluster, last: u64) -> anyhow::Result<BTreeMap<String, f64>> {
    let found =
        quorate_integration::wait::until("the event of the failover", Duration::from_secs(10), async || {
            let events = cluster.admin().await?.rows("SHOW EVENTS").await?;
            let mut steps = BTreeMap::new();
            for event in events {
                let kind = event.text("event")?;
                let newer = event.number::<u64>("id")?.is_some_and(|id| id > last);
                if newer && matches!(kind.as_str(), "failover" | "re-election") {
                    for (name, ms) in parse_steps(&event.text("steps")?) {
                        *steps.entry(name).or_insert(0.0) += ms;
                    }
                }
            }
            Ok(if steps.is_empty() { Err("no steps yet") } else { Ok(steps) })
        });
    found.await
}

/// `detect 12.1 ms, fence 3.2 ms`
fn parse_steps(text: &str) -> Vec<(String, f64)> {
    let step = |part: &str| {
        let mut words = part.split_ascii_whitespace();
        let (name, number, unit) = (words.next()?, words.next()?, words.next()?);
        (unit == "ms").then_some(())?;
        Some((name.to_owned(), number.parse().ok()?))
    };
    text.split(',').filter_map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_as_shown() {
        let read = parse_steps("detect 12.1 ms, fence 3.2 ms");
        assert_eq!(read, [("detect".to_owned(), 12.1), ("fence".to_owned(), 3.2)]);
        assert!(parse_steps("").is_empty());
    }
}
