//! Feeding a standby that no commit waits for in batches.
//!
//! With two voters and `k = 1` every commit waits for whichever of them acknowledges first. The log goes to the other as
//! well, and each piece of it costs both nodes a read, a TLS record and a wake-up, and the standby a flush of its disk and
//! two reports. So the voter that is usually first is fed at once, and the others at most once in [`TURN`]: what came
//! meanwhile goes in one piece and is flushed once.
//!
//! What it costs: where the first one fails, a commit waits [`LATE`] longer, and soon the other is first. What it does
//! not cost: no acknowledgement is delayed that a commit waits for; a stream that was quiet for a turn is fed at once, so
//! databases with few commits never wait; and much log is never held, so copies keep up under any load. An election finds
//! the most advanced of the fence set, which is the one that acknowledged.

use super::buffer::BUFFER_BYTES;
use quorate_model::{Lsn, ReplicaId};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// How often at most a standby that no commit waits for is fed.
const TURN: Duration = Duration::from_millis(20);

/// The first one has not acknowledged for so long: whoever waits is fed.
const LATE: Duration = Duration::from_millis(5);

/// After a larger piece the next one is not waited for: the log is coming fast.
const SMALL_BYTES: usize = BUFFER_BYTES / 2;

/// So often in a row must another voter overtake the first one to take its place: each of two equally fast ones is
/// faster now and then, and at every change both are fed as if nobody were first.
const OVERTAKES: u32 = 3;

/// Who acknowledges first, of the voters of one database in one reign. A hint: nothing depends on its being right.
#[derive(Debug)]
pub struct Lead {
    /// No replica has the number 0.
    first: AtomicU64,
    /// How far the first one was fed.
    fed: AtomicU64,
    /// How far the first one acknowledged.
    flushed: AtomicU64,
    /// Since when it has been behind, microseconds after `epoch`; 0: it is not.
    behind_since: AtomicU64,
    epoch: Instant,
    /// How far another one did when it last overtook.
    overtaken: AtomicU64,
    overtakes: AtomicU32,
}

impl Default for Lead {
    fn default() -> Self {
        let number = AtomicU64::default;
        let (first, fed, flushed, behind_since, overtaken) =
            (number(), number(), number(), number(), number());
        Lead { first, fed, flushed, behind_since, epoch: Instant::now(), overtaken, overtakes: 0.into() }
    }
}

impl Lead {
    /// A voter was sent the log up to here.
    pub fn fed(&self, replica: ReplicaId, end: Lsn, now: Instant) {
        if self.first.load(Ordering::Relaxed) == replica.0 {
            self.fed.fetch_max(end.0, Ordering::Relaxed);
            let is_behind = end.0 > self.flushed.load(Ordering::Relaxed);
            if is_behind && self.behind_since.load(Ordering::Relaxed) == 0 {
                self.behind_since.store(self.micros(now), Ordering::Relaxed);
            }
        }
    }

    fn micros(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_micros()).unwrap_or(u64::MAX).max(1)
    }

    /// When the first one is late, if it acknowledges nothing until then.
    pub fn late_at(&self, now: Instant) -> Instant {
        match self.behind_since.load(Ordering::Relaxed) {
            // What comes now may be what it will be late with.
            0 => now + LATE,
            since => self.epoch + Duration::from_micros(since) + LATE,
        }
    }

    /// A voter acknowledged its log up to here. Acknowledgements that cross may count wrongly; a hint allows it.
    pub fn acknowledged(&self, by: ReplicaId, flush: Lsn, now: Instant) {
        let first = self.first.load(Ordering::Relaxed);
        if first == by.0 {
            self.flushed.fetch_max(flush.0, Ordering::Relaxed);
            let is_behind = flush.0 < self.fed.load(Ordering::Relaxed);
            self.behind_since.store(if is_behind { self.micros(now) } else { 0 }, Ordering::Relaxed);
        } else if first == 0 {
            self.begin(by, flush);
        } else if flush.0 <= self.flushed.load(Ordering::Relaxed) {
            self.overtakes.store(0, Ordering::Relaxed);
        } else if self.overtaken.fetch_max(flush.0, Ordering::Relaxed) < flush.0
            && self.overtakes.fetch_add(1, Ordering::Relaxed) + 1 >= OVERTAKES
        {
            self.begin(by, flush);
        }
    }

    fn begin(&self, replica: ReplicaId, flush: Lsn) {
        self.fed.store(flush.0, Ordering::Relaxed);
        self.flushed.store(flush.0, Ordering::Relaxed);
        self.behind_since.store(0, Ordering::Relaxed);
        self.overtakes.store(0, Ordering::Relaxed);
        self.first.store(replica.0, Ordering::Relaxed);
    }

    /// Its stream ended, or it is no voter any more: nobody waits behind it.
    pub fn gone(&self, replica: ReplicaId) {
        let _ = self.first.compare_exchange(replica.0, 0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Whether another replica is first.
    pub fn is_another(&self, than: ReplicaId) -> bool {
        let first = self.first.load(Ordering::Relaxed);
        first != 0 && first != than.0
    }
}

/// The turns of one stream.
#[derive(Debug, Default)]
pub struct Turns {
    /// When it was last fed, if little.
    last: Option<Instant>,
}

impl Turns {
    /// Until when it waits behind `lead`, if it has to; a moment that has passed is none.
    pub fn until(&self, lead: &Lead, now: Instant) -> Option<Instant> {
        let until = (self.last? + TURN).min(lead.late_at(now));
        (until > now).then_some(until)
    }

    pub fn fed(&mut self, bytes: usize, now: Instant) {
        self.last = (bytes < SMALL_BYTES).then_some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    const A: ReplicaId = ReplicaId(2);
    const B: ReplicaId = ReplicaId(3);

    #[test]
    fn whoever_acknowledges_first_leads_until_it_is_overtaken_for_good_or_gone() {
        let (lead, now) = (Lead::default(), Instant::now());
        assert!(!lead.is_another(A) && !lead.is_another(B), "nobody waits before anybody acknowledged");
        lead.acknowledged(A, Lsn(10), now);
        lead.acknowledged(B, Lsn(10), now);
        let leads = |one, other| lead.is_another(other) && !lead.is_another(one);
        assert!(leads(A, B));
        for lsn in [20, 20, 30] {
            lead.acknowledged(B, Lsn(lsn), now);
            assert!(leads(A, B), "overtaken twice, and told of one twice");
        }
        lead.acknowledged(A, Lsn(40), now);
        lead.acknowledged(B, Lsn(40), now);
        for lsn in [50, 60] {
            lead.acknowledged(B, Lsn(lsn), now);
            assert!(leads(A, B), "it begins anew after the first was first again");
        }
        lead.acknowledged(B, Lsn(70), now);
        assert!(leads(B, A));
        lead.gone(A);
        assert!(leads(B, A));
        lead.gone(B);
        assert!(!lead.is_another(A));
    }

    #[test]
    fn a_quiet_stream_and_a_fast_one_never_wait() {
        let (mut turns, lead, now) = (Turns::default(), Lead::default(), Instant::now());
        assert_eq!(turns.until(&lead, now), None, "nothing was fed yet");
        turns.fed(100, now);
        assert!(turns.until(&lead, now).is_some());
        assert_eq!(turns.until(&lead, now + TURN), None);
        turns.fed(SMALL_BYTES, now);
        assert_eq!(turns.until(&lead, now), None, "much log");
    }

    #[test]
    fn nobody_waits_behind_one_that_is_late() {
        let (mut turns, lead) = (Turns::default(), Lead::default());
        // Whole microseconds after it, as it counts.
        let begin = lead.epoch + Duration::from_millis(1);
        let at = |ms| begin + Duration::from_millis(ms);
        lead.acknowledged(A, Lsn(10), begin);
        turns.fed(100, begin);
        lead.fed(A, Lsn(20), begin);
        assert_eq!(turns.until(&lead, at(2)), Some(begin + LATE));
        lead.fed(A, Lsn(30), at(2));
        assert_eq!(turns.until(&lead, at(3)), Some(begin + LATE), "more log makes it no less late");
        assert_eq!(turns.until(&lead, begin + LATE), None);
        lead.acknowledged(A, Lsn(20), at(6));
        assert_eq!(turns.until(&lead, at(7)), Some(at(6) + LATE), "it goes on, and is behind still");
        lead.acknowledged(A, Lsn(30), at(8));
        assert_eq!(turns.until(&lead, at(12)), Some(at(12) + LATE));
        lead.fed(B, Lsn(40), at(12));
        assert_eq!(turns.until(&lead, at(13)), Some(at(13) + LATE), "that was another");
    }
}
