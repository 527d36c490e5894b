//! The log: records of equal size, each with a number that no other record of the world bears, so that two logs are
//! the same exactly where their numbers are.

use quorate_model::{Epoch, Lsn, Timeline};
use std::collections::BTreeMap;

/// Where the first record begins.
const ORIGIN: u64 = 0x1000;
const RECORD_BYTES: u64 = 16;
/// Keys that clients write to, in each database.
pub const KEYS: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// For a client's commit, the value that it wrote.
    pub serial: u64,
    pub timeline: Timeline,
    pub what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Commit {
        key: usize,
    },
    EpochRow(Epoch),
    /// The daemon's own write through the quorum.
    Barrier,
    /// The end of recovery of a promotion.
    Promotion,
    Shutdown,
}

/// The end of the log after so many records.
pub fn end_of(records: usize) -> Lsn {
    Lsn(ORIGIN + records as u64 * RECORD_BYTES)
}

/// The epoch rows among these, each with the timeline that it is on: those of one reign are on one.
pub fn rows_of(records: &[Record]) -> Vec<(Epoch, Timeline)> {
    let mut rows = BTreeMap::new();
    for record in records {
        if let What::EpochRow(epoch) = record.what {
            rows.entry(epoch.reign()).or_insert(record.timeline);
        }
    }
    rows.into_iter().collect()
}

/// The highest epoch row among these.
pub fn epoch_of(records: &[Record]) -> Epoch {
    let row = |record: &Record| match record.what {
        What::EpochRow(epoch) => Some(epoch),
        _ => None,
    };
    records.iter().filter_map(row).max().unwrap_or_default()
}
