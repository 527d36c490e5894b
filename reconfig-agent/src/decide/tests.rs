//! Whole reconfigurations, played against a world of values: no clock, no sockets, no Postgres.

#![allow(clippy::unwrap_used)]

use super::*;
use quorate_model::position::{Relation, relate};
use quorate_model::*;
use std::collections::{BTreeMap, BTreeSet};

mod explanations;
mod operations;
mod recovery;

/// A replica as the world has it.
#[derive(Clone)]
struct Fake {
    alive: bool,
    role: InstanceRole,
    position: Position,
    promise: Epoch,
    follows: Option<Epoch>,
    gate: GateReport,
    run: RunState,
    /// When and from where it was promoted.
    since: Epoch,
    left: (Timeline, Lsn),
}

struct World {
    map: PartitionMap,
    id: DatabaseId,
    me: NodeId,
    now: u64,
    replicas: BTreeMap<ReplicaId, Fake>,
    down: BTreeMap<NodeId, NodeDown>,
    progress: Progress,
    timers: Timers,
    unwell_since: BTreeMap<ReplicaId, u64>,
    /// The highest position that a client was told of, and who held it.
    acknowledged: Lsn,
    refused: Vec<Refusal>,
    claims: BTreeMap<OperationId, u32>,
    /// Every step that was recorded.
    steps: Vec<Step>,
    /// Whether rewinds succeed.
    rewinds: bool,
}

impl World {
    fn new(nodes: u64) -> World {
        let mut map = PartitionMap::default();
        for n in 1..=nodes {
            map.apply(Command::RegisterNode(NodeRecord {
                id: NodeId(n),
                name: format!("n{n}"),
                fault_domain: format!("fd{n}"),
                update_domain: format!("ud{n}"),
                region: "here".into(),
                peer: String::new(),
                client: String::new(),
                admin: String::new(),
                http: String::new(),
                version: "0".into(),
            }))
            .unwrap();
        }
        map.apply(Command::CreateServer { name: "demo".into(), admin: "demo".into(), verifier: "x".into() })
            .unwrap();
        let placement = vec![NodeId(1), NodeId(2), NodeId(3)];
        let created = map
            .apply(Command::CreateDatabase {
                server: "demo".into(),
                name: "app".into(),
                placement,
                now_ms: 0,
            })
            .unwrap();
        let Applied::Operation { database: id, .. } = created else { panic!() };
        let timers = Timers { replace_after: 15_000, ..Timers::default() };
        let mut world = World {
            map,
            id,
            me: NodeId(4),
            now: 1_000,
            replicas: BTreeMap::new(),
            down: BTreeMap::new(),
            progress: Progress::new(Epoch::new(0, 1, 0)),
            timers,
            unwell_since: BTreeMap::new(),
            acknowledged: Lsn(0),
            refused: Vec::new(),
            claims: BTreeMap::new(),
            steps: Vec::new(),
            rewinds: true,
        };
        world.run_until("created", |w| w.is_open() && w.db().phase == Phase::Stable);
        world
    }

    fn db(&self) -> &Database {
        &self.map.databases[&self.id]
    }

    fn is_open(&self) -> bool {
        let d = self.db();
        self.replicas
            .get(&d.current.primary)
            .is_some_and(|f| f.alive && matches!(f.gate, GateReport::Open(e) if e.same_reign(d.epoch)))
    }

    /// What agents do by themselves: build what is missing, start what ended, follow the primary.
    fn agents(&mut self) {
        let d = self.db().clone();
        for (id, record) in &d.replicas {
            if self.down.contains_key(&record.node) || d.is_quarantined(*id) {
                continue;
            }
            let primary = self.replicas.get(&d.current.primary).cloned();
            let fake = self.replicas.entry(*id).or_insert_with(|| Fake {
                alive: true,
                role: InstanceRole::Standby,
                position: Position::default(),
                promise: Epoch::default(),
                follows: None,
                gate: GateReport::Closed,
                run: RunState::Building,
                since: Epoch::default(),
                left: (Timeline(1), Lsn(0)),
            });
            if !fake.alive {
                continue;
            }
            if d.phase == Phase::Creating && *id == d.current.primary {
                fake.role = InstanceRole::Primary;
                fake.since = d.epoch.reign();
                fake.run = RunState::Running;
                fake.position = Position { epoch: d.epoch.reign(), lsn: Lsn(100), timeline: Timeline(1) };
                continue;
            }
            let settled = matches!(d.phase, Phase::Creating | Phase::Stable | Phase::Joint);
            let Some(primary) = primary.filter(|p| p.alive && p.role == InstanceRole::Primary) else {
                continue;
            };
            if *id == d.current.primary || fake.role == InstanceRole::Primary && !settled {
                continue;
            }
            let fresh = fake.run == RunState::Building;
            if fresh && matches!(d.phase, Phase::Promoting { .. }) {
                fake.run = RunState::Running;
                fake.follows = Some(d.epoch.reign());
            }
            if settled && fake.promise <= d.epoch.reign() {
                fake.role = InstanceRole::Standby;
                if fake.run == RunState::Divergent && d.is_barred(*id) {
                    match position::fork(&d.lineage, &fake.position) {
                        Some(fork) if self.rewinds => fake.position.lsn = fork,
                        _ => fake.run = RunState::Failed("the rewind failed".into()),
                    }
                }
                if matches!(fake.run, RunState::Failed(_)) {
                    continue;
                }
                let prefix = position::relate(&d.lineage, &fake.position) == position::Relation::Prefix;
                if fresh || prefix {
                    fake.run = RunState::Running;
                    fake.follows = Some(d.epoch.reign());
                } else {
                    fake.run = RunState::Divergent;
                }
            }
            if fake.follows.is_some_and(|e| e.same_reign(d.epoch)) && fake.promise <= d.epoch.reign() {
                fake.position = primary.position;
            }
        }
        let known: BTreeSet<ReplicaId> = d.replicas.keys().copied().collect();
        self.replicas.retain(|id, _| known.contains(id));
    }

    fn reports(&mut self) -> BTreeMap<ReplicaId, Heard> {
        let d = self.db().clone();
        let mut all = BTreeMap::new();
        for (id, fake) in &self.replicas {
            let Some(node) = d.node_of(*id) else { continue };
            if self.down.contains_key(&node) {
                continue;
            }
            let run = if fake.alive { fake.run.clone() } else { RunState::Stopped("killed".into()) };
            if run == RunState::Running {
                self.unwell_since.remove(id);
            } else {
                self.unwell_since.entry(*id).or_insert(self.now);
            }
            let report = ReplicaReport {
                replica: *id,
                database: d.id,
                node,
                run,
                role: fake.role,
                promise: fake.promise,
                position: Some(fake.position),
                streaming: fake.follows,
                timeline: fake.position.timeline,
                flush_lsn: fake.position.lsn,
                lag_bytes: 0,
                gate: fake.gate,
                pid: None,
                data_directory: String::new(),
                socket: String::new(),
                sessions: 0,
                size_bytes: 0,
            };
            let unwell_since_ms = self.unwell_since.get(id).copied();
            all.insert(*id, Heard { report, at_ms: self.now, unwell_since_ms, led: None });
        }
        all
    }

    fn view<'a>(&'a self, reports: &'a BTreeMap<ReplicaId, Heard>) -> View<'a> {
        View {
            me: self.me,
            now_ms: self.now,
            unix_ms: self.now,
            leading_since_ms: 0,
            map: &self.map,
            down: &self.down,
            reports,
            timers: &self.timers,
            claims: &self.claims,
        }
    }

    /// A client's commit: counts when the gate is open and a voter of the configuration follows.
    fn commit(&mut self) -> bool {
        let d = self.db().clone();
        if !self.is_open() {
            return false;
        }
        let Some(primary) = self.replicas.get_mut(&d.current.primary) else { return false };
        primary.position.lsn.0 += 10;
        let at = primary.position;
        let mut acks = 0;
        for voter in &d.current.voters {
            let node_up = !self.down.contains_key(&d.node_of(*voter).unwrap());
            if let Some(f) = self.replicas.get_mut(voter) {
                if node_up
                    && f.alive
                    && f.promise <= d.epoch.reign()
                    && f.follows.is_some_and(|e| e.same_reign(d.epoch))
                {
                    f.position = at;
                    acks += 1;
                }
            }
        }
        if acks >= d.current.k {
            self.acknowledged = at.lsn;
            return true;
        }
        false
    }

    fn step(&mut self) {
        self.now += 20;
        self.agents();
        let reports = self.reports();
        let d = self.db().clone();
        let reign = d.epoch.reign();
        if self.progress.reign != reign {
            self.progress = Progress::new(reign);
        }
        self.progress.enter(d.phase.name(), self.now);
        let acts = {
            let view = View {
                me: self.me,
                now_ms: self.now,
                unix_ms: self.now,
                leading_since_ms: 0,
                map: &self.map,
                down: &self.down,
                reports: &reports,
                timers: &self.timers,
                claims: &self.claims,
            };
            next(&view, &d, &self.progress)
        };
        let mut changed = false;
        for act in acts {
            match act {
                Act::Elect(trigger) if !changed => {
                    changed = true;
                    self.apply(&d, Change::Elect { coordinator: self.me });
                    self.progress = Progress::new(self.db().epoch.reign());
                    self.progress.trigger = Some(trigger);
                }
                Act::Propose { change, .. } if !changed => {
                    changed = true;
                    self.apply(&d, change);
                }
                Act::Order(order) => {
                    let (kind, replica, epoch) = (order.what.kind(), order.replica, order.epoch);
                    let outcome = self.obey(&d, order);
                    self.progress.on_reply(kind, replica, epoch, outcome, self.now, 150);
                }
                Act::Claim { operation, attempt } => {
                    let (owner, now_ms) = (self.me, self.now);
                    let claim = Command::Claim { operation, attempt, owner, now_ms };
                    let Ok(Applied::Attempt(attempt)) = self.map.apply(claim) else { panic!("not claimed") };
                    self.claims.insert(operation, attempt);
                }
                Act::Advance { operation, attempt, step, change, .. } if change.is_none() || !changed => {
                    changed |= change.is_some();
                    self.steps.push(step.clone());
                    let change = change.map(|c| (d.version, c));
                    let now_ms = self.now;
                    let advance = Command::Advance { operation, attempt, step, change, now_ms };
                    if let Err(refusal) = self.map.apply(advance) {
                        self.refused.push(refusal);
                    }
                }
                Act::GiveUp { operation, attempt, because } => {
                    let (attempt, because, now_ms) = (Some(attempt), Some(because), self.now);
                    let cancel = Command::CancelOperation { operation, attempt, because, now_ms };
                    self.map.apply(cancel).unwrap();
                }
                Act::EndOperation { operation, attempt, state, .. } => {
                    let end = Command::EndOperation { operation, attempt, state, now_ms: self.now };
                    self.map.apply(end).unwrap();
                }
                _ => {}
            }
        }
        // I1 in this world: an open primary's log holds everything that was acknowledged.
        if self.map.databases.contains_key(&self.id) && self.is_open() {
            let primary = &self.replicas[&self.db().current.primary];
            assert!(primary.position.lsn >= self.acknowledged, "an acknowledged commit is lost");
        }
    }

    fn apply(&mut self, d: &Database, change: Change) {
        let command = Command::Reconfigure { database: d.id, version: d.version, change };
        if let Err(refusal) = self.map.apply(command) {
            if !matches!(refusal, Refusal::Stale { .. }) {
                self.refused.push(refusal);
            }
        }
    }

    fn obey(&mut self, d: &Database, order: Order) -> Result<Reply, Failure> {
        let unreachable = Failure::Unreachable("down".into());
        let node = d.node_of(order.replica).ok_or(unreachable.clone())?;
        assert!(!d.is_quarantined(order.replica), "a quarantined replica is left alone: {order:?}");
        if self.down.contains_key(&node) {
            return Err(unreachable);
        }
        let attached = |w: &World, r: ReplicaId| {
            w.replicas.get(&r).is_some_and(|f| {
                f.alive
                    && f.follows.is_some_and(|e| e.same_reign(order.epoch))
                    && !w.down.contains_key(&d.node_of(r).unwrap())
            })
        };
        let any_voter = d.current.voters.iter().any(|v| attached(self, *v));
        let fake = self.replicas.get_mut(&order.replica).ok_or(Failure::NotHere(order.replica))?;
        if order.epoch.reign() < fake.promise {
            return Err(Failure::Promised { replica: order.replica, promise: fake.promise });
        }
        if !matches!(order.what, What::Checkpoint | What::PrepareSource | What::Barrier { .. } | What::Open) {
            fake.promise = order.epoch.reign();
        }
        Ok(match order.what {
            What::Fence => {
                fake.follows = None;
                if fake.role == InstanceRole::Primary {
                    fake.gate = GateReport::Held;
                }
                Reply::Fenced(Fenced {
                    position: (fake.alive && fake.run == RunState::Running).then_some(fake.position),
                    role: fake.role,
                    lease_left_ms: 100,
                    note: String::new(),
                })
            }
            What::Promote { uuid, .. } => {
                let promoted = fake.role != InstanceRole::Primary;
                fake.role = InstanceRole::Primary;
                if promoted {
                    fake.since = order.epoch.reign();
                    fake.left = (fake.position.timeline, fake.position.lsn);
                    fake.position.timeline.0 += 1;
                }
                Reply::Promoted(Promoted {
                    promoted,
                    since: fake.since,
                    timeline: fake.position.timeline,
                    history: vec![fake.left],
                    lsn: fake.left.1,
                    uuid,
                })
            }
            What::Attach { history, .. } => {
                let mut lineage = d.lineage.clone();
                lineage.extend(history);
                if position::relate(&lineage, &fake.position) == position::Relation::Divergent {
                    fake.run = RunState::Divergent;
                    return Err(Failure::Divergent {
                        replica: order.replica,
                        lsn: fake.position.lsn,
                        timeline: fake.position.timeline,
                    });
                }
                fake.follows = Some(order.epoch.reign());
                fake.role = InstanceRole::Standby;
                Reply::Done
            }
            What::Barrier { .. } => {
                fake.position.epoch = order.epoch.reign();
                fake.position.lsn.0 += 1;
                if !any_voter && !d.is_read_only() {
                    return Err(Failure::Instance("nobody acknowledges".into()));
                }
                Reply::Passed { lsn: fake.position.lsn }
            }
            What::Open => {
                fake.gate = GateReport::Open(order.epoch.reign());
                Reply::Done
            }
            What::Checkpoint | What::PrepareSource => Reply::Done,
            What::Retire { .. } => {
                let at = fake.position;
                fake.role = InstanceRole::Standby;
                fake.gate = GateReport::Closed;
                for voter in &d.current.voters {
                    if attached(self, *voter) {
                        self.replicas.get_mut(voter).unwrap().position = at;
                    }
                }
                Reply::Retired { kept: 0, cut: 0 }
            }
        })
    }

    fn run_until(&mut self, what: &str, done: impl Fn(&World) -> bool) {
        for _ in 0..5_000 {
            self.step();
            if done(self) {
                return;
            }
        }
        panic!("not {what}: {:#?}\nrefused: {:?}", self.db(), self.refused);
    }

    fn is_whole(&self) -> bool {
        let d = self.db();
        d.phase == Phase::Stable && self.is_open() && d.replicas.len() == 3 && d.current.voters.len() == 2
    }

    fn lose_node(&mut self, node: u64) {
        let down = NodeDown { since_ms: self.now, reported_by: NodeId(4), silent_ms: 300 };
        self.down.insert(NodeId(node), down);
        for id in self.db().replicas_on(NodeId(node)).collect::<Vec<_>>() {
            if let Some(f) = self.replicas.get_mut(&id) {
                f.role = InstanceRole::Standby;
                f.gate = GateReport::Closed;
                f.follows = None;
            }
        }
    }
}

#[test]
fn creates_a_database() {
    let world = World::new(4);
    assert!(world.is_whole());
    let operation = world.map.operations.values().next().unwrap();
    assert_eq!(operation.kind, OperationKind::CreateDatabase);
    assert_eq!(world.db().lineage.len(), 1);
}

#[test]
fn loses_the_node_of_the_primary_and_becomes_whole_again() {
    let mut world = World::new(4);
    assert!(world.commit());
    let first = world.db().current.primary;
    world.lose_node(1);
    let lost_at = world.now;
    world.run_until("open", |w| w.is_open() && w.db().phase == Phase::Stable);
    assert!(world.now - lost_at < 500, "{} ms", world.now - lost_at);
    assert_ne!(world.db().current.primary, first);
    assert!(world.commit());
    world.run_until("whole", World::is_whole);
    assert!(world.db().replicas_on(NodeId(4)).next().is_some(), "rebuilt elsewhere");
    assert!(world.now - lost_at > 15_000, "not before replace_after");
}

/// The primary ended with log that nobody else has; another leads now, and it has come back.
fn divergent_former_primary(world: &mut World) -> ReplicaId {
    assert!(world.commit());
    let first = world.db().current.primary;
    let fake = world.replicas.get_mut(&first).unwrap();
    fake.alive = false;
    fake.position.lsn.0 += 500;
    world.run_until("open", |w| w.is_open() && w.db().current.primary != first);
    let fake = world.replicas.get_mut(&first).unwrap();
    fake.alive = true;
    fake.role = InstanceRole::Standby;
    first
}

#[test]
fn a_divergent_copy_is_rewound_with_a_floor_and_votes_again() {
    let mut world = World::new(4);
    let first = divergent_former_primary(&mut world);
    let end = world.replicas[&first].position;
    world.run_until("incomplete", |w| w.db().is_barred(first));
    assert_eq!(world.db().replicas[&first].state, ReplicaState::Incomplete { floor: end });
    assert!(!world.db().members().contains(&first));
    world.run_until("whole", World::is_whole);
    assert!(world.db().current.voters.contains(&first), "under its own id");
    assert!(world.refused.is_empty(), "{:?}", world.refused);
    assert!(world.commit());
}

#[test]
fn a_rewind_goes_on_under_another_coordinator() {
    let mut world = World::new(4);
    let first = divergent_former_primary(&mut world);
    while world.db().current.primary == first || !world.progress.source_ready {
        world.step();
    }
    // Its knowledge is lost at every step from the first order on; the record alone leads to the end.
    for _ in 0..100 {
        world.progress = Progress::new(world.db().epoch.reign());
        world.step();
        world.step();
    }
    world.run_until("whole", World::is_whole);
    assert!(world.db().current.voters.contains(&first));
}

#[test]
fn a_rewind_that_fails_is_not_tried_again() {
    let mut world = World::new(4);
    world.rewinds = false;
    let first = divergent_former_primary(&mut world);
    world.run_until("incomplete", |w| w.db().is_barred(first));
    world.run_until("whole", World::is_whole);
    assert!(!world.db().replicas.contains_key(&first), "rebuilt under another id");
}

/// Two promotions may choose one number: pg_rewind would find nothing to do, so nobody asks it.
#[test]
fn a_copy_on_a_timeline_of_an_unrecorded_promotion_is_flattened_without_a_try() {
    let mut world = World::new(4);
    let first = divergent_former_primary(&mut world);
    world.replicas.get_mut(&first).unwrap().position.timeline = Timeline(2);
    while world.db().replicas.contains_key(&first) {
        assert!(!world.db().is_barred(first));
        assert!(!world.progress.source_ready);
        world.step();
    }
    world.run_until("whole", World::is_whole);
}

/// I12: between the rewind and its floor it may hold less than it once acknowledged.
#[test]
fn an_incomplete_copy_makes_no_cover_and_never_wins() {
    let mut world = World::new(4);
    let first = divergent_former_primary(&mut world);
    world.run_until("incomplete", |w| w.db().is_barred(first));
    let d = world.db().clone();
    let voter = d.current.voters.iter().copied().next().unwrap();
    let elect = |fences: &[ReplicaId]| {
        let far = Position { epoch: d.epoch, lsn: Lsn(1 << 40), timeline: Timeline(9) };
        let fenced = Fenced {
            position: Some(far),
            role: InstanceRole::Standby,
            lease_left_ms: 0,
            note: String::new(),
        };
        let fences = fences.iter().map(|r| (*r, fenced.clone())).collect();
        let awaited = BTreeSet::new();
        election::judge(&election::Ballot {
            database: &d,
            fences: &fences,
            awaited: &awaited,
            divergent: &std::collections::BTreeSet::new(),
            wish: Some(first),
        })
    };
    assert!(matches!(elect(&[first]), election::Outcome::Uncovered { .. }));
    let election::Outcome::Elected(c) = elect(&[first, voter]) else { panic!() };
    assert!(!c.contains(first), "{c:?}");
    let change = Change::Join { current: Configuration::new(d.current.primary, [first], 1) };
    world.apply(&d, change);
    assert!(matches!(world.refused.last(), Some(Refusal::Unsafe(_))), "the record refuses it as well");
    let forget = Change::MarkReplica { replica: first, state: ReplicaState::Down { since_ms: 0 } };
    world.apply(&d, forget);
    assert_eq!(world.refused.len(), 2, "and does not forget the floor");
}

/// A postmaster that does not answer, or whose disk takes no log, is as good as dead.
#[test]
fn a_hung_primary_is_failed_over() {
    let mut world = World::new(4);
    assert!(world.commit());
    let first = world.db().current.primary;
    world.replicas.get_mut(&first).unwrap().run = RunState::Hung;
    world.run_until("open elsewhere", |w| w.is_open() && w.db().current.primary != first);
    assert!(world.commit());
}

#[test]
fn a_false_alarm_keeps_the_incumbent() {
    let mut world = World::new(4);
    let first = world.db().current.primary;
    let d = world.db().clone();
    world.apply(&d, Change::Elect { coordinator: world.me });
    world.progress = Progress::new(world.db().epoch.reign());
    let epoch = world.db().epoch;
    world.run_until("open", |w| w.is_open() && w.db().phase == Phase::Stable);
    assert_eq!(world.db().current.primary, first);
    assert_eq!(world.db().epoch, epoch, "one election");
    assert_eq!(world.db().lineage.len(), 1, "no promotion");
}

#[test]
fn a_lost_secondary_is_taken_out_then_replaced() {
    let mut world = World::new(4);
    world.lose_node(3);
    world.run_until("shrunk", |w| w.db().phase == Phase::Stable && w.db().current.voters.len() == 1);
    assert!(world.commit());
    // Now the other alone can take over.
    world.lose_node(1);
    world.run_until("open", |w| w.is_open() && w.db().phase == Phase::Stable);
    assert_eq!(world.db().primary_node(), Some(NodeId(2)));
}

#[test]
fn two_of_three_lost_at_once_is_a_lost_quorum_that_says_who_is_missing() {
    let mut world = World::new(4);
    let voters: Vec<ReplicaId> = world.db().current.voters.iter().copied().collect();
    world.lose_node(1);
    world.lose_node(3);
    world.run_until("lost", |w| matches!(w.db().phase, Phase::QuorumLost { .. }));
    let Phase::QuorumLost { missing, .. } = &world.db().phase else { panic!() };
    assert!(missing.contains(&voters[1]));
    world.down.remove(&NodeId(3));
    world.run_until("open", |w| w.is_open() && w.db().phase == Phase::Stable);
}

#[test]
fn a_coordinator_that_finds_somebody_elses_election_starts_over() {
    let mut world = World::new(4);
    world.lose_node(1);
    let d = world.db().clone();
    world.apply(&d, Change::Elect { coordinator: NodeId(1) });
    let current =
        Configuration::new(d.current.voters.iter().copied().next().unwrap(), [d.current.primary], 1);
    let e = world.db().clone();
    world.apply(&e, Change::Promote { coordinator: NodeId(1), current });
    assert!(!world.db().previous.is_empty());
    world.run_until("open", |w| w.is_open() && w.db().phase == Phase::Stable);
}

/// Found by the model checker: the incumbent alone covers, so the fences of both secondaries may fail, and the barrier
/// then waits for voters that nobody attaches.
#[test]
fn a_reelected_incumbent_gets_its_voters_back_whose_fences_failed() {
    let mut world = World::new(4);
    let suspicion = NodeDown { since_ms: world.now, reported_by: NodeId(4), silent_ms: 300 };
    for node in [1, 2, 3] {
        world.down.insert(NodeId(node), suspicion.clone());
    }
    world.run_until("electing", |w| matches!(w.db().phase, Phase::Electing { .. }));
    world.down.remove(&NodeId(1));
    world.run_until("promoting the incumbent", |w| matches!(w.db().phase, Phase::Promoting { .. }));
    assert_eq!(world.db().current.primary, ReplicaId(3));
    let fenced: Vec<_> = world.progress.fences.keys().copied().collect();
    assert_eq!(fenced, [ReplicaId(3)], "the fault took effect: nobody else answered");
    world.down.clear();
    world.run_until("whole", World::is_whole);
    assert_eq!(world.db().current.primary, ReplicaId(3), "without another election");
}

/// Found by the model checker: the end of the candidate was never reported, only that it follows again.
#[test]
fn a_candidate_that_was_restarted_unnoticed_is_elected_anew() {
    let mut world = World::new(4);
    world.lose_node(1);
    let promoted = |w: &World| w.progress.promoted.is_some();
    world.run_until("promoted", promoted);
    let (candidate, reign) = (world.db().current.primary, world.db().epoch.reign());
    let fake = world.replicas.get_mut(&candidate).unwrap();
    (fake.role, fake.gate) = (InstanceRole::Standby, GateReport::Closed);
    let failed = Failure::Instance("it is not the primary".into());
    let now = world.now;
    world.progress.on_reply(OrderKind::Barrier, candidate, world.db().epoch, Err(failed), now, 5_000);
    world.run_until("another reign", |w| w.db().epoch.reign() > reign);
    world.run_until("open", |w| w.is_open() && w.db().phase == Phase::Stable);
}

#[test]
fn a_learner_is_waited_for_when_no_voter_has_a_position() {
    let mut world = World::new(4);
    let (primary, voters) = (world.db().current.primary, world.db().current.voters.clone());
    let d = world.db().clone();
    world.apply(&d, Change::AllocateReplica { node: NodeId(4) });
    let learner = world.db().learners().next().unwrap();
    let (d, coordinator) = (world.db().clone(), world.me);
    world.apply(&d, Change::Elect { coordinator });
    let d = world.db().clone();
    let position = world.replicas[&primary].position;
    let answer =
        |position, role| order::Fenced { position, role, lease_left_ms: 0, note: "divergent".to_owned() };
    let mut progress = Progress::new(d.epoch.reign());
    progress.enter(d.phase.name(), world.now);
    progress.fences.insert(primary, answer(Some(position), InstanceRole::Primary));
    progress.fences.extend(voters.iter().map(|r| (*r, answer(None, InstanceRole::Standby))));
    let reports = world.reports();
    let promoted = |progress: &Progress| {
        next(&world.view(&reports), &d, progress).into_iter().find_map(|act| match act {
            Act::Propose { change: Change::Promote { current, .. }, .. } => Some(current),
            _ => None,
        })
    };
    assert_eq!(promoted(&progress), None, "the learner may answer yet");
    progress.fences.insert(learner, answer(Some(position), InstanceRole::Standby));
    assert_eq!(promoted(&progress).unwrap().voters, BTreeSet::from([learner]));
}

/// Every copy but the new primary's left the history, and nothing is rewound before the reign has begun.
fn alone_among_the_divergent(world: &mut World) -> (Database, Progress) {
    let (candidate, voters) = (world.db().current.primary, world.db().current.voters.clone());
    let (d, coordinator) = (world.db().clone(), world.me);
    world.apply(&d, Change::Elect { coordinator });
    let former = *voters.first().unwrap();
    let current = Configuration { primary: candidate, voters: BTreeSet::from([former]), k: 1 };
    let d = world.db().clone();
    world.apply(&d, Change::Promote { coordinator, current });
    let d = world.db().clone();
    let mut progress = Progress::new(d.epoch.reign());
    progress.enter(d.phase.name(), world.now);
    for id in d.copies() {
        let fake = world.replicas.get_mut(&id).unwrap();
        let fenced = order::Fenced {
            position: Some(fake.position),
            role: fake.role,
            lease_left_ms: 0,
            note: String::new(),
        };
        progress.fences.insert(id, fenced);
        if id != candidate {
            fake.run = RunState::Divergent;
        }
    }
    progress.divergent.insert(former);
    let position = world.replicas[&candidate].position;
    progress.promoted = Some(Promoted {
        promoted: false,
        since: d.lineage.last().unwrap().epoch,
        timeline: position.timeline,
        history: Vec::new(),
        lsn: position.lsn,
        uuid: uuid::Uuid::nil(),
    });
    world.now += world.timers.replace_after;
    (d, progress)
}

#[test]
fn a_divergent_learner_that_does_not_run_is_not_waited_for() {
    let mut world = World::new(4);
    let (d, progress) = alone_among_the_divergent(&mut world);
    let reports = world.reports();
    let acts = next(&world.view(&reports), &d, &progress);
    let builds =
        |act: &Act| matches!(act, Act::Propose { change: Change::AllocateReplica { node: NodeId(4) }, .. });
    assert!(acts.iter().any(builds), "{acts:?}");
}

#[test]
fn where_every_node_holds_a_copy_a_lost_one_makes_room() {
    let mut world = World::new(4);
    let d = world.db().clone();
    world.apply(&d, Change::AllocateReplica { node: NodeId(4) });
    let learner = world.db().learners().next().unwrap();
    let position = world.replicas[&d.current.primary].position;
    let fake = Fake { position, role: InstanceRole::Standby, ..world.replicas[&d.current.primary].clone() };
    world.replicas.insert(learner, fake);
    let (d, progress) = alone_among_the_divergent(&mut world);
    let reports = world.reports();
    let acts = next(&world.view(&reports), &d, &progress);
    let dropped: Vec<ReplicaId> = acts
        .iter()
        .filter_map(|act| match act {
            Act::Propose { change: Change::DropReplica { replica }, .. } => Some(*replica),
            _ => None,
        })
        .collect();
    assert_eq!(dropped, [learner], "what counted before the election is kept: {acts:?}");
}

#[test]
fn the_history_of_a_primary_begins_after_whoever_was_to_be_primary_between() {
    let mut world = World::new(4);
    let d = world.db().clone();
    let (first, coordinator) = (d.current.primary, world.me);
    let (one, other) = (*d.current.voters.first().unwrap(), *d.current.voters.last().unwrap());
    let mut elect = |primary, voter| {
        let d = world.db().clone();
        world.apply(&d, Change::Elect { coordinator });
        let d = world.db().clone();
        let current = Configuration { primary, voters: BTreeSet::from([voter]), k: 1 };
        world.apply(&d, Change::Promote { coordinator, current });
        world.db().clone()
    };
    let entry = |d: &Database, since: Epoch| {
        let promoted = Promoted {
            promoted: false,
            since,
            timeline: Timeline(2),
            history: vec![(Timeline(1), Lsn(50))],
            lsn: Lsn(50),
            uuid: uuid::Uuid::nil(),
        };
        reconfigure::lineage(d, &promoted).unwrap()
    };
    let d2 = elect(one, first);
    let d3 = elect(one, other);
    assert_eq!(
        entry(&d3, d2.epoch).epoch,
        d2.epoch,
        "elected again, with nobody between: who follows it may go on"
    );
    let d4 = elect(other, first);
    let d5 = elect(one, first);
    let mut history = d5.lineage.clone();
    history.push(entry(&d5, d2.epoch));
    assert_eq!(history.last().unwrap().epoch, d5.epoch);
    // It chose the same timeline as the promotion of `one`, which it never followed.
    let between = Position { epoch: d4.epoch, lsn: Lsn(60), timeline: Timeline(2) };
    assert_eq!(relate(&history, &between), Relation::Divergent);
}

#[test]
fn a_voter_too_many_is_taken_out() {
    let mut world = World::new(4);
    world.run_until("whole", World::is_whole);
    let d = world.db().clone();
    world.apply(&d, Change::AllocateReplica { node: NodeId(4) });
    let extra = world.db().learners().next().unwrap();
    let (d, fake) = (world.db().clone(), world.replicas[d.current.voters.first().unwrap()].clone());
    world.replicas.insert(extra, fake);
    let mut current = d.current.clone();
    current.voters.insert(extra);
    world.apply(&d, Change::Join { current });
    world.run_until("three voters", |w| w.db().phase == Phase::Stable && w.db().current.voters.len() == 3);
    world.run_until("whole again", |w| w.is_whole() && w.db().replicas.len() == 3);
    assert!(world.db().current.voters.contains(&extra), "the oldest goes");
}

#[test]
fn whoever_fell_off_during_a_promotion_is_attached_again() {
    let mut world = World::new(4);
    let (d, mut progress) = alone_among_the_divergent(&mut world);
    let voter = *d.current.voters.first().unwrap();
    progress.divergent.clear();
    let fake = world.replicas.get_mut(&voter).unwrap();
    (fake.run, fake.follows) = (RunState::Running, Some(d.epoch));
    progress.attached.insert(voter, world.now - world.timers.settle - 1);
    let attaches = |world: &mut World| {
        let reports = world.reports();
        let acts = next(&world.view(&reports), &d, &progress);
        acts.iter().any(
            |act| matches!(act, Act::Order(o) if o.replica == voter && matches!(o.what, What::Attach { .. })),
        )
    };
    assert!(!attaches(&mut world), "it follows");
    world.replicas.get_mut(&voter).unwrap().follows = None;
    assert!(attaches(&mut world), "it was started again");
}

#[test]
fn a_change_whose_voters_are_lost_is_gone_back_on() {
    let mut world = World::new(4);
    world.run_until("whole", World::is_whole);
    let d = world.db().clone();
    let lost = *d.current.voters.first().unwrap();
    let current = Configuration { voters: BTreeSet::from([lost]), ..d.current.clone() };
    world.apply(&d, Change::Join { current });
    world.replicas.get_mut(&lost).unwrap().run = RunState::Failed("its data directory is gone".to_owned());
    world.run_until("open", |w| w.is_open() && w.db().phase == Phase::Stable);
    assert!(!world.db().current.voters.contains(&lost));
    world.run_until("whole again", World::is_whole);
}
