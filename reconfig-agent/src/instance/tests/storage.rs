//! Disks that fail, fill up or hang. See [`super::shim`].

use super::fixture::*;
use super::shim::Disk;
use crate::instance::{Process, StopMode};
use std::time::{Duration, Instant};

async fn write(client: &tokio_postgres::Client) {
    client.batch_execute("INSERT INTO t SELECT generate_series(1, 1000)").await.unwrap();
}

/// The flush may fail in the very stop that was ordered: its end looks like any other.
#[tokio::test(flavor = "multi_thread")]
async fn a_flush_that_fails_in_an_ordered_stop_counts_as_well() {
    let world = World::with_disks();
    let primary = world.primary(1).await;
    let app = connect(&primary, "app").await;
    app.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    write(&app).await;
    drop(app);
    let disk = Disk::fails(&primary);
    primary.stop(StopMode::Fast, WAIT).await.unwrap();
    drop(disk);
    assert!(primary.distrust().is_some());
}

/// What was flushed before a disk filled up is there. A copy that was thrown away for it, on every node that shares the
/// disk, would be thrown away for nothing: it waits for room, says nothing that it does not have, and goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_waited_out() {
    let world = World::with_disks();
    let primary = world.primary(1).await;
    let app = connect(&primary, "app").await;
    app.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    let (standby, relay) = world.standby(2, &primary).await;
    caught_up(&standby, &primary).await;
    let disk = Disk::is_full(&standby);
    write(&app).await;
    // In the middle of a segment the server ends itself; at the beginning of one only its walreceiver does.
    eventually("the standby finds its disk full", || async {
        std::fs::read_to_string(&standby.paths().log).unwrap().contains("No space left on device")
    })
    .await;
    let end = primary.position().await.unwrap().lsn;
    standby.stop(StopMode::Immediate, WAIT).await.unwrap();
    assert_eq!(standby.distrust(), None);
    drop(disk);
    relay.cut();
    standby.start().await.unwrap();
    assert!(standby.position().await.unwrap().lsn < end, "it does not claim what it could not write");
    let _relay = Relay::open(&standby, &primary);
    caught_up(&standby, &primary).await;
}

/// Queries are answered while the disk hangs, and every commit waits for ever. Without the probe of the log nobody would
/// notice.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_whose_log_does_not_get_to_the_disk_is_hung() {
    let world = World::with_disks();
    let primary = world.primary(1).await;
    let pid = primary.process().borrow().pid().unwrap();
    let app = connect(&primary, "app").await;
    app.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    // Written and not committed: nothing has to be flushed, and nothing is wrong.
    app.batch_execute("BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
    let mut process = primary.process();
    let quiet =
        tokio::time::timeout(Duration::from_secs(3), process.wait_for(|s| *s != Process::Running { pid }));
    assert!(quiet.await.is_err(), "an open transaction is no stall");
    app.batch_execute("COMMIT").await.unwrap();

    let disk = Disk::hangs(&primary);
    let begin = Instant::now();
    let commit = tokio::spawn(async move { write(&app).await });
    assert_eq!(wait_for(&primary, |s| *s == Process::Hung { pid }).await, Process::Hung { pid });
    println!("TIMING stalled log noticed: {:.1} ms", begin.elapsed().as_secs_f64() * 1e3);
    assert!(!commit.is_finished());
    let other = connect(&primary, "app").await;
    assert_eq!(value(&other, "SELECT 1").await, "1", "queries are answered all the while");
    drop(disk);
    commit.await.unwrap();
    wait_for(&primary, |s| *s == Process::Running { pid }).await;
}
