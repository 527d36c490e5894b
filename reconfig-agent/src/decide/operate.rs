//! What operations ask for: each step in the form *already done? → do → verify → go on* (DESIGN §8).
//!
//! Only the coordinator that holds the attempt acts for an operation; a new one takes it over first. A step that
//! changes the database's record is one entry of the log with the record's change, so whoever takes over finds both
//! or neither. What an operation makes is named in its record (`built`, the replicas of a database being created),
//! so a second run finds it and the way back knows what to remove.

use super::reconfigure::{allowed, barrier};
use super::settle::joined;
use super::view::{Health, Progress, View};
use super::{Act, Behalf, Note, OrderKind, What, order};
use quorate_model::operation::MAX_ATTEMPTS;
use quorate_model::{
    Change, Database, EventKind, InstanceRole, Lineage, Lsn, NodeId, Operation, OperationKind,
    OperationState, Phase, Position, ReplicaId, RunState, Step, Timeline,
};
use std::collections::{BTreeMap, BTreeSet};

/// Before anything is given up, whoever can be reached is asked once more for so long, milliseconds: longer than a
/// fence may take to answer.
const LAST_CHANCE_MS: u64 = 3_000;

/// How long a coordinator leaves an operation to whoever took it from it, milliseconds: longer than two take themselves
/// for the leader.
const RECLAIM_MS: u64 = 2_000;

/// How long a switchover that was taken over waits for its target to follow again, milliseconds.
const RETURN_MS: u64 = 15_000;

/// The operation on a database, as far as this coordinator is concerned.
pub enum UnderWay<'a> {
    Nothing,
    /// Not taken over yet.
    Elsewhere,
    Mine(&'a Operation),
}

pub fn running<'a>(view: &'a View<'_>, database: &Database) -> Option<&'a Operation> {
    view.map.operations.get(&database.operation?).filter(|o| !o.state.is_over())
}

pub fn under_way<'a>(view: &'a View<'_>, database: &Database) -> UnderWay<'a> {
    match running(view, database) {
        None => UnderWay::Nothing,
        Some(o)
            if o.owner == Some(view.me) && view.claims.get(&o.id).is_some_and(|c| c.attempt == o.attempt) =>
        {
            UnderWay::Mine(o)
        }
        Some(_) => UnderWay::Elsewhere,
    }
}

fn mine<'a>(view: &'a View<'_>, database: &Database) -> Option<&'a Operation> {
    match under_way(view, database) {
        UnderWay::Mine(operation) => Some(operation),
        UnderWay::Nothing | UnderWay::Elsewhere => None,
    }
}

/// Takes over what is under way and not this coordinator's. What was taken from it is left alone for a while: a leader
/// that does not know yet that it is none would otherwise take it back at every look, until no attempt is left.
pub fn claim(view: &View<'_>, database: &Database) -> Option<Act> {
    let UnderWay::Elsewhere = under_way(view, database) else { return None };
    let operation = running(view, database)?;
    if view.claims.contains_key(&operation.id) && held_for(view, operation) < RECLAIM_MS {
        return None;
    }
    Some(Act::Claim { operation: operation.id, attempt: operation.attempt })
}

/// The attempt that orders are given for, while an operation is under way.
pub fn behalf(view: &View<'_>, database: &Database) -> Option<Behalf> {
    mine(view, database).map(|o| Behalf { operation: o.id, attempt: o.attempt })
}

/// Every operation has a limit. Past it the way back is taken, or where there is none the end is.
pub fn give_up(view: &View<'_>, database: &Database) -> Option<Act> {
    let operation = mine(view, database).filter(|o| o.state == OperationState::Running)?;
    let because = overdue(view, operation)?;
    if operation.can_be_cancelled().is_ok() {
        return Some(Act::GiveUp { operation: operation.id, attempt: operation.attempt, because });
    }
    (operation.kind != OperationKind::DropDatabase)
        .then(|| end(operation, OperationState::Failed(because), Note::Nothing))
}

fn overdue(view: &View<'_>, operation: &Operation) -> Option<String> {
    if operation.attempt > MAX_ATTEMPTS {
        return Some(format!(
            "{MAX_ATTEMPTS} coordinators did not finish it; it stood at: {}",
            operation.step
        ));
    }
    let limit_ms = operation.kind.limit_ms();
    (held_for(view, operation) > limit_ms).then(|| {
        format!("not finished within {} minutes; it stood at: {}", limit_ms / 60_000, operation.step)
    })
}

/// For how long this coordinator has had the operation, milliseconds. Whoever takes it over begins anew: what bounds
/// the whole is the number of attempts.
fn held_for(view: &View<'_>, operation: &Operation) -> u64 {
    view.claims.get(&operation.id).map_or(0, |claim| view.now_ms.saturating_sub(claim.since_ms))
}

fn end(operation: &Operation, state: OperationState, note: Note) -> Act {
    Act::EndOperation { operation: operation.id, attempt: operation.attempt, state, note }
}

fn failed(operation: &Operation, reason: impl Into<String>) -> Vec<Act> {
    vec![end(operation, OperationState::Failed(reason.into()), Note::Nothing)]
}

fn advance(operation: &Operation, step: Step, change: Change, note: Note) -> Act {
    Act::Advance { operation: operation.id, attempt: operation.attempt, step, change: Some(change), note }
}

/// Says where an operation stands, if the map does not say so already.
fn at(operation: Option<&Operation>, step: Step) -> Option<Act> {
    let operation = operation.filter(|o| o.step != step)?;
    let (id, attempt) = (operation.id, operation.attempt);
    Some(Act::Advance { operation: id, attempt, step, change: None, note: Note::Nothing })
}

/// Creating: the primary's node makes the instance by itself, the others copy it; then barrier, open, record.
pub fn creating(view: &View<'_>, database: &Database, progress: &Progress) -> Vec<Act> {
    let operation = match under_way(view, database) {
        UnderWay::Elsewhere => return Vec::new(),
        UnderWay::Mine(operation) => Some(operation),
        UnderWay::Nothing => None,
    };
    let primary = database.current.primary;
    let mut acts = Vec::new();
    let Some(report) = view.report(primary).filter(|r| r.is_healthy()) else {
        acts.extend(at(operation, Step::Initialising { replica: primary }));
        return acts;
    };
    if report.role != InstanceRole::Primary {
        // Its node restarted in the middle: every instance starts as a standby.
        let what = What::Promote {
            sync_names: database.current.sync_names(),
            allowed: allowed(database),
            uuid: uuid::Uuid::from_u128(database.id.0.into()),
        };
        acts.extend(order(view, database, progress, primary, what));
        return acts;
    }
    let of = database.current.voters.len();
    let ready = database.current.voters.iter().filter(|r| view.is_ready(database, **r)).count();
    if ready < of {
        acts.extend(at(operation, Step::Copying { ready: ready as u32, of: of as u32 }));
        return acts;
    }
    if !progress.passed_barrier_of(database.epoch) {
        acts.extend(at(operation, Step::Opening));
        acts.extend(order(view, database, progress, primary, barrier(database)));
        return acts;
    }
    if !progress.opened {
        acts.extend(order(view, database, progress, primary, What::Open));
        return acts;
    }
    let first = Lineage {
        epoch: database.epoch.reign(),
        timeline: report.timeline.max(Timeline(1)),
        start_lsn: Lsn(0),
        uuid: uuid::Uuid::from_u128(database.id.0.into()),
    };
    let change = Change::Stabilize { lineage: Some(first) };
    let note = Note::Event {
        kind: EventKind::Created,
        reason: "create database".to_owned(),
        from: None,
        to: Some(primary),
    };
    acts.push(match operation {
        Some(operation) => advance(operation, Step::Opening, change, note),
        None => Act::Propose { change, note },
    });
    acts
}

/// Dropping: nodes delete by themselves what the map calls dropped; the record goes with the operation's end, when
/// nobody holds any. A node that is down deletes when it is back: directories that no map knows are swept.
pub fn dropping(view: &View<'_>, database: &Database) -> Vec<Act> {
    let operation = match under_way(view, database) {
        UnderWay::Elsewhere => return Vec::new(),
        UnderWay::Mine(operation) => Some(operation),
        UnderWay::Nothing => None,
    };
    // The quarantined are kept by nobody: their directories are swept once the record is gone.
    let left: Vec<ReplicaId> = database
        .copies()
        .filter(|id| database.node_of(*id).is_some_and(|n| !view.down.contains_key(&n)))
        .filter(|id| view.report(*id).is_none_or(|r| r.run != RunState::Absent))
        .collect();
    let event = |kind, reason: &str| Note::Event { kind, reason: reason.to_owned(), from: None, to: None };
    let Some(operation) = operation else {
        let note = event(EventKind::Dropped, "drop database");
        return if left.is_empty() {
            vec![Act::Propose { change: Change::Remove, note }]
        } else {
            Vec::new()
        };
    };
    let overdue = overdue(view, operation);
    if !left.is_empty() && overdue.is_none() {
        return at(Some(operation), Step::Deleting { left: left.len() as u32 }).into_iter().collect();
    }
    let note = match operation.kind {
        OperationKind::DropDatabase => event(EventKind::Dropped, "drop database"),
        _ => event(EventKind::TakenBack, operation.state.error().unwrap_or("create database was cancelled")),
    };
    let state = match (&operation.kind, overdue) {
        (OperationKind::DropDatabase, Some(_)) if !left.is_empty() => {
            let names: Vec<String> = left.iter().map(ReplicaId::to_string).collect();
            OperationState::Failed(format!("the nodes of {} still have data to delete", names.join(", ")))
        }
        (OperationKind::DropDatabase, _) => OperationState::Done,
        _ => operation.end_of_way_back(),
    };
    vec![end(operation, state, note)]
}

/// Whom a switchover whose freeze has begun wants as the primary, so that whoever elects in its middle knows.
pub fn wished(view: &View<'_>, database: &Database) -> Option<ReplicaId> {
    let operation = running(view, database)?;
    let (OperationKind::Switchover { to }, Step::Switching { from, .. }) = (&operation.kind, &operation.step)
    else {
        return None;
    };
    match to {
        Some(node) => database.replicas_on(*node).next(),
        // The candidate that was chosen, or whoever is well.
        None if database.current.primary != *from => Some(database.current.primary),
        None => database.current.voters.iter().copied().find(|r| view.health(database, *r) == Health::Well),
    }
}

/// What an operation asks for while the database is stable; `None` leaves it to its usual upkeep.
pub fn stable(
    view: &View<'_>,
    database: &Database,
    progress: &Progress,
    operation: &Operation,
) -> Option<Vec<Act>> {
    if matches!(operation.state, OperationState::Cancelling { .. }) {
        return Some(take_back(database, operation));
    }
    match &operation.kind {
        OperationKind::CreateDatabase => Some(vec![end(operation, OperationState::Done, Note::Nothing)]),
        OperationKind::DropDatabase => None,
        OperationKind::Switchover { to } => switchover(view, database, progress, operation, *to),
        OperationKind::MoveReplica { from, built, .. } => {
            move_replica(view, database, operation, *from, *built)
        }
        OperationKind::ForceRecover { .. } => Some(match operation.step {
            Step::Recovering { .. } => vec![end(operation, OperationState::Done, Note::Nothing)],
            _ => failed(operation, "enough replicas answered: nothing had to be given up"),
        }),
    }
}

/// The way back: what the operation made goes, then it ends.
fn take_back(database: &Database, operation: &Operation) -> Vec<Act> {
    let built = match operation.kind {
        OperationKind::MoveReplica { built, .. } => Some(built),
        _ => None,
    };
    match built {
        Some(built) if database.replicas.contains_key(&built) && !database.members().contains(&built) => {
            let note = Note::Event {
                kind: EventKind::TakenBack,
                reason: operation.state.error().unwrap_or("move replica was cancelled").to_owned(),
                from: Some(built),
                to: None,
            };
            let change = Change::DropReplica { replica: built };
            vec![advance(operation, Step::TakingBack { replica: built }, change, note)]
        }
        _ => vec![end(operation, operation.end_of_way_back(), Note::Nothing)],
    }
}

fn switchover(
    view: &View<'_>,
    database: &Database,
    progress: &Progress,
    operation: &Operation,
    to: Option<NodeId>,
) -> Option<Vec<Act>> {
    let primary = database.current.primary;
    // However it came there: a failover in the middle may have fulfilled the wish too.
    let is_there = match (to, &operation.step) {
        (Some(node), _) => database.node_of(primary) == Some(node),
        (None, Step::Switching { from, .. }) => *from != primary,
        (None, _) => false,
    };
    if is_there {
        return Some(vec![end(operation, OperationState::Done, Note::Nothing)]);
    }
    // In an earlier attempt its coordinator was lost on the way, and another than the target was elected: once more.
    if let Step::Switching { from, attempt } = operation.step
        && attempt == operation.attempt
    {
        let because = match from == primary {
            true => "the primary stayed: nobody else was as far".to_owned(),
            false => format!("{primary} became the primary: the target was not as far"),
        };
        return Some(failed(operation, because));
    }
    let target = match to {
        Some(node) => database.replicas_on(node).find(|r| database.current.voters.contains(r)),
        None => database.current.voters.iter().copied().find(|r| view.is_ready(database, *r)),
    };
    let Some(target) = target.filter(|r| view.is_ready(database, *r)) else {
        // Whoever has just begun to coordinate has not heard of everybody yet; and whoever takes it over may find a target
        // that has just lost the primary that it followed.
        let unheard = database.current.voters.iter().any(|r| view.health(database, *r) == Health::Unknown);
        if (unheard || operation.attempt > 1) && held_for(view, operation) < RETURN_MS {
            return None;
        }
        let because = "the target does not follow the primary closely; see SHOW REPLICAS";
        return Some(failed(operation, because));
    };
    if !progress.checkpointed && progress.failures_of(OrderKind::Checkpoint, primary) == 0 {
        let mut acts: Vec<Act> = at(Some(operation), Step::Checkpointing).into_iter().collect();
        acts.extend(order(view, database, progress, primary, What::Checkpoint));
        return Some(acts);
    }
    let change = Change::Switch { coordinator: view.me, to: Some(target) };
    let step = Step::Switching { from: primary, attempt: operation.attempt };
    Some(vec![advance(operation, step, change, Note::Nothing)])
}

fn move_replica(
    view: &View<'_>,
    database: &Database,
    operation: &Operation,
    from: ReplicaId,
    built: ReplicaId,
) -> Option<Vec<Act>> {
    if !database.replicas.contains_key(&built) {
        return Some(failed(operation, format!("{built} was lost while it was built")));
    }
    if from == database.current.primary {
        let because = format!("{from} became the primary meanwhile; switch over to another node first");
        return Some(if operation.can_be_cancelled().is_ok() {
            vec![Act::GiveUp { operation: operation.id, attempt: operation.attempt, because }]
        } else {
            failed(operation, because)
        });
    }
    let votes = |r: ReplicaId| database.current.voters.contains(&r);
    // A failover may have made it a voter, or the primary.
    let counts = database.current.contains(built);
    if counts && !votes(from) {
        if database.replicas.contains_key(&from) {
            let note = Note::Event {
                kind: EventKind::ReplicaBuilt,
                reason: format!("moved: {built} replaces {from}"),
                from: Some(from),
                to: Some(built),
            };
            let change = Change::DropReplica { replica: from };
            return Some(vec![advance(operation, Step::Discarding { replica: from }, change, note)]);
        }
        return Some(vec![end(operation, OperationState::Done, Note::Nothing)]);
    }
    if counts && database.copies().count() <= database.copies as usize {
        let because =
            format!("{built} took the place of a copy that was lost meanwhile, and {from} is needed");
        return Some(failed(operation, because));
    }
    if counts || view.is_ready(database, built) {
        let mut voters = database.current.voters.clone();
        voters.remove(&from);
        if built != database.current.primary {
            voters.insert(built);
        }
        // The primary would be alone: another copy is made a voter first.
        if voters.is_empty() {
            return None;
        }
        return Some(vec![advance(operation, Step::Exchanging, joined(database, voters), Note::Nothing)]);
    }
    at(Some(operation), Step::Copying { ready: 0, of: 1 }).map(|act| vec![act])
}

/// What a forced recovery asks for while the election cannot cover.
pub fn recover(view: &View<'_>, database: &Database, progress: &Progress) -> Option<Act> {
    let operation = mine(view, database)?;
    let OperationKind::ForceRecover { candidate } = operation.kind else { return None };
    if matches!(operation.state, OperationState::Cancelling { .. }) {
        return Some(end(operation, operation.end_of_way_back(), Note::Nothing));
    }
    if matches!(operation.step, Step::Recorded) {
        return at(Some(operation), Step::Asking);
    }
    // The loss was recorded, and now the survivor does not answer: that is for another order to decide.
    if matches!(operation.step, Step::Recovering { .. }) {
        let lost_again = matches!(database.phase, Phase::QuorumLost { .. });
        let reason = "the survivor does not answer any more";
        return lost_again.then(|| end(operation, OperationState::Failed(reason.to_owned()), Note::Nothing));
    }
    // Until it is recorded that the quorum is lost, answers are still waited for.
    if !matches!(database.phase, Phase::QuorumLost { .. }) {
        return None;
    }
    let answered: BTreeMap<ReplicaId, Position> = database
        .copies()
        .filter_map(|r| Some((r, progress.fences.get(&r)?.position?)))
        .filter(|(r, _)| database.node_of(*r).is_some_and(|n| !view.down.contains_key(&n)))
        .collect();
    let asked_for = held_for(view, operation);
    let reachable = |r: ReplicaId| database.node_of(r).is_some_and(|n| !view.down.contains_key(&n));
    if asked_for < LAST_CHANCE_MS && database.copies().any(|r| reachable(r) && !answered.contains_key(&r)) {
        return None;
    }
    let members = database.members();
    let survivor = answered
        .iter()
        .filter(|(r, _)| candidate.is_none_or(|node| database.node_of(**r) == Some(node)))
        .max_by_key(|(r, p)| (p.rank(), members.contains(r), std::cmp::Reverse(**r)));
    let Some((survivor, position)) = survivor.map(|(r, p)| (*r, *p)) else {
        let waited = view.now_ms.saturating_sub(progress.entered_ms);
        let who = candidate.map_or("no replica".to_owned(), |n| format!("the replica on {n}"));
        let state = OperationState::Failed(format!("{who} says where its log ends; see EXPLAIN FAILOVER"));
        return (waited > view.timers.quorum_lost_after).then(|| end(operation, state, Note::Nothing));
    };
    // Whoever holds more than the survivor is kept as it is as well: its data is what is being given up.
    let quarantined: BTreeSet<ReplicaId> =
        database.copies().filter(|r| answered.get(r).is_none_or(|p| p.rank() > position.rank())).collect();
    let names: Vec<String> = quarantined.iter().map(ReplicaId::to_string).collect();
    let note = Note::Event {
        kind: EventKind::ForcedRecovery,
        reason: format!(
            "by an operator's word: {survivor} goes on from {} of epoch {}; kept aside: {}",
            position.lsn,
            position.epoch,
            if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
        ),
        from: Some(database.current.primary),
        to: Some(survivor),
    };
    let change = Change::Recover { coordinator: view.me, survivor, quarantined };
    Some(advance(operation, Step::Recovering { survivor }, change, note))
}
