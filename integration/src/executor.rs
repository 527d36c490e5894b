//! Losing whoever carries out an operation, and seeing the operation through all the same.

use crate::admin::{Admin, Row};
use crate::cluster::{Cluster, Node};
use crate::{failpoints, leftovers};
use anyhow::{Context, ensure};
use std::time::{Duration, Instant};

/// For an operation to end, its executor's loss included.
pub const OPERATION_LIMIT: Duration = Duration::from_secs(90);

/// Gives the order, has the leader die at `point` of it, starts that node again as soon as another leads, and waits until
/// the operation has succeeded. The nodes in `lost` do not run; with some of them lost the others may have no majority,
/// and the dead one is started at once. Gives the operation as it ended.
pub async fn lose(cluster: &mut Cluster, lost: &[String], order: &str, point: &str) -> anyhow::Result<Row> {
    let began = Instant::now();
    let alive: Vec<Node> = cluster.nodes().iter().filter(|n| !lost.contains(&n.name)).cloned().collect();
    let leader = failpoints::leader_of(&alive).await?;
    let others: Vec<Node> = alive.into_iter().filter(|n| n.name != leader.name).collect();
    failpoints::arm(&leader, point).await?;
    // The same order may be given for another point, or by another test of this one.
    let key = format!("{order} {point} {}", leader.pid);
    // At the same time: without the leader there may be nobody who can say that the order was taken.
    let (operation, died) = tokio::try_join!(leftovers::begin(&others, order, &key), async {
        failpoints::died(cluster, &leader, point).await.with_context(|| order.to_owned())?;
        let died = Instant::now();
        if lost.is_empty() {
            failpoints::leader_of(&others).await?;
        }
        cluster.start_node(&leader.name).await?;
        anyhow::Ok(died)
    })?;
    let admin = Admin::open(&others).await?;
    let ended = admin.wait_operation(&operation, OPERATION_LIMIT).await;
    let row = leftovers::operation(&admin, &operation).await?;
    ended.with_context(|| format!("{order}, lost at {point}: {row:?}"))?;
    let attempts = row.number::<u32>("attempt")?.unwrap_or(0);
    eprintln!(
        "{point}: {} died after {:.1} s; {order}: done {:.1} s later, in attempt {attempts}, by {}",
        leader.name,
        died.duration_since(began).as_secs_f64(),
        died.elapsed().as_secs_f64(),
        row.text("owner")?
    );
    let is_claimed_once = point.ends_with("before_claim") || point.ends_with("after_end");
    ensure!(attempts >= if is_claimed_once { 1 } else { 2 }, "nobody took it over: {row:?}");
    Ok(row)
}
