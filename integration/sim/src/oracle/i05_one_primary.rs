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

pub fn opened(
    opened: &mut BTreeMap<Epoch, ReplicaId>,
    database: DatabaseId,
    replica: ReplicaId,
    reign: Epoch,
) -> Result<(), String> {
    let newest = opened.last_key_value().map(|(epoch, by)| (*epoch, *by));
    let first = *opened.entry(reign).or_insert(replica);
    if first != replica {
        return Err(format!("I5: {database}: both {first} and {replica} opened in reign {reign}"));
    }
    match newest {
        Some((newest, by)) if newest > reign => Err(format!(
            "I5: {database}: {replica} opened in reign {reign} after {by} had opened in reign {newest}"
        )),
        _ => Ok(()),
    }
}
