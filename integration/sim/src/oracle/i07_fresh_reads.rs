//! I7: a read returns what was acknowledged before it began, or something newer.

use super::Egress;
use crate::pg::server::Placed;

pub fn check(egress: Egress, floor: Option<Placed>, value: Option<Placed>) -> Result<(), String> {
    let Some(floor) = floor.filter(|floor| value.is_none_or(|v| v.index < floor.index)) else {
        return Ok(());
    };
    Err(format!(
        "I7: {}: {} returned {value:?} for key {} although {floor:?} had been acknowledged before",
        egress.database, egress.replica, egress.key
    ))
}
