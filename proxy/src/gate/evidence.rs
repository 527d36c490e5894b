//! What a gate must know of other nodes before results leave, and how it is asked: in rounds that all sessions share.
//!
//! - *Confirmation* (`reads = confirm`): a voter said, after the result was produced, that it still obeys this reign.
//!   Then no other reign had opened when the result was produced, whatever any clock says.
//! - *Evidence* (strict commits): the log as it was after the result was received is on a quorum. It does not ask how
//!   the transaction was committed, so nothing that a session, a role or a function has set can weaken it.

use super::door::Gate;
use super::rounds::{Rounds, Ticket};
use async_trait::async_trait;
pub use quorate_model::{Commits, Reads};
use quorate_model::{DatabaseId, Epoch, Lsn};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// What other nodes say of a database whose primary is on this one.
#[async_trait]
pub trait Evidence: Send + Sync + 'static {
    /// Whether, at a time after the call, enough voters of every configuration in force still obeyed the reign of
    /// `epoch`: so many that no election without the primary could have been complete.
    async fn confirm(&self, database: DatabaseId, epoch: Epoch) -> bool;

    /// Waits until a quorum of every configuration in force has acknowledged the log up to `lsn`, in the reign of
    /// `epoch`; false when `limit` is over or the reign has ended.
    async fn on_quorum(&self, database: DatabaseId, epoch: Epoch, lsn: Lsn, limit: Duration) -> bool;
}

/// How often a lease or a confirmation that is missing is looked for.
const VOUCH_PAUSE: Duration = Duration::from_millis(5);
/// Pause after a round that did not succeed.
const FAILED_PAUSE: Duration = Duration::from_millis(20);
/// How long the log is expected to reach the quorum without being pushed: what has been written by a transaction that
/// did not wait is otherwise flushed by the WAL writer only.
const UNPUSHED: Duration = Duration::from_millis(5);
/// Longest wait of one round for the quorum.
const QUORUM_LIMIT: Duration = Duration::from_secs(10);

/// Which rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Confirmation,
    Evidence,
}

impl Gate {
    /// From now on results leave by that rule. Both are safe at any time.
    pub fn set_reads(&self, reads: Reads) {
        let confirms = reads == Reads::Confirm;
        if self.confirms.swap(confirms, Ordering::SeqCst) != confirms {
            tracing::info!(database = %self.database(), ?reads, "results are vouched for in another way");
            self.slots().iter().for_each(|slot| slot.wake());
        }
    }

    #[inline]
    pub fn reads(&self) -> Reads {
        if self.confirms.load(Ordering::SeqCst) { Reads::Confirm } else { Reads::Lease }
    }

    /// From now on acknowledgements rest on that. Both may be chosen at any time; what was acknowledged before stays.
    pub fn set_commits(&self, commits: Commits) {
        let strict = commits == Commits::Strict;
        if self.strict.swap(strict, Ordering::SeqCst) != strict {
            tracing::info!(database = %self.database(), ?commits, "commits are acknowledged in another way");
        }
    }

    /// Strict by its option, or because something in the database could weaken commits.
    #[inline]
    pub fn commits(&self) -> Commits {
        match self.strict.load(Ordering::SeqCst) || self.weakened.load(Ordering::SeqCst) {
            true => Commits::Strict,
            false => Commits::Guarded,
        }
    }

    /// What an audit found. True when that is news.
    pub(super) fn set_weakened(&self, weakened: bool) -> bool {
        self.weakened.swap(weakened, Ordering::SeqCst) != weakened
    }

    fn evidence_source(&self) -> Option<Arc<dyn Evidence>> {
        self.source.get().cloned()
    }

    /// Whether a result that is here already, of that generation, may leave: waits for a lease or a confirmation.
    pub(crate) async fn vouches(&self, generation: u64, until: Instant) -> bool {
        loop {
            let vouched = match self.reads() {
                Reads::Lease => self.is_leased(),
                Reads::Confirm => self.confirm().await,
            };
            if vouched || !self.passes(generation) || Instant::now() >= until {
                return vouched && self.passes(generation);
            }
            tokio::time::sleep(VOUCH_PAUSE).await;
        }
    }

    pub(super) fn rounds(&self, kind: Kind) -> &Rounds {
        match kind {
            Kind::Confirmation => &self.confirmations,
            Kind::Evidence => &self.evidence,
        }
    }

    /// Waits for the next round; it is driven on the runtime of whoever asks first.
    pub(super) fn ask(self: &Arc<Self>, kind: Kind, session: u64, slot: &Arc<super::slot::Slot>) -> Ticket {
        let (ticket, drive) = self.rounds(kind).ask(session, slot);
        if drive {
            tokio::spawn(Arc::clone(self).drive(kind));
        }
        ticket
    }

    async fn drive(self: Arc<Self>, kind: Kind) {
        while let Some(round) = self.rounds(kind).begin() {
            let succeeded = match kind {
                Kind::Confirmation => self.confirm().await,
                Kind::Evidence => self.gather().await,
            };
            self.rounds(kind).end(round, succeeded);
            if !succeeded {
                tokio::time::sleep(FAILED_PAUSE).await;
            }
        }
    }

    /// One confirmation: what was here before it may leave.
    pub(crate) async fn confirm(&self) -> bool {
        let (Some(evidence), Ok(passing)) = (self.evidence_source(), self.passing()) else { return false };
        evidence.confirm(self.database(), passing.epoch).await && self.passes(passing.generation)
    }

    /// One round of evidence: everything in the log by now is on a quorum when it succeeds.
    async fn gather(&self) -> bool {
        let (Some(evidence), Ok(passing)) = (self.evidence_source(), self.passing()) else { return false };
        let (database, epoch) = (self.database(), passing.epoch);
        let lsn = match self.control.end_of_log(passing.generation, &passing.socket).await {
            Ok(lsn) => lsn,
            Err(error) => {
                tracing::info!(%database, %error, "the end of the log is not known; commits wait");
                return false;
            }
        };
        if evidence.on_quorum(database, epoch, lsn, UNPUSHED).await {
            return true;
        }
        self.control.barrier(passing.generation, &passing.socket, QUORUM_LIMIT).await
            && evidence.on_quorum(database, epoch, lsn, QUORUM_LIMIT).await
    }
}
