//! Model 2: leases and reads.
//!
//! A primary renews its lease with two voters and answers queries; meanwhile the voters are fenced and one of them is
//! opened as the new primary. Clocks drift within the bound, datagrams take any time, the old primary's daemon may
//! stop for any time at any point (it then takes no step meanwhile), and a voter's daemon may restart. The arithmetic is the ring's
//! ([`quorate_ring::lease`]), the rules are those of `Standing`, and the coordinator's wait is `decide::next`'s.
//!
//! Time passes in steps, and besides to the moments that matter: the last nanosecond of the lease, the first after it,
//! and the same for the coordinator's wait.

pub mod clock;
pub mod rules;
pub mod state;

use clock::{Clock, DRIFT_PPM, True};
use quorate_model::{
    Configuration, Database, DatabaseId, Lineage, Lsn, NodeId, PartitionMap, Phase, Position, Replica,
    ReplicaId, ReplicaState, ServerId, Timeline,
};
use quorate_reconfig_agent::agent::standing::Standing;
use quorate_reconfig_agent::decide::{
    self, Act, Fenced, NodeDown, OrderKind, Progress, Promoted, Reply, Timers, View, What,
};
use quorate_ring::lease::{self, LeaseWant, Requests};
use rules::{Check, Rules};
use state::{NEW, NEW_REIGN, OLD, OLD_REIGN, OTHER, Old, Query, Spent, State};
use stateright::{Model, Property};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const LEASE: Duration = Duration::from_millis(300);
const MS: u64 = 1_000_000;
const COORDINATOR: NodeId = NodeId(4);

#[derive(Clone, Debug)]
pub struct Bounds {
    /// The model ends there.
    pub until_ms: u64,
    /// Time passes in such steps, besides to the moments that matter.
    pub step_ms: u64,
    /// Rounds of renewal.
    pub rounds: u8,
    pub gaps: u8,
    pub restarts: u8,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Wait(True),
    Renew,
    Grant(ReplicaId, u64),
    Granted(ReplicaId, u64),
    /// The old primary's daemon finds that it did not run for a while.
    Gap,
    /// A query comes; only a gate that asks then needs to know when.
    Query,
    Restart(ReplicaId),
    /// A fence is obeyed and its answer heard. A later answer would only lengthen the wait.
    Fence(ReplicaId),
    /// The coordinator opens the new primary, if its decisions say so.
    Open,
    WriteAtNew,
    ReadAtNew,
}

pub struct Leases {
    pub bounds: Bounds,
    pub rules: Rules,
}

pub const I7: &str = "I7 a result shows every write acknowledged before it leaves";
pub const I8: &str = "I8 a value once returned never vanishes";

/// The record while the new primary is being promoted.
fn record() -> Database {
    let voters = [NEW, OTHER];
    Database {
        id: DatabaseId(1),
        server: ServerId(1),
        name: "d".to_owned(),
        version: 3,
        epoch: NEW_REIGN,
        phase: Phase::Promoting { coordinator: COORDINATOR },
        current: Configuration::new(NEW, [OTHER], 1),
        primary_since: NEW_REIGN,
        previous: vec![Configuration::new(OLD, voters, 1)],
        replicas: [OLD, NEW, OTHER]
            .map(|r| (r, Replica { node: NodeId(r.0), state: ReplicaState::Up }))
            .into(),
        lineage: vec![Lineage {
            epoch: OLD_REIGN,
            timeline: Timeline(1),
            start_lsn: Lsn(0),
            uuid: uuid::Uuid::nil(),
        }],
        operation: None,
        options: Default::default(),
        copies: 3,
    }
}

/// The record as the old primary's node knows it, cut off from the map.
fn old_record() -> Database {
    let mut old = record();
    old.epoch = OLD_REIGN;
    old.phase = Phase::Stable;
    old.current = old.previous.remove(0);
    old
}

fn promise(standing: &mut Standing) -> bool {
    match standing.must_persist(NEW_REIGN) {
        Ok(Some(reign)) => {
            standing.promised(reign);
            true
        }
        Ok(None) => true,
        Err(_) => false,
    }
}

impl Leases {
    fn first(&self, clocks: [Clock; 4]) -> State {
        let standby = || {
            let mut standing = Standing::new(OLD_REIGN, 0);
            standing.started();
            standing.validated = Some(OLD_REIGN);
            standing
        };
        let mut standing = Standing::new(OLD_REIGN, 0);
        standing.founded(OLD_REIGN);
        let position = Position { epoch: OLD_REIGN, lsn: Lsn(1), timeline: Timeline(1) };
        State {
            now: 0,
            clocks,
            old: Old {
                standing,
                requests: Requests::new(NodeId(OLD.0), LEASE, 0),
                lease: None,
                gate_open: true,
                query: None,
            },
            voters: [(NEW, standby()), (OTHER, standby())].into(),
            requests: BTreeMap::new(),
            answers: BTreeMap::new(),
            // Promotion and barrier take no time here: what is left to wait for is the lease.
            progress: Progress {
                promoted: Some(Promoted {
                    promoted: true,
                    since: NEW_REIGN,
                    timeline: Timeline(2),
                    history: vec![(Timeline(1), position.lsn)],
                    rows: Vec::new(),
                    lsn: Lsn(2),
                    uuid: uuid::Uuid::nil(),
                }),
                attached: [(OTHER, 0)].into(),
                barrier: Some((NEW_REIGN, Lsn(3))),
                ..Progress::new(NEW_REIGN)
            },
            opened: false,
            newer: false,
            shown: false,
            spent: Spent::default(),
        }
    }

    /// Moments that may matter, besides the steps.
    fn moments(&self, state: &State) -> BTreeSet<True> {
        let step = self.bounds.step_ms * MS;
        let mut moments: BTreeSet<True> = [(state.now / step + 1) * step].into();
        if let Some(until) = state.old.lease {
            let end = state.clock(OLD).when(until);
            moments.extend([end.saturating_sub(1), end]);
        }
        if state.progress.lease_until_ms > 0 {
            let end = state.clocks[3].when(state.progress.lease_until_ms * MS);
            moments.extend([end.saturating_sub(1), end]);
        }
        moments.retain(|m| *m > state.now && *m <= self.bounds.until_ms * MS);
        moments
    }

    fn is_leased(state: &State) -> bool {
        let now = state.clock(OLD).at(state.now);
        state.old.lease.is_some_and(|until| now < until)
    }

    /// What the coordinator decides now: whether to open.
    fn opens(&self, state: &State) -> bool {
        let database = record();
        let fenced: BTreeSet<ReplicaId> = state.progress.fences.keys().copied().collect();
        if !database.is_covered_by(&fenced) || !fenced.contains(&NEW) {
            return false;
        }
        let mut progress = state.progress.clone();
        if !self.rules.waits {
            progress.lease_until_ms = 0;
        }
        let (map, reports, claims) = (PartitionMap::default(), BTreeMap::new(), BTreeMap::new());
        let down: BTreeMap<NodeId, NodeDown> = BTreeMap::new();
        let view = View {
            me: COORDINATOR,
            now_ms: state.coordinator_ms(),
            unix_ms: 0,
            leading_since_ms: 0,
            map: &map,
            down: &down,
            reports: &reports,
            claims: &claims,
            timers: &Timers::default(),
        };
        let acts = decide::next(&view, &database, &progress);
        acts.iter().any(|act| matches!(act, Act::Order(order) if order.what == What::Open))
    }

    fn fence(state: &mut State, replica: ReplicaId) {
        let now = state.clock(replica).at(state.now);
        let old = &mut state.old;
        let standing = if replica == OLD { Some(&mut old.standing) } else { state.voters.get_mut(&replica) };
        let Some(standing) = standing else { return };
        if !promise(standing) {
            return;
        }
        let effect = standing.fence(NEW_REIGN, now);
        if effect.hold_gate {
            old.gate_open = false;
            old.lease = None;
        }
        let reply = Fenced {
            position: Some(Position { epoch: OLD_REIGN, lsn: Lsn(1), timeline: Timeline(1) }),
            role: effect.role,
            lease_left_ms: effect.lease_left.div_ceil(MS),
            note: String::new(),
        };
        let (now, retry) = (state.coordinator_ms(), Timers::default().retry);
        let outcome = Ok(Reply::Fenced(reply));
        state.progress.on_reply(OrderKind::Fence, replica, NEW_REIGN, outcome, now, retry);
    }

    fn granted(&self, state: &mut State, from: ReplicaId, nonce: u64) {
        let Some(answer) = state.answers.remove(&(from, nonce)) else { return };
        let now = state.clock(OLD).at(state.now);
        let node = NodeId(from.0);
        let Some(granted) = state.old.requests.answer(now, node, &answer) else { return };
        let until = (self.rules.believed)(granted.until, LEASE);
        for entry in granted.entries {
            if state.old.standing.leads(OLD, entry.epoch).is_err() {
                continue;
            }
            let holds = state.old.standing.granted(OLD, &old_record(), entry.epoch, node, until);
            if holds.is_some() {
                state.old.lease = holds;
            }
        }
    }

    fn grant(&self, state: &mut State, to: ReplicaId, nonce: u64) {
        let Some(request) = state.requests.remove(&(to, nonce)) else { return };
        let until = lease::granter_until(state.clock(to).at(state.now), LEASE);
        let Some(standing) = state.voters.get_mut(&to) else { return };
        let answer = lease::answer(&request, LEASE, |e| (self.rules.grant)(standing, e.epoch, until));
        state.answers.insert((to, nonce), answer);
    }

    /// Whether a result may leave the old primary's gate at this moment.
    fn may_leave(&self, state: &State) -> bool {
        let leased = match self.rules.check {
            // Queries come at any moment, so one always waits with its result.
            Check::Egress => Self::is_leased(state),
            Check::Ingress => state.old.query.is_some_and(|query| query.leased),
        };
        state.old.gate_open && leased
    }

    fn act(&self, state: &mut State, action: &Action) {
        match *action {
            Action::Wait(until) => state.now = until,
            Action::Renew => {
                state.spent.rounds += 1;
                let want = LeaseWant {
                    database: DatabaseId(1),
                    epoch: OLD_REIGN,
                    voters: vec![NodeId(NEW.0), NodeId(OTHER.0)],
                };
                let now = state.clock(OLD).at(state.now);
                for (to, request) in state.old.requests.round(now, &[want]) {
                    state.requests.insert((ReplicaId(to.0), request.nonce), request);
                }
            }
            Action::Grant(to, nonce) => self.grant(state, to, nonce),
            Action::Granted(from, nonce) => self.granted(state, from, nonce),
            Action::Gap => {
                state.spent.gaps += 1;
                state.old.standing.forget_grants();
                state.old.lease = None;
                state.old.requests.gap();
            }
            Action::Query => {
                state.old.query = Some(Query { leased: Self::is_leased(state) });
            }
            Action::Restart(voter) => {
                state.spent.restarts += 1;
                let now = state.clock(voter).at(state.now);
                if let Some(standing) = state.voters.get_mut(&voter) {
                    *standing = Standing::new(standing.promise(), (self.rules.forgotten)(now));
                    standing.started();
                }
            }
            Action::Fence(replica) => Self::fence(state, replica),
            Action::Open => {
                if self.opens(state) {
                    state.opened = true;
                }
            }
            Action::WriteAtNew => state.newer = true,
            Action::ReadAtNew => state.shown = true,
        }
    }
}

impl Model for Leases {
    type State = State;
    type Action = Action;

    /// One for every assignment of fast and slow clocks to the old primary, the voters and the coordinator.
    fn init_states(&self) -> Vec<State> {
        let clock = |fast: bool| Clock { ppm: if fast { DRIFT_PPM } else { -DRIFT_PPM } };
        (0..8u8).map(|bits| self.first([0, 1, 1, 2].map(|at| clock(bits >> at & 1 == 1)))).collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let (old, spent, bounds) = (&state.old, &state.spent, &self.bounds);
        actions.extend(self.moments(state).into_iter().map(Action::Wait));
        actions.extend(state.requests.keys().map(|(to, nonce)| Action::Grant(*to, *nonce)));
        // Either voter may grant and restart; one that does stands for both.
        if spent.restarts < bounds.restarts {
            actions.push(Action::Restart(OTHER));
        }
        for voter in [NEW, OTHER] {
            if state.voters[&voter].promise() < NEW_REIGN {
                actions.push(Action::Fence(voter));
            }
        }
        actions.extend(state.answers.keys().map(|(from, nonce)| Action::Granted(*from, *nonce)));
        if spent.rounds < bounds.rounds && old.standing.leading.is_some() {
            actions.push(Action::Renew);
        }
        if spent.gaps < bounds.gaps {
            actions.push(Action::Gap);
        }
        if self.rules.check == Check::Ingress && old.query.is_none() && Self::is_leased(state) {
            actions.push(Action::Query);
        }
        if old.standing.promise() < NEW_REIGN {
            actions.push(Action::Fence(OLD));
        }
        if !state.opened {
            actions.push(Action::Open);
        } else if !state.newer {
            actions.push(Action::WriteAtNew);
        } else if !state.shown {
            actions.push(Action::ReadAtNew);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = last.clone();
        self.act(&mut next, &action);
        (next != *last).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(I7, |model: &Leases, s: &State| !(s.newer && model.may_leave(s))),
            Property::always(I8, |model: &Leases, s: &State| !(s.shown && model.may_leave(s))),
        ]
    }
}
