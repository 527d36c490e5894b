//! The proxy in front of a real PostgreSQL: nodes of it in this process, with the drivers that applications use.
//!
//! One binary, because each links everything that the proxy needs.
#![allow(clippy::unwrap_used)]

mod common;

mod blocks;
mod certificates;
mod commits;
mod confirm;
mod fragments;
mod outcomes;
mod pooling;
mod sessions;
mod survive;
