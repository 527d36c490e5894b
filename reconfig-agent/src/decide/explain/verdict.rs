//! The sentences above the rows: what would happen, or what is waited for.

use super::Question;
use quorate_model::{GateReport, Phase, ReplicaId};
use std::collections::BTreeSet;

pub(super) fn verdict(
    question: &Question<'_>,
    primary: Option<ReplicaId>,
    covers: bool,
    best: Option<ReplicaId>,
    missing: &[ReplicaId],
) -> Vec<String> {
    let database = question.database;
    let name = question.map.full_name(database);
    let mut told = vec![format!("{name} is {}{}", database.phase.name(), now(question, primary, covers))];
    match (covers, best) {
        (true, Some(best)) if primary.is_some() => {
            told.push(format!("if the primary were lost now, {} would take over", question.name(best)));
        }
        (true, Some(best)) => told.push(format!("{} can take over", question.name(best))),
        (true, None) if database.is_read_only() => {
            told.push("it is read-only until a second copy exists; nobody else can take over".to_owned());
        }
        _ => told.push(format!(
            "without the primary nobody could take over now; the answer of one of these is missing: {}",
            question.names(missing.iter().copied())
        )),
    }
    if matches!(database.phase, Phase::QuorumLost { .. }) && !covers {
        told.push(format!(
            "bring one of them back; or, if they are lost for good: FORCE RECOVER DATABASE {name} ACCEPT DATA LOSS"
        ));
    }
    if let Some(operation) = database.operation.and_then(|id| question.map.operations.get(&id)) {
        let (id, kind, step) = (operation.id, operation.kind.name(), &operation.step);
        let comes_first = match database.phase {
            Phase::Creating | Phase::Dropping => "",
            _ => ": a failover comes first, then it goes on",
        };
        told.push(format!("operation {id} ({kind}) is under way, at {step}{comes_first}"));
    }
    if let Some(event) = question.map.events.iter().rev().find(|e| e.database == database.id) {
        told.push(format!("last event: {} in epoch {}: {}", event.kind.name(), event.epoch, event.reason));
    }
    told
}

/// What goes on with the primary, behind the name of the phase.
fn now(question: &Question<'_>, primary: Option<ReplicaId>, covers: bool) -> String {
    let database = question.database;
    let elected = question.name(database.current.primary);
    match (&database.phase, primary) {
        (Phase::Electing { .. } | Phase::QuorumLost { .. }, _) if covers => {
            ": enough replicas answer, a primary is about to be made".to_owned()
        }
        (Phase::Electing { .. } | Phase::QuorumLost { .. }, _) => {
            ": no failover, because those that answer do not meet every write quorum, so an acknowledged commit may be \
             on none of them"
                .to_owned()
        }
        (Phase::Creating, None) => ": its first primary is being made".to_owned(),
        (Phase::Promoting { .. }, Some(_)) => {
            format!(": {elected} was elected and leads; it opens when {}", barrier(question))
        }
        (Phase::Promoting { .. }, None) => {
            let state = super::state(question, database.current.primary);
            format!(": {elected} was elected and is no primary yet; it is {state}")
        }
        (Phase::Joint, Some(_)) => format!(
            ": no failover, because its primary {elected} answers; its new secondaries count alone when {}",
            barrier(question)
        ),
        (Phase::Switching { to, .. }, Some(_)) => {
            let to = to.map_or_else(|| "the most advanced".to_owned(), |to| question.name(to));
            format!(": {elected} answers and is to stop between transactions; then {to} is elected")
        }
        (_, Some(primary)) if !is_open(question, primary) => {
            format!(": no failover, because its primary {elected} answers; its gate is not open yet")
        }
        (_, Some(_)) => format!(": no failover, because its primary {elected} answers"),
        (_, None) => ", and its primary does not answer".to_owned(),
    }
}

fn is_open(question: &Question<'_>, primary: ReplicaId) -> bool {
    let epoch = question.database.epoch;
    let gate = question.reports.get(&primary).map(|report| report.gate);
    matches!(gate, Some(GateReport::Open(reign)) if reign.same_reign(epoch))
}

/// What the barrier of this record waits for.
fn barrier(question: &Question<'_>) -> String {
    let database = question.database;
    let reign = database.epoch.reign();
    let each: Vec<String> = database
        .current
        .voters
        .iter()
        .map(|voter| {
            let follows = question.reports.get(voter).is_some_and(|r| r.streaming == Some(reign));
            let state = if follows { "follows" } else { super::state(question, *voter) };
            format!("{} ({state})", question.name(*voter))
        })
        .collect();
    let voters: BTreeSet<ReplicaId> = database.current.voters.clone();
    match (database.current.is_lone(), voters.len()) {
        (true, _) => "it has written the epoch down".to_owned(),
        (false, 1) => format!("{} has acknowledged the epoch", each.join(", ")),
        _ => format!("{} of these have acknowledged the epoch: {}", database.current.k, each.join(", ")),
    }
}
