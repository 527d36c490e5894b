//! I5: epochs and promises never go back, and there is at most one primary an epoch.

use quorate_model::{Database, DatabaseId, Epoch, ReplicaId};
use std::collections::BTreeMap;

/// A newer record beside the newest so far.
pub fn epoch(known: Option<&Database>, record: &Database) -> Result<(), String> {
    match known {
        Some(known) if known.epoch > record.epoch => Err(format!(
            "I5: {}: the record of version {} is of epoch {}, that of version {} of {}",
            record.id, known.version, known.epoch, record.version, record.epoch
        )),
        _ => Ok(()),
    }
}

pub fn promise(replica: ReplicaId, former: Option<Epoch>, epoch: Epoch) -> Result<(), String> {
    match former {
        Some(former) if former > epoch => {
            Err(format!("I5: {replica} had promised {former} and now promises {epoch}"))
        }
        _ => Ok(()),
    }
}

/// A gate opened. One that opens late, in a reign that is over, breaks nothing by itself: without a lease nothing leaves
/// it (I2), and without its voters nothing is acknowledged. No gate goes back to a reign before its own last.
pub fn opened(
    opened: &mut BTreeMap<Epoch, ReplicaId>,
    database: DatabaseId,
    replica: ReplicaId,
    reign: Epoch,
) -> Result<(), String> {
    let own = opened.iter().rfind(|(_, by)| **by == replica).map(|(epoch, _)| *epoch);
    let first = *opened.entry(reign).or_insert(replica);
    if first != replica {
        return Err(format!("I5: {database}: both {first} and {replica} opened in reign {reign}"));
    }
    match own {
        Some(own) if own > reign => Err(format!(
            "I5: {database}: {replica} opened in reign {reign} after it had opened in reign {own}"
        )),
        _ => Ok(()),
    }
}
