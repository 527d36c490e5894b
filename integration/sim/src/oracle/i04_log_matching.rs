//! I4: logs that are equal at a position are equal before it. A standby that streams behind a record which its
//! primary does not have has left the history, and PostgreSQL does not notice.

use quorate_model::{DatabaseId, ReplicaId};

pub fn check(
    database: DatabaseId,
    standby: ReplicaId,
    at: usize,
    own: u64,
    other: u64,
) -> Result<(), String> {
    Err(format!(
        "I4: {database}: {standby} streams from position {at} on, but holds record {own} before it where its primary has {other}"
    ))
}
