//! Whether every copy of a database holds the same: asked of the instances themselves, past every proxy.

use crate::admin::{DatabaseView, ReplicaRow};
use crate::cluster::{Cluster, HEAL_LIMIT};
use crate::ledger::{Ledger, Verdict};
use crate::{DEMO_DATABASE, wait};
use anyhow::Context;
use std::time::Duration;
use tokio_postgres::{Config, NoTls};

/// For secondaries to replay what the primary has, once nobody writes.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(30);

/// Waits until all copies answer `sql` with the same text. Nobody may write meanwhile.
pub async fn agree(view: &DatabaseView, sql: &str) -> anyhow::Result<String> {
    wait::until("all copies hold the same", CATCH_UP_LIMIT, async || {
        let mut answers = Vec::new();
        for replica in &view.replicas {
            answers.push((replica.replica.clone(), ask(replica, &view.row.database, sql).await?));
        }
        let same = answers.windows(2).all(|pair| pair[0].1 == pair[1].1);
        Ok(match answers.first() {
            Some((_, answer)) if same => Ok(answer.clone()),
            _ => Err(answers),
        })
    })
    .await
}

/// The ledger's rows, as a count and a sum that no two different ledgers are likely to share.
pub async fn ledgers_agree(view: &DatabaseView) -> anyhow::Result<String> {
    agree(view, "SELECT count(*) || ' rows, hash ' || coalesce(sum(hashint8(client * 1000000000::bigint + seq)), 0) FROM ledger")
        .await
}

/// Ends a ledger: the database is whole, what clients were told is kept, and every copy holds the same.
pub async fn close(cluster: &Cluster, ledger: Ledger) -> anyhow::Result<Verdict> {
    let whole = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let verdict = ledger.end(&cluster.nodes()[0].app()).await?;
    eprintln!("{verdict}");
    verdict.kept()?;
    eprintln!("every copy: {}", ledgers_agree(&whole).await?);
    Ok(verdict)
}

/// One value of one copy.
pub async fn ask(replica: &ReplicaRow, database: &str, sql: &str) -> anyhow::Result<String> {
    let mut config = Config::new();
    config.host_path(&replica.socket).port(5432).user("quorate").dbname(database);
    let (client, connection) = config
        .connect(NoTls)
        .await
        .with_context(|| format!("{} at {}", replica.replica, replica.socket.display()))?;
    let driver = tokio::spawn(connection);
    let row = client.query_one(sql, &[]).await.with_context(|| replica.replica.clone())?;
    let answer = row.try_get::<_, String>(0)?;
    drop(client);
    let _ = driver.await;
    Ok(answer)
}
