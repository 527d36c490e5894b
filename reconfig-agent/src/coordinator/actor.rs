//! The actor: hears and decides. What it sends is in `orders` and `proposals`.

mod orders;
mod proposals;

use super::nodes::Nodes;
use super::steps::Laps;
use super::{Event, failpoint, is_past};
use crate::decide::{self, Act, Claim, Heard, Progress, Timers, Trigger, View};
use crate::map::{Leader, Map, ProposeError};
use proposals::word_of;
use quorate_model::{
    Applied, Change, Command, Database, DatabaseId, Epoch, GateReport, InstanceRole, Lsn, NodeId,
    OperationId, PartitionMap, ReplicaId, ReplicaReport, RunState, Timeline,
};
use quorate_transport::PeerNetwork;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Decisions that depend on time alone are looked at so often.
const TICK: Duration = Duration::from_millis(20);
/// Suspects and nodes that are down are asked again so often.
const RECHECK: Duration = Duration::from_millis(500);

/// A proposal under way, with the event that is recorded with it.
#[derive(Debug)]
pub(super) enum Proposal {
    Elect(Trigger),
    Change(Change, Option<quorate_model::Event>),
    Operation(Option<quorate_model::Event>),
}

/// Where a proposal stands among the failpoints.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    scope: &'static str,
    step: &'static str,
}

pub(super) struct Actor {
    me: NodeId,
    timers: Timers,
    pub(super) map: Arc<dyn Map>,
    watch: watch::Receiver<Arc<PartitionMap>>,
    leader: watch::Receiver<Leader>,
    peers: Arc<dyn PeerNetwork>,
    inbox: mpsc::Sender<Event>,
    shared_down: Arc<Mutex<BTreeSet<NodeId>>>,
    born: Instant,
    leading_since_ms: Option<u64>,
    nodes: Nodes,
    reports: BTreeMap<ReplicaId, Heard>,
    pub(super) progress: BTreeMap<DatabaseId, Progress>,
    pub(super) laps: BTreeMap<DatabaseId, Laps>,
    /// A proposal of this version is under way or not yet visible here.
    proposing: BTreeMap<DatabaseId, Proposing>,
    /// Operations taken over since this node leads, and those being taken over.
    claims: BTreeMap<OperationId, Claim>,
    claiming: BTreeSet<OperationId>,
}

struct Proposing {
    version: u64,
    ended: bool,
}

impl Actor {
    pub fn new(
        me: NodeId,
        timers: Timers,
        map: Arc<dyn Map>,
        leader: watch::Receiver<Leader>,
        peers: Arc<dyn PeerNetwork>,
        inbox: mpsc::Sender<Event>,
        shared_down: Arc<Mutex<BTreeSet<NodeId>>>,
    ) -> Actor {
        let watch = map.watch();
        Actor {
            me,
            timers,
            map,
            watch,
            leader,
            peers,
            inbox,
            shared_down,
            born: Instant::now(),
            leading_since_ms: None,
            nodes: Nodes::default(),
            reports: BTreeMap::new(),
            progress: BTreeMap::new(),
            laps: BTreeMap::new(),
            proposing: BTreeMap::new(),
            claims: BTreeMap::new(),
            claiming: BTreeSet::new(),
        }
    }

    fn now_ms(&self) -> u64 {
        self.born.elapsed().as_millis() as u64 + 1
    }

    fn now_us(&self) -> u64 {
        self.born.elapsed().as_micros() as u64 + 1
    }

    pub async fn run(mut self, mut events: mpsc::Receiver<Event>, stop: CancellationToken) {
        let mut recheck = Instant::now();
        let mut leader = self.leader.clone();
        let mut watch = self.watch.clone();
        loop {
            // Whoever does not lead decides nothing.
            let rest = if self.leading_since_ms.is_some() { TICK } else { RECHECK };
            tokio::select! {
                event = events.recv() => {
                    let Some(event) = event else { return };
                    self.take(event);
                    while let Ok(event) = events.try_recv() {
                        self.take(event);
                    }
                }
                changed = watch.changed() => if changed.is_err() { return },
                changed = leader.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(rest) => {}
                () = stop.cancelled() => return,
            }
            if recheck.elapsed() >= RECHECK {
                recheck = Instant::now();
                self.recheck();
            }
            self.follow_leadership();
            if self.leading_since_ms.is_some() {
                self.decide();
            }
        }
    }

    fn take(&mut self, event: Event) {
        let now = self.now_ms();
        match event {
            Event::Reports { from, reports } => self.heard(from, reports, now),
            Event::Suspect { node, reporter, silent_ms } => {
                self.nodes.check(node, reporter, silent_ms, &self.peers, &self.inbox);
            }
            Event::Alive { node } => self.nodes.check(node, self.me, 0, &self.peers, &self.inbox),
            Event::Checked { node, reporter, silent_ms, answered } => {
                self.nodes.checked(node, reporter, silent_ms, answered, now);
                self.publish_down();
            }
            Event::Obeyed { database, given, outcome } => {
                self.obeyed(database, given, outcome, now);
            }
            Event::Proposed { database, version, proposal, point, outcome } => {
                self.proposed(database, version, proposal, point, outcome);
            }
            Event::Claimed { operation, point, outcome } => self.claimed(operation, point, outcome),
            Event::Doubt { node, reporter } => self.doubt(node, reporter),
        }
    }

    fn publish_down(&self) {
        let down = self.nodes.down.keys().copied().collect();
        *self.shared_down.lock().unwrap_or_else(PoisonError::into_inner) = down;
    }

    fn recheck(&mut self) {
        let down: Vec<(NodeId, NodeId, u64)> =
            self.nodes.down.iter().map(|(n, d)| (*n, d.reported_by, d.silent_ms)).collect();
        for (node, reporter, silent_ms) in down {
            self.nodes.check(node, reporter, silent_ms, &self.peers, &self.inbox);
        }
    }

    fn heard(&mut self, from: NodeId, reports: Vec<ReplicaReport>, now: u64) {
        self.nodes.heard(from);
        self.publish_down();
        let named: BTreeSet<ReplicaId> = reports.iter().map(|r| r.replica).collect();
        // What the map places there and the node does not name is not there (yet, or any more).
        let map = self.watch.borrow().clone();
        for database in map.databases.values() {
            for id in database.replicas_on(from).filter(|r| !named.contains(r)) {
                let unwell_since_ms = self.reports.get(&id).and_then(|h| h.unwell_since_ms).or(Some(now));
                let led = self.reports.get(&id).and_then(|h| h.led);
                let report = absent(database.id, id, from);
                self.reports.insert(id, Heard { report, at_ms: now, unwell_since_ms, led });
            }
        }
        for report in reports {
            let unwell = report.run != RunState::Running;
            let known = self.reports.get(&report.replica);
            let unwell_since_ms = unwell.then(|| known.and_then(|h| h.unwell_since_ms).unwrap_or(now));
            let led = match report.gate {
                GateReport::Open(reign) => Some(reign),
                _ => known.and_then(|h| h.led),
            };
            self.reports.insert(report.replica, Heard { report, at_ms: now, unwell_since_ms, led });
        }
    }

    /// A new leader starts from the map alone.
    fn follow_leadership(&mut self) {
        let leads = self.leader.borrow().is_me;
        match (leads, self.leading_since_ms) {
            (true, None) => {
                tracing::info!(node = %self.me, "coordinating");
                self.leading_since_ms = Some(self.now_ms());
                self.progress.clear();
                self.proposing.clear();
                self.laps.clear();
                self.claims.clear();
                self.claiming.clear();
                // Who is down is not known here yet: ask everybody once.
                for node in self.peers.nodes() {
                    if node != self.me {
                        self.nodes.check(node, self.me, 0, &self.peers, &self.inbox);
                    }
                }
            }
            (false, Some(_)) => {
                tracing::info!(node = %self.me, "no longer coordinating");
                self.leading_since_ms = None;
            }
            _ => {}
        }
    }

    fn decide(&mut self) {
        let map = self.watch.borrow().clone();
        let now_ms = self.now_ms();
        self.progress.retain(|id, _| map.databases.contains_key(id));
        let mut elections = Vec::new();
        for database in map.databases.values() {
            if let Some(p) = self.proposing.get(&database.id) {
                if !p.ended || !is_past(&map, database.id, p.version) {
                    continue;
                }
                self.proposing.remove(&database.id);
            }
            let reign = database.epoch.reign();
            let progress = self.progress.entry(database.id).or_insert_with(|| Progress::new(reign));
            if progress.reign != reign {
                *progress = Progress::new(reign);
            }
            progress.enter(database.phase.name(), now_ms);
            let view = View {
                me: self.me,
                now_ms,
                unix_ms: unix_ms(),
                leading_since_ms: self.leading_since_ms.unwrap_or(now_ms),
                map: &map,
                down: &self.nodes.down,
                reports: &self.reports,
                timers: &self.timers,
                claims: &self.claims,
            };
            let acts = decide::next(&view, database, progress);
            for act in acts {
                match act {
                    Act::Elect(trigger) => elections.push((database.id, database.version, trigger)),
                    act => self.act(&map, database, act),
                }
            }
        }
        self.elect(&map, elections);
    }

    /// The elections of one look go into one entry of the log.
    fn elect(&mut self, map: &PartitionMap, elections: Vec<(DatabaseId, u64, Trigger)>) {
        if elections.is_empty() {
            return;
        }
        let mut commands = Vec::new();
        for (database, version, trigger) in &elections {
            self.proposing.insert(*database, Proposing { version: *version, ended: false });
            // The election that ends a switchover goes on with what that took.
            if !(trigger.switchover && self.laps.contains_key(database)) {
                self.laps.insert(*database, Laps::begin(trigger.detect_ms, self.now_us()));
            }
            let name = map.databases.get(database).map(|d| map.full_name(d));
            tracing::warn!(database = name, reason = trigger.reason, "electing a primary");
            commands.push(Command::Reconfigure {
                database: *database,
                version: *version,
                change: Change::Elect { coordinator: self.me },
            });
        }
        let point = Point { scope: "electing", step: "record_elect" };
        failpoint::hit(point.scope, "before", point.step);
        let (map, inbox) = (self.map.clone(), self.inbox.clone());
        tokio::spawn(async move {
            let outcome = map.propose(Command::Batch(commands)).await;
            for (i, (database, version, trigger)) in elections.into_iter().enumerate() {
                let outcome = match &outcome {
                    Ok(Applied::Batch(results)) => match results.get(i) {
                        Some(Ok(applied)) => Ok(applied.clone()),
                        Some(Err(refusal)) => Err(ProposeError::Refused(refusal.clone())),
                        None => Err(ProposeError::Unavailable("no answer".to_owned())),
                    },
                    Ok(other) => Ok(other.clone()),
                    Err(e) => Err(e.clone()),
                };
                let proposal = Proposal::Elect(trigger);
                let _ = inbox.send(Event::Proposed { database, version, proposal, point, outcome }).await;
            }
        });
    }

    /// A node that answers is under suspicion by somebody's word: its primaries are fenced and, being healthy,
    /// elected again.
    fn doubt(&mut self, node: NodeId, reporter: NodeId) {
        let Some(leading_since_ms) = self.leading_since_ms else { return };
        let map = self.watch.borrow().clone();
        let view = View {
            me: self.me,
            now_ms: self.now_ms(),
            unix_ms: unix_ms(),
            leading_since_ms,
            map: &map,
            down: &self.nodes.down,
            reports: &self.reports,
            timers: &self.timers,
            claims: &self.claims,
        };
        let (busy, free): (Vec<_>, Vec<_>) = map
            .databases
            .values()
            .filter_map(|d| {
                let trigger = decide::reconfigure::suspected(&view, d, node, reporter)?;
                Some((d.id, d.version, trigger))
            })
            .partition(|(id, ..)| self.proposing.contains_key(id));
        if free.is_empty() && !busy.is_empty() {
            // A change is on its way into the log: as soon as it is there.
            let inbox = self.inbox.clone();
            tokio::spawn(async move {
                tokio::time::sleep(TICK).await;
                let _ = inbox.send(Event::Doubt { node, reporter }).await;
            });
        }
        self.elect(&map, free);
    }

    fn act(&mut self, map: &PartitionMap, database: &Database, act: Act) {
        let word = |id: OperationId| map.operations.get(&id).map_or("operation", |o| o.kind.word());
        let now_ms = unix_ms();
        if let Act::Claim { operation, attempt } = act {
            self.claim(operation, attempt, Point { scope: word(operation), step: "claim" });
            return;
        }
        if self.proposing.contains_key(&database.id) {
            return;
        }
        match act {
            Act::Order(order) => self.order(database, order),
            Act::Elect(_) | Act::Claim { .. } => {}
            Act::Propose { change, note } => {
                if matches!(change, Change::Promote { .. }) {
                    self.lap(database.id, "fence");
                }
                tracing::debug!(database = %database.id, ?change, "proposing");
                let point = Point { scope: database.phase.name(), step: word_of(&change) };
                let command = Command::Reconfigure {
                    database: database.id,
                    version: database.version,
                    change: change.clone(),
                };
                let event = self.event(map, database, note);
                self.propose(database, command, Proposal::Change(change, event), point);
            }
            Act::Advance { operation, attempt, step, change, note } => {
                let point = Point { scope: word(operation), step: step.word() };
                tracing::info!(database = %database.id, %operation, attempt, %step, "operation");
                let with = change.clone().map(|change| (database.version, change));
                let command = Command::Advance { operation, attempt, step, change: with, now_ms };
                match change {
                    Some(change) => {
                        let event = self.event(map, database, note);
                        self.propose(database, command, Proposal::Change(change, event), point);
                    }
                    None => self.spawn_progress(command, point),
                }
            }
            Act::GiveUp { operation, attempt, because } => {
                tracing::warn!(database = %database.id, %operation, because, "giving an operation up");
                let (attempt, because) = (Some(attempt), Some(because));
                let command = Command::CancelOperation { operation, attempt, because, now_ms };
                let point = Point { scope: word(operation), step: "give_up" };
                self.propose(database, command, Proposal::Operation(None), point);
            }
            Act::EndOperation { operation, attempt, state, note } => {
                tracing::info!(database = %database.id, %operation, ?state, "operation ends");
                let command = Command::EndOperation { operation, attempt, state, now_ms };
                let point = Point { scope: word(operation), step: "end" };
                let event = self.event(map, database, note);
                self.propose(database, command, Proposal::Operation(event), point);
            }
        }
    }

    fn lap(&mut self, id: DatabaseId, name: &str) {
        let now = self.now_us();
        if let Some(laps) = self.laps.get_mut(&id) {
            laps.lap(name, now);
        }
    }
}

/// The report of a replica that its node does not name.
fn absent(database: DatabaseId, replica: ReplicaId, node: NodeId) -> ReplicaReport {
    ReplicaReport {
        replica,
        database,
        node,
        run: RunState::Absent,
        role: InstanceRole::Unknown,
        promise: Epoch::default(),
        position: None,
        timeline: Timeline(0),
        streaming: None,
        flush_lsn: Lsn(0),
        lag_bytes: 0,
        gate: GateReport::Closed,
        pid: None,
        data_directory: String::new(),
        socket: String::new(),
        sessions: 0,
        size_bytes: 0,
    }
}

pub(super) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
