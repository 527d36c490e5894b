//! A coordinator: looks at the map and at reports, decides, orders and proposes, as
//! `quorate_reconfig_agent::coordinator` does around the same decisions.
//!
//! Time is two moments: one at which no delay has passed yet, and one at which every short delay has. Each look at the
//! record is taken at one of them, as the environment likes. Reports are fresh and true; what a stale one could bring
//! about is brought about by suspicion and by elections that nobody needed.

use super::state::{Coordinator, Letter, Map, State};
use super::{Bounds, agent, invariants};
use crate::decisions::{Decisions, Quirk};
use quorate_model::{
    Applied, Change, Command, Database, Epoch, GateReport, InstanceRole, Lsn, NodeId, OperationId, Phase,
    Refusal, ReplicaId, ReplicaReport, ReplicaState, RunState, Timeline,
};
use quorate_reconfig_agent::decide::{
    Act, Claim, Failure, Heard, NodeDown, Progress, Reply, Timers, Trigger, View,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The node that leads at first. Nodes that lead hold no replicas here: each may be lost without the other.
pub const FIRST_COORDINATOR: NodeId = NodeId(10);
/// When every record was seen first.
pub const EARLY: u64 = 1_000;
/// When every delay but those of the slow replacement and of operations' limits has passed.
pub const LATE: u64 = 200_000;
const NEVER: u64 = u64::MAX / 4;
/// Failed orders are counted so far; more make no difference to any decision.
const FAILURES_COUNTED: u32 = 3;

/// One look of the leader, or of the zombie, at its database.
pub fn coordinate(state: &mut State, bounds: &Bounds, decisions: &Decisions, zombie: bool, late: bool) {
    let Some((mut coordinator, map)) = (match &state.zombie {
        Some((coordinator, map)) if zombie => Some((coordinator.clone(), map.clone())),
        _ if zombie => None,
        _ => Some((state.leader.clone(), state.map.clone())),
    }) else {
        return;
    };
    let Some(database) = map.database() else { return };
    let inner = Arc::make_mut(&mut coordinator);
    let reign = database.epoch.reign();
    if inner.progress.reign != reign {
        inner.progress = Progress::new(reign);
    }
    inner.progress.enter(database.phase.name(), EARLY);
    if decisions.quirk == Quirk::SpeaksForOperators
        && matches!(database.phase, Phase::QuorumLost { .. })
        && database.operation.is_none()
    {
        let word = Command::BeginForceRecover { database: database.id, candidate: None, now_ms: 0 };
        let _ = apply(state, word);
    }
    let acts = decide(state, bounds, decisions, inner, &map, database, if late { LATE } else { EARLY });
    for act in acts {
        let proposed = match act {
            Act::Order(order) => {
                let kind = order.what.kind();
                inner.progress.in_flight.insert((kind, order.replica));
                let letter = Letter {
                    from: inner.me,
                    epoch: order.epoch,
                    replica: order.replica,
                    kind,
                    awaited: true,
                };
                state.network.insert(letter, order.what);
                false
            }
            Act::Elect(trigger) => {
                let change = Change::Elect { coordinator: inner.me };
                if reign.primary <= u64::from(bounds.elections)
                    && propose(state, bounds, database, change).is_ok()
                {
                    inner.progress = Progress::new(state.map.database().map_or(reign, |d| d.epoch.reign()));
                    inner.progress.trigger = Some(plain(trigger));
                }
                true
            }
            Act::Propose { change, .. } => {
                // Refused or not, the coordinator looks again.
                let _ = propose(state, bounds, database, change);
                true
            }
            Act::Claim { operation, attempt } => {
                let claim = Command::Claim { operation, attempt, owner: inner.me, now_ms: 0 };
                if let Ok(Applied::Attempt(attempt)) = apply(state, claim) {
                    inner.claims.insert(operation, Claim { attempt, since_ms: EARLY });
                }
                false
            }
            Act::Advance { operation, attempt, step, change, .. } => {
                let changes = change.is_some();
                // What the bounds exclude is refused as an unreachable map would.
                if let Ok(change) = change.map(|change| within(state, bounds, database, change)).transpose() {
                    let change = change.map(|change| (version(state, decisions, database), change));
                    execute(state, decisions, operation, attempt, |attempt| Command::Advance {
                        operation,
                        attempt,
                        step,
                        change,
                        now_ms: 0,
                    });
                }
                changes
            }
            Act::GiveUp { operation, attempt, because } => {
                execute(state, decisions, operation, attempt, |attempt| Command::CancelOperation {
                    operation,
                    attempt: Some(attempt),
                    because: Some(because),
                    now_ms: 0,
                });
                true
            }
            Act::EndOperation { operation, attempt, state: end, .. } => {
                execute(state, decisions, operation, attempt, |attempt| Command::EndOperation {
                    operation,
                    attempt,
                    state: end,
                    now_ms: 0,
                });
                true
            }
        };
        if proposed {
            break;
        }
    }
    match &mut state.zombie {
        Some((z, _)) if zombie => *z = coordinator,
        _ => state.leader = coordinator,
    }
}

fn decide(
    state: &State,
    bounds: &Bounds,
    decisions: &Decisions,
    coordinator: &Coordinator,
    map: &Map,
    database: &Database,
    now_ms: u64,
) -> Vec<Act> {
    let down: BTreeMap<NodeId, NodeDown> = state
        .suspected
        .iter()
        .map(|node| (*node, NodeDown { since_ms: 0, reported_by: coordinator.me, silent_ms: 0 }))
        .collect();
    let reports: BTreeMap<ReplicaId, Heard> = database
        .replicas
        .keys()
        .filter_map(|id| Some((*id, report(state, bounds, database, *id)?)))
        .map(|(id, (report, led))| {
            let unwell_since_ms = (report.run != RunState::Running).then_some(0);
            (id, Heard { report, at_ms: now_ms, unwell_since_ms, led })
        })
        .collect();
    let timers = Timers {
        replace_after: NEVER,
        quorum_lost_after: if bounds.quorum_lost { EARLY } else { NEVER },
        ..Timers::default()
    };
    let view = View {
        me: coordinator.me,
        now_ms,
        unix_ms: 0,
        leading_since_ms: 0,
        map: &map.0,
        down: &down,
        reports: &reports,
        claims: &coordinator.claims,
        timers: &timers,
    };
    (decisions.next)(&view, database, &coordinator.progress)
}

/// What a node with power says of its replica; nothing of one without.
fn report(
    state: &State,
    bounds: &Bounds,
    database: &Database,
    id: ReplicaId,
) -> Option<(ReplicaReport, Option<Epoch>)> {
    let node = database.node_of(id)?;
    if state.off.contains(&node) {
        return None;
    }
    let mut report = ReplicaReport {
        replica: id,
        database: database.id,
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
    };
    let Some(replica) = state.replicas.get(&id) else { return Some((report, None)) };
    report.run = replica.standing.run.clone();
    report.role = replica.standing.role;
    report.promise = replica.standing.promise();
    report.timeline = replica.instance.timeline();
    report.gate = replica.gate;
    // Asked for by nobody but the return of a divergent copy.
    report.position = bounds.rewinds.then(|| replica.instance.position());
    report.streaming = replica
        .downstream
        .as_ref()
        .filter(|route| state.is_streaming(route.primary, id))
        .map(|route| route.epoch);
    Some((report, replica.led))
}

/// The trigger without its words.
fn plain(trigger: Trigger) -> Trigger {
    Trigger { reason: String::new(), reported_by: None, detect_ms: 0, ..trigger }
}

fn apply(state: &mut State, command: Command) -> Result<Applied, Refusal> {
    Arc::make_mut(&mut state.map.0).apply(command)
}

/// A step of an operation, for the attempt that its coordinator has claimed.
fn execute(
    state: &mut State,
    decisions: &Decisions,
    operation: OperationId,
    attempt: u32,
    command: impl FnOnce(u32) -> Command,
) {
    let before = state.map.clone();
    let told = match before.0.operations.get(&operation) {
        Some(current) if decisions.quirk == Quirk::ObeysReplaced => current.attempt,
        _ => attempt,
    };
    let _ = apply(state, command(told));
    invariants::recorded(&before, state, Some((operation, attempt)));
}

/// The version of the record that a step is decided against.
fn version(state: &State, decisions: &Decisions, seen: &Database) -> u64 {
    match state.map.database() {
        Some(record) if decisions.quirk == Quirk::ObeysReplaced => record.version,
        _ => seen.version,
    }
}

/// Proposes against the version that was looked at. What the bounds exclude is refused as an unreachable map would.
fn propose(state: &mut State, bounds: &Bounds, seen: &Database, change: Change) -> Result<Applied, Refusal> {
    let change = within(state, bounds, seen, change)?;
    let before = state.map.clone();
    let applied = apply(state, Command::Reconfigure { database: seen.id, version: seen.version, change });
    invariants::recorded(&before, state, None);
    applied
}

/// The change without its time, unless the bounds exclude it.
fn within(state: &State, bounds: &Bounds, seen: &Database, change: Change) -> Result<Change, Refusal> {
    match change {
        Change::AllocateReplica { .. } if state.map.0.last_id >= bounds.last_id() => {
            Err(Refusal::LimitReached("replicas".to_owned()))
        }
        Change::Join { .. } if seen.epoch.config >= u64::from(bounds.joins) => {
            Err(Refusal::LimitReached("changes of voters".to_owned()))
        }
        Change::MarkReplica { replica, state: ReplicaState::Down { .. } } => {
            Ok(Change::MarkReplica { replica, state: ReplicaState::Down { since_ms: 0 } })
        }
        change => Ok(change),
    }
}

/// An order's end reaches whoever gave it, if it still waits.
pub fn answer(state: &mut State, letter: Letter, outcome: Result<Reply, Failure>) {
    if !letter.awaited {
        return;
    }
    let retry = Timers::default().retry;
    let take = |progress: &mut Progress| {
        if progress.reign != letter.epoch.reign() {
            return;
        }
        progress.on_reply(letter.kind, letter.replica, letter.epoch, outcome, EARLY, retry);
        for failure in progress.failures.values_mut() {
            failure.count = failure.count.min(FAILURES_COUNTED);
            failure.last = agent::failure();
        }
    };
    if state.leader.me == letter.from {
        take(&mut Arc::make_mut(&mut state.leader).progress);
    } else if let Some((zombie, _)) = &mut state.zombie
        && zombie.me == letter.from
    {
        take(&mut Arc::make_mut(zombie).progress);
    }
}

/// The giver's deadline for an order passes; the order may still arrive.
pub fn give_up(state: &mut State, letter: Letter) {
    let Some(what) = state.network.remove(&letter) else { return };
    state.network.insert(Letter { awaited: false, ..letter }, what);
    answer(state, letter, Err(agent::failure()));
}

/// Another node leads the map now. It knows what the map says and nothing else; the former may not know it.
pub fn take_over(state: &mut State, former_goes_on: bool) {
    let me = NodeId(state.leader.me.0 + 1);
    let progress = Progress::default();
    let former =
        std::mem::replace(&mut state.leader, Arc::new(Coordinator { me, progress, claims: BTreeMap::new() }));
    let letters: Vec<Letter> = state.network.keys().copied().filter(|l| l.from == former.me).collect();
    state.zombie = former_goes_on.then(|| (former, state.map.clone()));
    if !former_goes_on {
        // Nobody waits for its orders any more.
        for letter in letters {
            if let Some(what) = state.network.remove(&letter) {
                state.network.insert(Letter { awaited: false, ..letter }, what);
            }
        }
    }
}
