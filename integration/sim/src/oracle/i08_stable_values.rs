//! I8: a value that was returned once never vanishes, whether its commit was acknowledged or not.

use super::Egress;
use crate::pg::server::Placed;

pub fn check(egress: Egress, floor: Option<Placed>, value: Option<Placed>) -> Result<(), String> {
    let Some(floor) = floor.filter(|floor| value.is_none_or(|v| v.index < floor.index)) else {
        return Ok(());
    };
    Err(format!(
        "I8: {}: {} returned {value:?} for key {} although {floor:?} had been returned before",
        egress.database, egress.replica, egress.key
    ))
}
