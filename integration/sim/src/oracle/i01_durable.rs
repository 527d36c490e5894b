//! I1: an acknowledged commit is in the log of every later activated primary of the same data-loss epoch.

use crate::pg::wal::Record;
use quorate_model::{DatabaseId, ReplicaId};
use std::collections::BTreeMap;

pub fn check(
    database: DatabaseId,
    pinned: &BTreeMap<usize, u64>,
    primary: ReplicaId,
    log: &[Record],
) -> Result<(), String> {
    let missing = pinned.iter().find(|(at, serial)| log.get(**at).map(|r| r.serial) != Some(**serial));
    match missing {
        Some((at, serial)) => {
            let found = log.get(*at).map(|r| r.serial);
            Err(format!(
                "I1: {database}: a client was told of record {serial} at position {at}; the new primary {primary} has {found:?} there"
            ))
        }
        None => Ok(()),
    }
}
