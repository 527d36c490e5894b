//! Promise: `kill -9` of the primary's whole node, its instances with it, loses no acknowledged commit; after
//! `replace_after` a third copy exists on another node; a node that comes back gives its replicas back or drops them.

use anyhow::ensure;
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::ledger::Plan;
use quorate_integration::{
    Cluster, DEMO_DATABASE, Endpoint, Ledger, Options, copies, nemesis, process, wait, with_cluster,
};
use std::path::Path;
use std::time::Duration;

const GAP_LIMIT: Duration = Duration::from_secs(20);

#[test]
fn a_lost_primary_node_is_replaced_and_may_come_back() {
    with_cluster(Options::default(), async |cluster| {
        let before = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        let lost = before.primary()?.node.clone();
        let survivors = cluster.others(&lost);
        let ports: Vec<Endpoint> = survivors.iter().map(|n| n.app()).collect();
        let ledger = Ledger::begin(Plan::over(&ports, 8)).await?;
        ledger.progress(200, Duration::from_secs(20)).await?;

        let harm = nemesis::kill_node(cluster, &lost)?;
        ensure!(
            harm.victims.len() > 5,
            "a node with an instance is more than {} processes",
            harm.victims.len()
        );
        ledger.progress(200, GAP_LIMIT).await?;
        let after = cluster.failed_over(DEMO_DATABASE, &lost, GAP_LIMIT).await?;
        eprintln!("{lost} killed ({} processes); now open on {}", harm.victims.len(), after.primary()?.node);

        let names: Vec<_> = survivors.iter().collect();
        let healed = Cluster::whole_by(&names, DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        ensure!(healed.replicas.iter().all(|r| r.node != lost), "a copy counts on a dead node: {healed:?}");
        let seconds = harm.at.elapsed().as_secs_f64();
        eprintln!("three copies again {seconds:.1} s after the loss: {:?}", nodes(&healed.replicas));
        ledger.progress(100, GAP_LIMIT).await?;
        let verdict = ledger.end(&ports[0]).await?;
        eprintln!("{verdict}");
        verdict.kept()?;
        ensure!(verdict.refused.is_empty(), "clients were refused: {:?}", verdict.refused);
        eprintln!("every copy: {}", copies::ledgers_agree(&healed).await?);

        cluster.start_node(&lost).await?;
        let whole = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        let kept: Vec<&Path> =
            whole.replicas.iter().filter(|r| r.node == lost).map(|r| r.data_directory.as_path()).collect();
        let data_dir = std::fs::canonicalize(&cluster.node(&lost)?.data_dir)?;
        wait::until(&format!("{lost} runs nothing that does not count"), HEAL_LIMIT, async || {
            let orphans: Vec<_> = process::under(&data_dir)
                .into_iter()
                .filter(|p| {
                    p.directory
                        .as_ref()
                        .is_some_and(|d| d.starts_with(&data_dir) && !kept.contains(&d.as_path()))
                })
                .filter(|p| p.command.contains("postgres"))
                .collect();
            Ok(if orphans.is_empty() { Ok(()) } else { Err(orphans) })
        })
        .await?;
        short_absence(cluster).await
    });
}

/// A secondary's node that is back before `replace_after` brings its copy back: cheaper than a new one.
async fn short_absence(cluster: &mut Cluster) -> anyhow::Result<()> {
    let before = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let away = before.secondaries().next().map(|r| (r.node.clone(), r.replica.clone()));
    let (away, replica) = away.ok_or_else(|| anyhow::anyhow!("no secondary"))?;
    let ports: Vec<Endpoint> = cluster.others(&away).iter().map(|n| n.app()).collect();
    let ledger = Ledger::begin(Plan::over(&ports, 6)).await?;
    nemesis::kill_node(cluster, &away)?;
    ledger.progress(200, GAP_LIMIT).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster.start_node(&away).await?;
    let after = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    ensure!(
        after.replicas.iter().any(|r| r.replica == replica && r.node == away),
        "{replica} of {away} was not given back after 3 s: {:?}",
        nodes(&after.replicas)
    );
    let verdict = ledger.end(&ports[0]).await?;
    eprintln!("{away} away for 3 s: {verdict}");
    verdict.kept()?;
    eprintln!("every copy: {}", copies::ledgers_agree(&after).await?);
    Ok(())
}

fn nodes(replicas: &[quorate_integration::admin::ReplicaRow]) -> Vec<String> {
    replicas.iter().map(|r| format!("{} on {} ({})", r.replica, r.node, r.role)).collect()
}
