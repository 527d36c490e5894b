//! What a primary's end of the tunnel knows of one standby: how far it acknowledged the log.

use super::hold::{Hold, Quorum};
use super::relay::Observe;
use super::tap::Sighting;
use super::turns::{Lead, Turns};
use quorate_model::{Lsn, ReplicaId};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use tokio::sync::Notify;
use tokio::time::Instant;

/// What a replica acknowledged to its primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flush {
    /// Highest flush position handed to the primary's instance.
    pub lsn: Lsn,
    /// It is connected and in copy-both mode.
    pub streaming: bool,
}

/// One standby in one reign. Written on the path of every commit: atomics only, and nobody is woken unless somebody waits.
pub struct Standby {
    replica: ReplicaId,
    lead: Arc<Lead>,
    quorum: Weak<Quorum>,
    /// One of several voters of which a commit waits for one.
    takes_turns: AtomicBool,
    flushed: AtomicU64,
    streams: AtomicU32,
    waiters: AtomicU32,
    retired: AtomicBool,
    changed: Notify,
}

impl Standby {
    /// `quorum` is that of the database, which knows its voters.
    pub fn new(replica: ReplicaId, lead: Arc<Lead>, quorum: &Arc<Quorum>, takes_turns: bool) -> Standby {
        Standby {
            replica,
            lead,
            quorum: Arc::downgrade(quorum),
            takes_turns: AtomicBool::new(takes_turns),
            flushed: AtomicU64::default(),
            streams: AtomicU32::default(),
            waiters: AtomicU32::default(),
            retired: AtomicBool::default(),
            changed: Notify::default(),
        }
    }

    pub fn take_turns(&self, takes_turns: bool) {
        self.takes_turns.store(takes_turns, Ordering::Relaxed);
        if !takes_turns {
            self.lead.gone(self.replica);
        }
    }

    fn takes_turns(&self) -> bool {
        self.takes_turns.load(Ordering::Relaxed)
    }

    /// Another one is first to acknowledge, and this one may wait.
    fn may_wait(&self) -> bool {
        self.takes_turns() && self.lead.is_another(self.replica)
    }

    pub fn flush(&self) -> Flush {
        Flush {
            lsn: Lsn(self.flushed.load(Ordering::SeqCst)),
            streaming: self.streams.load(Ordering::SeqCst) > 0,
        }
    }

    /// The reign is over, or the replica has left it: waiting for it is in vain.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    /// Waits until `lsn` is acknowledged; false when the standby was retired first.
    pub async fn reached(&self, lsn: Lsn) -> bool {
        // SeqCst: either the writer sees this waiter, or this waiter sees what was written.
        self.waiters.fetch_add(1, Ordering::SeqCst);
        let _waiter = Waiter(&self.waiters);
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.retired.load(Ordering::SeqCst) {
                return false;
            }
            if self.flushed.load(Ordering::SeqCst) >= lsn.0 {
                return true;
            }
            changed.await;
        }
    }

    fn record(&self, flush: Lsn) {
        if self.takes_turns() {
            self.lead.acknowledged(self.replica, flush, Instant::now());
        }
        self.flushed.fetch_max(flush.0, Ordering::SeqCst);
        if self.waiters.load(Ordering::SeqCst) > 0 {
            self.changed.notify_waiters();
        }
    }
}

struct Waiter<'a>(&'a AtomicU32);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Records what one relay hands to the primary. A base backup has no standby: it acknowledges nothing (I11).
pub struct Sentry {
    standby: Option<Arc<Standby>>,
    /// Seen, and not yet handed on.
    pending: Option<Lsn>,
    streaming: bool,
    turns: Turns,
    /// The end of the log that has come from the primary.
    shipped: Option<Lsn>,
    hold: Hold,
}

impl Sentry {
    pub fn new(standby: Option<Arc<Standby>>) -> Sentry {
        Sentry {
            standby,
            pending: None,
            streaming: false,
            turns: Turns::default(),
            shipped: None,
            hold: Hold::default(),
        }
    }

    fn set_streaming(&mut self, streaming: bool) {
        let Some(standby) = &self.standby else { return };
        match (self.streaming, streaming) {
            (false, true) => drop(standby.streams.fetch_add(1, Ordering::SeqCst)),
            (true, false) => {
                standby.streams.fetch_sub(1, Ordering::SeqCst);
                standby.lead.gone(standby.replica);
            }
            _ => {}
        }
        self.streaming = streaming;
    }
}

impl Observe for Sentry {
    fn saw(&mut self, sighting: Sighting) {
        match sighting {
            Sighting::CopyBothBegan => self.set_streaming(true),
            Sighting::CopyBothEnded => self.set_streaming(false),
            Sighting::Flushed { flush } => self.pending = Some(flush),
            Sighting::Heard { end, shipped } => {
                self.shipped = shipped.or(self.shipped);
                if let Some(standby) = self.standby.as_ref().filter(|s| s.takes_turns()) {
                    standby.lead.fed(standby.replica, end, Instant::now());
                }
            }
        }
    }

    fn asks_for_keepalive(&self) -> bool {
        self.standby.is_some()
    }

    fn waits_until(&self) -> Option<Instant> {
        let standby = self.standby.as_ref().filter(|standby| self.streaming && standby.may_wait())?;
        self.turns.until(&standby.lead, Instant::now())
    }

    fn holds_until(&mut self) -> Option<Instant> {
        let (standby, shipped) = (self.standby.as_ref()?, self.shipped?);
        // A voter that takes turns is known to count.
        if standby.takes_turns() {
            return None;
        }
        self.hold.until(standby.replica, shipped, &*standby.quorum.upgrade()?, Instant::now())
    }

    fn took_from_primary(&mut self, bytes: usize) {
        if self.streaming && self.standby.as_ref().is_some_and(|s| s.takes_turns()) {
            self.turns.fed(bytes, Instant::now());
        }
    }

    fn delivered_to_primary(&mut self) {
        if let (Some(standby), Some(flush)) = (&self.standby, self.pending.take()) {
            standby.record(flush);
        }
    }
}

impl Drop for Sentry {
    fn drop(&mut self) {
        self.set_streaming(false);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn a_flush_counts_when_it_was_handed_on_and_wakes_who_waits() {
        let standby = Arc::new(Standby::new(ReplicaId(2), Arc::default(), &Arc::default(), false));
        let waiting = tokio::spawn({
            let standby = standby.clone();
            async move { standby.reached(Lsn(10)).await }
        });
        let mut sentry = Sentry::new(Some(standby.clone()));
        sentry.saw(Sighting::CopyBothBegan);
        sentry.saw(Sighting::Flushed { flush: Lsn(12) });
        assert_eq!(standby.flush(), Flush { lsn: Lsn(0), streaming: true });
        sentry.delivered_to_primary();
        assert_eq!(standby.flush().lsn, Lsn(12));
        assert!(timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap());
        drop(sentry);
        assert_eq!(standby.flush(), Flush { lsn: Lsn(12), streaming: false });
    }

    #[tokio::test]
    async fn a_retired_standby_is_not_waited_for() {
        let standby = Standby::new(ReplicaId(2), Arc::default(), &Arc::default(), false);
        standby.record(Lsn(100));
        standby.retire();
        assert!(!standby.reached(Lsn(1)).await, "a flush of a former reign says nothing");
    }
}
