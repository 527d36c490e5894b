//! Holding back a copy that does not count, to what a quorum has.
//!
//! A walsender ships what its primary has flushed, to everybody, before any voter has it (DESIGN §6). A learner that has
//! got log which no voter has is of no use when the primary is lost: the next primary's history does not hold
//! that log, and the learner has to be rewound or built anew, just when copies are few. So what a learner is sent waits
//! here until enough voters have acknowledged it.
//!
//! It is a kindness and no promise: learners never count (I11), so nothing rests on it. It ends therefore where it could
//! stand in the way: a base backup is not held, since it ends only with log that was written for it; and where fewer
//! voters stream than a commit needs, or those that do have acknowledged nothing new for [`LIMIT`], a learner is what is
//! going to replace them.

use super::sentry::Standby;
use quorate_model::{Lsn, ReplicaId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

use super::leash::locked;

/// For how long the voters may acknowledge nothing while log waits for them.
const LIMIT: Duration = Duration::from_secs(5);

/// How often it is looked whether what waits may go. Acknowledgements do not wake a learner's stream: they are in
/// the path of commits, and it is not.
const LOOK: Duration = Duration::from_millis(5);

/// How much of the log is on a write quorum, of one database in one reign.
#[derive(Default)]
pub struct Quorum(Mutex<Voters>);

#[derive(Default)]
struct Voters {
    k: usize,
    voters: BTreeMap<ReplicaId, Arc<Standby>>,
}

impl Quorum {
    pub fn set(&self, k: usize, voters: BTreeMap<ReplicaId, Arc<Standby>>) {
        *locked(&self.0) = Voters { k, voters };
    }

    fn counts(&self, replica: ReplicaId) -> bool {
        locked(&self.0).voters.contains_key(&replica)
    }

    /// What `k` voters that stream have acknowledged. `None`: fewer stream, or nobody is known to vote.
    fn position(&self) -> Option<Lsn> {
        let voters = locked(&self.0);
        let streaming = voters.voters.values().map(|v| v.flush()).filter(|flush| flush.streaming);
        kth(voters.k, streaming.map(|flush| flush.lsn).collect())
    }
}

/// The `k`th highest; none where there are fewer, or `k` is zero.
fn kth(k: usize, mut flushed: Vec<Lsn>) -> Option<Lsn> {
    flushed.sort_unstable_by(|a, b| b.cmp(a));
    flushed.get(k.checked_sub(1)?).copied()
}

/// What waits in one stream.
#[derive(Debug, Default)]
pub struct Hold {
    /// How far the quorum was, and since when it has been no further while something waited.
    stuck: Option<(Lsn, Instant)>,
}

impl Hold {
    /// Until when to wait with log that ends at `end`, before looking again. `None`: it may go.
    pub fn until(&mut self, replica: ReplicaId, end: Lsn, quorum: &Quorum, now: Instant) -> Option<Instant> {
        if quorum.counts(replica) {
            return None;
        }
        self.judge(end, quorum.position(), now)
    }

    fn judge(&mut self, end: Lsn, quorum: Option<Lsn>, now: Instant) -> Option<Instant> {
        let Some(quorum) = quorum.filter(|quorum| *quorum < end) else {
            self.stuck = None;
            return None;
        };
        let since = match self.stuck {
            Some((at, since)) if at == quorum => since,
            _ => now,
        };
        self.stuck = Some((quorum, since));
        (now < since + LIMIT).then(|| now + LOOK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_is_what_enough_voters_have() {
        let flushed = || vec![Lsn(10), Lsn(30), Lsn(20)];
        assert_eq!(kth(1, flushed()), Some(Lsn(30)));
        assert_eq!(kth(2, flushed()), Some(Lsn(20)));
        assert_eq!(kth(4, flushed()), None, "fewer stream than a commit needs");
        assert_eq!(kth(0, flushed()), None, "nobody is known to vote");
    }

    #[test]
    fn log_waits_for_the_quorum_and_not_for_one_that_is_stuck() {
        let (mut hold, now) = (Hold::default(), Instant::now());
        assert_eq!(hold.judge(Lsn(10), Some(Lsn(10)), now), None, "the quorum has it");
        assert_eq!(hold.judge(Lsn(11), Some(Lsn(10)), now), Some(now + LOOK));
        let later = now + LIMIT - LOOK;
        assert_eq!(hold.judge(Lsn(12), Some(Lsn(10)), later), Some(later + LOOK));
        assert_eq!(hold.judge(Lsn(12), Some(Lsn(11)), later), Some(later + LOOK), "it goes on");
        let stuck = later + LIMIT;
        assert_eq!(hold.judge(Lsn(12), Some(Lsn(11)), stuck), None);
        assert_eq!(hold.judge(Lsn(13), Some(Lsn(11)), stuck), None, "and is still stuck");
        assert_eq!(hold.judge(Lsn(13), Some(Lsn(12)), stuck), Some(stuck + LOOK), "and goes on again");
        assert_eq!(hold.judge(Lsn(13), None, stuck), None, "too few voters stream");
    }
}
