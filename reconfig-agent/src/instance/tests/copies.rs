//! Making copies, and where their logs end.

use super::fixture::*;
use crate::instance::{InstanceError, Paths, SOCKET_NAME, StopMode};
use quorate_model::configuration::SENTINEL_SYNC_NAMES;
use quorate_model::{Epoch, Lsn, ReplicaId, Timeline};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_postgres::Client;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn bootstrap_makes_a_primary_and_closes_it() {
    let world = World::new();
    let primary = world.instance(1);
    timed("bootstrap", primary.bootstrap(&wanted("ANY 1 (r2, r3)"))).await.unwrap();
    assert!(primary.is_complete());
    let again = primary.bootstrap(&wanted("ANY 1 (r2, r3)")).await;
    assert!(matches!(again, Err(InstanceError::AlreadyComplete)), "{again:?}");

    let admin = connect(&primary, "postgres").await;
    let ask = async |sql: &str| value(&admin, sql).await;
    assert_eq!(ask("SHOW data_checksums").await, "on");
    assert_eq!(ask("SHOW wal_log_hints").await, "on");
    assert_eq!(ask("SHOW synchronous_standby_names").await, "ANY 1 (r2, r3)");
    assert_eq!(ask("SELECT pg_is_in_recovery()").await, "f");
    let row = "SELECT data_loss || '.' || primary_epoch || '.' || config FROM quorate.epoch";
    assert_eq!(ask(row).await, EPOCH.to_string());
    let role = r#"SELECT rolpassword FROM pg_authid WHERE rolname = 'demo"s' AND rolcanlogin
        AND NOT rolsuper AND NOT rolreplication AND NOT rolcreatedb"#;
    assert_eq!(ask(role).await, VERIFIER);
    let open = "SELECT count(*) FROM pg_database WHERE datallowconn AND datname <> 'template0'
        AND has_database_privilege('public', oid, 'CONNECT')";
    assert_eq!(ask(open).await, "0", "no database lets everybody in");
    let owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'app'";
    assert_eq!(ask(owner).await, "demo\"s");

    let position = primary.position().await.unwrap();
    assert_eq!((position.epoch, position.timeline), (EPOCH, Timeline(1)));
    let log = std::fs::read_to_string(&primary.paths().log).unwrap();
    assert!(!log.contains("SCRAM"), "{log}");
    timed("stop fast", primary.stop(StopMode::Fast, WAIT)).await.unwrap();
    timed("destroy", primary.destroy()).await.unwrap();
    assert!(!primary.paths().root.exists());
    primary.destroy().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn reserved_names_are_refused_before_anything_is_touched() {
    let world = World::new();
    let instance = world.instance(1);
    let mut bad = wanted(SENTINEL_SYNC_NAMES);
    bad.login = "quorate".to_owned();
    assert!(matches!(instance.bootstrap(&bad).await, Err(InstanceError::Reserved { .. })));
    assert!(!instance.paths().root.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_streams_and_ends_where_the_primary_does() {
    let world = World::new();
    let primary = world.primary(1).await;
    let standby = world.instance(2);
    let before = standby.start().await;
    assert!(matches!(before, Err(InstanceError::Incomplete)), "{before:?}");
    timed("seed", standby.seed(&primary.paths().sockets)).await.unwrap();
    assert!(standby.is_complete());
    primary.ensure_slots(&["r2".to_owned()].into()).await.unwrap();
    let relay = Relay::open(&standby, &primary);
    timed("start (seeded)", standby.start()).await.unwrap();

    let app = connect(&primary, "app").await;
    app.batch_execute("CREATE TABLE t AS SELECT generate_series(1, 10000) n").await.unwrap();
    caught_up(&standby, &primary).await;
    let rows = primary.replication().await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!((rows[0].name.as_str(), rows[0].state.as_str()), ("r2", "streaming"));

    relay.cut();
    let end = timed("position (just cut)", standby.position()).await.unwrap();
    let origin = timed("position (primary)", primary.position()).await.unwrap();
    assert_eq!(end.timeline, origin.timeline);
    assert_eq!(end.epoch, EPOCH);
    assert!(end.lsn <= origin.lsn);
    assert_eq!(standby.progress().await.unwrap().replay_lsn, Some(end.lsn));
    let again = timed("position (again)", standby.position()).await.unwrap();
    assert_eq!(again, end);

    // A restart with nobody to stream from ends at the same place, however it was stopped.
    for mode in [StopMode::Fast, StopMode::Immediate] {
        standby.stop(mode, WAIT).await.unwrap();
        timed("start (stopped before)", standby.start()).await.unwrap();
        let restarted = timed("position (after a restart)", standby.position()).await.unwrap();
        assert_eq!(restarted, end);
    }
    let progress = standby.progress().await.unwrap();
    assert!(progress.in_recovery);
    assert_eq!(progress.timeline, Timeline(1));
}

/// The stream is cut anywhere, inside records too: what the standby says is where its promotion goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_ends_inside_a_record_ends_before_it() {
    let world = World::new();
    let primary = world.primary(1).await;
    let app = connect(&primary, "app").await;
    app.batch_execute("CREATE TABLE t (n int, filler text)").await.unwrap();
    app.batch_execute("ALTER TABLE t ALTER filler SET STORAGE EXTERNAL").await.unwrap();
    let (standby, relay) = world.standby(2, &primary).await;
    caught_up(&standby, &primary).await;
    let mut relay = Some(relay);
    let mut inside = 0;
    let mut end = Lsn(0);
    for round in 0..12u64 {
        // Records of about 8 kB each, sent in chunks that end at page edges.
        relay.as_ref().unwrap().budget.store(150_000 + round * 20_011, Ordering::SeqCst);
        app.batch_execute("INSERT INTO t SELECT n, repeat('x', 7900) FROM generate_series(1, 60) n")
            .await
            .unwrap();
        eventually("the budget is spent", || async {
            relay.as_ref().unwrap().budget.load(Ordering::SeqCst) == 0
        })
        .await;
        relay.take().unwrap().cut();
        end = standby.position().await.unwrap().lsn;
        let progress = standby.progress().await.unwrap();
        assert_eq!(progress.replay_lsn, Some(end), "replay does not go on");
        inside += u32::from(progress.receive_lsn > Some(end));
        if round % 4 == 3 {
            standby.stop(StopMode::Immediate, WAIT).await.unwrap();
            standby.start().await.unwrap();
            assert_eq!(standby.position().await.unwrap().lsn, end, "and a restart changes nothing");
        }
        if round < 11 {
            relay = Some(Relay::open(&standby, &primary));
            caught_up(&standby, &primary).await;
        }
    }
    println!("{inside} of 12 cuts were inside a record");
    assert!(inside > 0, "the test cut at no record's middle");
    let promoted = standby.promote().await.unwrap();
    assert_eq!(promoted.lsn, end);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_given_up_and_made_again() {
    let world = World::new();
    let primary = world.primary(1).await;
    let standby = world.instance(2);
    standby.paths().prepare(&world.user).unwrap();
    // Not a byte comes through: the copy hangs until it is dropped.
    let relay = Relay::open(&standby, &primary);
    relay.budget.store(3000, Ordering::SeqCst);
    let tunnel = standby.paths().tunnel.clone();
    let given_up = tokio::time::timeout(Duration::from_millis(300), standby.seed(&tunnel)).await;
    assert!(!matches!(given_up, Ok(Ok(()))));
    assert!(!standby.is_complete());
    relay.cut();
    let _relay = Relay::open(&standby, &primary);
    standby.seed(&tunnel).await.unwrap();
    primary.ensure_slots(&["r2".to_owned()].into()).await.unwrap();
    standby.start().await.unwrap();
    caught_up(&standby, &primary).await;
    let done = *standby.seed_progress().borrow();
    assert!(done.done_bytes > 0 && done.total_bytes >= done.done_bytes, "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_in_use_is_dropped_once_it_is_not() {
    let world = World::new();
    let primary = world.primary(1).await;
    let (standby, relay) = world.standby(2, &primary).await;
    caught_up(&standby, &primary).await;
    let nobody = BTreeSet::new();
    let admin = connect(&primary, "postgres").await;
    let slots = async || value(&admin, "SELECT count(*)::text FROM pg_replication_slots").await;
    assert!(!primary.ensure_slots(&nobody).await.unwrap(), "it is said that one is left");
    assert_eq!(slots().await, "1");
    relay.cut();
    eventually("the walsender ends", async || primary.ensure_slots(&nobody).await.unwrap()).await;
    assert_eq!(slots().await, "0");
}

/// Two standbys: one is promoted and takes writes that the other acknowledges.
#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_commits_with_the_other() {
    let world = World::new();
    let primary = world.primary(1).await;
    let (first, relay1) = world.standby(2, &primary).await;
    let (second, relay2) = world.standby(3, &primary).await;
    caught_up(&first, &primary).await;
    caught_up(&second, &primary).await;
    let admin = connect(&primary, "postgres").await;
    // One transaction has an id and has not ended when the primary is lost; a later one has.
    let open = connect(&primary, "postgres").await;
    let id = async |client: &Client| {
        value(client, "SELECT pg_current_xact_id()::text").await.parse::<i64>().unwrap()
    };
    open.batch_execute("BEGIN; CREATE TABLE unfinished (a int)").await.unwrap();
    let unfinished = id(&open).await;
    admin.batch_execute("SET synchronous_commit = local; BEGIN; CREATE TABLE ended (a int)").await.unwrap();
    let ended = id(&admin).await;
    admin.batch_execute("COMMIT").await.unwrap();
    caught_up(&first, &primary).await;
    caught_up(&second, &primary).await;
    relay1.cut();
    relay2.cut();
    let never_shipped = id(&admin).await;
    let end = first.position().await.unwrap();

    first.ensure_slots(&["r1".to_owned(), "r3".to_owned()].into()).await.unwrap();
    timed("set_sync_names (standby)", first.set_sync_names("ANY 1 (r3)")).await.unwrap();
    let promoted = timed("promote", first.promote()).await.unwrap();
    assert_eq!(promoted.timeline, Timeline(2));
    assert_eq!(promoted.history, vec![(Timeline(1), end.lsn)]);
    assert_eq!(promoted.lsn, end.lsn);
    assert_eq!(first.promote().await.unwrap(), promoted, "asked again, it tells the same");

    // Alone it cannot pass the barrier; its position shows the row nevertheless.
    let epoch = Epoch::new(0, 2, 0);
    let uuid = Uuid::from_u128(2);
    let alone = first.write_epoch(epoch, uuid, Duration::from_millis(300)).await;
    assert!(matches!(alone, Err(InstanceError::Timeout { .. })), "{alone:?}");
    assert_eq!(first.position().await.unwrap().epoch, epoch);
    let rows = first.promote().await.unwrap().rows;
    assert_eq!(rows, vec![(EPOCH, Timeline(1)), (epoch, Timeline(2))]);

    // Where ids are handed out anew is written down once, with the first row of the timeline.
    let admin = connect(&first, "postgres").await;
    let horizons = "SELECT string_agg(concat(primary_epoch, ':', horizon), ',' ORDER BY primary_epoch) FROM quorate.reigns";
    let told = value(&admin, horizons).await;
    let horizon: i64 = told.strip_prefix("1:,2:").unwrap().parse().unwrap();
    assert!(horizon > ended && horizon <= never_shipped, "{ended}, {never_shipped}: {told}");
    let fate = async |id: i64| value(&admin, &format!("SELECT pg_xact_status('{id}')")).await;
    assert_eq!((&*fate(unfinished).await, &*fate(ended).await), ("aborted", "committed"));
    first.write_epoch_alone(Epoch::new(0, 3, 0), uuid, WAIT).await.unwrap();
    assert_eq!(value(&admin, horizons).await, format!("{told},3:"));
    let epoch = Epoch::new(0, 3, 0);

    let _relay = Relay::open(&second, &first);
    let written = timed("attach + write_epoch", first.write_epoch(epoch, uuid, WAIT)).await.unwrap();
    timed("write_epoch (again)", first.write_epoch(epoch, uuid, WAIT)).await.unwrap();
    timed("barrier", first.barrier(WAIT)).await.unwrap();
    let back = first.write_epoch(EPOCH, uuid, WAIT).await;
    assert!(matches!(back, Err(InstanceError::EpochWentBack { .. })), "{back:?}");
    _relay.cut();
    let follower = second.position().await.unwrap();
    assert_eq!((follower.epoch, follower.timeline), (epoch, Timeline(2)));
    assert!(follower.lsn >= written);
    assert_eq!(second.progress().await.unwrap().timeline, Timeline(2));

    // A new name takes effect while it runs.
    timed("set_sync_names (primary)", first.set_sync_names("ANY 1 (r1, r3)")).await.unwrap();
    assert!(matches!(first.set_sync_names("").await, Err(InstanceError::BadSyncNames(_))));
    stop(&primary).await;
}

/// The tunnel keeps a walreceiver waiting while there is no primary: neither a position nor a promotion waits too.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_held_is_in_nobodys_way() {
    let world = World::new();
    let primary = world.primary(1).await;
    let (standby, relay) = world.standby(2, &primary).await;
    caught_up(&standby, &primary).await;
    relay.cut();
    let listener = tokio::net::UnixListener::bind(standby.paths().tunnel.join(SOCKET_NAME)).unwrap();
    let everybody = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(standby.paths().tunnel.join(SOCKET_NAME), everybody).unwrap();
    let (_held, _) = tokio::time::timeout(WAIT, listener.accept()).await.unwrap().unwrap();
    let end = timed("position (stream held)", standby.position()).await.unwrap();
    assert_eq!(standby.position().await.unwrap(), end);
    let promoted = timed("promote (stream held)", standby.promote()).await.unwrap();
    assert_eq!(promoted.lsn, end.lsn);
}

/// The history is in files, and no record bears it: the replica says that it left its timeline.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_that_was_begun_is_not_forgotten() {
    let world = World::new();
    let primary = world.primary(1).await;
    let (standby, relay) = world.standby(2, &primary).await;
    caught_up(&standby, &primary).await;
    relay.cut();
    assert_eq!(standby.position().await.unwrap().timeline, Timeline(1));
    std::fs::write(&standby.paths().promoting, "").unwrap();
    let history = standby.paths().data.join("pg_wal/00000002.history");
    std::fs::write(history, "1\t0/1\tx\n").unwrap();
    assert_eq!(standby.position().await.unwrap().timeline, Timeline(2));
}

#[test]
fn a_directory_that_blocks_is_named() {
    let world = World::new();
    if world.user.switch().is_none() {
        return;
    }
    let closed = world.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    let paths = Paths::new(&closed.join("x"), &world.path().join("run"), ReplicaId(1)).unwrap();
    match paths.prepare(&world.user) {
        Err(InstanceError::Blocked { directory, .. }) => {
            assert_eq!(directory, closed.canonicalize().unwrap());
        }
        other => panic!("{other:?}"),
    }
}
