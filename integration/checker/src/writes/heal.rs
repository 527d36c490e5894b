//! I14: when nothing more goes wrong, what is under way comes to its end.
//!
//! From a state, the faults are ended and the cluster goes on, always with the first of what can go on, until the
//! database is stable with its gate open. Stateright's own `eventually` does not see a cycle, so this is done from a
//! sample of the states.

use super::state::State;
use super::{Action, Bounds, Writes};
use crate::decisions::Decisions;
use quorate_model::{GateReport, Phase};
use stateright::Model;
use std::sync::Arc;

/// Steps after which a cluster that has not come to rest never will; the longest way seen is a tenth of it.
const STEPS: usize = 600;

fn rests(state: &State) -> bool {
    let Some(record) = state.map.database() else { return false };
    record.phase == Phase::Stable
        // After a loss was accepted: commits can be acknowledged again.
        && !record.is_read_only()
        && state.replicas.get(&record.current.primary).is_some_and(|r| {
            r.is_primary() && matches!(r.gate, GateReport::Open(reign) if reign.same_reign(record.epoch))
        })
}

pub fn heals(model: &Writes, state: State) -> bool {
    way(&model.bounds, model.decisions, state).is_some()
}

/// How many steps it took.
pub fn way(bounds: &Bounds, decisions: Decisions, state: State) -> Option<usize> {
    walk(bounds, decisions, state, rests).map(|steps| steps.len())
}

/// The steps to the first state on the way of which `is_there` holds.
pub fn walk(
    bounds: &Bounds,
    decisions: Decisions,
    mut state: State,
    is_there: impl Fn(&State) -> bool,
) -> Option<Vec<Action>> {
    state.zombie = None;
    let mut steps = Vec::new();
    let bounds =
        Bounds { elections: u8::MAX, joins: u8::MAX, built: 8, faults: 0, writes: 0, ..bounds.clone() };
    let calm =
        Writes { bounds, decisions, only: &[], heal_one_in: 0, healed: Arc::default(), prologue: Vec::new() };
    for _ in 0..STEPS {
        if is_there(&state) {
            return Some(steps);
        }
        let mut actions = Vec::new();
        calm.progress(&state, &mut actions);
        actions.extend(state.replicas.keys().map(|id| Action::Expire(*id)));
        // The coordinator looks when everything else has been done, and waits when its look changed nothing.
        let next = |action: Action| Some((calm.next_state(&state, action.clone())?, action));
        let (next, action) = actions.into_iter().find_map(next)?;
        steps.push(action);
        state = next;
    }
    None
}
