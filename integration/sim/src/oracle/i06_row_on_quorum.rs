//! I6: a gate is open only when the epoch row is on a write quorum.

use quorate_model::{Database, Epoch, ReplicaId};
use std::collections::BTreeMap;

/// `rows` are the highest that each replica ever had durable: one that lost its disk later had answered before.
pub fn check(
    newest: Option<&Database>,
    rows: &BTreeMap<ReplicaId, Epoch>,
    primary: ReplicaId,
    reign: Epoch,
) -> Result<(), String> {
    // A newer reign may have been recorded meanwhile; its fence closes this gate.
    let Some(record) = newest.filter(|r| r.epoch.same_reign(reign) && r.current.primary == primary) else {
        return Ok(());
    };
    // A lone primary has no write quorum: it acknowledges nothing.
    let needed = if record.current.is_lone() { 0 } else { record.current.k as usize };
    let has = |r: &ReplicaId| rows.get(r).is_some_and(|row| row.reign() >= reign);
    let voters = record.current.voters.iter().filter(|r| has(r)).count();
    if has(&primary) && voters >= needed {
        return Ok(());
    }
    Err(format!(
        "I6: {}: the gate of {primary} opened in reign {reign} while {voters} voters had its epoch row and {needed} are needed",
        record.id
    ))
}
