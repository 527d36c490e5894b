//! Every metric that the daemon's wiring records, by name, and the recorder that /metrics shows. Names are an
//! interface: dashboards and alerts read them. Other crates name their own in a `metric` module of theirs.
//!
//! What concerns the cluster is read off the partition map, so that it is counted once: by the node that holds
//! the new primary for a reconfiguration, by every node for what it carries itself.

use crate::admin::AdminContext;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use quorate_model::{Event, EventKind, NodeId, PartitionMap};
use quorate_proxy::LOST_ANSWERS;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Histogram of a reconfiguration's steps; label `phase`: detect, fence, promote, …, and `total`.
pub const FAILOVER_SECONDS: &str = "quorate_failover_seconds";
/// Reconfigurations whose new primary is on this node; label `kind`: failover, re-election, switchover.
pub const RECONFIGURATIONS: &str = "quorate_reconfigurations_total";
/// 1; labels `node`, `version`.
pub const NODE_INFO: &str = "quorate_node_info";
/// Replicas on this node by the map; label `role`: primary, secondary, learner.
pub const REPLICAS: &str = "quorate_replicas";
/// Databases of the cluster; label `phase`.
pub const DATABASES: &str = "quorate_databases";
/// Operations of the cluster that have not ended.
pub const OPERATIONS_RUNNING: &str = "quorate_operations_running";
/// Nodes of the cluster as this node's ring sees them; label `state`.
pub const NODES: &str = "quorate_nodes";

/// Bounds of failover phases, in seconds: DESIGN's targets are 0.2, 0.5, 0.7 and 1.
const FAILOVER_BUCKETS: &[f64] =
    &[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 5.0, 10.0, 30.0];

/// How often gauges are set.
const OBSERVE: Duration = Duration::from_secs(5);

/// Reconfigurations that are told apart by their phases.
const TIMED: [EventKind; 3] = [EventKind::Failover, EventKind::Reelection, EventKind::Switchover];

/// Installs the recorder; once a process.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(FAILOVER_SECONDS.to_owned()), FAILOVER_BUCKETS)?
        .install_recorder()?;
    describe_histogram!(FAILOVER_SECONDS, Unit::Seconds, "how long each phase of a reconfiguration took");
    describe_counter!(RECONFIGURATIONS, "reconfigurations whose new primary is on this node");
    describe_counter!(
        LOST_ANSWERS,
        "statements whose answers were lost with their primary, by what was found out"
    );
    describe_gauge!(NODE_INFO, "this node and its version");
    describe_gauge!(REPLICAS, "replicas on this node, by role");
    describe_gauge!(DATABASES, "databases of the cluster, by phase");
    describe_gauge!(OPERATIONS_RUNNING, "operations of the cluster that have not ended");
    describe_gauge!(NODES, "nodes of the cluster, by state");
    Ok(handle)
}

/// Follows the map until `stop`: counts reconfigurations and sets gauges.
pub async fn follow(context: Arc<dyn AdminContext>, stop: CancellationToken) {
    let me = context.node();
    let mut map = context.map_watch();
    let mut seen = map.borrow_and_update().last_event;
    let mut observing = tokio::time::interval(OBSERVE);
    observing.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let mut tick = false;
        tokio::select! {
            () = stop.cancelled() => return,
            _ = observing.tick() => tick = true,
            changed = map.changed() => if changed.is_err() { return },
        }
        let now = map.borrow_and_update().clone();
        for event in now.events.iter().filter(|e| e.id > seen) {
            count(&now, event, me);
        }
        seen = now.last_event;
        if tick {
            observe(&now, context.as_ref(), me);
        }
    }
}

fn count(map: &PartitionMap, event: &Event, me: NodeId) {
    let node = event.to.and_then(|r| map.databases.get(&event.database)?.node_of(r));
    if node != Some(me) || !TIMED.contains(&event.kind) {
        return;
    }
    counter!(RECONFIGURATIONS, "kind" => event.kind.name()).increment(1);
    let mut total = 0;
    for step in &event.steps {
        total += step.micros;
        histogram!(FAILOVER_SECONDS, "phase" => step.name.clone()).record(seconds(step.micros));
    }
    histogram!(FAILOVER_SECONDS, "phase" => "total").record(seconds(total));
}

fn seconds(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}

fn observe(map: &PartitionMap, context: &dyn AdminContext, me: NodeId) {
    if let Some(node) = map.nodes.get(&me) {
        gauge!(NODE_INFO, "node" => node.name.clone(), "version" => node.version.clone()).set(1.0);
    }
    let (mut primaries, mut secondaries, mut learners) = (0u32, 0u32, 0u32);
    for database in map.databases.values() {
        for replica in database.replicas_on(me) {
            if database.current.primary == replica {
                primaries += 1;
            } else if database.current.voters.contains(&replica) {
                secondaries += 1;
            } else {
                learners += 1;
            }
        }
    }
    gauge!(REPLICAS, "role" => "primary").set(primaries);
    gauge!(REPLICAS, "role" => "secondary").set(secondaries);
    gauge!(REPLICAS, "role" => "learner").set(learners);
    for phase in PHASES {
        let count = map.databases.values().filter(|d| d.phase.name() == phase).count();
        gauge!(DATABASES, "phase" => phase).set(count as f64);
    }
    let running = map.operations.values().filter(|o| !o.state.is_over()).count();
    gauge!(OPERATIONS_RUNNING).set(running as f64);
    let ring = context.ring();
    for state in ["alive", "suspect", "down"] {
        gauge!(NODES, "state" => state).set(ring.iter().filter(|r| r.state == state).count() as f64);
    }
}

/// Every phase, so that a gauge goes back to zero when the last database has left it.
const PHASES: [&str; 8] =
    ["creating", "stable", "joint", "electing", "promoting", "switching", "quorum lost", "dropping"];
