//! The tunnel: the only path of replication between two instances of a database.
//!
//! Why it exists: a fence must stop acknowledgements without the help of the Postgres that is fenced, which may be
//! stopped, hung or cut off. A stream that we own can be closed; so every walreceiver and every base backup talks to
//! its own daemon, which talks to the primary's daemon, which talks to the primary.
//!
//! ```text
//! standby's node                                      primary's node
//! walreceiver ──socket──▶ Downstream ══mutual TLS══▶ Upstreams ──socket──▶ walsender
//!             ◀── WAL ───            ◀══════════════           ◀── WAL ──
//!             ── flush positions ──▶                           ──▶ (an acknowledgement)
//! ```
//! What it promises:
//! - After [`Downstream::cut`], [`Upstreams::cut_all`] and [`Upstreams::cut`] return, no byte passes in either direction
//!   (`leash`). Either end alone is enough: a fenced standby cannot acknowledge, and a fenced primary cannot be
//!   acknowledged to (I2).
//! - A stream belongs to one reign, one primary, one replica; the primary's end checks all three, and names the
//!   connection itself (`startup`), so no impostor counts as synchronous.
//! - Nothing passes after a restart until the replica agent attaches and admits (R7).
//! - The one thing that passes and is no replication is pg_rewind: only while both ends were told that this replica is
//!   to be rewound in this reign, and as a role that may read files and nothing else.
//! - It sees every flush position that it forwards ([`Upstreams::flushes`]) and never says one that no standby said.
//!   Reports that nobody waits for stay at the standby's node (`tap`) or wait there for the next one (`applied`).
//!
//! What it never does: keep WAL, reorder, retry a byte, judge who is primary, or speak SQL.
//!
//! The pure parts are `scan`, `tap`, `applied`, `turns`, `hold`, `startup` and `hello`; `pump` and `relay` move bytes; `leash` cuts;
//! `downstream` with `standby`, and `upstream` with `primary`, are the two ends.

mod applied;
mod buffer;
mod downstream;
mod hello;
mod hold;
mod leash;
mod ledger;
mod primary;
mod pump;
mod relay;
mod scan;
mod sentry;
mod standby;
mod startup;
mod tap;
mod telemetry;
mod turns;
mod upstream;

#[cfg(test)]
mod tests;

pub use downstream::{Downstream, DownstreamStatus, Route, SOCKET_NAME};
pub use sentry::Flush;
pub use startup::{REPLICATION_USER, REWIND_USER};
pub use upstream::Upstreams;
