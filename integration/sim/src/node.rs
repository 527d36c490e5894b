//! One simulated node: the daemon's control plane on a runtime, a clock, a disk and a port of the world's.

use crate::client::Door;
use crate::clock;
use crate::net::{self, Net};
use crate::pg::host::{Registry, SimHost};
use crate::pg::instance::Around;
use crate::runtime::NodeRuntime;
use crate::trace;
use quorate_model::{DatabaseId, GateReport, NodeId, NodeRecord, PartitionMap};
use quorate_node::app::{Ground, LeaseBridge, control};
use quorate_partition_map::{MapConfig, MapHandle, MemoryDisk};
use quorate_proxy::Gates;
use quorate_reconfig_agent::decide::Timers;
use quorate_ring::{Ring, RingConfig};
use quorate_transport::{PeerNetwork, Service};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The delays of a simulated cluster: the daemon's own, but a lost replica is replaced, and a lost quorum
/// recorded, within seconds.
pub fn timers() -> Timers {
    Timers { replace_after: 6_000, shrink_after: 1_000, quorum_lost_after: 3_000, ..Timers::default() }
}

/// What the world sees of a node that runs.
#[derive(Clone)]
pub struct Live {
    pub map: MapHandle,
    pub view: watch::Receiver<Arc<PartitionMap>>,
    pub gates: Arc<Gates>,
    pub registry: Arc<Registry>,
}

/// The state of a node as the oracle looks at it.
pub struct Seen {
    /// When there is a newer one.
    pub map: Option<Arc<PartitionMap>>,
    pub gates: Vec<(DatabaseId, GateReport)>,
}

pub struct SimNode {
    pub id: NodeId,
    around: Around,
    disk: MemoryDisk,
    clock: Clock,
    runtime: Option<NodeRuntime>,
    live: Arc<Mutex<Option<Live>>>,
    /// It is stopped (SIGSTOP) until then, world milliseconds.
    pub paused_until: Option<u64>,
    /// It is down and starts then.
    pub restart_at: Option<u64>,
}

/// Nanoseconds that a millisecond of the world takes here: a million, and at most the allowed drift off.
struct Clock {
    now: u64,
    rate: u64,
}

impl SimNode {
    pub fn new(id: NodeId, around: Around, offset: u64) -> SimNode {
        let conditions = around.conditions.clone();
        SimNode {
            id,
            disk: MemoryDisk::new(move || conditions.fsync(id)),
            around,
            clock: Clock { now: clock::BEGIN + offset, rate: 1_000_000 },
            runtime: None,
            live: Arc::default(),
            paused_until: None,
            restart_at: None,
        }
    }

    pub fn is_up(&self) -> bool {
        self.runtime.is_some()
    }

    pub fn live(&self) -> Option<Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What changed here since the last look.
    pub fn observe(&self) -> Option<Seen> {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let live = live.as_mut()?;
        let map = match live.view.has_changed() {
            Ok(true) => Some(live.view.borrow_and_update().clone()),
            Ok(false) | Err(_) => None,
        };
        let gates = live.gates.all().iter().map(|gate| (gate.database(), gate.report())).collect();
        Some(Seen { map, gates })
    }

    /// How much faster (or slower) than the world's this node's clock runs, in millionths.
    pub fn set_drift(&mut self, millionths: i64) {
        self.clock.rate = 1_000_000u64.saturating_add_signed(millionths);
    }

    /// The code that runs next is this node's.
    fn take_turn(&self) {
        clock::set(self.clock.now);
        trace::running(self.id);
    }

    pub fn start(&mut self, network: &Arc<Net>, nodes: &[NodeId]) -> std::io::Result<()> {
        self.take_turn();
        self.restart_at = None;
        let runtime = NodeRuntime::new()?;
        let boot = Boot {
            id: self.id,
            around: self.around.clone(),
            disk: self.disk.clone(),
            nodes: nodes.to_vec(),
            live: self.live.clone(),
        };
        let peers = network.attach(self.id, runtime.handle().clone());
        runtime.handle().spawn(async move {
            if let Err(error) = boot.run(peers).await {
                trace::note(&format!("ERROR the node did not start: {error}"));
            }
        });
        self.runtime = Some(runtime);
        Ok(())
    }

    /// A millisecond of the world passes.
    pub fn step(&mut self, now_ms: u64) {
        self.clock.now += self.clock.rate;
        if self.paused_until.is_some_and(|until| now_ms < until) {
            return;
        }
        self.paused_until = None;
        if let Some(runtime) = &self.runtime {
            self.take_turn();
            runtime.step();
        }
    }

    /// The node dies: only its disks stay.
    pub fn crash(&mut self, network: &Net, heard: bool) {
        self.take_turn();
        network.detach(self.id, heard);
        *self.live.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.runtime = None;
        self.paused_until = None;
        let mut dice = self.around.conditions.dice();
        self.around.disks.crash(self.id, &mut dice, self.around.conditions.plant);
    }

    /// Carries something out as this node's kernel would: its instances see this node's clock.
    pub fn as_kernel<T>(&self, act: impl FnOnce() -> T) -> T {
        self.take_turn();
        act()
    }

    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            self.take_turn();
            runtime.handle().spawn(work);
        }
    }
}

struct Boot {
    id: NodeId,
    around: Around,
    disk: MemoryDisk,
    nodes: Vec<NodeId>,
    live: Arc<Mutex<Option<Live>>>,
}

impl Boot {
    async fn run(self, peers: Arc<net::SimPeers>) -> anyhow::Result<()> {
        let id = self.id;
        let stop = CancellationToken::new();
        let config = MapConfig::new(id, "simulated".into(), self.nodes.iter().copied().collect());
        let map = MapHandle::start_in_memory(config, self.disk, peers.clone()).await?;
        let leases = Arc::new(LeaseBridge::default());
        let datagrams = peers.datagrams().ok_or_else(|| anyhow::anyhow!("the node is down already"))?;
        let ring_config = RingConfig {
            node: id,
            listen: net::address(id),
            peers: self.nodes.iter().map(|n| (*n, net::address(*n))).collect::<BTreeMap<_, _>>(),
            key: [7; 32],
            heartbeat: Duration::from_millis(50),
            suspect_after: Duration::from_millis(300),
            lease: Duration::from_millis(400),
            lease_renew: Duration::from_millis(75),
        };
        let (ring, ring_events, driver) = Ring::over(datagrams, ring_config, leases.clone(), stop.clone())?;
        tokio::spawn(driver);

        let gates = Gates::new();
        let host = SimHost::new(self.around.clone(), peers.net().clone());
        let live = Live {
            map: map.clone(),
            view: map.watch(),
            gates: gates.clone(),
            registry: host.registry().clone(),
        };
        *self.live.lock().unwrap_or_else(PoisonError::into_inner) = Some(live);
        let door = Door {
            node: id,
            map: map.watch(),
            peers: peers.clone(),
            gates: gates.clone(),
            registry: host.registry().clone(),
            oracle: self.around.oracle.clone(),
            conditions: self.around.conditions.clone(),
        };
        let ground = Ground {
            record: record(id),
            timers: timers(),
            map,
            peers: peers.clone(),
            ring,
            ring_events,
            leases,
            gates,
            host,
        };
        // Dropped with the runtime, as everything else is.
        let _agent = control::start(ground, stop).await?;
        peers.register(Service::Proxy, Arc::new(door));
        std::future::pending::<()>().await;
        Ok(())
    }
}

fn record(id: NodeId) -> NodeRecord {
    NodeRecord {
        id,
        name: format!("node{}", id.0),
        fault_domain: format!("fd{}", id.0),
        update_domain: format!("ud{}", id.0),
        region: "sim".to_owned(),
        peer: net::address(id).to_string(),
        client: String::new(),
        admin: String::new(),
        http: String::new(),
        version: "sim".to_owned(),
    }
}
