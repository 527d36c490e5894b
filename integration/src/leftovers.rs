//! What an operation must not leave behind: directories, slots and copies that the map does not know.

use crate::admin::{Admin, ReplicaRow};
use crate::cluster::{Cluster, Node};
use crate::sql::expect_sqlstate;
use crate::{copies, wait};
use anyhow::Context;
use std::collections::BTreeSet;
use std::time::Duration;

/// For nodes to delete what the map dropped.
const SWEEP_LIMIT: Duration = Duration::from_secs(30);
/// For the map to take an order while its leader is lost.
const BEGIN_LIMIT: Duration = Duration::from_secs(40);

/// Waits until every node holds exactly the copies that the map places there, and every primary has a slot for each
/// of its other copies and for nothing else.
pub async fn none(cluster: &Cluster) -> anyhow::Result<()> {
    wait::until("nothing is left behind", SWEEP_LIMIT, async || {
        let admin = cluster.admin().await?;
        let replicas = admin.replicas().await?;
        let mut wrong = directories(cluster, &replicas)?;
        for primary in replicas.iter().filter(|r| r.is_primary()) {
            wrong.extend(slots(primary, &replicas).await?);
        }
        Ok(if wrong.is_empty() { Ok(()) } else { Err(wrong) })
    })
    .await
}

fn directories(cluster: &Cluster, replicas: &[ReplicaRow]) -> anyhow::Result<Vec<String>> {
    let mut wrong = Vec::new();
    for node in cluster.nodes() {
        let expected: BTreeSet<String> =
            replicas.iter().filter(|r| r.node == node.name).map(|r| r.replica.clone()).collect();
        let mut found = BTreeSet::new();
        for entry in std::fs::read_dir(node.data_dir.join("replicas"))? {
            found.insert(entry?.file_name().to_string_lossy().into_owned());
        }
        if found != expected {
            wrong.push(format!("{} holds {found:?}, the map says {expected:?}", node.name));
        }
    }
    Ok(wrong)
}

async fn slots(primary: &ReplicaRow, replicas: &[ReplicaRow]) -> anyhow::Result<Option<String>> {
    const SLOTS: &str = "SELECT coalesce(string_agg(slot_name, ',' ORDER BY slot_name), '') \
        FROM pg_replication_slots WHERE NOT temporary";
    let found = copies::ask(primary, "postgres", SLOTS).await?;
    let found: BTreeSet<String> = found.split(',').filter(|s| !s.is_empty()).map(str::to_owned).collect();
    let others = replicas.iter().filter(|r| r.server == primary.server && r.database == primary.database);
    let expected: BTreeSet<String> =
        others.filter(|r| r.replica != primary.replica).map(|r| r.replica.clone()).collect();
    Ok((found != expected).then(|| format!("{} has slots {found:?}, not {expected:?}", primary.replica)))
}

/// The operations of a database as SHOW OPERATIONS tells them, newest last.
pub async fn operation(admin: &Admin, id: &str) -> anyhow::Result<crate::admin::Row> {
    let rows = admin.rows("SHOW OPERATIONS").await?;
    let row = rows.into_iter().find(|r| r.text("operation").is_ok_and(|o| o == id));
    row.ok_or_else(|| anyhow::anyhow!("{id} is not in SHOW OPERATIONS"))
}

/// Gives an order that begins an operation, by whichever of these nodes answers, again and again until one does: its
/// key makes sure that it begins one operation only. Names the operation.
pub async fn begin(nodes: &[Node], order: &str, key: &str) -> anyhow::Result<String> {
    let order = format!("{order} KEY '{key}'");
    wait::until(&order, BEGIN_LIMIT, async || {
        let begun = Admin::open(nodes).await?.rows(&order).await?;
        Ok(begun.first().map(|row| row.text("operation")).transpose()?.ok_or("no operation"))
    })
    .await
}

/// Takes an operation back, and waits until it has ended so.
pub async fn take_back(admin: &Admin, operation: &str, limit: Duration) -> anyhow::Result<()> {
    admin.rows(&format!("CANCEL OPERATION {operation}")).await?;
    ended_cancelled(admin, operation, limit).await
}

/// Waits for the end of an operation that was cancelled.
pub async fn ended_cancelled(admin: &Admin, operation: &str, limit: Duration) -> anyhow::Result<()> {
    let wait = format!("WAIT OPERATION {operation}");
    let waited = tokio::time::timeout(limit, admin.session.client.simple_query(&wait)).await;
    let waited = waited.with_context(|| format!("{operation} does not end"))?;
    expect_sqlstate(waited, "57014", &wait).map(drop)
}
