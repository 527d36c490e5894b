//! One fault after another under load, each on a database that is whole again: for Quorate and for Patroni alike.

use anyhow::Context;
use quorate_integration::admin::DatabaseView;
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::ledger::{Plan, Style};
use quorate_integration::patroni::Patroni;
use quorate_integration::{Cluster, DEMO_DATABASE, Endpoint, Ledger, nemesis, wait};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// For commits to pass again after a fault: longer than this is a failure, not a figure.
const OUTAGE_LIMIT: Duration = Duration::from_secs(120);
/// Commits before the fault, and after it until the round counts as over.
const COMMITS: u64 = 300;
const SWITCH_LIMIT: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Kind {
    Postmaster,
    Node,
    Switchover,
    Suspicion,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Postmaster, Kind::Node, Kind::Switchover, Kind::Suspicion];
    /// Patroni has no false alarm to give: its leader's lock runs out or it does not.
    pub const OF_PATRONI: [Kind; 3] = [Kind::Postmaster, Kind::Node, Kind::Switchover];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Postmaster => "kill -9 of the primary's postmaster",
            Kind::Node => "loss of the primary's node",
            Kind::Switchover => "switchover",
            Kind::Suspicion => "false suspicion of a healthy primary",
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// Longest time between two acknowledged commits around the fault.
    pub gap_ms: f64,
    pub acknowledged: usize,
    pub unknown: usize,
    pub lost: usize,
    /// Statements that failed or whose outcome was not told, sessions that were dropped, and requests for one that
    /// were refused.
    pub errors: u64,
    /// As SHOW EVENTS has them, in milliseconds. Quorate's only.
    pub steps: BTreeMap<String, f64>,
}

/// Who writes.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub clients: usize,
    /// How long each rests after an answer.
    pub pace: Duration,
}

pub async fn quorate(
    cluster: &mut Cluster,
    kind: Kind,
    count: u32,
    load: Load,
) -> anyhow::Result<Vec<Round>> {
    let mut rounds = Vec::new();
    for number in 1..=count {
        let round =
            quorate_round(cluster, kind, load).await.with_context(|| format!("{}, {number}", kind.name()))?;
        eprintln!(
            "Quorate, {} {number}/{count}: {:.0} ms, {} errors {:?}",
            kind.name(),
            round.gap_ms,
            round.errors,
            round.steps
        );
        rounds.push(round);
    }
    Ok(rounds)
}

async fn quorate_round(cluster: &mut Cluster, kind: Kind, load: Load) -> anyhow::Result<Round> {
    let before = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let primary = before.primary()?.clone();
    // Clients of a node that is killed measure their own connection, not the database.
    let ports: Vec<Endpoint> = cluster
        .nodes()
        .iter()
        .filter(|n| kind != Kind::Node || n.name != primary.node)
        .map(|n| n.app())
        .collect();
    let last_event = last_event(cluster).await?;
    let mut round = under_load(&ports, load, async || match kind {
        Kind::Postmaster => Ok(nemesis::kill_postmaster(&primary)?.at),
        Kind::Node => Ok(nemesis::kill_node(cluster, &primary.node)?.at),
        Kind::Switchover => switch_over(cluster, &before).await,
        Kind::Suspicion => suspect(cluster, &before).await,
    })
    .await?;
    round.steps = steps_since(cluster, last_event).await?;
    if kind == Kind::Node {
        cluster.start_node(&primary.node).await?;
    }
    Ok(round)
}

async fn switch_over(cluster: &Cluster, view: &DatabaseView) -> anyhow::Result<Instant> {
    let admin = cluster.admin().await?;
    let began = Instant::now();
    admin.carry_out(&format!("SWITCHOVER DATABASE {DEMO_DATABASE}"), SWITCH_LIMIT).await?;
    let now = admin.database(DEMO_DATABASE).await?;
    anyhow::ensure!(now.primary()?.replica != view.primary()?.replica, "the primary stayed");
    Ok(began)
}

/// Says that the primary's node is silent, and waits until its primary was elected again: itself, not promoted.
async fn suspect(cluster: &Cluster, view: &DatabaseView) -> anyhow::Result<Instant> {
    let admin = cluster.admin().await?;
    let primary = view.primary()?;
    let began = Instant::now();
    admin.rows(&format!("SUSPECT NODE {}", primary.node)).await?;
    let now = wait::until("elected again", SWITCH_LIMIT, async || {
        let now = admin.database(DEMO_DATABASE).await?;
        Ok(if now.row.epoch != view.row.epoch && now.is_whole(3) { Ok(now) } else { Err(now) })
    })
    .await?;
    let after = now.primary()?;
    anyhow::ensure!(after.replica == primary.replica && after.pid == primary.pid, "another primary: {now:?}");
    Ok(began)
}

pub async fn patroni(
    cluster: &mut Patroni,
    side: &str,
    kind: Kind,
    count: u32,
    load: Load,
) -> anyhow::Result<Vec<Round>> {
    let mut rounds = Vec::new();
    for number in 1..=count {
        let round = patroni_round(cluster, kind, load).await;
        let round = round.with_context(|| format!("{side}, {}, {number}", kind.name()))?;
        eprintln!(
            "{side}, {} {number}/{count}: {:.0} ms, {} errors",
            kind.name(),
            round.gap_ms,
            round.errors
        );
        rounds.push(round);
    }
    Ok(rounds)
}

async fn patroni_round(cluster: &mut Patroni, kind: Kind, load: Load) -> anyhow::Result<Round> {
    let leader = cluster.whole().await?;
    let round = under_load(&cluster.clients(), load, async || match kind {
        Kind::Postmaster => cluster.kill_postmaster(&leader),
        Kind::Node => cluster.kill_node(&leader),
        Kind::Switchover => {
            let began = Instant::now();
            cluster.switch_over(&leader).await?;
            Ok(began)
        }
        Kind::Suspicion => anyhow::bail!("Patroni cannot be given a false alarm"),
    })
    .await?;
    if kind == Kind::Node {
        cluster.start_node(&leader)?;
    }
    Ok(round)
}

/// Writes by these ports, does the harm, and goes on until commits pass again.
async fn under_load(
    ports: &[Endpoint],
    load: Load,
    harm: impl AsyncFnOnce() -> anyhow::Result<Instant>,
) -> anyhow::Result<Round> {
    let plan = Plan::over(ports, load.clients).styled(&Style::STATELESS).without_readers().paced(load.pace);
    let ledger = Ledger::begin(plan).await?;
    ledger.progress(COMMITS, OUTAGE_LIMIT).await?;
    let at = ledger.at(harm().await?);
    // Those acknowledged before the fault may still be on their way to being counted.
    tokio::time::sleep(Duration::from_millis(50)).await;
    ledger.progress(COMMITS, OUTAGE_LIMIT).await.context("commits did not go on")?;
    let until = ledger.now();
    let verdict = ledger.end(&ports[0]).await?;
    let sessions: u64 = verdict.dropped.values().chain(verdict.refused.values()).sum();
    Ok(Round {
        gap_ms: verdict.acks.longest(at, until).duration().as_secs_f64() * 1000.0,
        acknowledged: verdict.acknowledged,
        unknown: verdict.unknown_count(),
        lost: verdict.lost.len() + verdict.undead.len() + verdict.invented.len(),
        errors: sessions + u64::try_from(verdict.failed_count() + verdict.unknown_count())?,
        steps: BTreeMap::new(),
    })
}

async fn last_event(cluster: &Cluster) -> anyhow::Result<u64> {
    let events = cluster.admin().await?.rows("SHOW EVENTS").await?;
    let ids = events.iter().filter_map(|e| e.number::<u64>("id").ok().flatten());
    Ok(ids.max().unwrap_or(0))
}

/// The steps of the reconfigurations recorded after `last`: one, or several when one attempt met another fault.
async fn steps_since(cluster: &Cluster, last: u64) -> anyhow::Result<BTreeMap<String, f64>> {
    wait::until("the event of the change", Duration::from_secs(10), async || {
        let events = cluster.admin().await?.rows("SHOW EVENTS").await?;
        let mut steps = BTreeMap::new();
        for event in events {
            let kind = event.text("event")?;
            let newer = event.number::<u64>("id")?.is_some_and(|id| id > last);
            if newer && matches!(kind.as_str(), "failover" | "re-election" | "switchover") {
                for (name, ms) in parse_steps(&event.text("steps")?) {
                    *steps.entry(name).or_insert(0.0) += ms;
                }
            }
        }
        Ok(if steps.is_empty() { Err("no steps yet") } else { Ok(steps) })
    })
    .await
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
