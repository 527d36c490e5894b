//! I12: a replica that lost its data is not what it was until it was copied anew: it never becomes primary.

use quorate_model::{DatabaseId, ReplicaId};

pub fn check(database: DatabaseId, primary: ReplicaId, was_emptied: bool) -> Result<(), String> {
    if was_emptied {
        return Err(format!("I12: {database}: {primary} lost its data and opened its gate all the same"));
    }
    Ok(())
}
