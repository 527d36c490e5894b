//! I11: learners, incomplete and dropped replicas never count toward a commit.

use quorate_model::{Database, Epoch, ReplicaId};

pub fn check(
    newest: Option<&Database>,
    primary: ReplicaId,
    reign: Epoch,
    standby: ReplicaId,
) -> Result<(), String> {
    // What an older reign counts, its successor's election has covered.
    let Some(record) = newest.filter(|r| r.epoch.same_reign(reign) && r.current.primary == primary) else {
        return Ok(());
    };
    if record.members().contains(&standby) {
        return Ok(());
    }
    Err(format!(
        "I11: {}: {primary} counted {standby}, which is in no configuration of version {}",
        record.id, record.version
    ))
}
