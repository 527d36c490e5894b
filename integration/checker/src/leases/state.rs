//! The state of one takeover while reads go on, as the model checker compares it.

use super::clock::{Clock, True};
use quorate_model::{Epoch, ReplicaId};
use quorate_reconfig_agent::agent::standing::Standing;
use quorate_reconfig_agent::decide::Progress;
use quorate_ring::lease::Requests;
use quorate_ring::{BootTime, LeaseAnswer, LeaseRequest};
use std::collections::BTreeMap;

/// A query that the old primary's gate let in, and whether the lease ran then. Postgres answers at once; the result
/// may wait at the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Query {
    pub leased: bool,
}

/// The old primary's node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Old {
    pub standing: Standing,
    pub requests: Requests,
    /// Results may leave until then, by its own clock.
    pub lease: Option<BootTime>,
    pub gate_open: bool,
    pub query: Option<Query>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Spent {
    pub rounds: u8,
    pub gaps: u8,
    pub restarts: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub now: True,
    /// By node: the old primary's, the two voters', the coordinator's.
    pub clocks: [Clock; 4],
    pub old: Old,
    /// The voters' nodes.
    pub voters: BTreeMap<ReplicaId, Standing>,
    /// Datagrams under way. Each may be lost: it then stays here.
    pub requests: BTreeMap<(ReplicaId, u64), LeaseRequest>,
    pub answers: BTreeMap<(ReplicaId, u64), LeaseAnswer>,
    pub progress: Progress,
    /// The new primary's gate is open.
    pub opened: bool,
    /// A client was told that a newer write is committed.
    pub newer: bool,
    /// A client was shown the newer write.
    pub shown: bool,
    pub spent: Spent,
}

pub const OLD: ReplicaId = ReplicaId(1);
pub const NEW: ReplicaId = ReplicaId(2);
pub const OTHER: ReplicaId = ReplicaId(3);
pub const OLD_REIGN: Epoch = Epoch::new(0, 1, 0);
pub const NEW_REIGN: Epoch = Epoch::new(0, 2, 0);

impl State {
    pub fn clock(&self, replica: ReplicaId) -> Clock {
        self.clocks[replica.0 as usize - 1]
    }

    /// The coordinator's monotonic milliseconds.
    pub fn coordinator_ms(&self) -> u64 {
        self.clocks[3].ms_at(self.now)
    }
}
