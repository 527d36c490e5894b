//! Wiring: what is started in which order, and how it ends.
//!
//! What stands on sockets, files and PostgreSQL is made here; what stands on that, and on nothing of this machine,
//! is [`control`], which a simulation starts as well.

mod bridges;
pub mod control;
mod operator;
mod run;

pub use bridges::LeaseBridge;
pub use control::Ground;
pub use operator::Operator;
pub use run::run;

use quorate_model::{NodeId, NodeRecord};
use quorate_partition_map::{MapConfig, MapHandle};
use quorate_proxy::{ClientTls, Gates, Proxy, ProxyConfig};
use quorate_reconfig_agent::agent::{Agent, HostConfig, PostgresHost};
use quorate_reconfig_agent::decide::Timers;
use quorate_reconfig_agent::instance::{Limits, OsUser, Postgres};
use quorate_ring::{Ring, RingConfig};
use quorate_throttle::Admission;
use quorate_transport::{Identity, Peers};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Instances get this long to stop when the daemon is asked to end.
const STOP_LIMIT: Duration = Duration::from_secs(20);

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
    pub busy_poll: Duration,
    pub limits: Limits,
    pub max_sessions_node: u32,
    pub max_sessions_server: u32,
    pub logins_per_second: u32,
    pub max_pooled: usize,
    pub workers: usize,
    pub client_tls: Option<Arc<ClientTls>>,
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
    user.check_reaches(&replicas_dir)?;
    user.check_reaches(&plan.run_dir)?;

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

    let gates = Gates::new();
    let host_config = HostConfig { replicas_dir, run_dir: plan.run_dir, postgres, user, limits: plan.limits };
    let ground = Ground {
        record: plan.record.clone(),
        timers: plan.timers.clone(),
        map: map.clone(),
        peers: peers.clone(),
        ring: ring.clone(),
        ring_events,
        leases,
        gates: gates.clone(),
        host: PostgresHost::new(host_config, peers.clone()),
    };
    let agent = control::start(ground, stop.clone()).await?;

    let admission = Admission::new(plan.max_sessions_node, plan.max_sessions_server);
    let proxy = Proxy::start(
        ProxyConfig {
            tls: plan.client_tls.clone(),
            workers: plan.workers,
            hold: plan.hold,
            logins_per_second: plan.logins_per_second,
            max_pooled: plan.max_pooled,
            busy_poll: plan.busy_poll,
            ..ProxyConfig::new(node, plan.client_listen)
        },
        map.watch(),
        peers.clone(),
        gates.clone(),
        admission,
        stop.clone(),
    )?;
    let operator =
        Arc::new(Operator { node, map: map.clone(), ring, peers, pools: Box::new(proxy.pools_teller()) });
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
