//! What the tests stand on: rings in this process, and a replica agent that does what it is told.

use crate::clock::BootTime;
use crate::lease::{LeaseWant, Leases};
use crate::ring::{Ring, RingConfig};
use crate::{RingEvent, udp};
use quorate_model::{DatabaseId, Epoch, NodeId};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How long anything may take that is expected to happen; far more than it does.
pub const PATIENCE: Duration = Duration::from_secs(20);
pub const KEY: [u8; 32] = [42; 32];

#[derive(Default)]
pub struct Agent {
    pub wants: Mutex<Vec<LeaseWant>>,
    pub unwilling: AtomicBool,
    pub granted: Mutex<Vec<Grant>>,
    pub promised: Mutex<Vec<Grant>>,
    pub gaps: Mutex<Vec<Duration>>,
    /// Holds the ring's thread up once, as a machine that does not schedule it does.
    pub stall: Mutex<Option<Duration>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    pub database: DatabaseId,
    pub epoch: Epoch,
    /// The other side.
    pub node: NodeId,
    pub until: BootTime,
}

impl Leases for Agent {
    fn wants(&self) -> Vec<LeaseWant> {
        if let Some(stall) = self.stall.lock().unwrap().take() {
            std::thread::sleep(stall);
        }
        self.wants.lock().unwrap().clone()
    }

    fn granted(&self, database: DatabaseId, epoch: Epoch, by: NodeId, until: BootTime) {
        self.granted.lock().unwrap().push(Grant { database, epoch, node: by, until });
    }

    fn grant(&self, to: NodeId, database: DatabaseId, epoch: Epoch, until: BootTime) -> bool {
        if self.unwilling.load(Ordering::SeqCst) {
            return false;
        }
        self.promised.lock().unwrap().push(Grant { database, epoch, node: to, until });
        true
    }

    fn scheduling_gap(&self, gap: Duration) {
        self.gaps.lock().unwrap().push(gap);
    }
}

pub type Events = Arc<Mutex<Vec<(Instant, RingEvent)>>>;

/// A ring that runs.
pub struct Node {
    pub ring: Ring,
    pub agent: Arc<Agent>,
    pub events: Events,
    stop: CancellationToken,
    ended: tokio::task::JoinHandle<()>,
}

impl Node {
    pub async fn start(socket: Option<UdpSocket>, config: RingConfig) -> Node {
        let (agent, stop) = (Arc::new(Agent::default()), CancellationToken::new());
        let leases: Arc<dyn Leases> = agent.clone();
        let (ring, mut incoming) = match socket {
            Some(socket) => Ring::start_on(socket, config, leases, stop.clone()).await,
            None => Ring::start(config, leases, stop.clone()).await,
        }
        .unwrap();
        let events = Events::default();
        let list = Arc::clone(&events);
        let ended = tokio::spawn(async move {
            while let Some(event) = incoming.recv().await {
                list.lock().unwrap().push((Instant::now(), event));
            }
        });
        Node { ring, agent, events, stop, ended }
    }

    /// Ends the ring; its port is free afterwards.
    pub async fn stop(self) {
        self.stop.cancel();
        self.ended.await.unwrap();
    }

    pub fn suspicions(&self) -> Vec<(u64, u64)> {
        let told = |(_, event): &(Instant, RingEvent)| match event {
            RingEvent::Suspect { node, reporter, .. } => Some((node.0, reporter.0)),
            RingEvent::Alive { .. } => None,
        };
        self.events.lock().unwrap().iter().filter_map(told).collect()
    }

    pub fn state(&self, node: u64) -> &'static str {
        self.ring.view().iter().find(|member| member.node.0 == node).unwrap().state
    }
}

pub struct Bed {
    pub nodes: BTreeMap<u64, Node>,
    pub peers: BTreeMap<NodeId, SocketAddr>,
}

impl Bed {
    /// Starts nodes 1 to `size`, and waits until each knows all.
    pub async fn start(size: u64) -> Bed {
        let sockets: Vec<(u64, UdpSocket)> = (1..=size).map(|id| (id, socket())).collect();
        let peers = sockets.iter().map(|(id, socket)| (NodeId(*id), socket.local_addr().unwrap())).collect();
        let mut bed = Bed { nodes: BTreeMap::new(), peers };
        for (id, socket) in sockets {
            let node = Node::start(Some(socket), config(id, &bed.peers)).await;
            bed.nodes.insert(id, node);
        }
        bed.wait("everybody to know everybody", |bed| {
            bed.nodes.values().all(|node| bed.nodes.keys().all(|other| node.state(*other) == "alive"))
        })
        .await;
        bed
    }

    pub async fn stop(&mut self, id: u64) {
        self.nodes.remove(&id).unwrap().stop().await;
    }

    pub async fn restart(&mut self, id: u64) {
        let node = Node::start(None, config(id, &self.peers)).await;
        self.nodes.insert(id, node);
    }

    pub async fn wait(&self, what: &str, is_so: impl Fn(&Bed) -> bool) {
        wait(what, || is_so(self)).await;
    }
}

pub fn socket() -> UdpSocket {
    udp::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap()
}

pub fn config(node: u64, peers: &BTreeMap<NodeId, SocketAddr>) -> RingConfig {
    RingConfig {
        node: NodeId(node),
        listen: peers[&NodeId(node)],
        peers: peers.clone(),
        key: KEY,
        heartbeat: Duration::from_millis(50),
        suspect_after: Duration::from_millis(300),
        lease: Duration::from_millis(400),
        lease_renew: Duration::from_millis(75),
    }
}

pub async fn wait(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
