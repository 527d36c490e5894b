//! The actor: hears, decides, sends.

use super::nodes::Nodes;
use super::steps::Laps;
use super::{Event, failpoint, is_past};
use crate::agent::{Request, Response};
use crate::decide::{
    self, Act, Failure, Heard, Note, Order, OrderKind, Progress, Reply, Timers, Trigger, View, What,
};
use crate::map::{Leader, Map, ProposeError};
use quorate_model::{
    Applied, Change, Command, Database, DatabaseId, Epoch, GateReport, InstanceRole, Lsn, NodeId,
    OperationId, PartitionMap, Phase, ReplicaId, ReplicaReport, RunState, Timeline,
};
use quorate_transport::{PeerNetwork, Service, decode, encode};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Decisions that depend on time alone are looked at so often.
const TICK: Duration = Duration::from_millis(20);
/// Suspects and nodes that are down are asked again so often.
const RECHECK: Duration = Duration::from_millis(500);

/// A proposal under way, with what to record when it is accepted.
#[derive(Debug)]
pub(super) enum Proposal {
    Elect(Trigger),
    Change(Change, Note),
    Operation(Note),
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
    claims: BTreeMap<OperationId, u32>,
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
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut recheck = Instant::now();
        let mut leader = self.leader.clone();
        let mut watch = self.watch.clone();
        loop {
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
                _ = tick.tick() => {}
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
            Event::Obeyed { database, replica, epoch, kind, outcome } => {
                self.obeyed(database, replica, epoch, kind, outcome, now);
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
            self.laps.insert(*database, Laps::begin(trigger.detect_ms, self.now_us()));
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
                self.propose(database, command, Proposal::Change(change, note), point);
            }
            Act::Advance { operation, attempt, step, change, note } => {
                let point = Point { scope: word(operation), step: step.word() };
                tracing::info!(database = %database.id, %operation, attempt, %step, "operation");
                let with = change.clone().map(|change| (database.version, change));
                let command = Command::Advance { operation, attempt, step, change: with, now_ms };
                match change {
                    Some(change) => {
                        self.propose(database, command, Proposal::Change(change, note), point);
                    }
                    None => self.spawn_progress(command, point),
                }
            }
            Act::GiveUp { operation, attempt, because } => {
                tracing::warn!(database = %database.id, %operation, because, "giving an operation up");
                let (attempt, because) = (Some(attempt), Some(because));
                let command = Command::CancelOperation { operation, attempt, because, now_ms };
                let point = Point { scope: word(operation), step: "give_up" };
                self.propose(database, command, Proposal::Operation(Note::Nothing), point);
            }
            Act::EndOperation { operation, attempt, state, note } => {
                tracing::info!(database = %database.id, %operation, ?state, "operation ends");
                let command = Command::EndOperation { operation, attempt, state, now_ms };
                let point = Point { scope: word(operation), step: "end" };
                self.propose(database, command, Proposal::Operation(note), point);
            }
        }
    }

    fn claim(&mut self, operation: OperationId, attempt: u32, point: Point) {
        if !self.claiming.insert(operation) {
            return;
        }
        failpoint::hit(point.scope, "before", point.step);
        let (map, inbox) = (self.map.clone(), self.inbox.clone());
        let command = Command::Claim { operation, attempt, owner: self.me, now_ms: unix_ms() };
        tokio::spawn(async move {
            let outcome = map.propose(command).await;
            let _ = inbox.send(Event::Claimed { operation, point, outcome }).await;
        });
    }

    fn claimed(&mut self, operation: OperationId, point: Point, outcome: Result<Applied, ProposeError>) {
        self.claiming.remove(&operation);
        match outcome {
            Ok(Applied::Attempt(attempt)) => {
                tracing::info!(%operation, attempt, "taken over");
                failpoint::hit(point.scope, "after", point.step);
                self.claims.insert(operation, attempt);
                let map = self.watch.borrow().clone();
                self.claims.retain(|id, _| map.operations.get(id).is_none_or(|o| !o.state.is_over()));
            }
            Ok(other) => tracing::warn!(%operation, ?other, "a claim was answered oddly"),
            Err(error) => tracing::info!(%operation, %error, "an operation was not taken over"),
        }
    }

    fn spawn_progress(&self, command: Command, point: Point) {
        failpoint::hit(point.scope, "before", point.step);
        let map = self.map.clone();
        tokio::spawn(async move {
            match map.propose(command).await {
                Ok(_) => failpoint::hit(point.scope, "after", point.step),
                Err(error) => tracing::debug!(%error, "an operation's step was not recorded"),
            }
        });
    }

    fn propose(&mut self, database: &Database, command: Command, proposal: Proposal, point: Point) {
        failpoint::hit(point.scope, "before", point.step);
        self.proposing.insert(database.id, Proposing { version: database.version, ended: false });
        let (map, inbox) = (self.map.clone(), self.inbox.clone());
        let (database, version) = (database.id, database.version);
        tokio::spawn(async move {
            let outcome = map.propose(command).await;
            let _ = inbox.send(Event::Proposed { database, version, proposal, point, outcome }).await;
        });
    }

    fn proposed(
        &mut self,
        id: DatabaseId,
        version: u64,
        proposal: Proposal,
        point: Point,
        outcome: Result<Applied, ProposeError>,
    ) {
        match &outcome {
            Ok(_) => {
                failpoint::hit(point.scope, "after", point.step);
                if let Some(p) = self.proposing.get_mut(&id).filter(|p| p.version == version) {
                    p.ended = true;
                }
            }
            Err(error) => {
                self.proposing.remove(&id);
                tracing::info!(database = %id, %error, "a proposal was not accepted; looking again");
                return;
            }
        }
        let map = self.watch.borrow().clone();
        match proposal {
            Proposal::Elect(trigger) => {
                self.lap(id, "record");
                if let Some(database) = map.databases.get(&id) {
                    let mut progress = Progress::new(database.epoch.reign());
                    progress.trigger = Some(trigger);
                    self.progress.insert(id, progress);
                }
            }
            Proposal::Change(change, note) => {
                if matches!(change, Change::Promote { .. }) {
                    self.lap(id, "record");
                }
                if let (Change::Recover { survivor, .. }, Some(database)) = (&change, map.databases.get(&id))
                {
                    self.laps.insert(id, Laps::begin(0, self.now_us()));
                    let mut progress = Progress::new(database.epoch.reign());
                    progress.trigger = Some(Trigger::new("forced recovery".to_owned(), self.me, *survivor));
                    self.progress.insert(id, progress);
                }
                self.note(&map, id, Some(&change), note);
            }
            Proposal::Operation(note) => self.note(&map, id, None, note),
        }
    }

    fn lap(&mut self, id: DatabaseId, name: &str) {
        let now = self.now_us();
        if let Some(laps) = self.laps.get_mut(&id) {
            laps.lap(name, now);
        }
    }

    fn order(&mut self, database: &Database, order: Order) {
        let Some(node) = database.node_of(order.replica) else { return };
        let kind = order.what.kind();
        if let Some(progress) = self.progress.get_mut(&database.id) {
            progress.in_flight.insert((kind, order.replica));
        }
        if kind == OrderKind::Open && matches!(database.phase, Phase::Promoting { .. }) {
            self.lap(database.id, "lease");
        }
        tracing::debug!(database = %database.id, replica = %order.replica, %node, order = kind.name(), "ordering");
        failpoint::hit(database.phase.name(), "before", kind.name());
        let (peers, inbox) = (self.peers.clone(), self.inbox.clone());
        let (id, replica, epoch) = (database.id, order.replica, order.epoch);
        tokio::spawn(async move {
            let outcome = give(&peers, node, order).await;
            let _ = inbox.send(Event::Obeyed { database: id, replica, epoch, kind, outcome }).await;
        });
    }

    fn obeyed(
        &mut self,
        id: DatabaseId,
        replica: ReplicaId,
        epoch: Epoch,
        kind: OrderKind,
        outcome: Result<Reply, Failure>,
        now: u64,
    ) {
        if let Err(failure) = &outcome {
            tracing::info!(database = %id, %replica, order = kind.name(), %failure, "an order failed");
        }
        let retry = self.timers.retry;
        let Some(progress) = self.progress.get_mut(&id).filter(|p| p.reign == epoch.reign()) else {
            return;
        };
        let ok = outcome.is_ok();
        if ok {
            failpoint::hit(progress.phase, "after", kind.name());
        }
        progress.on_reply(kind, replica, epoch, outcome, now, retry);
        match kind {
            OrderKind::Promote if ok => self.lap(id, "promote"),
            OrderKind::Barrier if ok => self.lap(id, "barrier"),
            OrderKind::Open if ok => self.lap(id, "open"),
            _ => {}
        }
    }
}

/// How long the coordinator waits for an order to be obeyed.
fn deadline(what: &What) -> Duration {
    match what {
        What::Fence => Duration::from_millis(2_000),
        What::Open => Duration::from_secs(2),
        What::Attach { .. } => Duration::from_secs(5),
        What::Barrier { .. } => Duration::from_secs(6),
        What::Promote { .. } => Duration::from_secs(20),
        What::Checkpoint => Duration::from_secs(30),
        What::PrepareSource => Duration::from_secs(120),
        What::Retire { drain_ms } => Duration::from_millis(drain_ms + 20_000),
    }
}

async fn give(peers: &Arc<dyn PeerNetwork>, node: NodeId, order: Order) -> Result<Reply, Failure> {
    let deadline = deadline(&order.what);
    let body = encode(&Request::Order(order));
    let answer = peers
        .call(node, Service::Agent, body, deadline)
        .await
        .map_err(|e| Failure::Unreachable(e.to_string()))?;
    match decode::<Response>(&answer) {
        Ok(Response::Obeyed(outcome)) => outcome,
        Ok(_) => Err(Failure::Unreachable("an answer of another kind".to_owned())),
        Err(fault) => Err(Failure::Unreachable(fault.0)),
    }
}

/// A change's name among the failpoints.
fn word_of(change: &Change) -> &'static str {
    match change {
        Change::AllocateReplica { .. } => "record_allocate",
        Change::DropReplica { .. } => "record_drop_replica",
        Change::MarkReplica { .. } => "record_mark",
        Change::Join { .. } => "record_join",
        Change::Stabilize { .. } => "record_stabilize",
        Change::Elect { .. } => "record_elect",
        Change::Promote { .. } => "record_promote",
        Change::LoseQuorum { .. } => "record_lose_quorum",
        Change::Switch { .. } => "record_switch",
        Change::Recover { .. } => "record_recover",
        Change::Remove => "record_remove",
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
