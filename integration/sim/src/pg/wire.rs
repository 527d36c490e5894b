//! What the two ends of a tunnel say to each other.

use super::wal::Record;
use quorate_model::{DatabaseId, Epoch, Lsn, ReplicaId, Timeline};
use std::sync::Arc;

#[derive(Clone, Debug)]
pub struct Hello {
    pub database: DatabaseId,
    pub replica: ReplicaId,
    pub primary: ReplicaId,
    /// The reign.
    pub epoch: Epoch,
    pub purpose: Purpose,
}

#[derive(Clone, Debug)]
pub enum Purpose {
    /// A walreceiver, and where its log ends.
    Stream {
        from: usize,
        timeline: Timeline,
    },
    Backup,
    /// pg_rewind: reads the primary's log.
    Rewind,
}

#[derive(Clone, Debug)]
pub enum Message {
    /// Records from number `from` on. `before` is the number of the record before them in the primary's log: a real
    /// standby does not see it, the world does.
    Wal {
        from: usize,
        before: u64,
        records: Arc<[Record]>,
        history: Arc<[(Timeline, Lsn)]>,
        end: Lsn,
    },
    /// The standby's log is durable up to there.
    Flushed(Lsn),
    Backup {
        records: Arc<[Record]>,
        history: Arc<[(Timeline, Lsn)]>,
    },
}
