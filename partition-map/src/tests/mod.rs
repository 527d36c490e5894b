#![allow(clippy::unwrap_used)]

mod cluster;
mod process;
mod suite;
