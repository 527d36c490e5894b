//! Disks that fail, fill up or hang. See [`super::shim`].

use super::fixture::*;
use super::shim::Disk;
use crate::instance::{InstanceError, Process, StopMode};
use std::time::{Duration, Instant};

async fn write(client: &tokio_postgres::Client) {
    client.batch_execute("INSERT INTO t SELECT generate_series(1, 1000)").await.unwrap();
}

/// The kernel may have dropped what could not be flushed, and the next flush reports success: a standby that was started
/// again would acknowledge log that is not on its disk. So it is marked as lost, for this daemon and the next.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_whose_flush_fails_is_never_started_again() {
    let world = World::with_disks();
    let primary = world.primary(1).await;
    let app = connect(&primary, "app").await;
    app.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    let (standby, _relay) = world.standby(2, &primary).await;
    // Into the middle of a segment: one that cannot even be begun ends the walreceiver alone, and nothing was promised of it.
    write(&app).await;
    caught_up(&standby, &primary).await;
    let disk = Disk::fails(&standby);
    write(&app).await;
    let state = wait_for(&standby, |state| !state.is_live()).await;
    assert!(matches!(&state, Process::Exited { reason, .. } if reason.contains("could not f")), "{state:?}");
    // The disk is well again, which proves nothing.
    drop(disk);
    for handle in [standby.clone(), world.instance(2)] {
        assert!(handle.distrust().is_some());
        let started = handle.start().await;
        assert!(matches!(started, Err(InstanceError::Distrusted(_))), "{started:?}");
    }
    // Its place is taken by a copy under another id; of this one nothing is left.
    standby.destroy().await.unwrap();
    assert!(!standby.paths().root.exists());
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
