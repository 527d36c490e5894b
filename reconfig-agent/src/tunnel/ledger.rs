//! What the tunnel of one standby knows of its replication, written as bytes pass and read by anybody.

use super::hello::Purpose;
use super::leash::locked;
use super::relay::Observe;
use super::tap::Sighting;
use quorate_model::{Epoch, Lsn};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Written by the relays of one [`super::Downstream`].
pub struct Ledger {
    /// Highest flush position that the standby reported.
    acknowledged: AtomicU64,
    /// End of the log of the current primary, as heard from it.
    upstream_end: AtomicU64,
    /// Nanoseconds after `began`, plus one; zero: never.
    last_heard: AtomicU64,
    began: Instant,
    held: AtomicU32,
    /// The stream that `streaming` speaks of.
    streamer: Mutex<Option<u64>>,
    streaming: watch::Sender<Option<Epoch>>,
}

impl Default for Ledger {
    fn default() -> Self {
        Ledger {
            acknowledged: AtomicU64::new(0),
            upstream_end: AtomicU64::new(0),
            last_heard: AtomicU64::new(0),
            began: Instant::now(),
            held: AtomicU32::new(0),
            streamer: Mutex::new(None),
            streaming: watch::Sender::new(None),
        }
    }
}

impl Ledger {
    pub fn acknowledged(&self) -> Lsn {
        Lsn(self.acknowledged.load(Ordering::Acquire))
    }

    pub fn upstream_end(&self) -> Lsn {
        Lsn(self.upstream_end.load(Ordering::Acquire))
    }

    pub fn last_heard(&self) -> Option<Instant> {
        let nanos = self.last_heard.load(Ordering::Acquire).checked_sub(1)?;
        Some(self.began + Duration::from_nanos(nanos))
    }

    pub fn streaming(&self) -> Option<Epoch> {
        *self.streaming.borrow()
    }

    pub fn watch(&self) -> watch::Receiver<Option<Epoch>> {
        self.streaming.subscribe()
    }

    /// Connections that wait for a primary.
    pub fn held(&self) -> u32 {
        self.held.load(Ordering::Acquire)
    }

    /// Counts a waiting connection until the guard is dropped.
    pub fn hold(self: &Arc<Self>) -> Held {
        self.held.fetch_add(1, Ordering::AcqRel);
        super::telemetry::held().increment(1.0);
        Held(self.clone())
    }

    /// Another primary: what the former one said of its log says nothing of this one's.
    pub fn rerouted(&self) {
        self.upstream_end.store(0, Ordering::Release);
    }

    fn heard(&self, end: Lsn) {
        self.upstream_end.fetch_max(end.0, Ordering::AcqRel);
        self.last_heard.store(self.began.elapsed().as_nanos() as u64 + 1, Ordering::Release);
    }

    fn began_streaming(&self, stream: u64, epoch: Epoch) {
        let mut streamer = locked(&self.streamer);
        *streamer = Some(stream);
        self.streaming.send_replace(Some(epoch));
    }

    fn ended_streaming(&self, stream: u64) {
        let mut streamer = locked(&self.streamer);
        if *streamer == Some(stream) {
            *streamer = None;
            self.streaming.send_replace(None);
        }
    }
}

/// A connection that waits.
pub struct Held(Arc<Ledger>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::AcqRel);
        super::telemetry::held().decrement(1.0);
    }
}

/// Enters what one relay sees.
pub struct Clerk {
    ledger: Arc<Ledger>,
    stream: u64,
    epoch: Epoch,
    purpose: Purpose,
    streaming: bool,
}

impl Clerk {
    /// `stream` is unique within the ledger.
    pub fn new(ledger: Arc<Ledger>, stream: u64, epoch: Epoch, purpose: Purpose) -> Clerk {
        Clerk { ledger, stream, epoch, purpose, streaming: false }
    }

    fn stop(&mut self) {
        if std::mem::take(&mut self.streaming) {
            self.ledger.ended_streaming(self.stream);
        }
    }
}

impl Observe for Clerk {
    fn saw(&mut self, sighting: Sighting) {
        match (self.purpose, sighting) {
            (_, Sighting::CopyBothBegan) => {}
            (_, Sighting::CopyBothEnded) => self.stop(),
            (Purpose::Stream, Sighting::Heard { end, .. }) => {
                self.ledger.heard(end);
                if !self.streaming {
                    self.streaming = true;
                    self.ledger.began_streaming(self.stream, self.epoch);
                }
            }
            // Entered before it is forwarded: what the primary may have got is never more than is known here.
            (Purpose::Stream, Sighting::Flushed { flush }) => {
                self.ledger.acknowledged.fetch_max(flush.0, Ordering::AcqRel);
            }
            (Purpose::Copy | Purpose::Rewind, _) => {}
        }
    }

    fn thins_reports(&self) -> bool {
        self.purpose == Purpose::Stream
    }
}

impl Drop for Clerk {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streaming_begins_with_the_first_byte_heard_and_ends_with_the_stream() {
        let ledger = Arc::new(Ledger::default());
        let mut clerk = Clerk::new(ledger.clone(), 1, Epoch::new(0, 2, 0), Purpose::Stream);
        clerk.saw(Sighting::CopyBothBegan);
        assert_eq!((ledger.streaming(), ledger.last_heard()), (None, None));
        clerk.saw(Sighting::Heard { end: Lsn(10), shipped: None });
        clerk.saw(Sighting::Flushed { flush: Lsn(7) });
        clerk.saw(Sighting::Flushed { flush: Lsn(5) });
        assert_eq!(ledger.streaming(), Some(Epoch::new(0, 2, 0)));
        assert_eq!((ledger.acknowledged(), ledger.upstream_end()), (Lsn(7), Lsn(10)));
        assert!(ledger.last_heard().is_some());
        drop(clerk);
        assert_eq!(ledger.streaming(), None);
        ledger.rerouted();
        assert_eq!((ledger.acknowledged(), ledger.upstream_end()), (Lsn(7), Lsn(0)));
    }

    #[test]
    fn a_late_end_of_an_old_stream_does_not_end_the_new_one() {
        let ledger = Arc::new(Ledger::default());
        let mut old = Clerk::new(ledger.clone(), 1, Epoch::new(0, 1, 0), Purpose::Stream);
        old.saw(Sighting::Heard { end: Lsn(1), shipped: None });
        let mut new = Clerk::new(ledger.clone(), 2, Epoch::new(0, 2, 0), Purpose::Stream);
        new.saw(Sighting::Heard { end: Lsn(1), shipped: None });
        drop(old);
        assert_eq!(ledger.streaming(), Some(Epoch::new(0, 2, 0)));
    }

    /// I11: what is being built never counts.
    #[test]
    fn a_base_backup_acknowledges_nothing() {
        let ledger = Arc::new(Ledger::default());
        let mut clerk = Clerk::new(ledger.clone(), 1, Epoch::new(0, 2, 0), Purpose::Copy);
        clerk.saw(Sighting::Heard { end: Lsn(10), shipped: None });
        clerk.saw(Sighting::Flushed { flush: Lsn(7) });
        assert_eq!((ledger.streaming(), ledger.acknowledged()), (None, Lsn(0)));
    }
}
