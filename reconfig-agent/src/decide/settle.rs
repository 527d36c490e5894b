//! Everything but a change of primary: creating, keeping the copies complete, changing voters, moving, dropping
//! (DESIGN §5, steps a, b and f).

use super::reconfigure::{allowed, barrier};
use super::view::{Health, Progress, Trigger, View};
use super::{Act, Note, What, order};
use quorate_model::{
    Change, Configuration, Database, EventKind, InstanceRole, Lineage, Lsn, NodeId, Operation, OperationKind,
    OperationState, ReplicaId, ReplicaState, RunState, Timeline, placement,
};
use std::collections::BTreeSet;

fn running<'a>(view: &'a View<'_>, database: &Database) -> Option<&'a Operation> {
    view.map.operations.get(&database.operation?).filter(|o| !o.state.is_over())
}

fn step(operation: Option<&Operation>, text: &str) -> Option<Act> {
    let operation = operation?;
    (operation.step != text).then(|| Act::Progress { operation: operation.id, step: text.to_owned() })
}

/// Creating: the primary's node makes the instance by itself, the others copy it; then barrier, open, record.
pub fn creating(view: &View<'_>, database: &Database, progress: &Progress) -> Vec<Act> {
    let operation = running(view, database);
    let primary = database.current.primary;
    let mut acts = Vec::new();
    let Some(report) = view.report(primary).filter(|r| r.is_healthy()) else {
        acts.extend(step(operation, &format!("initialising {primary}")));
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
    let copied = database.current.voters.iter().filter(|r| view.is_ready(database, **r)).count();
    if copied < database.current.voters.len() {
        let text = format!("copying to {} secondaries, {copied} ready", database.current.voters.len());
        acts.extend(step(operation, &text));
        return acts;
    }
    if !progress.passed_barrier_of(database.epoch) {
        acts.extend(step(operation, "passing the first barrier"));
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
    acts.push(Act::Propose {
        change: Change::Stabilize { lineage: Some(first) },
        note: Note::Event {
            kind: EventKind::Created,
            reason: "create database".to_owned(),
            from: None,
            to: Some(primary),
        },
    });
    acts
}

/// Dropping: nodes delete by themselves what the map calls dropped; the record goes when nobody holds any.
pub fn dropping(view: &View<'_>, database: &Database) -> Vec<Act> {
    let left: Vec<ReplicaId> = database
        .replicas
        .iter()
        .filter(|(id, replica)| {
            !view.down.contains_key(&replica.node)
                && view.report(**id).is_none_or(|r| r.run != RunState::Absent)
        })
        .map(|(id, _)| *id)
        .collect();
    let mut acts = Vec::new();
    if !left.is_empty() {
        acts.extend(step(running(view, database), &format!("deleting {} replicas", left.len())));
        return acts;
    }
    if let Some(operation) = running(view, database) {
        return vec![Act::EndOperation { operation: operation.id, state: OperationState::Done }];
    }
    acts.push(Act::Propose {
        change: Change::Remove,
        note: Note::Event {
            kind: EventKind::Dropped,
            reason: "drop database".to_owned(),
            from: None,
            to: None,
        },
    });
    acts
}

/// The first thing that is wrong with the primary, if anything is.
fn primary_trouble(view: &View<'_>, database: &Database, progress: &Progress) -> Option<Trigger> {
    let primary = database.current.primary;
    let trigger = |reason: String, reported_by, detect_ms, restart| Trigger {
        reason,
        reported_by,
        detect_ms,
        from: primary,
        restart,
        switchover: false,
        wish: None,
    };
    if let Some(down) = database.node_of(primary).and_then(|n| view.down.get(&n)) {
        let Health::Unwell { reason, reported_by } = view.health(database, primary) else { return None };
        return Some(trigger(reason, reported_by, down.silent_ms, false));
    }
    let heard = view.reports.get(&primary);
    let settled = view.timers.settle + progress.entered_ms.max(view.leading_since_ms);
    let Some(heard) = heard.filter(|h| view.now_ms.saturating_sub(h.at_ms) <= view.timers.report_stale)
    else {
        // The node is reachable but its agent says nothing: after a while that is a fault as well.
        let quiet = view.now_ms.saturating_sub(heard.map_or(0, |h| h.at_ms).max(settled));
        return (quiet > 2 * view.timers.report_stale)
            .then(|| trigger(format!("no report of {primary} for {quiet} ms"), None, quiet, true));
    };
    let report = &heard.report;
    match &report.run {
        RunState::Running if report.role == InstanceRole::Primary => {}
        // After a restart of its node it follows; a fresh record may also be older than the report's journey.
        RunState::Running | RunState::Starting if heard.led == Some(database.epoch.reign()) => {
            let reason = format!("postmaster of {primary} ended and was started again");
            return Some(trigger(reason, Some(report.node), 0, false));
        }
        RunState::Running | RunState::Starting => {
            return (heard.at_ms > settled)
                .then(|| trigger(format!("{primary} was restarted"), Some(report.node), 0, true));
        }
        // Its node has just started and its agent has not looked yet.
        RunState::Absent | RunState::Building => {
            let Health::Unwell { reason, reported_by } = view.health(database, primary) else { return None };
            return (heard.at_ms > settled).then(|| trigger(reason, reported_by, 0, true));
        }
        _ => {
            let Health::Unwell { reason, reported_by } = view.health(database, primary) else { return None };
            return Some(trigger(reason, reported_by, 0, false));
        }
    }
    let closed = !view.is_gate_open(database) && heard.at_ms > settled;
    closed.then(|| trigger(format!("the gate of {primary} is not open"), Some(report.node), 0, true))
}

/// Stable: a fault of the primary first, then an operation, then the number and the health of the copies.
pub fn stable(view: &View<'_>, database: &Database, progress: &Progress) -> Vec<Act> {
    if let Some(trigger) = primary_trouble(view, database, progress) {
        return vec![Act::Elect(trigger)];
    }
    if let Some(operation) = running(view, database) {
        if let Some(acts) = operate(view, database, progress, operation) {
            return acts;
        }
    }
    let act = marks(view, database)
        .or_else(|| shrink(view, database))
        .or_else(|| admit_learner(view, database))
        .or_else(|| forget_lost(view, database))
        .or_else(|| complete(view, database));
    act.into_iter().collect()
}

/// Joint: the barrier of the new configuration, then Stable.
pub fn joint(view: &View<'_>, database: &Database, progress: &Progress) -> Vec<Act> {
    if let Some(trigger) = primary_trouble(view, database, progress) {
        return vec![Act::Elect(trigger)];
    }
    if !progress.passed_barrier_of(database.epoch) {
        return order(view, database, progress, database.current.primary, barrier(database))
            .into_iter()
            .collect();
    }
    let former: BTreeSet<ReplicaId> = database.previous.iter().flat_map(|c| c.voters.clone()).collect();
    let added = database.current.voters.difference(&former).next().copied();
    let removed = former.difference(&database.current.voters).next().copied();
    let (kind, reason) = match (added, removed) {
        (Some(a), Some(r)) => (EventKind::VoterAdded, format!("{a} replaces {r}")),
        (Some(a), None) => (EventKind::VoterAdded, format!("{a} has caught up")),
        (None, Some(r)) => (
            EventKind::VoterRemoved,
            match view.health(database, r) {
                Health::Unwell { reason, .. } => reason,
                _ => format!("{r} is taken out"),
            },
        ),
        (None, None) => (EventKind::VoterAdded, "no voter changed".to_owned()),
    };
    vec![Act::Propose {
        change: Change::Stabilize { lineage: None },
        note: Note::Event { kind, reason, from: removed, to: added },
    }]
}

/// Records for how long a replica has been lost, so that the slow timer outlives a coordinator.
fn marks(view: &View<'_>, database: &Database) -> Option<Act> {
    database.replicas.iter().find_map(|(id, replica)| {
        let lost = matches!(view.health(database, *id), Health::Unwell { .. })
            && !matches!(
                view.report(*id).map(|r| &r.run),
                Some(RunState::Building | RunState::Absent | RunState::Starting)
            )
            && view.unwell_for(database, *id) >= view.timers.shrink_after.min(view.timers.replace_after);
        let state = match (lost, replica.state) {
            (true, ReplicaState::Up) => ReplicaState::Down { since_ms: view.unix_ms },
            (false, ReplicaState::Down { .. }) if view.health(database, *id) == Health::Well => {
                ReplicaState::Up
            }
            _ => return None,
        };
        Some(Act::Propose {
            change: Change::MarkReplica { replica: *id, state },
            note: match (state, view.health(database, *id)) {
                (ReplicaState::Down { .. }, Health::Unwell { reason, .. }) => {
                    Note::Event { kind: EventKind::ReplicaLost, reason, from: Some(*id), to: None }
                }
                _ => Note::Nothing,
            },
        })
    })
}

fn join(database: &Database, voters: BTreeSet<ReplicaId>) -> Act {
    let k = database.current.k.min(voters.len() as u32).max(1);
    Act::Propose {
        change: Change::Join { current: Configuration { primary: database.current.primary, voters, k } },
        note: Note::Nothing,
    }
}

/// A dead voter is taken out at once when another lives, so that the other alone can take over.
fn shrink(view: &View<'_>, database: &Database) -> Option<Act> {
    let voters = &database.current.voters;
    let live = voters.iter().any(|r| view.health(database, *r) == Health::Well);
    let dead = voters.iter().find(|r| {
        matches!(view.health(database, **r), Health::Unwell { .. })
            && view.unwell_for(database, **r) >= view.timers.shrink_after
    })?;
    let rest: BTreeSet<ReplicaId> = voters.iter().copied().filter(|r| r != dead).collect();
    (live && !rest.is_empty()).then(|| join(database, rest))
}

/// A learner that keeps up becomes a voter; with only a dead voter left, it takes that one's place.
fn admit_learner(view: &View<'_>, database: &Database) -> Option<Act> {
    let wanted = (database.copies as usize).saturating_sub(1).max(1);
    let moving = match running(view, database).map(|o| &o.kind) {
        Some(OperationKind::MoveReplica { built, .. }) => Some(*built),
        _ => None,
    };
    let ready = database.learners().find(|r| Some(*r) != moving && view.is_ready(database, *r))?;
    let mut voters = database.current.voters.clone();
    if voters.len() >= wanted {
        let dead = voters.iter().copied().find(|r| {
            matches!(view.health(database, *r), Health::Unwell { .. })
                && view.unwell_for(database, *r) >= view.timers.shrink_after
        })?;
        voters.remove(&dead);
    } else if voters.len() == 1 && voters.iter().all(|r| lost(view, database, *r)) {
        voters.clear();
    }
    voters.insert(ready);
    Some(join(database, voters))
}

fn lost(view: &View<'_>, database: &Database, replica: ReplicaId) -> bool {
    matches!(view.health(database, replica), Health::Unwell { .. })
        && view.unwell_for(database, replica) >= view.timers.shrink_after
}

/// Whether a learner can never be used as it is, or was away for too long.
fn is_beyond_return(view: &View<'_>, database: &Database, replica: ReplicaId) -> bool {
    if let Some(RunState::Divergent | RunState::Failed(_)) = view.report(replica).map(|r| &r.run) {
        return true;
    }
    match database.replicas.get(&replica).map(|r| r.state) {
        Some(ReplicaState::Down { since_ms }) => {
            lost(view, database, replica)
                && view.unix_ms.saturating_sub(since_ms) >= view.timers.replace_after
        }
        _ => false,
    }
}

/// Drops what will not come back: a divergent copy at once, a lost one when its successor has a place.
fn forget_lost(view: &View<'_>, database: &Database) -> Option<Act> {
    let gone = database.learners().find(|r| is_beyond_return(view, database, *r))?;
    let node_is_down = database.node_of(gone).is_some_and(|n| view.down.contains_key(&n));
    let successor_elsewhere = place(view, database, Some(gone)).is_some();
    let enough = database.replicas.len() > database.copies as usize;
    if node_is_down && !successor_elsewhere && !enough {
        return None;
    }
    Some(Act::Propose {
        change: Change::DropReplica { replica: gone },
        note: Note::Event {
            kind: EventKind::ReplicaLost,
            reason: match view.health(database, gone) {
                Health::Unwell { reason, .. } => format!("{reason}; it is dropped"),
                _ => format!("{gone} is dropped"),
            },
            from: Some(gone),
            to: None,
        },
    })
}

/// Adds a learner when copies are missing, or when a voter is beyond return and must be exchanged first; drops a
/// learner that is one too many (a copy that came back after its successor was built).
fn complete(view: &View<'_>, database: &Database) -> Option<Act> {
    let operation = running(view, database);
    let moving = matches!(operation.map(|o| &o.kind), Some(OperationKind::MoveReplica { .. }));
    let copies = database.copies as usize;
    let doomed = database.replicas.keys().filter(|r| is_beyond_return(view, database, **r)).count();
    if database.replicas.len() < copies + doomed {
        return allocate(view, database);
    }
    let surplus = database.replicas.len() > copies && !moving;
    let full = database.current.voters.len() + 1 >= copies;
    let voters_live = database.current.voters.iter().all(|r| view.health(database, *r) == Health::Well);
    if surplus && full && voters_live {
        // The newest copy has the least to lose.
        let extra = database.learners().max()?;
        return Some(Act::Propose {
            change: Change::DropReplica { replica: extra },
            note: Note::Event {
                kind: EventKind::ReplicaLost,
                reason: format!("{extra} is one copy too many"),
                from: Some(extra),
                to: None,
            },
        });
    }
    None
}

fn place(view: &View<'_>, database: &Database, without: Option<ReplicaId>) -> Option<NodeId> {
    let kept: BTreeSet<NodeId> = database
        .replicas
        .iter()
        .filter(|(id, _)| Some(**id) != without && !is_beyond_return(view, database, **id))
        .map(|(_, r)| r.node)
        .collect();
    placement::place_replica(view.map, &view.usable_nodes(), database, &kept)
}

/// A new learner on the best node, if there is one.
pub fn allocate(view: &View<'_>, database: &Database) -> Option<Act> {
    let node = place(view, database, None)?;
    Some(Act::Propose { change: Change::AllocateReplica { node }, note: Note::Nothing })
}

/// What an operation asks for now; `None` leaves the database to its usual upkeep.
fn operate(
    view: &View<'_>,
    database: &Database,
    progress: &Progress,
    operation: &Operation,
) -> Option<Vec<Act>> {
    let end = |state| Some(vec![Act::EndOperation { operation: operation.id, state }]);
    match &operation.kind {
        OperationKind::CreateDatabase => end(OperationState::Done),
        OperationKind::DropDatabase => None,
        OperationKind::Switchover { to } => {
            if operation.step.starts_with("switching") {
                let moved = operation.step.strip_prefix("switching from ")
                    != Some(&database.current.primary.to_string());
                return end(if moved {
                    OperationState::Done
                } else {
                    OperationState::Failed("the primary stayed: nobody else was as far".to_owned())
                });
            }
            let target = match to {
                Some(node) => database.replicas_on(*node).find(|r| database.current.voters.contains(r)),
                None => database.current.voters.iter().copied().find(|r| view.is_ready(database, *r)),
            };
            let Some(target) = target.filter(|r| view.is_ready(database, *r)) else {
                return end(OperationState::Failed(
                    "the target does not follow the primary closely; see SHOW REPLICAS".to_owned(),
                ));
            };
            if !progress.checkpointed
                && progress.failures_of(super::OrderKind::Checkpoint, database.current.primary) == 0
            {
                let what = What::Checkpoint;
                return Some(
                    order(view, database, progress, database.current.primary, what).into_iter().collect(),
                );
            }
            let text = format!("switching from {}", database.current.primary);
            Some(vec![
                Act::Progress { operation: operation.id, step: text },
                Act::Propose {
                    change: Change::Switch { coordinator: view.me, to: Some(target) },
                    note: Note::Nothing,
                },
            ])
        }
        OperationKind::MoveReplica { from, built, .. } => {
            let voting = database.current.voters.contains(built);
            if !database.replicas.contains_key(built) {
                return end(OperationState::Failed(format!("{built} was lost while it was built")));
            }
            if !voting && view.is_ready(database, *built) {
                let mut voters = database.current.voters.clone();
                voters.remove(from);
                voters.insert(*built);
                return Some(vec![join(database, voters)]);
            }
            if !voting {
                let acts: Vec<Act> =
                    step(Some(operation), &format!("copying to {built}")).into_iter().collect();
                return if acts.is_empty() { None } else { Some(acts) };
            }
            if database.replicas.contains_key(from) && !database.current.contains(*from) {
                return Some(vec![Act::Propose {
                    change: Change::DropReplica { replica: *from },
                    note: Note::Event {
                        kind: EventKind::ReplicaBuilt,
                        reason: format!("moved: {built} replaces {from}"),
                        from: Some(*from),
                        to: Some(*built),
                    },
                }]);
            }
            end(OperationState::Done)
        }
    }
}
