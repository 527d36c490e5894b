//! One session's right to a backend behind a gate: whether requests may go in and results may leave.

use super::door::{Door, Gate};
use super::evidence::{Kind, Reads};
use super::rounds::Claim;
use super::slot::Slot;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// Dropping it leaves.
#[derive(Debug)]
pub struct Pass {
    gate: Arc<Gate>,
    slot: Arc<Slot>,
    generation: u64,
    session: u64,
    /// Counted in the gate's `waiting`.
    waiting: bool,
    confirmed: Claim,
    evidenced: Claim,
    released: bool,
}

impl Pass {
    pub(super) fn new(gate: Arc<Gate>, slot: Arc<Slot>, generation: u64, session: u64) -> Pass {
        Pass {
            gate,
            slot,
            generation,
            session,
            waiting: false,
            confirmed: Claim::default(),
            evidenced: Claim::default(),
            released: false,
        }
    }

    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// The run of the Postgres behind the gate that this is for.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether requests may go in.
    #[inline]
    pub fn may_enter(&self) -> bool {
        self.gate.passes(self.generation)
    }

    /// Whether a request may begin: not while no result could leave, because it can still go to another primary. After
    /// `false`, the session is woken when it is worth asking again.
    #[inline]
    pub fn may_begin(&mut self) -> bool {
        match self.gate.reads() {
            Reads::Lease => self.may_leave(),
            Reads::Confirm => self.may_enter() && self.is_confirmable(),
        }
    }

    /// The position before which results may leave, of those that were received up to `received` (both in the stream
    /// from the server). When not all may, the session is woken when it is worth asking again.
    #[inline]
    pub fn leaves_until(&mut self, received: u64) -> u64 {
        match self.gate.reads() {
            Reads::Lease if self.may_leave() => u64::MAX,
            Reads::Confirm if self.may_enter() => {
                let Pass { gate, slot, session, confirmed, .. } = self;
                let ask = || gate.ask(Kind::Confirmation, *session, slot);
                confirmed.until(gate.rounds(Kind::Confirmation), received, ask)
            }
            // A gate that is held or has ended lets out nothing, confirmed or not.
            Reads::Lease | Reads::Confirm => 0,
        }
    }

    /// Whether results up to `received` wait for a lease or a confirmation, and for nothing else.
    pub fn holds_back(&self, received: u64) -> bool {
        self.may_enter()
            && match self.gate.reads() {
                Reads::Lease => !self.gate.is_leased(),
                Reads::Confirm => self.confirmed.cleared() < received,
            }
    }

    /// Whether the log is on a quorum as it was when the results before `position` were received. After `false`, the
    /// session is woken when it is worth asking again.
    pub fn is_on_quorum(&mut self, position: u64, received: u64) -> bool {
        let Pass { gate, slot, session, evidenced, .. } = self;
        if evidenced.cleared() >= position {
            return true;
        }
        let ask = || gate.ask(Kind::Evidence, *session, slot);
        evidenced.until(gate.rounds(Kind::Evidence), received, ask) >= position
    }

    /// Whether results that are here already may leave by a lease. After `false`, the session is woken when it is worth
    /// asking again.
    #[inline]
    pub fn may_leave(&mut self) -> bool {
        if self.may_enter() && self.gate.is_leased() {
            if self.waiting {
                self.stop_waiting();
            }
            return true;
        }
        self.wait_for_lease()
    }

    #[cold]
    fn wait_for_lease(&mut self) -> bool {
        if !self.waiting {
            self.waiting = true;
            self.gate.waiting.fetch_add(1, Ordering::SeqCst);
        }
        // A renewal between the first look and the count above would not have woken us.
        self.may_enter() && self.gate.is_leased()
    }

    #[cold]
    fn stop_waiting(&mut self) {
        self.waiting = false;
        self.gate.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether the last confirmation succeeded. If not, somebody has to ask for the next one.
    fn is_confirmable(&mut self) -> bool {
        if !self.gate.rounds(Kind::Confirmation).is_failing() {
            return true;
        }
        self.gate.ask(Kind::Confirmation, self.session, &self.slot);
        false
    }

    /// Waits until what is here already may leave: of a session that starts.
    pub async fn is_vouched(&self, until: Instant) -> bool {
        self.gate.vouches(self.generation, until).await
    }

    pub fn door(&self) -> Door {
        self.gate.door(self.generation)
    }

    /// Leaves between transactions.
    pub fn release(mut self) {
        self.released = true;
    }

    /// Waits for everything this session has done to be on a quorum.
    pub async fn barrier(&self, limit: Duration, socket: &Path) -> bool {
        self.gate.control.barrier(self.generation, socket, limit).await
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.waiting {
            self.stop_waiting();
        }
        for kind in [Kind::Confirmation, Kind::Evidence] {
            self.gate.rounds(kind).leave(self.session);
        }
        self.gate.left(self.session, self.released);
    }
}
