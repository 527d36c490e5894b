//! Every order of the admin port, one a file. `SHOW HELP` is made from this table, and so is the reader.

mod alter_database;
mod alter_server;
mod cancel_operation;
mod create_database;
mod create_server;
mod drop_database;
mod drop_replica;
mod drop_server;
mod explain_failover;
mod failpoint;
mod force_recover;
mod lookup;
mod move_replica;
mod option;
mod select;
pub mod settings;
mod show_databases;
mod show_events;
mod show_help;
mod show_nodes;
mod show_operations;
mod show_pools;
mod show_replicas;
mod show_ring;
mod show_servers;
mod show_version;
mod suspect_node;
mod switchover;
mod transaction;
mod wait_operation;

use super::error::AdminError;
use super::language::phrase::Phrase;
use super::order::Order;
use std::sync::Arc;

/// How an order is written, told and read.
pub struct Spec {
    /// The keywords it begins with.
    pub words: &'static [&'static str],
    pub syntax: &'static str,
    /// Empty for words that are taken only because drivers send them.
    pub help: &'static str,
    /// Reads what follows the keywords.
    pub parse: fn(&mut Phrase<'_>) -> Result<Arc<dyn Order>, AdminError>,
}

pub const ORDERS: &[Spec] = &[
    show_nodes::SPEC,
    show_servers::SPEC,
    show_databases::SPEC,
    show_replicas::SPEC,
    show_ring::SPEC,
    show_pools::SPEC,
    show_operations::SPEC,
    show_events::SPEC,
    show_version::SPEC,
    show_help::SPEC,
    create_server::SPEC,
    alter_server::SPEC,
    drop_server::SPEC,
    create_database::SPEC,
    drop_database::SPEC,
    alter_database::SPEC,
    switchover::SPEC,
    move_replica::SPEC,
    wait_operation::SPEC,
    cancel_operation::SPEC,
    explain_failover::SPEC,
    force_recover::SPEC,
    drop_replica::SPEC,
    suspect_node::SPEC,
    failpoint::SPEC,
    failpoint::SHOW,
    select::SPEC,
    settings::SET,
    settings::RESET,
    settings::DISCARD,
    transaction::BEGIN,
    transaction::START,
    transaction::COMMIT,
    transaction::END,
    transaction::ROLLBACK,
    transaction::ABORT,
];
