//! The invariants of DESIGN §5 that apply to writes and reconfiguration, one property each.
//!
//! I7 and I8 are of the model of leases. I6 and I13 are checked where a step ends, I10 also where a coordinator's
//! proposal is taken, I5 between two states.

use super::postgres::Entry;
use super::state::{Letter, Map, Replica, State};
use super::{Writes, agent};
use quorate_model::{Epoch, GateReport, OperationId, OperationKind, OperationState, Phase, ReplicaId, Step};
use stateright::Property;
use std::collections::BTreeMap;

const NAMES: [&str; 12] = [
    "I1 an acknowledged commit is in the log of every later activated primary",
    "I2 no door is open to an epoch older than the promise",
    "I3 no write quorum is usable after an election that it does not know of",
    "I4 a standby that streams holds a prefix of its primary's log",
    "I5 epochs and promises never go back, one primary an epoch",
    "I6 an open gate's epoch row is on a write quorum",
    "I9 at least two copies, one change at a time, sync names within the configurations in force",
    "I10 no loss without an operator's word",
    "I11 learners and dropped replicas never count",
    "I12 a replica that discarded log is incomplete until it is past its floor",
    "I13 no order of an older epoch than the promise takes effect, and no step of a replaced executor",
    "I14 without further faults it comes to rest, stable and open",
];

pub fn properties() -> Vec<Property<Writes>> {
    vec![
        Property::always(NAMES[0], |_, s: &State| holds_acknowledged(s)),
        Property::always(NAMES[1], |_, s: &State| s.replicas.values().all(|r| keeps_promise(r))),
        Property::always(NAMES[2], |_, s: &State| !is_usable_after_election(s)),
        Property::always(NAMES[3], |_, s: &State| streams_prefixes(s)),
        Property::always(NAMES[4], |_, s: &State| s.broken != Some("I5")),
        Property::always(NAMES[5], |_, s: &State| s.broken != Some("I6")),
        Property::always(NAMES[6], |_, s: &State| names_within(s)),
        Property::always(NAMES[7], |_, s: &State| s.broken != Some("I10") && loses_by_word(s)),
        Property::always(NAMES[8], |_, s: &State| counts_members(s)),
        Property::always(NAMES[9], |_, s: &State| bars_discarded(s)),
        Property::always(NAMES[10], |_, s: &State| s.broken != Some("I13")),
        Property::always(NAMES[11], |model: &Writes, s: &State| model.heals(s)),
    ]
}

fn holds(replica: &Replica, write: u8) -> bool {
    replica.instance.log.contains(&Entry::Write(write))
}

/// I10: the record counts no more losses than an operator has spoken words. What is lost without being counted breaks I1.
fn loses_by_word(state: &State) -> bool {
    state.map.database().is_some_and(|d| d.epoch.data_loss <= u64::from(state.spent.words))
}

/// I1, within one data-loss epoch. A primary is activated when its gate opens; a recorded candidate is one that will be.
fn holds_acknowledged(state: &State) -> bool {
    if let Some(record) = state.map.database()
        && matches!(record.phase, Phase::Promoting { .. })
        && let Some(candidate) = state.replicas.get(&record.current.primary)
    {
        let reign = record.epoch.reign();
        let counts = |told: &Epoch| *told < reign && told.data_loss == reign.data_loss;
        if state.acknowledged.iter().any(|(write, told)| counts(told) && !holds(candidate, *write)) {
            return false;
        }
    }
    let activated = state.replicas.values().filter(|r| r.is_primary());
    activated.filter_map(|r| if let GateReport::Open(reign) = r.gate { Some((r, reign)) } else { None }).all(
        |(r, reign)| {
            let counts = |told: &Epoch| *told <= reign && told.data_loss == reign.data_loss;
            state.acknowledged.iter().all(|(write, told)| !counts(told) || holds(r, *write))
        },
    )
}

/// I2: gate and tunnels belong to the promised reign or to a newer one, and the gate to a primary.
fn keeps_promise(replica: &Replica) -> bool {
    let promise = replica.standing.promise();
    let gate = match replica.gate {
        GateReport::Open(reign) => reign == promise && replica.standing.leading == Some(reign),
        _ => true,
    };
    gate && replica.upstream.as_ref().is_none_or(|a| a.reign == promise)
        && replica.downstream.as_ref().is_none_or(|r| r.epoch >= promise)
}

/// I3: once a winner is recorded, no primary of an older reign can still gather a write quorum. One that was given up by
/// force could not be asked; what it acknowledges is of the loss that was accepted.
fn is_usable_after_election(state: &State) -> bool {
    let Some(record) = state.map.database() else { return false };
    if !matches!(record.phase, Phase::Promoting { .. } | Phase::Stable | Phase::Joint) {
        return false;
    }
    state.replicas.iter().any(|(id, primary)| {
        let now = record.epoch.reign();
        let old =
            primary.standing.leading.is_some_and(|reign| reign < now && reign.data_loss == now.data_loss);
        let names = &primary.instance.names;
        old && primary.is_primary()
            && names.who.iter().filter(|s| state.is_connected(*id, **s)).count() >= names.k
    })
}

/// I4.
fn streams_prefixes(state: &State) -> bool {
    state.replicas.iter().filter(|(_, r)| r.downstream.is_some()).all(|(id, standby)| {
        state
            .replicas
            .iter()
            .filter(|(p, _)| state.is_streaming(**p, *id))
            .all(|(_, primary)| primary.instance.log.starts_with(&standby.instance.log))
    })
}

/// I9: the record is sound, and its own primary's names are among the configurations in force.
fn names_within(state: &State) -> bool {
    let Some(record) = state.map.database() else { return false };
    let members = record.members();
    record.check().is_ok()
        && leading(state, record.epoch).all(|(_, r)| {
            let names = &r.instance.names;
            let somebody = !names.who.is_empty() || record.is_read_only();
            names.k >= 1 && somebody && names.who.is_subset(&members)
        })
}

/// I11: whose acknowledgement counts, by what its walsender goes by, is a member.
fn counts_members(state: &State) -> bool {
    let Some(record) = state.map.database() else { return false };
    let members = record.members();
    leading(state, record.epoch).all(|(_, r)| r.instance.counted().all(|(s, _)| members.contains(&s)))
}

/// I12: by the record, whoever looks at it.
fn bars_discarded(state: &State) -> bool {
    let Some(record) = state.map.database() else { return false };
    let known = state.replicas.iter().filter(|(id, _)| record.replicas.contains_key(id));
    known.filter(|(_, r)| r.floor.is_some()).all(|(id, _)| record.is_barred(*id))
}

fn leading(state: &State, epoch: Epoch) -> impl Iterator<Item = (&ReplicaId, &std::sync::Arc<Replica>)> {
    let reign = epoch.reign();
    state.replicas.iter().filter(move |(_, r)| r.is_primary() && r.standing.leading == Some(reign))
}

/// I13, at the end of an order.
pub fn obeyed(state: &mut State, letter: Letter, took_effect: bool) {
    let promise = state.replicas.get(&letter.replica).map(|r| r.standing.promise());
    if took_effect && promise.is_some_and(|p| p > letter.epoch.reign()) {
        state.broken.get_or_insert("I13");
    }
}

/// I10 and I13, of what a coordinator has had recorded: a loss is a step of an order that runs, taken once; and no step is
/// taken for an attempt that another coordinator has taken over since.
pub fn recorded(before: &Map, after: &mut State, attempt: Option<(OperationId, u32)>) {
    let (Some(was), Some(is)) = (before.database(), after.map.database()) else { return };
    let by = attempt.and_then(|(id, number)| Some((before.0.operations.get(&id)?, number)));
    let replaced = by.is_some_and(|(operation, number)| operation.attempt != number);
    let word = by.is_some_and(|(operation, _)| {
        matches!(operation.kind, OperationKind::ForceRecover { .. })
            && operation.state == OperationState::Running
            && !matches!(operation.step, Step::Recovering { .. })
    });
    if is.epoch.data_loss > was.epoch.data_loss && !(word && is.epoch.data_loss == was.epoch.data_loss + 1) {
        after.broken.get_or_insert("I10");
    }
    if replaced && *before != after.map {
        after.broken.get_or_insert("I13");
    }
}

/// I5 and I6, between a state and the next.
pub fn stepped(last: &State, next: &mut State) {
    let epoch = |s: &State| s.map.database().map(|d| d.epoch);
    let mut broken = epoch(next) < epoch(last);
    let mut leads: BTreeMap<Epoch, ReplicaId> = BTreeMap::new();
    let mut opened = Vec::new();
    for (id, replica) in &next.replicas {
        let before = last.replicas.get(id);
        broken |= before.is_some_and(|b| b.standing.promise() > replica.standing.promise());
        if let Some(reign) = replica.standing.leading {
            broken |= next.reigns.get(&reign).is_some_and(|leader| leader != id);
            leads.insert(reign, *id);
        }
        if replica.gate.is_open() && before.is_none_or(|b| b.gate != replica.gate) {
            opened.push(*id);
        }
    }
    next.reigns.extend(leads);
    let missing = |id: &ReplicaId| {
        let Some(record) = next.map.database() else { return false };
        let GateReport::Open(reign) = next.replicas[id].gate else { return false };
        let of_record = record.epoch.same_reign(reign) && record.current.primary == *id;
        of_record && !agent::holds_row(next, &record.current, reign)
    };
    let row_missing = opened.iter().any(missing);
    if broken {
        next.broken = Some("I5");
    } else if row_missing {
        next.broken = Some("I6");
    }
}
