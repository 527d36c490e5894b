//! What survives a restart: the log, the vote, and the last snapshot, in one redb file.
//!
//! Everything is in memory too (the log is short: it is purged behind snapshots), so that reading never waits
//! for a disk. A thread of its own writes: [`writer`] takes whatever has queued up and commits it in one
//! transaction, with one flush.
//!
//! ```text
//! log:  index u64 -> entry (postcard)
//! meta: "format" "node" "vote" "committed" "purged" "snapshot" "snapshot-meta" -> value (postcard)
//! ```

mod disk;
mod log;
mod machine;
mod memory;
mod writer;

pub(crate) use disk::DiskError;
pub(crate) use log::LogStore;
pub(crate) use machine::{Machine, Views};
pub use memory::MemoryDisk;

use crate::state::MapState;
use quorate_model::NodeId;
use std::path::Path;

/// Opens the store of a node, making it if there is none.
pub(crate) fn open(path: &Path, node: NodeId) -> Result<(LogStore, Machine, Views), DiskError> {
    let (disk, loaded) = disk::Disk::open(path, node)?;
    assemble(writer::Writer::start(disk)?, loaded, node)
}

/// The same on a simulated disk. Must be called on a runtime.
pub(crate) fn open_in_memory(
    disk: MemoryDisk,
    node: NodeId,
) -> Result<(LogStore, Machine, Views), DiskError> {
    let loaded = disk.load();
    assemble(writer::Writer::start_in_memory(disk), loaded, node)
}

fn assemble(
    writer: writer::Writer,
    loaded: disk::Loaded,
    node: NodeId,
) -> Result<(LogStore, Machine, Views), DiskError> {
    let state = match &loaded.snapshot {
        Some(snapshot) => MapState::decode(&snapshot.data).map_err(DiskError::Content)?,
        None => MapState::default(),
    };
    let log = LogStore::new(writer.clone(), loaded.log);
    let (machine, views) = Machine::new(writer, state, loaded.snapshot, node);
    Ok((log, machine, views))
}
