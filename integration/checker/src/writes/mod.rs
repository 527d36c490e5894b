//! Model 1: writes and reconfiguration.
//!
//! One database on up to four nodes, its coordinators, and a network that may deliver late, twice or never. What is
//! decided is decided by the daemon's own code: [`quorate_model::PartitionMap::apply`], `decide::next`,
//! `agent::standing::Standing` and `position::relate`.

pub mod agent;
pub mod coordinator;
pub mod heal;
pub mod invariants;
pub mod postgres;
pub mod state;

use crate::decisions::{Decisions, Quirk};
use postgres::{Entry, Instance, Mode, Names};
use quorate_model::{
    AllowList, ClientAuth, Command, Configuration, Database, DatabaseId, Epoch, GateReport, Lineage, Lsn,
    NodeId, NodeRecord, PartitionMap, Phase, ReplicaId, ReplicaState, Server, ServerId, Timeline,
};
use quorate_reconfig_agent::decide::Progress;
use quorate_reconfig_agent::tunnel::Route;
use state::{Coordinator, Letter, Map, Replica, Spent, State, Work};
use stateright::{Model, Property};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the environment may do to the cluster, each at the price of one fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A postmaster ends.
    Crash,
    /// A node loses power. It may return.
    PowerOff,
    /// The leader believes a node to be down that may not be.
    Suspect,
    /// A node hears no more of the map, for a while.
    Freeze,
    /// An order or its answer is late: its giver gives it up, and it may still arrive.
    GiveUp,
    /// Another node becomes leader; the former ends.
    Depose,
    /// Another node becomes leader; the former goes on by the map that it knew.
    Split,
}

pub const ALL_FAULTS: [Fault; 7] = [
    Fault::Crash,
    Fault::PowerOff,
    Fault::Suspect,
    Fault::Freeze,
    Fault::GiveUp,
    Fault::Depose,
    Fault::Split,
];

/// How far the model goes.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Voters and learners at the beginning, besides the primary.
    pub voters: u8,
    pub learners: u8,
    /// Copies that the database is to have.
    pub copies: u32,
    pub writes: u8,
    pub elections: u8,
    /// Changes of voters under one primary.
    pub joins: u8,
    /// Replicas built in place of others.
    pub built: u8,
    /// Switchovers that an operator begins.
    pub switchovers: u8,
    /// Moves of a copy to the node that has none.
    pub moves: u8,
    /// Words of an operator that what is lost may be lost.
    pub words: u8,
    /// Operations that an operator takes back.
    pub cancels: u8,
    pub faults: u8,
    pub kinds: BTreeSet<Fault>,
    /// Whether divergent copies are rewound; otherwise they are rebuilt, and fewer states are visited.
    pub rewinds: bool,
    /// Whether a lost quorum is recorded as such: no decision depends on it, and it doubles the states.
    pub quorum_lost: bool,
}

impl Bounds {
    fn replicas(&self) -> u64 {
        1 + u64::from(self.voters) + u64::from(self.learners)
    }

    /// Where ids end: replicas are numbered first, and an operation takes one too; a move also one for its copy.
    pub fn last_id(&self) -> u64 {
        let operations = u64::from(self.switchovers) + u64::from(self.words) + 2 * u64::from(self.moves);
        self.replicas() + u64::from(self.built) + operations
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A backend of a primary writes; with the gate held, one whose session is kept.
    Write(ReplicaId),
    /// Commits that a quorum has return to their clients through the open gate.
    Acknowledge(ReplicaId),
    /// A walsender reads the new sync names.
    Reload(ReplicaId, ReplicaId),
    Ship(ReplicaId, ReplicaId),
    Deliver(Letter),
    Finish(ReplicaId, usize),
    Keep(ReplicaId),
    Start(ReplicaId),
    Build(ReplicaId),
    /// A barrier's deadline passes: only when nothing else goes on.
    Expire(ReplicaId),
    Coordinate {
        zombie: bool,
        late: bool,
    },
    Switchover,
    Move,
    /// An operator gives up what does not answer.
    GiveUpLost,
    /// An operator takes back what is under way.
    Cancel,
    Crash(ReplicaId),
    PowerOff(NodeId),
    PowerOn(NodeId),
    Suspect(NodeId),
    Trust(NodeId),
    Freeze(NodeId),
    Thaw,
    GiveUp(Letter),
    TakeOver {
        split: bool,
    },
}

pub struct Writes {
    pub bounds: Bounds,
    pub decisions: Decisions,
    /// Only these are checked, if any are named.
    pub only: &'static [&'static str],
    /// One state in so many is healed, to see whether it comes to rest (I14); none when zero.
    pub heal_one_in: u64,
    pub healed: Arc<AtomicU64>,
    /// Steps that have been taken before the first state, so that what needs a long way can be reached.
    pub prologue: Vec<Action>,
}

const FIRST: ReplicaId = ReplicaId(1);
/// The node that holds nothing at the beginning.
const SPARE: NodeId = NodeId(4);

impl Writes {
    pub fn new(bounds: Bounds, decisions: Decisions) -> Writes {
        Writes { bounds, decisions, only: &[], heal_one_in: 0, healed: Arc::default(), prologue: Vec::new() }
    }

    fn record(&self) -> Database {
        let voters = (2..2 + u64::from(self.bounds.voters)).map(ReplicaId);
        let replica =
            |id| (ReplicaId(id), quorate_model::Replica { node: NodeId(id), state: ReplicaState::Up });
        Database {
            id: DatabaseId(1),
            server: ServerId(1),
            name: "d".to_owned(),
            version: 1,
            epoch: Epoch::new(0, 1, 0),
            phase: Phase::Stable,
            current: Configuration::new(FIRST, voters, 1),
            primary_since: Epoch::new(0, 1, 0),
            previous: Vec::new(),
            replicas: (1..=self.bounds.replicas()).map(replica).collect(),
            lineage: vec![Lineage {
                epoch: Epoch::new(0, 1, 0),
                timeline: Timeline(1),
                start_lsn: Lsn(0),
                uuid: uuid::Uuid::nil(),
            }],
            operation: None,
            options: Default::default(),
            copies: self.bounds.copies,
        }
    }

    fn map(&self) -> Map {
        let text = |id: u64| format!("n{id}");
        let node = |id: u64| NodeRecord {
            id: NodeId(id),
            name: text(id),
            fault_domain: text(id),
            update_domain: String::new(),
            region: String::new(),
            peer: String::new(),
            client: String::new(),
            admin: String::new(),
            http: String::new(),
            version: String::new(),
        };
        let server = Server {
            id: ServerId(1),
            name: "s".to_owned(),
            admin: String::new(),
            verifier: String::new(),
            allow: AllowList::default(),
            client_auth: ClientAuth::Password,
            client_ca: String::new(),
        };
        Map(Arc::new(PartitionMap {
            nodes: (1..=4).map(|id| (NodeId(id), node(id))).collect(),
            servers: [(server.id, server)].into(),
            databases: [(DatabaseId(1), self.record())].into(),
            last_id: self.bounds.replicas(),
            ..PartitionMap::default()
        }))
    }

    /// Stable, with the gate open.
    fn first(&self) -> State {
        let record = self.record();
        let reign = record.epoch.reign();
        let others: BTreeSet<ReplicaId> = record.replicas.keys().copied().filter(|r| *r != FIRST).collect();
        let mut replicas = BTreeMap::new();
        for (id, placed) in &record.replicas {
            let names =
                if *id == FIRST { Names::parse(&record.current.sync_names()) } else { state::nobody() };
            let mode = if *id == FIRST { Mode::Primary } else { Mode::Standby };
            let instance = Instance::new(mode, vec![Entry::Row(reign)], names);
            let mut replica = Replica::new(placed.node, reign, instance);
            replica.quirk = self.decisions.quirk;
            if *id == FIRST {
                replica.standing.founded(reign);
                replica.admit(reign, others.clone());
                replica.gate = GateReport::Open(reign);
                replica.led = Some(reign);
            } else {
                replica.standing.started();
                replica.standing.validated = Some(reign);
                let route = Route { node: NodeId(FIRST.0), primary: FIRST, epoch: reign };
                replica.file = (self.decisions.quirk == Quirk::Reopens).then(|| route.clone());
                replica.downstream = Some(route);
            }
            replicas.insert(*id, Arc::new(replica));
        }
        let mut first = State {
            map: self.map(),
            replicas,
            off: BTreeSet::new(),
            suspected: BTreeSet::new(),
            frozen: None,
            leader: Arc::new(Coordinator {
                claims: BTreeMap::new(),
                me: coordinator::FIRST_COORDINATOR,
                progress: Progress::new(reign),
            }),
            zombie: None,
            network: BTreeMap::new(),
            spent: Spent::default(),
            acknowledged: BTreeMap::new(),
            reigns: [(reign, FIRST)].into(),
            broken: None,
        };
        for standby in others {
            agent::ship(&mut first, FIRST, standby);
        }
        first
    }

    fn may(&self, state: &State, fault: Fault) -> bool {
        state.spent.faults < self.bounds.faults && self.bounds.kinds.contains(&fault)
    }

    /// What goes on by itself.
    fn progress(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend(state.off.iter().map(|node| Action::PowerOn(*node)));
        actions.extend(state.suspected.difference(&state.off).map(|node| Action::Trust(*node)));
        if state.frozen.is_some() {
            actions.push(Action::Thaw);
        }
        for (id, replica) in &state.replicas {
            let ready = replica.work.iter().enumerate().filter(|(_, w)| agent::can_finish(replica, w));
            actions.extend(ready.map(|(at, _)| Action::Finish(*id, at)));
        }
        for (id, replica) in state.replicas.iter().filter(|(_, r)| state.is_on(r)) {
            if replica.instance.mode == Mode::Down {
                actions.push(Action::Start(*id));
            } else {
                actions.push(Action::Keep(*id));
            }
            let stale = replica.instance.senders.iter().filter(|(_, s)| s.stale.is_some());
            actions.extend(stale.map(|(standby, _)| Action::Reload(*id, *standby)));
            if replica.is_primary() {
                actions.extend(state.replicas.keys().filter(|s| *s != id).map(|s| Action::Ship(*id, *s)));
                actions.push(Action::Acknowledge(*id));
            }
        }
        if let Some(record) = state.map.database() {
            let missing = record.replicas.keys().filter(|r| !state.replicas.contains_key(r));
            actions.extend(missing.map(|r| Action::Build(*r)));
        }
        let letters = state.network.keys().filter(|l| agent::is_deliverable(state, l));
        actions.extend(letters.map(|letter| Action::Deliver(*letter)));
        actions.push(Action::Coordinate { zombie: false, late: false });
        actions.push(Action::Coordinate { zombie: false, late: true });
        if state.zombie.is_some() {
            actions.push(Action::Coordinate { zombie: true, late: false });
            actions.push(Action::Coordinate { zombie: true, late: true });
        }
    }

    fn disturb(&self, state: &State, actions: &mut Vec<Action>) {
        for (id, replica) in state.replicas.iter().filter(|(_, r)| state.is_on(r)) {
            let sessions = matches!(replica.gate, GateReport::Open(_) | GateReport::Held);
            if replica.is_primary() && sessions && state.spent.writes < self.bounds.writes {
                actions.push(Action::Write(*id));
            }
            if replica.instance.mode != Mode::Down && self.may(state, Fault::Crash) {
                actions.push(Action::Crash(*id));
            }
        }
        let nodes: BTreeSet<NodeId> = state.replicas.values().map(|r| r.node).collect();
        for node in nodes {
            if self.may(state, Fault::PowerOff) && !state.off.contains(&node) {
                actions.push(Action::PowerOff(node));
            }
            // A node without power is found to be down at no price.
            let priced = !state.off.contains(&node);
            if !state.suspected.contains(&node) && (!priced || self.may(state, Fault::Suspect)) {
                actions.push(Action::Suspect(node));
            }
            if self.may(state, Fault::Freeze) && state.frozen.is_none() {
                actions.push(Action::Freeze(node));
            }
        }
        if self.may(state, Fault::GiveUp) {
            actions.extend(state.network.keys().filter(|l| l.awaited).map(|l| Action::GiveUp(*l)));
        }
        if self.may(state, Fault::Depose) {
            actions.push(Action::TakeOver { split: false });
        }
        if self.may(state, Fault::Split) && state.zombie.is_none() {
            actions.push(Action::TakeOver { split: true });
        }
        for (action, spent, most) in [
            (Action::Switchover, state.spent.switchovers, self.bounds.switchovers),
            (Action::Move, state.spent.moves, self.bounds.moves),
            (Action::GiveUpLost, state.spent.words, self.bounds.words),
            (Action::Cancel, state.spent.cancels, self.bounds.cancels),
        ] {
            if spent < most {
                actions.push(action);
            }
        }
    }

    fn act(&self, state: &mut State, action: &Action) {
        match *action {
            Action::Write(id) => {
                let number = state.spent.writes;
                state.spent.writes += 1;
                if let Some(replica) = state.replica(id) {
                    replica.instance.log.push(Entry::Write(number));
                }
            }
            Action::Acknowledge(id) => acknowledge(state, id),
            Action::Reload(id, standby) => {
                if let Some(sender) = state.replica(id).and_then(|r| r.instance.senders.get_mut(&standby)) {
                    sender.stale = None;
                }
            }
            Action::Ship(primary, standby) => agent::ship(state, primary, standby),
            Action::Deliver(letter) => {
                let Some(what) = state.network.remove(&letter) else { return };
                if let Some(outcome) = agent::obey(state, letter, what) {
                    invariants::obeyed(state, letter, outcome.is_ok());
                    coordinator::answer(state, letter, outcome);
                }
            }
            Action::Finish(id, at) => {
                let work: Work = match state.replica(id) {
                    Some(replica) if at < replica.work.len() => replica.work.remove(at),
                    _ => return,
                };
                if let Some((letter, outcome)) = agent::finish(state, work) {
                    invariants::obeyed(state, letter, outcome.is_ok());
                    coordinator::answer(state, letter, outcome);
                }
            }
            Action::Keep(id) => agent::keep(state, id, self.bounds.rewinds),
            Action::Start(id) => agent::start(state, id),
            Action::Build(id) => agent::build(state, id),
            Action::Expire(id) => {
                if let Some(letter) = agent::expire(state, id) {
                    coordinator::answer(state, letter, Err(agent::failure()));
                }
            }
            Action::Coordinate { zombie, late } => {
                coordinator::coordinate(state, &self.bounds, &self.decisions, zombie, late);
            }
            Action::Switchover | Action::Move | Action::GiveUpLost | Action::Cancel => operate(state, action),
            Action::PowerOn(node) => {
                state.off.remove(&node);
                self.reopen(state, node);
            }
            Action::Trust(node) => {
                state.suspected.remove(&node);
            }
            Action::Thaw => state.frozen = None,
            _ => {
                let free = matches!(action, Action::Suspect(node) if state.off.contains(node));
                state.spent.faults += u8::from(!free);
                self.fault(state, action);
            }
        }
    }

    fn fault(&self, state: &mut State, action: &Action) {
        match *action {
            Action::Crash(id) => {
                if let Some(replica) = state.replica(id) {
                    agent::crash(replica);
                }
            }
            Action::PowerOff(node) => {
                state.off.insert(node);
                let here: Vec<ReplicaId> =
                    state.replicas.iter().filter(|(_, r)| r.node == node).map(|(id, _)| *id).collect();
                for id in here {
                    if let Some(replica) = state.replica(id) {
                        agent::power_off(replica);
                    }
                }
            }
            Action::Suspect(node) => {
                state.suspected.insert(node);
            }
            Action::Freeze(node) => state.frozen = Some((node, state.map.clone())),
            Action::GiveUp(letter) => coordinator::give_up(state, letter),
            Action::TakeOver { split } => coordinator::take_over(state, split),
            _ => {}
        }
    }

    /// What a node that is started again takes up by itself: nothing, but for a mutant.
    fn reopen(&self, state: &mut State, node: NodeId) {
        if self.decisions.quirk != Quirk::Reopens {
            return;
        }
        let here: Vec<ReplicaId> =
            state.replicas.iter().filter(|(_, r)| r.node == node).map(|(id, _)| *id).collect();
        for id in here {
            if let Some(replica) = state.replica(id)
                && let Some(route) = replica.file.clone()
            {
                replica.instance.mode = Mode::Standby;
                replica.standing.started();
                replica.downstream = Some(route);
            }
        }
    }
}

/// What an operator orders. Refused, it changes nothing, and may be ordered again later.
fn operate(state: &mut State, action: &Action) {
    let Some(record) = state.map.database() else { return };
    let (database, now_ms) = (record.id, 0);
    let command = match action {
        Action::Switchover => Command::BeginSwitchover { database, to: None, now_ms },
        Action::Move => {
            let last = record.current.voters.last().and_then(|r| record.node_of(*r));
            let Some(from) = last else { return };
            Command::BeginMove { database, from, to: SPARE, now_ms }
        }
        Action::GiveUpLost => Command::BeginForceRecover { database, candidate: None, now_ms },
        Action::Cancel => {
            let Some(operation) = record.operation else { return };
            Command::CancelOperation { operation, attempt: None, because: None, now_ms }
        }
        _ => return,
    };
    if Arc::make_mut(&mut state.map.0).apply(command).is_ok() {
        let spent = &mut state.spent;
        match action {
            Action::Switchover => spent.switchovers += 1,
            Action::Move => spent.moves += 1,
            Action::GiveUpLost => spent.words += 1,
            _ => spent.cancels += 1,
        }
    }
}

/// Every commit that the quorum has and whose client has not heard of it returns through the open gate.
fn acknowledge(state: &mut State, id: ReplicaId) {
    let Some(replica) = state.replicas.get(&id) else { return };
    let GateReport::Open(reign) = replica.gate else { return };
    let released = replica.instance.released();
    let told: Vec<u8> = replica.instance.log[..released.min(replica.instance.log.len())]
        .iter()
        .filter_map(|e| if let Entry::Write(number) = e { Some(*number) } else { None })
        .collect();
    for number in told {
        state.acknowledged.entry(number).or_insert(reign);
    }
}

impl Model for Writes {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let steps = self.prologue.iter().enumerate();
        vec![steps.fold(self.first(), |state, (at, action)| match self.next_state(&state, action.clone()) {
            Some(next) => next,
            None => panic!("step {at} of the prologue does nothing: {action:?}"),
        })]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.progress(state, actions);
        self.disturb(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = last.clone();
        self.act(&mut next, &action);
        if next == *last {
            return None;
        }
        invariants::stepped(last, &mut next);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let all = invariants::properties();
        if self.only.is_empty() {
            return all;
        }
        all.into_iter().filter(|p| self.only.contains(&p.name)).collect()
    }
}

impl Writes {
    /// I14 for a sample of the states: without further faults, the database comes to rest with its gate open.
    pub fn heals(&self, state: &State) -> bool {
        if self.heal_one_in == 0 {
            return true;
        }
        let mut hasher = DefaultHasher::new();
        state.hash(&mut hasher);
        if !hasher.finish().is_multiple_of(self.heal_one_in) {
            return true;
        }
        self.healed.fetch_add(1, Ordering::Relaxed);
        heal::heals(self, state.clone())
    }
}
