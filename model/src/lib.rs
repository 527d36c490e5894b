//! The words and rules that every other crate shares: identities, positions in the log, epochs,
//! configurations and their quorums, the record of a database, and the one function that changes the
//! partition map, [`PartitionMap::apply`].
//!
//! Nothing here performs I/O, reads a clock or draws a random number; the same values go through the daemon,
//! a simulator and a model checker. Everything is ordered and hashed deterministically (`BTreeMap`, never
//! `HashMap`), because each replica of the map must compute the same bytes.

pub mod allow;
pub mod command;
pub mod configuration;
pub mod database;
pub mod epoch;
pub mod event;
pub mod ids;
pub mod lsn;
pub mod map;
pub mod operation;
mod operations;
pub mod placement;
pub mod position;
pub mod report;
pub mod server;
mod transition;

pub use allow::{AllowError, AllowList};
pub use command::{Applied, Change, Command, Refusal};
pub use configuration::Configuration;
pub use database::{
    Commits, DEFAULT_POOL_SIZE, Database, DatabaseOption, Options, Outcomes, Phase, PoolMode, Reads, Replica,
    ReplicaState,
};
pub use epoch::Epoch;
pub use event::{Event, EventKind, StepTime};
pub use ids::{DatabaseId, NodeId, OperationId, ReplicaId, ServerId};
pub use lsn::{Lsn, Timeline};
pub use map::{NodeRecord, PartitionMap};
pub use operation::{Operation, OperationKind, OperationState, Step};
pub use position::{Lineage, Position, Relation};
pub use report::{GateReport, InstanceRole, ReplicaReport, RunState};
pub use server::{ClientAuth, Server, ServerOption};
