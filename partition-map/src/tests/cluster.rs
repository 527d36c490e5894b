//! Clusters in one process, over real sockets and real disks.

use crate::{Leadership, MapConfig, MapError, MapHandle};
use quorate_model::{Applied, Command, NodeId, Refusal};
use quorate_transport::authority::Authority;
use quorate_transport::{Identity, Peers};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const ADDRESSES: &str = "addresses";
const SOON: Duration = Duration::from_secs(10);

struct Node {
    map: MapHandle,
    peers: Arc<Peers>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

pub(super) struct Cluster {
    path: PathBuf,
    _dir: Option<TempDir>,
    addresses: BTreeMap<NodeId, String>,
    nodes: BTreeMap<NodeId, Node>,
}

pub(super) fn server(name: &str) -> Command {
    Command::CreateServer { name: name.to_owned(), admin: "boss".to_owned(), verifier: "secret".to_owned() }
}

impl Cluster {
    async fn start(count: u64) -> Cluster {
        let mut cluster = Cluster::prepare(count).await;
        for node in (1..=count).map(NodeId) {
            cluster.restart(node).await;
        }
        cluster
    }

    /// Certificates and addresses of a cluster, no node of which runs.
    pub(super) async fn prepare(count: u64) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(&dir.path().join("ca")).unwrap();
        let mut listeners = Vec::new();
        let mut text = String::new();
        for node in (1..=count).map(NodeId) {
            authority.issue(node, &dir.path().join(node.to_string())).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            text.push_str(&format!("{} {}\n", node.0, listener.local_addr().unwrap()));
            // Held until all are chosen, so that no two get the same port.
            listeners.push(listener);
        }
        std::fs::write(dir.path().join(ADDRESSES), text).unwrap();
        drop(listeners);
        let mut cluster = Cluster::open(dir.path().to_owned());
        cluster._dir = Some(dir);
        cluster
    }

    /// A cluster that was prepared by another process.
    pub(super) fn open(path: PathBuf) -> Cluster {
        let text = std::fs::read_to_string(path.join(ADDRESSES)).unwrap();
        let address = |line: &str| {
            let (node, address) = line.split_once(' ').unwrap();
            (NodeId(node.parse().unwrap()), address.to_owned())
        };
        let addresses = text.lines().map(address).collect();
        Cluster { path, _dir: None, addresses, nodes: BTreeMap::new() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn dir_of(&self, node: NodeId) -> PathBuf {
        self.path.join(node.to_string())
    }

    async fn launch(&mut self, node: NodeId, listener: TcpListener) {
        let identity = Identity::load(node, &self.dir_of(node)).unwrap();
        let peers = Peers::new(identity, self.addresses.clone());
        let stop = CancellationToken::new();
        let serving = tokio::spawn(peers.clone().serve(listener, stop.clone()));
        let nodes: BTreeSet<NodeId> = self.addresses.keys().copied().collect();
        // Three voters also of five nodes: the rest learn.
        let voters = nodes.iter().copied().take(3).collect();
        let config = MapConfig { voters, ..MapConfig::new(node, self.dir_of(node).join("map"), nodes) };
        let map = MapHandle::start(config, peers.clone()).await.unwrap();
        self.nodes.insert(node, Node { map, peers, stop, serving });
    }

    pub(super) async fn restart(&mut self, node: NodeId) {
        let listener = TcpListener::bind(&self.addresses[&node]).await.unwrap();
        self.launch(node, listener).await;
    }

    /// Closes its doors and its log.
    pub(super) async fn halt(&mut self, node: NodeId) {
        let halted = self.nodes.remove(&node).unwrap();
        halted.map.shutdown().await;
        halted.stop.cancel();
        halted.serving.await.unwrap();
        // Connections that it made itself end with the last use of its peers.
        drop(halted.peers);
    }

    pub(super) fn map(&self, node: NodeId) -> &MapHandle {
        &self.nodes[&node].map
    }

    /// Waits until some node of `among` leads, and returns it.
    pub(super) async fn leader(&self) -> NodeId {
        let leads = |node: &NodeId, map: &MapHandle| {
            let (node, mut leadership) = (*node, map.leadership());
            Box::pin(async move {
                leadership.wait_for(|l| l.is_me).await.unwrap();
                node
            })
        };
        let waiting = self.nodes.iter().map(|(node, n)| leads(node, &n.map));
        timeout(SOON, futures::future::select_all(waiting)).await.unwrap().0
    }

    async fn sees(&self, node: NodeId, name: &str) {
        let mut map = self.map(node).watch();
        let found = map.wait_for(|m| m.server_named(name).is_some());
        timeout(SOON, found).await.unwrap_or_else(|_| panic!("{node} does not see {name}")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_forms_and_every_node_can_propose_and_read() {
    let cluster = Cluster::start(4).await;
    let leader = cluster.leader().await;
    for node in (1..=4).map(NodeId) {
        let name = format!("by{node}");
        let applied = cluster.map(node).propose(server(&name)).await.unwrap();
        assert!(matches!(applied, Applied::Server(_)));
        let refused = cluster.map(node).propose(server(&name)).await;
        assert!(matches!(refused, Err(MapError::Refused(Refusal::AlreadyExists(_)))), "{refused:?}");
        // Whoever reads behind a barrier sees it, at any node.
        for reader in (1..=4).map(NodeId) {
            cluster.map(reader).read_barrier().await.unwrap();
            assert!(
                cluster.map(reader).watch().borrow().server_named(&name).is_some(),
                "{reader} after {node}"
            );
        }
    }
    let at = cluster.map(NodeId(4));
    assert_eq!(at.role_of(leader), "leader");
    assert_eq!(at.role_of(NodeId(4)), "learner");
    assert_eq!(at.role_of(NodeId(9)), "unknown");
    assert_eq!((1..=3).filter(|n| at.role_of(NodeId(*n)) == "follower").count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_is_a_cluster() {
    let mut cluster = Cluster::start(1).await;
    let one = NodeId(1);
    cluster.map(one).propose(server("acme")).await.unwrap();
    assert_eq!(cluster.leader().await, one);
    cluster.map(one).read_barrier().await.unwrap();
    cluster.halt(one).await;
    cluster.restart(one).await;
    cluster.map(one).read_barrier().await.unwrap();
    assert!(cluster.map(one).watch().borrow().server_named("acme").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_goes_is_succeeded_and_nothing_is_lost() {
    let mut cluster = Cluster::start(4).await;
    for round in 0..3 {
        let leader = cluster.leader().await;
        let name = format!("before{round}");
        cluster.map(leader).propose(server(&name)).await.unwrap();
        let begun = Instant::now();
        cluster.halt(leader).await;
        let next = cluster.leader().await;
        let led = begun.elapsed();
        let by = *cluster.nodes.keys().find(|n| **n != next).unwrap();
        cluster.map(by).propose(server(&format!("after{round}"))).await.unwrap();
        println!("round {round}: a new leader after {led:?}, a commit after {:?}", begun.elapsed());
        assert!(led < Duration::from_secs(1), "{led:?}");
        cluster.map(by).read_barrier().await.unwrap();
        assert!(cluster.map(by).watch().borrow().server_named(&name).is_some());
        cluster.restart(leader).await;
        cluster.sees(leader, &format!("after{round}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_comes_and_goes_does_not_disturb_the_leader() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let before = *cluster.map(leader).leadership().borrow();
    let follower = *cluster.nodes.keys().find(|n| **n != leader).unwrap();
    for _ in 0..3 {
        cluster.halt(follower).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        cluster.restart(follower).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        cluster.map(follower).read_barrier().await.unwrap();
    }
    assert_eq!(*cluster.map(leader).leadership().borrow(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_was_stopped_has_everything_when_it_comes_back() {
    let mut cluster = Cluster::start(3).await;
    let nodes: Vec<NodeId> = cluster.nodes.keys().copied().collect();
    for i in 0..20 {
        cluster.map(nodes[i % 3]).propose(server(&format!("s{i}"))).await.unwrap();
    }
    cluster.map(nodes[0]).read_barrier().await.unwrap();
    let before = cluster.map(nodes[0]).watch().borrow().clone();
    for node in &nodes {
        cluster.halt(*node).await;
    }
    for node in &nodes {
        cluster.restart(*node).await;
    }
    for node in &nodes {
        cluster.map(*node).read_barrier().await.unwrap();
        assert_eq!(*cluster.map(*node).watch().borrow(), before);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_nothing_is_done_and_a_leader_alone_is_none() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let others: Vec<NodeId> = cluster.nodes.keys().copied().filter(|n| *n != leader).collect();
    for node in &others {
        cluster.halt(*node).await;
    }
    let mut leadership = cluster.map(leader).leadership();
    let alone = |l: &Leadership| !l.is_me && l.leader.is_none();
    timeout(SOON, leadership.wait_for(alone)).await.unwrap().unwrap();
    let map = cluster.map(leader).clone();
    let proposing = tokio::spawn(async move { map.propose(server("late")).await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(cluster.map(leader).watch().borrow().server_named("late").is_none());
    // It is carried out, once, when there is a quorum again.
    for node in &others {
        cluster.restart(*node).await;
    }
    assert!(matches!(proposing.await.unwrap(), Ok(Applied::Server(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_far_behind_is_brought_up_by_a_snapshot() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let follower = *cluster.nodes.keys().find(|n| **n != leader).unwrap();
    cluster.halt(follower).await;
    let map = cluster.map(leader).clone();
    // More entries than are kept behind a snapshot: each its own, because each waits for the one before.
    for lane in 0..4 {
        let map = map.clone();
        let writes = (0..600).map(|i| (lane, i));
        for (lane, i) in writes {
            map.propose(server(&format!("s{lane}-{i}"))).await.unwrap();
        }
    }
    cluster.restart(follower).await;
    cluster.map(follower).read_barrier().await.unwrap();
    assert_eq!(cluster.map(follower).watch().borrow().servers.len(), 2400);
    // And it survives that too.
    cluster.halt(follower).await;
    cluster.restart(follower).await;
    cluster.map(follower).read_barrier().await.unwrap();
    assert_eq!(cluster.map(follower).watch().borrow().servers.len(), 2400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proposal_costs_little() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let follower = *cluster.nodes.keys().find(|n| **n != leader).unwrap();
    for (place, node) in [("leader", leader), ("follower", follower)] {
        let mut proposals = Vec::new();
        let mut barriers = Vec::new();
        for i in 0..200 {
            let begun = Instant::now();
            cluster.map(node).propose(server(&format!("{place}{i}"))).await.unwrap();
            proposals.push(begun.elapsed());
            let begun = Instant::now();
            cluster.map(node).read_barrier().await.unwrap();
            barriers.push(begun.elapsed());
        }
        proposals.sort_unstable();
        barriers.sort_unstable();
        println!(
            "at the {place}: propose p50 {:?} p99 {:?}, barrier p50 {:?} p99 {:?}",
            proposals[100], proposals[198], barriers[100], barriers[198]
        );
    }
    let begun = Instant::now();
    let many = (0..2000).map(|i| {
        let map = cluster.map(leader).clone();
        async move { map.propose(server(&format!("many{i}"))).await.unwrap() }
    });
    futures::future::join_all(many).await;
    println!("2000 proposals at once: {:?}", begun.elapsed());
}
