//! I2: nothing of an old reign is told to a client after a newer one has opened.
//!
//! A confirmation knows no clock, and its way to the gate may be long: what it promises is that nobody obeyed a newer reign
//! when a voter gave it, and so that the statement had begun before a newer one opened. That the result is no older than
//! what was known when the statement began, I7 and I8 say of both.

use super::Egress;
use quorate_model::{Epoch, Reads, ReplicaId};
use std::collections::BTreeMap;

pub fn check(opened: &BTreeMap<Epoch, ReplicaId>, egress: Egress) -> Result<(), String> {
    if egress.by == Reads::Confirm {
        return match egress.began_in > egress.reign {
            false => Ok(()),
            true => Err(format!(
                "I2: {}: a statement that began in reign {} was confirmed by {} in reign {}",
                egress.database, egress.began_in, egress.replica, egress.reign
            )),
        };
    }
    match opened.last_key_value() {
        Some((newest, by)) if *newest > egress.reign => Err(format!(
            "I2: {}: a result left {} in reign {} after {by} opened in reign {newest}",
            egress.database, egress.replica, egress.reign
        )),
        _ => Ok(()),
    }
}
