//! A node in a process of its own, so that it can be stopped, continued and killed like a real one. The
//! process is this test binary again, running [`child`].

use super::cluster::{Cluster, server};
use crate::MapError;
use quorate_model::NodeId;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DIR: &str = "QUORATE_TEST_MAP_DIR";
const NODE: &str = "QUORATE_TEST_MAP_NODE";
/// How long a node stays stopped, in seconds; longer than TCP waits, when asked for by hand.
const FROZEN: &str = "QUORATE_TEST_FROZEN_S";

/// Killed when the test ends, however it ends.
struct Process(Child);

impl Process {
    fn launch(cluster: &Cluster, node: NodeId) -> Process {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::process::child", "--ignored", "--nocapture"])
            .env(DIR, cluster.path())
            .env(NODE, node.0.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Process(child)
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.0.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn frozen() -> Duration {
    let seconds = std::env::var(FROZEN).ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(5))
}

/// Not a test: the node of another process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the tests of this module"]
async fn child() {
    let (Ok(dir), Ok(node)) = (std::env::var(DIR), std::env::var(NODE)) else { return };
    let node = NodeId(node.parse().unwrap());
    let mut cluster = Cluster::open(dir.into());
    cluster.restart(node).await;
    // Gone with the test at the latest.
    let parent = std::os::unix::process::parent_id();
    while std::os::unix::process::parent_id() == parent {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_stopped_is_succeeded_and_rejoins_when_continued() {
    let mut cluster = Cluster::prepare(3).await;
    let one = Process::launch(&cluster, NodeId(1));
    for node in [2, 3] {
        cluster.restart(NodeId(node)).await;
    }
    // The founder leads.
    let mut leadership = cluster.map(NodeId(2)).leadership();
    leadership.wait_for(|l| l.leader == Some(NodeId(1))).await.unwrap();
    cluster.map(NodeId(2)).propose(server("before")).await.unwrap();
    one.signal("-STOP");
    let begun = Instant::now();
    let next = cluster.leader().await;
    println!("a new leader {:?} after the old one was stopped", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(1));
    cluster.map(next).propose(server("meanwhile")).await.unwrap();
    tokio::time::sleep(frozen()).await;
    let before = *cluster.map(next).leadership().borrow();
    one.signal("-CONT");
    let begun = Instant::now();
    // It counts again: with the other follower gone, it is needed for a quorum.
    let other = if next == NodeId(2) { NodeId(3) } else { NodeId(2) };
    cluster.halt(other).await;
    cluster.map(next).propose(server("after")).await.unwrap();
    println!("its vote counted again {:?} after it was continued", begun.elapsed());
    assert_eq!(*cluster.map(next).leadership().borrow(), before, "the leader was not disturbed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_is_stopped_and_continued_does_not_disturb_the_leader() {
    let mut cluster = Cluster::prepare(3).await;
    let three = Process::launch(&cluster, NodeId(3));
    for node in [1, 2] {
        cluster.restart(NodeId(node)).await;
    }
    let leader = cluster.leader().await;
    let before = *cluster.map(leader).leadership().borrow();
    let other = if leader == NodeId(1) { NodeId(2) } else { NodeId(1) };
    three.signal("-STOP");
    for i in 0..10 {
        cluster.map(other).propose(server(&format!("s{i}"))).await.unwrap();
    }
    tokio::time::sleep(frozen()).await;
    three.signal("-CONT");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(*cluster.map(leader).leadership().borrow(), before);
    cluster.halt(other).await;
    cluster.map(leader).propose(server("after")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_with_a_killed_leader() {
    let mut cluster = Cluster::prepare(3).await;
    let mut one = Process::launch(&cluster, NodeId(1));
    for node in [2, 3] {
        cluster.restart(NodeId(node)).await;
    }
    let mut leadership = cluster.map(NodeId(2)).leadership();
    leadership.wait_for(|l| l.leader == Some(NodeId(1))).await.unwrap();
    let mut slowest = Duration::ZERO;
    for i in 0..300 {
        if i == 150 {
            one.signal("-KILL");
        }
        let begun = Instant::now();
        // Once: a proposal that was retried after the kill is not refused as a double.
        match cluster.map(NodeId(2)).propose(server(&format!("s{i}"))).await {
            Ok(_) => {}
            Err(MapError::Refused(refusal)) => panic!("s{i} was carried out twice: {refusal}"),
            Err(error) => panic!("{error}"),
        }
        slowest = slowest.max(begun.elapsed());
    }
    println!("the slowest proposal across the kill: {slowest:?}");
    assert!(slowest < Duration::from_secs(1));
    one.0.wait().unwrap();
    // What the killed one wrote is readable, and it catches up.
    cluster.restart(NodeId(1)).await;
    cluster.map(NodeId(1)).read_barrier().await.unwrap();
    assert_eq!(cluster.map(NodeId(1)).watch().borrow().servers.len(), 300);
}
