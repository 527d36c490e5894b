//! Promise: a former primary whose log went on beyond the history comes back as the same replica, rewound, without
//! what nobody was told of; and one whose rewind does not end is not trusted, but flattened and built anew.

use anyhow::{Context, ensure};
use quorate_integration::admin::{DatabaseView, ReplicaRow};
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::{Cluster, DEMO_DATABASE, Options, copies, leftovers, nemesis, wait, with_cluster};
use std::path::PathBuf;
use std::time::Duration;

/// More log than the sockets between the nodes hold: the rest is on the primary's disk alone.
const TAIL: &str = "INSERT INTO tail SELECT n, repeat('x', 500) FROM generate_series(1, 60000) n";
const TAIL_BYTES: u64 = 24 << 20;

#[test]
fn a_former_primary_is_rewound_and_votes_again() {
    with_cluster(Options::default(), async |cluster| {
        let app = cluster.nodes()[0].app();
        app.session().await?.run("CREATE TABLE tail (n int, filler text); CREATE TABLE kept (n int)").await?;

        let former = lose_with_a_tail(cluster).await?;
        app.session().await?.run("INSERT INTO kept VALUES (1)").await?;
        let after = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        eprintln!("{} was primary on {}; now {:?}", former.replica, former.node, after.replicas);
        let back = after.replicas.iter().find(|r| r.replica == former.replica);
        let back = back.context("the former primary was rebuilt under another id")?;
        ensure!(back.role == "secondary" && back.node == former.node, "it does not vote again: {back:?}");
        for (what, part) in [("divergent", "it is rewound"), ("rewound", "is past its floor")] {
            let events = cluster.admin().await?.rows("SHOW EVENTS").await?;
            let told = events.iter().any(|e| e.text("reason").is_ok_and(|r| r.contains(part)));
            ensure!(told, "no event tells that it was {what}: {events:?}");
        }
        agree(&after, "0 of the tail, 1 kept").await?;
        flattened(cluster).await
    });
}

/// One whose rewind is interrupted is trusted no more: it is flattened, and a copy built under another id.
async fn flattened(cluster: &Cluster) -> anyhow::Result<()> {
    let primary = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?.primary()?.clone();
    let target = PathBuf::from(&primary.data_directory);
    let interrupting =
        tokio::task::spawn_blocking(move || nemesis::kill_as_it_starts("pg_rewind", &target, HEAL_LIMIT));
    let former = lose_with_a_tail(cluster).await?;
    ensure!(former.replica == primary.replica, "{former:?} was primary, not {primary:?}");
    cluster.nodes()[0].app().session().await?.run("INSERT INTO kept VALUES (2)").await?;
    let harm = interrupting.await??;
    eprintln!("killed: {:?}", harm.victims);
    let after = wait::until("another copy in its place", HEAL_LIMIT, async || {
        let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        let is_there = view.replicas.iter().any(|r| r.replica == former.replica);
        Ok(if is_there { Err(view) } else { Ok(view) })
    })
    .await?;
    let kept = after.replicas.iter().filter(|r| r.replica != former.replica).count();
    ensure!(kept == 3 && after.replicas.len() == 3, "{:?}", after.replicas);
    agree(&after, "0 of the tail, 2 kept").await?;
    leftovers::none(cluster).await
}

/// The primary goes on alone for a while and is then lost, with log that nobody else has. Gives what it was.
async fn lose_with_a_tail(cluster: &Cluster) -> anyhow::Result<ReplicaRow> {
    let before = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
    let former = before.primary()?.clone();
    let stopped = nemesis::stop_instances(before.secondaries())?;
    let writer = cluster.node(&former.node)?.app().session().await?;
    let from = written(cluster, &former.replica).await?;
    let commit = tokio::spawn(async move { writer.run(TAIL).await });
    wait::until("the tail is on the primary's disk", Duration::from_secs(10), async || {
        let to = written(cluster, &former.replica).await?;
        Ok(if to.saturating_sub(from) >= TAIL_BYTES { Ok(()) } else { Err(to.saturating_sub(from)) })
    })
    .await?;
    ensure!(!commit.is_finished(), "a commit was answered without a secondary");
    ensure!(stopped.broken().is_empty(), "the pause did not hold: {:?}", stopped.broken());
    nemesis::kill_postmaster(&former)?;
    stopped.undo()?;
    ensure!(commit.await?.is_err(), "a commit that nobody acknowledged was called a success");
    cluster.failed_over(DEMO_DATABASE, &former.node, HEAL_LIMIT).await?;
    Ok(former)
}

async fn agree(view: &DatabaseView, expected: &str) -> anyhow::Result<()> {
    let held = "SELECT (SELECT count(*) FROM tail) || ' of the tail, ' || count(*) || ' kept' FROM kept";
    let held = copies::agree(view, held).await?;
    eprintln!("every copy: {held}");
    ensure!(held == expected, "every copy holds {held}");
    Ok(())
}

/// How far the replica's log is flushed, bytes.
async fn written(cluster: &Cluster, replica: &str) -> anyhow::Result<u64> {
    let rows = cluster.admin().await?.replicas().await?;
    let row = rows.into_iter().find(|r| r.replica == replica).context("the replica is not shown")?;
    let (high, low) = row.flush_lsn.split_once('/').context("not a position")?;
    Ok((u64::from_str_radix(high, 16)? << 32) + u64::from_str_radix(low, 16)?)
}
