//! Promise: a cluster needs no root. Run as an ordinary user, its instances run as that user, and it survives the same.

use anyhow::{Context, ensure};
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::ledger::Plan;
use quorate_integration::process::Process;
use quorate_integration::{Cluster, DEMO_DATABASE, Endpoint, Ledger, Options, nemesis, with_cluster};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn a_cluster_needs_no_root() {
    with_cluster(Options { ordinary: true, ..Options::default() }, async |cluster| {
        let ports: Vec<Endpoint> = cluster.nodes().iter().map(|n| n.app()).collect();
        let ledger = Ledger::begin(Plan::over(&ports, 4)).await?;
        ledger.progress(100, LIMIT).await?;
        let before = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        nemesis::kill_postmaster(before.primary()?)?;
        ledger.progress(100, LIMIT).await?;
        let whole = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        let lost = whole.primary()?.node.clone();
        nemesis::kill_node(cluster, &lost)?;
        cluster.failed_over(DEMO_DATABASE, &lost, HEAL_LIMIT).await?;
        cluster.start_node(&lost).await?;
        ledger.progress(100, LIMIT).await?;
        let verdict = ledger.end(&cluster.others(&lost)[0].app()).await?;
        eprintln!("{verdict}");
        verdict.kept()?;
        cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        let users = users(cluster)?;
        eprintln!("run by: {users:?}");
        ensure!(!users.contains(&0) && users.len() == 1, "run by {users:?}");
        Ok(())
    });
}

/// Who runs the daemons and every process of their instances.
fn users(cluster: &Cluster) -> anyhow::Result<std::collections::BTreeSet<u32>> {
    let mut users = std::collections::BTreeSet::new();
    for node in cluster.nodes() {
        let processes: Vec<Process> = cluster.processes_of(&node.name)?;
        ensure!(processes.iter().any(|p| p.pid == node.pid), "{} does not run", node.name);
        for process in processes {
            // One that has ended since is nobody's.
            if let Ok(metadata) = std::fs::metadata(format!("/proc/{}", process.pid)) {
                users.insert(metadata.uid());
            }
        }
    }
    users.first().context("no process")?;
    Ok(users)
}
