//! The upkeep of a database that has its primary: keeping the copies complete, changing voters (DESIGN §5, steps a,
//! b and f).

use super::operate::{self, UnderWay};
use super::reconfigure::barrier;
use super::view::{Health, Progress, Trigger, View};
use super::{Act, Note, order, returning};
use quorate_model::{
    Change, Configuration, Database, EventKind, InstanceRole, NodeId, OperationKind, ReplicaId, ReplicaState,
    RunState, placement,
};
use std::collections::BTreeSet;

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
    if let Some(trigger) = second_copy(view, database) {
        return vec![Act::Elect(trigger)];
    }
    match operate::under_way(view, database) {
        UnderWay::Nothing => {}
        UnderWay::Elsewhere => return Vec::new(),
        UnderWay::Mine(operation) => {
            if let Some(acts) = operate::stable(view, database, progress, operation) {
                return acts;
            }
        }
    }
    let act = marks(view, database)
        .or_else(|| shrink(view, database))
        .or_else(|| take_out_surplus(view, database))
        .or_else(|| admit_learner(view, database))
        .or_else(|| returning::rewind(view, database, progress))
        .or_else(|| forget_lost(view, database))
        .or_else(|| complete(view, database));
    act.into_iter().collect()
}

/// A lone primary gets its first voter by an election: it holds no lease, so it has to answer a fence before anybody
/// else may count.
fn second_copy(view: &View<'_>, database: &Database) -> Option<Trigger> {
    if !database.is_read_only() {
        return None;
    }
    let ready = database.learners().find(|r| view.is_ready(database, *r))?;
    Some(Trigger::new(
        format!("{ready} is the second copy: commits can be acknowledged again"),
        view.me,
        database.current.primary,
    ))
}

/// Joint: the barrier of the new configuration, then Stable.
pub fn joint(view: &View<'_>, database: &Database, progress: &Progress) -> Vec<Act> {
    if let Some(trigger) = primary_trouble(view, database, progress) {
        return vec![Act::Elect(trigger)];
    }
    // Whoever was to vote is lost: the change cannot end, and only an election may go back on it (R3).
    if !progress.passed_barrier_of(database.epoch)
        && database.current.voters.iter().all(|r| is_lost_for_good(view, database, *r))
    {
        let reason = "every voter of the change under way is lost".to_owned();
        return vec![Act::Elect(Trigger::new(reason, view.me, database.current.primary))];
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
    database.replicas.iter().filter(|(id, _)| !database.is_quarantined(**id)).find_map(|(id, replica)| {
        let lost = matches!(view.health(database, *id), Health::Unwell { .. })
            && !matches!(
                view.report(*id).map(|r| &r.run),
                Some(RunState::Building | RunState::Absent | RunState::Starting | RunState::Rewinding)
            )
            && view.unwell_for(database, *id) >= view.timers.shrink_after.min(view.timers.replace_after);
        let state = match (lost, replica.state) {
            (_, ReplicaState::Incomplete { floor }) if returning::is_past(view, database, *id, floor) => {
                ReplicaState::Up
            }
            (true, ReplicaState::Up) => ReplicaState::Down { since_ms: view.unix_ms },
            (false, ReplicaState::Down { .. }) if view.health(database, *id) == Health::Well => {
                ReplicaState::Up
            }
            _ => return None,
        };
        Some(Act::Propose {
            change: Change::MarkReplica { replica: *id, state },
            note: match (state, view.health(database, *id)) {
                (ReplicaState::Up, _) if !replica.state.may_count() => Note::Event {
                    kind: EventKind::ReplicaBuilt,
                    reason: format!("{id} was rewound and is past its floor"),
                    from: None,
                    to: Some(*id),
                },
                (ReplicaState::Down { .. }, Health::Unwell { reason, .. }) => {
                    Note::Event { kind: EventKind::ReplicaLost, reason, from: Some(*id), to: None }
                }
                _ => Note::Nothing,
            },
        })
    })
}

fn join(database: &Database, voters: BTreeSet<ReplicaId>) -> Act {
    Act::Propose { change: joined(database, voters), note: Note::Nothing }
}

/// The change to these voters under the same primary.
pub fn joined(database: &Database, voters: BTreeSet<ReplicaId>) -> Change {
    let k = database.current.k.min(voters.len() as u32).max(1);
    Change::Join { current: Configuration { primary: database.current.primary, voters, k } }
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

/// A voter more than wanted, as after a move whose old copy was lost meanwhile: the oldest is taken out.
fn take_out_surplus(view: &View<'_>, database: &Database) -> Option<Act> {
    let wanted = (database.copies as usize).saturating_sub(1).max(1);
    let voters = &database.current.voters;
    let is_surplus = voters.len() > wanted
        && operate::running(view, database).is_none()
        && voters.iter().all(|r| view.is_ready(database, *r));
    let oldest = voters.first().filter(|_| is_surplus)?;
    Some(join(database, voters.iter().copied().filter(|r| r != oldest).collect()))
}

/// A learner that keeps up becomes a voter; with only a dead voter left, it takes that one's place.
fn admit_learner(view: &View<'_>, database: &Database) -> Option<Act> {
    let wanted = (database.copies as usize).saturating_sub(1).max(1);
    let moving = match operate::running(view, database).map(|o| &o.kind) {
        Some(OperationKind::MoveReplica { built, .. }) => Some(*built),
        _ => None,
    };
    if database.is_read_only() {
        return None;
    }
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

/// Its data is no copy any more, or it has been away for longer than a restart takes.
fn is_lost_for_good(view: &View<'_>, database: &Database, replica: ReplicaId) -> bool {
    view.is_no_copy(replica)
        || (lost(view, database, replica) && view.unwell_for(database, replica) >= view.timers.replace_after)
}

fn lost(view: &View<'_>, database: &Database, replica: ReplicaId) -> bool {
    matches!(view.health(database, replica), Health::Unwell { .. })
        && view.unwell_for(database, replica) >= view.timers.shrink_after
}

/// Whether a learner can never be used as it is, or was away for too long.
fn is_beyond_return(view: &View<'_>, database: &Database, replica: ReplicaId) -> bool {
    let run = view.report(replica).map(|r| &r.run);
    match run {
        Some(RunState::Failed(_)) => return true,
        Some(RunState::Divergent) if !returning::can_be_rewound(view, database, replica) => return true,
        _ => {}
    }
    match database.replicas.get(&replica).map(|r| r.state) {
        Some(ReplicaState::Incomplete { .. }) => {
            run != Some(&RunState::Rewinding)
                && lost(view, database, replica)
                && view.unwell_for(database, replica) >= view.timers.replace_after
        }
        Some(ReplicaState::Down { since_ms }) => {
            lost(view, database, replica)
                && view.unix_ms.saturating_sub(since_ms) >= view.timers.replace_after
        }
        _ => false,
    }
}

/// Drops what will not come back: a copy that cannot be used at once, a lost one when its successor has a place.
fn forget_lost(view: &View<'_>, database: &Database) -> Option<Act> {
    let gone = database.learners().find(|r| is_beyond_return(view, database, *r))?;
    let node_is_down = database.node_of(gone).is_some_and(|n| view.down.contains_key(&n));
    let successor_elsewhere = place(view, database, Some(gone)).is_some();
    let enough = database.copies().count() > database.copies as usize;
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
    let operation = operate::running(view, database);
    let moving = matches!(operation.map(|o| &o.kind), Some(OperationKind::MoveReplica { .. }));
    let copies = database.copies as usize;
    let held = database.copies().count();
    let doomed = database.copies().filter(|r| is_beyond_return(view, database, *r)).count();
    if held < copies + doomed {
        return allocate(view, database);
    }
    let surplus = held > copies && !moving;
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
        .copies()
        .filter(|id| Some(*id) != without && !is_beyond_return(view, database, *id))
        .filter_map(|id| database.node_of(id))
        .collect();
    placement::place_replica(view.map, &view.usable_nodes(), database, &kept)
}

/// A new learner on the best node, if there is one.
pub fn allocate(view: &View<'_>, database: &Database) -> Option<Act> {
    let node = place(view, database, None)?;
    Some(Act::Propose { change: Change::AllocateReplica { node }, note: Note::Nothing })
}
