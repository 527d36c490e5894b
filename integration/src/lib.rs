//! What the tests of promises are made of: a real cluster on this machine, a nemesis that does harm and verifies
//! that it did, and a ledger that compares what clients were told with what is there.
//!
//! Nothing here links the daemon. A test sees what a user sees: ports, processes, files and the admin port's
//! columns. So a test that passes says something about the binary, not about a build of its parts.

pub mod admin;
pub mod binaries;
pub mod cluster;
pub mod copies;
pub mod document;
pub mod driver;
pub mod executor;
pub mod failpoints;
pub mod faults;
pub mod gaps;
pub mod harness;
pub mod ledger;
pub mod leftovers;
pub mod links;
pub mod logs;
pub mod long_records;
pub mod nemesis;
pub mod patroni;
pub mod peer;
pub mod pgbench;
pub mod ports;
pub mod process;
pub mod programs;
pub mod sql;
pub mod wait;

pub use admin::Admin;
pub use cluster::{Cluster, Options};
pub use harness::with_cluster;
pub use ledger::Ledger;
pub use sql::{Endpoint, Session};

/// The database that `quorate demo` makes.
pub const DEMO_DATABASE: &str = "demo.app";
