//! Decisions of the reconfiguration agent: functions of values.
//!
//! [`next`] looks at one database's record, at what is known of its replicas and at how far the orders given so
//! far got, and says what to do now. It never waits, sends, reads a clock or draws a number, so the daemon, a
//! simulator and a model checker run the same decisions.
//!
//! **Invariant.** Everything that changes the record is proposed against the version that was looked at here
//! (R4). Everything that is ordered names the epoch that was looked at here.

pub mod election;
pub mod explain;
pub mod operate;
pub mod order;
pub mod reconfigure;
pub mod returning;
pub mod settle;
pub mod timers;
pub mod view;

pub use order::{Behalf, Failure, Fenced, Order, OrderKind, Promoted, Reply, What};
pub use timers::Timers;
pub use view::{Claim, Health, Heard, NodeDown, Progress, Trigger, View};

#[cfg(test)]
mod tests;

use quorate_model::{Change, Database, EventKind, OperationId, OperationState, Phase, ReplicaId, Step};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Propose a change of the record, at the version that was decided against.
    Propose {
        change: Change,
        note: Note,
    },
    /// Begin a reconfiguration for this reason.
    Elect(Trigger),
    /// Give an order to the node of its replica.
    Order(Order),
    /// Take an operation over, as the attempt after this one.
    Claim {
        operation: OperationId,
        attempt: u32,
    },
    /// Take an operation to a step, and make the change of the record that this step is. What was decided for an
    /// earlier attempt is refused by the map (I13).
    Advance {
        operation: OperationId,
        attempt: u32,
        step: Step,
        change: Option<Change>,
        note: Note,
    },
    /// Give an operation up: its way back begins.
    GiveUp {
        operation: OperationId,
        attempt: u32,
        because: String,
    },
    EndOperation {
        operation: OperationId,
        attempt: u32,
        state: OperationState,
        note: Note,
    },
}

/// What to record for people when a proposal is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    Nothing,
    Event {
        kind: EventKind,
        reason: String,
        from: Option<ReplicaId>,
        to: Option<ReplicaId>,
    },
    /// The end of a reconfiguration: the event carries its trigger and the time of its steps.
    Reconfigured,
}

/// What to do now for this database. Nothing is decided twice: orders under way are in `progress`, and a proposal
/// that was accepted changes the record.
pub fn next(view: &View<'_>, database: &Database, progress: &Progress) -> Vec<Act> {
    if let Some(act) = operate::give_up(view, database) {
        return vec![act];
    }
    let mut acts = in_phase(view, database, progress);
    acts.extend(operate::claim(view, database));
    acts
}

fn in_phase(view: &View<'_>, database: &Database, progress: &Progress) -> Vec<Act> {
    match &database.phase {
        Phase::Creating => operate::creating(view, database, progress),
        Phase::Dropping => operate::dropping(view, database),
        Phase::Stable => settle::stable(view, database, progress),
        Phase::Joint => settle::joint(view, database, progress),
        Phase::Electing { .. } | Phase::QuorumLost { .. } => reconfigure::electing(view, database, progress),
        Phase::Promoting { .. } => reconfigure::promoting(view, database, progress),
        Phase::Switching { .. } => reconfigure::switching(view, database, progress),
    }
}

/// An order to the node of `replica`, unless the same is under way or has just failed.
fn order(
    view: &View<'_>,
    database: &Database,
    progress: &Progress,
    replica: ReplicaId,
    what: What,
) -> Option<Act> {
    if !progress.may_send(what.kind(), replica, view.now_ms) {
        return None;
    }
    let behalf = operate::behalf(view, database);
    Some(Act::Order(Order { database: database.id, replica, epoch: database.epoch, behalf, what }))
}
