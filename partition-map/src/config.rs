//! What the map of one node is started with.

use crate::StartError;
use quorate_model::NodeId;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// Voters when there are few nodes, and when there are many.
const FEW_VOTERS: usize = 3;
const MANY_VOTERS: usize = 5;

const SNAPSHOT_EVERY_ENTRIES: u64 = 1000;
/// Entries kept behind a snapshot, so that a node that was away for a moment needs no snapshot.
const ENTRIES_KEPT: u64 = 1000;
const SNAPSHOT_CHUNK_BYTES: u64 = 1024 * 1024;
const SNAPSHOT_CHUNK_TIMEOUT_MS: u64 = 2_000;
const APPEND_ENTRIES_MAX: u64 = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapConfig {
    pub node: NodeId,
    /// Where the log is kept; made if it does not exist.
    pub dir: PathBuf,
    /// Every configured node.
    pub nodes: BTreeSet<NodeId>,
    /// Who votes when the cluster is made; without effect later.
    pub voters: BTreeSet<NodeId>,
    /// How often a leader says that it is there.
    pub heartbeat_ms: u64,
    /// Without a leader for this long, the first voter in line asks the others for an election; the last in
    /// line after `election_max_ms`. The leader's lease, within which no voter votes for another, is the
    /// minimum.
    pub election_min_ms: u64,
    pub election_max_ms: u64,
}

impl MapConfig {
    /// The usual voters and times.
    pub fn new(node: NodeId, dir: PathBuf, nodes: BTreeSet<NodeId>) -> Self {
        let voters = Self::first_voters(&nodes);
        MapConfig { node, dir, nodes, voters, heartbeat_ms: 75, election_min_ms: 250, election_max_ms: 500 }
    }

    /// The first three nodes, or five where there are that many.
    pub fn first_voters(nodes: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let count = if nodes.len() >= MANY_VOTERS { MANY_VOTERS } else { FEW_VOTERS };
        nodes.iter().copied().take(count).collect()
    }

    pub(crate) fn lease(&self) -> Duration {
        Duration::from_millis(self.election_min_ms)
    }

    pub(crate) fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms)
    }

    /// Checks everything and tells of all faults together.
    pub(crate) fn check(&self) -> Result<(), StartError> {
        let mut faults = Vec::new();
        if !self.nodes.contains(&self.node) {
            faults.push(format!("node {} is not among the configured nodes", self.node));
        }
        if self.voters.is_empty() || !self.voters.is_subset(&self.nodes) {
            faults.push("the voters must be some of the configured nodes".to_owned());
        }
        if self.heartbeat_ms == 0 || self.election_min_ms < 2 * self.heartbeat_ms + 2 {
            faults.push("the shortest election timeout must exceed two heartbeats".to_owned());
        }
        if self.election_max_ms <= self.election_min_ms {
            faults.push("the longest election timeout must exceed the shortest".to_owned());
        }
        if faults.is_empty() { Ok(()) } else { Err(StartError::Config(faults.join("; "))) }
    }

    /// Raft's own timers only bound its requests: heartbeats and elections are set off from here, because the
    /// library's come in steps of 1.5 heartbeats and its elections ask nobody first.
    pub(crate) fn raft(&self) -> Result<openraft::Config, StartError> {
        let config = openraft::Config {
            cluster_name: "quorate".to_owned(),
            enable_elect: false,
            // The lease.
            election_timeout_max: self.election_min_ms,
            // The deadline of a vote.
            election_timeout_min: self.election_min_ms - 1,
            // The deadline of an append, which includes a disk flush at the other side.
            heartbeat_interval: self.election_min_ms - 2,
            install_snapshot_timeout: SNAPSHOT_CHUNK_TIMEOUT_MS,
            snapshot_max_chunk_size: SNAPSHOT_CHUNK_BYTES,
            max_payload_entries: APPEND_ENTRIES_MAX,
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY_ENTRIES),
            max_in_snapshot_log_to_keep: ENTRIES_KEPT,
            replication_lag_threshold: 2 * SNAPSHOT_EVERY_ENTRIES,
            ..openraft::Config::default()
        };
        config.validate().map_err(|e| StartError::Config(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn nodes(count: u64) -> BTreeSet<NodeId> {
        (1..=count).map(NodeId).collect()
    }

    #[test]
    fn the_usual_values_pass_and_every_fault_is_told() {
        let good = MapConfig::new(NodeId(1), "m".into(), nodes(4));
        assert_eq!(good.voters, nodes(3));
        good.check().unwrap();
        good.raft().unwrap();
        assert_eq!(MapConfig::first_voters(&nodes(7)), nodes(5));
        let bad = MapConfig { node: NodeId(9), voters: BTreeSet::new(), election_max_ms: 100, ..good };
        let told = bad.check().unwrap_err().to_string();
        assert_eq!(told.matches(';').count(), 2, "{told}");
    }
}
