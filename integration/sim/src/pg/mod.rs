//! A PostgreSQL of values: a log of records, timelines, a walreceiver and walsenders over the simulated tunnel, waits
//! for synchronous standbys, and what a crash does to each of them.
//!
//! It keeps to what PostgreSQL does where the protocol depends on it (DESIGN §6): walsenders ship what is flushed
//! locally, to everybody who asks; each takes a change of the sync names in its own time; a commit that nobody
//! acknowledged is visible after a restart; two promotions may choose the same timeline; a standby that holds other
//! bytes on the same timeline streams on as if nothing were wrong.

pub mod disk;
pub mod host;
pub mod instance;
pub mod server;
pub mod tunnel;
pub mod wal;
pub mod wire;
