//! The partition map, replicated by Raft: the only crate that knows Raft.
//!
//! A few nodes vote (three, or five), all others learn. Every node keeps the whole map in memory and shows it
//! to the rest of the daemon as a `watch::Receiver<Arc<PartitionMap>>`; a change goes to the leader as a
//! [`quorate_model::Command`] and comes back as what it did or why it was refused. What the map means, and
//! what may be done to it, is `quorate-model`'s.
//!
//! What it promises: an acknowledged command is on the disks of a majority; a command that
//! [`MapHandle::propose`] carries to several leaders in turn is carried out once; after
//! [`MapHandle::read_barrier`] the local map contains everything that was acknowledged before. What it never
//! does: show a map that is not committed.
//!
//! ```text
//! propose ─▶ leader: batch ─▶ Raft ─▶ log (store/writer, one flush) ─▶ followers ─▶ committed ─▶ state ─▶ watch
//! ```

mod batch;
mod config;
mod contact;
mod election;
mod error;
mod handle;
mod members;
mod network;
mod services;
mod state;
mod store;
mod types;
mod wire;

#[cfg(test)]
mod tests;

pub use config::MapConfig;
pub use contact::Leadership;
pub use error::{MapError, StartError};
pub use handle::{ASK_TIMEOUT, MAX_COMMAND_BYTES, MapHandle};
pub use store::MemoryDisk;
