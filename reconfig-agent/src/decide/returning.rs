//! A replica comes back with a log that the history does not hold (DESIGN §5, step f).
//!
//! It is rewound once, or else flattened: dropped, and rebuilt under a new id. Between the two the record carries it,
//! so that a coordinator may be replaced at any point:
//!
//! 1. the primary is made fit to be the source ([`What::PrepareSource`]);
//! 2. the record says `Incomplete{floor}`. From here on the replica's node rewinds it by itself, and its answers to
//!    fences are no part of a cover (I12);
//! 3. past its floor it is `Up`, and a learner like any other.
//!
//! Whatever goes wrong after 2 the node reports as Failed, a rewind that was interrupted included: flattened.
//!
//! **Past the floor.** Positions are compared as in an election, epoch first (R8): a log that replayed the epoch row of
//! the present reign holds everything that was acknowledged before it, however long the log was that it replaced.

use super::view::{Health, Progress, View};
use super::{Act, Note, What, order};
use quorate_model::{
    Change, Database, EventKind, InstanceRole, Position, ReplicaId, ReplicaState, RunState, position,
};

/// Whether a divergent copy may still be rewound: it counts nowhere, and its log leaves the history at a point that is
/// known.
pub fn can_be_rewound(view: &View<'_>, database: &Database, replica: ReplicaId) -> bool {
    floor(view, database, replica).is_some()
}

fn floor(view: &View<'_>, database: &Database, replica: ReplicaId) -> Option<Position> {
    let report = view.report(replica).filter(|r| r.run == RunState::Divergent)?;
    let end = report.position?;
    position::fork(&database.lineage, &end)?;
    (!database.members().contains(&replica)).then_some(end)
}

/// The next step of a divergent copy's return.
pub fn rewind(view: &View<'_>, database: &Database, progress: &Progress) -> Option<Act> {
    let mut divergent = database.learners().filter_map(|r| Some((r, floor(view, database, r)?))).peekable();
    divergent.peek()?;
    if !progress.source_ready {
        return order(view, database, progress, database.current.primary, What::PrepareSource);
    }
    let (replica, floor) = divergent.find(|(r, _)| !database.is_barred(*r))?;
    let reason = match view.health(database, replica) {
        Health::Unwell { reason, .. } => format!("{reason}; it is rewound from {}", floor.lsn),
        _ => format!("{replica} is rewound from {}", floor.lsn),
    };
    Some(Act::Propose {
        change: Change::MarkReplica { replica, state: ReplicaState::Incomplete { floor } },
        note: Note::Event { kind: EventKind::ReplicaLost, reason, from: Some(replica), to: None },
    })
}

/// Whether an incomplete replica follows the present primary, on the recorded history, past its floor.
pub fn is_past(view: &View<'_>, database: &Database, replica: ReplicaId, floor: Position) -> bool {
    view.health(database, replica) == Health::Well
        && view.report(replica).is_some_and(|r| {
            r.role == InstanceRole::Standby
                && r.streaming.is_some_and(|reign| reign.same_reign(database.epoch))
                && r.position.is_some_and(|p| {
                    p.epoch.same_reign(database.epoch)
                        && p.rank() >= floor.rank()
                        && position::relate(&database.lineage, &p) == position::Relation::Prefix
                })
        })
}
