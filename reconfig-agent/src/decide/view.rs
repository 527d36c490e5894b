//! What a coordinator knows at one moment: the replicated map, what nodes report, and how far its own orders got.

use super::order::{Failure, Fenced, OrderKind, Promoted, Reply};
use super::timers::Timers;
use quorate_model::{
    Database, Epoch, GateReport, InstanceRole, Lsn, NodeId, OperationId, PartitionMap, ReplicaId,
    ReplicaReport, RunState, StepTime,
};
use std::collections::{BTreeMap, BTreeSet};

/// A replica's last report and when it came (coordinator's monotonic milliseconds).
#[derive(Clone, Debug)]
pub struct Heard {
    pub report: ReplicaReport,
    pub at_ms: u64,
    /// Since when it has been unwell without a break.
    pub unwell_since_ms: Option<u64>,
    /// The last reign in which it was seen as primary with an open gate. What was seen so and is not any more has
    /// ended in between, however fast it was started again.
    pub led: Option<Epoch>,
}

/// A node that the ring lost and the coordinator could not reach either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeDown {
    pub since_ms: u64,
    pub reported_by: NodeId,
    /// How long it had been silent when it was reported.
    pub silent_ms: u64,
}

pub struct View<'a> {
    pub me: NodeId,
    /// Monotonic milliseconds of the coordinator.
    pub now_ms: u64,
    /// Unix milliseconds, recorded for people and for the slow replacement.
    pub unix_ms: u64,
    /// Since when this node leads.
    pub leading_since_ms: u64,
    pub map: &'a PartitionMap,
    pub down: &'a BTreeMap<NodeId, NodeDown>,
    pub reports: &'a BTreeMap<ReplicaId, Heard>,
    pub timers: &'a Timers,
    /// Operations that this coordinator took over since it leads. It acts for no other.
    pub claims: &'a BTreeMap<OperationId, Claim>,
}

/// A coordinator's hold on an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Claim {
    pub attempt: u32,
    /// When it took the operation over, by its own monotonic milliseconds: its limits count from here, because the
    /// clocks of different nodes are not compared.
    pub since_ms: u64,
}

/// How a replica is, as far as its coordinator can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Well,
    /// Not to be relied on now, with the reason in words and who said so.
    Unwell {
        reason: String,
        reported_by: Option<NodeId>,
    },
    Unknown,
}

impl View<'_> {
    pub fn report(&self, replica: ReplicaId) -> Option<&ReplicaReport> {
        let heard = self.reports.get(&replica)?;
        (self.now_ms.saturating_sub(heard.at_ms) <= self.timers.report_stale).then_some(&heard.report)
    }

    pub fn health(&self, database: &Database, replica: ReplicaId) -> Health {
        let Some(node) = database.node_of(replica) else {
            return Health::Unwell { reason: format!("{replica} is gone"), reported_by: None };
        };
        if let Some(down) = self.down.get(&node) {
            let name = self.map.nodes.get(&node).map_or("?", |n| n.name.as_str());
            return Health::Unwell {
                reason: format!("node {name} was silent for {} ms", down.silent_ms),
                reported_by: Some(down.reported_by),
            };
        }
        let Some(report) = self.report(replica) else { return Health::Unknown };
        let because = |what: String| Health::Unwell { reason: what, reported_by: Some(node) };
        match &report.run {
            RunState::Running => Health::Well,
            RunState::Stopped(why) => because(format!("postmaster of {replica} stopped: {why}")),
            RunState::Failed(why) => because(format!("{replica} failed: {why}")),
            RunState::Hung => because(format!("postmaster of {replica} does not answer")),
            RunState::Divergent => because(format!("{replica} is divergent")),
            RunState::Rewinding => because(format!("{replica} is being rewound")),
            RunState::Starting => because(format!("{replica} is starting")),
            RunState::Absent | RunState::Building => because(format!("{replica} has no data yet")),
        }
    }

    /// For how long a replica has been unwell, milliseconds.
    pub fn unwell_for(&self, database: &Database, replica: ReplicaId) -> u64 {
        let by_node = database.node_of(replica).and_then(|n| self.down.get(&n)).map(|d| d.since_ms);
        let by_report = self.reports.get(&replica).and_then(|h| h.unwell_since_ms);
        let since = match (by_node, by_report) {
            (Some(a), Some(b)) => a.min(b),
            (Some(a), None) | (None, Some(a)) => a,
            (None, None) => self.reports.get(&replica).map_or(self.leading_since_ms, |h| h.at_ms),
        };
        self.now_ms.saturating_sub(since.max(self.leading_since_ms))
    }

    /// Whether its own node says that it is no copy of the database any more: its data is lost, or left the history.
    pub fn is_no_copy(&self, replica: ReplicaId) -> bool {
        matches!(self.report(replica).map(|r| &r.run), Some(RunState::Failed(_) | RunState::Divergent))
    }

    /// Whether a secondary follows the primary of this reign closely enough to vote.
    pub fn is_ready(&self, database: &Database, replica: ReplicaId) -> bool {
        self.health(database, replica) == Health::Well
            && !database.is_barred(replica)
            && self.report(replica).is_some_and(|r| {
                r.role == InstanceRole::Standby
                    && r.streaming.is_some_and(|e| e.same_reign(database.epoch))
                    && r.lag_bytes <= self.timers.learner_lag_bytes
            })
    }

    pub fn is_gate_open(&self, database: &Database) -> bool {
        self.report(database.current.primary)
            .is_some_and(|r| matches!(r.gate, GateReport::Open(e) if e.same_reign(database.epoch)))
    }

    /// Nodes on which something new may be placed.
    pub fn usable_nodes(&self) -> BTreeSet<NodeId> {
        self.map.nodes.keys().copied().filter(|n| !self.down.contains_key(n)).collect()
    }
}

/// Why a reconfiguration was begun.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Trigger {
    pub reason: String,
    pub reported_by: Option<NodeId>,
    /// From the fault to its detection, as far as the detector knows, milliseconds.
    pub detect_ms: u64,
    pub from: ReplicaId,
    /// The incumbent was only restarted: its position is worth waiting for.
    pub restart: bool,
    pub switchover: bool,
    pub wish: Option<ReplicaId>,
}

impl Trigger {
    /// One that nobody detected by a delay, for a primary that need not have failed.
    pub fn new(reason: String, reported_by: NodeId, from: ReplicaId) -> Trigger {
        Trigger {
            reason,
            reported_by: Some(reported_by),
            detect_ms: 0,
            from,
            restart: false,
            switchover: false,
            wish: None,
        }
    }
}

/// How far the orders of one reign got. Volatile: a coordinator that finds a record in the middle of a
/// reconfiguration without having the progress for it elects anew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Progress {
    pub reign: Epoch,
    /// Monotonic milliseconds at which the current phase was first seen.
    pub entered_ms: u64,
    pub phase: &'static str,
    pub trigger: Option<Trigger>,
    pub fences: BTreeMap<ReplicaId, Fenced>,
    pub covered_ms: Option<u64>,
    pub promoted: Option<Promoted>,
    /// Who was attached, and when, milliseconds.
    pub attached: BTreeMap<ReplicaId, u64>,
    pub divergent: BTreeSet<ReplicaId>,
    pub barrier: Option<(Epoch, Lsn)>,
    /// The old primary's lease has run out by then.
    pub lease_until_ms: u64,
    pub opened: bool,
    pub retired: bool,
    pub checkpointed: bool,
    /// The primary of this reign can be the source of a rewind.
    pub source_ready: bool,
    pub in_flight: BTreeSet<(OrderKind, ReplicaId)>,
    pub failures: BTreeMap<(OrderKind, ReplicaId), FailureCount>,
    pub steps: Vec<StepTime>,
    /// Microseconds at which the reconfiguration began, for `steps`.
    pub began_us: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FailureCount {
    pub count: u32,
    pub retry_at_ms: u64,
    pub last: Failure,
}

impl Progress {
    pub fn new(reign: Epoch) -> Self {
        Progress { reign, ..Progress::default() }
    }

    /// Notes the phase, so that delays count from its first sight.
    pub fn enter(&mut self, phase: &'static str, now_ms: u64) {
        if self.phase != phase {
            self.phase = phase;
            self.entered_ms = now_ms;
        }
    }

    /// Whether an order may be given now: not under way, and not freshly failed.
    pub fn may_send(&self, kind: OrderKind, replica: ReplicaId, now_ms: u64) -> bool {
        !self.in_flight.contains(&(kind, replica))
            && self.failures.get(&(kind, replica)).is_none_or(|f| f.retry_at_ms <= now_ms)
    }

    pub fn failures_of(&self, kind: OrderKind, replica: ReplicaId) -> u32 {
        self.failures.get(&(kind, replica)).map_or(0, |f| f.count)
    }

    /// Takes in what an order brought.
    pub fn on_reply(
        &mut self,
        kind: OrderKind,
        replica: ReplicaId,
        epoch: Epoch,
        outcome: Result<Reply, Failure>,
        now_ms: u64,
        retry_ms: u64,
    ) {
        self.in_flight.remove(&(kind, replica));
        let reply = match outcome {
            Ok(reply) => reply,
            Err(failure) => {
                if matches!(failure, Failure::Divergent { .. }) {
                    self.divergent.insert(replica);
                }
                let count = self.failures_of(kind, replica) + 1;
                let retry_at_ms = now_ms + retry_ms;
                self.failures.insert((kind, replica), FailureCount { count, retry_at_ms, last: failure });
                return;
            }
        };
        self.failures.remove(&(kind, replica));
        match (kind, reply) {
            (OrderKind::Fence, Reply::Fenced(fenced)) => {
                if fenced.lease_left_ms > 0 {
                    self.lease_until_ms = self.lease_until_ms.max(now_ms + fenced.lease_left_ms + 1);
                }
                if fenced.position.is_none() {
                    let failure = Failure::Instance(fenced.note.clone());
                    let count = self.failures_of(kind, replica) + 1;
                    let retry_at_ms = now_ms + retry_ms;
                    self.failures.insert((kind, replica), FailureCount { count, retry_at_ms, last: failure });
                }
                self.fences.insert(replica, fenced);
            }
            (OrderKind::Promote, Reply::Promoted(promoted)) => self.promoted = Some(promoted),
            (OrderKind::Attach, _) => {
                self.attached.insert(replica, now_ms);
            }
            (OrderKind::Barrier, Reply::Passed { lsn }) => self.barrier = Some((epoch, lsn)),
            (OrderKind::Open, _) => self.opened = true,
            (OrderKind::Retire, _) => self.retired = true,
            (OrderKind::Checkpoint, _) => self.checkpointed = true,
            (OrderKind::PrepareSource, _) => self.source_ready = true,
            _ => {}
        }
    }

    pub fn passed_barrier_of(&self, epoch: Epoch) -> bool {
        self.barrier.is_some_and(|(e, _)| e == epoch)
    }
}
