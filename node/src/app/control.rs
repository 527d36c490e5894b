//! The control plane of a node: map, ring, coordinator, agent and gates, joined.
//!
//! Nothing here knows a socket, a file or PostgreSQL, so the simulation starts the same.
//!
//! Order matters for safety (R7): one linearizable read of the map first, and only then the agent that opens tunnels
//! and gates.

use super::bridges::{self, EvidenceBridge, GateBridge, LeaseBridge, MapBridge};
use quorate_model::{Command, NodeRecord};
use quorate_partition_map::MapHandle;
use quorate_proxy::Gates;
use quorate_reconfig_agent::agent::{Agent, Host};
use quorate_reconfig_agent::coordinator::Coordinator;
use quorate_reconfig_agent::decide::Timers;
use quorate_reconfig_agent::map::Map;
use quorate_ring::{Ring, RingEvent};
use quorate_transport::PeerNetwork;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Pause between attempts to reach the map at the start.
const MAP_PAUSE: Duration = Duration::from_millis(200);

/// What a node's control plane stands on.
pub struct Ground {
    pub record: NodeRecord,
    pub timers: Timers,
    pub map: MapHandle,
    pub peers: Arc<dyn PeerNetwork>,
    pub ring: Ring,
    pub ring_events: tokio::sync::mpsc::Receiver<RingEvent>,
    /// The one that the ring was started with; empty until the agent runs.
    pub leases: Arc<LeaseBridge>,
    pub gates: Arc<Gates>,
    pub host: Arc<dyn Host>,
}

/// Returns when the map is current and the agent runs. Cancelled by `stop`.
pub async fn start(ground: Ground, stop: CancellationToken) -> anyhow::Result<Agent> {
    let Ground { record, timers, map, peers, ring, ring_events, leases, gates, host } = ground;
    let node = record.id;
    // R7: nothing of what this node did before counts until it has seen a map that is not older than now.
    wait_for_map(&map, &stop).await?;
    tracing::info!(%node, "the partition map is current");
    register(&map, record, &stop).await?;

    let bridge = Arc::new(GateBridge { gates: gates.clone(), ring: OnceLock::from(ring.clone()) });
    let leader = bridges::leader(&map);
    let shared_map: Arc<dyn Map> = Arc::new(MapBridge(map));
    let coordinator =
        Coordinator::start(node, timers, shared_map.clone(), leader.clone(), peers.clone(), stop.clone());
    tokio::spawn(relay_suspicions(ring_events, coordinator.clone()));
    tokio::spawn(doubt_lost(peers.clone(), ring, stop.clone()));

    let agent = Agent::start(node, host, shared_map, leader, peers, bridge, stop);
    gates.set_evidence(Arc::new(EvidenceBridge(agent.clone())));
    agent.serve(coordinator);
    // The ring grants and asks for leases from here on.
    let _ = leases.0.set(agent.clone());
    Ok(agent)
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
async fn doubt_lost(peers: Arc<dyn PeerNetwork>, ring: Ring, stop: CancellationToken) {
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
