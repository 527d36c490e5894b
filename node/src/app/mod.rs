//! Wiring: what is started in which order, and how it ends.
//!
//! Order matters for safety (R7): the map first, then one linearizable read, and only then the agent that opens
//! tunnels and the gate's clients.

mod bridges;
mod operator;
mod run;

pub use operator::Operator;
pub use run::run;

use bridges::{GateBridge, LeaseBridge, MapBridge};
use quorate_model::{Command, NodeId, NodeRecord};
use quorate_partition_map::{MapConfig, MapHandle};
use quorate_proxy::{Gates, Proxy, ProxyConfig};
use quorate_reconfig_agent::agent::{Agent, AgentConfig};
use quorate_reconfig_agent::coordinator::Coordinator;
use quorate_reconfig_agent::decide::Timers;
use quorate_reconfig_agent::instance::{Limits, OsUser, Postgres};
use quorate_reconfig_agent::map::Map;
use quorate_ring::{Ring, RingConfig, RingEvent};
use quorate_throttle::Admission;
use quorate_transport::{Identity, Peers};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Instances get this long to stop when the daemon is asked to end.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// Pause between attempts to reach the map at the start.
const MAP_PAUSE: Duration = Duration::from_millis(200);

/// Everything the parts need, checked and resolved by [`crate::config`].
pub struct Plan {
    pub record: NodeRecord,
    pub peer_listen: SocketAddr,
    pub ring_listen: SocketAddr,
    pub client_listen: SocketAddr,
    pub peers: BTreeMap<NodeId, String>,
    pub ring_peers: BTreeMap<NodeId, SocketAddr>,
    pub tls_dir: PathBuf,
    pub cluster_key: [u8; 32],
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    pub pg_bin: Option<PathBuf>,
    pub timers: Timers,
    pub suspect_after: Duration,
    pub lease: Duration,
    pub hold: Duration,
    pub limits: Limits,
    pub max_sessions_node: u32,
    pub max_sessions_server: u32,
    pub workers: usize,
    pub client_tls: Option<Arc<rustls::ServerConfig>>,
}

/// A running node.
pub struct App {
    pub operator: Arc<Operator>,
    agent_done: CancellationToken,
    map: MapHandle,
    agent: Agent,
    _proxy: Proxy,
}

/// Starts a node up to the point where it serves. Cancelled by `stop`.
pub async fn start(plan: Plan, stop: CancellationToken) -> anyhow::Result<App> {
    let node = plan.record.id;
    let postgres = Postgres::locate(plan.pg_bin.as_deref())?;
    let user = OsUser::for_instances()?;
    let identity = Identity::load(node, &plan.tls_dir)?;
    let replicas_dir = plan.data_dir.join("replicas");
    std::fs::create_dir_all(&replicas_dir)?;
    std::fs::create_dir_all(&plan.run_dir)?;

    let peers = Peers::new(identity, plan.peers.clone());
    let listener = TcpListener::bind(plan.peer_listen).await?;
    // Outlives `stop`: while instances stop, their walsenders still ship the end of the log.
    let transport_stop = CancellationToken::new();
    tokio::spawn(peers.clone().serve(listener, transport_stop.clone()));

    let nodes = plan.peers.keys().copied().collect();
    let map = MapHandle::start(MapConfig::new(node, plan.data_dir.join("map"), nodes), peers.clone()).await?;

    let leases = Arc::new(LeaseBridge::default());
    let ring_config = RingConfig {
        node,
        listen: plan.ring_listen,
        peers: plan.ring_peers.clone(),
        key: plan.cluster_key,
        heartbeat: Duration::from_millis(50),
        suspect_after: plan.suspect_after,
        lease: plan.lease,
        lease_renew: Duration::from_millis(75),
    };
    let (ring, ring_events) = Ring::start(ring_config, leases.clone(), stop.clone()).await?;

    // R7: nothing of what this node did before counts until it has seen a map that is not older than now.
    wait_for_map(&map, &stop).await?;
    tracing::info!(%node, "the partition map is current");
    register(&map, plan.record.clone(), &stop).await?;

    let gates = Gates::new();
    let bridge = Arc::new(GateBridge { gates: gates.clone(), ring: OnceLock::from(ring.clone()) });
    let leader = bridges::leader(&map);
    let shared_map: Arc<dyn Map> = Arc::new(MapBridge(map.clone()));
    let coordinator = Coordinator::start(
        node,
        plan.timers.clone(),
        shared_map.clone(),
        leader.clone(),
        peers.clone(),
        stop.clone(),
    );
    tokio::spawn(relay_suspicions(ring_events, coordinator.clone()));
    tokio::spawn(doubt_lost(peers.clone(), ring.clone(), stop.clone()));

    let admission = Admission::new(plan.max_sessions_node, plan.max_sessions_server);
    let proxy = Proxy::start(
        ProxyConfig {
            tls: plan.client_tls.clone(),
            workers: plan.workers,
            hold: plan.hold,
            ..ProxyConfig::new(node, plan.client_listen)
        },
        map.watch(),
        peers.clone(),
        gates,
        admission,
        stop.clone(),
    )?;
    let agent_config =
        AgentConfig { node, replicas_dir, run_dir: plan.run_dir, postgres, user, limits: plan.limits };
    let agent = Agent::start(agent_config, shared_map, leader, peers.clone(), bridge, stop.clone());
    agent.serve(coordinator);
    // The ring grants and asks for leases from here on.
    let _ = leases.0.set(agent.clone());

    let operator = Arc::new(Operator { node, map: map.clone(), ring, peers });
    Ok(App { operator, agent_done: transport_stop, map, agent, _proxy: proxy })
}

impl App {
    /// Waits until everything has stopped after `stop` was cancelled.
    pub async fn finish(self) {
        if tokio::time::timeout(STOP_LIMIT, self.agent.stopped()).await.is_err() {
            tracing::warn!("not every instance stopped in time");
        }
        self.agent_done.cancel();
        self.map.shutdown().await;
    }
}

async fn wait_for_map(map: &MapHandle, stop: &CancellationToken) -> anyhow::Result<()> {
    loop {
        let error = tokio::select! {
            read = map.read_barrier() => match read {
                Ok(()) => return Ok(()),
                Err(error) => error,
            },
            () = stop.cancelled() => anyhow::bail!("stopped before the partition map could be read"),
        };
        tracing::debug!(%error, "waiting for the partition map");
        tokio::time::sleep(MAP_PAUSE).await;
    }
}

async fn register(map: &MapHandle, record: NodeRecord, stop: &CancellationToken) -> anyhow::Result<()> {
    loop {
        let known = map.watch().borrow().nodes.get(&record.id) == Some(&record);
        if known {
            return Ok(());
        }
        tokio::select! {
            outcome = map.propose(Command::RegisterNode(record.clone())) => match outcome {
                Ok(_) => return Ok(()),
                Err(quorate_partition_map::MapError::Refused(refusal)) => return Err(refusal.into()),
                Err(error) => tracing::debug!(%error, "not registered yet"),
            },
            () = stop.cancelled() => anyhow::bail!("stopped before this node was registered"),
        }
        tokio::time::sleep(MAP_PAUSE).await;
    }
}

async fn relay_suspicions(mut events: tokio::sync::mpsc::Receiver<RingEvent>, coordinator: Coordinator) {
    while let Some(event) = events.recv().await {
        match event {
            RingEvent::Suspect { node, reporter, silent_ms } => {
                tracing::info!(%node, %reporter, silent_ms, "suspected");
                coordinator.suspect(node, reporter, silent_ms);
            }
            RingEvent::Alive { node } => coordinator.alive(node),
        }
    }
}

/// A broken connection makes the ring ask at once.
async fn doubt_lost(peers: Arc<Peers>, ring: Ring, stop: CancellationToken) {
    let mut lost = peers.on_lost();
    loop {
        tokio::select! {
            node = lost.recv() => match node {
                Ok(node) => ring.doubt(node),
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
            },
            () = stop.cancelled() => return,
        }
    }
}
