//! Tests over real sockets, two nodes on loopback, and a real PostgreSQL.
#![allow(clippy::unwrap_used)]

mod joined;
mod measure;
mod nodes;
mod postgres;
mod refusals;
mod replication;
