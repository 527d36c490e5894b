//! Rounds of asking that many sessions share: whoever waits is served by the first round that *begins* after it began
//! to wait, and one round is in flight at a time.
//!
//! What a round asks is its owner's business; here is only who waits for which. A round that fails serves nobody, and
//! the next one serves all.

use super::slot::{Slot, locked};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// The number of a round; passed when it or a later one succeeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

#[derive(Debug, Default)]
pub struct Rounds {
    /// The latest round that succeeded.
    passed: AtomicU64,
    /// The latest round that ended did not succeed.
    failing: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The latest round that began.
    begun: u64,
    /// Somebody drives the rounds.
    driven: bool,
    /// Who waits, by the number of its session.
    waiting: HashMap<u64, (Ticket, Arc<Slot>)>,
}

impl Rounds {
    #[inline]
    pub fn has_passed(&self, ticket: Ticket) -> bool {
        self.passed.load(Ordering::SeqCst) >= ticket.0
    }

    #[inline]
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::SeqCst)
    }

    /// Waits for a round that begins after now; `slot` is woken when it has passed. True: the caller must see to it
    /// that somebody drives the rounds, from now until [`Rounds::begin`] returns none.
    pub fn ask(&self, session: u64, slot: &Arc<Slot>) -> (Ticket, bool) {
        let mut inner = locked(&self.inner);
        let ticket = Ticket(inner.begun + 1);
        inner.waiting.insert(session, (ticket, Arc::clone(slot)));
        (ticket, !std::mem::replace(&mut inner.driven, true))
    }

    /// A session waits no longer.
    pub fn leave(&self, session: u64) {
        locked(&self.inner).waiting.remove(&session);
    }

    /// Begins the next round; none when nobody waits for one, and then nobody drives any more.
    pub fn begin(&self) -> Option<Ticket> {
        let mut inner = locked(&self.inner);
        if inner.waiting.is_empty() {
            inner.driven = false;
            return None;
        }
        inner.begun += 1;
        Some(Ticket(inner.begun))
    }

    /// The round ended.
    pub fn end(&self, round: Ticket, succeeded: bool) {
        let mut inner = locked(&self.inner);
        self.failing.store(!succeeded, Ordering::SeqCst);
        if !succeeded {
            return;
        }
        self.passed.fetch_max(round.0, Ordering::SeqCst);
        inner.waiting.retain(|_, (ticket, slot)| {
            let waits = *ticket > round;
            if !waits {
                slot.wake();
            }
            waits
        });
    }
}

/// How far the results of one session have been vouched for by rounds, as positions in the stream from its server.
#[derive(Debug, Default)]
pub struct Claim {
    /// A round was asked for, which will vouch for everything before that position.
    asked: Option<(Ticket, u64)>,
    cleared: u64,
}

impl Claim {
    /// Looks whether the round has passed, and asks for another one if something up to `received` is not vouched
    /// for. Results before the position that it returns may leave.
    pub fn until(&mut self, rounds: &Rounds, received: u64, ask: impl FnOnce() -> Ticket) -> u64 {
        if let Some((ticket, upto)) = self.asked
            && rounds.has_passed(ticket)
        {
            self.cleared = upto;
            self.asked = None;
        }
        if self.cleared < received && self.asked.is_none() {
            self.asked = Some((ask(), received));
        }
        self.cleared
    }

    pub fn cleared(&self) -> u64 {
        self.cleared
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_round_in_flight_does_not_serve_who_came_after_it_began() {
        let (rounds, slot) = (Rounds::default(), Arc::new(Slot::default()));
        let (early, drives) = rounds.ask(1, &slot);
        assert!(drives);
        let first = rounds.begin().unwrap();
        let (late, drives) = rounds.ask(2, &slot);
        assert!(!drives, "one driver is enough");
        rounds.end(first, true);
        assert!(rounds.has_passed(early));
        assert!(!rounds.has_passed(late), "the mutant that lets a round serve whoever waits when it ends");
        let second = rounds.begin().unwrap();
        rounds.end(second, true);
        assert!(rounds.has_passed(late));
        assert_eq!(rounds.begin(), None);
        assert!(rounds.ask(3, &slot).1, "nobody drove any more");
    }

    #[test]
    fn a_round_that_failed_serves_nobody_and_the_next_one_all() {
        let (rounds, slot) = (Rounds::default(), Arc::new(Slot::default()));
        let (ticket, _) = rounds.ask(1, &slot);
        let failed = rounds.begin().unwrap();
        rounds.end(failed, false);
        assert!(!rounds.has_passed(ticket) && rounds.is_failing());
        let next = rounds.begin().unwrap();
        rounds.end(next, true);
        assert!(rounds.has_passed(ticket) && !rounds.is_failing());
    }

    #[test]
    fn who_left_is_not_waited_for() {
        let (rounds, slot) = (Rounds::default(), Arc::new(Slot::default()));
        rounds.ask(1, &slot);
        rounds.leave(1);
        assert_eq!(rounds.begin(), None);
    }

    #[test]
    fn a_claim_covers_what_was_received_when_it_was_made() {
        let (rounds, slot) = (Rounds::default(), Arc::new(Slot::default()));
        let mut claim = Claim::default();
        let ask = || rounds.ask(1, &slot).0;
        assert_eq!(claim.until(&rounds, 10, ask), 0);
        let round = rounds.begin().unwrap();
        assert_eq!(claim.until(&rounds, 25, ask), 0);
        rounds.end(round, true);
        assert_eq!(claim.until(&rounds, 25, ask), 10, "what came later waits for the next");
        let round = rounds.begin().unwrap();
        rounds.end(round, true);
        assert_eq!(claim.until(&rounds, 25, ask), 25);
        assert_eq!(rounds.begin(), None, "nothing is left to ask for");
    }
}
