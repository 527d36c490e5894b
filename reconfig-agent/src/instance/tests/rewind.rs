//! A copy whose log left the history becomes a copy of the primary again, or is never used again.

use super::fixture::*;
use crate::instance::{Instance, InstanceError, Process, StopMode};
use quorate_model::position::{Relation, fork, relate};
use quorate_model::{Epoch, Lineage, Lsn, Position, Timeline};
use rustix::process::{Pid, Signal, kill_process};
use std::sync::atomic::Ordering;
use uuid::Uuid;

fn entry(primary: u64, timeline: u32, start_lsn: Lsn) -> Lineage {
    Lineage {
        epoch: Epoch::new(0, primary, 0),
        timeline: Timeline(timeline),
        start_lsn,
        uuid: Uuid::from_u128(u128::from(primary)),
    }
}

/// A former primary that wrote on after its standby was promoted.
struct Parted {
    world: World,
    former: Instance,
    primary: Instance,
    lineage: Vec<Lineage>,
}

impl Parted {
    async fn new() -> Parted {
        let (world, former, primary) = Parted::apart().await;
        let fork = primary.promote().await.unwrap().lsn;
        Parted::promoted(world, former, primary, fork).await
    }

    /// The standby has lost its primary, which wrote on, and is not promoted yet.
    async fn apart() -> (World, Instance, Instance) {
        let world = World::new();
        let former = world.primary(1).await;
        let app = connect(&former, "app").await;
        // Enough of it to keep the checkpoint after a promotion busy for a while.
        app.batch_execute(
            "CREATE TABLE t AS SELECT n, repeat('x', 200) AS filler FROM generate_series(1, 20000) n",
        )
        .await
        .unwrap();
        let (primary, relay) = world.standby(2, &former).await;
        caught_up(&primary, &former).await;
        relay.cut();
        app.batch_execute("UPDATE t SET filler = 'lost' WHERE n <= 5000; CREATE TABLE lost ()")
            .await
            .unwrap();
        (world, former, primary)
    }

    async fn promoted(world: World, former: Instance, primary: Instance, fork: Lsn) -> Parted {
        advance(&primary, 2).await;
        // What has been written and not flushed when the rewind ends comes by the stream.
        primary.ensure_slots(&world.slots()).await.unwrap();
        let app = connect(&primary, "app").await;
        app.batch_execute("UPDATE t SET filler = 'kept' WHERE n > 15000; CREATE TABLE kept ()")
            .await
            .unwrap();
        let lineage = vec![entry(1, 1, Lsn(0)), entry(2, 2, fork)];
        Parted { world, former, primary, lineage }
    }

    /// Where the former primary's log ends, found as it is in life: started as a standby.
    async fn floor(&self) -> Position {
        stop(&self.former).await;
        self.former.start().await.unwrap();
        self.former.position().await.unwrap()
    }

    /// Runs the rewind to its end and checks that both are one.
    async fn rewind(&self) {
        let relay = Relay::open(&self.former, &self.primary);
        timed("rewind", self.former.rewind(&self.former.paths().tunnel)).await.unwrap();
        assert!(self.former.distrust().is_some(), "not to be trusted before it has answered");
        timed("start after the rewind", self.former.finish_rewind()).await.unwrap();
        assert_eq!(self.former.distrust(), None);
        assert!(self.former.was_rewound());
        caught_up(&self.former, &self.primary).await;
        let app = connect(&self.former, "app").await;
        let rows = "SELECT string_agg(filler, ',' ORDER BY filler) FROM (SELECT DISTINCT left(filler, 4) AS filler FROM t) s";
        assert_eq!(value(&app, rows).await, "kept,xxxx");
        assert_eq!(
            value(&app, "SELECT to_regclass('lost') IS NULL AND to_regclass('kept') IS NOT NULL").await,
            "t"
        );
        relay.cut();
        let end = self.former.position().await.unwrap();
        assert_eq!(relate(&self.lineage, &end), Relation::Prefix);
    }
}

/// The epoch row of a later reign, without the quorum that nobody is here.
async fn advance(primary: &Instance, reign: u64) {
    let admin = connect(primary, "postgres").await;
    admin.batch_execute(&format!("UPDATE quorate.epoch SET primary_epoch = {reign}")).await.unwrap();
}

/// Without the rewind the copy is divergent for ever. Without the configuration made anew it would run with the
/// primary's: with its slot, its tunnel, and what somebody set there.
#[tokio::test(flavor = "multi_thread")]
async fn a_divergent_copy_is_rewound_and_follows() {
    let parted = Parted::new().await;
    let admin = connect(&parted.primary, "postgres").await;
    admin.batch_execute("ALTER SYSTEM SET work_mem = '9MB'").await.unwrap();
    let floor = parted.floor().await;
    assert_eq!(relate(&parted.lineage, &floor), Relation::Divergent);
    assert_eq!(fork(&parted.lineage, &floor), Some(parted.lineage[1].start_lsn));
    timed("prepare the source", parted.primary.prepare_source()).await.unwrap();
    parted.rewind().await;
    let end = parted.former.position().await.unwrap();
    assert!(end.rank() > floor.rank());
    let admin = connect(&parted.former, "postgres").await;
    assert_eq!(value(&admin, "SHOW work_mem").await, "4MB", "configuration of its own");
    assert_eq!(value(&admin, "SHOW primary_slot_name").await, "r1");
    // It is a standby like any other: it stops, starts, and can be promoted.
    parted.former.stop(StopMode::Fast, WAIT).await.unwrap();
    parted.former.start().await.unwrap();
    parted.former.forget_rewind().await.unwrap();
    assert!(!parted.former.was_rewound());
    assert_eq!(parted.former.promote().await.unwrap().timeline, Timeline(3));
}

/// The process of an instance that writes its checkpoints.
fn checkpointer_of(instance: &Instance) -> i32 {
    let postmaster = instance.process().borrow().pid().unwrap();
    let children = format!("/proc/{postmaster}/task/{postmaster}/children");
    let children = std::fs::read_to_string(children).unwrap();
    let is_checkpointer = |pid: &&str| {
        std::fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|name| name.starts_with(b"postgres: checkpointer"))
    };
    let pid = children.split_whitespace().find(is_checkpointer);
    pid.expect("every instance has a checkpointer").parse().unwrap()
}

/// pg_rewind takes the source's timeline from its control file. Right after a promotion that is the old one, and it
/// finds nothing to do: without the check the copy would start with its divergent log.
#[tokio::test(flavor = "multi_thread")]
async fn the_source_writes_a_checkpoint_first() {
    let (world, former, primary) = Parted::apart().await;
    stop(&former).await;
    let relay = Relay::open(&former, &primary);
    // PostgreSQL writes a checkpoint of its own accord, some time: not before the first try.
    let checkpointer = Pid::from_raw(checkpointer_of(&primary)).unwrap();
    kill_process(checkpointer, Signal::STOP).unwrap();
    let fork = primary.promote().await.unwrap().lsn;
    let early = former.rewind(&former.paths().tunnel).await;
    kill_process(checkpointer, Signal::CONT).unwrap();
    assert!(matches!(early, Err(InstanceError::SourceNotReady(_))), "{early:?}");
    assert_eq!(former.distrust(), None, "nothing was touched");
    relay.cut();
    let parted = Parted::promoted(world, former, primary, fork).await;
    parted.primary.prepare_source().await.unwrap();
    parted.rewind().await;
}

/// A former primary that crashed and was never started since. Without the recovery, pg_rewind refuses it; with the
/// signal of a standby in place, the recovery does.
#[tokio::test(flavor = "multi_thread")]
async fn an_unclean_target_is_recovered_first() {
    let parted = Parted::new().await;
    let pid = parted.former.process().borrow().pid().unwrap();
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
    wait_for(&parted.former, |state| matches!(state, Process::Exited { .. })).await;
    let signal = parted.former.paths().data.join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    parted.primary.prepare_source().await.unwrap();
    parted.rewind().await;
    assert!(signal.exists());
}

/// A directory that is half one log and half another may even start. Without the mark it would.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_rewind_is_the_end_of_a_copy() {
    let parted = Parted::new().await;
    parted.floor().await;
    parted.primary.prepare_source().await.unwrap();
    let relay = Relay::open(&parted.former, &parted.primary);
    // It dies while it copies: the tables alone are several times as large.
    relay.budget.store(1_000_000, Ordering::SeqCst);
    let tunnel = parted.former.paths().tunnel.clone();
    let outcome = parted.former.rewind(&tunnel).await;
    assert!(matches!(outcome, Err(InstanceError::Tool { program: "pg_rewind", .. })), "{outcome:?}");
    assert_eq!(relay.budget.load(Ordering::SeqCst), 0, "it was the relay that ended it");
    relay.cut();
    let _whole = Relay::open(&parted.former, &parted.primary);
    // Neither this daemon nor the next starts it or tries once more.
    for handle in [parted.former.clone(), parted.world.instance(1)] {
        // Tried, such a start may wait for ever for a log that makes the directory consistent.
        let started = tokio::time::timeout(WAIT, handle.start()).await.expect("refused at once");
        assert!(matches!(started, Err(InstanceError::Distrusted(_))), "{started:?}");
        let again = handle.rewind(&tunnel).await;
        assert!(matches!(again, Err(InstanceError::Distrusted(_))), "{again:?}");
    }
    parted.former.destroy().await.unwrap();
    assert!(!parted.former.paths().rewinding.exists());
}

/// Two standbys were promoted from one log and both chose timeline 2. Their logs differ, and pg_rewind calls them one:
/// without the history, the second would stream garbage.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_timeline_twice_is_no_prefix_and_not_rewound() {
    let world = World::new();
    let former = world.primary(1).await;
    let (first, relay1) = world.standby(2, &former).await;
    let (second, relay2) = world.standby(3, &former).await;
    caught_up(&first, &former).await;
    caught_up(&second, &former).await;
    relay1.cut();
    relay2.cut();
    stop(&former).await;
    let fork_at = first.promote().await.unwrap().lsn;
    advance(&first, 2).await;
    assert_eq!(second.promote().await.unwrap().timeline, Timeline(2), "the same number");
    let app = connect(&second, "app").await;
    app.batch_execute("CREATE TABLE lost AS SELECT generate_series(1, 1000)").await.unwrap();
    second.checkpoint().await.unwrap();
    stop(&second).await;
    second.start().await.unwrap();
    let end = second.position().await.unwrap();
    let lineage = [entry(1, 1, Lsn(0)), entry(2, 2, fork_at)];
    assert_eq!(end.timeline, Timeline(2));
    assert_eq!(relate(&lineage, &end), Relation::Divergent);
    assert_eq!(fork(&lineage, &end), None, "flattened without a try");

    // That is why: tried, it does nothing, and the copy would go on as it is.
    first.prepare_source().await.unwrap();
    let _relay = Relay::open(&second, &first);
    let tried = second.rewind(&second.paths().tunnel).await;
    assert!(matches!(tried, Err(InstanceError::NotRewound(_))), "{tried:?}");
    let started = second.start().await;
    assert!(matches!(started, Err(InstanceError::Distrusted(_))), "{started:?}");
}

/// The role reads files for pg_rewind. Without the limits, whoever came by the tunnel's one SQL connection could read and
/// write everything.
#[tokio::test(flavor = "multi_thread")]
async fn the_role_of_rewinds_can_do_nothing_else() {
    let world = World::new();
    let primary = world.primary(1).await;
    let as_role = async |database: &str| {
        let (client, connection) = tokio_postgres::Config::new()
            .host_path(&primary.paths().sockets)
            .user("quorate_rewind")
            .dbname(database)
            .connect(tokio_postgres::NoTls)
            .await?;
        tokio::spawn(connection);
        Ok::<_, tokio_postgres::Error>(client)
    };
    assert!(as_role("app").await.is_err(), "no tenant's database");
    let client = as_role("postgres").await.unwrap();
    let read = client.simple_query("SELECT pg_read_binary_file('global/pg_control')").await;
    assert!(read.is_ok(), "{read:?}");
    for refused in [
        "UPDATE quorate.epoch SET config = 9",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT pg_read_binary_file('/etc/passwd')",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "SELECT rolpassword FROM pg_authid",
        "SELECT pg_create_physical_replication_slot('x')",
        "CREATE TABLE x ()",
        "CHECKPOINT",
    ] {
        assert!(client.simple_query(refused).await.is_err(), "{refused}");
    }
}
