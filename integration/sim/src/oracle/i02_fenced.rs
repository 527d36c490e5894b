//! I2: nothing of an old reign is told to a client after a newer one has opened.

use super::Egress;
use quorate_model::{Epoch, ReplicaId};
use std::collections::BTreeMap;

pub fn check(opened: &BTreeMap<Epoch, ReplicaId>, egress: Egress) -> Result<(), String> {
    match opened.last_key_value() {
        Some((newest, by)) if *newest > egress.reign => Err(format!(
            "I2: {}: a result left {} in reign {} after {by} opened in reign {newest}",
            egress.database, egress.replica, egress.reign
        )),
        _ => Ok(()),
    }
}
