//! The state of one gate: who may pass, in which reign, and until when.
//!
//! A few atomics are all that a session looks at for each read: the *generation* that passes, how results are
//! vouched for, and the lease. A generation is one run of one Postgres behind the gate: holding and opening again keeps
//! it (a re-elected incumbent keeps its sessions), closing and parking end it. Everything else changes seldom and is
//! behind a mutex.
//!
//! Invariants: a byte of Postgres leaves only for a session of the generation that passes, while now < lease or behind
//! a confirmation that began after the byte was received (I7); a gate whose lease was never set lets nothing out by a
//! lease; reigns never go back (I5).

use super::control::Control;
use super::evidence::Evidence;
use super::pass::Pass;
use super::rounds::Rounds;
use super::slot::{Slot, locked};
use crate::wire::control::End;
use quorate_model::{DatabaseId, Epoch, GateReport};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Nanoseconds of CLOCK_BOOTTIME.
pub type BootTime = u64;

/// How long a session that was cut may take to see it before [`Gate::park`] returns without it.
const CUT_GRACE: Duration = Duration::from_secs(1);

pub fn boot_time() -> BootTime {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Held,
    Open,
    /// Open to those who are in the middle of something.
    Parking,
}

#[derive(Debug)]
struct Inner {
    state: State,
    generation: u64,
    epoch: Epoch,
    socket: PathBuf,
    sessions: HashMap<u64, Arc<Slot>>,
    next_session: u64,
    /// Sessions that left between transactions since the gate began to park.
    released: u32,
    /// Why the generation before this one ended.
    ended: (End, String),
}

/// What a session finds when it looks at its gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Door {
    Open,
    Held,
    /// Leave at the end of the transaction.
    Parking,
    /// Its generation is over.
    Ended {
        end: End,
        why: String,
    },
}

/// How parking went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parked {
    /// Sessions that were between transactions and go on elsewhere.
    pub kept: u32,
    /// Sessions that were in the middle of one when the time was over.
    pub cut: u32,
}

/// The gate is not open, with the reason in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotOpen(pub String);

/// What passes now.
#[derive(Clone, Debug)]
pub(crate) struct Passing {
    pub generation: u64,
    pub epoch: Epoch,
    pub socket: PathBuf,
}

/// The only door to a replica's Postgres for clients. Controlled by the replica agent.
pub struct Gate {
    database: DatabaseId,
    /// The generation whose sessions pass; 0 when none do.
    passing: AtomicU64,
    lease_until: AtomicU64,
    /// Results are confirmed, instead of leased.
    pub(super) confirms: AtomicBool,
    /// Ends of transactions wait for evidence.
    pub(super) strict: AtomicBool,
    /// What the audit found: makes the gate strict.
    pub(super) weakened: AtomicBool,
    /// Sessions that hold results back until the lease is renewed.
    pub(super) waiting: AtomicU32,
    pub(super) confirmations: Rounds,
    pub(super) evidence: Rounds,
    pub(super) source: Arc<OnceLock<Arc<dyn Evidence>>>,
    inner: Mutex<Inner>,
    /// Counts changes, for those who wait for one.
    changes: watch::Sender<u64>,
    pub(crate) control: Control,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gate({})", self.database)
    }
}

impl Gate {
    /// Without a `source`, no confirmation and no evidence is ever had.
    pub(super) fn new(database: DatabaseId, source: Arc<OnceLock<Arc<dyn Evidence>>>) -> Arc<Gate> {
        Arc::new(Gate {
            database,
            passing: AtomicU64::new(0),
            lease_until: AtomicU64::new(0),
            confirms: AtomicBool::new(false),
            strict: AtomicBool::new(false),
            weakened: AtomicBool::new(false),
            waiting: AtomicU32::new(0),
            confirmations: Rounds::default(),
            evidence: Rounds::default(),
            source,
            inner: Mutex::new(Inner {
                state: State::Closed,
                generation: 1,
                epoch: Epoch::default(),
                socket: PathBuf::new(),
                sessions: HashMap::new(),
                next_session: 0,
                released: 0,
                ended: (End::Lost, "the gate was closed".to_owned()),
            }),
            changes: watch::Sender::new(0),
            control: Control::default(),
        })
    }

    pub fn database(&self) -> DatabaseId {
        self.database
    }

    /// Sessions pass, to the Postgres whose socket is in that directory. Those that were held go on.
    pub fn open(&self, epoch: Epoch, socket: PathBuf) {
        let mut inner = locked(&self.inner);
        if epoch.reign() < inner.epoch.reign() {
            tracing::error!(database = %self.database, %epoch, "refused to open a gate in an older reign");
            return;
        }
        if inner.socket != socket && inner.state != State::Closed {
            self.end(&mut inner, End::Lost, "the server was replaced");
        }
        inner.epoch = epoch;
        inner.socket = socket;
        inner.state = State::Open;
        self.passing.store(inner.generation, Ordering::SeqCst);
        self.tell(inner);
        tracing::info!(database = %self.database, %epoch, "gate open");
    }

    /// Keeps sessions and their backends, and lets nothing pass in either direction.
    pub fn hold(&self) {
        let mut inner = locked(&self.inner);
        if inner.state == State::Closed {
            return;
        }
        inner.state = State::Held;
        self.passing.store(0, Ordering::SeqCst);
        self.tell(inner);
    }

    /// Ends every session's backend stream.
    pub fn close(&self, reason: &str) {
        let mut inner = locked(&self.inner);
        if inner.state == State::Closed {
            return;
        }
        inner.state = State::Closed;
        self.lease_until.store(0, Ordering::SeqCst);
        self.end(&mut inner, End::Lost, reason);
        self.tell(inner);
        tracing::info!(database = %self.database, reason, "gate closed");
    }

    /// Ends the generation: its sessions find out when they look.
    fn end(&self, inner: &mut Inner, end: End, why: &str) {
        self.passing.store(0, Ordering::SeqCst);
        inner.generation += 1;
        inner.ended = (end, why.to_owned());
    }

    fn tell(&self, inner: std::sync::MutexGuard<'_, Inner>) {
        inner.sessions.values().for_each(|slot| slot.signal());
        drop(inner);
        self.changes.send_modify(|n| *n += 1);
    }

    /// For a switchover: sessions leave at the end of their transaction; those that have not after `drain` are cut.
    /// Afterwards the gate is held and has no sessions.
    pub async fn park(&self, drain: Duration) -> Parked {
        let mut changes = self.changes.subscribe();
        {
            let mut inner = locked(&self.inner);
            if inner.state != State::Open {
                return Parked::default();
            }
            inner.state = State::Parking;
            inner.released = 0;
            self.tell(inner);
        }
        self.until_empty(&mut changes, drain).await;
        let parked = {
            let mut inner = locked(&self.inner);
            let parked = Parked { kept: inner.released, cut: inner.sessions.len() as u32 };
            if inner.state != State::Parking {
                // Somebody held or closed it meanwhile, and knows better.
                return parked;
            }
            inner.state = State::Held;
            self.end(
                &mut inner,
                End::Cut,
                "the primary is being moved to another node and the transaction took too long to wait for",
            );
            self.tell(inner);
            parked
        };
        self.until_empty(&mut changes, CUT_GRACE).await;
        parked
    }

    async fn until_empty(&self, changes: &mut watch::Receiver<u64>, limit: Duration) {
        let empty = async {
            loop {
                changes.borrow_and_update();
                if locked(&self.inner).sessions.is_empty() || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        // When the time is over the caller looks at who is left.
        let _ = tokio::time::timeout(limit, empty).await;
    }

    /// Results may leave until then.
    pub fn set_lease(&self, until: BootTime) {
        self.lease_until.store(until, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            locked(&self.inner).sessions.values().for_each(|slot| slot.wake());
        }
    }

    pub fn drop_lease(&self) {
        self.lease_until.store(0, Ordering::SeqCst);
    }

    pub fn report(&self) -> GateReport {
        let inner = locked(&self.inner);
        match inner.state {
            State::Closed => GateReport::Closed,
            State::Held | State::Parking => GateReport::Held,
            State::Open => GateReport::Open(inner.epoch),
        }
    }

    /// Sessions that have a backend here.
    pub fn sessions(&self) -> u32 {
        locked(&self.inner).sessions.len() as u32
    }

    pub(crate) fn is_leased(&self) -> bool {
        boot_time() < self.lease_until.load(Ordering::SeqCst)
    }

    /// What passes now; those who are in the middle of something while the gate parks, too.
    pub(crate) fn passing(&self) -> Result<Passing, NotOpen> {
        let inner = locked(&self.inner);
        match inner.state {
            State::Open | State::Parking => {
                Ok(Passing { generation: inner.generation, epoch: inner.epoch, socket: inner.socket.clone() })
            }
            State::Closed => Err(NotOpen("the gate is closed".to_owned())),
            State::Held => Err(NotOpen("the gate is held".to_owned())),
        }
    }

    pub(crate) fn passes(&self, generation: u64) -> bool {
        self.passing.load(Ordering::SeqCst) == generation
    }

    pub(crate) fn slots(&self) -> Vec<Arc<Slot>> {
        locked(&self.inner).sessions.values().cloned().collect()
    }

    /// Takes a session in once the gate is open in the reign of `epoch` or a later one.
    pub async fn enter(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        epoch: Epoch,
        until: Instant,
    ) -> Result<(Pass, PathBuf), NotOpen> {
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            let why = match self.try_enter(slot, epoch) {
                Ok(entered) => return Ok(entered),
                Err(why) => why,
            };
            if !matches!(tokio::time::timeout_at(until, changes.changed()).await, Ok(Ok(()))) {
                return Err(why);
            }
        }
    }

    /// Takes in a session whose server was made while that generation passed, if it still does.
    pub fn enter_again(self: &Arc<Self>, slot: &Arc<Slot>, generation: u64) -> Option<Pass> {
        let mut inner = locked(&self.inner);
        if inner.state != State::Open || inner.generation != generation {
            return None;
        }
        Some(self.take_in(&mut inner, slot))
    }

    fn take_in(self: &Arc<Self>, inner: &mut Inner, slot: &Arc<Slot>) -> Pass {
        inner.next_session += 1;
        let session = inner.next_session;
        inner.sessions.insert(session, Arc::clone(slot));
        Pass::new(Arc::clone(self), Arc::clone(slot), inner.generation, session)
    }

    /// Whether that is still the run of the Postgres behind the gate.
    pub fn is_generation(&self, generation: u64) -> bool {
        locked(&self.inner).generation == generation
    }

    fn try_enter(self: &Arc<Self>, slot: &Arc<Slot>, epoch: Epoch) -> Result<(Pass, PathBuf), NotOpen> {
        let mut inner = locked(&self.inner);
        match inner.state {
            State::Open if inner.epoch.reign() < epoch.reign() => {
                return Err(NotOpen("the gate is open in an older epoch only".to_owned()));
            }
            State::Open => {}
            State::Closed => return Err(NotOpen("the gate is closed".to_owned())),
            State::Held | State::Parking => return Err(NotOpen("the gate is held".to_owned())),
        }
        let pass = self.take_in(&mut inner, slot);
        Ok((pass, inner.socket.clone()))
    }

    /// What a session of that generation finds.
    pub(super) fn door(&self, generation: u64) -> Door {
        let inner = locked(&self.inner);
        if inner.generation != generation {
            let (end, why) = inner.ended.clone();
            return Door::Ended { end, why };
        }
        match inner.state {
            State::Open => Door::Open,
            State::Parking => Door::Parking,
            State::Held | State::Closed => Door::Held,
        }
    }

    /// A session has left; `released`, if between transactions.
    pub(super) fn left(&self, session: u64, released: bool) {
        let mut inner = locked(&self.inner);
        inner.sessions.remove(&session);
        inner.released += u32::from(released);
        drop(inner);
        self.changes.send_modify(|n| *n += 1);
    }
}

#[cfg(test)]
mod tests;
