//! Configurations and the quorums that follow from them (DESIGN §5).
//!
//! A commit needs the primary and any `k` voters. A fence set *covers* a configuration when it meets every such
//! write quorum: then nothing more can be acknowledged in it, and everything that was is held by a member of the
//! fence set.

use crate::ids::ReplicaId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Who holds a database, and how many copies make a commit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Configuration {
    pub primary: ReplicaId,
    /// Secondaries whose flushes count. Never holds the primary. Empty only after a forced recovery: then no commit
    /// can be acknowledged, until a second copy exists (I9).
    pub voters: BTreeSet<ReplicaId>,
    /// How many voters a commit needs beside the primary; 1 <= k, and k <= voters when there are any (I9).
    pub k: u32,
}

impl Configuration {
    pub fn new(primary: ReplicaId, voters: impl IntoIterator<Item = ReplicaId>, k: u32) -> Self {
        Configuration { primary, voters: voters.into_iter().collect(), k }
    }

    /// A primary that nobody follows: it reads, and every commit waits.
    pub fn lone(primary: ReplicaId) -> Self {
        Configuration { primary, voters: BTreeSet::new(), k: 1 }
    }

    pub fn is_lone(&self) -> bool {
        self.voters.is_empty()
    }

    /// I9 as far as one configuration can break it.
    pub fn is_valid(&self) -> bool {
        let enough = self.k as usize <= self.voters.len() || self.is_lone() && self.k == 1;
        self.k >= 1 && enough && !self.voters.contains(&self.primary)
    }

    pub fn contains(&self, replica: ReplicaId) -> bool {
        self.primary == replica || self.voters.contains(&replica)
    }

    pub fn members(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        std::iter::once(self.primary).chain(self.voters.iter().copied())
    }

    /// Whether the fence set `fenced` meets every write quorum: it holds the primary, or so many voters that
    /// fewer than `k` are left (`|F| >= voters - k + 1`).
    pub fn is_covered_by(&self, fenced: &BTreeSet<ReplicaId>) -> bool {
        if fenced.contains(&self.primary) {
            return true;
        }
        let fenced_voters = self.voters.intersection(fenced).count();
        fenced_voters + self.k as usize > self.voters.len()
    }

    /// Replicas any of whose answers could still complete the cover; empty when it is complete.
    pub fn missing_for_cover(&self, fenced: &BTreeSet<ReplicaId>) -> Vec<ReplicaId> {
        if self.is_covered_by(fenced) {
            return Vec::new();
        }
        self.members().filter(|r| !fenced.contains(r)).collect()
    }

    /// Until when the primary holds the lease of this configuration: the `k`-th latest of its voters' grants,
    /// because every fence set that covers without the primary meets every `k` voters. `None` with fewer grants.
    pub fn lease_until(&self, granted_until: impl Fn(ReplicaId) -> Option<u64>) -> Option<u64> {
        self.reached_by_quorum(granted_until)
    }

    /// The highest value that `k` voters have reached: the `k`-th highest of all. `None` when fewer have any.
    pub fn reached_by_quorum(&self, value: impl Fn(ReplicaId) -> Option<u64>) -> Option<u64> {
        let mut values: Vec<u64> = self.voters.iter().filter_map(|r| value(*r)).collect();
        values.sort_unstable_by(|a, b| b.cmp(a));
        values.get((self.k as usize).checked_sub(1)?).copied()
    }

    /// The value of `synchronous_standby_names` on the primary. Never empty (R5): a name that no walreceiver bears
    /// simply waits, and a lone primary gets one that none ever bears.
    pub fn sync_names(&self) -> String {
        if self.is_lone() {
            return SENTINEL_SYNC_NAMES.to_owned();
        }
        let names: Vec<String> = self.voters.iter().map(|r| r.standby_name()).collect();
        format!("ANY {} ({})", self.k, names.join(", "))
    }
}

/// What a replica uses for `synchronous_standby_names` when no configuration names it primary: a sentinel that
/// no tunnel ever presents, so that a stray commit waits instead of being acknowledged (R5).
pub const SENTINEL_SYNC_NAMES: &str = "ANY 1 (quorate_nobody)";

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[u64]) -> BTreeSet<ReplicaId> {
        ids.iter().copied().map(ReplicaId).collect()
    }

    fn subsets(of: &[ReplicaId]) -> impl Iterator<Item = BTreeSet<ReplicaId>> + '_ {
        (0..1u32 << of.len())
            .map(move |bits| (0..of.len()).filter(|i| bits >> i & 1 == 1).map(|i| of[i]).collect())
    }

    #[test]
    fn three_copies_one_ack() {
        let c = Configuration::new(ReplicaId(1), [ReplicaId(2), ReplicaId(3)], 1);
        assert!(c.is_covered_by(&set(&[1])));
        assert!(c.is_covered_by(&set(&[2, 3])));
        assert!(!c.is_covered_by(&set(&[2])), "the mutant F={{S1}} must not pass");
        assert!(!c.is_covered_by(&set(&[])));
        assert_eq!(c.sync_names(), "ANY 1 (r2, r3)");
        assert_eq!(c.missing_for_cover(&set(&[2])), vec![ReplicaId(1), ReplicaId(3)]);
    }

    /// Nothing is ever acknowledged in it, so nothing needs to be covered.
    #[test]
    fn a_lone_primary_acknowledges_nothing() {
        let c = Configuration::lone(ReplicaId(1));
        assert!(c.is_valid());
        assert!(c.is_covered_by(&set(&[])));
        assert_eq!(c.sync_names(), SENTINEL_SYNC_NAMES);
        assert_eq!(c.lease_until(|_| Some(7)), None);
        assert!(!Configuration::new(ReplicaId(1), [], 2).is_valid());
    }

    /// I3 by brute force: covered exactly when the set meets every write quorum.
    #[test]
    fn cover_meets_every_write_quorum() {
        for voters in 1..=4u64 {
            for k in 1..=voters as u32 {
                let c = Configuration::new(ReplicaId(0), (1..=voters).map(ReplicaId), k);
                let all: Vec<ReplicaId> = c.members().collect();
                let quorums: Vec<_> =
                    subsets(&all).filter(|q| q.contains(&c.primary) && q.len() > k as usize).collect();
                for fenced in subsets(&all) {
                    let meets_all = quorums.iter().all(|q| !q.is_disjoint(&fenced));
                    assert_eq!(c.is_covered_by(&fenced), meets_all, "{c:?} {fenced:?}");
                }
            }
        }
    }
}
