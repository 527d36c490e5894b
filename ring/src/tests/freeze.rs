//! A process that is stopped by a signal and goes on later: it must not blame the others for its absence.

use super::bed::{Bed, Node, config, wait};
use quorate_model::NodeId;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// `2@127.0.0.1:1 1@127.0.0.1:2 …`: the node that the child is, and all peers.
const CHILD: &str = "QUORATE_RING_TEST_CHILD";
const FROZEN_FOR: Duration = Duration::from_secs(4);

struct Frozen(Child);

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test: what the child process of the test below does, until it is killed.
#[tokio::test]
#[ignore = "the child process of another test"]
async fn child() {
    let Ok(peers) = std::env::var(CHILD) else { return };
    let peers: Vec<(NodeId, SocketAddr)> = peers
        .split(' ')
        .map(|peer| peer.split_once('@').unwrap())
        .map(|(id, address)| (NodeId(id.parse().unwrap()), address.parse().unwrap()))
        .collect();
    let me = peers[0].0;
    let node = Node::start(None, config(me.0, &BTreeMap::from_iter(peers))).await;
    let mut told = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        for (_, event) in node.events.lock().unwrap().iter().skip(told) {
            told += 1;
            eprintln!("event {event:?}");
        }
        for gap in node.agent.gaps.lock().unwrap().drain(..) {
            eprintln!("gap {}", gap.as_millis());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_process_blames_nobody_when_it_goes_on() {
    let mut bed = Bed::start(3).await;
    let is_missed = |bed: &Bed| bed.nodes.values().all(|node| node.ring.is_suspect(NodeId(2)));
    bed.stop(2).await;
    bed.wait("its place to be empty", is_missed).await;
    let peer = |id: u64| format!("{id}@{}", bed.peers[&NodeId(id)]);
    let mut child = Frozen(
        Command::new(std::env::current_exe().unwrap())
            .args(["tests::freeze::child", "--exact", "--ignored", "--nocapture"])
            .env(CHILD, [peer(2), peer(1), peer(3)].join(" "))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let lines = Arc::new(Mutex::new(Vec::new()));
    let stderr = child.0.stderr.take().unwrap();
    let list = Arc::clone(&lines);
    std::thread::spawn(move || {
        for line in std::io::BufRead::lines(std::io::BufReader::new(stderr)).map_while(Result::ok) {
            list.lock().unwrap().push(line);
        }
    });
    let is_alive =
        |bed: &Bed| bed.nodes.values().all(|n| n.state(2) == "alive" && !n.ring.is_suspect(NodeId(2)));
    bed.wait("the child", is_alive).await;

    let pid = Pid::from_raw(child.0.id().cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    bed.wait("the others to miss it", is_missed).await;
    tokio::time::sleep(FROZEN_FOR).await;
    kill_process(pid, Signal::CONT).unwrap();
    bed.wait("its return", is_alive).await;
    wait("its own notice", || {
        let lines = lines.lock().unwrap();
        let gap = |line: &String| line.strip_prefix("gap ").and_then(|ms| ms.parse::<u128>().ok());
        lines.iter().filter_map(gap).any(|ms| ms >= FROZEN_FOR.as_millis())
    })
    .await;
    // Several windows of silence later it still has nothing to say against anybody.
    tokio::time::sleep(Duration::from_millis(900)).await;
    let blames: Vec<String> =
        lines.lock().unwrap().iter().filter(|l| l.starts_with("event")).cloned().collect();
    assert!(blames.is_empty(), "{blames:?}");
    for node in bed.nodes.values() {
        assert!(node.suspicions().iter().all(|(subject, _)| *subject == 2), "{:?}", node.suspicions());
    }
}
