//! Who is let through, and what becomes of who is not. The instance is a stand-in that shows what it was sent.

use super::nodes::*;
use super::postgres::shared_dir;
use crate::tunnel::{SOCKET_NAME, Upstreams, startup};
use quorate_model::ReplicaId;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

/// AuthenticationOk and ReadyForQuery.
const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
const SHORT: Duration = Duration::from_millis(150);

struct Stage {
    _dir: TempDir,
    nodes: Nodes,
    socket_dir: PathBuf,
    tunnel_dir: PathBuf,
    instance: UnixListener,
}

impl Stage {
    async fn new(upstreams: std::sync::Arc<Upstreams>) -> Stage {
        let dir = shared_dir();
        let nodes = Nodes::start(dir.path(), upstreams).await;
        let socket_dir = dir.path().join("p");
        std::fs::create_dir(&socket_dir).unwrap();
        let instance = UnixListener::bind(socket_dir.join(SOCKET_NAME)).unwrap();
        let tunnel_dir = dir.path().join("t");
        Stage { _dir: dir, nodes, socket_dir, tunnel_dir, instance }
    }

    fn admit(&self, number: u64, allowed: &[ReplicaId]) {
        self.nodes.admit(number, &self.socket_dir, allowed);
    }

    /// The next connection to the instance, and the startup packet that it began with.
    async fn arrival(&self) -> (UnixStream, String) {
        let (mut connection, _) = timeout(LONG, self.instance.accept()).await.unwrap().unwrap();
        let length = connection.read_u32().await.unwrap() as usize;
        let mut body = vec![0; length - 4];
        connection.read_exact(&mut body).await.unwrap();
        (connection, String::from_utf8_lossy(&body[4..]).into_owned())
    }

    async fn nobody_arrives(&self) {
        assert!(timeout(SHORT, self.instance.accept()).await.is_err(), "nobody may reach the instance");
    }
}

fn packet(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = 196_608u32.to_be_bytes().to_vec();
    for (key, value) in parameters {
        body.extend_from_slice(format!("{key}\0{value}\0").as_bytes());
    }
    body.push(0);
    [&(body.len() as u32 + 4).to_be_bytes()[..], &body].concat()
}

async fn walreceiver(tunnel_dir: &Path, name: &str) -> UnixStream {
    let mut connection = UnixStream::connect(tunnel_dir.join(SOCKET_NAME)).await.unwrap();
    let startup = packet(&[("user", "evil"), ("replication", "true"), ("application_name", name)]);
    connection.write_all(&startup).await.unwrap();
    connection
}

async fn expect(connection: &mut UnixStream, bytes: &[u8]) {
    let mut received = vec![0; bytes.len()];
    timeout(LONG, connection.read_exact(&mut received)).await.unwrap().unwrap();
    assert_eq!(received, bytes);
}

async fn expect_end(connection: &mut UnixStream) -> Vec<u8> {
    let mut rest = Vec::new();
    let _ = timeout(LONG, connection.read_to_end(&mut rest)).await.unwrap();
    rest
}

async fn expect_silence(connection: &mut UnixStream) {
    assert!(timeout(SHORT, connection.read_u8()).await.is_err(), "held: neither an answer nor an end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_standby_says_the_primary_hears_its_replica() {
    let stage = Stage::new(Upstreams::new()).await;
    let downstream = stage.nodes.downstream(&stage.tunnel_dir, None);
    downstream.attach(route(1));
    stage.admit(1, &[STANDBY]);
    for (says, hears) in [("r99", "r2"), ("", "r2"), ("pg_basebackup", "r2_copy")] {
        let mut standby = walreceiver(&stage.tunnel_dir, says).await;
        let (mut instance, parameters) = stage.arrival().await;
        assert_eq!(parameters, format!("user\0quorate\0replication\0true\0application_name\0{hears}\0\0"));
        instance.write_all(WELCOME).await.unwrap();
        expect(&mut standby, WELCOME).await;
        standby.write_all(b"Q\0\0\0\x05\0").await.unwrap();
        expect(&mut instance, b"Q\0\0\0\x05\0").await;
        drop(standby);
        assert!(expect_end(&mut instance).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_replication_comes_in() {
    let stage = Stage::new(Upstreams::new()).await;
    let downstream = stage.nodes.downstream(&stage.tunnel_dir, None);
    downstream.attach(route(1));
    stage.admit(1, &[STANDBY]);
    for (parameters, state) in [
        (packet(&[("user", "quorate"), ("database", "postgres")]), "28000"),
        (packet(&[("user", "quorate"), ("replication", "database")]), "28000"),
        (u32::MAX.to_be_bytes().to_vec(), "08P01"),
    ] {
        let mut session = UnixStream::connect(stage.tunnel_dir.join(SOCKET_NAME)).await.unwrap();
        // Encryption is declined first, as Postgres does on such a socket.
        session.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await.unwrap();
        expect(&mut session, b"N").await;
        session.write_all(&parameters).await.unwrap();
        let error = expect_end(&mut session).await;
        assert!(startup::explain(&error[5..]).starts_with(state), "{error:?}");
    }
    stage.nobody_arrives().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_refused_is_held_until_the_primary_takes_it() {
    let stage = Stage::new(Upstreams::new()).await;
    let downstream = stage.nodes.downstream(&stage.tunnel_dir, None);
    let mut standby = walreceiver(&stage.tunnel_dir, "r2").await;
    expect_silence(&mut standby).await;
    assert_eq!(downstream.status().held, 1);
    // Not admitted; then another reign; then another replica; then another primary.
    downstream.attach(route(1));
    stage.nobody_arrives().await;
    stage.admit(2, &[STANDBY]);
    stage.nobody_arrives().await;
    stage.admit(1, &[ReplicaId(3)]);
    stage.nobody_arrives().await;
    let allowed = [STANDBY].into();
    stage.nodes.upstreams.admit(DATABASE, ReplicaId(9), reign(1), stage.socket_dir.clone(), allowed);
    stage.nobody_arrives().await;
    expect_silence(&mut standby).await;
    // Admitted, and the instance starts up for a while.
    stage.admit(1, &[STANDBY]);
    for _ in 0..3 {
        let (mut instance, _) = stage.arrival().await;
        instance.write_all(&startup::fatal("57P03", "the database system is starting up")).await.unwrap();
    }
    let (mut instance, _) = stage.arrival().await;
    instance.write_all(WELCOME).await.unwrap();
    expect(&mut standby, WELCOME).await;
    assert_eq!(downstream.status().held, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_speaks_only_from_the_node_on_which_it_lives() {
    let moved = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(PRIMARY_NODE.0));
    let home = moved.clone();
    let residence =
        move |_: ReplicaId| Some(quorate_model::NodeId(home.load(std::sync::atomic::Ordering::SeqCst)));
    let stage = Stage::new(Upstreams::with_residence(residence)).await;
    let downstream = stage.nodes.downstream(&stage.tunnel_dir, None);
    downstream.attach(route(1));
    stage.admit(1, &[STANDBY]);
    let _standby = walreceiver(&stage.tunnel_dir, "r2").await;
    stage.nobody_arrives().await;
    moved.store(STANDBY_NODE.0, std::sync::atomic::Ordering::SeqCst);
    stage.arrival().await;
}

/// Opens one stream and returns both of its outer ends.
async fn joined(stage: &Stage) -> (UnixStream, UnixStream) {
    let mut standby = walreceiver(&stage.tunnel_dir, "r2").await;
    let (mut instance, _) = stage.arrival().await;
    instance.write_all(WELCOME).await.unwrap();
    expect(&mut standby, WELCOME).await;
    (standby, instance)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_cut_closes_both_ends() {
    let stage = Stage::new(Upstreams::new()).await;
    let downstream = stage.nodes.downstream(&stage.tunnel_dir, None);
    let upstreams = &stage.nodes.upstreams;
    downstream.attach(route(1));
    for way in 0..7 {
        stage.admit(1, &[STANDBY]);
        downstream.attach(route(1));
        let (mut standby, mut instance) = joined(&stage).await;
        // Of its own reign and no older one: nothing is cut.
        downstream.cut_older(reign(1)).await;
        standby.write_all(b"Q\0\0\0\x05\0").await.unwrap();
        expect(&mut instance, b"Q\0\0\0\x05\0").await;
        match way {
            0 => downstream.cut().await,
            1 => upstreams.cut_all(DATABASE).await,
            2 => upstreams.cut(DATABASE, STANDBY).await,
            3 => stage.admit(2, &[STANDBY]),
            4 => stage.admit(1, &[]),
            5 => downstream.cut_older(reign(2)).await,
            _ => downstream.attach(route(2)),
        }
        // The end at which it was cut has let go already: what it is sent goes nowhere.
        if (1..=4).contains(&way) {
            assert!(instance.write_all(b"late").await.is_err(), "way {way}");
        } else if way == 0 || way == 5 {
            assert!(standby.write_all(b"late").await.is_err(), "way {way}");
        }
        assert!(expect_end(&mut standby).await.is_empty(), "way {way}");
        assert!(expect_end(&mut instance).await.is_empty(), "way {way}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_walreceiver_displaces_the_old() {
    let stage = Stage::new(Upstreams::new()).await;
    let downstream = stage.nodes.downstream(&stage.tunnel_dir, None);
    downstream.attach(route(1));
    stage.admit(1, &[STANDBY]);
    let (mut old, mut old_instance) = joined(&stage).await;
    let (_new, _instance) = joined(&stage).await;
    assert!(expect_end(&mut old_instance).await.is_empty());
    assert!(expect_end(&mut old).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_ends_what_is_held_and_takes_the_socket_away() {
    let stage = Stage::new(Upstreams::new()).await;
    let downstream = stage.nodes.downstream(&stage.tunnel_dir, None);
    let mut standby = walreceiver(&stage.tunnel_dir, "r2").await;
    eventually("it is held", async || downstream.status().held == 1).await;
    downstream.stop().await;
    assert!(expect_end(&mut standby).await.is_empty());
    assert!(!stage.tunnel_dir.join(SOCKET_NAME).exists());
    assert_eq!(downstream.status().held, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_does_not_wait_for_who_does_not_read() {
    let stage = Stage::new(Upstreams::new()).await;
    let downstream = stage.nodes.downstream(&stage.tunnel_dir, None);
    for at_the_standby in [true, false] {
        downstream.attach(route(1));
        stage.admit(1, &[STANDBY]);
        let (standby, instance) = joined(&stage).await;
        // Both ends stopped reading, as stopped processes do, and every buffer between them is full.
        let message = [&b"d\0\x0f\xff\xff"[..], &vec![0; 0xf_fffb]].concat();
        for end in [&standby, &instance] {
            let mut rest = &message[..];
            while timeout(SHORT, end.writable()).await.is_ok() {
                match end.try_write(rest) {
                    Ok(n) if n < rest.len() => rest = &rest[n..],
                    Ok(_) => rest = &message,
                    Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
                }
            }
        }
        let cut = async {
            match at_the_standby {
                true => downstream.cut().await,
                false => stage.nodes.upstreams.cut_all(DATABASE).await,
            }
        };
        timeout(Duration::from_secs(1), cut).await.expect("a fence does not wait for Postgres");
        let severed = if at_the_standby { &standby } else { &instance };
        // The runtime hears of the closing by an event; before it, `try_write` answers from what it heard last.
        // Nobody reads, so only the closing makes the socket writable.
        timeout(Duration::from_secs(5), severed.writable()).await.expect("the socket is closed").unwrap();
        let error = severed.try_write(b"late").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    }
}

/// The one SQL connection that may pass: without both words, and one of them in each reign, any program on a standby's
/// node could read the primary's files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewind_passes_only_while_both_ends_were_told_of_it() {
    let stage = Stage::new(Upstreams::new()).await;
    let upstreams = &stage.nodes.upstreams;
    let downstream = stage.nodes.downstream(&stage.tunnel_dir, None);
    let rewind = || async {
        let mut session = UnixStream::connect(stage.tunnel_dir.join(SOCKET_NAME)).await.unwrap();
        let parameters = [("user", "quorate"), ("database", "app"), ("application_name", "pg_rewind")];
        session.write_all(&packet(&parameters)).await.unwrap();
        session
    };
    downstream.attach(route(1));
    stage.admit(1, &[STANDBY]);
    upstreams.admit_rewinds(DATABASE, reign(1), [STANDBY].into());
    let held = rewind().await;
    stage.nobody_arrives().await;
    upstreams.admit_rewinds(DATABASE, reign(1), [].into());
    downstream.attach_rewind(route(1));
    stage.nobody_arrives().await;
    upstreams.admit_rewinds(DATABASE, reign(2), [STANDBY].into());
    stage.nobody_arrives().await;

    upstreams.admit_rewinds(DATABASE, reign(1), [STANDBY, ReplicaId(3)].into());
    let (mut instance, words) = stage.arrival().await;
    let expected = "user\0quorate_rewind\0database\0postgres\0application_name\0r2_rewind\0\0";
    assert_eq!(words, expected, "nothing of its own words");
    instance.write_all(WELCOME).await.unwrap();
    let mut held = held;
    expect(&mut held, WELCOME).await;
    assert_eq!(downstream.status().streaming, None);
    // Nothing is streamed to a log that is being rewound.
    let _walreceiver = walreceiver(&stage.tunnel_dir, "r2").await;
    stage.nobody_arrives().await;
    upstreams.admit_rewinds(DATABASE, reign(1), [ReplicaId(3)].into());
    assert!(expect_end(&mut instance).await.is_empty());
    assert!(expect_end(&mut held).await.is_empty());

    // The fence takes the word back with everything else.
    upstreams.admit_rewinds(DATABASE, reign(1), [STANDBY].into());
    upstreams.cut_all(DATABASE).await;
    stage.admit(1, &[STANDBY]);
    let _again = rewind().await;
    stage.nobody_arrives().await;
}
