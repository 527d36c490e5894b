//! One replica on this node: its instance, its end of the tunnel, and what it has promised.

use crate::agent::gate::BootTime;
use crate::agent::host::{Parts, PromiseStore, ReplicaInstance, StandbyTunnel};
use crate::agent::standing::Standing;
use crate::decide::{Behalf, Failure};
use crate::instance::InstanceError;
use crate::tunnel::Route;
use quorate_model::{DatabaseId, Epoch, Position, ReplicaId, ReplicaReport, RunState};
use std::collections::BTreeSet;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
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
    /// Starts in a row whose postmaster ended before it answered.
    pub failed_starts: AtomicU32,
}

/// Everything here is decided under one short lock, so that a fence and an attach cannot cross.
pub struct State {
    standing: Standing,
    promise: Box<dyn PromiseStore>,
    pub report: Option<ReplicaReport>,
    /// The latest attempt of an operation for which an order was obeyed here.
    pub latest_order_for: Option<Behalf>,
    /// When its instance ended or was retired as a primary, until it is started again.
    pub led_until: Option<Instant>,
    /// The slots that were last arranged, and in which postmaster's time.
    slots: Option<(u32, BTreeSet<String>)>,
    /// Where its log ended when it was found divergent: the floor of a rewind.
    divergent_at: Option<Position>,
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

impl State {
    /// The last known end of its log. Of a divergent one the end that was found divergent.
    pub fn position(&self) -> Option<Position> {
        let sampled = self.report.as_ref().and_then(|r| r.position);
        if self.run == RunState::Divergent { self.divergent_at.or(sampled) } else { sampled }
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
        let state = State {
            standing,
            promise,
            report: None,
            latest_order_for: None,
            led_until: None,
            slots: None,
            divergent_at: None,
        };
        Replica {
            id,
            database,
            instance,
            downstream,
            state: Mutex::new(state),
            changing: tokio::sync::Mutex::new(()),
            wake: Notify::new(),
            failed_starts: AtomicU32::new(0),
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

    /// Slots for these replicas and no others, on a standby too: a promotion then finds them there.
    pub async fn arrange_slots(
        &self,
        replicas: impl IntoIterator<Item = ReplicaId>,
    ) -> Result<(), InstanceError> {
        let names: BTreeSet<String> =
            replicas.into_iter().filter(|r| *r != self.id).map(|r| r.standby_name()).collect();
        let Some(pid) = self.instance.process().borrow().pid() else { return Err(InstanceError::NotRunning) };
        let wanted = Some((pid, names));
        if self.state().slots == wanted {
            return Ok(());
        }
        let Some((_, names)) = &wanted else { return Ok(()) };
        // What is still in use is dropped at a later look; until then these are not arranged.
        if self.instance.ensure_slots(names).await? {
            self.state().slots = wanted;
        }
        Ok(())
    }

    /// Attaches the standby's end for as long as nothing newer is promised. Under the lock, so that a fence finds the
    /// route of an older reign and cuts it, or it is not taken.
    pub fn attach(&self, route: Route) -> Result<(), Failure> {
        let state = self.state();
        state.obeys(self.id, route.epoch)?;
        self.downstream.attach(route);
        Ok(())
    }

    /// As [`Replica::attach`], for a rewind and nothing else.
    pub fn attach_rewind(&self, route: Route) -> Result<(), Failure> {
        let state = self.state();
        state.obeys(self.id, route.epoch)?;
        self.downstream.attach_rewind(route);
        Ok(())
    }

    /// Its log left the history of `reign`: it must never stream again, unless it was elected meanwhile and the history
    /// goes on from its log.
    pub fn set_divergent(&self, reign: Epoch, position: &Position) -> Result<(), Failure> {
        let mut state = self.state();
        state.obeys(self.id, reign)?;
        tracing::warn!(
            database = %self.database, replica = %self.id, lsn = %position.lsn,
            timeline = %position.timeline, epoch = %position.epoch,
            "the log holds what the history does not"
        );
        state.divergent_at = Some(*position);
        state.run = if self.instance.was_rewound() {
            RunState::Failed(format!("divergent at {} although it was rewound", position.lsn))
        } else {
            RunState::Divergent
        };
        Ok(())
    }
}
