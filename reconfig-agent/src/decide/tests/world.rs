//! A world of values: replicas that obey, agents that follow, clients that commit. No clock, no sockets, no Postgres.

use super::*;

/// A replica as the world has it.
#[derive(Clone)]
pub(super) struct Fake {
    pub alive: bool,
    pub role: InstanceRole,
    pub position: Position,
    pub promise: Epoch,
    pub follows: Option<Epoch>,
    pub gate: GateReport,
    pub run: RunState,
    /// When it was promoted.
    pub since: Epoch,
    /// Where its log left each older timeline, oldest first.
    pub left: Vec<(Timeline, Lsn)>,
    /// The epoch rows of its log.
    pub rows: Vec<(Epoch, Timeline)>,
}

impl Fake {
    pub fn write_row(&mut self, reign: Epoch) {
        self.position.epoch = reign;
        self.position.lsn.0 += 1;
        if self.rows.iter().all(|(row, _)| *row != reign) {
            self.rows.push((reign, self.position.timeline));
        }
    }
}

pub(super) struct World {
    pub map: PartitionMap,
    pub id: DatabaseId,
    pub me: NodeId,
    pub now: u64,
    pub replicas: BTreeMap<ReplicaId, Fake>,
    pub down: BTreeMap<NodeId, NodeDown>,
    pub progress: Progress,
    pub timers: Timers,
    pub unwell_since: BTreeMap<ReplicaId, u64>,
    /// The highest position that a client was told of, and who held it.
    pub acknowledged: Lsn,
    pub refused: Vec<Refusal>,
    pub claims: BTreeMap<OperationId, Claim>,
    /// Every step that was recorded.
    pub steps: Vec<Step>,
    /// Whether rewinds succeed.
    pub rewinds: bool,
    /// No report of these has come.
    pub unheard: BTreeSet<ReplicaId>,
}

impl World {
    pub fn new(nodes: u64) -> World {
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
            unheard: BTreeSet::new(),
        };
        world.run_until("created", |w| w.is_open() && w.db().phase == Phase::Stable);
        world
    }

    pub fn db(&self) -> &Database {
        &self.map.databases[&self.id]
    }

    pub fn is_open(&self) -> bool {
        let d = self.db();
        self.replicas
            .get(&d.current.primary)
            .is_some_and(|f| f.alive && matches!(f.gate, GateReport::Open(e) if e.same_reign(d.epoch)))
    }

    /// What agents do by themselves: build what is missing, start what ended, follow the primary.
    pub fn agents(&mut self) {
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
                left: Vec::new(),
                rows: Vec::new(),
            });
            if !fake.alive {
                continue;
            }
            if d.phase == Phase::Creating && *id == d.current.primary {
                fake.role = InstanceRole::Primary;
                fake.since = d.epoch.reign();
                fake.run = RunState::Running;
                fake.position = Position { epoch: d.epoch.reign(), lsn: Lsn(100), timeline: Timeline(1) };
                fake.rows = vec![(d.epoch.reign(), Timeline(1))];
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
                (fake.rows, fake.left) = (primary.rows.clone(), primary.left.clone());
            }
        }
        let known: BTreeSet<ReplicaId> = d.replicas.keys().copied().collect();
        self.replicas.retain(|id, _| known.contains(id));
    }

    pub fn reports(&mut self) -> BTreeMap<ReplicaId, Heard> {
        let d = self.db().clone();
        let mut all = BTreeMap::new();
        for (id, fake) in &self.replicas {
            let Some(node) = d.node_of(*id) else { continue };
            if self.down.contains_key(&node) || self.unheard.contains(id) {
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

    pub fn view<'a>(&'a self, reports: &'a BTreeMap<ReplicaId, Heard>) -> View<'a> {
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
    pub fn commit(&mut self) -> bool {
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
            if let Some(f) = self.replicas.get_mut(voter)
                && node_up
                && f.alive
                && f.promise <= d.epoch.reign()
                && f.follows.is_some_and(|e| e.same_reign(d.epoch))
            {
                f.position = at;
                acks += 1;
            }
        }
        if acks >= d.current.k {
            self.acknowledged = at.lsn;
            return true;
        }
        false
    }

    pub fn step(&mut self) {
        self.now += 20;
        self.agents();
        let reports = self.reports();
        let d = self.db().clone();
        let reign = d.epoch.reign();
        if self.progress.reign != reign {
            self.progress = Progress::new(reign);
        }
        self.progress.enter(d.phase.name(), self.now);
        let acts = { next(&self.view(&reports), &d, &self.progress) };
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
                    self.claims.insert(operation, Claim { attempt, since_ms: self.now });
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

    pub fn apply(&mut self, d: &Database, change: Change) {
        let command = Command::Reconfigure { database: d.id, version: d.version, change };
        if let Err(refusal) = self.map.apply(command)
            && !matches!(refusal, Refusal::Stale { .. })
        {
            self.refused.push(refusal);
        }
    }

    pub fn obey(&mut self, d: &Database, order: Order) -> Result<Reply, Failure> {
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
                    position: (fake.alive && matches!(fake.run, RunState::Running | RunState::Divergent))
                        .then_some(fake.position),
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
                    fake.left.push((fake.position.timeline, fake.position.lsn));
                    fake.position.timeline.0 += 1;
                }
                let rows = fake.rows.clone();
                fake.write_row(order.epoch.reign());
                Reply::Promoted(Promoted {
                    promoted,
                    since: fake.since,
                    timeline: fake.position.timeline,
                    history: fake.left.clone(),
                    rows,
                    lsn: fake.left.last().map_or(Lsn(0), |(_, lsn)| *lsn),
                    uuid,
                })
            }
            What::Attach { history, .. } => {
                if position::relate(&history, &fake.position) == position::Relation::Divergent {
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
                fake.write_row(order.epoch.reign());
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

    pub fn run_until(&mut self, what: &str, done: impl Fn(&World) -> bool) {
        for _ in 0..5_000 {
            self.step();
            if done(self) {
                return;
            }
        }
        panic!("not {what}: {:#?}\nrefused: {:?}", self.db(), self.refused);
    }

    pub fn is_whole(&self) -> bool {
        let d = self.db();
        d.phase == Phase::Stable && self.is_open() && d.replicas.len() == 3 && d.current.voters.len() == 2
    }

    pub fn lose_node(&mut self, node: u64) {
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
