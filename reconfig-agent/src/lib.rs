//! The reconfiguration agent and the replica agent.
//!
//! `decide` holds every decision as a function of values. `coordinator` carries the decisions out on the node
//! that leads the partition map. `agent` runs on every node: it makes, starts, watches and stops the instances
//! that the map places there and obeys the coordinator's orders. `instance` is one PostgreSQL instance, `tunnel`
//! the only path of replication between two of them.
//!
//! **Architecture invariant.** Nothing here knows Raft or a client's session: the map is the trait [`map::Map`],
//! the gate is the trait [`agent::GateControl`].

pub mod agent;
pub mod coordinator;
pub mod decide;
pub mod instance;
pub mod map;
pub mod tunnel;
