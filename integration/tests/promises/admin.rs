//! Promise: the admin port shows and steers; its columns are an interface; what it refuses changes nothing.

use anyhow::{Context, ensure};
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::sql::{expect_sqlstate, tell};
use quorate_integration::{Admin, Cluster, DEMO_DATABASE, Endpoint, Options, driver, wait, with_cluster};
use std::collections::BTreeSet;
use std::time::Duration;

const OPERATION_LIMIT: Duration = Duration::from_secs(60);

/// The columns, by name and in order.
const COLUMNS: &[(&str, &str)] = &[
    (
        "SHOW NODES",
        "node, address, state, fault_domain, update_domain, raft, primaries, secondaries, version",
    ),
    (
        "SHOW DATABASES",
        "server, database, phase, epoch, primary, secondaries, k, open, sessions, size_bytes, reads, commits, outcomes, pool_mode, pool_size",
    ),
    (
        "SHOW REPLICAS",
        "server, database, replica, node, role, state, epoch, flush_lsn, lag_bytes, pid, data_directory, socket",
    ),
    ("SHOW RING", "position, node, predecessor, successor, state, last_heartbeat_ms, reported_by"),
];

#[test]
fn the_admin_port_shows_and_steers() {
    with_cluster(Options::default(), async |cluster| {
        cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        columns(cluster).await.context("columns")?;
        contents(cluster).await.context("contents")?;
        doors(cluster).await.context("who is let in")?;
        refusals(cluster).await.context("refusals")?;
        tenant(cluster).await.context("a tenant's life")?;
        move_replica(cluster).await.context("MOVE REPLICA")?;
        health(cluster).await.context("http")
    });
}

async fn columns(cluster: &Cluster) -> anyhow::Result<()> {
    for node in cluster.nodes() {
        let admin = Admin::open([node]).await?;
        for (order, names) in COLUMNS {
            let expected: Vec<&str> = names.split(", ").collect();
            ensure!(
                admin.columns(order).await? == expected,
                "{order} in the extended protocol at {}",
                node.name
            );
            let rows = admin.rows(order).await?;
            let row = rows.first().with_context(|| format!("{order} at {} has no row", node.name))?;
            let names: BTreeSet<&str> = row.0.keys().map(String::as_str).collect();
            ensure!(
                names == expected.into_iter().collect(),
                "{order} in the simple protocol at {}: {names:?}",
                node.name
            );
            let extended =
                admin.session.client.query(*order, &[]).await.map_err(|e| anyhow::anyhow!("{}", tell(&e)))?;
            ensure!(
                extended.len() == rows.len(),
                "{order} has {} rows, and {} extended",
                rows.len(),
                extended.len()
            );
        }
        for order in ["SHOW OPERATIONS", "SHOW EVENTS", "SHOW HELP", "show nodes;"] {
            ensure!(!admin.rows(order).await?.is_empty(), "{order} at {} has no row", node.name);
        }
    }
    Ok(())
}

async fn contents(cluster: &Cluster) -> anyhow::Result<()> {
    let admin = cluster.admin().await?;
    let nodes = admin.nodes().await?;
    ensure!(nodes.len() == cluster.nodes().len() && nodes.iter().all(|n| n.state == "alive"), "{nodes:?}");
    ensure!(nodes.iter().filter(|n| n.raft == "leader").count() == 1, "one leader: {nodes:?}");
    let domains: BTreeSet<_> = nodes.iter().map(|n| &n.fault_domain).collect();
    ensure!(domains.len() == nodes.len(), "each node has its own fault domain: {nodes:?}");
    ensure!(
        nodes.iter().map(|n| (n.primaries, n.secondaries)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
            == (1, 2)
    );
    let view = admin.database(DEMO_DATABASE).await?;
    ensure!(view.row.k == 1, "a commit needs one secondary: {:?}", view.row);
    for replica in &view.replicas {
        ensure!(replica.flush_lsn.contains('/'), "no position: {replica:?}");
        ensure!(replica.data_directory.join("PG_VERSION").is_file(), "no data directory: {replica:?}");
    }
    // A node the demo names is a node of the ring, and each is watched by its neighbours.
    let ring = admin.rows("SHOW RING").await?;
    ensure!(ring.len() == nodes.len());
    for row in &ring {
        ensure!(row.text("state")? == "alive" && row.text("successor")? != row.text("node")?, "{row:?}");
    }
    // As the issue writes it: psql, with the password in the environment of whoever runs it.
    let url = format!("postgresql://admin:admin@127.0.0.1:{}/quorate", cluster.nodes()[0].admin);
    let said = driver::psql(&url, "SHOW NODES;\n\\x\nSHOW DATABASES;\n", Duration::from_secs(20)).await?;
    ensure!(said.success && said.out.contains("phase|stable"), "{said:?}");
    let url = cluster.admin_url.clone();
    let said = driver::psql(&url, "SHOW RING;\n", Duration::from_secs(20)).await?;
    ensure!(said.success, "the demo's admin_url does not work: {said:?}");
    Ok(())
}

async fn doors(cluster: &Cluster) -> anyhow::Result<()> {
    let port = Admin::endpoint(cluster.nodes()[0].admin);
    expect_sqlstate(port.with_password("wrong").connect().await, "28P01", "a wrong password")?;
    let tenant = Endpoint::new(port.port, "demo", "demo", "quorate");
    expect_sqlstate(tenant.connect().await, "28P01", "a tenant's login at the admin port")?;
    Ok(())
}

async fn refusals(cluster: &Cluster) -> anyhow::Result<()> {
    let admin = cluster.admin().await?;
    let view = admin.database(DEMO_DATABASE).await?;
    let primary = view.primary()?.node.clone();
    let secondaries: Vec<String> = view.secondaries().map(|r| r.node.clone()).collect();
    let spare = cluster.nodes().iter().find(|n| n.name != primary && !secondaries.contains(&n.name));
    let spare = spare.context("a node without a replica")?.name.clone();
    let orders = [
        // mistyped
        ("SHOW NODEZ".to_owned(), "42601"),
        ("CREATE DATABASE".to_owned(), "42601"),
        ("DROP DATABASE demo.app NOW".to_owned(), "42601"),
        ("SWITCHOVER DATABASE demo.app TOO n1".to_owned(), "42601"),
        ("CREATE SERVER x ADMIN y PASSWORD".to_owned(), "42601"),
        ("FROBNICATE".to_owned(), "42601"),
        // unknown names
        ("CREATE DATABASE nobody.db".to_owned(), "42704"),
        ("DROP SERVER nobody".to_owned(), "42704"),
        ("DROP DATABASE demo.nothing".to_owned(), "3D000"),
        ("SWITCHOVER DATABASE demo.nothing".to_owned(), "3D000"),
        ("SWITCHOVER DATABASE demo.app TO n99".to_owned(), "42704"),
        (format!("MOVE REPLICA demo.app FROM n99 TO {spare}"), "42704"),
        (format!("MOVE REPLICA demo.app FROM {primary} TO n99"), "42704"),
        ("WAIT OPERATION op999999".to_owned(), "42704"),
        // names taken, and names that cannot be
        ("CREATE SERVER demo ADMIN x PASSWORD 'y'".to_owned(), "42710"),
        ("CREATE DATABASE demo.app".to_owned(), "42P04"),
        ("CREATE DATABASE demo.postgres".to_owned(), "42602"),
        ("CREATE SERVER other ADMIN quorate PASSWORD 'y'".to_owned(), "42602"),
        ("DROP SERVER demo".to_owned(), "2BP01"),
        // orders that would break the quorum, or its spread
        (format!("SWITCHOVER DATABASE demo.app TO {spare}"), "55000"),
        (format!("SWITCHOVER DATABASE demo.app TO {primary}"), "55000"),
        (format!("MOVE REPLICA demo.app FROM {primary} TO {spare}"), "55000"),
        (format!("MOVE REPLICA demo.app FROM {spare} TO {primary}"), "55000"),
        (format!("MOVE REPLICA demo.app FROM {} TO {}", secondaries[0], secondaries[1]), "55000"),
    ];
    let before = admin.map().await?;
    for (order, expected) in &orders {
        let (code, told) = admin.refused(order).await?;
        ensure!(code == *expected, "{order}: expected {expected}, got {told}");
        // The extended protocol refuses it as well.
        ensure!(
            admin.session.client.query(order.as_str(), &[]).await.is_err(),
            "{order}: not refused when prepared"
        );
    }
    let after = admin.map().await?;
    ensure!(before == after, "refused orders changed the map:\nbefore {before:#?}\nafter {after:#?}");
    Ok(())
}

async fn tenant(cluster: &Cluster) -> anyhow::Result<()> {
    let admin = cluster.admin().await?;
    admin.rows("CREATE SERVER acme ADMIN boss PASSWORD 'it''s secret'").await?;
    let begun = admin.rows("CREATE DATABASE acme.shop").await?;
    let operation = begun.first().context("CREATE DATABASE names no operation")?.text("operation")?;
    admin.session.take_notices();
    admin.wait_operation(&operation, OPERATION_LIMIT).await?;
    let notices = admin.session.take_notices();
    ensure!(
        !notices.is_empty() && notices.iter().all(|n| n.severity() == "NOTICE"),
        "no progress: {notices:?}"
    );
    eprintln!("{operation}: {}", notices.iter().map(|n| n.message()).collect::<Vec<_>>().join(" | "));
    let view = cluster.whole("acme.shop", 3, HEAL_LIMIT).await?;
    eprintln!("acme.shop on {:?}", view.replicas.iter().map(|r| &r.node).collect::<Vec<_>>());
    for node in cluster.nodes() {
        let shop = Endpoint::new(node.client, "boss", "it's secret", "shop");
        let session = shop.session().await?;
        session.run("CREATE TABLE IF NOT EXISTS goods (id int); INSERT INTO goods VALUES (1)").await?;
        // One tenant's login is nobody at another's.
        let elsewhere = Endpoint::new(node.client, "boss", "it's secret", "app");
        expect_sqlstate(elsewhere.connect().await, "28P01", "another tenant's login")?;
    }
    let kept = Endpoint::new(cluster.nodes()[0].client, "boss", "it's secret", "shop").session().await?;
    expect_sqlstate(
        admin.session.client.simple_query("DROP SERVER acme").await,
        "2BP01",
        "a server with databases",
    )?;
    admin.carry_out("DROP DATABASE acme.shop", OPERATION_LIMIT).await?;
    ensure!(kept.value("SELECT 1").await.is_err(), "a session outlived its database");
    for node in cluster.nodes() {
        let shop = Endpoint::new(node.client, "boss", "it's secret", "shop");
        wait::until(&format!("shop unknown at {}", node.name), Duration::from_secs(10), async || {
            Ok(expect_sqlstate(shop.connect().await, "3D000", "a dropped database")
                .map_err(|e| e.to_string()))
        })
        .await?;
    }
    for replica in &view.replicas {
        ensure!(!replica.data_directory.exists(), "{} is still there", replica.data_directory.display());
    }
    admin.rows("DROP SERVER acme").await?;
    let databases = admin.databases().await?;
    ensure!(databases.len() == 1 && databases[0].database == "app", "{databases:?}");
    Ok(())
}

async fn move_replica(cluster: &Cluster) -> anyhow::Result<()> {
    let before = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let held: BTreeSet<String> = before.replicas.iter().map(|r| r.node.clone()).collect();
    let to = cluster
        .nodes()
        .iter()
        .find(|n| !held.contains(&n.name))
        .context("a node without a replica")?
        .name
        .clone();
    let from = before.secondaries().next().context("a secondary")?.node.clone();
    let admin = cluster.admin().await?;
    admin.carry_out(&format!("MOVE REPLICA {DEMO_DATABASE} FROM {from} TO {to}"), OPERATION_LIMIT).await?;
    let after = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let now: BTreeSet<String> = after.replicas.iter().map(|r| r.node.clone()).collect();
    ensure!(now.contains(&to) && !now.contains(&from), "copies on {now:?} after a move from {from} to {to}");
    ensure!(
        after.primary()?.replica == before.primary()?.replica,
        "a move of a secondary changed the primary"
    );
    Ok(())
}

async fn health(cluster: &Cluster) -> anyhow::Result<()> {
    for node in cluster.nodes() {
        let (status, body) = driver::http_get(node.http, "/healthz").await?;
        ensure!(status == 200, "/healthz at {}: {status} {body}", node.name);
        let (status, body) = driver::http_get(node.http, "/metrics").await?;
        ensure!(
            status == 200 && body.contains("# TYPE quorate_"),
            "/metrics at {}: {status}\n{body}",
            node.name
        );
        let (status, _) = driver::http_get(node.http, "/nothing").await?;
        ensure!(status == 404, "/nothing at {}: {status}", node.name);
    }
    Ok(())
}
