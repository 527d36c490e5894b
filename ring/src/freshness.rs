//! Whether a genuine datagram is a new one, so that nothing recorded earlier counts as a sign of life, as a
//! word about another node, or as a request for a lease.
//!
//! No clocks are compared. Each run of a node's process has an incarnation and counts its datagrams. Here, one
//! run of every peer is *current*; its datagrams count once each, in a sliding window, so that those which
//! overtook each other on the way count too. A datagram of any other run counts for nothing, but provokes a
//! challenge with a random nonce; whoever can answer it is there now, and becomes the current run. So a restart
//! costs one round trip, an old recording costs nothing, and a peer whose wall clock was set back is no special
//! case.

use crate::clock::BootTime;
use std::time::Duration;

/// How far a datagram may be behind the newest of its run.
pub const WINDOW: u64 = 64;
/// How long a challenge can be answered.
pub const CHALLENGE_LIFETIME: Duration = Duration::from_secs(2);
/// How often a challenge is sent again at most.
pub const CHALLENGE_INTERVAL: Duration = Duration::from_millis(20);

/// What a datagram is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Of the current run, and never seen before.
    Fresh,
    /// Of the current run, but seen before, or too old to know.
    Stale,
    /// Of a run that has not proven that it is the current one.
    Stranger,
}

/// What is known of one peer's runs.
#[derive(Debug, Default)]
pub struct Session {
    current: Option<Run>,
    challenge: Option<Challenge>,
}

#[derive(Debug)]
struct Run {
    incarnation: u64,
    newest: u64,
    /// Bit `i`: the datagram `newest - i` was seen.
    seen: u64,
}

#[derive(Debug)]
struct Challenge {
    nonce: u64,
    made: BootTime,
    sent: BootTime,
}

impl Session {
    /// Judges a datagram, and counts it as seen.
    pub fn check(&mut self, incarnation: u64, sequence: u64) -> Freshness {
        match &mut self.current {
            Some(run) if run.incarnation == incarnation => run.check(sequence),
            Some(_) | None => Freshness::Stranger,
        }
    }

    /// The nonce with which to challenge a stranger now, if it is time to. `random` becomes the nonce of a new
    /// challenge.
    pub fn challenge(&mut self, now: BootTime, random: u64) -> Option<u64> {
        match &mut self.challenge {
            Some(open) if !is_over(open.made, now, CHALLENGE_LIFETIME) => {
                if !is_over(open.sent, now, CHALLENGE_INTERVAL) {
                    return None;
                }
                open.sent = now;
                Some(open.nonce)
            }
            Some(_) | None => {
                self.challenge = Some(Challenge { nonce: random, made: now, sent: now });
                Some(random)
            }
        }
    }

    /// Takes an answer. True when it is right: then its run is the current one from now on.
    pub fn answer(&mut self, now: BootTime, nonce: u64, incarnation: u64, sequence: u64) -> bool {
        let is_right = self
            .challenge
            .as_ref()
            .is_some_and(|open| open.nonce == nonce && !is_over(open.made, now, CHALLENGE_LIFETIME));
        if is_right {
            self.challenge = None;
            self.current = Some(Run { incarnation, newest: sequence, seen: u64::MAX });
        }
        is_right
    }
}

impl Run {
    fn check(&mut self, sequence: u64) -> Freshness {
        if sequence > self.newest {
            let ahead = sequence - self.newest;
            self.seen = if ahead < WINDOW { self.seen << ahead | 1 } else { 1 };
            self.newest = sequence;
            return Freshness::Fresh;
        }
        let behind = self.newest - sequence;
        if behind >= WINDOW || self.seen >> behind & 1 == 1 {
            return Freshness::Stale;
        }
        self.seen |= 1 << behind;
        Freshness::Fresh
    }
}

fn is_over(since: BootTime, now: BootTime, limit: Duration) -> bool {
    now.saturating_sub(since) >= crate::clock::nanos(limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Freshness::{Fresh, Stale, Stranger};

    const MS: u64 = 1_000_000;

    /// A session whose current run is 9, having answered with datagram 100.
    fn session() -> Session {
        let mut session = Session::default();
        assert_eq!(session.check(9, 99), Stranger);
        assert_eq!(session.challenge(0, 5), Some(5));
        assert!(session.answer(MS, 5, 9, 100));
        session
    }

    #[test]
    fn each_datagram_counts_once() {
        let mut session = session();
        let order = [101, 101, 104, 102, 102, 103, 100, 99, 168, 104, 105, 105, 300, 236, 237, 237];
        let worth = order.map(|sequence| session.check(9, sequence));
        let expected = [
            Fresh, Stale, Fresh, Fresh, Stale, Fresh, Stale, Stale, Fresh, Stale, Fresh, Stale, Fresh, Stale,
            Fresh, Stale,
        ];
        assert_eq!(worth, expected);
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let mut session = session();
        assert_eq!(session.check(9, u64::MAX), Fresh);
        assert_eq!(session.check(9, u64::MAX), Stale);
        assert_eq!(session.check(9, 0), Stale);
    }

    #[test]
    fn an_old_run_replayed_is_challenged_and_changes_nothing() {
        let mut session = session();
        assert_eq!(session.check(8, 500), Stranger);
        assert_eq!(session.challenge(10 * MS, 77), Some(77));
        assert!(!session.answer(11 * MS, 5, 8, 501), "the answer to an earlier challenge");
        assert_eq!(session.check(9, 101), Fresh, "the current run is still the current one");
    }

    #[test]
    fn a_restarted_peer_is_current_after_its_answer() {
        let mut session = session();
        assert_eq!(session.check(3, 1), Stranger, "incarnations need not grow");
        assert_eq!(session.challenge(10 * MS, 77), Some(77));
        assert!(session.answer(11 * MS, 77, 3, 2));
        assert!(!session.answer(11 * MS, 77, 3, 2), "a challenge is answered once");
        assert_eq!(session.check(3, 3), Fresh);
        assert_eq!(session.check(3, 1), Stale, "sent before it had proven anything");
        assert_eq!(session.check(9, 102), Stranger);
    }

    #[test]
    fn challenges_are_rare_and_end() {
        let mut session = Session::default();
        assert_eq!(session.challenge(0, 1), Some(1));
        assert_eq!(session.challenge(19 * MS, 2), None);
        assert_eq!(session.challenge(20 * MS, 3), Some(1), "sent again, so that a slow answer still fits");
        assert!(!session.answer(2_000 * MS, 1, 9, 1));
        assert_eq!(session.challenge(2_000 * MS, 4), Some(4));
        assert!(session.answer(2_100 * MS, 4, 9, 1));
    }
}
