//! One replica on this node: its instance, its end of the tunnel, and what it has promised.

use crate::agent::gate::BootTime;
use crate::agent::host::{Parts, PromiseStore, ReplicaInstance, StandbyTunnel};
use crate::agent::standing::Standing;
use crate::decide::Behalf;
use quorate_model::{DatabaseId, Epoch, Position, ReplicaId, ReplicaReport, RunState};
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

pub struct Replica {
    pub id: ReplicaId,
    pub database: DatabaseId,
    pub instance: Arc<dyn ReplicaInstance>,
    pub downstream: Arc<dyn StandbyTunnel>,
    state: Mutex<State>,
    /// Held while the instance is made, started, promoted or stopped: one such change at a time. A fence never
    /// waits for it.
    pub changing: tokio::sync::Mutex<()>,
    /// Wakes the replica's keeper.
    pub wake: Notify,
}

/// Everything here is decided under one short lock, so that a fence and an attach cannot cross.
pub struct State {
    standing: Standing,
    promise: Box<dyn PromiseStore>,
    pub report: Option<ReplicaReport>,
    /// The latest attempt of an operation for which an order was obeyed here.
    pub latest_order_for: Option<Behalf>,
}

impl State {
    /// Promises `epoch`, durably. An older one than what was promised is refused with what was promised.
    pub fn make_promise(&mut self, epoch: Epoch) -> io::Result<Result<(), Epoch>> {
        match self.standing.must_persist(epoch) {
            Err(promise) => Ok(Err(promise)),
            Ok(None) => Ok(Ok(())),
            Ok(Some(reign)) => {
                self.promise.write(reign)?;
                self.standing.promised(reign);
                Ok(Ok(()))
            }
        }
    }
}

impl Deref for State {
    type Target = Standing;

    fn deref(&self) -> &Standing {
        &self.standing
    }
}

impl DerefMut for State {
    fn deref_mut(&mut self) -> &mut Standing {
        &mut self.standing
    }
}

impl Replica {
    pub fn new(database: DatabaseId, id: ReplicaId, parts: Parts, granted_until: BootTime) -> Replica {
        let Parts { instance, downstream, promise, promised } = parts;
        // A grant made before a restart of this daemon is not remembered, but it still runs.
        let standing = Standing::new(promised, granted_until);
        let state = State { standing, promise, report: None, latest_order_for: None };
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
        self.state().is_failed()
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
