//! What has happened before a check begins, where the way from a quiet cluster would be too long to search.
//!
//! Each is a run of the model itself: its steps are taken by the same decisions as those that follow.

use crate::decisions::DAEMON;
use crate::writes::coordinator::FIRST_COORDINATOR;
use crate::writes::state::Letter;
use crate::writes::state::State;
use crate::writes::{Action, Bounds, Writes, heal};
use quorate_model::{Epoch, NodeId, Phase, ReplicaId, RunState};
use quorate_reconfig_agent::decide::OrderKind;
use stateright::Model;

const OLD: ReplicaId = ReplicaId(1);
const NEW: ReplicaId = ReplicaId(2);
const OTHER: ReplicaId = ReplicaId(3);
const LOOK: Action = Action::Coordinate { zombie: false, late: false };

fn deliver(kind: OrderKind, replica: ReplicaId) -> Action {
    let epoch = Epoch::new(0, 2, 0);
    Action::Deliver(Letter { from: FIRST_COORDINATOR, epoch, replica, kind, awaited: true })
}

/// The old primary is suspected; both secondaries are fenced, and the first of them is promoted.
fn failover() -> Vec<Action> {
    vec![
        Action::Suspect(NodeId(OLD.0)),
        LOOK,
        LOOK,
        deliver(OrderKind::Fence, NEW),
        deliver(OrderKind::Fence, OTHER),
        LOOK,
        LOOK,
        deliver(OrderKind::Promote, NEW),
        Action::Finish(NEW, 0),
        Action::Finish(NEW, 0),
    ]
}

/// The old primary, cut off, has written what nobody else has and its log is the longest; the new one has opened, not
/// been recorded as Stable yet, and has acknowledged a write.
pub fn reign_of_the_second() -> Vec<Action> {
    let mut steps = vec![Action::Write(OLD)];
    steps.extend(failover());
    steps.extend([
        LOOK,
        deliver(OrderKind::Attach, OTHER),
        deliver(OrderKind::Barrier, NEW),
        Action::Finish(NEW, 0),
        Action::Ship(NEW, OTHER),
        Action::Finish(NEW, 0),
        LOOK,
        deliver(OrderKind::Open, NEW),
        Action::Write(NEW),
        Action::Ship(NEW, OTHER),
        Action::Acknowledge(NEW),
    ]);
    steps
}

/// A write that the old primary and the new one have is acknowledged; the third replica does not have it, and the old
/// primary has one more that nobody has. The new one is promoted, and has not shipped anything.
pub fn candidate_alone_has_it() -> Vec<Action> {
    let mut steps =
        vec![Action::Write(OLD), Action::Ship(OLD, NEW), Action::Acknowledge(OLD), Action::Write(OLD)];
    steps.extend(failover());
    steps
}

/// Two of three nodes are without power, and with them a write that was acknowledged; the third has said where its log
/// ends, which covers nothing, and the record says that the quorum is lost.
pub fn quorum_is_lost() -> Vec<Action> {
    let late = Action::Coordinate { zombie: false, late: true };
    vec![
        Action::Write(OLD),
        Action::Ship(OLD, NEW),
        Action::Acknowledge(OLD),
        Action::PowerOff(NodeId(OLD.0)),
        Action::PowerOff(NodeId(NEW.0)),
        Action::Suspect(NodeId(OLD.0)),
        Action::Suspect(NodeId(NEW.0)),
        LOOK,
        LOOK,
        deliver(OrderKind::Fence, OTHER),
        late,
    ]
}

/// The same, and the former primary is back: the others are stable without it, and its log was found to hold what theirs
/// does not. The way there is the one that a cluster takes by itself.
pub fn former_primary_is_divergent(bounds: &Bounds) -> Vec<Action> {
    let mut steps = candidate_alone_has_it();
    let model = Writes { prologue: steps.clone(), ..Writes::new(bounds.clone(), DAEMON) };
    let is_there = |state: &State| {
        let divergent = state.replicas.get(&OLD).is_some_and(|r| r.standing.run == RunState::Divergent);
        divergent && state.map.database().is_some_and(|record| record.phase == Phase::Stable)
    };
    let way = model.init_states().pop().and_then(|state| heal::walk(bounds, DAEMON, state, is_there));
    // Without it, the checks that begin there would check nothing.
    steps.extend(way.expect("a former primary with a tail of its own is found out"));
    steps
}
