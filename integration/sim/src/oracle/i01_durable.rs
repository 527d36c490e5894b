//! I1: an acknowledged commit is in the log of every later activated primary of the same data-loss epoch.

use crate::pg::wal::Record;
use quorate_model::{DatabaseId, Epoch, ReplicaId};
use std::collections::BTreeMap;

pub fn check(
    database: DatabaseId,
    pinned: &BTreeMap<usize, u64>,
    opened: &BTreeMap<Epoch, ReplicaId>,
    (primary, reign): (ReplicaId, Epoch),
    log: &[Record],
) -> Result<(), String> {
    // Later means in a newer reign. A node that was stopped with an order to open in its hands opens for a reign that is
    // over when it goes on; without a lease nothing leaves there (I2, I7), and nobody's acknowledgement comes.
    if opened.keys().next_back().is_some_and(|newest| *newest > reign) {
        return Ok(());
    }
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
