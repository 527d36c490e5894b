//! What PostgreSQL does to who runs it (DESIGN §6), as far as no other file here shows it. Each says what would be without
//! the handling.

use super::fixture::*;
use crate::instance::{InstanceError, Limits, Process};
use rustix::process::{Pid, Signal, kill_process};
use std::time::{Duration, Instant};

/// A session whose commits wait for the quorum.
async fn waiting_session(instance: &crate::instance::Instance) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::Config::new()
        .host_path(&instance.paths().sockets)
        .user("quorate")
        .dbname("app")
        // An instance whose sync names are the sentinel's is read-only unless a session turns that off.
        .options("-c default_transaction_read_only=off")
        .connect(tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    client
}

/// One crashed backend makes a postmaster recover and take connections again: everybody would see commits that nobody
/// acknowledged. So it does not recover by itself, comes back as a standby, and passes no barrier without its quorum.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_was_not_acknowledged_is_not_shown_by_a_restart() {
    let world = World::new();
    let primary = world.primary(1).await;
    let app = connect(&primary, "app").await;
    app.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    let waiting = waiting_session(&primary).await;
    let commit = tokio::spawn(async move { waiting.batch_execute("INSERT INTO t VALUES (1)").await });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    eventually("the commit waits", || async { value(&app, waits).await == "1" }).await;
    assert_eq!(value(&app, "SELECT count(*) FROM t").await, "0");

    let backend: i32 = value(&app, "SELECT pg_backend_pid()").await.parse().unwrap();
    kill_process(Pid::from_raw(backend).unwrap(), Signal::KILL).unwrap();
    let state = wait_for(&primary, |state| !state.is_live()).await;
    assert!(matches!(state, Process::Exited { .. }), "{state:?}");
    assert!(commit.await.unwrap().is_err(), "nobody was told that it is safe");
    primary.start().await.unwrap();
    assert!(primary.progress().await.unwrap().in_recovery);
    primary.promote().await.unwrap();
    let app = connect(&primary, "app").await;
    assert_eq!(
        value(&app, "SELECT count(*) FROM t").await,
        "1",
        "there it is: the barrier has to come first"
    );
    let barrier = primary.barrier(Duration::from_millis(300)).await;
    assert!(matches!(barrier, Err(InstanceError::Timeout { .. })), "{barrier:?}");
}

/// A standby that lost its stream tries again after `wal_retrieve_retry_interval`: 5 s unless set.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_lost_its_stream_is_back_at_once() {
    let world = World::new();
    let primary = world.primary(1).await;
    let (standby, mut relay) = world.standby(2, &primary).await;
    for _ in 0..3 {
        caught_up(&standby, &primary).await;
        relay.cut();
        eventually("the stream has ended", || async { primary.replication().await.unwrap().is_empty() })
            .await;
        relay = Relay::open(&standby, &primary);
        let begin = Instant::now();
        eventually("it streams again", || async {
            primary.replication().await.unwrap().iter().any(|row| row.state == "streaming")
        })
        .await;
        println!("TIMING re-attached: {:.1} ms", begin.elapsed().as_secs_f64() * 1e3);
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    }
}

/// The slot of a replica that does not come back holds the log for it. Without a limit it fills the disk; and without a
/// look at its complaints, a replica that comes back after all asks for ever for log that is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_slot_does_not_fill_the_disk() {
    let mut world = World::new();
    world.limits = Limits {
        max_slot_wal_keep_size_mib: 32,
        wal_keep_size_mib: 0,
        max_wal_size_mib: 64,
        ..world.limits.clone()
    };
    let primary = world.primary(1).await;
    let (standby, relay) = world.standby(2, &primary).await;
    caught_up(&standby, &primary).await;
    assert!(!standby.is_log_gone().await);
    relay.cut();
    stop(&standby).await;
    let app = connect(&primary, "app").await;
    app.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    const SEGMENTS: u64 = 64;
    for _ in 0..SEGMENTS {
        app.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
        app.batch_execute("SELECT pg_switch_wal()").await.unwrap();
    }
    primary.checkpoint().await.unwrap();
    primary.checkpoint().await.unwrap();
    let status = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'r2'";
    assert_eq!(value(&app, status).await, "lost");
    let held: u64 = std::fs::read_dir(primary.paths().data.join("pg_wal"))
        .unwrap()
        .flatten()
        .filter_map(|file| file.metadata().ok())
        .filter(|meta| meta.is_file())
        .map(|meta| meta.len())
        .sum();
    let written = SEGMENTS * (crate::instance::wal::SEGMENT_MIB << 20);
    assert!(held < written / 2, "{held} bytes of {written} are held");
    let _relay = Relay::open(&standby, &primary);
    standby.start().await.unwrap();
    eventually("it asks in vain", || standby.is_log_gone()).await;
}

/// ALTER SYSTEM writes a file that wins over every other, and a base backup copies it: a standby that restores from an
/// archive may follow a timeline that is not its primary's.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_takes_no_configuration_and_no_archive_over() {
    let world = World::new();
    let primary = world.primary(1).await;
    let app = connect(&primary, "app").await;
    let asked = world.path().join("run/asked");
    let command = format!("ALTER SYSTEM SET restore_command = 'touch {}; false'", asked.display());
    app.batch_execute(&command).await.unwrap();
    let (standby, _relay) = world.standby(2, &primary).await;
    caught_up(&standby, &primary).await;
    let admin = connect(&standby, "postgres").await;
    assert_eq!(value(&admin, "SHOW restore_command").await, "");
    assert!(!asked.exists(), "the archive was asked");
}

/// What survives a promotion and what does not: users are told (README.md), and a prepared transaction needs the same
/// room at every copy, or the standby does not even start.
#[tokio::test(flavor = "multi_thread")]
async fn prepared_transactions_survive_a_promotion_and_unlogged_rows_do_not() {
    let world = World::new();
    let primary = world.primary(1).await;
    let (standby, relay) = world.standby(2, &primary).await;
    let app = connect(&primary, "app").await;
    app.batch_execute(
        "CREATE TABLE t (n int); CREATE UNLOGGED TABLE u AS SELECT 1 AS n; CREATE SEQUENCE s; SELECT nextval('s')",
    )
    .await
    .unwrap();
    app.batch_execute("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'in doubt'").await.unwrap();
    caught_up(&standby, &primary).await;
    relay.cut();
    stop(&primary).await;
    standby.position().await.unwrap();
    standby.promote().await.unwrap();
    let app = connect(&standby, "app").await;
    assert_eq!(value(&app, "SELECT string_agg(gid, ',') FROM pg_prepared_xacts").await, "in doubt");
    app.batch_execute("COMMIT PREPARED 'in doubt'").await.unwrap();
    assert_eq!(value(&app, "SELECT count(*) FROM t").await, "1");
    assert_eq!(value(&app, "SELECT count(*) FROM u").await, "0");
    let next: i64 = value(&app, "SELECT nextval('s')").await.parse().unwrap();
    assert!(next > 1, "a sequence skips and never goes back: {next}");
}

/// Whoever can make a function can bear the name of one of the server's.
#[tokio::test(flavor = "multi_thread")]
async fn the_daemons_statements_mean_the_servers_own_functions() {
    let world = World::new();
    let primary = world.primary(1).await;
    let admin = connect(&primary, "postgres").await;
    admin
        .batch_execute(
            "CREATE FUNCTION public.pg_is_in_recovery() RETURNS bool LANGUAGE sql AS 'SELECT true';
             ALTER ROLE quorate SET search_path = public, pg_catalog",
        )
        .await
        .unwrap();
    // With sessions that begin now.
    primary.inner.sessions.clear();
    assert!(!primary.progress().await.unwrap().in_recovery);
}
