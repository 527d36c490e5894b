//! How fast sessions of a logical server may begin.
//!
//! A login costs a node a call to the primary and some HMACs, and the primary a new process; a client in a loop without a
//! pause, or one that tries passwords, must not take that from everybody. The rate is kept by the time at which the next
//! login would be due if all came evenly (GCRA, ITU-T I.371): one number a server, and none for a server that rests.

use quorate_model::ServerId;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What may come at once after a rest: so much time's worth.
const BURST: Duration = Duration::from_secs(1);

/// Servers that are remembered before those that rest are forgotten.
const MAX_REMEMBERED: usize = 1024;

/// The logins of one node.
#[derive(Debug)]
pub struct Logins {
    per_second: u32,
    due: Mutex<BTreeMap<ServerId, Duration>>,
}

/// A login that came too soon. Safe to show to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("logins come too fast: the limit of {limit} a second of this logical server on this node is reached")]
pub struct TooFast {
    /// Logins a second.
    pub limit: u32,
    /// After this time one more is admitted.
    pub wait: Duration,
}

impl TooFast {
    /// `configuration_limit_exceeded`.
    pub const fn sqlstate(&self) -> &'static str {
        "53400"
    }
}

impl Logins {
    /// At most `per_second` of any one logical server, at least 1, and at once as many after a rest.
    pub fn new(per_second: u32) -> Logins {
        Logins { per_second: per_second.max(1), due: Mutex::default() }
    }

    /// Counts a login of `server` at `now`, a time since any fixed moment. A refusal counts nothing.
    pub fn admit(&self, server: ServerId, now: Duration) -> Result<(), TooFast> {
        // Nothing that holds the lock can leave the map half changed.
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        if due.len() >= MAX_REMEMBERED {
            due.retain(|_, at| *at > now);
        }
        let at = due.get(&server).copied().unwrap_or(now).max(now);
        let interval = Duration::from_secs(1) / self.per_second;
        let early = (at + interval - now).saturating_sub(BURST);
        if !early.is_zero() {
            return Err(TooFast { limit: self.per_second, wait: early });
        }
        due.insert(server, at + interval);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const A: ServerId = ServerId(1);
    const B: ServerId = ServerId(2);
    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_second_s_worth_comes_at_once_and_then_the_rate_holds() {
        let logins = Logins::new(10);
        let now = 5_000 * MS;
        for _ in 0..10 {
            logins.admit(A, now).unwrap();
        }
        let refused = logins.admit(A, now).unwrap_err();
        assert_eq!((refused.limit, refused.wait, refused.sqlstate()), (10, 100 * MS, "53400"));
        assert_eq!(logins.admit(A, now + 99 * MS).unwrap_err().wait, MS, "what was refused costs nothing");
        logins.admit(A, now + 100 * MS).unwrap();
        assert!(logins.admit(A, now + 100 * MS).is_err());
        logins.admit(B, now).unwrap();
        let admitted = (0..10_000).filter(|ms| logins.admit(A, now + (200 + ms) * MS).is_ok()).count();
        assert_eq!(admitted, 100);
    }

    #[test]
    fn servers_that_rest_are_forgotten() {
        let logins = Logins::new(1_000);
        for server in 0..10_000 {
            logins.admit(ServerId(server), u32::try_from(server).unwrap() * MS).unwrap();
        }
        assert!(logins.due.lock().unwrap().len() <= MAX_REMEMBERED);
    }
}
