//! Membership and the spreading of verdicts, by SWIM (the `foca` crate), over the ring's own socket.
//!
//! Gossip decides nothing about failure: that is done by heartbeats, within fractions of a second. It tells who
//! is a member at all, also to nodes that are not neighbours, and it carries verdicts around broken links. No
//! socket and no clock here: bytes and times come in, bytes and verdicts go out.

use crate::clock::{BootTime, nanos};
use crate::packet::MAX_GOSSIP;
use crate::verdict::Verdict;
use bytes::Bytes;
use foca::{
    AccumulatingRuntime, BroadcastHandler, Config, Foca, Identity, Invalidates, OwnedNotification,
    PeriodicParams, PostcardCodec, Timer,
};
use quorate_model::NodeId;
use rand_for_foca::SeedableRng;
use rand_for_foca::rngs::StdRng;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::mpsc;
use std::time::Duration;

/// How often nodes that are not members are asked to join.
pub const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);
/// How long a member that is down is remembered: no longer than needed to tell everybody.
const REMEMBER_DOWN: Duration = Duration::from_secs(30);
/// Verdicts that may wait between two looks into the inbox; more are dropped, and repeated by their reporters.
const INBOX: usize = 1_024;
/// Timers that may be pending; foca needs a few a member.
const MAX_TIMERS: usize = 4_096;

/// A run of a node's process. A later one takes the place of an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    node: NodeId,
    incarnation: u64,
    /// How often it had to come back under a new identity.
    renewals: u8,
}

impl Identity for Member {
    type Addr = NodeId;

    /// Steps that double: whoever must get past an incarnation of the future, because its wall clock was set
    /// back, gets there in a few dozen steps.
    fn renew(&self) -> Option<Self> {
        let step = 1_u64 << (30 + u32::from(self.renewals).min(32));
        Some(Member {
            node: self.node,
            incarnation: self.incarnation.saturating_add(step),
            renewals: self.renewals.saturating_add(1),
        })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.incarnation > adversary.incarnation
    }
}

/// What gossip wants done.
#[derive(Debug, PartialEq, Eq)]
pub enum GossipOutput {
    Send {
        to: NodeId,
        bytes: Bytes,
    },
    /// Somebody's verdict that was news to gossip.
    Verdict(Verdict),
}

pub struct Gossip {
    foca: Foca<Member, PostcardCodec, StdRng, Handler>,
    runtime: AccumulatingRuntime<Member>,
    timers: BTreeMap<(BootTime, u64), Timer<Member>>,
    timer_count: u64,
    verdicts: mpsc::Receiver<Verdict>,
    others: BTreeSet<NodeId>,
    members: BTreeSet<NodeId>,
    next_announce: BootTime,
}

impl Gossip {
    pub fn new(now: BootTime, node: NodeId, nodes: &BTreeSet<NodeId>, incarnation: u64, seed: u64) -> Self {
        let (verdict_tx, verdicts) = mpsc::sync_channel(INBOX);
        let handler = Handler { nodes: nodes.clone(), newest: BTreeMap::new(), verdicts: verdict_tx };
        let me = Member { node, incarnation, renewals: 0 };
        let rng = StdRng::seed_from_u64(seed);
        Gossip {
            foca: Foca::with_custom_broadcast(me, config(), rng, PostcardCodec, handler),
            runtime: AccumulatingRuntime::new(),
            timers: BTreeMap::new(),
            timer_count: 0,
            verdicts,
            others: nodes.iter().copied().filter(|other| *other != node).collect(),
            members: BTreeSet::new(),
            next_announce: now,
        }
    }

    /// Takes a packet of another node's gossip.
    pub fn receive(&mut self, now: BootTime, bytes: &[u8], out: &mut Vec<GossipOutput>) {
        let result = self.foca.handle_data(bytes, &mut self.runtime);
        self.settle(now, result, out);
    }

    /// Spreads a verdict of this node.
    pub fn publish(&mut self, now: BootTime, verdict: &Verdict, out: &mut Vec<GossipOutput>) {
        let Ok(bytes) = postcard::to_allocvec(verdict) else { return };
        let result = self.foca.add_broadcast(&bytes).and_then(|_| self.foca.gossip(&mut self.runtime));
        // The handler hands it back like any other's; it is known here already.
        while self.verdicts.try_recv().is_ok() {}
        self.settle(now, result, out);
    }

    /// Lets time pass.
    pub fn tick(&mut self, now: BootTime, out: &mut Vec<GossipOutput>) {
        if self.next_announce <= now {
            self.next_announce = now.saturating_add(nanos(ANNOUNCE_EVERY));
            for node in self.others.difference(&self.members).copied().collect::<Vec<_>>() {
                let unknown_run = Member { node, incarnation: 0, renewals: 0 };
                let result = self.foca.announce(unknown_run, &mut self.runtime);
                self.settle(now, result, out);
            }
        }
        // Only what is due at the beginning: a timer sets the next one.
        let due = self.timers.range(..=(now, u64::MAX)).count();
        for _ in 0..due {
            let Some((_, timer)) = self.timers.pop_first() else { break };
            let result = self.foca.handle_timer(timer, &mut self.runtime);
            self.settle(now, result, out);
        }
    }

    /// Says goodbye, so that nobody has to find out that this node is no member any more.
    pub fn leave(&mut self, now: BootTime, out: &mut Vec<GossipOutput>) {
        let result = self.foca.leave_cluster(&mut self.runtime);
        self.settle(now, result, out);
    }

    /// The other nodes that are members, as far as is known here.
    pub fn members(&self) -> &BTreeSet<NodeId> {
        &self.members
    }

    /// When [`Gossip::tick`] next has something to do.
    pub fn next_deadline(&self) -> BootTime {
        let timer = self.timers.first_key_value().map_or(BootTime::MAX, |((when, _), _)| *when);
        timer.min(self.next_announce)
    }

    fn settle(&mut self, now: BootTime, result: Result<(), foca::Error>, out: &mut Vec<GossipOutput>) {
        if let Err(error) = result {
            tracing::debug!(%error, "gossip");
        }
        while let Some((to, bytes)) = self.runtime.to_send() {
            out.push(GossipOutput::Send { to: to.node, bytes });
        }
        while let Some((after, timer)) = self.runtime.to_schedule() {
            if self.timers.len() < MAX_TIMERS {
                self.timer_count += 1;
                self.timers.insert((now.saturating_add(nanos(after)), self.timer_count), timer);
            }
        }
        let mut changed = false;
        while let Some(notification) = self.runtime.to_notify() {
            changed |= !matches!(notification, OwnedNotification::Active);
        }
        if changed {
            self.members = self.foca.iter_members().map(|member| member.id().node).collect();
        }
        while let Ok(verdict) = self.verdicts.try_recv() {
            out.push(GossipOutput::Verdict(verdict));
        }
    }
}

/// Nothing in it is critical for failover, so it is tuned to be cheap.
fn config() -> Config {
    const ONE: NonZeroUsize = NonZeroUsize::MIN;
    const THREE: NonZeroUsize = ONE.saturating_add(2);
    let periodic = |frequency, num_members| Some(PeriodicParams { frequency, num_members });
    Config {
        probe_period: Duration::from_secs(1),
        probe_rtt: Duration::from_millis(300),
        num_indirect_probes: THREE,
        max_transmissions: NonZeroU8::MIN.saturating_add(5),
        suspect_to_down_after: Duration::from_secs(4),
        remove_down_after: Some(REMEMBER_DOWN),
        max_packet_size: ONE.saturating_add(MAX_GOSSIP - 1),
        notify_down_members: true,
        periodic_announce: periodic(Duration::from_secs(10), ONE),
        periodic_announce_to_down_members: periodic(Duration::from_secs(5), ONE),
        periodic_gossip: periodic(Duration::from_millis(100), THREE),
    }
}

/// Reads the verdicts that gossip carries, and decides which are worth handing on.
struct Handler {
    nodes: BTreeSet<NodeId>,
    /// The age of the newest verdict seen, by subject and reporter.
    newest: BTreeMap<(NodeId, NodeId), (u64, u64)>,
    verdicts: mpsc::SyncSender<Verdict>,
}

/// What a verdict is about: a newer one of the same pair takes its place.
struct About {
    pair: (NodeId, NodeId),
    age: (u64, u64),
}

impl Invalidates for About {
    fn invalidates(&self, other: &Self) -> bool {
        self.pair == other.pair && self.age >= other.age
    }
}

impl BroadcastHandler<Member> for Handler {
    type Key = About;
    type Error = postcard::Error;

    fn receive_item(&mut self, data: &[u8], _: Option<&Member>) -> Result<Option<About>, postcard::Error> {
        let verdict: Verdict = postcard::from_bytes(data)?;
        let pair = (verdict.subject, verdict.reporter);
        let age = verdict.age();
        let is_known = self.nodes.contains(&pair.0) && self.nodes.contains(&pair.1);
        if !is_known || self.newest.get(&pair).is_some_and(|newest| *newest >= age) {
            return Ok(None);
        }
        // When the inbox is full the verdict stays unread and unspread, until its reporter repeats it.
        if self.verdicts.try_send(verdict).is_err() {
            return Ok(None);
        }
        self.newest.insert(pair, age);
        Ok(Some(About { pair, age }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Word;

    const MS: u64 = 1_000_000;

    /// A network without loss or delay, in which time is a number.
    struct Net {
        now: BootTime,
        nodes: BTreeMap<NodeId, Gossip>,
        heard: Vec<(NodeId, Verdict)>,
    }

    impl Net {
        fn new(size: u64) -> Self {
            let ids: BTreeSet<NodeId> = (1..=size).map(NodeId).collect();
            let nodes = ids.iter().map(|&id| (id, Gossip::new(0, id, &ids, 100, id.0))).collect();
            Net { now: 0, nodes, heard: Vec::new() }
        }

        fn run(&mut self, ms: u64) {
            for _ in 0..ms / 10 {
                self.now += 10 * MS;
                for id in self.nodes.keys().copied().collect::<Vec<_>>() {
                    let mut out = Vec::new();
                    if let Some(node) = self.nodes.get_mut(&id) {
                        node.tick(self.now, &mut out);
                    }
                    self.deliver(id, out);
                }
            }
        }

        fn deliver(&mut self, from: NodeId, outputs: Vec<GossipOutput>) {
            let mut queue: Vec<(NodeId, GossipOutput)> = outputs.into_iter().map(|o| (from, o)).collect();
            while let Some((at, output)) = queue.pop() {
                match output {
                    GossipOutput::Verdict(verdict) => self.heard.push((at, verdict)),
                    GossipOutput::Send { to, bytes } => {
                        assert!(bytes.len() <= MAX_GOSSIP);
                        let Some(node) = self.nodes.get_mut(&to) else { continue };
                        let mut out = Vec::new();
                        node.receive(self.now, &bytes, &mut out);
                        queue.extend(out.into_iter().map(|o| (to, o)));
                    }
                }
            }
        }

        fn members(&self, of: u64) -> Vec<u64> {
            self.nodes[&NodeId(of)].members().iter().map(|n| n.0).collect()
        }
    }

    #[test]
    fn all_find_each_other_and_a_dead_one_goes() {
        let mut net = Net::new(4);
        net.run(1_500);
        assert_eq!(net.members(1), [2, 3, 4]);
        assert_eq!(net.members(3), [1, 2, 4]);
        net.nodes.remove(&NodeId(4));
        net.run(15_000);
        assert_eq!(net.members(1), [2, 3]);
    }

    #[test]
    fn who_leaves_is_gone_at_once() {
        let mut net = Net::new(3);
        net.run(1_500);
        let mut out = Vec::new();
        if let Some(node) = net.nodes.get_mut(&NodeId(2)) {
            node.leave(net.now, &mut out);
        }
        net.deliver(NodeId(2), out);
        net.nodes.remove(&NodeId(2));
        net.run(500);
        assert_eq!(net.members(1), [3]);
    }

    #[test]
    fn a_restarted_node_comes_back_even_with_its_clock_set_back() {
        let mut net = Net::new(3);
        net.run(1_500);
        let ids = net.nodes.keys().copied().collect();
        net.nodes.insert(NodeId(2), Gossip::new(net.now, NodeId(2), &ids, 7, 99));
        net.run(5_000);
        assert_eq!(net.members(1), [2, 3]);
        assert_eq!(net.members(2), [1, 3]);
    }

    #[test]
    fn a_verdict_reaches_everybody_once() {
        let mut net = Net::new(5);
        net.run(1_500);
        let verdict = Verdict {
            subject: NodeId(5),
            reporter: NodeId(1),
            incarnation: 100,
            number: 1,
            word: Word::Suspect { silent_ms: 300 },
        };
        let mut out = Vec::new();
        if let Some(node) = net.nodes.get_mut(&NodeId(1)) {
            node.publish(net.now, &verdict, &mut out);
        }
        net.deliver(NodeId(1), out);
        net.run(500);
        let mut heard: Vec<u64> = net.heard.iter().map(|(at, _)| at.0).collect();
        heard.sort_unstable();
        assert_eq!(heard, [2, 3, 4, 5]);
        assert!(net.heard.iter().all(|(_, heard)| *heard == verdict));
    }

    #[test]
    fn garbage_is_survived() {
        let mut net = Net::new(2);
        net.run(1_500);
        let mut out = Vec::new();
        if let Some(node) = net.nodes.get_mut(&NodeId(1)) {
            for len in 0..200 {
                node.receive(net.now, &vec![len as u8; len], &mut out);
            }
        }
        net.deliver(NodeId(1), out);
        net.run(2_000);
        assert_eq!(net.members(1), [2]);
    }
}
