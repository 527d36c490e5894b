//! Leases as this node grants and holds them (DESIGN §5 *Reads*). The ring carries the datagrams.

use super::Agent;
use super::gate::BootTime;
use super::replica::Replica;
use quorate_model::{DatabaseId, Epoch, NodeId, PartitionMap};
use std::collections::BTreeSet;
use std::time::Duration;

/// The longest lease that a node may grant; a daemon that starts assumes that it granted one just before.
pub const MAX_LEASE: Duration = Duration::from_millis(400);

/// What a lone primary gives itself at each look of its keeper: longer than between two looks.
const LONE_LEASE: Duration = Duration::from_secs(1);

/// Whom the primary of a database here asks for leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseWant {
    pub database: DatabaseId,
    pub epoch: Epoch,
    pub voters: Vec<NodeId>,
}

/// Nanoseconds of CLOCK_BOOTTIME.
pub fn boottime() -> BootTime {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn voter_nodes(map: &PartitionMap, database: DatabaseId) -> Vec<NodeId> {
    let Some(record) = map.databases.get(&database) else { return Vec::new() };
    let nodes: BTreeSet<NodeId> =
        record.configurations().flat_map(|c| c.voters.iter()).filter_map(|r| record.node_of(*r)).collect();
    nodes.into_iter().collect()
}

impl Agent {
    /// For every primary here: the nodes of its voters.
    pub fn lease_wants(&self) -> Vec<LeaseWant> {
        let map = self.map();
        self.replicas()
            .iter()
            .filter_map(|replica| {
                let epoch = replica.state().leading?;
                let voters = voter_nodes(&map, replica.database);
                Some(LeaseWant { database: replica.database, epoch, voters })
            })
            .collect()
    }

    /// A voter's node granted a lease that runs until `until` by this node's clock.
    pub fn lease_granted(&self, database: DatabaseId, epoch: Epoch, by: NodeId, until: BootTime) {
        let map = self.map();
        let Some(record) = map.databases.get(&database) else { return };
        let Some(replica) = self.replica_of(database) else { return };
        let holds = {
            let mut state = replica.state();
            if state.leads(replica.id, epoch).is_err() {
                return;
            }
            let until = state.granted(replica.id, record, epoch, by, until);
            // Set under the lock: a fence drops the lease under the same lock after its promise.
            if let Some(until) = until {
                self.gates().set_lease(database, until);
            }
            until
        };
        if holds.is_none() {
            tracing::trace!(database = %database, "a lease was granted, but not by enough voters");
        }
    }

    /// A primary that nobody follows needs nobody's lease: no other can be elected before it has answered a fence, and
    /// that drops what it has.
    pub(super) fn lease_alone(&self, replica: &Replica) {
        let map = self.map();
        let Some(record) = map.databases.get(&replica.database).filter(|d| d.is_read_only()) else { return };
        let state = replica.state();
        if record.current.primary == replica.id && state.leads(replica.id, record.epoch).is_ok() {
            // Set under the lock, as every lease is.
            self.gates().set_lease(replica.database, boottime() + LONE_LEASE.as_nanos() as u64);
        }
    }

    /// Whether this node lets the primary of `epoch` release results until `until` (this node's clock). What is
    /// granted is remembered before it is answered: a fence reports how long it still runs.
    pub fn grant_lease(&self, database: DatabaseId, epoch: Epoch, until: BootTime) -> bool {
        self.replica_of(database).is_some_and(|replica| {
            let mut state = replica.state();
            state.remembers() && state.grant(epoch, until)
        })
    }

    /// The daemon did not run for a while: what it held may have been taken over meanwhile.
    pub fn drop_leases(&self) {
        for replica in self.replicas() {
            replica.state().forget_grants();
            self.gates().drop_lease(replica.database);
        }
    }
}
