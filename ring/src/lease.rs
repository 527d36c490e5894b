//! Leases: until when a primary may release results (DESIGN §5, R9 and Reads).
//!
//! A voter promises for a while not to take part in a takeover. The requester counts that while from the moment
//! at which it *sent* the request, by its own clock, and a thousandth shorter; the granter counts it from the
//! moment at which it *received* the request, by its own. So the requester's end comes first, whatever the
//! delays and whatever the clocks show, as long as they run equally fast to a thousandth.
//!
//! An answer counts only for the open request whose nonce it carries. Requests are forgotten when a lease could
//! no longer follow from them, and all at once when the process did not run for a while.

use crate::clock::{BootTime, nanos};
use crate::packet::{LeaseAnswer, LeaseRequest, MAX_BODY};
use quorate_model::{Configuration, DatabaseId, Epoch, NodeId, ReplicaId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// The requester's part of a lease is shorter by one part in so many: the bound on the drift of two clocks.
pub const DRIFT_DIVISOR: u64 = 1_000;
/// Requests that may be unanswered at once; the oldest are forgotten.
pub const MAX_OPEN: usize = 4_096;
/// Bytes of a request before its entries: kind, nonce, lease, count, each as long as it can be.
const REQUEST_OVERHEAD: usize = 1 + 10 + 5 + 3;

/// What a primary's node wants: for one database, from the nodes of its voters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseWant {
    pub database: DatabaseId,
    pub epoch: Epoch,
    pub voters: Vec<NodeId>,
}

/// The replica agent's side of leases. Called on the ring's thread: it must not block.
pub trait Leases: Send + Sync + 'static {
    /// For the primaries here: whom to ask.
    fn wants(&self) -> Vec<LeaseWant>;
    /// Requester: `by` promised, and for us it holds until `until`.
    fn granted(&self, database: DatabaseId, epoch: Epoch, by: NodeId, until: BootTime);
    /// Granter: record the promise before returning true; `until` is its end on our clock.
    fn grant(&self, to: NodeId, database: DatabaseId, epoch: Epoch, until: BootTime) -> bool;
    /// The daemon did not run for that long: drop all leases held.
    fn scheduling_gap(&self, gap: Duration);
}

/// One database in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeaseEntry {
    pub database: DatabaseId,
    pub epoch: Epoch,
}

impl LeaseEntry {
    /// Bytes of this entry in a datagram.
    fn encoded_len(&self) -> usize {
        let Epoch { data_loss, primary, config } = self.epoch;
        [self.database.0, data_loss, primary, config].map(varint_len).iter().sum()
    }
}

/// Bytes of a number in postcard: seven bits a byte.
const fn varint_len(number: u64) -> usize {
    let bits = 64 - (number | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Until when grants let a primary release results: in each configuration, the `k`-th latest of its voters'
/// grants, since a takeover that does not ask the primary needs all but `k - 1` of them; of all configurations,
/// the earliest. Grants are by replica and in the requester's time. `None` when some configuration has fewer
/// than `k`, or when there is no configuration.
pub fn holds_until(
    configurations: &[Configuration],
    grants: &BTreeMap<ReplicaId, BootTime>,
) -> Option<BootTime> {
    let of_one = |configuration: &Configuration| {
        let mut until: Vec<BootTime> =
            configuration.voters.iter().filter_map(|voter| grants.get(voter).copied()).collect();
        until.sort_unstable_by(|a, b| b.cmp(a));
        let kth = usize::try_from(configuration.k).ok()?.checked_sub(1)?;
        until.get(kth).copied()
    };
    let each: Option<Vec<BootTime>> = configurations.iter().map(of_one).collect();
    each?.into_iter().min()
}

/// The end of a lease, requested at `sent`, for the requester.
pub fn requester_until(sent: BootTime, lease: Duration) -> BootTime {
    let lease = nanos(lease);
    sent.saturating_add(lease - lease.div_ceil(DRIFT_DIVISOR))
}

/// The end of a lease, requested in a datagram handled at `now`, for the granter.
pub fn granter_until(now: BootTime, lease: Duration) -> BootTime {
    now.saturating_add(nanos(lease))
}

/// What an answer grants, and what it refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    pub until: BootTime,
    pub entries: Vec<LeaseEntry>,
    pub refused: usize,
}

/// The requests that this node has sent and not yet seen answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requests {
    me: NodeId,
    lease: Duration,
    next_nonce: u64,
    open: BTreeMap<u64, Open>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Open {
    to: NodeId,
    sent: BootTime,
    entries: Vec<LeaseEntry>,
}

impl Requests {
    /// `first_nonce` is random, so that no answer to an earlier run of this process fits.
    pub fn new(me: NodeId, lease: Duration, first_nonce: u64) -> Self {
        // Half the range is left to count in.
        Requests { me, lease, next_nonce: first_nonce >> 1, open: BTreeMap::new() }
    }

    /// The requests of one round, to be sent after `now`: one a node for all databases that it shares with this
    /// one, or as many as its databases need.
    pub fn round(&mut self, now: BootTime, wants: &[LeaseWant]) -> Vec<(NodeId, LeaseRequest)> {
        self.forget(now);
        let mut by_node: BTreeMap<NodeId, Vec<LeaseEntry>> = BTreeMap::new();
        for want in wants {
            for &voter in want.voters.iter().filter(|voter| **voter != self.me) {
                let entry = LeaseEntry { database: want.database, epoch: want.epoch };
                by_node.entry(voter).or_default().push(entry);
            }
        }
        let lease_us = u32::try_from(self.lease.as_micros()).unwrap_or(u32::MAX);
        let mut requests = Vec::new();
        for (to, entries) in by_node {
            for entries in chunks(entries) {
                let nonce = self.next_nonce;
                self.next_nonce = self.next_nonce.wrapping_add(1);
                self.open.insert(nonce, Open { to, sent: now, entries: entries.clone() });
                requests.push((to, LeaseRequest { nonce, lease_us, entries }));
            }
        }
        while self.open.len() > MAX_OPEN {
            self.open.pop_first();
        }
        requests
    }

    /// What an answer means; nothing, unless it answers an open request to that node in time.
    pub fn answer(&mut self, now: BootTime, from: NodeId, answer: &LeaseAnswer) -> Option<Granted> {
        if self.open.get(&answer.nonce)?.to != from {
            return None;
        }
        let Open { sent, entries, .. } = self.open.remove(&answer.nonce)?;
        let until = requester_until(sent, self.lease);
        if until <= now {
            return None;
        }
        let asked = entries.len();
        let is_granted = |at: usize| answer.granted.get(at / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1);
        let entries: Vec<LeaseEntry> = entries
            .into_iter()
            .enumerate()
            .filter(|(at, _)| is_granted(*at))
            .map(|(_, entry)| entry)
            .collect();
        Some(Granted { until, refused: asked - entries.len(), entries })
    }

    /// This process did not run for a while: no answer that is still to come counts.
    pub fn gap(&mut self) {
        self.open.clear();
    }

    fn forget(&mut self, now: BootTime) {
        let lease = self.lease;
        self.open.retain(|_, open| requester_until(open.sent, lease) > now);
    }
}

/// The answer to a request: `grant` is asked, and records, for each entry. A request for longer than this node
/// grants (`lease`) is refused whole: our promise would end before the requester's belief in it.
pub fn answer(
    request: &LeaseRequest,
    lease: Duration,
    mut grant: impl FnMut(&LeaseEntry) -> bool,
) -> LeaseAnswer {
    let is_too_long = Duration::from_micros(request.lease_us.into()) > lease;
    let mut granted = vec![0; request.entries.len().div_ceil(8)];
    for (at, entry) in request.entries.iter().enumerate().filter(|_| !is_too_long) {
        if grant(entry) {
            granted[at / 8] |= 1 << (at % 8);
        }
    }
    LeaseAnswer { nonce: request.nonce, granted }
}

/// Cuts a node's entries into parts that fit a datagram each.
fn chunks(entries: Vec<LeaseEntry>) -> Vec<Vec<LeaseEntry>> {
    let mut chunks: Vec<Vec<LeaseEntry>> = Vec::new();
    let mut room = 0;
    for entry in entries {
        let size = entry.encoded_len();
        match chunks.last_mut() {
            Some(chunk) if size <= room => chunk.push(entry),
            Some(_) | None => {
                chunks.push(vec![entry]);
                room = MAX_BODY - REQUEST_OVERHEAD;
            }
        }
        room = room.saturating_sub(size);
    }
    chunks
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::packet::{Body, Codec, Envelope};
    use std::collections::BTreeSet;

    const MS: u64 = 1_000_000;
    const ME: NodeId = NodeId(1);
    const LEASE: Duration = Duration::from_millis(400);

    fn want(database: u64, voters: &[u64]) -> LeaseWant {
        LeaseWant {
            database: DatabaseId(database),
            epoch: Epoch::new(0, database, 0),
            voters: voters.iter().copied().map(NodeId).collect(),
        }
    }

    fn grants(of: &[(u64, u64)]) -> BTreeMap<ReplicaId, BootTime> {
        of.iter().map(|&(replica, until)| (ReplicaId(replica), until)).collect()
    }

    fn configuration(voters: &[u64], k: u32) -> Configuration {
        Configuration::new(ReplicaId(1), voters.iter().copied().map(ReplicaId), k)
    }

    #[test]
    fn one_grant_is_enough_for_k_1_and_the_latest_counts() {
        let three = [configuration(&[2, 3], 1)];
        assert_eq!(holds_until(&three, &grants(&[])), None);
        assert_eq!(holds_until(&three, &grants(&[(2, 10)])), Some(10));
        assert_eq!(holds_until(&three, &grants(&[(2, 10), (3, 20)])), Some(20));
        assert_eq!(holds_until(&three, &grants(&[(1, 99), (4, 99)])), None, "neither is a voter");
        assert_eq!(holds_until(&[], &grants(&[(2, 10)])), None);
    }

    #[test]
    fn both_configurations_of_a_joint_have_to_hold() {
        let joint = [configuration(&[2, 3], 1), configuration(&[3, 4], 1)];
        assert_eq!(holds_until(&joint, &grants(&[(2, 10)])), None);
        assert_eq!(holds_until(&joint, &grants(&[(2, 10), (4, 5)])), Some(5));
        assert_eq!(holds_until(&joint, &grants(&[(3, 7)])), Some(7));
        assert_eq!(
            holds_until(&[configuration(&[2, 3, 4], 2)], &grants(&[(2, 10), (3, 20), (4, 30)])),
            Some(20)
        );
    }

    /// While a lease holds, no fence set without the primary can be complete unless a granter broke its promise:
    /// every covering set of voters has a member whose grant runs at least as long.
    #[test]
    fn no_takeover_fits_into_a_lease() {
        for voters in 1..=4_u64 {
            for k in 1..=voters as u32 {
                let ids: Vec<u64> = (2..2 + voters).collect();
                let configuration = configuration(&ids, k);
                for given in 0..1_u32 << voters {
                    let granted: BTreeMap<ReplicaId, BootTime> = (0..voters)
                        .filter(|at| given >> at & 1 == 1)
                        .map(|at| (ReplicaId(2 + at), 10 + at))
                        .collect();
                    let Some(until) = holds_until(std::slice::from_ref(&configuration), &granted) else {
                        continue;
                    };
                    for fenced in 0..1_u32 << voters {
                        let fenced: BTreeSet<ReplicaId> = (0..voters)
                            .filter(|at| fenced >> at & 1 == 1)
                            .map(|at| ReplicaId(2 + at))
                            .collect();
                        if configuration.is_covered_by(&fenced) {
                            let waits = fenced.iter().filter_map(|r| granted.get(r)).max();
                            assert!(waits >= Some(&until), "{configuration:?} {granted:?} {fenced:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_requester_ends_before_the_granter() {
        let sent = 1_000 * MS;
        let until = requester_until(sent, LEASE);
        assert_eq!(until, sent + 400 * MS - 400 * MS / 1_000);
        assert!(until < granter_until(sent, LEASE), "even if the datagram took no time");
    }

    #[test]
    fn a_round_is_one_request_a_node() {
        let mut requests = Requests::new(ME, LEASE, 0);
        let round = requests.round(0, &[want(1, &[2, 3]), want(2, &[3, 1])]);
        let shape: Vec<(u64, Vec<u64>)> = round
            .iter()
            .map(|(to, request)| (to.0, request.entries.iter().map(|e| e.database.0).collect()))
            .collect();
        assert_eq!(shape, [(2, vec![1]), (3, vec![1, 2])]);
        assert_eq!(round[0].1.lease_us, 400_000);
    }

    #[test]
    fn many_databases_are_cut_into_datagrams() {
        let huge =
            |database| LeaseWant { epoch: Epoch::new(u64::MAX, u64::MAX, u64::MAX), ..want(database, &[2]) };
        let wants: Vec<LeaseWant> =
            (0..500).map(|n| want(n, &[2])).chain((0..100).map(|n| huge(u64::MAX - n))).collect();
        let round = Requests::new(ME, LEASE, u64::MAX).round(0, &wants);
        assert_eq!(round.iter().map(|(_, request)| request.entries.len()).sum::<usize>(), 600);
        assert!(round.len() < 10, "{} datagrams", round.len());
        let envelope = Envelope { from: ME, to: NodeId(2), incarnation: u64::MAX, sequence: u64::MAX };
        for (_, request) in round {
            let answer = answer(&request, LEASE, |_| true);
            assert!(Codec::new(&[0; 32]).seal(&envelope, &Body::LeaseRequest(request)).is_ok());
            assert!(Codec::new(&[0; 32]).seal(&envelope, &Body::LeaseAnswer(answer)).is_ok());
        }
    }

    #[test]
    fn an_answer_grants_what_it_says_once_and_counts_from_the_request() {
        let mut requests = Requests::new(ME, LEASE, 7);
        let wants = [want(1, &[2]), want(2, &[2]), want(3, &[2])];
        let (_, request) = requests.round(1_000 * MS, &wants).remove(0);
        let answer = answer(&request, LEASE, |entry| entry.database != DatabaseId(2));
        assert_eq!(requests.answer(1_100 * MS, NodeId(3), &answer), None, "another node cannot answer");
        let granted = requests.answer(1_300 * MS, NodeId(2), &answer).unwrap();
        assert_eq!(granted.until, requester_until(1_000 * MS, LEASE));
        assert_eq!(granted.entries.iter().map(|e| e.database.0).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(granted.refused, 1);
        assert_eq!(requests.answer(1_300 * MS, NodeId(2), &answer), None, "an answer counts once");
    }

    #[test]
    fn late_answers_and_answers_across_a_gap_grant_nothing() {
        let mut requests = Requests::new(ME, LEASE, 7);
        let (_, request) = requests.round(0, &[want(1, &[2])]).remove(0);
        let yes = answer(&request, LEASE, |_| true);
        assert_eq!(requests.answer(400 * MS, NodeId(2), &yes), None);
        let (_, request) = requests.round(0, &[want(1, &[2])]).remove(0);
        requests.gap();
        let yes = answer(&request, LEASE, |_| true);
        assert_eq!(requests.answer(MS, NodeId(2), &yes), None);
    }

    #[test]
    fn a_short_or_a_long_bitmap_harms_nobody() {
        let mut requests = Requests::new(ME, LEASE, 7);
        let (_, request) = requests.round(0, &[want(1, &[2])]).remove(0);
        let empty = LeaseAnswer { nonce: request.nonce, granted: Vec::new() };
        assert_eq!(requests.answer(MS, NodeId(2), &empty).unwrap().refused, 1);
        let (_, request) = requests.round(0, &[want(1, &[2])]).remove(0);
        let long = LeaseAnswer { nonce: request.nonce, granted: vec![0xff; 100] };
        assert_eq!(requests.answer(MS, NodeId(2), &long).unwrap().entries.len(), 1);
    }

    #[test]
    fn a_lease_longer_than_ours_is_refused() {
        let mut requests = Requests::new(ME, LEASE * 2, 7);
        let (_, request) = requests.round(0, &[want(1, &[2])]).remove(0);
        let answer = answer(&request, LEASE, |_| panic!("nothing may be promised"));
        assert_eq!(answer.granted, [0]);
    }

    #[test]
    fn unanswered_requests_are_bounded() {
        let mut requests = Requests::new(ME, LEASE, 7);
        for _ in 0..2 * MAX_OPEN {
            requests.round(0, &[want(1, &[2])]);
        }
        assert_eq!(requests.open.len(), MAX_OPEN);
        requests.round(400 * MS, &[]);
        assert!(requests.open.is_empty());
    }

    #[test]
    fn sizes_are_those_of_postcard() {
        for number in [0, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX] {
            assert_eq!(varint_len(number), postcard::to_allocvec(&number).unwrap().len(), "{number}");
        }
    }
}
