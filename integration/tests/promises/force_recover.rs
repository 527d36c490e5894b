//! Promise: data is given up only by an operator's word, and then once: two of three copies lost for good, `FORCE
//! RECOVER` goes on with the third, read-only until a second copy exists; what was lost is kept aside and never counts
//! again, and `EXPLAIN FAILOVER` says at each point why nobody takes over.

use anyhow::{Context, ensure};
use quorate_integration::cluster::{HEAL_LIMIT, Node};
use quorate_integration::ledger::Plan;
use quorate_integration::{
    Admin, DEMO_DATABASE, Endpoint, Ledger, Options, leftovers, nemesis, wait, with_cluster,
};
use std::collections::BTreeSet;
use std::time::Duration;

const LOST_LIMIT: Duration = Duration::from_secs(40);
const OPERATION_LIMIT: Duration = Duration::from_secs(90);

#[test]
fn what_is_lost_is_given_up_only_by_an_operators_word() {
    // Five nodes: with two of them lost, the map keeps its majority and a second copy finds a place.
    with_cluster(Options { nodes: 5, ..Options::default() }, async |cluster| {
        let before = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        let admin = cluster.admin().await?;
        let force = format!("FORCE RECOVER DATABASE {DEMO_DATABASE} ACCEPT DATA LOSS");
        let (code, told) = admin.refused(&force).await?;
        ensure!(code == "55000" && told.contains("nothing is lost"), "a healthy database: {told}");
        let said = admin.rows(&format!("EXPLAIN FAILOVER {DEMO_DATABASE}")).await?;
        let leaders = said.iter().filter(|r| r.truth("could_lead").unwrap_or(false)).count();
        ensure!(said.len() == 3 && leaders >= 2, "the primary, and who would take over: {said:?}");

        let ports: Vec<Endpoint> = cluster.nodes().iter().map(Node::app).collect();
        let ledger = Ledger::begin(Plan::over(&ports, 4)).await?;
        ledger.progress(100, Duration::from_secs(20)).await?;
        ledger.end(&ports[0]).await?.kept()?;

        let survivor = before.secondaries().next().context("a secondary")?.clone();
        let lost: Vec<String> =
            before.replicas.iter().filter(|r| r.node != survivor.node).map(|r| r.node.clone()).collect();
        for node in &lost {
            nemesis::kill_node(cluster, node)?;
        }
        let alive: Vec<Node> = cluster.nodes().iter().filter(|n| !lost.contains(&n.name)).cloned().collect();
        taken_back(&alive, &force).await?;
        let lost_phase = wait::until("quorum lost", LOST_LIMIT, async || {
            let row = Admin::open(&alive).await?.database(DEMO_DATABASE).await?.row;
            Ok(if row.phase == "quorum lost" { Ok(row) } else { Err(row) })
        })
        .await?;
        let admin = Admin::open(&alive).await?;
        let said = admin.rows(&format!("EXPLAIN FAILOVER {DEMO_DATABASE}")).await?;
        ensure!(said.iter().all(|r| !r.truth("could_lead").unwrap_or(true)), "{said:?}");

        admin.carry_out(&format!("{force} CANDIDATE {}", survivor.node), OPERATION_LIMIT).await?;
        let view = admin.database(DEMO_DATABASE).await?;
        ensure!(view.primary()?.replica == survivor.replica, "{view:?}");
        ensure!(view.row.epoch.starts_with("1.") && lost_phase.epoch.starts_with("0."), "{:?}", view.row);
        let aside: BTreeSet<&str> =
            view.replicas.iter().filter(|r| r.state == "quarantined").map(|r| r.node.as_str()).collect();
        ensure!(aside == lost.iter().map(String::as_str).collect(), "{view:?}");
        read_only_or_open(&alive).await?;

        // A second copy, and commits.
        let port = alive[0].app();
        wait::until("commits are acknowledged again", HEAL_LIMIT, async || {
            let session = port.session().await?;
            Ok(session.run("INSERT INTO ledger VALUES (77, 1)").await.map_err(|e| format!("{e:#}")))
        })
        .await?;

        // They come back: kept, not started, not counted, until an order drops them.
        for node in &lost {
            cluster.start_node(node).await?;
        }
        let admin = cluster.admin().await?;
        let view = wait::until("three copies beside the lost", HEAL_LIMIT, async || {
            let view = admin.database(DEMO_DATABASE).await?;
            let healthy = view.replicas.iter().filter(|r| r.is_healthy()).count();
            Ok(if healthy == 3 && view.row.open { Ok(view) } else { Err(view) })
        })
        .await?;
        for replica in view.replicas.iter().filter(|r| r.state == "quarantined") {
            ensure!(replica.pid.is_none() && replica.role == "learner", "{replica:?}");
            let node = cluster.node(&replica.node)?;
            let kept = node.data_dir.join("replicas").join(&replica.replica).join("data/PG_VERSION");
            ensure!(kept.is_file(), "{} is not kept for salvage", kept.display());
        }
        let healthy = view.secondaries().next().context("a secondary")?.replica.clone();
        let (code, _) = admin.refused(&format!("DROP REPLICA {DEMO_DATABASE} {healthy}")).await?;
        ensure!(code == "55000", "a copy that counts was dropped");
        for replica in view.replicas.iter().filter(|r| r.state == "quarantined") {
            admin.rows(&format!("DROP REPLICA {DEMO_DATABASE} {}", replica.replica)).await?;
        }
        cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        leftovers::none(cluster).await?;
        events(&admin).await
    });
}

/// A word that is taken back while it is still being asked who answers gives up nothing.
async fn taken_back(alive: &[Node], force: &str) -> anyhow::Result<()> {
    let electing = wait::until("an election", LOST_LIMIT, async || {
        let row = Admin::open(alive).await?.database(DEMO_DATABASE).await?.row;
        Ok(if row.phase == "electing" { Ok(row) } else { Err(row) })
    })
    .await?;
    let operation = leftovers::begin(alive, force, "to be taken back").await?;
    let admin = Admin::open(alive).await?;
    leftovers::take_back(&admin, &operation, LOST_LIMIT).await?;
    let row = admin.database(DEMO_DATABASE).await?.row;
    ensure!(row.epoch == electing.epoch && row.phase != "stable", "something was given up: {row:?}");
    Ok(())
}

/// While nobody follows the survivor it reads, and says no to writes; that ends as soon as somebody does.
async fn read_only_or_open(alive: &[Node]) -> anyhow::Result<()> {
    let session = alive[0].app().session().await?;
    let rows = session.value("SELECT count(*) FROM ledger").await?;
    ensure!(rows.is_some_and(|r| r != "0"), "the survivor's rows cannot be read");
    let limit = Duration::from_secs(5);
    match tokio::time::timeout(limit, session.client.batch_execute("INSERT INTO ledger VALUES (78, 1)")).await
    {
        Ok(Ok(())) => {
            let view = Admin::open(alive).await?.database(DEMO_DATABASE).await?;
            ensure!(!view.row.secondaries.is_empty(), "a commit was acknowledged by nobody: {view:?}");
            eprintln!("the second copy came before the first write");
        }
        Ok(Err(error)) => {
            ensure!(quorate_integration::sql::sqlstate(&error) == Some("25006"), "{error:?}");
            eprintln!("read-only meanwhile: 25006");
        }
        Err(_) => anyhow::bail!("a write neither failed nor passed within {limit:?}"),
    }
    Ok(())
}

async fn events(admin: &Admin) -> anyhow::Result<()> {
    let events = admin.rows("SHOW EVENTS").await?;
    let told: Vec<String> = events.iter().map(|e| e.text("event").unwrap_or_default()).collect();
    ensure!(told.iter().filter(|e| *e == "forced recovery").count() == 1, "{told:?}");
    Ok(())
}
