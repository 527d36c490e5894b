//! One replica on this node: its instance, its end of the tunnel, and what it has promised.

use crate::agent::gate::BootTime;
use crate::agent::promise::Promise;
use crate::instance::Instance;
use crate::tunnel::Downstream;
use quorate_model::{DatabaseId, Epoch, InstanceRole, NodeId, Position, ReplicaId, ReplicaReport, RunState};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

pub struct Replica {
    pub id: ReplicaId,
    pub database: DatabaseId,
    pub instance: Instance,
    pub downstream: Downstream,
    state: Mutex<State>,
    /// Held while the instance is made, started, promoted or stopped: one such change at a time. A fence never
    /// waits for it.
    pub changing: tokio::sync::Mutex<()>,
    /// Wakes the replica's keeper.
    pub wake: Notify,
}

/// Everything here is decided under one short lock, so that a fence and an attach cannot cross.
pub struct State {
    pub promise: Promise,
    pub role: InstanceRole,
    /// The reign in which this replica is primary and may have its gate opened.
    pub leading: Option<Epoch>,
    /// The reign in which this instance was promoted to its present timeline.
    pub promoted_in: Option<Epoch>,
    /// The reign whose history this replica's log was found to be a prefix of.
    pub validated: Option<Epoch>,
    /// A lease granted to the primary by this node runs at most until then.
    pub granted_until: BootTime,
    /// Leases granted to this replica, by the voters' nodes, in the reign of `leading`.
    pub grants: BTreeMap<NodeId, BootTime>,
    pub run: RunState,
    pub report: Option<ReplicaReport>,
    /// Stopped on purpose by a switchover; stays so until another primary is elected.
    pub retired: bool,
}

impl Replica {
    pub fn new(
        database: DatabaseId,
        id: ReplicaId,
        instance: Instance,
        downstream: Downstream,
        promise: Promise,
        granted_until: BootTime,
    ) -> Replica {
        let state = State {
            promise,
            role: InstanceRole::Unknown,
            leading: None,
            promoted_in: None,
            validated: None,
            // A grant made before a restart of this daemon is not remembered, but it still runs.
            granted_until,
            grants: BTreeMap::new(),
            run: RunState::Absent,
            report: None,
            retired: false,
        };
        Replica {
            id,
            database,
            instance,
            downstream,
            state: Mutex::new(state),
            changing: tokio::sync::Mutex::new(()),
            wake: Notify::new(),
        }
    }

    /// The state. A panic elsewhere while it was held cannot have left it half-changed in a way that matters:
    /// the promise is written before it is set.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_run(&self, run: RunState) {
        self.state().run = run;
    }

    pub fn is_failed(&self) -> bool {
        matches!(self.state().run, RunState::Failed(_) | RunState::Divergent)
    }

    /// Marks the replica as one that must never stream again.
    pub fn set_divergent(&self, position: &Position) {
        tracing::warn!(
            database = %self.database, replica = %self.id, lsn = %position.lsn,
            timeline = %position.timeline, epoch = %position.epoch,
            "the log holds what the history does not; the replica will be rebuilt"
        );
        self.set_run(RunState::Divergent);
    }
}
