//! A log that ends inside a record which goes on in the next segment, and a primary that goes on from before that record.

use super::fixture::*;
use crate::instance::position::segments;
use crate::instance::wal::{PAGE_BYTES, SEGMENT_MIB};
use crate::instance::{Instance, InstanceError, Process};
use quorate_model::{Epoch, Lsn, Timeline};
use std::os::unix::fs::FileExt;
use std::time::Duration;
use uuid::Uuid;

const SEGMENT_BYTES: u64 = SEGMENT_MIB << 20;
/// What a walsender sends at once (`MAX_SEND_SIZE`).
const SENT_BYTES: u64 = 128 << 10;

/// Two standbys, the second in the place of whoever follows the first once that is primary. The log of both goes on for so
/// many bytes behind the page in which its last record begins, or to the end of the segment, and the record is longer than
/// that. The former primary is gone.
async fn torn(world: &World, behind: u64) -> (Instance, Instance, Lsn) {
    let primary = world.primary(1).await;
    let (candidate, to_candidate) = world.standby(2, &primary).await;
    let (follower, to_follower) = world.standby(3, &primary).await;
    let app = connect(&primary, "app").await;
    app.batch_execute("CHECKPOINT; SELECT pg_switch_wal()").await.unwrap();
    app.batch_execute("CREATE TABLE t AS SELECT 1 AS n").await.unwrap();
    for standby in [&candidate, &follower] {
        caught_up(standby, &primary).await;
    }
    to_candidate.cut();
    to_follower.cut();
    let begin = candidate.position().await.unwrap().lsn;
    for standby in [&candidate, &follower] {
        stop(standby).await;
    }
    // A record longer than a segment, so that it goes on in the next wherever it begins.
    let long = format!("SELECT pg_logical_emit_message(false, 'test', repeat('x', {}))", SEGMENT_BYTES + 1);
    app.batch_execute(&format!("{long}; INSERT INTO t VALUES (2)")).await.unwrap();
    stop(&primary).await;
    let pg_wal = |instance: &Instance| instance.paths().data.join("pg_wal");
    let log = segments(&pg_wal(&primary)).unwrap();
    let name = log.name(Timeline(1), begin);
    for standby in [&candidate, &follower] {
        std::fs::copy(pg_wal(&primary).join(&name), pg_wal(standby).join(&name)).unwrap();
        let next = log.name(Timeline(1), Lsn(begin.0 + SEGMENT_BYTES));
        let _ = std::fs::remove_file(pg_wal(standby).join(next));
        let held = (log.offset(begin).next_multiple_of(PAGE_BYTES) + behind).min(SEGMENT_BYTES);
        let file = std::fs::OpenOptions::new().write(true).open(pg_wal(standby).join(&name)).unwrap();
        file.write_all_at(&vec![0; (SEGMENT_BYTES - held) as usize], held).unwrap();
        standby.start().await.unwrap();
    }
    let end = candidate.position().await.unwrap().lsn;
    assert_eq!(follower.position().await.unwrap().lsn, end);
    assert_eq!(log.name(Timeline(1), end), name, "the record did not become whole");
    candidate.ensure_slots(&world.slots()).await.unwrap();
    candidate.set_sync_names("ANY 1 (r3)").await.unwrap();
    assert_eq!(candidate.promote().await.unwrap().lsn, end, "the history goes on before the record");
    (candidate, follower, end)
}

/// It asks for the log from the segment in which its record goes on, and the new primary is not there yet. It would never
/// be: what writes waits for this standby.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_whose_log_ends_inside_a_record_follows_who_goes_on_before_it() {
    let world = World::new();
    let (primary, standby, end) = torn(&world, SEGMENT_BYTES).await;
    let barrier = async |epoch| {
        let limit = Duration::from_secs(3);
        primary.write_epoch(Epoch::new(0, epoch, 0), Uuid::from_u128(2), limit).await
    };
    assert!(standby.is_torn(end).await.unwrap());
    let relay = Relay::open(&standby, &primary);
    let refused = barrier(2).await;
    assert!(matches!(refused, Err(InstanceError::Timeout { .. })), "PostgreSQL copes with it: {refused:?}");
    relay.cut();

    timed("taking it off", standby.take_torn_off(end)).await.unwrap();
    standby.start().await.unwrap();
    assert_eq!(standby.position().await.unwrap().lsn, end, "nothing that was whole is gone");
    assert!(!standby.is_torn(end).await.unwrap());
    let _relay = Relay::open(&standby, &primary);
    barrier(3).await.unwrap();
    caught_up(&standby, &primary).await;
    let app = connect(&standby, "app").await;
    assert_eq!(value(&app, "SELECT sum(n) FROM t").await, "1");
}

/// In the same segment PostgreSQL asks from before the fork, finds that its record does not go on, and reads it anew: what it
/// acknowledges it has, and it is found.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_standby_acknowledged_in_the_place_of_a_torn_record_is_found() {
    let world = World::new();
    let (primary, standby, end) = torn(&world, SENT_BYTES).await;
    assert!(!standby.is_torn(end).await.unwrap());
    let relay = Relay::open(&standby, &primary);
    let epoch = Epoch::new(0, 2, 0);
    let passed = primary.write_epoch(epoch, Uuid::from_u128(2), WAIT).await.unwrap();
    stop(&primary).await;
    relay.cut();
    let position = standby.position().await.unwrap();
    assert!(position.lsn >= passed, "{position:?} is before {passed}");
    assert_eq!((position.epoch, position.timeline), (epoch, Timeline(2)));
}

/// Why it may not be waited for that the new primary comes there: the standby streams from behind a hole, flushes that, and
/// ends when its record does not go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_torn_standby_that_streams_ends_before_a_hole() {
    let world = World::new();
    let (primary, standby, end) = torn(&world, SEGMENT_BYTES).await;
    let app = connect(&primary, "app").await;
    let _relay = Relay::open(&standby, &primary);
    app.batch_execute("SELECT pg_switch_wal()").await.unwrap();
    app.batch_execute("INSERT INTO t VALUES (3)").await.unwrap();
    let state = wait_for(&standby, |state| !state.is_live()).await;
    assert!(matches!(state, Process::Exited { .. }), "{state:?}");
    let pg_wal = standby.paths().data.join("pg_wal");
    let log = segments(&pg_wal).unwrap();
    assert!(!pg_wal.join(log.name(Timeline(2), end)).exists(), "what the new primary wrote first");
    assert!(pg_wal.join(log.name(Timeline(2), Lsn(end.0 + SEGMENT_BYTES))).exists(), "what it wrote later");
}
