//! What a primary promises about commits.

use super::fixture::*;
use crate::instance::InstanceError;
use crate::instance::commit::MAX_REIGNS;
use quorate_model::Epoch;
use std::time::Duration;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn a_barrier_that_nobody_acknowledges_fails_and_leaves_nothing() {
    let world = World::new();
    let primary = world.primary(1).await;
    let admin = connect(&primary, "postgres").await;
    let outcome = primary.barrier(Duration::from_millis(300)).await;
    assert!(matches!(outcome, Err(InstanceError::Timeout { .. })), "{outcome:?}");
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'quorate_barrier'";
    eventually("the waiting backend is gone", || async { value(&admin, waiting).await == "0" }).await;
}

/// What a barrier says whose backend is signalled by that function while it waits for its quorum.
async fn barrier_signalled_by(function: &str) -> Result<quorate_model::Lsn, InstanceError> {
    let world = World::new();
    let primary = world.primary(1).await;
    let admin = connect(&primary, "postgres").await;
    let waiter = tokio::spawn({
        let primary = primary.clone();
        async move { primary.barrier(WAIT).await }
    });
    let signal = format!(
        "SELECT coalesce(bool_or({function}(pid)), false) FROM pg_stat_activity
        WHERE application_name = 'quorate_barrier' AND wait_event = 'SyncRep'"
    );
    eventually(function, || async { value(&admin, &signal).await == "t" }).await;
    waiter.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_barrier_whose_wait_was_cancelled_is_in_doubt() {
    let outcome = barrier_signalled_by("pg_cancel_backend").await;
    assert!(matches!(outcome, Err(InstanceError::Doubt { .. })), "{outcome:?}");
}

/// A backend that is terminated in that wait has committed too, and can tell nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_barrier_whose_backend_was_terminated_is_no_success() {
    let outcome = barrier_signalled_by("pg_terminate_backend").await;
    assert!(outcome.is_err(), "{outcome:?}");
}

/// A position must not wait for an epoch row that waits for its quorum.
#[tokio::test(flavor = "multi_thread")]
async fn the_row_is_visible_while_its_barrier_waits() {
    let world = World::new();
    let primary = world.primary(1).await;
    let next = Epoch::new(0, 2, 0);
    let writer = tokio::spawn({
        let primary = primary.clone();
        async move { primary.write_epoch(next, Uuid::from_u128(2), WAIT).await }
    });
    eventually("the row is seen", || async { primary.position().await.unwrap().epoch == next }).await;
    assert!(!writer.is_finished());
    writer.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_follow_the_replicas() {
    let world = World::new();
    let primary = world.primary(1).await;
    let admin = connect(&primary, "postgres").await;
    let slots =
        "SELECT coalesce(string_agg(slot_name || (restart_lsn IS NOT NULL), ',' ORDER BY slot_name), '')
        FROM pg_replication_slots";
    admin.batch_execute("SELECT pg_create_physical_replication_slot('theirs')").await.unwrap();
    timed("ensure_slots", primary.ensure_slots(&["r2".to_owned(), "r3".to_owned()].into())).await.unwrap();
    assert_eq!(value(&admin, slots).await, "r2true,r3true,theirsfalse");
    primary.ensure_slots(&["r3".to_owned(), "r4".to_owned()].into()).await.unwrap();
    assert_eq!(value(&admin, slots).await, "r3true,r4true,theirsfalse");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_very_many_reigns_the_latest_are_kept() {
    let world = World::new();
    let primary = world.primary(1).await;
    let admin = connect(&primary, "postgres").await;
    let many = "SET synchronous_commit = local; INSERT INTO quorate.reigns SELECT 0, g, 1 FROM generate_series(2, 2000) g";
    admin.batch_execute(many).await.unwrap();
    for reign in [3000, 3001] {
        primary.write_epoch_alone(Epoch::new(0, reign, 0), Uuid::from_u128(2), WAIT).await.unwrap();
    }
    let rows = primary.promote().await.unwrap().rows;
    assert_eq!(rows.len(), MAX_REIGNS + 1);
    assert_eq!(rows.last().unwrap().0, Epoch::new(0, 3001, 0));
    assert_eq!(rows.first().unwrap().0, Epoch::new(0, 2000 - (MAX_REIGNS as u64 - 2), 0));
}

/// A slot that is not there when a standby has become primary makes the others wait for it; one that holds the log on a
/// standby, where nobody uses it, fills the disk.
#[tokio::test(flavor = "multi_thread")]
async fn slots_are_there_before_a_promotion_and_hold_nothing() {
    let world = World::new();
    let primary = world.primary(1).await;
    let (standby, relay) = world.standby(2, &primary).await;
    let names = ["r1".to_owned(), "r3".to_owned()].into();
    standby.ensure_slots(&names).await.unwrap();
    let slots =
        "SELECT coalesce(string_agg(slot_name || (restart_lsn IS NOT NULL), ',' ORDER BY slot_name), '')
        FROM pg_replication_slots WHERE slot_type = 'physical'";
    let admin = connect(&standby, "postgres").await;
    assert_eq!(value(&admin, slots).await, "r1false,r3false");
    // The former primary's own, from when it was one.
    relay.cut();
    primary.ensure_slots(&["r2".to_owned(), "r3".to_owned()].into()).await.unwrap();
    stop(&primary).await;
    primary.start().await.unwrap();
    let admin = connect(&primary, "postgres").await;
    assert_eq!(value(&admin, slots).await, "r2true,r3true");
    primary.ensure_slots(&["r2".to_owned(), "r3".to_owned()].into()).await.unwrap();
    assert_eq!(value(&admin, slots).await, "r2false,r3false");
}
