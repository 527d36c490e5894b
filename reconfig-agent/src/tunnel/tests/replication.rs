//! A real primary and a real standby.

use super::nodes::*;
use super::postgres::*;
use crate::tunnel::{Downstream, Flush, Upstreams};
use quorate_model::{Lsn, ReplicaId};
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A primary, and a standby that was copied from it and streams from it, all through tunnels.
pub struct Pair {
    pub nodes: Nodes,
    pub downstream: Downstream,
    pub primary: Instance,
    pub standby: Instance,
    pub tunnel_dir: PathBuf,
    dir: TempDir,
}

impl Pair {
    pub async fn start() -> Pair {
        let dir = shared_dir();
        let nodes = Nodes::start(dir.path(), Upstreams::new()).await;
        let mut primary = Instance::at(dir.path(), "p");
        let mut standby = Instance::at(dir.path(), "s");
        primary.init().await;
        primary.start().await;
        primary.ask("SELECT pg_create_physical_replication_slot('r2', true)").await;
        primary.ask("CREATE TABLE kept (id bigserial PRIMARY KEY, at timestamptz DEFAULT now())").await;
        let tunnel_dir = dir.path().join("t");
        let downstream = nodes.downstream(&tunnel_dir, owner());
        downstream.attach(route(1));
        nodes.admit(1, &primary.socket_dir, &[STANDBY]);
        let mut copy = program("pg_basebackup");
        copy.args(["-X", "stream", "-c", "fast", "--no-sync", "-p", "5432", "-h"]).arg(&tunnel_dir);
        copy.args(["-U", "whoever", "-D"]).arg(&standby.data);
        run(copy).await;
        assert_eq!(downstream.status().acknowledged, Lsn(0), "a copy acknowledges nothing");
        assert_eq!(nodes.upstreams.flushes(DATABASE).get(&STANDBY), None);
        std::fs::write(standby.data.join("standby.signal"), "").unwrap();
        standby.follow(&tunnel_dir, "liar");
        standby.start().await;
        let mut streaming = downstream.watch();
        streaming.wait_for(|reign_of| *reign_of == Some(reign(1))).await.unwrap();
        Pair { nodes, downstream, primary, standby, tunnel_dir, dir }
    }

    pub async fn wait_for_standby(&self) {
        self.primary.set("synchronous_standby_names", "ANY 1 (r2)").await;
        eventually("the standby is synchronous", async || {
            self.primary
                .ask("SELECT sync_state FROM pg_stat_replication WHERE application_name = 'r2'")
                .await
                .as_deref()
                == Some("quorum")
        })
        .await;
    }

    /// Starts a commit that waits for the standby.
    fn commit(&self) -> tokio::task::JoinHandle<Instant> {
        let connect = self.primary.socket_dir.clone();
        tokio::spawn(async move {
            let mut config = tokio_postgres::Config::new();
            config.host_path(connect).user("quorate").dbname("postgres");
            let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            client.simple_query("INSERT INTO kept DEFAULT VALUES").await.unwrap();
            Instant::now()
        })
    }

    async fn flush_lsn(&self) -> Lsn {
        self.primary.ask("SELECT pg_current_wal_flush_lsn()").await.unwrap().parse().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_copied_streams_and_is_known_by_its_replica() {
    let pair = Pair::start().await;
    let names = pair
        .primary
        .ask("SELECT string_agg(application_name || ' ' || usename, ',') FROM pg_stat_replication");
    assert_eq!(names.await.as_deref(), Some("r2 quorate"));
    for _ in 0..3 {
        pair.primary.ask("INSERT INTO kept SELECT generate_series(nextval('kept_id_seq'), nextval('kept_id_seq') + 20000)").await;
        pair.primary.ask("SELECT setval('kept_id_seq', (SELECT max(id) FROM kept))").await;
        let flushed = pair.flush_lsn().await;
        assert!(pair.nodes.upstreams.flushed(DATABASE, STANDBY, flushed, LONG).await);
        let Flush { lsn, streaming } = pair.nodes.upstreams.flushes(DATABASE)[&STANDBY];
        assert!(lsn >= flushed && streaming);
        let status = pair.downstream.status();
        assert!(status.acknowledged >= flushed && status.upstream_end >= flushed);
        assert!(status.last_heard.unwrap().elapsed() < LONG);
    }
    let expected = pair.primary.ask("SELECT count(*) FROM kept").await;
    eventually("the rows are on the standby", async || {
        pair.standby.ask("SELECT count(*) FROM kept").await == expected
    })
    .await;
    let far = Lsn(u64::MAX);
    assert!(!pair.nodes.upstreams.flushed(DATABASE, STANDBY, far, Duration::from_millis(50)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_standby_acknowledges_nothing_and_goes_on_at_once_when_attached() {
    let pair = Pair::start().await;
    pair.wait_for_standby().await;
    pair.commit().await.unwrap();
    for round in 0..5 {
        pair.downstream.cut().await;
        let acknowledged = pair.downstream.status().acknowledged;
        let commit = pair.commit();
        eventually("the walreceiver is back and held", async || pair.downstream.status().held == 1).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!commit.is_finished(), "round {round}: acknowledged through a cut tunnel");
        assert_eq!(pair.downstream.status().streaming, None);
        assert_eq!(pair.downstream.status().acknowledged, acknowledged);
        let attached = Instant::now();
        let mut streaming = pair.downstream.watch();
        pair.downstream.attach(route(1));
        streaming.wait_for(Option::is_some).await.unwrap();
        let resumed = attached.elapsed();
        // The commit also waits for two disks; what was held must not wait for anything.
        println!("attach to stream: {resumed:?}, to acknowledgement: {:?}", commit.await.unwrap() - attached);
        assert!(resumed < Duration::from_secs(2), "round {round}: {resumed:?}: not held, but tried again");
        assert_eq!(pair.downstream.status().streaming, Some(reign(1)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_primary_is_acknowledged_nothing() {
    let pair = Pair::start().await;
    pair.wait_for_standby().await;
    pair.commit().await.unwrap();
    let upstreams = &pair.nodes.upstreams;
    // One replica (R2), then everything; neither comes back by itself.
    for everything in [false, true] {
        match everything {
            false => upstreams.cut(DATABASE, STANDBY).await,
            true => upstreams.cut_all(DATABASE).await,
        }
        let commit = pair.commit();
        eventually("the walreceiver is back and held", async || pair.downstream.status().held == 1).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!commit.is_finished());
        assert!(upstreams.flushes(DATABASE).get(&STANDBY).is_none_or(|f| !f.streaming));
        pair.nodes.admit(1, &pair.primary.socket_dir, &[STANDBY]);
        commit.await.unwrap();
    }
    // The next reign: the standby is refused until it is told, and what it acknowledged before does not count.
    pair.nodes.admit(2, &pair.primary.socket_dir, &[STANDBY]);
    assert_eq!(upstreams.flushes(DATABASE).get(&STANDBY), None);
    let commit = pair.commit();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!commit.is_finished());
    pair.downstream.attach(route(2));
    commit.await.unwrap();
    assert_eq!(pair.downstream.status().streaming, Some(reign(2)));
    assert!(upstreams.flushed(DATABASE, STANDBY, pair.flush_lsn().await, LONG).await);
}

/// PostgreSQL counts whoever bears a name in `synchronous_standby_names`. If the tunnel passed names on, a standby could
/// count as any other: one that calls itself `liar` would acknowledge in the name of `liar`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_does_not_count_under_a_name_that_it_gave_itself() {
    let pair = Pair::start().await;
    pair.primary.set("synchronous_standby_names", "ANY 1 (liar)").await;
    let names = "SELECT string_agg(application_name || ' ' || sync_state, ',') FROM pg_stat_replication";
    let commit = pair.commit();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!commit.is_finished(), "acknowledged by {:?}", pair.primary.ask(names).await);
    // It was there, and has what was committed.
    let flushed = pair.flush_lsn().await;
    assert!(pair.nodes.upstreams.flushed(DATABASE, STANDBY, flushed, LONG).await);
    assert_eq!(pair.primary.ask(names).await.as_deref(), Some("r2 async"));
    pair.wait_for_standby().await;
    commit.await.unwrap();
}

/// Flushes the log and says so, as a voter's walreceiver does. Dropped, it ends.
struct Receiver(std::process::Child);

impl Receiver {
    fn start(pair: &Pair, host: &Path) -> Receiver {
        let mut receiver = program("pg_receivewal");
        receiver
            .args(["--synchronous", "--no-loop", "-S", "r3", "-p", "5432", "-U", "whoever", "-h"])
            .arg(host);
        receiver.arg("-D").arg(own_dir(pair.dir.path().join("received")));
        Receiver(receiver.spawn().unwrap())
    }

    /// Stops it, or lets it go on, and waits until it has.
    async fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.0.id() as i32).unwrap(), signal).unwrap();
        eventually("it heard the signal", async || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
            stat.contains(") T ") == (signal == Signal::STOP)
        })
        .await;
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A walsender ships what the primary has flushed to everybody. A learner that got ahead of every voter would be divergent
/// once the primary is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_is_held_back_to_what_a_voter_has() {
    const VOTER: ReplicaId = ReplicaId(3);
    let pair = Pair::start().await;
    let (upstreams, learner) = (&pair.nodes.upstreams, STANDBY);
    pair.primary.ask("SELECT pg_create_physical_replication_slot('r3', true)").await;
    pair.nodes.admit(1, &pair.primary.socket_dir, &[learner, VOTER]);
    let host = pair.dir.path().join("v");
    let downstream = pair.nodes.downstream_of(VOTER, &host, owner());
    downstream.attach(route(1));
    let receiver = Receiver::start(&pair, &host);
    upstreams.count(DATABASE, &[VOTER].into(), 1, true);
    let insert = async || {
        pair.primary.ask("INSERT INTO kept SELECT FROM generate_series(1, 2000)").await;
        pair.flush_lsn().await
    };
    let end = insert().await;
    for replica in [VOTER, learner] {
        assert!(upstreams.flushed(DATABASE, replica, end, LONG).await, "{replica} follows");
    }
    // Beside a voter that has stopped the learner waits, until that goes on.
    receiver.signal(Signal::STOP).await;
    let end = insert().await;
    assert!(!upstreams.flushed(DATABASE, learner, end, Duration::from_secs(1)).await, "ahead of every voter");
    assert!(upstreams.flushes(DATABASE)[&VOTER].streaming);
    receiver.signal(Signal::CONT).await;
    assert!(upstreams.flushed(DATABASE, learner, end, LONG).await);
    // One that is never going to goes without it: it is what replaces the voter.
    receiver.signal(Signal::STOP).await;
    let end = insert().await;
    assert!(upstreams.flushed(DATABASE, learner, end, LONG).await, "held back for ever");
    assert!(upstreams.flushes(DATABASE)[&VOTER].lsn < end);
    drop(receiver);
    let end = insert().await;
    assert!(upstreams.flushed(DATABASE, learner, end, LONG).await, "no voter streams");
}
