//! Faults one after another against a real cluster under load, with the ledger watching.
//!
//! Each is done to a database that is whole, verified to have happened, undone, and followed by a wait until the
//! database is whole again by itself: three copies, stable, open. A run fails when a promise is broken (a row that
//! was acknowledged is gone, a read is stale), when a fault did not happen, or when the cluster does not heal.

mod inflict;
mod plan;
mod report;

pub use plan::{Fault, Kind, each_once, random};
pub use report::{Outcome, Report};

use crate::cluster::{Cluster, HEAL_LIMIT};
use crate::ledger::{Plan, Verdict};
use crate::{DEMO_DATABASE, Endpoint, Ledger, copies};
use anyhow::{Context, ensure};
use std::time::{Duration, Instant};

const WRITERS: usize = 8;
/// Commits that must pass before a fault, and after it.
const COMMITS: u64 = 40;
/// For commits to pass again once a fault is undone.
const OUTAGE_LIMIT: Duration = Duration::from_secs(40);
/// Faults with one ledger; then its table begins anew, so that copies stay quick to make.
const CHAPTER_FAULTS: usize = 20;

/// Inflicts all of them. The cluster must have been started with links.
pub async fn run(cluster: &mut Cluster, faults: &[Fault]) -> anyhow::Result<Report> {
    let mut report = Report::default();
    for (number, chapter) in faults.chunks(CHAPTER_FAULTS).enumerate() {
        let first = number * CHAPTER_FAULTS + 1;
        let (outcomes, verdict) = run_chapter(cluster, chapter, first, faults.len()).await?;
        let broken = verdict.kept();
        report.add(outcomes, &verdict);
        if let Err(broken) = broken {
            cluster.show_logs();
            return Err(
                broken.context(format!("in faults {first} to {}\n{report}", first + chapter.len() - 1))
            );
        }
    }
    Ok(report)
}

async fn run_chapter(
    cluster: &mut Cluster,
    faults: &[Fault],
    first: usize,
    total: usize,
) -> anyhow::Result<(Vec<Outcome>, Verdict)> {
    cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let ports: Vec<Endpoint> = cluster.nodes().iter().map(|n| n.app()).collect();
    let ledger = Ledger::begin(Plan::over(&ports, WRITERS)).await?;
    let mut windows = Vec::new();
    for (i, fault) in faults.iter().enumerate() {
        let title = format!("{}/{total} {}", first + i, fault.kind);
        windows.push(one(cluster, &ledger, fault, &title).await.with_context(|| {
            format!("{title}: held {:?}, delay {:?}, pick {}", fault.hold, fault.delay, fault.pick)
        })?);
    }
    let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let verdict = ledger.end(&ports[0]).await?;
    eprintln!("{verdict}");
    eprintln!("every copy: {}", copies::ledgers_agree(&view).await?);
    let outcomes = windows.into_iter().map(|w| w.outcome(&verdict)).collect();
    Ok((outcomes, verdict))
}

/// A fault's time on the ledger's clock; its gap is known when the ledger ends.
struct Window {
    kind: Kind,
    from: u64,
    until: u64,
    healed_after: Duration,
}

impl Window {
    fn outcome(self, verdict: &Verdict) -> Outcome {
        Outcome {
            kind: self.kind,
            gap: verdict.acks.longest(self.from, self.until).duration(),
            healed_after: self.healed_after,
        }
    }
}

async fn one(cluster: &mut Cluster, ledger: &Ledger, fault: &Fault, title: &str) -> anyhow::Result<Window> {
    let before = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    ledger.progress(COMMITS, OUTAGE_LIMIT).await.context("commits before the fault")?;
    let began = Instant::now();
    let from = ledger.now();
    let done = inflict::inflict(cluster, fault, &before).await?;
    let undone = Instant::now();
    ledger.progress(COMMITS, OUTAGE_LIMIT).await.with_context(|| format!("commits after {done}"))?;
    let after = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await.with_context(|| format!("after {done}"))?;
    let healed_after = undone.elapsed();
    if done.ends_reign {
        ensure!(after.row.epoch != before.row.epoch, "{done}, and the epoch stayed {}", before.row.epoch);
    }
    eprintln!(
        "{title}: {done}; {:.1} s in all, whole {:.1} s after its end; epoch {} -> {}",
        began.elapsed().as_secs_f64(),
        healed_after.as_secs_f64(),
        before.row.epoch,
        after.row.epoch,
    );
    Ok(Window { kind: fault.kind, from, until: ledger.now(), healed_after })
}
