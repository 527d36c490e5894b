//! I9: k >= 1, at least two copies, one change in flight, and sync names within previous and current.

use quorate_model::{Database, Phase, ReplicaId};
use std::collections::BTreeSet;

pub fn record(record: &Database) -> Result<(), String> {
    if let Some(bad) = record.configurations().find(|c| !c.is_valid()) {
        return Err(format!("I9: {}: configuration {bad:?} in version {}", record.id, record.version));
    }
    if record.phase == Phase::Stable && !record.previous.is_empty() {
        return Err(format!(
            "I9: {}: stable with former configurations in version {}",
            record.id, record.version
        ));
    }
    Ok(())
}

/// Names are set on the primary of the newest reign; an old one's do not count any more.
pub fn names(
    newest: Option<&Database>,
    primary: ReplicaId,
    names: &BTreeSet<ReplicaId>,
) -> Result<(), String> {
    let Some(record) = newest.filter(|r| r.current.primary == primary) else { return Ok(()) };
    let members = record.members();
    match names.iter().find(|name| !members.contains(name)) {
        Some(stranger) => Err(format!(
            "I9: {}: {stranger} may acknowledge to {primary} but is in no configuration of version {}",
            record.id, record.version
        )),
        None => Ok(()),
    }
}
